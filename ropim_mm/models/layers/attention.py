"""Multi-head attention with an additive bias of the logits."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ...errors import InputError
from .large_grids import WHOLE, attend_by_rows, in_windows
from .relative_position import RelativePositionTable, spatial_bias

# Up to this many tokens the (N, N) weights of a head fit into the caches, and
# a chain of matrix products is faster on a CPU than the flash kernel.
SHORT = 512


class _WrittenOutAttention(torch.autograd.Function):
    """Softmax attention with a learned bias, for training on a CPU.

    ``F.scaled_dot_product_attention`` has no CPU kernel that gives the
    gradient of its mask: it falls back to a chain of separate operations, in
    float32 even when the inputs are bfloat16. Here queries, keys and values
    are laid out for the matrix products once, one (N, N) tensor a head stays
    alive, and it is worked on in place. Below float32, logits are rounded to
    the inputs' type, which fused kernels do not do.
    """

    @staticmethod
    def forward(ctx, qkv, bias, scale):
        batch, length, _, heads, dims = qkv.shape
        # (3, B * heads, N, d), in one copy.
        packed = qkv.permute(2, 0, 3, 1, 4).contiguous()
        packed = packed.view(3, batch * heads, length, dims)
        q, k, v = packed
        shape = (batch, heads, length, length)
        if bias is None or qkv.dtype == torch.float32:
            logits = torch.bmm(q, k.transpose(1, 2))
            logits.mul_(scale)
            if bias is not None:
                logits.view(shape).add_(bias)
        else:
            # Rounded once. In float32 that is not worth the copy.
            logits = bias.new_empty(batch * heads, length, length)
            logits.view(shape).copy_(bias)
            # Not baddbmm_, which PyTorch's FLOP counter does not know.
            torch.baddbmm(
                logits, q, k.transpose(1, 2), alpha=scale, out=logits
            )
        # Softmax works row by row, so its output may be its input.
        probs = torch.ops.aten._softmax.out(logits, -1, False, out=logits)
        ctx.save_for_backward(packed, probs)
        ctx.scale, ctx.shape = scale, qkv.shape
        ctx.bias_shape = None if bias is None else bias.shape
        out = torch.bmm(probs, v).view(batch, heads, length, dims)
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        packed, probs = ctx.saved_tensors
        batch, length, _, heads, dims = ctx.shape
        q, k, v = packed
        grad_out = grad_out.transpose(1, 2).reshape(-1, length, dims)
        grads = torch.empty_like(packed)
        torch.bmm(probs.transpose(1, 2), grad_out, out=grads[2])
        grad_logits = torch.bmm(grad_out, v.transpose(1, 2))
        torch.ops.aten._softmax_backward_data.out(
            grad_logits, probs, -1, probs.dtype, grad_input=grad_logits
        )
        torch.bmm(grad_logits, k, out=grads[0])
        torch.bmm(grad_logits.transpose(1, 2), q, out=grads[1])
        grads[:2].mul_(ctx.scale)
        grads = grads.view(3, batch, heads, length, dims)
        grad_bias = None
        if ctx.needs_input_grad[1]:
            grad_bias = grad_logits.view(batch, heads, length, length)
            grad_bias = grad_bias.sum_to_size(ctx.bias_shape)
        return grads.permute(1, 3, 0, 2, 4).contiguous(), grad_bias, None


def attend(
    qkv: torch.Tensor,
    bias: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(d) + bias) v.

    Fused kernels of ``F.scaled_dot_product_attention`` where there are any,
    a written-out backward in training on a CPU.

    Args:
        qkv: (B, N, 3, heads, d): queries, keys, values.
        bias: (1 or B, heads, N, N), any floating type; None for no bias.
        dropout: Probability of dropping an attention weight.

    Returns:
        (B, N, heads, d), type of ``qkv``.
    """
    if bias is not None:
        bias = bias.to(qkv.dtype)
    learned = bias is not None and bias.requires_grad
    if (
        qkv.device.type == 'cpu'
        and torch.is_grad_enabled()
        and (learned or (qkv.requires_grad and qkv.shape[1] <= SHORT))
        and not dropout
        and not torch.compiler.is_compiling()
    ):
        with torch.autocast('cpu', enabled=False):
            return _WrittenOutAttention.apply(qkv, bias, qkv.shape[-1] ** -0.5)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    x = F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, dropout_p=dropout
    )
    return x.transpose(1, 2)


