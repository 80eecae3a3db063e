"""The methods, one file each, in the order data meets their parts."""

from .conmim import ConMIM, ConMIMHead, ConMIMNeck, ConMIMViT
from .lomar import LoMaR, LoMaRHead, LoMaRNeck, LoMaRViT
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
    'LoMaR',
    'LoMaRHead',
    'LoMaRNeck',
    'LoMaRViT',
    'ROPIM',
    'ROPIMHead',
    'ROPIMNeck',
    'ROPIMViT',
]
