"""Datasets and the steps of their pipelines."""

from .region_datasets import CocoRegionDataset, RegionDataset, RegionZip
from .transforms import LoadImage, SampleSketch
from .zip_images import ImageZip, ZipReader
from .zip_map import ImageZipMap

__all__ = [
    'CocoRegionDataset',
    'ImageZip',
    'ImageZipMap',
    'LoadImage',
    'RegionDataset',
    'RegionZip',
    'SampleSketch',
    'ZipReader',
]
