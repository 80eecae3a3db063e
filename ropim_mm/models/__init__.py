"""Encoders, necks, heads and algorithms."""

from .heads import LinearClsHead
from .methods import (
    ROPIM,
    ConMIM,
    ConMIMHead,
    ConMIMNeck,
    ConMIMViT,
    ROPIMHead,
    ROPIMNeck,
    ROPIMViT,
)

__all__ = [
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
