"""Steps of a data pipeline."""

from .cropping import RandomResizedCrop
from .loading import LoadImage
from .masks import BlockMask, RandomCellMask
from .regions import LoadRegions, MakeRegions, PackRegions, SelectRegions
from .sketch import SampleSketch
from .two_views import TwoViews

__all__ = [
    'BlockMask',
    'LoadImage',
    'LoadRegions',
    'MakeRegions',
    'PackRegions',
    'RandomCellMask',
    'RandomResizedCrop',
    'SampleSketch',
    'SelectRegions',
    'TwoViews',
]
