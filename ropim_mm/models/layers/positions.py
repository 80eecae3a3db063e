"""Positions of a grid of tokens, for any h x w: what methods share."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, wraps

import torch
from torch import nn

from ...errors import InputError

# Tokens of a grid of which many tables are kept: 5 MB each, if int64.
SMALL_GRID = 784


def kept_for_grids(
    make: Callable[..., torch.Tensor],
) -> Callable[..., torch.Tensor]:
    """Keeps what a function makes for a grid and every pair of its tokens.

    Blocks and steps share it. For small grids the last 64 are kept. For large
    ones, which take hundreds of megabytes and change from image to image in
    tests, the last two.

    Args:
        make: A function of a grid (h, w) and of anything else that is
            hashable. What it makes is no inference tensor, even if evaluation
            comes first: training could not save it for its backward pass.
    """

    def outside_inference(*args) -> torch.Tensor:
        with torch.inference_mode(False):
            return make(*args)

    small = lru_cache(maxsize=64)(outside_inference)
    large = lru_cache(maxsize=2)(outside_inference)

    @wraps(make)
    def kept(grid: tuple[int, int], *args) -> torch.Tensor:
        cache = small if math.prod(grid) <= SMALL_GRID else large
        return cache(grid, *args)

    kept.large = large
    return kept


def sincos_positions(grid: tuple[int, int], dims: int) -> torch.Tensor:
    r"""The table that MAE and R-MAE freeze (He et al., CVPR 2022).

    The first half of a position's values says its column, the second its
    row. Each half of a coordinate x holds :math:`\sin(x \omega_k)` for all k,
    then :math:`\cos(x \omega_k)`, with
    :math:`\omega_k = 10000^{-4k / \mathrm{dims}}`.

    Args:
        grid: (h, w).
        dims: D, width of a token, a multiple of 4.

    Returns:
        (1, 1 + h*w, D) float32, row-major; zeros for the class token.

    Raises:
        InputError: ``dims`` is not a multiple of 4.
    """
    if dims % 4:
        raise InputError(
            f'sine-cosine positions of width {dims}: expected a multiple of '
            '4 (sine and cosine of each of two coordinates)'
        )
    quarter = dims // 4
    omega = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = (
        torch.arange(side, dtype=torch.float64)[:, None] * omega
        for side in grid
    )
    by_row = torch.cat((rows.sin(), rows.cos()), dim=1)
    by_column = torch.cat((columns.sin(), columns.cos()), dim=1)
    table = torch.cat(
        (
            by_column.expand(grid[0], -1, -1),
            by_row[:, None].expand(-1, grid[1], -1),
        ),
        dim=2,
    )
    table = table.reshape(1, grid[0] * grid[1], dims).float()
    return torch.cat((table.new_zeros(1, 1, dims), table), dim=1)


def grid_of_sincos(table: torch.Tensor) -> tuple[int, int] | None:
    """The grid whose :func:`sincos_positions` a table is; None if it is none.

    Args:
        table: (1, 1 + L, D), also one that was rounded to 16 bits.
    """
    length, dims = table.shape[1] - 1, table.shape[2]
    if dims % 4:
        return None
    for rows in range(1, length + 1):
        if length % rows:
            continue
        grid = (rows, length // rows)
        expected = sincos_positions(grid, dims).to(table.device)
        if torch.allclose(table.float(), expected, atol=1e-2):
            return grid
    return None


def keep_fixed_tables(module: nn.Module, *names: str) -> None:
    """Let a module load weights of another image size.

    Its frozen tables are a formula of its grid: where those of a file have
    another shape, it keeps its own.

    Args:
        module: Has tables as direct parameters.
        names: Of these.
    """

    def hook(state_dict: dict, prefix: str, *_) -> None:
        for name in names:
            own = getattr(module, name)
            given = state_dict.get(prefix + name)
            if given is not None and given.shape != own.shape:
                state_dict[prefix + name] = own.detach().clone()

    module._register_load_state_dict_pre_hook(hook)
