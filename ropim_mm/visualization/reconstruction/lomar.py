"""Pictures of LoMaR: windows, and what is painted into them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from mmpretrain.structures import DataSample

from ...models.layers.patches import grid_of, patchify, unpatchify
from ...models.layers.windows import sample_windows
from ...models.methods.lomar import LoMaR
from .base import EXPLAINERS, Details, Explainer, Explanation, Panel, ToPixels
from .marking import fade, over_pixels


@dataclass(frozen=True)
class _Windows:
    """Patches of the windows, (B, M, P, d), in the model's numbers."""

    truth: torch.Tensor
    shown: torch.Tensor
    predicted: torch.Tensor
    composed: torch.Tensor


@EXPLAINERS.register(LoMaR)
class LoMaRExplainer(Explainer):
    """Windows as shown, predictions in their places, both composed.

    Masked patches have the mean colour of the data; what lies in no window is
    faded. Where windows overlap, a later one lies on top. Of models that
    predict normalised patches, predictions get mean and variance of the true
    patches back.
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
        windows = self._windows(model, seen)
        grid = grid_of(tuple(inputs.shape[-2:]), model.backbone.patch_size)
        pixels = to_pixels(inputs)
        inside = torch.zeros(len(inputs), grid[0] * grid[1], dtype=torch.bool)
        inside.scatter_(1, seen.ids.flatten(1).cpu(), True)
        inside = over_pixels(inside, grid, model.backbone.patch_size)

        def in_place(patches: torch.Tensor) -> torch.Tensor:
            picture = self._paint(model, inputs, seen.ids, patches, grid)
            return torch.where(inside, to_pixels(picture), fade(pixels))

        composed = to_pixels(
            self._paint(model, inputs, seen.ids, windows.composed, grid)
        )
        panels = [
            Panel('input', '', pixels),
            Panel('windows as shown', '', in_place(windows.shown)),
            Panel('predicted', '', in_place(windows.predicted)),
            Panel('shown + predicted', '', composed, compare=True),
        ]
        return Explanation(
            panels,
            [self._details(model, windows, to_pixels)],
            'masked patches have the mean colour; what lies in no window is '
            'faded',
        )

    @staticmethod
    def _windows(model: LoMaR, seen) -> _Windows:
        predicted = model.head.to_pixels(seen.pred, seen.patches)
        truth = seen.patches.float()
        masked = seen.mask.unsqueeze(-1)
        blank = torch.zeros_like(truth)
        parts = (
            truth,
            torch.where(masked, blank, truth),
            torch.where(masked, predicted, blank),
            torch.where(masked, predicted, truth),
        )
        shape = seen.ids.shape
        return _Windows(*(part.unflatten(0, shape[:2]) for part in parts))

    @staticmethod
    def _paint(
        model: LoMaR,
        inputs: torch.Tensor,
        ids: torch.Tensor,
        patches: torch.Tensor,
        grid: tuple[int, int],
    ) -> torch.Tensor:
        """Images with the windows' patches (B, M, P, d) in their places."""
        size = model.backbone.patch_size
        canvas = patchify(inputs, size, channels_last=True).float()
        for window in range(ids.shape[1]):
            index = ids[:, window].unsqueeze(-1).expand_as(patches[:, window])
            canvas = canvas.scatter(1, index, patches[:, window])
        return unpatchify(canvas, size, grid, channels_last=True)

    @staticmethod
    def _details(
        model: LoMaR, windows: _Windows, to_pixels: ToPixels
    ) -> Details:
        def panel(
            title: str, patches: torch.Tensor, window: int, compare: bool
        ) -> Panel:
            picture = unpatchify(
                patches[:, window],
                model.backbone.patch_size,
                model.window_grid,
                channels_last=True,
            )
            return Panel(title, '', to_pixels(picture), compare)

        return Details(
            'windows',
            [
                (
                    f'window {window + 1}',
                    [
                        panel('original', windows.truth, window, False),
                        panel('as shown', windows.shown, window, False),
                        panel('predicted', windows.predicted, window, False),
                        panel('composed', windows.composed, window, True),
                    ],
                )
                for window in range(windows.truth.shape[1])
            ],
        )
