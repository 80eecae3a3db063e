"""Datasets and the steps of their pipelines."""

from .transforms import LoadImage, SampleSketch
from .zip_images import ImageZip, ZipReader

__all__ = ['ImageZip', 'LoadImage', 'SampleSketch', 'ZipReader']
