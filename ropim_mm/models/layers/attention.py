"""Multi-head attention with an additive bias of the logits."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .relative_position import RelativePositionTable


class _BiasedAttention(torch.autograd.Function):
    """Softmax attention with a learned bias, for training on a CPU.

    ``F.scaled_dot_product_attention`` has no CPU kernel that gives the
    gradient of its mask: it falls back to a chain of separate operations, in
    float32 even when the inputs are bfloat16. Writing the backward out keeps
    one (N, N) tensor a head alive instead of three and stays in the inputs'
    type.
    """

    @staticmethod
    def forward(ctx, q, k, v, bias, scale):
        logits = torch.matmul(q * scale, k.transpose(-2, -1))
        probs = torch.softmax(logits.add_(bias), dim=-1)
        ctx.save_for_backward(q, k, v, probs)
        ctx.scale = scale
        ctx.bias_shape = bias.shape
        return torch.matmul(probs, v)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        q, k, v, probs = ctx.saved_tensors
        grad_v = torch.matmul(probs.transpose(-2, -1), grad_out)
        grad_probs = torch.matmul(grad_out, v.transpose(-2, -1))
        grad_logits = torch._softmax_backward_data(
            grad_probs, probs, -1, probs.dtype
        )
        grad_q = torch.matmul(grad_logits, k).mul_(ctx.scale)
        grad_k = torch.matmul(grad_logits.transpose(-2, -1), q)
        grad_k.mul_(ctx.scale)
        grad_bias = grad_logits.sum_to_size(ctx.bias_shape)
        return grad_q, grad_k, grad_v, grad_bias, None


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(d) + bias) v.

    Args:
        q, k, v: (B, heads, N, d).
        bias: (1 or B, heads, N, N), any floating type; None for no bias.
        dropout: Probability of dropping an attention weight.

    Returns:
        (B, heads, N, d), type of ``q``.
    """
    if bias is not None:
        bias = bias.to(q.dtype)
        if (
            bias.requires_grad
            and q.device.type == 'cpu'
            and not dropout
            and not torch.compiler.is_compiling()
        ):
            with torch.autocast('cpu', enabled=False):
                return _BiasedAttention.apply(
                    q, k, v, bias, q.shape[-1] ** -0.5
                )
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, dropout_p=dropout
    )


class RelPosAttention(RelativePositionTable):
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
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        grid: tuple[int, int] | None = None,
        qkv_bias: str | bool = 'qv_bias',
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(
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
        self.has_table = grid is not None
        if self.has_table:
            self.init_table(grid, num_heads)

    def forward(
        self,
        tokens: torch.Tensor,
        grid: tuple[int, int],
        shared_bias: torch.Tensor | None = None,
        gamma: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mix the tokens of each image.

        Args:
            tokens: (B, 1 + L, D), class token first.
            grid: (h, w) with h * w = L.
            shared_bias: (1, heads, 1 + L, 1 + L) from a shared table.
            gamma: (D,) LayerScale. It multiplies the weights of the output
                projection, which are fewer than the tokens it would scale.

        Returns:
            (B, 1 + L, D)
        """
        batch, length, dims = tokens.shape
        bias = self.qkv.bias
        if self.separate_bias:
            zeros = torch.zeros_like(self.v_bias)
            bias = torch.cat((self.q_bias, zeros, self.v_bias))
        qkv = F.linear(tokens, self.qkv.weight, bias)
        qkv = qkv.view(batch, length, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        logits_bias = self.bias(grid) if self.has_table else shared_bias
        x = attend(
            q, k, v, logits_bias, self.attn_drop if self.training else 0.0
        )
        x = x.transpose(1, 2).reshape(batch, length, dims)
        return self.proj_drop(scaled_linear(x, self.proj, gamma))


def scaled_linear(
    x: torch.Tensor, linear: nn.Linear, gamma: torch.Tensor | None
) -> torch.Tensor:
    """gamma * linear(x), with gamma (out,) folded into the weights."""
    if gamma is None:
        return linear(x)
    weight = gamma.unsqueeze(1) * linear.weight
    return F.linear(x, weight, gamma * linear.bias)
