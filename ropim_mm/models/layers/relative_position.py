"""Relative position bias tables of BEiT-style encoders.

A table has (2h-1)(2w-1) + 3 rows for a grid of h x w tokens and one column a
head. The first rows hold the bias of every offset (query minus key), row-major
over (dy, dx); the last three the pairs (class query, any key), (any query,
class key) and (class, class). Layout and resizing are those of BEiT (Bao et
al., ICLR 2022), which ROPIM and ConMIM use unchanged, for any h x w.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from torch import nn
from torch.nn import functional as F

from ...checkpoints.beit_names import NUM_CLASS_ROWS
from ...errors import InputError
from .positions import kept_for_grids


def table_rows(grid: tuple[int, int]) -> int:
    """Number of rows of the table of a grid (h, w), class rows included."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + NUM_CLASS_ROWS


def relative_position_index(grid: tuple[int, int]) -> torch.Tensor:
    """Table row of every (query, key) pair.

    Args:
        grid: (h, w).

    Returns:
        (1 + h*w, 1 + h*w) int64; token 0 is the class token.
    """
    h, w = grid
    rows = table_rows(grid)
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing='ij')
    y, x = y.flatten(), x.flatten()
    dy = y[:, None] - y[None, :] + h - 1
    dx = x[:, None] - x[None, :] + w - 1
    index = torch.empty(1 + h * w, 1 + h * w, dtype=torch.int64)
    index[1:, 1:] = dy * (2 * w - 1) + dx
    index[0, :] = rows - 3
    index[:, 0] = rows - 2
    index[0, 0] = rows - 1
    return index


def _source_coordinates(old: int, new: int) -> np.ndarray:
    """Where the 2*old-1 offsets lie on the axis of 2*new-1 offsets.

    The offsets 0, 1, 2, ... are placed at partial sums of a geometric series
    1 + q + q^2 + ..., with q found by bisection so that the last of them
    meets the largest new offset: near offsets keep their place, far ones are
    stretched.
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        reach = (1.0 - ratio ** (old - 1)) / (1.0 - ratio)
        low, high = (low, ratio) if reach > new - 1 else (ratio, high)
    steps = np.cumsum([ratio**i for i in range(old - 1)])
    return np.concatenate([-steps[::-1], [0.0], steps])


def _resize_axis(old: int, new: int) -> np.ndarray:
    """Linear map (2*new-1, 2*old-1) that resizes one axis of a table.

    Interpolation by a cubic spline through fixed points is linear in the
    values, so it is a matrix, found by interpolating unit vectors. Targets
    outside the source are clamped to its ends.
    """
    if old == new:
        return np.eye(2 * old - 1)
    if old == 1:
        return np.ones((2 * new - 1, 1))
    source = _source_coordinates(old, new)
    target = np.arange(-(new - 1), new, dtype=np.float64)
    spline = make_interp_spline(
        source, np.eye(len(source)), k=min(3, len(source) - 1)
    )
    return spline(np.clip(target, source[0], source[-1]))


# Made once a size and device: all blocks of all forward passes share them. Not
# inference tensors, even if evaluation comes first: training could not save
# them for its backward pass.


@lru_cache(maxsize=256)
def _resize_matrix(old: int, new: int, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(_resize_axis(old, new)).to(device)


@kept_for_grids
def _index_on(grid: tuple[int, int], device: torch.device) -> torch.Tensor:
    return relative_position_index(grid).to(device)


def resize_table(
    table: torch.Tensor, old: tuple[int, int], new: tuple[int, int]
) -> torch.Tensor:
    """Resize a table to another grid, at load time or in the middle of a run.

    Differentiable in the table. In float64 inside, since two products of
    float32 would cost more than they save on a table this small.

    Args:
        table: (rows of ``old``, heads).
        old: Grid (h, w) of the table.
        new: Grid (h, w) wanted.

    Returns:
        (rows of ``new``, heads), same type and device.
    """
    if old == new:
        return table
    if table.shape[0] != table_rows(old):
        raise InputError(
            f'a table for a grid of {old[0]}x{old[1]} has '
            f'{table_rows(old)} rows, this one has {table.shape[0]}'
        )
    with torch.autocast(table.device.type, enabled=False):
        spatial = table[:-NUM_CLASS_ROWS].double()
        spatial = spatial.view(2 * old[0] - 1, 2 * old[1] - 1, -1)
        by_row = _resize_matrix(old[0], new[0], table.device)
        by_column = _resize_matrix(old[1], new[1], table.device)
        resized = torch.einsum('yi,ijh->yjh', by_row, spatial)
        resized = torch.einsum('xj,yjh->yxh', by_column, resized)
        resized = resized.flatten(0, 1).to(table.dtype)
    return torch.cat((resized, table[-NUM_CLASS_ROWS:]))


def spatial_bias(
    table: torch.Tensor,
    grid: tuple[int, int],
    frame: tuple[int, int],
    top: int = 0,
    bottom: int | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Bias of the logits between patches, without a class token.

    Keys come in reversed order, the last one first: then the bias of a query
    is a rectangle of the table as it stands, and nothing has to be looked up.

    Args:
        table: (rows of ``frame``, heads).
        grid: (h, w) of the patches, no larger than ``frame``.
        frame: Grid (h, w) of the table.
        top, bottom: Only queries from row ``top`` of the grid to before row
            ``bottom``; None for the last.
        dtype: Of the result; None for that of the table. Gradients of the
            rectangles are summed in the table's.

    Returns:
        (1, heads, (bottom - top) * w, h * w)
    """
    (h, w), (high, wide) = grid, frame
    bottom = h if bottom is None else bottom
    heads = table.shape[1]
    spatial = table[:-NUM_CLASS_ROWS].t()
    spatial = spatial.reshape(heads, 2 * high - 1, 2 * wide - 1)
    # Row yq + high - 1 is for the key yk = 0, the one above it for yk = 1.
    used = spatial[:, high - h + top : high - 1 + bottom]
    used = used[..., wide - w : wide - 1 + w]
    rectangles = used.unfold(1, h, 1).unfold(2, w, 1).to(dtype or table.dtype)
    return rectangles.reshape(1, heads, (bottom - top) * w, h * w)


