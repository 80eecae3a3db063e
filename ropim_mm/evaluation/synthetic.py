"""Batches of random images, packed as a config's own loader packs them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import FUNCTIONS

from ropim_mm.datasets.label_maps import LabelMaps
from ropim_mm.datasets.transforms.regions import keep_maps
from ropim_mm.engine.distributed import LaunchError
from ropim_mm.models.layers.patches import grid_of, to_pair

from .benchmark_loader import training_pipeline

# Fields of models and transforms that hold the size of images in pixels.
_SIZES = ('img_size', 'input_size', 'scale', 'crop_size', 'size')
# Steps that read files, or make what others read from files.
_READERS = (
    'LoadImage',
    'LoadImageFromFile',
    'LoadRegions',
    'MakeRegions',
)
# Segments of a random label map along each side.
_SEGMENTS = 6


def image_size(cfg: Config) -> tuple[int, int]:
    """Height and width of the images that a config's model is made for."""
    return to_pair(_encoder(cfg).get('img_size', 224))


def _encoder(cfg: Config) -> dict:
    """The backbone, or the vision transformer within it (MIMDet)."""
    backbone = cfg.model.setdefault('backbone', {})
    return backbone.get('encoder', backbone)


def set_image_size(cfg: Config, side: int) -> None:
    """Make a config train on images of ``side`` x ``side`` pixels.

    Changes the fields of the model and of the training pipeline that hold the
    old size, and ``neck.num_patches``, which MMPretrain's decoders count.

    Args:
        cfg: Changed in place.
        side: In pixels.

    Raises:
        InputError: The side is not a multiple of the patch's.
    """
    old = image_size(cfg)
    encoder = _encoder(cfg)
    grid = grid_of(side, encoder.get('patch_size', 16))
    encoder['img_size'] = side
    neck = cfg.model.get('neck') or {}
    if 'num_patches' in neck:
        neck['num_patches'] = grid[0] * grid[1]
    _replace(cfg.model, old, side)
    if cfg.get('train_dataloader'):  # an encoder alone needs none
        _replace(training_pipeline(cfg), old, side)


def _replace(node: Any, old: tuple[int, int], side: int) -> None:
    values = node.values() if isinstance(node, dict) else node
    if isinstance(node, dict):
        for key in _SIZES:
            value = node.get(key)
            if value == old[0] == old[1]:
                node[key] = side
            elif isinstance(value, (list, tuple)) and tuple(value) == old:
                node[key] = (side, side)
    for value in list(values):
        if isinstance(value, (dict, list, tuple)):
            _replace(value, old, side)


def synthetic_batch(cfg: Config, batch_size: int) -> dict:
    """A batch of random images, packed by the config's own pipeline.

    Args:
        cfg: With ``train_dataloader``. The steps of its pipeline that read
            files are left out.
        batch_size: Number of images.

    Returns:
        What the config's loader gives: ``inputs``, uint8, one tensor or one a
        view, ``data_samples``, and whatever else the pipeline adds, masks or
        regions for instance.

    Raises:
        LaunchError: A step of the pipeline fails on an image and a label.
    """
    steps = training_pipeline(cfg)
    pipeline = Compose([s for s in steps if _name(s) not in _READERS])
    with_regions = any('Regions' in _name(s) for s in steps)
    size = image_size(cfg)
    classes = cfg.model.get('head', {}).get('num_classes') or 1
    rng = np.random.default_rng(0)
    samples = []
    for index in range(batch_size):
        sample = dict(
            img=rng.integers(256, size=(*size, 3), dtype=np.uint8),
            img_path='random',
            sample_idx=index,
            img_shape=size,
            ori_shape=size,
            gt_label=int(rng.integers(classes)),
        )
        if with_regions:
            keep_maps(sample, _label_maps(rng, size))
        try:
            samples.append(pipeline(sample))
        except (KeyError, AttributeError, FileNotFoundError) as error:
            raise LaunchError(
                f'{cfg.filename}: the pipeline of train_dataloader.dataset '
                'needs more than an image and a label '
                f'({type(error).__name__}: {error}); a step on random images '
                'cannot be measured'
            ) from error
    collate = dict(
        cfg.train_dataloader.get('collate_fn') or dict(type='default_collate')
    )
    function = FUNCTIONS.get(collate.pop('type'))
    return partial(function, **collate)(samples)


def _name(step: dict) -> str:
    return step['type'].rpartition('.')[2]


def _label_maps(rng: np.random.Generator, size: tuple[int, int]) -> LabelMaps:
    """One map of rectangles, about as many as a segmentation has segments."""
    rows, columns = (-(-side // _SEGMENTS) for side in size)
    labels = np.arange(_SEGMENTS**2).reshape(_SEGMENTS, _SEGMENTS)
    labels = labels.repeat(rows, axis=0).repeat(columns, axis=1)
    labels = rng.permutation(_SEGMENTS**2).astype(np.uint8)[labels]
    return LabelMaps.stacked(labels[None, : size[0], : size[1]])
