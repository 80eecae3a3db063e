"""Encoders, necks, heads and algorithms."""

from .dense import SimpleFeaturePyramid
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
    'ROPIMHead',
    'ROPIMNeck',
    'ROPIMViT',
    'RegionDataPreprocessor',
    'SimpleFeaturePyramid',
]
