"""Detectors by name, imported when one is built.

MMDetection and MMCV's operators take seconds to import and need not be there:
pretraining and classification do without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ropim_mm import stack
from ropim_mm.registry import MODELS

if TYPE_CHECKING:
    from .mask_rcnn import MaskRCNN
    from .mimdet_rcnn import MIMDetMaskRCNN


@MODELS.register_module(name='MaskRCNN')
def build_mask_rcnn(**kwargs) -> MaskRCNN:
    """A :class:`~ropim_mm.models.dense.mask_rcnn.MaskRCNN`.

    Args:
        **kwargs: Of ``mmdet.MaskRCNN``.

    Raises:
        StackError: MMDetection cannot be imported.
    """
    stack.require_detection()
    from .mask_rcnn import MaskRCNN

    return MaskRCNN(**kwargs)


@MODELS.register_module(name='MIMDetMaskRCNN')
def build_mimdet_mask_rcnn(**kwargs) -> MIMDetMaskRCNN:
    """A :class:`~ropim_mm.models.dense.mimdet_rcnn.MIMDetMaskRCNN`.

    Args:
        **kwargs: Of ``mmdet.MaskRCNN``.

    Raises:
        StackError: MMDetection cannot be imported.
    """
    stack.require_detection()
    from .mimdet_rcnn import MIMDetMaskRCNN

    return MIMDetMaskRCNN(**kwargs)
