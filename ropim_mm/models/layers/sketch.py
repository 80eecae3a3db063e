r"""Count sketches of a token sequence and the projections they define.

A count sketch sends each of N tokens to one of K buckets, with a sign. As a
matrix it is :math:`S \in \{-1, 0, 1\}^{N \times K}` with one entry a row, and

.. math:: P = S D S^\top

mixes the tokens of a bucket. With :math:`D = \mathrm{diag}(1/n_k)`, one over
the number of tokens of bucket k, P is an orthogonal projector of rank K
(P P = P = P\ :sup:`T`), and I - P projects on what P removes. This is the
random projection of ROPIM (Haghighat et al., ICLR 2024, section 3).

No N x N matrix is made: P x is a signed sum per bucket and a gather, O(N d).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ...errors import InputError


def num_buckets(num_tokens: int, ratio: float) -> int:
    """Rank of the projection: K = ceil(ratio * N), ratio in (0, 1).

    The product is a float's, as in the released code: 0.14 of 100 tokens is
    14.000000000000002 and gives 15 buckets.

    Raises:
        InputError: ``ratio`` is outside (0, 1).
    """
    if not 0.0 < ratio < 1.0:
        raise InputError(
            f'sketch_ratio is {ratio}; expected a number strictly between 0 '
            'and 1: the share of dimensions that the projection keeps'
        )
    return math.ceil(ratio * num_tokens)


@dataclass(frozen=True)
class CountSketch:
    """One count sketch an image.

    Attributes:
        buckets: (B, N) int64, bucket of each token, in [0, ``size``).
        signs: (B, N) float, -1 or +1.
        weights: (B, N) float32, the entry of D for each token's bucket.
        size: K, number of buckets.
    """

    buckets: torch.Tensor
    signs: torch.Tensor
    weights: torch.Tensor
    size: int

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        """P x. Summed in float32 whatever the input's type.

        Args:
            tokens: (B, N, d), any floating type.

        Returns:
            (B, N, d), same type.
        """
        if tokens.shape[:2] != self.buckets.shape:
            raise InputError(
                f'a sketch of {tuple(self.buckets.shape)} (images, tokens) '
                f'was applied to tokens of {tuple(tokens.shape)}'
            )
        batch, _, dims = tokens.shape
        index = self.buckets.unsqueeze(-1).expand(-1, -1, dims)
        with torch.autocast(tokens.device.type, enabled=False):
            signed = tokens.float() * self.signs.unsqueeze(-1)
            sums = signed.new_zeros(batch, self.size, dims)
            sums = sums.scatter_add(1, index, signed)
            factor = (self.signs * self.weights).unsqueeze(-1)
            return (sums.gather(1, index) * factor).to(tokens.dtype)

    def complement(self, tokens: torch.Tensor) -> torch.Tensor:
        """(I - P) x. Shapes and types as in :meth:`project`."""
        return tokens - self.project(tokens)


def make_sketch(
    buckets: torch.Tensor,
    signs: torch.Tensor,
    size: int,
    scale: float | None = None,
) -> CountSketch:
    """A sketch from given buckets and signs.

    Args:
        buckets: (B, N) int64 in [0, size).
        signs: (B, N) of -1 or +1.
        size: K, number of buckets; empty ones do no harm.
        scale: None for the exact projector, every bucket divided by its own
            number of tokens; a number for that constant instead (the
            released code uses 0.14 whatever the bucket holds).
    """
    signs = signs.float()
    if scale is not None:
        weights = torch.full_like(signs, scale)
    else:
        counts = torch.zeros(
            buckets.shape[0], size, device=buckets.device
        ).scatter_add(1, buckets, torch.ones_like(signs))
        weights = counts.gather(1, buckets).reciprocal()
    return CountSketch(buckets, signs, weights, size)


def sample_sketch(
    batch: int,
    num_tokens: int,
    size: int,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw buckets and signs for any number of tokens, on the device.

    The token list is cut into consecutive chunks of K tokens and every chunk
    meets the K buckets in an order of its own, so that bucket sizes differ by
    at most one. Signs are a random arrangement of as many +1 as -1 (one more
    of either, by a coin, when N is odd).

    Args:
        batch: B, number of sketches, drawn independently.
        num_tokens: N.
        size: K, number of buckets, 1 <= K <= N.
        device: Where to draw.
        generator: Source of randomness; the device's default if None.

    Returns:
        buckets (B, N) int64 and signs (B, N) float32.
    """
    if not 1 <= size <= num_tokens:
        raise InputError(
            f'a sketch of {num_tokens} tokens cannot have {size} buckets; '
            f'expected 1 to {num_tokens}'
        )

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(shape, device=device, generator=generator)

    chunks = -(-num_tokens // size)
    buckets = rand(batch, chunks, size).argsort(-1).flatten(1)
    buckets = buckets[:, :num_tokens].contiguous()
    rank = rand(batch, num_tokens).argsort(-1)
    positive = num_tokens // 2
    if num_tokens % 2:
        positive = positive + (rand(batch, 1) < 0.5)
    signs = (rank < positive).float().mul_(2).sub_(1)
    return buckets, signs
