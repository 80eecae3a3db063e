"""Steps of a data pipeline."""

from .loading import LoadImage
from .sketch import SampleSketch

__all__ = ['LoadImage', 'SampleSketch']
