"""Pictures of LoMaR: windows, and what is painted into them."""

from __future__ import annotations

import numpy as np
import torch
from mmpretrain.structures import DataSample

from ...models.layers.patches import grid_of, patchify, unpatchify
from ...models.layers.windows import sample_windows
from ...models.methods.lomar import LoMaR
from .base import EXPLAINERS, Details, Explainer, Explanation, Panel, ToPixels
from .marking import NORMALIZED, fade


@EXPLAINERS.register(LoMaR)
class LoMaRExplainer(Explainer):
    """Windows as shown, predictions in their places, both composed.

    Masked patches have the mean colour of the data; what lies in no window is
    faded, and so is, beside predictions, what was visible. Where windows
    overlap, a later one lies on top. Of models that predict normalised
    patches, predictions get mean and variance of the true patches back.
    """

    def draw(
        self, model: LoMaR, pixels: np.ndarray, generator: torch.Generator
    ) -> DataSample:
        """``window_tops``, ``window_lefts`` (M,), ``window_mask`` (M, P)."""
        tops, lefts = sample_windows(
            grid_of(pixels.shape[1:], model.backbone.patch_size),
            model.window_size,
            model.num_windows,
            replacement=model.window_replacement,
            generator=generator,
        )
        shape = (model.num_windows, model.window_size**2)
        order = torch.rand(shape, generator=generator).argsort(dim=1)
        mask = torch.zeros(shape, dtype=torch.bool)
        mask.scatter_(1, order[:, : model.num_masked], True)
        sample = DataSample()
        sample.set_field(tops[0], 'window_tops')
        sample.set_field(lefts[0], 'window_lefts')
        sample.set_field(mask, 'window_mask')
        return sample

    def explain(
        self,
        model: LoMaR,
        inputs: torch.Tensor,
        samples: list[DataSample],
        to_pixels: ToPixels,
    ) -> Explanation:
        """Four pictures of the image, and four of each window."""
        seen = model.reconstruct(inputs, samples)
        truth = seen.patches.float()
        guess = model.head.to_pixels(seen.pred, seen.patches)
        masked = seen.mask.unsqueeze(-1)
        blank = torch.zeros_like(truth)
        shape = seen.ids.shape[:2]
        masked, truth, shown, predicted, composed = (
            part.unflatten(0, shape)
            for part in (
                masked.expand_as(truth),
                truth,
                torch.where(masked, blank, truth),
                guess,
                torch.where(masked, guess, truth),
            )
        )

        def in_place(
            patches: torch.Tensor, ground: torch.Tensor = inputs
        ) -> torch.Tensor:
            return _paint(model, ground, seen.ids, patches)

        nothing = torch.zeros_like(inputs)
        inside = in_place(torch.ones_like(truth), nothing).cpu() > 0
        hidden = in_place(masked.float(), nothing).cpu() > 0
        pixels = to_pixels(inputs)
        pale = fade(pixels)
        panels = [
            Panel('input', '', pixels),
            Panel(
                'windows as shown',
                '',
                torch.where(inside, to_pixels(in_place(shown)), pale),
            ),
            Panel(
                'predicted',
                '',
                torch.where(hidden, to_pixels(in_place(predicted)), pale),
            ),
            Panel(
                'shown + predicted',
                '',
                to_pixels(in_place(composed)),
                compare=True,
            ),
        ]

        def window(patches: torch.Tensor, number: int) -> torch.Tensor:
            return unpatchify(
                patches[:, number],
                model.backbone.patch_size,
                model.window_grid,
                channels_last=True,
            )

        rows = []
        for number in range(shape[1]):
            original, visible, painted, both = (
                to_pixels(window(part, number))
                for part in (truth, shown, predicted, composed)
            )
            where = window(masked, number).cpu()
            rows.append(
                (
                    f'window {number + 1}',
                    [
                        Panel('original', '', original),
                        Panel('as shown', '', visible),
                        Panel(
                            'predicted',
                            '',
                            torch.where(where, painted, fade(original)),
                        ),
                        Panel('shown + predicted', '', both, compare=True),
                    ],
                )
            )
        note = 'masked patches have the mean colour, the rest is faded'
        if model.head.norm_pix:
            note += f'; {NORMALIZED}'
        return Explanation(panels, [Details('windows', rows)], note)


def _paint(
    model: LoMaR,
    inputs: torch.Tensor,
    ids: torch.Tensor,
    patches: torch.Tensor,
) -> torch.Tensor:
    """Images with the windows' patches in their places.

    Args:
        model: The algorithm.
        inputs: (B, C, H, W).
        ids: int64 (B, M, P), patches of each window.
        patches: (B, M, P, d), values ordered (row, column, channel).

    Returns:
        (B, C, H, W) float32
    """
    size = model.backbone.patch_size
    canvas = patchify(inputs, size, channels_last=True).float()
    for window in range(ids.shape[1]):
        index = ids[:, window].unsqueeze(-1).expand_as(patches[:, window])
        canvas = canvas.scatter(1, index, patches[:, window])
    grid = grid_of(tuple(inputs.shape[-2:]), size)
    return unpatchify(canvas, size, grid, channels_last=True)
