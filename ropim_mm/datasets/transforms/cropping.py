"""Random crops, taken from memory as it lies."""

from __future__ import annotations

from collections.abc import Sequence

import mmcv
import numpy as np
import torch
from mmpretrain.datasets.transforms import (
    RandomResizedCrop as PretrainRandomResizedCrop,
)

from ropim_mm.datasets.transforms.loading import DeferredImage
from ropim_mm.errors import InputError
from ropim_mm.registry import TRANSFORMS

_TORCH = 'torch'
# What PyTorch resamples as Pillow does, with an antialiasing filter.
_FILTERS = ('bilinear', 'bicubic')


@TRANSFORMS.register_module()
class RandomResizedCrop(PretrainRandomResizedCrop):
    """MMPretrain's crop, with a quicker way to resize.

    With ``backend='torch'`` a crop is resampled by PyTorch's kernel for
    bytes: Pillow's filters, which are antialiasing, in a fraction of its
    time. Of the values that crops of photographs become, 97 in 100 are equal
    to Pillow's and nearly all others differ by one level. Both round to bytes
    between the two axes; PyTorch resamples along rows first, Pillow along
    columns where that is less work. So some sharp edges are more than two
    levels apart, 6 to 15 values in 100,000 (``benchmark_loader.py --vs
    torchvision`` counts them).

    With MMPretrain's own backends, the results are MMPretrain's. There
    ``ropim_mm.LoadImage`` may give a view of a decoded image with the
    channels in reverse. Resizing by Pillow copies the crop of such a view
    pixel by pixel. Here the rows are copied as they lie in memory, and the
    channels are put in order after the crop became small; they do not mix.

    Arguments, keys and random numbers are MMPretrain's, with ``'torch'`` as
    a third ``backend``.

    Raises:
        InputError: ``backend='torch'`` with another ``interpolation`` than
            ``'bilinear'`` or ``'bicubic'``.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.backend == _TORCH and self.interpolation not in _FILTERS:
            raise InputError(
                f"RandomResizedCrop: backend='torch' with interpolation="
                f"{self.interpolation!r}; expected 'bilinear' or 'bicubic'. "
                "Others are for backend='pillow' or 'cv2'"
            )

    def transform(self, results: dict) -> dict | None:
        """Crop and resize ``img``, and ``gt_seg_map`` where there is one.

        None asks the dataset for another sample, where an image that was not
        decoded before is damaged and ``ropim_mm.LoadImage`` is to skip it.

        Raises:
            UnreadableImageError: It is damaged, and not to be skipped.
            InputError: Label maps are not in step with the image.
        """
        check_in_step(results)
        img = results['img']
        top, left, height, width = self.rand_crop_params(img)
        if isinstance(img, DeferredImage):
            crop = img.crop(top, left, height, width)
            if crop is None:
                return None
        else:
            crop = img[top : top + height, left : left + width]
        crop = self._resize(crop)
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

    def _resize(self, crop: np.ndarray) -> np.ndarray:
        if self.backend == _TORCH and crop.dtype == np.uint8:
            return resample(crop, self.scale, self.interpolation)
        backwards = crop.ndim == 3 and crop.strides[2] < 0
        if backwards:
            crop = crop[..., ::-1]
        crop = mmcv.imresize(
            np.ascontiguousarray(crop),
            tuple(self.scale[::-1]),
            interpolation=self.interpolation,
            backend=self.backend,
        )
        return np.ascontiguousarray(crop[..., ::-1]) if backwards else crop


def resample(
    image: np.ndarray, shape: Sequence[int], interpolation: str
) -> np.ndarray:
    """Resize with an antialiasing filter, by PyTorch.

    Args:
        image: (H, W) or (H, W, C) uint8.
        shape: Height and width of the result.
        interpolation: ``'bilinear'`` or ``'bicubic'``.

    Returns:
        uint8, (height, width) or (height, width, C), in one piece.
    """
    backwards = image.ndim == 3 and image.strides[2] < 0
    if backwards:
        image = image[..., ::-1]
    if min(image.strides) < 0 or not image.flags.writeable:
        image = image.copy()  # PyTorch takes neither
    pixels = torch.from_numpy(image.reshape(*image.shape[:2], -1))
    # The batch comes first: so PyTorch sees that colours lie side by side,
    # and leaves them there.
    small = torch.nn.functional.interpolate(
        pixels[None].permute(0, 3, 1, 2),
        size=tuple(shape),
        mode=interpolation,
        antialias=True,
    )[0].permute(1, 2, 0)
    if backwards:
        small = small.flip(2)
    small = small.contiguous().numpy()
    return small[..., 0] if image.ndim == 2 else small


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
    if maps is None or not isinstance(image, (np.ndarray, DeferredImage)):
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
