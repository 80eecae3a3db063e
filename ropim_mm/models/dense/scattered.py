"""Encoders on some tokens of each image, wherever on the grid they lie.

In masked pretraining an encoder sees a random part of an image; in detection
it may go on doing so (MIMDet). Where the tokens lie then differs from image
to image, and with it every relative position: the bias of each pair is looked
up an image at a time, a few rows of the logits at a time where they are many.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..layers.attention import RelPosAttention, SelfAttention, attend
from ..layers.irpe import (
    IRPEAttention,
    contextual_product,
    num_buckets,
    piecewise_index,
)
from ..layers.large_grids import WHOLE, attend_by_rows
from ..layers.relative_position import table_rows
from ..layers.tokens import take_tokens
from ..layers.vit import ViTBackbone

# Of queries (B, heads, n, d), those from a first to before a last one: what
# their logits get, (1 or B, heads, n, N).
Rows = Callable[[torch.Tensor, int, int], torch.Tensor]


@dataclass(frozen=True)
class Places:
    """Which tokens of each image there are.

    Attributes:
        grid: (h, w) of the whole map.
        ids: (B, K) int64, row-major over the grid, each at most once an
            image. None for all of the grid, in order.
        alive: bool (B, K), False for slots that hold no token: images with
            fewer tokens than others. None if all do.
    """

    grid: tuple[int, int]
    ids: torch.Tensor | None = None
    alive: torch.Tensor | None = None

    def take(self, tokens: torch.Tensor) -> torch.Tensor:
        """Those of (1 or B, h * w, D) that there are.

        Returns:
            (B, K, D)
        """
        return tokens if self.ids is None else take_tokens(tokens, self.ids)

    def offsets(
        self, start: int, stop: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """How far queries lie below and to the right of each key.

        Args:
            start, stop: Queries from ``start`` to before ``stop``. Token 0
                is the class token, for which the numbers mean nothing.
            device: That of the tokens.

        Returns:
            dy and dx, int64 (1 or B, stop - start, 1 + K).
        """
        ids = self.ids
        if ids is None:
            ids = torch.arange(math.prod(self.grid), device=device)[None]
        y = torch.div(ids, self.grid[1], rounding_mode='floor')
        x = ids - y * self.grid[1]
        dy, dx = (
            c[:, start:stop, None] - c[:, None]
            for c in (F.pad(y, (1, 0)), F.pad(x, (1, 0)))
        )
        return dy, dx

    def hiding(self, dtype: torch.dtype) -> torch.Tensor | None:
        """Added to logits, it keeps empty slots from being looked at.

        Returns:
            (B, 1, 1, 1 + K) of 0 and -inf; None if no slot is empty.
        """
        return None if self.alive is None else hiding(self.alive, dtype)


def hiding(alive: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 for a class token and the tokens there are, -inf for the others.

    Args:
        alive: bool (B, N), without the class token.
        dtype: Of the result.

    Returns:
        (B, 1, 1, 1 + N)
    """
    zeros = torch.zeros(alive.shape, dtype=dtype, device=alive.device)
    mask = zeros.masked_fill(~alive, float('-inf'))
    return F.pad(mask, (1, 0))[:, None, None]


def bias_index(
    places: Places, start: int, stop: int, device: torch.device
) -> torch.Tensor:
    """Row of a relative position bias table for every (query, key) pair.

    Args:
        places: Where the tokens lie.
        start, stop: Queries from ``start`` to before ``stop``; token 0 is
            the class token.
        device: That of the tokens.

    Returns:
        int64 (1 or B, stop - start, 1 + K), for the table of the whole grid.
    """
    h, w = places.grid
    rows = table_rows(places.grid)
    dy, dx = places.offsets(start, stop, device)
    index = (dy + h - 1) * (2 * w - 1) + dx + w - 1
    index[:, :, 0] = rows - 2
    if start == 0:
        index[:, 0] = rows - 3
        index[:, 0, 0] = rows - 1
    return index


