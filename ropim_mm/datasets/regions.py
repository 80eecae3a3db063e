"""Regions of R-MAE: binary masks out of label maps, and which to train on.

A *label map* gives every pixel of an image the number of the segment that it
belongs to; an image has one or several of them (Felzenszwalb-Huttenlocher
segmentations at several scales). Each label of each map is a *region*, a
binary mask. R-MAE (arXiv 2306.05411) trains on a fixed number R of them.

:func:`binary_regions` and :func:`select_regions` are the definition, on plain
arrays. A loader takes the shorter way of :class:`LabelMaps`, which gives the
same regions without making the masks that are not chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ropim_mm.errors import InputError
from ropim_mm.models.layers.patches import Size, to_pair

SAMPLE_TYPES = ('random', 'random_fg')

Randperm = Callable[[int], torch.Tensor]


def felzenszwalb_maps(
    image: np.ndarray,
    scales: Sequence[float],
    min_sizes: Sequence[int],
    sigma: float = 0.8,
) -> np.ndarray:
    """Felzenszwalb-Huttenlocher segmentations of an image (IJCV 2004).

    Args:
        image: (H, W, 3) uint8, red, green, blue.
        scales: One a map: a larger one gives larger segments.
        min_sizes: One a map: smaller segments are merged, in pixels.
        sigma: Of the Gaussian that smooths the image first, in pixels.

    Returns:
        (M, H, W) label maps; labels of a map count from 0. uint8 where they
        fit, else uint16 or uint32.

    Raises:
        InputError: The image is of another kind, or the settings do not pair.
    """
    # Slow to import, and only those who segment need it.
    from skimage.segmentation import felzenszwalb

    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(
            f'image is {image.dtype} {image.shape}; expected uint8 (H, W, 3)'
        )
    check_fh_settings(scales, min_sizes, sigma)
    maps = [
        felzenszwalb(image, scale=scale, sigma=sigma, min_size=min_size)
        for scale, min_size in zip(scales, min_sizes, strict=True)
    ]
    largest = max(int(each.max()) for each in maps)
    return np.stack(maps).astype(np.min_scalar_type(largest))


def check_fh_settings(
    scales: Sequence[float], min_sizes: Sequence[int], sigma: float
) -> None:
    """Refuse settings that :func:`felzenszwalb_maps` cannot work with.

    Raises:
        InputError: There are none, they do not pair, or one is negative or
            not finite.
    """
    if not len(scales) or len(scales) != len(min_sizes):
        raise InputError(
            f'{len(scales)} scales {list(scales)} and {len(min_sizes)} '
            f'min_sizes {list(min_sizes)}; expected one of each a map, and '
            'one map or more'
        )
    if not all(map(math.isfinite, (*scales, *min_sizes, sigma))):
        raise InputError(
            f'scales {list(scales)}, min_sizes {list(min_sizes)} and sigma '
            f'{sigma} must be finite numbers'
        )
    if min(*scales, *min_sizes, sigma) < 0:
        raise InputError(
            f'scales {list(scales)}, min_sizes {list(min_sizes)} and sigma '
            f'{sigma} must not be negative'
        )
    if any(size != int(size) for size in min_sizes):
        raise InputError(
            f'min_sizes {list(min_sizes)} are numbers of pixels; expected '
            'whole ones'
        )


def binary_regions(maps: np.ndarray) -> np.ndarray:
    """Every label of every map as a mask: maps in order, labels ascending.

    A map with a single label gives one region, all ones.

    Args:
        maps: (M, H, W) of integers.

    Returns:
        (n, H, W) bool.
    """
    maps = np.asarray(maps)
    labels = [np.unique(each) for each in maps]
    masks = np.empty((sum(map(len, labels)), *maps.shape[1:]), dtype=np.bool_)
    place = 0
    for each, found in zip(maps, labels, strict=True):
        np.equal(
            each,
            found[:, None, None],
            out=masks[place : place + len(found)],
        )
        place += len(found)
    return masks


def touched_patches(masks: np.ndarray, patch_size: Size) -> np.ndarray:
    """Which patches each mask has at least one pixel in.

    Args:
        masks: (n, H, W) bool; patches divide H and W.
        patch_size: Side or (height, width) of a patch, in pixels.

    Returns:
        (n, L) bool, patches row by row.

    Raises:
        InputError: The patch does not divide the masks.
    """
    n, height, width = masks.shape
    h, w = patch_grid((height, width), patch_size)
    cells = masks.reshape(n, h, height // h, w, width // w)
    return cells.any(axis=(2, 4)).reshape(n, h * w)


def patch_grid(shape: Sequence[int], patch_size: Size) -> tuple[int, int]:
    """Rows and columns of patches.

    Args:
        shape: (H, W) in pixels.
        patch_size: Side or (height, width) of a patch, in pixels.

    Raises:
        InputError: The patch does not divide the image.
    """
    (rows, columns), (height, width) = to_pair(patch_size), shape
    if height % rows or width % columns:
        raise InputError(
            f'regions of {height}x{width} pixels cannot be cut into patches '
            f'of {rows}x{columns}; crop images to a multiple of the patch size'
        )
    return height // rows, width // columns


def draw_regions(
    count: int,
    touched: np.ndarray | None,
    num_patches: int,
    num_regions: int,
    sample_type: str = 'random',
    filter_small_patches: bool = False,
    region_mask_ratio: float = 0.75,
    randperm: Randperm = torch.randperm,
) -> tuple[np.ndarray, torch.Tensor | None]:
    """Draw the regions to train on.

    In this order: for ``'random_fg'`` a permutation of the patches; then, if
    any candidate is left, one permutation of the candidates, or, where they
    are fewer than ``num_regions``, of their numbers repeated often enough.

    Args:
        count: n, how many regions there are.
        touched: (n, L) bool, the patches that each has a pixel in. May be
            None for ``'random'`` without the filter, which do not look at it.
        num_patches: L.
        num_regions: R, how many to draw.
        sample_type: ``'random'`` draws among all; ``'random_fg'`` among those
            that touch a patch which the region encoder will see, one of the
            first ``int(L * (1 - region_mask_ratio))`` of the permutation.
        filter_small_patches: Leave out what touches a single patch.
        region_mask_ratio: Share of patches hidden from the region encoder.
        randperm: Gives a random permutation of n numbers, int64 (n,); stands
            in for :func:`torch.randperm` where a draw is replayed.

    Returns:
        Indices int64 of the chosen regions, R of them or none where no
        candidate is left; and for ``'random_fg'`` the permutation of the
        patches, int64 (L,), else None.

    Raises:
        InputError: ``sample_type`` is another word.
    """
    check_sample_type(sample_type)
    shuffle_ids = None
    kept = np.ones(count, dtype=np.bool_)
    if filter_small_patches:
        kept &= touched.sum(axis=1) >= 2
    if sample_type == 'random_fg':
        shuffle_ids = randperm(num_patches)
        visible = int(num_patches * (1 - region_mask_ratio))
        kept &= touched[:, shuffle_ids[:visible].numpy()].any(axis=1)
    ids = kept.nonzero()[0]
    if not len(ids):
        return ids, shuffle_ids
    if len(ids) < num_regions:
        ids = np.tile(ids, -(-num_regions // len(ids)))
    order = randperm(len(ids)).numpy()
    return ids[order[:num_regions]], shuffle_ids


def check_sample_type(sample_type: str) -> None:
    """Refuse a way of sampling that does not exist.

    Raises:
        InputError: It is none of :data:`SAMPLE_TYPES`.
    """
    if sample_type not in SAMPLE_TYPES:
        raise InputError(
            f'sample_type is {sample_type!r}; expected one of {SAMPLE_TYPES}'
        )


def select_regions(
    masks: np.ndarray,
    num_regions: int,
    patch_size: Size,
    sample_type: str = 'random',
    filter_small_patches: bool = False,
    region_mask_ratio: float = 0.75,
    randperm: Randperm = torch.randperm,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Choose R of an image's regions; arguments as :func:`draw_regions`.

    Args:
        masks: (n, H, W) bool, from :func:`binary_regions`.
        num_regions: R.
        patch_size: Side or (height, width) of a patch, in pixels.
        sample_type: ``'random'`` or ``'random_fg'``.
        filter_small_patches: Leave out what touches a single patch.
        region_mask_ratio: Share of patches hidden from the region encoder.
        randperm: In place of :func:`torch.randperm`.

    Returns:
        Regions, bool (R, H, W), all False where no candidate is left; and
        for ``'random_fg'`` the permutation of the patches, int64 (L,), of
        which the first ones are visible, else None.

    Raises:
        InputError: The patch does not divide the masks, or ``sample_type``
            is another word.
    """
    touched = touched_patches(masks, patch_size)
    ids, shuffle_ids = draw_regions(
        len(masks),
        touched,
        touched.shape[1],
        num_regions,
        sample_type,
        filter_small_patches,
        region_mask_ratio,
        randperm,
    )
    if len(ids):
        chosen = masks[ids]
    else:
        chosen = np.zeros((num_regions, *masks.shape[1:]), dtype=np.bool_)
    return torch.from_numpy(chosen), shuffle_ids
