r"""Image relative position encoding: contextual, product method, on keys.

Wu et al., "Rethinking and Improving Relative Position Encoding for Vision
Transformer", ICCV 2021 (iRPE), as LoMaR uses it. The logit of query i and key
j gets, besides their product,

.. math:: q_i \cdot r_{b(i, j)}

with r the columns of a small learned table and b a bucket that depends on the
offset of the two tokens alone. Hence one table serves all heads, windows and
resolutions. The query is not scaled here, as in LoMaR's release (iRPE's own
code scales it).
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ...errors import InputError
from .attention import SelfAttention
from .large_grids import WHOLE, attend_by_rows, offsets
from .positions import kept_for_grids

ALPHA, BETA, GAMMA = 1.9, 3.8, 15.2


def piecewise_index(
    offsets: torch.Tensor,
    alpha: float = ALPHA,
    beta: float = BETA,
    gamma: float = GAMMA,
) -> torch.Tensor:
    """Signed bucket of an offset along one axis (iRPE, equation 18).

    Near offsets are buckets of their own, far ones share: up to ``alpha`` the
    offset itself, beyond it rounded logarithms that reach ``beta`` at
    ``gamma`` and stay there.

    Args:
        offsets: Whole numbers, any shape and type.
        alpha, beta, gamma: 0 < alpha < beta, alpha < gamma.

    Returns:
        int64 of the same shape, in [-int(beta), int(beta)].
    """
    if not (0.0 < alpha < beta and alpha < gamma):
        raise InputError(
            f'alpha, beta, gamma are {alpha}, {beta}, {gamma}; expected '
            '0 < alpha < beta and alpha < gamma'
        )
    distance = offsets.abs().double()
    slope = (beta - alpha) / math.log(gamma / alpha)
    far = alpha + slope * torch.log(distance.clamp(min=alpha) / alpha)
    far = far.round().clamp(max=beta).trunc()
    index = torch.where(distance <= alpha, distance, far)
    return (index * offsets.sign()).long()


def num_buckets(beta: float = BETA) -> int:
    """Columns of a table: (2 int(beta) + 1)^2, and one for the class token."""
    return (2 * int(beta) + 1) ** 2 + 1


def bucket_index(
    grid: tuple[int, int],
    alpha: float = ALPHA,
    beta: float = BETA,
    gamma: float = GAMMA,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Table column of every (query, key) pair.

    Args:
        grid: (h, w).
        alpha, beta, gamma: See :func:`piecewise_index`.
        device: Where to compute it.

    Returns:
        (1 + h*w, 1 + h*w) int64; token 0 is the class token, whose pairs all
        have the last column.
    """
    h, w = grid
    rows = torch.arange(h, device=device)
    columns = torch.arange(w, device=device)
    y = piecewise_index(rows[:, None] - rows, alpha, beta, gamma)
    x = piecewise_index(columns[:, None] - columns, alpha, beta, gamma)
    reach = int(beta)
    # (h, 1, h, 1) and (1, w, 1, w): query row, query column, key row, column.
    y, x = y[:, None, :, None] + reach, x[None, :, None, :] + reach
    spatial = (y * (2 * reach + 1) + x).reshape(h * w, h * w)
    return F.pad(spatial, (1, 0, 1, 0), value=num_buckets(beta) - 1)


