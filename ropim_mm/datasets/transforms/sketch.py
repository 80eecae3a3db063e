"""ROPIM's random projection, drawn beside the image."""

from __future__ import annotations

import numpy as np
import torch
from mmcv.transforms import BaseTransform

from ropim_mm.errors import InputError
from ropim_mm.models.layers.sketch import num_buckets, sample_sketch
from ropim_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class SampleSketch(BaseTransform):
    """Draw a count sketch for one image in the data loader.

    ``ROPIM`` draws its sketches itself, on its own device, and needs no such
    step. Here they are for runs that must be compared number by number: give
    a ``seed``, and an image has the same sketch in every epoch, whatever the
    number of workers, processes or the batch size. The fields reach the model
    by ``PackInputs(algorithm_keys=('sketch_hash', 'sketch_sign'))``.

    L, the number of patches, is rows * columns of the grid.

    **Required keys:**

    - sample_idx (int): index in the dataset, only with ``seed``

    **Added keys:**

    - sketch_hash: (L,) int64, bucket of each token
    - sketch_sign: (L,) float32 of -1 and +1

    Args:
        grid: Rows and columns of patches, ``(h, w)`` or one number for both.
        sketch_ratio: Number of buckets over number of tokens, in (0, 1); the
            same as the model's.
        seed: Makes the sketch a function of this and the image's index. None
            draws from the worker's random stream.

    Raises:
        InputError: ``sketch_ratio`` is outside (0, 1); by
            :meth:`transform`, ``sample_idx`` is absent under a ``seed``.
    """

    def __init__(
        self,
        grid: int | tuple[int, int],
        sketch_ratio: float = 0.14,
        seed: int | None = None,
    ) -> None:
        self.grid = (grid, grid) if isinstance(grid, int) else tuple(grid)
        self.sketch_ratio = sketch_ratio
        self.seed = seed
        self.num_tokens = self.grid[0] * self.grid[1]
        self.size = num_buckets(self.num_tokens, sketch_ratio)

    def transform(self, results: dict) -> dict:
        """Add ``sketch_hash`` and ``sketch_sign``."""
        generator = None
        if self.seed is not None:
            if 'sample_idx' not in results:
                raise InputError(
                    'SampleSketch with a seed needs the field sample_idx, '
                    "which MMEngine's datasets give; found "
                    f'{sorted(results)}'
                )
            mixed = np.random.SeedSequence([self.seed, results['sample_idx']])
            # Generators take 64 signed bits.
            state = int(mixed.generate_state(1, np.uint64)[0] >> 1)
            generator = torch.Generator().manual_seed(state)
        buckets, signs = sample_sketch(
            1, self.num_tokens, self.size, generator=generator
        )
        results['sketch_hash'] = buckets[0]
        results['sketch_sign'] = signs[0]
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(grid={self.grid}, '
            f'sketch_ratio={self.sketch_ratio}, seed={self.seed})'
        )