class RelativePositionTable(nn.Module):
    """The parameters of a relative position bias, names as in MMPretrain.

    Mixed into a module of its own (shared by all blocks) or into an
    attention (one table a block).
    """

    relative_position_bias_table: nn.Parameter
    relative_position_index: torch.Tensor

    def init_table(
        self, grid: tuple[int, int], num_heads: int, with_index: bool = True
    ) -> None:
        """Make the table (zeros) and its index for a grid (h, w).

        Without the index, which grows with the square of the number of
        tokens, there is :func:`spatial_bias`, but not :meth:`bias`.
        """
        self.grid = grid
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros(table_rows(grid), num_heads)
        )
        if with_index:
            # Saved, since MMPretrain's BEiTViT expects it in a checkpoint.
            self.register_buffer(
                'relative_position_index', relative_position_index(grid)
            )
        else:
            # Saved, since the number of rows does not tell 2x14 from 5x5.
            self.register_buffer('relative_position_grid', torch.tensor(grid))

    def table_for(self, grid: tuple[int, int]) -> torch.Tensor:
        """The table, resized where the grid (h, w) is another one."""
        return resize_table(self.relative_position_bias_table, self.grid, grid)

    def bias(self, grid: tuple[int, int]) -> torch.Tensor:
        """Bias of the logits for a grid, (1, heads, 1 + L, 1 + L).

        For a grid other than the one it was made for, the table is resized.
        """
        table, index = self.table_for(grid), self.relative_position_index
        if grid != self.grid:
            index = _index_on(grid, table.device)
        # Laid out as the logits it is added to.
        bias = F.embedding(index, table).permute(2, 0, 1).contiguous()
        return bias.unsqueeze(0)


class SharedRelativePositionBias(RelativePositionTable):
    """One table for all blocks (pretraining)."""

    def __init__(self, grid: tuple[int, int], num_heads: int) -> None:
        super().__init__()
        self.init_table(grid, num_heads)

    def forward(self, grid: tuple[int, int]) -> torch.Tensor:
        return self.bias(grid)
