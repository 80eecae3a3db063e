"""The methods, one file each, in the order data meets their parts."""

from .conmim import ConMIM, ConMIMHead, ConMIMNeck, ConMIMViT
from .rmae import RMAE, RMAEHead, RMAENeck, RMAERegionBranch, RMAEViT
from .ropim import ROPIM, ROPIMHead, ROPIMNeck, ROPIMViT

__all__ = [
    'ConMIM',
    'ConMIMHead',
    'ConMIMNeck',
    'ConMIMViT',
    'RMAE',
    'RMAEHead',
    'RMAENeck',
    'RMAERegionBranch',
    'RMAEViT',
    'ROPIM',
    'ROPIMHead',
    'ROPIMNeck',
    'ROPIMViT',
]
