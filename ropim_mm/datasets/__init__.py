"""Datasets and the steps of their pipelines."""

from .transforms import LoadImage, SampleSketch
from .zip_images import ImageZip, ZipReader
from .zip_map import ImageZipMap

__all__ = ['ImageZip', 'ImageZipMap', 'LoadImage', 'SampleSketch', 'ZipReader']
