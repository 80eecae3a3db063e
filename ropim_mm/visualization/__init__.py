"""Pictures as arrays; the tools write them to files."""

from .gallery import Gallery, find_images, load_model, read_image
from .reconstruction import (
    EXPLAINERS,
    Explainer,
    Panel,
    ROPIMExplainer,
    explain,
    fit_image,
    normalize,
    unnormalize,
)
from .sheets import Cell, Row, draw_sheet

__all__ = [
    'EXPLAINERS',
    'Cell',
    'Explainer',
    'Gallery',
    'Panel',
    'ROPIMExplainer',
    'Row',
    'draw_sheet',
    'explain',
    'find_images',
    'fit_image',
    'load_model',
    'normalize',
    'read_image',
    'unnormalize',
]