def spatial_buckets(
    grid: tuple[int, int],
    start: int,
    stop: int,
    alpha: float = ALPHA,
    beta: float = BETA,
    gamma: float = GAMMA,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Some rows of :func:`bucket_index`, without the class token.

    Args:
        grid: (h, w).
        start, stop: Queries from ``start`` to before ``stop``, row-major.
        alpha, beta, gamma: See :func:`piecewise_index`.
        device: Where to compute it.

    Returns:
        int64 (stop - start, h * w)
    """
    reach = int(beta)
    farthest = max(grid) - 1
    line = torch.arange(-farthest, farthest + 1, device=device)
    piece = piecewise_index(line, alpha, beta, gamma) + reach
    dy, dx = offsets(grid, start, stop, device)
    return piece[dy + farthest] * (2 * reach + 1) + piece[dx + farthest]


@kept_for_grids
def _index_on(
    grid: tuple[int, int],
    alpha: float,
    beta: float,
    gamma: float,
    device: torch.device,
) -> torch.Tensor:
    return bucket_index(grid, alpha, beta, gamma, device)


class _WrittenOutAttention(torch.autograd.Function):
    """Attention with the contextual product, for training on a CPU.

    As its namesake in ``layers/attention.py``, which has a bias that depends
    on no query. Products of queries and table are looked up where the bias
    belongs and the products of queries and keys are added in place; in the
    backward pass the gradient of the logits is summed back into the table's
    columns before it meets queries and table. Sums are in float32 and in a
    fixed order.
    """

    @staticmethod
    def forward(ctx, qkv, table, index, scale):
        batch, length, _, heads, dims = qkv.shape
        # (3, B * heads, N, d), in one copy.
        packed = qkv.permute(2, 0, 3, 1, 4).contiguous()
        packed = packed.view(3, batch * heads, length, dims)
        q, k, v = packed
        scores = torch.mm(q.view(-1, dims), table)
        scores = scores.view(batch * heads, length, -1)
        logits = scores.gather(-1, index.expand(batch * heads, -1, -1))
        # Not baddbmm_, which PyTorch's FLOP counter does not know.
        torch.baddbmm(logits, q, k.transpose(1, 2), alpha=scale, out=logits)
        if logits.dtype in (torch.bfloat16, torch.float16):
            # More exact than the kernel that stays in 16 bits, and faster on
            # rows as short as those of a window.
            probs = logits.softmax(-1, dtype=torch.float32).to(logits.dtype)
        else:
            # Row by row, so the output may be the input.
            probs = torch.ops.aten._softmax.out(logits, -1, False, out=logits)
        ctx.save_for_backward(packed, table, index, probs)
        ctx.scale, ctx.shape = scale, qkv.shape
        out = torch.bmm(probs, v).view(batch, heads, length, dims)
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        packed, table, index, probs = ctx.saved_tensors
        batch, length, _, heads, dims = ctx.shape
        q, k, v = packed
        grad_out = grad_out.transpose(1, 2).reshape(-1, length, dims)
        grads = torch.empty_like(packed)
        torch.bmm(probs.transpose(1, 2), grad_out, out=grads[2])
        grad_logits = torch.bmm(grad_out, v.transpose(1, 2))
        torch.ops.aten._softmax_backward_data.out(
            grad_logits, probs, -1, probs.dtype, grad_input=grad_logits
        )
        torch.baddbmm(
            grads[1],
            grad_logits.transpose(1, 2),
            q,
            beta=0,
            alpha=ctx.scale,
            out=grads[1],
        )

        wide = torch.promote_types(grad_logits.dtype, torch.float32)
        grad_scores = grad_logits.new_zeros(
            batch * heads, length, table.shape[1], dtype=wide
        )
        grad_scores.scatter_add_(
            -1,
            index.expand(batch * heads, -1, -1),
            grad_logits.to(wide),
        )
        grad_scores = grad_scores.to(table.dtype).view(-1, table.shape[1])
        torch.mm(grad_scores, table.t(), out=grads[0].view(-1, dims))
        torch.baddbmm(grads[0], grad_logits, k, alpha=ctx.scale, out=grads[0])
        grad_table = torch.mm(q.view(-1, dims).t(), grad_scores)
        grads = grads.view(3, batch, heads, length, dims)
        return (
            grads.permute(1, 3, 0, 2, 4).contiguous(),
            grad_table,
            None,
            None,
        )


def contextual_product(
    queries: torch.Tensor, table: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    """What the logits get besides the products of queries and keys.

    Args:
        queries: (B, heads, N, d), not scaled.
        table: (d, buckets).
        index: (N, N) int64, column of each (query, key).

    Returns:
        (B, heads, N, N), type of ``queries``.
    """
    scores = queries @ table
    # Looked up in float32: the backward pass sums there.
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    index = index.expand(*scores.shape[:2], -1, -1)
    return wide.gather(-1, index).to(scores.dtype)


def contextual_attend(
    qkv: torch.Tensor,
    table: torch.Tensor,
    index: torch.Tensor,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(d) + q . table[index]) v.

    Args:
        qkv: (B, N, 3, heads, d): queries, keys, values.
        table: (d, buckets), the same for all heads.
        index: (N, N) int64, column of each (query, key).
        dropout: Probability of dropping an attention weight.

    Returns:
        (B, N, heads, d), type of ``qkv``.
    """
    table = table.to(qkv.dtype)
    if (
        qkv.device.type == 'cpu'
        and torch.is_grad_enabled()
        and (qkv.requires_grad or table.requires_grad)
        and not dropout
        and not torch.compiler.is_compiling()
    ):
        with torch.autocast('cpu', enabled=False):
            return _WrittenOutAttention.apply(
                qkv, table, index, qkv.shape[-1] ** -0.5
            )
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    bias = contextual_product(q, table, index)
    x = F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, dropout_p=dropout
    )
    return x.transpose(1, 2)


