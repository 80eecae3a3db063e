"""Random crops, taken from memory as it lies."""

from __future__ import annotations

import mmcv
import numpy as np
from mmpretrain.datasets.transforms import (
    RandomResizedCrop as PretrainRandomResizedCrop,
)

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
        """Crop and resize ``img``, (H, W, 3) uint8, and set ``img_shape``."""
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
        return results
