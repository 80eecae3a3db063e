"""RandomResizedCrop: the pixels of MMPretrain's, whatever the memory."""

import io

import numpy as np
import pytest
from mmpretrain.registry import TRANSFORMS
from PIL import Image

from ropim_mm.datasets.transforms.loading import decode_image

NOISE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)


def decoded():
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, 'PNG')
    img = decode_image(buffer.getvalue())
    assert img.strides[2] < 0  # the case that the class is for
    return img


@pytest.mark.parametrize('backend', ['pillow', 'cv2'])
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@pytest.mark.parametrize(
    'img',
    [decoded(), NOISE, NOISE[::2, 5:], NOISE[:, :, 0], NOISE[:3]],
    ids=['decoded', 'contiguous', 'strided', 'grey', 'central'],
)
def test_pixels_and_draws_are_mmpretrains(img, backend, interpolation):
    crops = []
    for scope in ('mmpretrain', 'ropim_mm'):
        step = TRANSFORMS.build(
            dict(
                type=f'{scope}.RandomResizedCrop',
                scale=(24, 32),
                crop_ratio_range=(0.2, 1.0),
                backend=backend,
                interpolation=interpolation,
            )
        )
        np.random.seed(3)
        crops.append([step(dict(img=img.view())) for _ in range(5)])
        crops[-1].append(np.random.rand())
    theirs, ours = crops
    assert theirs.pop() == ours.pop()
    for a, b in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(a['img'], b['img'])
        assert a['img_shape'] == b['img_shape']
        assert b['img'].flags.c_contiguous
    assert any((a['img'] != theirs[0]['img']).any() for a in theirs) or (
        len(img) == 3
    )
