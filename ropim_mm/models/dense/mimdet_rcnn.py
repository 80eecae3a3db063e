"""Mask R-CNN around MIMDet.

Imported when a detector is built, since MMDetection and the operators of MMCV
come with it: see ``on_demand``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from mmdet.structures import DetDataSample

from .mask_rcnn import MaskRCNN


class Batch(NamedTuple):
    """Images with what is known of them."""

    images: torch.Tensor
    samples: list[DetDataSample] | None


class MIMDetMaskRCNN(MaskRCNN):
    """Mask R-CNN whose backbone is shown the data samples.

    MMDetection's detectors give their backbone nothing but the batch. MIMDet
    must know which tokens are padding (``img_shape``), and takes from the
    samples which tokens its encoder shall see, where they say so. Both come
    with the images to :meth:`extract_feat`, which is all that the base class
    does with them.

    Args:
        **kwargs: Of ``mmdet.MaskRCNN``, with its standard heads.
    """

    def extract_feat(
        self, batch_inputs: Batch | torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Levels of the neck, float32.

        Args:
            batch_inputs: Images with their samples; images alone, (B, C, H,
                W), are taken to have no padding.
        """
        if isinstance(batch_inputs, torch.Tensor):
            batch_inputs = Batch(batch_inputs, None)
        levels = self.neck(self.backbone(*batch_inputs))
        return tuple(level.float() for level in levels)

    def loss(
        self, batch_inputs: torch.Tensor, batch_data_samples: list
    ) -> dict:
        """As MMDetection's."""
        batch = Batch(batch_inputs, batch_data_samples)
        return super().loss(batch, batch_data_samples)

    def predict(
        self,
        batch_inputs: torch.Tensor,
        batch_data_samples: list,
        rescale: bool = True,
    ) -> list[DetDataSample]:
        """As MMDetection's."""
        batch = Batch(batch_inputs, batch_data_samples)
        return super().predict(batch, batch_data_samples, rescale)

    def _forward(
        self, batch_inputs: torch.Tensor, batch_data_samples: list
    ) -> tuple:
        batch = Batch(batch_inputs, batch_data_samples)
        return super()._forward(batch, batch_data_samples)
