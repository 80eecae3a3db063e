"""Backbones and necks of detectors, made of plain encoders."""

from .mimdet import MIMDet
from .on_demand import build_mask_rcnn, build_mimdet_mask_rcnn
from .pyramid import SimpleFeaturePyramid

__all__ = [
    'MIMDet',
    'SimpleFeaturePyramid',
    'build_mask_rcnn',
    'build_mimdet_mask_rcnn',
]
