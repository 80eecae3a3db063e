"""The methods, one file each, in the order data meets their parts."""

from .conmim import ConMIM, ConMIMHead, ConMIMNeck, ConMIMViT
from .ropim import ROPIM, ROPIMHead, ROPIMNeck, ROPIMViT

__all__ = [
    'ConMIM',
    'ConMIMHead',
    'ConMIMNeck',
    'ConMIMViT',
    'ROPIM',
    'ROPIMHead',
    'ROPIMNeck',
    'ROPIMViT',
]
