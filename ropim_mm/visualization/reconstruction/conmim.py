"""Pictures of ConMIM: which patch of the other view a masked one is like."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from mmpretrain.structures import DataSample
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from ...models.layers.patches import grid_of, to_pair
from ...models.layers.token_masks import (
    cells_to_patches,
    grid_of_cells,
    num_masked_cells,
)
from ...models.methods.conmim import ConMIM
from .base import (
    EXPLAINERS,
    Details,
    Explainer,
    Explanation,
    Panel,
    ToPixels,
    normalize,
)
from .marking import (
    GREEN,
    ORANGE,
    RED,
    colours,
    fade,
    frame,
    over_pixels,
    tint,
)

# Masked patches that are looked at one by one.
_ASKED = 4
# Largest change of brightness, contrast, saturation and hue.
_JITTER = torch.tensor([0.4, 0.4, 0.2, 0.1])


@EXPLAINERS.register(ConMIM)
class ConMIMExplainer(Explainer):
    """Both views, which masked patches found their place, and similarities.

    The student sees the masked view, the momentum copy a recoloured one. A
    masked patch is right where, of all patches of the other view, the one at
    its own place has the most similar feature.
    """

    def draw(
        self, model: ConMIM, pixels: np.ndarray, generator: torch.Generator
    ) -> DataSample:
        """``mask`` bool (h, w); ``strong_view`` uint8 (C, H, W)."""
        grid = grid_of(pixels.shape[1:], model.backbone.patch_size)
        size = to_pair(model.mask_cell_size)
        down, across = grid_of_cells(grid, size)
        count = num_masked_cells(down * across, model.mask_ratio)
        cells = torch.zeros(down * across, dtype=torch.bool)
        order = torch.randperm(down * across, generator=generator)
        cells[order[:count]] = True
        mask = cells_to_patches(cells.view(1, down, across), size, grid)
        sample = DataSample()
        sample.set_field(mask[0], 'mask')
        sample.set_field(_recolour(pixels, generator), 'strong_view')
        return sample

    def explain(
        self,
        model: ConMIM,
        inputs: torch.Tensor,
        samples: list[DataSample],
        to_pixels: ToPixels,
    ) -> Explanation:
        """Four pictures of the image, and three of some masked patches."""
        patch = model.backbone.patch_size
        grid = grid_of(tuple(inputs.shape[-2:]), patch)
        strong = torch.stack([s.strong_view for s in samples])
        strong = normalize(model.data_preprocessor, strong)
        mask = model.mask(inputs, samples).flatten(1)
        similarity = self._similarity(model, inputs, strong, mask).cpu()
        mask = mask.cpu()

        length = mask.shape[1]
        nearest = similarity.argmax(dim=2)
        right = nearest == torch.arange(length)
        hidden = over_pixels(mask, grid, patch)
        blank = torch.zeros_like(inputs)
        pixels, other = to_pixels(inputs), to_pixels(strong)
        shown = to_pixels(torch.where(hidden.to(inputs.device), blank, inputs))
        answers = fade(pixels, 0.6)
        for colour, found in ((GREEN, right), (RED, ~right)):
            where = over_pixels(mask & found, grid, patch)
            answers = tint(answers, where, colour)
        captions = [
            f'{(m & r).sum() / m.sum():.0%} of {m.sum()} right'
            for m, r in zip(mask, right, strict=True)
        ]
        panels = [
            Panel('input', '', pixels),
            Panel('student sees', '', shown),
            Panel('momentum copy sees', '', other),
            Panel('nearest is right', '', answers, captions=captions),
        ]
        rows = []
        for number, asked in enumerate(_spread(mask)):
            each = torch.arange(len(asked))
            scores = similarity[each, asked]
            found = nearest[each, asked]
            rank = (scores > scores[each, asked].unsqueeze(1)).sum(1) + 1
            low = scores.amin(1, keepdim=True)
            high = scores.amax(1, keepdim=True)
            heat = (scores - low) / (high - low).clamp(min=1e-6)
            heat = colours(over_pixels(heat, grid, patch))

            def marked(picture, at, colour):
                return frame(picture, at, grid, patch, colour)

            answer = torch.where(
                (found == asked).view(-1, 1, 1, 1),
                marked(other, found, GREEN),
                marked(marked(other, asked, ORANGE), found, RED),
            )
            rows.append(
                (
                    f'patch {number + 1}',
                    [
                        Panel(
                            'masked patch', '', marked(shown, asked, ORANGE)
                        ),
                        Panel(
                            'similarity',
                            '',
                            marked(heat, asked, ORANGE),
                            captions=[
                                f'own place: rank {r} of {length}'
                                for r in rank.tolist()
                            ],
                        ),
                        Panel('nearest', '', answer),
                    ],
                )
            )
        return Explanation(
            panels,
            [Details('masked patches', rows)],
            'masked patches: green where the most similar patch of the other '
            'view is the one at their own place, red elsewhere; framed in '
            'orange: a masked patch and its own place, in green or red: the '
            'most similar one',
        )

    @staticmethod
    def _similarity(
        model: ConMIM,
        weak: torch.Tensor,
        strong: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Cosines of patch features (B, L, L): student's by the copy's."""
        hide = partial(model.backbone.hide, mask=mask)
        student = model.neck(model.backbone(weak, hide)[0])
        copy = model.momentum
        target = copy.neck(copy.backbone(strong)[0])
        x, y = (
            F.normalize(features[:, 1:].float(), dim=-1)
            for features in (student, target)
        )
        return x @ y.transpose(1, 2)


def _spread(mask: torch.Tensor) -> list[torch.Tensor]:
    """Masked patches, evenly over the image.

    Args:
        mask: bool (B, L), at least one True in each row.

    Returns:
        list of int64 (B,).
    """
    chosen = []
    for row in mask:
        places = row.nonzero().squeeze(1)
        steps = torch.linspace(0, len(places) - 1, _ASKED + 2)[1:-1]
        chosen.append(places[steps.round().long()])
    return list(torch.stack(chosen, dim=1))


def _recolour(pixels: np.ndarray, generator: torch.Generator) -> torch.Tensor:
    """The strong view: brightness, contrast, saturation and hue as the
    recipe jitters them; (C, H, W) uint8."""
    view = torch.from_numpy(pixels)
    draws = torch.rand(4, generator=generator) * 2 - 1
    brightness, contrast, saturation, hue = (draws * _JITTER).tolist()
    view = TF.adjust_brightness(view, 1 + brightness)
    view = TF.adjust_contrast(view, 1 + contrast)
    if len(view) == 3:
        view = TF.adjust_saturation(view, 1 + saturation)
        view = TF.adjust_hue(view, hue)
    return view
