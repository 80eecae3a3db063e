"""Encoders, necks, heads and algorithms."""

from .heads import LinearClsHead
from .methods import (
    RMAE,
    ROPIM,
    ConMIM,
    ConMIMHead,
    ConMIMNeck,
    ConMIMViT,
    RMAEHead,
    RMAENeck,
    RMAERegionBranch,
    RMAEViT,
    ROPIMHead,
    ROPIMNeck,
    ROPIMViT,
)

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
    'ROPIMHead',
    'ROPIMNeck',
    'ROPIMViT',
]