def bucket_index(
    places: Places,
    pieces: tuple[float, float, float],
    start: int,
    stop: int,
    device: torch.device,
) -> torch.Tensor:
    """Column of an iRPE table for every (query, key) pair.

    Args:
        places: Where the tokens lie.
        pieces: alpha, beta and gamma of the pieces.
        start, stop: Queries from ``start`` to before ``stop``; token 0 is
            the class token, whose pairs all have the last column.
        device: That of the tokens.

    Returns:
        int64 (1 or B, stop - start, 1 + K)
    """
    reach, farthest = int(pieces[1]), max(places.grid) - 1
    line = torch.arange(-farthest, farthest + 1, device=device)
    piece = piecewise_index(line, *pieces) + reach
    dy, dx = places.offsets(start, stop, device)
    index = piece[dy + farthest] * (2 * reach + 1) + piece[dx + farthest]
    last = num_buckets(pieces[1]) - 1
    index[:, :, 0] = last
    if start == 0:
        index[:, 0] = last
    return index


@singledispatch
def position_rows(
    attn: SelfAttention, places: Places, shared: torch.Tensor | None
) -> Rows | None:
    """What positions add to the logits of an attention.

    Args:
        attn: Of a block of an encoder.
        places: Where the tokens lie.
        shared: The table of all blocks for this grid, if there is one.

    Returns:
        A function of some queries; None if positions add nothing.
    """
    return None


@position_rows.register
def _(
    attn: RelPosAttention, places: Places, shared: torch.Tensor | None
) -> Rows | None:
    table = attn.table_for(places.grid) if attn.has_table else shared
    if table is None:
        return None

    def rows(queries: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        index = bias_index(places, start, stop, queries.device)
        bias = F.embedding(index, table)
        return bias.permute(0, 3, 1, 2).contiguous()

    return rows


@position_rows.register
def _(
    attn: IRPEAttention, places: Places, shared: torch.Tensor | None
) -> Rows | None:
    keys = attn.rpe_k

    def rows(queries: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        span = start, stop, queries.device
        index = bucket_index(places, keys.pieces, *span)
        table = keys.lookup_table_weight[0].to(queries.dtype)
        return contextual_product(queries, table, index.unsqueeze(1))

    return rows


def mix_scattered(
    attn: SelfAttention,
    tokens: torch.Tensor,
    places: Places,
    shared: torch.Tensor | None = None,
) -> torch.Tensor:
    """Self-attention among the tokens that there are.

    Up to 1024 tokens the logits are made in one piece, beyond that a few
    rows at a time and again in the backward pass, where positions enter them.

    Args:
        attn: Of a block of an encoder.
        tokens: (B, 1 + K, D), class token first.
        places: Where the others lie.
        shared: The table of all blocks for this grid, if there is one.

    Returns:
        (B, 1 + K, D)
    """
    qkv = attn.project(tokens)
    dropout = attn.attn_drop if attn.training else 0.0
    rows = position_rows(attn, places, shared)
    hide = places.hiding(qkv.dtype)

    def bias(queries: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        found = rows(queries, start, stop)
        return found if hide is None else found + hide

    length = tokens.shape[1]
    if rows is None:
        x = attend(qkv, hide, dropout)
    elif length <= WHOLE:
        queries = qkv[:, :, 0].transpose(1, 2)
        x = attend(qkv, bias(queries, 0, length), dropout)
    else:
        x = attend_by_rows(qkv, bias, dropout)
    return attn.proj_drop(attn.proj(x.flatten(2)))


def encode_scattered(
    encoder: ViTBackbone, tokens: torch.Tensor, places: Places
) -> torch.Tensor:
    """What an encoder makes of some tokens that are embedded already.

    The same as of a whole image of which all else is hidden from attention,
    at the cost of these tokens. Position tables are resized to the whole
    grid, as they are for whole images.

    Args:
        encoder: Any of the four methods', without windows.
        tokens: (B, K, D), without positions.
        places: Where they lie.

    Returns:
        (B, 1 + K, D), class token first, normalised if the encoder does so.
        What empty slots hold means nothing.
    """
    first = encoder.cls_token
    positions = encoder.positions(places.grid)
    if positions is not None:
        first = first + positions[:, :1]
        tokens = tokens + places.take(positions[:, 1:])
    x = torch.cat((first.expand(len(tokens), -1, -1), tokens), dim=1)
    x = encoder.drop_after_pos(x)
    bias = getattr(encoder, 'rel_pos_bias', None)
    shared = None if bias is None else bias.table_for(places.grid)

    def run(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        mixed = mix_scattered(layer.attn, layer.ln1(x), places, shared)
        return layer.finish(x, mixed)

    again = encoder.with_cp and encoder.training and torch.is_grad_enabled()
    for layer in encoder.layers:
        if again:
            x = checkpoint(run, layer, x, use_reentrant=False)
        else:
            x = run(layer, x)
    return encoder.ln1(x) if encoder.final_norm else x
