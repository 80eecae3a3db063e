"""Which patches are masked: random cells of patches, on any device and grid.

A cell is a rectangle of patches that are masked together (Xie et al., SimMIM,
CVPR 2022), such as 2 x 2 patches of 16 pixels.
"""

from __future__ import annotations

import math

import torch

from ...errors import InputError
from .patches import Size, to_pair


def grid_of_cells(grid: tuple[int, int], cell_size: Size) -> tuple[int, int]:
    """Rows and columns of cells that cover a grid.

    Where a side of the grid is not a multiple of the cell's, the last cells
    are cut off by the border and hold fewer patches.

    Args:
        grid: Patches (h, w).
        cell_size: Patches of a cell, a side or (rows, columns).
    """
    rows, columns = to_pair(cell_size)
    if rows < 1 or columns < 1:
        raise InputError(
            f'cells of {rows}x{columns} patches; expected at least 1x1'
        )
    return -(-grid[0] // rows), -(-grid[1] // columns)


def check_mask_ratio(mask_ratio: float) -> None:
    """Refuse a share of masked cells that none could have.

    Raises:
        InputError: ``mask_ratio`` is outside (0, 1).
    """
    if not 0 < mask_ratio < 1:
        raise InputError(
            f'mask_ratio is {mask_ratio}; expected a number between 0 and 1, '
            'such as 0.75'
        )


def num_masked_cells(cells: int, mask_ratio: float) -> int:
    """ceil(mask_ratio * cells) of the product in floating point.

    As released: 0.28 of 25 cells are 8, since the product is a little more
    than 7.

    Raises:
        InputError: ``mask_ratio`` is outside (0, 1), or nothing stays
            visible.
    """
    check_mask_ratio(mask_ratio)
    count = math.ceil(mask_ratio * cells)
    if count == cells:
        raise InputError(
            f'mask_ratio {mask_ratio} of {cells} cells masks all of them, and '
            'nothing is left to see. Use a smaller ratio, smaller cells '
            '(mask_cell_size) or larger images.'
        )
    return count


def cells_to_patches(
    cells: torch.Tensor, cell_size: Size, grid: tuple[int, int]
) -> torch.Tensor:
    """Give every patch the value of its cell.

    Args:
        cells: (B, cell rows, cell columns).
        cell_size: Patches of a cell.
        grid: Patches (h, w), covered by the cells.

    Returns:
        (B, h, w)
    """
    rows, columns = to_pair(cell_size)
    batch, down, across = cells.shape
    patches = cells[:, :, None, :, None].expand(-1, -1, rows, -1, columns)
    patches = patches.reshape(batch, down * rows, across * columns)
    return patches[:, : grid[0], : grid[1]]


def sample_cell_masks(
    batch: int,
    grid: tuple[int, int],
    mask_ratio: float,
    cell_size: Size = 2,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Mask ceil(mask_ratio * cells) random cells of each image.

    All images get equally many cells, and equally many patches where the
    cells divide the grid.

    Args:
        batch: B, number of masks.
        grid: Patches (h, w).
        mask_ratio: Share of masked cells, in (0, 1).
        cell_size: Patches of a cell.
        device: Where the masks are drawn.

    Returns:
        bool (B, h, w), True for masked patches.

    Raises:
        InputError: See :func:`num_masked_cells`.
    """
    down, across = grid_of_cells(grid, cell_size)
    count = num_masked_cells(down * across, mask_ratio)
    order = torch.rand(batch, down * across, device=device).argsort(dim=1)
    cells = torch.zeros(
        batch, down * across, dtype=torch.bool, device=device
    ).scatter_(1, order[:, :count], True)
    return cells_to_patches(cells.view(batch, down, across), cell_size, grid)
