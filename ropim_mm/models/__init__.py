"""Encoders, necks, heads and algorithms."""

from .heads import LinearClsHead
from .methods import ROPIM, ROPIMHead, ROPIMNeck, ROPIMViT

__all__ = ['ROPIM', 'LinearClsHead', 'ROPIMHead', 'ROPIMNeck', 'ROPIMViT']