class RelativeKeys(nn.Module):
    """The table of one block, names and layout as released.

    Args:
        head_dims: d, width of a head.
        alpha, beta, gamma: See :func:`piecewise_index`.
    """

    def __init__(
        self,
        head_dims: int,
        alpha: float = ALPHA,
        beta: float = BETA,
        gamma: float = GAMMA,
    ) -> None:
        super().__init__()
        piecewise_index(torch.zeros(1), alpha, beta, gamma)  # refuses others
        self.pieces = (alpha, beta, gamma)
        self.lookup_table_weight = nn.Parameter(
            torch.zeros(1, head_dims, num_buckets(beta))
        )

    def index(
        self, grid: tuple[int, int], device: torch.device
    ) -> torch.Tensor:
        """:func:`bucket_index` of a grid (h, w), made once a device."""
        if torch.compiler.is_compiling():
            return bucket_index(grid, *self.pieces, device)
        return _index_on(grid, *self.pieces, device)

    def forward(
        self, queries: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """:func:`contextual_product` with this table.

        Args:
            queries: (B, heads, N, d), not scaled.
            index: (N, N) int64, of :meth:`index`.

        Returns:
            (B, heads, N, N)
        """
        return contextual_product(queries, self.lookup_table_weight[0], index)


class IRPEAttention(SelfAttention):
    """Self-attention with iRPE on keys.

    Blocks with the same ``alpha, beta, gamma`` share the index of a grid,
    ``rpe_k.index(grid, device)``.

    Args:
        embed_dims: D, width of a token.
        num_heads: Heads; D must be a multiple of it.
        qkv_bias: See :class:`~ropim_mm.models.layers.SelfAttention`.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of the output.
        alpha, beta, gamma: See :func:`piecewise_index`.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        qkv_bias: str | bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        alpha: float = ALPHA,
        beta: float = BETA,
        gamma: float = GAMMA,
    ) -> None:
        super().__init__(embed_dims, num_heads, qkv_bias, attn_drop, proj_drop)
        self.rpe_k = RelativeKeys(embed_dims // num_heads, alpha, beta, gamma)

    def qkv_of(self, tokens: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., 3 * D), queries, keys and values in a row."""
        return self.project(tokens).flatten(-3)

    def weigh(self, qkv: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """The weighted values, before the output's projection.

        Args:
            qkv: (B, N, 3 * D), class token first.
            index: (N, N) int64, table column of each (query, key).

        Returns:
            (B, N, D)
        """
        x = contextual_attend(
            qkv.unflatten(-1, (3, self.num_heads, -1)),
            self.rpe_k.lookup_table_weight[0],
            index,
            self.attn_drop if self.training else 0.0,
        )
        return x.flatten(2)

    def output(self, mixed: torch.Tensor) -> torch.Tensor:
        """Weighted values (B, N, D) -> (B, N, D)"""
        return self.proj_drop(self.proj(mixed))

    def forward(
        self, tokens: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """Mix the tokens of each image or window.

        Args:
            tokens: (B, N, D), class token first.
            index: (N, N) int64, table column of each (query, key).

        Returns:
            (B, N, D)
        """
        return self.output(self.weigh(self.qkv_of(tokens), index))

    def weigh_grid(
        self,
        qkv: torch.Tensor,
        grid: tuple[int, int],
        frame: tuple[int, int],
    ) -> torch.Tensor:
        """As the base class says; the buckets are those of any frame."""
        dropout = self.attn_drop if self.training else 0.0
        length = qkv.shape[1]
        table = self.rpe_k.lookup_table_weight[0]
        if length <= WHOLE:
            index = self.rpe_k.index(grid, qkv.device)[1:, 1:]
            return contextual_attend(qkv, table, index, dropout)

        def bias(q: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            index = spatial_buckets(
                grid, start, stop, *self.rpe_k.pieces, qkv.device
            )
            return contextual_product(q, table.to(q.dtype), index)

        return attend_by_rows(qkv, bias, dropout)
