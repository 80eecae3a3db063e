r"""All pairs of queries and memory tokens, taken apart and put together late.

R-MAE adds each query :math:`q_r` to each memory token :math:`m_t`, normalises
the sum and gives it to an MLP. A LayerNorm subtracts means, which add up, and
divides by a deviation, a number a pair. With centred :math:`\bar q, \bar m`,
scale :math:`\gamma` and shift :math:`\beta` of the norm, the first linear
layer of the MLP gives

.. math::

    W\,\mathrm{LN}(q_r + m_t) + b = \frac{W(\gamma \bar q_r)
        + W(\gamma \bar m_t)}{\sqrt{\sigma_{rt}^2 + \epsilon}}
        + W \beta + b,
    \qquad D \sigma_{rt}^2 = \|\bar q_r\|^2 + \|\bar m_t\|^2
        + 2\,\bar q_r \cdot \bar m_t,

and is applied to queries and tokens instead of pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Pairs worked on at a time on a CPU: with 256 logits each they stay in the
# caches, and the products are large enough.
CHUNK = 1024


class Pairs(NamedTuple):
    """What the first layer's outputs for all pairs are made of.

    Attributes:
        by_query: (B, R, K).
        by_token: (B, N, K).
        inverse: (B, R, N), one over the deviation of each pair.
        shift: (K,).
    """

    by_query: torch.Tensor
    by_token: torch.Tensor
    inverse: torch.Tensor
    shift: torch.Tensor

    def join(self) -> torch.Tensor:
        """The outputs, (B, R, N, K)."""
        sums = self.by_query.unsqueeze(2) + self.by_token.unsqueeze(1)
        return torch.addcmul(self.shift, sums, self.inverse.unsqueeze(-1))


def take_apart(
    queries: torch.Tensor,
    memory: torch.Tensor,
    norm: nn.LayerNorm,
    linear: nn.Linear,
) -> Pairs:
    """``linear(norm(q_r + m_t))`` of all pairs, as :class:`Pairs`.

    Args:
        queries: (B, R, D).
        memory: (B, N, D).
        norm: Of width D.
        linear: D -> K.
    """
    with torch.autocast(queries.device.type, enabled=False):
        wide = torch.promote_types(queries.dtype, torch.float32)
        queries, memory = queries.to(wide), memory.to(wide)
        queries = queries - queries.mean(-1, keepdim=True)
        memory = memory - memory.mean(-1, keepdim=True)
        squares = (
            queries.square().sum(-1).unsqueeze(2)
            + memory.square().sum(-1).unsqueeze(1)
            + 2 * queries @ memory.transpose(1, 2)
        )
        # Where m_t is almost -q_r, little is left of large numbers: the sum
        # is right to 1e-7 of |q|^2 + |m|^2, and may fall below zero.
        variance = squares.clamp(min=0) / queries.shape[-1]
        inverse = (variance + norm.eps).rsqrt()
        weight = linear.weight * norm.weight
        shift = F.linear(norm.bias, linear.weight, linear.bias)
    by_query, by_token = F.linear(queries, weight), F.linear(memory, weight)
    kind = by_query.dtype
    return Pairs(by_query, by_token, inverse.to(kind), shift.to(kind))


def cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, bg_weight: float = 1.0
) -> torch.Tensor:
    """Mean binary cross entropy, in float32 or wider.

    Args:
        logits: Any shape, any floating type.
        target: Same shape, bool or numbers in [0, 1].
        bg_weight: Weight of what has a target of 0; the mean is not divided
            by it.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = target.to(logits.dtype)
    weight = None
    if bg_weight != 1.0:
        weight = torch.where(target == 0, bg_weight, 1.0)
    return F.binary_cross_entropy_with_logits(logits, target, weight)


