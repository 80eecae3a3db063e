"""Random crops, taken from memory as it lies."""

from __future__ import annotations

from collections.abc import Sequence

import mmcv
import numpy as np
from mmpretrain.datasets.transforms import (
    RandomResizedCrop as PretrainRandomResizedCrop,
)

from ropim_mm.errors import InputError
from ropim_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class RandomResizedCrop(PretrainRandomResizedCrop):
    """MMPretrain's crop, faster for the same pixels.

    ``ropim_mm.LoadImage`` gives a view of a decoded image with the channels
    in reverse. Resizing by Pillow copies the crop of such a view pixel by
    pixel. Here the rows are copied as they lie in memory, and the channels
    are put in order after the crop became small; they do not mix.

    Arguments, keys, random numbers and results are MMPretrain's.
    """

    def transform(self, results: dict) -> dict:
        """Crop and resize ``img``, and ``gt_seg_map`` where there is one.

        Raises:
            InputError: Label maps are not in step with the image.
        """
        check_in_step(results)
        img = results['img']
        top, left, height, width = self.rand_crop_params(img)
        crop = img[top : top + height, left : left + width]
        backwards = img.ndim == 3 and img.strides[2] < 0
        if backwards:
            crop = crop[..., ::-1]
        crop = mmcv.imresize(
            np.ascontiguousarray(crop),
            tuple(self.scale[::-1]),
            interpolation=self.interpolation,
            backend=self.backend,
        )
        if backwards:
            crop = np.ascontiguousarray(crop[..., ::-1])
        results['img'] = crop
        results['img_shape'] = crop.shape
        if results.get('gt_seg_map') is not None:
            results['gt_seg_map'] = resize_labels(
                results['gt_seg_map'][top : top + height, left : left + width],
                self.scale,
            )
            if 'region_step' in results:
                record_step(results)
        return results


def record_step(results: dict) -> None:
    """Note that ``gt_seg_map`` is in step with ``img`` as it is now."""
    results['region_step'] = (results.get('img_shape'), results['gt_seg_map'])


def check_in_step(results: dict) -> None:
    """Refuse a ``gt_seg_map`` that was not cropped or resized as ``img``.

    A step that crops or resizes gives a new ``img_shape``, whatever the size.
    If it leaves the ``gt_seg_map`` that :func:`record_step` saw, it has moved
    the image alone. Looks at the objects and not at their values.

    Raises:
        InputError: The sizes differ, or such a step came between.
    """
    maps, image = results.get('gt_seg_map'), results.get('img')
    if maps is None or not isinstance(image, np.ndarray):
        return
    advice = (
        'A step has cropped or resized the image and not the maps. Use steps '
        "that do both: ropim_mm.RandomResizedCrop, or MMCV's Resize, "
        'CenterCrop and RandomFlip'
    )
    if maps.shape[:2] != image.shape[:2]:
        raise InputError(
            f'{results.get("img_path")}: the image is '
            f'{image.shape[0]}x{image.shape[1]} (height x width) and '
            f'gt_seg_map, its label maps, {maps.shape[0]}x{maps.shape[1]}. '
            f'{advice}'
        )
    shape, seen = results.get('region_step', (None, None))
    if maps is seen and results.get('img_shape') is not shape:
        raise InputError(
            f'{results.get("img_path")}: the image has been cropped or '
            'resized since gt_seg_map, its label maps, was loaded or '
            f'cropped. {advice}'
        )


def resize_labels(labels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resize to the nearest label.

    Args:
        labels: (H, W) or (H, W, K).
        shape: Height and width of the result.

    Returns:
        The same type, (height, width) or (height, width, K). The label at
        row i is that of row ``floor((i + 1/2) * H / height)``, and so on.
    """
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for old, new in zip(labels.shape, shape, strict=False)
    )
    # Rows first: they are copied as wholes.
    return labels[rows].take(columns, axis=1)
