"""Parts of detectors that are built on one map of a plain encoder."""

from .pyramid import SimpleFeaturePyramid

__all__ = ['SimpleFeaturePyramid']
