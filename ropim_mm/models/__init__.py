"""Encoders, necks, heads and algorithms."""

from .dense import MIMDet, SimpleFeaturePyramid, build_mimdet_mask_rcnn
from .heads import LinearClsHead
from .methods import (
    RMAE,
    ROPIM,
    ConMIM,
    ConMIMHead,
    ConMIMNeck,
    ConMIMViT,
    LoMaR,
    LoMaRHead,
    LoMaRNeck,
    LoMaRViT,
    RMAEHead,
    RMAENeck,
    RMAERegionBranch,
    RMAEViT,
    ROPIMHead,
    ROPIMNeck,
    ROPIMViT,
)
from .preprocessing import RegionDataPreprocessor

__all__ = [
    'RMAE',
    'RMAEHead',
    'RMAENeck',
    'RMAERegionBranch',
    'RMAEViT',
    'ConMIM',
    'ConMIMHead',
    'ConMIMNeck',
    'ConMIMViT',
    'ROPIM',
    'LinearClsHead',
    'LoMaR',
    'LoMaRHead',
    'LoMaRNeck',
    'LoMaRViT',
    'MIMDet',
    'ROPIMHead',
    'ROPIMNeck',
    'ROPIMViT',
    'RegionDataPreprocessor',
    'SimpleFeaturePyramid',
    'build_mimdet_mask_rcnn',
]
