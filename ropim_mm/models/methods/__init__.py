"""The methods, one file each, in the order data meets their parts."""

from .ropim import ROPIM, ROPIMHead, ROPIMNeck, ROPIMViT

__all__ = ['ROPIM', 'ROPIMHead', 'ROPIMNeck', 'ROPIMViT']