class SelfAttention(nn.Module):
    """Multi-head self-attention, names as MMPretrain's.

    Args:
        embed_dims: D, width of a token.
        num_heads: Heads; D must be a multiple of it.
        qkv_bias: True (queries, keys and values), 'qv_bias' (queries and
            values, as BEiT) or False.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of the output.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        qkv_bias: str | bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if qkv_bias not in ('qv_bias', True, False):
            raise InputError(
                f"qkv_bias is {qkv_bias!r}; expected 'qv_bias' (queries and "
                'values), True or False'
            )
        if embed_dims % num_heads:
            raise InputError(
                f'embed_dims {embed_dims} is not a multiple of num_heads '
                f'{num_heads}'
            )
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.proj_drop = nn.Dropout(proj_drop)
        self.separate_bias = qkv_bias == 'qv_bias'
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=qkv_bias is True)
        if self.separate_bias:
            self.q_bias = nn.Parameter(torch.zeros(embed_dims))
            self.v_bias = nn.Parameter(torch.zeros(embed_dims))
        self.proj = nn.Linear(embed_dims, embed_dims)

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N, D) -> queries, keys, values (B, N, 3, heads, d)."""
        bias = self.qkv.bias
        if self.separate_bias:
            zeros = torch.zeros_like(self.v_bias)
            bias = torch.cat((self.q_bias, zeros, self.v_bias))
        qkv = F.linear(tokens, self.qkv.weight, bias)
        return qkv.unflatten(-1, (3, self.num_heads, -1))

    def mix(
        self, qkv: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Queries, keys, values (B, N, 3, heads, d) -> (B, N, D).

        Args:
            bias: Added to the logits, (1 or B, heads, N, N).
        """
        x = attend(qkv, bias, self.attn_drop if self.training else 0.0)
        return self.proj_drop(self.proj(x.flatten(2)))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N, D) -> (B, N, D)"""
        return self.mix(self.project(tokens))

    def on_grid(
        self,
        tokens: torch.Tensor,
        grid: tuple[int, int],
        window: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """Mix the tokens of a grid, without a class token.

        Args:
            tokens: (B, h * w, D), row-major.
            grid: (h, w).
            window: Only tokens of the same window of (height, width) tokens
                meet; None for all.

        Returns:
            (B, h * w, D)
        """
        qkv = self.project(tokens)
        if window is None:
            x = self.weigh_grid(qkv, grid, grid)
        else:
            x = in_windows(
                qkv,
                grid,
                window,
                lambda part, size: self.weigh_grid(part, size, window),
            )
        return self.proj_drop(self.proj(x.flatten(2)))

    def weigh_grid(
        self,
        qkv: torch.Tensor,
        grid: tuple[int, int],
        frame: tuple[int, int],
    ) -> torch.Tensor:
        """Attention on a grid, before the output's projection.

        Args:
            qkv: (B, h * w, 3, heads, d).
            grid: (h, w).
            frame: The grid that relative positions are made for. At the
                border of an image, ``grid`` is a part of it.

        Returns:
            (B, h * w, heads, d)
        """
        return attend(qkv, None, self.attn_drop if self.training else 0.0)


class RelPosAttention(SelfAttention, RelativePositionTable):
    """Self-attention of BEiT: no key bias, relative position bias.

    Args:
        embed_dims: D, width of a token.
        num_heads: Heads; D must be a multiple of it.
        grid: (h, w) of the table of this block; None where a shared bias is
            given to :meth:`forward` or there is none.
        qkv_bias: 'qv_bias' (queries and values, as BEiT), True (all) or
            False.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of the output.
        with_cls_token: Whether the table has an index for a class token and
            the patches; :meth:`on_grid` needs none.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        grid: tuple[int, int] | None = None,
        qkv_bias: str | bool = 'qv_bias',
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        with_cls_token: bool = True,
    ) -> None:
        super().__init__(embed_dims, num_heads, qkv_bias, attn_drop, proj_drop)
        self.has_table = grid is not None
        if self.has_table:
            self.init_table(grid, num_heads, with_cls_token)

    def forward(
        self,
        tokens: torch.Tensor,
        grid: tuple[int, int],
        shared_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mix the tokens of each image.

        Args:
            tokens: (B, 1 + L, D), class token first.
            grid: (h, w) with h * w = L.
            shared_bias: (1, heads, 1 + L, 1 + L) from a shared table.

        Returns:
            (B, 1 + L, D)
        """
        bias = self.bias(grid) if self.has_table else shared_bias
        return self.mix(self.project(tokens), bias)

    def weigh_grid(
        self,
        qkv: torch.Tensor,
        grid: tuple[int, int],
        frame: tuple[int, int],
    ) -> torch.Tensor:
        """As the base class says, with the bias of the table."""
        if not self.has_table:
            return super().weigh_grid(qkv, grid, frame)
        table = self.table_for(frame)
        dropout = self.attn_drop if self.training else 0.0
        if qkv.shape[1] <= WHOLE:
            bias = spatial_bias(table, grid, frame, dtype=qkv.dtype)
            return attend(qkv, bias.flip(-1), dropout)
        width = grid[1]

        def bias(q: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            rows = start // width, stop // width
            return spatial_bias(table, grid, frame, *rows, q.dtype)

        return attend_by_rows(
            qkv, bias, dropout, unit=width, reverse_keys=True
        )