def read_and_compare(
    pairs: Pairs,
    second: nn.Linear,
    last: nn.Linear,
    target: torch.Tensor,
    bg_weight: float = 1.0,
) -> torch.Tensor:
    """Loss of ``last(gelu(second(gelu(outputs of pairs))))``, a scalar.

    Args:
        pairs: R queries, N tokens, K values.
        second: K -> D.
        last: D -> P logits.
        target: (B, R, N, P), bool or numbers in [0, 1].
        bg_weight: Of :func:`cross_entropy`.
    """
    if (
        target.device.type == 'cpu'
        and pairs.by_query.requires_grad
        and not torch.compiler.is_compiling()
    ):
        with torch.autocast('cpu', enabled=False):
            return _ReadAndCompare.apply(
                *pairs,
                second.weight,
                second.bias,
                last.weight,
                last.bias,
                target,
                bg_weight,
            )
    logits = last(F.gelu(second(F.gelu(pairs.join()))))
    return cross_entropy(logits, target, bg_weight)


class _ReadAndCompare(torch.autograd.Function):
    """The way from pairs to the loss and back, a few pairs at a time.

    Nothing follows a loss, so its gradient is known on the way forward. For
    training on a CPU, where five tensors with a row a pair, each larger than
    the caches, would cost more than the products between them.
    """

    @staticmethod
    def forward(ctx, by_query, by_token, inverse, shift, *rest):
        *params, target, bg_weight = rest
        kind = by_query.dtype
        w2, b2, w3, b3 = (p.to(kind) for p in params)
        wide = torch.promote_types(kind, torch.float32)
        grads = [torch.zeros_like(p, dtype=wide) for p in params]
        g_query, g_inverse = (
            torch.empty_like(by_query),
            torch.empty_like(inverse),
        )
        g_token, g_shift = (
            torch.zeros_like(by_token),
            torch.zeros_like(shift, dtype=wide),
        )
        batch, count = by_query.shape[:2]
        step = max(1, CHUNK // by_token.shape[1])
        total = 0.0
        for b in range(0, batch, step):
            part = slice(b, b + step)
            for r in range(count):
                scale = inverse[part, r].unsqueeze(-1)
                h = by_token[part] + by_query[part, r].unsqueeze(1)
                h = torch.addcmul(shift, h, scale)
                x1 = F.gelu(h)
                y = F.linear(x1, w2, b2)
                x2 = F.gelu(y)
                logits = F.linear(x2, w3, b3)

                loss, g = _entropy_and_gradient(
                    logits.to(wide), target[part, r].to(wide), bg_weight
                )
                total = total + loss
                g = g.to(kind).flatten(0, 1)
                grads[2] += g.t() @ x2.flatten(0, 1)
                grads[3] += g.sum(0)
                g = torch.ops.aten.gelu_backward(g @ w3, y.flatten(0, 1))
                grads[0] += g.t() @ x1.flatten(0, 1)
                grads[1] += g.sum(0)
                g = torch.ops.aten.gelu_backward((g @ w2).view_as(h), h)
                g_shift += g.sum((0, 1))
                # h - shift = sums / deviation
                dots = (g * h.sub_(shift)).sum(-1)
                torch.div(dots, inverse[part, r], out=g_inverse[part, r])
                g.mul_(scale)
                g_query[part, r] = g.sum(1)
                g_token[part] += g
        ctx.size = target.numel()
        ctx.save_for_backward(g_query, g_token, g_inverse, g_shift, *grads)
        return total / ctx.size

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        factor = grad_out / ctx.size
        grads = [g * factor.to(g.dtype) for g in ctx.saved_tensors]
        return (*grads, None, None)


def _entropy_and_gradient(
    logits: torch.Tensor, target: torch.Tensor, bg_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross entropy, and its gradient in the logits."""
    gradient = torch.sigmoid(logits).sub_(target)
    if bg_weight == 1.0:
        loss = F.softplus(logits).sum()
        return loss - torch.dot(logits.flatten(), target.flatten()), gradient
    weight = torch.where(target == 0, bg_weight, 1.0)
    each = F.softplus(logits).sub_(logits.mul_(target)).mul_(weight)
    return each.sum(), gradient.mul_(weight)
