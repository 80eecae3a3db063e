"""The transformer block of all encoders and decoders here.

Pre-norm, with LayerScale and stochastic depth where asked for. Parameter
names and layouts are MMPretrain's.
"""

from __future__ import annotations

import torch
from mmpretrain.models.utils import build_norm_layer
from torch import nn


class FeedForward(nn.Module):
    """Two linear layers with GELU between, names as MMCV's ``FFN``."""

    def __init__(
        self, embed_dims: int, hidden_dims: int, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(
                nn.Linear(embed_dims, hidden_dims),
                nn.GELU(),
                nn.Dropout(drop_rate),
            ),
            nn.Linear(hidden_dims, embed_dims),
            nn.Dropout(drop_rate),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, D) -> (B, N, D)"""
        return self.layers(x)


def add_branch(
    x: torch.Tensor,
    branch: torch.Tensor,
    gamma: torch.Tensor | None,
    drop_path: float,
) -> torch.Tensor:
    """x + gamma * branch, the branch left out for a random share of images.

    LayerScale (Touvron et al., 2021) and stochastic depth (Huang et al.,
    2016) in one pass over the tokens: what multiplies the branch is a small
    tensor. Kept branches are divided by the probability of being kept.

    Args:
        x, branch: (B, N, D).
        gamma: (D,), or None for 1.
        drop_path: Probability of leaving a branch out.
    """
    factor = gamma
    if drop_path:
        keep = 1.0 - drop_path
        drawn = torch.empty(x.shape[0], 1, 1, device=x.device)
        drawn = drawn.bernoulli_(keep).div_(keep)
        factor = drawn if gamma is None else drawn * gamma
    if factor is None:
        return x + branch
    return torch.addcmul(x, branch, factor)


class Block(nn.Module):
    """x + gamma_1 attention(ln1 x), then x + gamma_2 mlp(ln2 x).

    Args:
        embed_dims: D, width of a token.
        attn: Mixes tokens: (B, N, D), context -> (B, N, D).
        feedforward_channels: Hidden width of the MLP.
        norm_cfg: Config of the normalisation layers; default LayerNorm with
            eps 1e-6.
        layer_scale_init_value: Start of gamma_1 and gamma_2; 0 for none.
        drop_path_rate: Stochastic depth of this block.
        drop_rate: Dropout of the MLP.
    """

    def __init__(
        self,
        embed_dims: int,
        attn: nn.Module,
        feedforward_channels: int,
        norm_cfg: dict | None = None,
        layer_scale_init_value: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        norm_cfg = norm_cfg or dict(type='LN', eps=1e-6)
        self.drop_path_rate = drop_path_rate
        self.ln1 = build_norm_layer(norm_cfg, embed_dims)
        self.attn = attn
        self.ln2 = build_norm_layer(norm_cfg, embed_dims)
        self.ffn = FeedForward(embed_dims, feedforward_channels, drop_rate)
        self.gamma_1 = self.gamma_2 = None
        if layer_scale_init_value:
            start = torch.full((embed_dims,), float(layer_scale_init_value))
            self.gamma_1 = nn.Parameter(start)
            self.gamma_2 = nn.Parameter(start.clone())

    def forward(self, x: torch.Tensor, *context) -> torch.Tensor:
        """(B, N, D) -> (B, N, D); ``context`` goes to the attention."""
        return self.finish(x, self.attn(self.ln1(x), *context))

    def on_grid(
        self,
        x: torch.Tensor,
        grid: tuple[int, int],
        window: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """As :meth:`forward`, for (B, h * w, D) without a class token.

        Args:
            x: (B, h * w, D), row-major.
            grid: (h, w).
            window: See :meth:`SelfAttention.on_grid`.
        """
        return self.finish(x, self.attn.on_grid(self.ln1(x), grid, window))

    def finish(self, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """What follows the attention, token by token.

        After the last attention only some tokens may be wanted: both
        arguments then hold only those.

        Args:
            x: (B, N, D), input of the block.
            mixed: (B, N, D), output of its attention.

        Returns:
            (B, N, D)
        """
        drop_path = self.drop_path_rate if self.training else 0.0
        x = add_branch(x, mixed, self.gamma_1, drop_path)
        return add_branch(x, self.ffn(self.ln2(x)), self.gamma_2, drop_path)
