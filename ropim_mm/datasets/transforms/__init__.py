"""Steps of a data pipeline."""

from .cropping import RandomResizedCrop
from .loading import LoadImage
from .masks import BlockMask, RandomCellMask
from .sketch import SampleSketch
from .two_views import TwoViews

__all__ = [
    'BlockMask',
    'LoadImage',
    'RandomCellMask',
    'RandomResizedCrop',
    'SampleSketch',
    'TwoViews',
]
