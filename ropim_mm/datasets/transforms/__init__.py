"""Steps of a data pipeline."""

from .cropping import RandomResizedCrop
from .loading import LoadImage
from .sketch import SampleSketch

__all__ = ['LoadImage', 'RandomResizedCrop', 'SampleSketch']
