"""Masks of patches, drawn beside the image.

``ConMIM`` draws masks of random cells itself, on its own device, and needs no
such step for them. Here they are for block-wise masks, for another ratio an
image, and for runs that must be compared number by number. ``PackInputs``
hands ``mask`` on to the model.
"""

from __future__ import annotations

import math
import random

import numpy as np
from mmcv.transforms import BaseTransform

from ropim_mm.errors import InputError
from ropim_mm.models.layers.patches import Size, to_pair
from ropim_mm.models.layers.token_masks import grid_of_cells, num_masked_cells
from ropim_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class RandomCellMask(BaseTransform):
    """Mask random cells of patches (SimMIM, Xie et al., CVPR 2022).

    ceil(mask_ratio * cells) cells are masked. On square grids that the cells
    divide, the masks and the random numbers are those of MMPretrain's
    ``SimMIMMaskGenerator``; elsewhere the cells at the lower and right border
    are cut off. Draws from NumPy's global generator.

    **Added keys:**

    - mask: bool (h, w), True for masked patches

    Args:
        grid: Rows and columns of patches, (h, w) or one number for both.
        mask_ratio: Share of masked cells, in (0, 1).
        cell_size: Patches that are masked together, a side or (rows,
            columns).

    Raises:
        InputError: ``mask_ratio`` is outside (0, 1), or masks everything.
    """

    def __init__(
        self, grid: Size, mask_ratio: float = 0.75, cell_size: Size = 2
    ) -> None:
        self.grid = to_pair(grid)
        self.mask_ratio = mask_ratio
        self.cell_size = to_pair(cell_size)
        self.cells = grid_of_cells(self.grid, self.cell_size)
        self.count = num_masked_cells(math.prod(self.cells), mask_ratio)

    def transform(self, results: dict) -> dict:
        """Add ``mask``."""
        order = np.random.permutation(math.prod(self.cells))
        results['mask'] = self.from_order(order)
        return results

    def from_order(self, order: np.ndarray) -> np.ndarray:
        """The mask of an order of the cells, of which the first are masked.

        Args:
            order: int (cells,), a permutation.

        Returns:
            bool (h, w)
        """
        cells = np.zeros(math.prod(self.cells), dtype=bool)
        cells[order[: self.count]] = True
        mask = cells.reshape(self.cells)
        for axis, size in enumerate(self.cell_size):
            mask = mask.repeat(size, axis=axis)
        return mask[: self.grid[0], : self.grid[1]]

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(grid={self.grid}, '
            f'mask_ratio={self.mask_ratio}, cell_size={self.cell_size})'
        )


@TRANSFORMS.register_module()
class BlockMask(BaseTransform):
    """Mask rectangles until enough patches are masked (BEiT, algorithm 1).

    As released, a mask may fall short of ``num_masked`` by some patches:
    where ten rectangles in a row do not fit into what is left to mask, the
    mask is done. MMPretrain's ``BEiTMaskGenerator`` goes on until the number
    is met, which it need not be. Draws from Python's ``random``, as the
    release does.

    **Added keys:**

    - mask: bool (h, w), True for masked patches

    Args:
        grid: Rows and columns of patches, (h, w) or one number for both.
        num_masked: Most patches to mask.
        min_block: Smallest area of a rectangle, in patches.
        max_block: Largest area; None for ``num_masked``.
        min_aspect: Smallest height over width; the largest is its inverse.

    Raises:
        InputError: The numbers do not fit each other or the grid.
    """

    attempts = 10

    def __init__(
        self,
        grid: Size = 14,
        num_masked: int = 75,
        min_block: int = 16,
        max_block: int | None = None,
        min_aspect: float = 0.3,
    ) -> None:
        self.grid = to_pair(grid)
        self.num_masked = num_masked
        self.min_block = min_block
        self.max_block = num_masked if max_block is None else max_block
        self.min_aspect = min_aspect
        tokens = math.prod(self.grid)
        if not 0 < num_masked < tokens:
            raise InputError(
                f'BlockMask: num_masked is {num_masked} on a grid of '
                f'{self.grid[0]}x{self.grid[1]}; expected 1 to {tokens - 1}'
            )
        if not 0 < min_block <= self.max_block:
            raise InputError(
                f'BlockMask: min_block is {min_block} and max_block '
                f'{self.max_block}; expected 0 < min_block <= max_block'
            )
        if not 0 < min_aspect <= 1:
            raise InputError(
                f'BlockMask: min_aspect is {min_aspect}; expected a number '
                'in (0, 1]'
            )

    def transform(self, results: dict) -> dict:
        """Add ``mask``."""
        mask = np.zeros(self.grid, dtype=bool)
        left = self.num_masked
        while left:
            added = self._add_block(mask, min(left, self.max_block))
            if not added:
                break
            left -= added
        results['mask'] = mask
        return results

    def _add_block(self, mask: np.ndarray, most: int) -> int:
        """Mask one rectangle with at most ``most`` new patches."""
        height, width = self.grid
        log_aspect = math.log(self.min_aspect)
        for _ in range(self.attempts):
            area = random.uniform(self.min_block, most)
            aspect = math.exp(random.uniform(log_aspect, -log_aspect))
            h = round(math.sqrt(area * aspect))
            w = round(math.sqrt(area / aspect))
            if h >= height or w >= width:
                continue
            top = random.randint(0, height - h)
            left = random.randint(0, width - w)
            block = mask[top : top + h, left : left + w]
            added = h * w - int(block.sum())
            if 0 < added <= most:
                block[:] = True
                return added
        return 0

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(grid={self.grid}, '
            f'num_masked={self.num_masked}, min_block={self.min_block}, '
            f'max_block={self.max_block}, min_aspect={self.min_aspect})'
        )
