"""Pictures of ROPIM: subspaces of an image."""

from __future__ import annotations

import numpy as np
import torch
from mmpretrain.structures import DataSample

from ...models.layers.patches import grid_of, patchify
from ...models.layers.sketch import num_buckets, sample_sketch
from ...models.methods.ropim import ROPIM
from .base import EXPLAINERS, Explainer, Explanation, Panel, ToPixels


@EXPLAINERS.register(ROPIM)
class ROPIMExplainer(Explainer):
    """Input, kept and removed subspace, prediction, kept + predicted.

    The encoder projects embedded patches. Embedding is linear, so but for
    its bias it is shown the embedding of the projected image P x, which is
    what the picture shows. In a picture of a subspace the mean colour of the
    data stands for zero.
    """

    def draw(
        self, model: ROPIM, pixels: np.ndarray, generator: torch.Generator
    ) -> DataSample:
        """A sketch: ``sketch_hash`` (L,) and ``sketch_sign`` (L,)."""
        rows, columns = grid_of(pixels.shape[1:], model.head.patch_size)
        length = rows * columns
        size = num_buckets(length, model.sketch_ratio)
        buckets, signs = sample_sketch(1, length, size, generator=generator)
        sample = DataSample()
        sample.set_field(buckets[0], 'sketch_hash')
        sample.set_field(signs[0], 'sketch_sign')
        return sample

    def explain(
        self,
        model: ROPIM,
        inputs: torch.Tensor,
        samples: list[DataSample],
        to_pixels: ToPixels,
    ) -> Explanation:
        """Five pictures; with ``complement_input`` the subspaces swap."""
        kept, removed = model.projections(inputs, samples)
        target = patchify(inputs, model.head.patch_size)
        predicted = model.reconstruct(inputs, kept).to(target.dtype)
        lost = removed(target)
        shown = target if kept is None else kept(target)
        composed = target - lost + removed(predicted)

        names = ('P', '(I - P)')
        if model.complement_input:
            names = names[::-1]
        rest, gone = names
        pictures = (
            ('input', 'x', inputs, False),
            (
                'shown to the model',
                'x' if kept is None else f'{rest} x',
                shown,
                True,
            ),
            ('removed', f'{gone} x', lost, False),
            ('predicted', 'y', predicted, True),
            ('shown + predicted', f'{rest} x + {gone} y', composed, True),
        )
        size = tuple(inputs.shape[-2:])
        return Explanation(
            [
                Panel(
                    title,
                    formula,
                    to_pixels(
                        picture
                        if picture.ndim == 4
                        else model.to_image(picture, size)
                    ),
                    compare,
                )
                for title, formula, picture, compare in pictures
            ]
        )
