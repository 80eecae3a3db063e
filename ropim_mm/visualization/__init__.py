"""Pictures as arrays; the tools write them to files."""

from .gallery import Gallery, find_images, load_model, read_image
from .reconstruction import (
    EXPLAINERS,
    ConMIMExplainer,
    Details,
    Explainer,
    Explanation,
    LoMaRExplainer,
    Panel,
    RMAEExplainer,
    ROPIMExplainer,
    explain,
    fit_image,
    normalize,
    unnormalize,
)
from .sheets import Cell, Row, draw_sheet, stack_sheets

__all__ = [
    'EXPLAINERS',
    'Cell',
    'ConMIMExplainer',
    'Details',
    'Explainer',
    'Explanation',
    'Gallery',
    'LoMaRExplainer',
    'Panel',
    'RMAEExplainer',
    'ROPIMExplainer',
    'Row',
    'draw_sheet',
    'explain',
    'find_images',
    'fit_image',
    'load_model',
    'normalize',
    'read_image',
    'stack_sheets',
    'unnormalize',
]
