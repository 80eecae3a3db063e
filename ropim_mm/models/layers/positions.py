"""Fixed sine-cosine positions of a grid of tokens, for any h x w."""

from __future__ import annotations

import torch

from ...errors import InputError


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
