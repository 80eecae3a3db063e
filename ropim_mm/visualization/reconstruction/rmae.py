"""Pictures of R-MAE: hidden pixels and hidden parts of regions."""

from __future__ import annotations

import numpy as np
import torch
from mmpretrain.structures import DataSample

from ...datasets.label_maps import LabelMaps
from ...datasets.regions import felzenszwalb_maps
from ...models.layers.patches import grid_of, unpatchify
from ...models.methods.rmae import RMAE
from .base import EXPLAINERS, Details, Explainer, Explanation, Panel, ToPixels
from .marking import NORMALIZED, fade, over_pixels

# Scale and smallest size of segments, at this many pixels, as of the label
# maps for ImageNet.
_SCALE, _PIXELS = 1000, 224 * 224
_SMALLEST = 20


@EXPLAINERS.register(RMAE)
class RMAEExplainer(Explainer):
    """Pixels and regions: what was visible, and what was predicted.

    Regions are segments of the picture itself, found as for training, the
    scale in proportion to the size. Hidden patches of the image have the mean
    colour of the data, of a region grey; beside predictions, what was visible
    is faded. Of models that predict normalised patches, predictions get mean
    and variance of the true patches back.
    """

    def draw(
        self, model: RMAE, pixels: np.ndarray, generator: torch.Generator
    ) -> DataSample:
        """``shuffle_ids`` (L,), and with regions ``regions`` (R, H, W)."""

        def randperm(count: int) -> torch.Tensor:
            return torch.randperm(count, generator=generator)

        patch = model.backbone.patch_size
        rows, columns = grid_of(pixels.shape[1:], patch)
        sample = DataSample()
        sample.set_field(randperm(rows * columns), 'shuffle_ids')
        if model.num_regions:
            image = np.broadcast_to(pixels, (3, *pixels.shape[1:]))
            image = np.ascontiguousarray(image.transpose(1, 2, 0))
            share = image.shape[0] * image.shape[1] / _PIXELS
            scale = max(_SMALLEST, round(_SCALE * share))
            maps = LabelMaps.stacked(
                felzenszwalb_maps(image, [scale], [scale])
            )
            regions, _ = maps.select(
                model.num_regions, patch, randperm=randperm
            )
            sample.set_field(regions, 'regions')
        return sample

    def explain(
        self,
        model: RMAE,
        inputs: torch.Tensor,
        samples: list[DataSample],
        to_pixels: ToPixels,
    ) -> Explanation:
        """Four pictures of the image, and five of each region."""
        found = model.predict(inputs, samples)
        patch = model.backbone.patch_size
        grid = grid_of(tuple(inputs.shape[-2:]), patch)
        hidden = over_pixels(found['mask'], grid, patch)
        pixels = to_pixels(inputs)
        blank = torch.zeros_like(inputs)
        panels = [
            Panel('input', '', pixels),
            Panel('shown', '', to_pixels(torch.where(hidden, blank, inputs))),
        ]
        if model.with_neck:
            painted = model.head.to_pixels(found['pixels'], inputs)
            where = hidden.cpu()
            panels += [
                Panel(
                    'predicted',
                    '',
                    torch.where(where, to_pixels(painted), fade(pixels)),
                ),
                Panel(
                    'shown + predicted',
                    '',
                    to_pixels(torch.where(hidden, painted, inputs)),
                    compare=True,
                ),
            ]
        details = []
        if model.num_regions:
            regions = model.regions(inputs, samples).float().cpu()
            logits = found['regions'].float().cpu()
            where = over_pixels(found['region_mask'].cpu(), grid, patch)
            details.append(
                self._details(model, pixels, regions, logits, where, grid)
            )
        note = (
            'hidden patches have the mean colour, those of regions are grey; '
            'beside predictions, what was visible is faded'
        )
        if model.with_neck and model.head.norm_pix:
            note += f'; {NORMALIZED}'
        return Explanation(panels, details, note)

    @staticmethod
    def _details(
        model: RMAE,
        pixels: torch.Tensor,
        regions: torch.Tensor,
        logits: torch.Tensor,
        hidden: torch.Tensor,
        grid: tuple[int, int],
    ) -> Details:
        """Of each region the map, its visible part and the prediction.

        Args:
            model: The algorithm.
            pixels: (B, C, H, W), the input's.
            regions: (B, R, H, W), 0 to 1.
            logits: (B, R, L, ph * pw).
            hidden: bool (B, 1, H, W), hidden from the region encoder.
            grid: (h, w).
        """
        rows = []
        for number in range(model.num_regions):
            region = regions[:, number : number + 1]
            predicted = unpatchify(
                logits[:, number], model.backbone.patch_size, grid
            ).sigmoid()
            shown = torch.where(hidden, 0.5, region)
            composed = torch.where(hidden, predicted, region)
            rows.append(
                (
                    f'region {number + 1}',
                    [
                        Panel(
                            'region in the input',
                            '',
                            torch.where(region > 0.5, pixels, fade(pixels)),
                        ),
                        Panel('region', '', region * 255),
                        Panel('shown', '', shown * 255),
                        Panel(
                            'predicted',
                            '',
                            torch.where(
                                hidden, predicted * 255, fade(region * 255)
                            ),
                            captions=_overlaps(region, predicted, hidden),
                        ),
                        Panel('shown + predicted', '', composed * 255),
                    ],
                )
            )
        return Details('regions', rows)


def _overlaps(
    region: torch.Tensor, predicted: torch.Tensor, hidden: torch.Tensor
) -> list[str]:
    """Intersection over union of the hidden parts, in words."""
    true, guess = (region > 0.5) & hidden, (predicted > 0.5) & hidden
    common = (true & guess).flatten(1).sum(1)
    union = (true | guess).flatten(1).sum(1)
    return [
        f'IoU where hidden {c / u:.2f}' if u else 'nothing there, none found'
        for c, u in zip(common.tolist(), union.tolist(), strict=True)
    ]
