"""Encoders, necks, heads and algorithms."""

from .methods import ROPIM, ROPIMHead, ROPIMNeck, ROPIMViT

__all__ = ['ROPIM', 'ROPIMHead', 'ROPIMNeck', 'ROPIMViT']
