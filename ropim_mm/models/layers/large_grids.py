"""Self-attention on the large grids of detection, without a class token.

Two ways to keep memory linear in the number of tokens: inside windows, as
most blocks of ViTDet (Li et al., ECCV 2022) look; and, where all tokens meet
all others and positions enter the logits, a few rows of the logits at a time,
made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Grid = tuple[int, int]

# Up to this many tokens, the logits of a head are made in one piece.
WHOLE = 1024
# Rows of logits that are made at a time beyond it.
ROWS = 512


def _spans(length: int, window: int) -> Iterator[tuple[int, int, int]]:
    """(start, how many windows, their side): whole ones, then the rest."""
    count, rest = divmod(length, window)
    if count:
        yield 0, count, window
    if rest:
        yield count * window, 1, rest


def in_windows(
    qkv: torch.Tensor,
    grid: Grid,
    window: Grid,
    weigh: Callable[[torch.Tensor, Grid], torch.Tensor],
) -> torch.Tensor:
    """Attention inside windows that do not overlap.

    Where the window does not divide the grid, the windows of the last row and
    column are smaller. ViTDet pads them instead, with tokens that the others
    attend to and that cost a fifth more work at 1024 pixels.

    Args:
        qkv: (B, h * w, 3, heads, d): queries, keys, values, row-major.
        grid: (h, w).
        window: (height, width) in tokens.
        weigh: Attention of (B', n, 3, heads, d) on a grid of n tokens, to
            (B', n, heads, d). Called once for each size of window: at most
            four times.

    Returns:
        (B, h * w, heads, d)
    """
    heads, dims = qkv.shape[-2:]
    cells = qkv.unflatten(1, grid)
    bands = []
    for top, rows, height in _spans(grid[0], window[0]):
        parts = []
        for left, columns, width in _spans(grid[1], window[1]):
            part = cells[
                :, top : top + rows * height, left : left + columns * width
            ]
            part = part.unflatten(2, (columns, width))
            part = part.unflatten(1, (rows, height)).transpose(2, 3)
            tokens = part.reshape(-1, height * width, 3, heads, dims)
            x = weigh(tokens, (height, width))
            x = x.reshape(-1, rows, columns, height, width, heads, dims)
            x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
            parts.append(x)
        bands.append(torch.cat(parts, dim=2))
    return torch.cat(bands, dim=1).flatten(1, 2)


def _written_out(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    dropout: float,
) -> torch.Tensor:
    # PyTorch has no fused CPU kernel with a gradient of the mask. What it
    # falls back to goes on in float32 where the inputs are narrower.
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    probs = logits.add_(mask).softmax(-1)
    return F.dropout(probs, dropout) @ v


def attend_by_rows(
    qkv: torch.Tensor,
    bias: Callable[[torch.Tensor, int, int], torch.Tensor],
    dropout: float = 0.0,
    unit: int = 1,
    reverse_keys: bool = False,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(d) + bias) v with little memory.

    Args:
        qkv: (B, N, 3, heads, d): queries, keys, values.
        bias: Of queries (B, heads, n, d), which are those from a first to
            before a last one: (1 or B, heads, n, N).
        dropout: Probability of dropping an attention weight.
        unit: ``bias`` is asked for multiples of so many queries, which
            divides N.
        reverse_keys: Whether the bias is for the last key first.

    Returns:
        (B, N, heads, d), type of ``qkv``.
    """
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    if reverse_keys:
        k, v = k.flip(2), v.flip(2)
    step = max(1, ROWS // unit) * unit

    def rows(q: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        mask = bias(q, start, stop).to(q.dtype)
        if q.device.type == 'cpu' and torch.is_grad_enabled():
            return _written_out(q, k, v, mask, dropout)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout
        )

    outs = []
    for start in range(0, qkv.shape[1], step):
        some = q[:, :, start : start + step]
        span = some, start, start + some.shape[2]
        if torch.is_grad_enabled():
            outs.append(checkpoint(rows, *span, use_reentrant=False))
        else:
            outs.append(rows(*span))
    return torch.cat(outs, dim=2).transpose(1, 2)


def offsets(
    grid: Grid, start: int, stop: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far queries lie below and to the right of each key.

    Args:
        grid: (h, w).
        start, stop: The queries from token ``start`` to before ``stop``,
            row-major.
        device: Where to compute it.

    Returns:
        dy and dx, int64 (stop - start, h * w).
    """
    queries = torch.arange(start, stop, device=device).unsqueeze(1)
    keys = torch.arange(grid[0] * grid[1], device=device)

    def row(ids: torch.Tensor) -> torch.Tensor:
        return torch.div(ids, grid[1], rounding_mode='floor')

    dy = row(queries) - row(keys)
    return dy, queries - keys - dy * grid[1]
