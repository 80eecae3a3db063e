"""Self-attention of decoders: narrow heads, and not all tokens need an answer.

MAE's decoder has heads of 32 values, the decoder of R-MAE's regions heads of
16. On a CPU that moves the balance between PyTorch's kernels: with so little
to multiply a logit by, its way through memory is what counts.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .attention import SHORT, SelfAttention


class _NarrowAttention(torch.autograd.Function):
    """Softmax attention below float32, for training on a CPU.

    There the gradient of the flash kernel takes four times as long as these
    products. Queries are scaled instead of logits, of which there are more,
    and one (M, N) tensor a head stays alive.
    """

    @staticmethod
    def forward(ctx, qkv, start):
        batch, length, _, heads, dims = qkv.shape
        shape = (batch * heads, -1, dims)
        scale = dims**-0.5
        # (B * heads, tokens, d) each, in one copy.
        q = qkv[:, start:, 0].transpose(1, 2).mul(scale).reshape(shape)
        k, v = qkv[:, :, 1:].permute(2, 0, 3, 1, 4).flatten(1, 2).contiguous()
        logits = torch.bmm(q, k.transpose(1, 2))
        # Softmax works row by row, so its output may be its input.
        probs = torch.ops.aten._softmax.out(logits, -1, False, out=logits)
        ctx.save_for_backward(q, k, v, probs)
        ctx.shape, ctx.start, ctx.scale = qkv.shape, start, scale
        out = torch.bmm(probs, v).view(batch, heads, length - start, dims)
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        q, k, v, probs = ctx.saved_tensors
        batch, length, _, heads, dims = ctx.shape
        grad_out = grad_out.transpose(1, 2).reshape(q.shape)
        grad_logits = torch.bmm(grad_out, v.transpose(1, 2))
        torch.ops.aten._softmax_backward_data.out(
            grad_logits, probs, -1, probs.dtype, grad_input=grad_logits
        )
        grads = q.new_empty(ctx.shape)
        parts = (
            torch.bmm(grad_logits, k).mul_(ctx.scale),
            torch.bmm(grad_logits.transpose(1, 2), q),
            torch.bmm(probs.transpose(1, 2), grad_out),
        )
        if ctx.start:
            grads[:, : ctx.start, 0] = 0
        for i, part in enumerate(parts):
            part = part.view(batch, heads, -1, dims).transpose(1, 2)
            grads[:, ctx.start if i == 0 else 0 :, i] = part
        return grads, None


def attend_from(qkv: torch.Tensor, start: int = 0) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v of the tokens from ``start`` on.

    Args:
        qkv: (B, N, 3, heads, d): queries, keys, values.
        start: Tokens before this one are looked at, but do not look.

    Returns:
        (B, N - start, heads, d), type of ``qkv``.
    """
    if (
        qkv.device.type == 'cpu'
        and qkv.dtype != torch.float32
        and qkv.requires_grad
        and qkv.shape[1] <= SHORT
        and not torch.compiler.is_compiling()
    ):
        with torch.autocast('cpu', enabled=False):
            return _NarrowAttention.apply(qkv, start)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    x = F.scaled_dot_product_attention(q[:, :, start:], k, v)
    return x.transpose(1, 2)


class NarrowAttention(SelfAttention):
    """Self-attention that may answer only the last tokens.

    Args:
        embed_dims: D, width of a token.
        num_heads: Heads; D must be a multiple of it.
    """

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__(embed_dims, num_heads)

    def forward(self, tokens: torch.Tensor, start: int = 0) -> torch.Tensor:
        """(B, N, D) -> (B, N - start, D): the tokens from ``start`` on."""
        x = attend_from(self.project(tokens), start)
        return self.proj(x.flatten(2))
