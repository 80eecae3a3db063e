"""Mask R-CNN in mixed precision: only what is between images and predictions.

Imported when a detector is built, since MMDetection and the operators of MMCV
come with it: see ``on_demand``.
"""

from __future__ import annotations

import torch
from mmdet.models import MaskRCNN as _MaskRCNN
from torch import nn


def _in_float32(
    layer: nn.Module, inputs: tuple, output: torch.Tensor
) -> torch.Tensor:
    return output.float()


class MaskRCNN(_MaskRCNN):
    """MMDetection's Mask R-CNN with boxes, scores and losses in float32.

    Under autocast, MMDetection goes on in the type that the networks give.
    That is made for float16; in bfloat16, which has three bits less,

    * anchors take the type of the scores, regions of interest that of the
      maps: above 512 pixels their corners would be rounded to multiples of 4,
      and MMCV's RoIAlign has no kernel for it;
    * scores of proposals near 1 would differ by 1/256 or not at all, and
      their order decides which of them suppress others;
    * losses would be rounded to three digits, on CPUs, where autocast does
      not compute them in float32.

    Here maps leave the neck, and predictions their last layers, in float32.
    Networks run in bfloat16 before and in between. State dict, and numbers
    without autocast, are those of ``mmdet.MaskRCNN``.

    Args:
        **kwargs: Of ``mmdet.MaskRCNN``, with its standard heads.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        heads = self.roi_head
        for layer in (
            self.rpn_head.rpn_cls,
            self.rpn_head.rpn_reg,
            heads.bbox_head.fc_cls,
            heads.bbox_head.fc_reg,
            heads.mask_head.conv_logits,
        ):
            layer.register_forward_hook(_in_float32)

    def extract_feat(
        self, batch_inputs: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Maps of normalised images (B, 3, H, W): float32, finest first."""
        return tuple(x.float() for x in super().extract_feat(batch_inputs))
