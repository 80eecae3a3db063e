"""A feature pyramid from one map (ViTDet, Li et al., ECCV 2022, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import nn
from torch.nn import functional as F

from ropim_mm.errors import InputError
from ropim_mm.registry import MODELS


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Levels of 1/4, 1/2, 1 and 2 times the stride of an encoder's last map.

    A plain vision transformer has one scale. Its last map is enlarged by
    deconvolutions (two with a norm and GELU between, one), taken as it is and
    pooled; each goes through a 1x1 and a 3x3 convolution, with norms and no
    activations. There are no connections between the levels.

    Args:
        in_channels: Of the map; a multiple of 4.
        out_channels: Of all levels.
        num_outs: 4, or more: each further level halves the last one by
            taking every second value.
        norm_cfg: Of norms over channels; LayerNorm by default.
        init_cfg: Of MMEngine; by default PyTorch's initial values.

    Raises:
        InputError: If ``in_channels`` or ``num_outs`` is not as above.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        num_outs: int = 5,
        norm_cfg: dict | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if in_channels < 4 or in_channels % 4:
            raise InputError(
                f'neck.in_channels is {in_channels}; expected a multiple of '
                '4, the embed_dims of the encoder: the finest level has a '
                'quarter of them'
            )
        if num_outs < 4:
            raise InputError(
                f'neck.num_outs is {num_outs}; expected at least 4: the '
                'pyramid has four levels before the pooled ones'
            )
        self.num_outs = num_outs
        self.norm_cfg = norm_cfg or dict(type='mmpretrain.LN2d', eps=1e-6)
        half, quarter = in_channels // 2, in_channels // 4
        self.scales = nn.ModuleList(
            (
                nn.Sequential(
                    nn.ConvTranspose2d(in_channels, half, 2, stride=2),
                    self._norm(half),
                    nn.GELU(),
                    nn.ConvTranspose2d(half, quarter, 2, stride=2),
                ),
                nn.ConvTranspose2d(in_channels, half, 2, stride=2),
                nn.Identity(),
                # The last row and column of an odd grid are kept.
                nn.MaxPool2d(2, stride=2, ceil_mode=True),
            )
        )
        self.outputs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, out_channels, 1, bias=False),
                self._norm(out_channels),
                nn.Conv2d(
                    out_channels, out_channels, 3, padding=1, bias=False
                ),
                self._norm(out_channels),
            )
            for width in (quarter, half, in_channels, in_channels)
        )

    def _norm(self, channels: int) -> nn.Module:
        return build_norm_layer(self.norm_cfg, channels)[1]

    def forward(
        self, inputs: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Make the levels.

        Args:
            inputs: Maps of an encoder; the last one, (B, C, h, w), is used.

        Returns:
            ``num_outs`` tensors, finest first: (B, out_channels, 4h, 4w),
            (..., 2h, 2w), (..., h, w), then halves, rounded up.
        """
        x = inputs[-1]
        levels = [
            output(scale(x))
            for scale, output in zip(self.scales, self.outputs, strict=True)
        ]
        while len(levels) < self.num_outs:
            levels.append(F.max_pool2d(levels[-1], 1, stride=2))
        return tuple(levels)
