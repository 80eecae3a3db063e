"""RandomResizedCrop: the pixels of MMPretrain's, whatever the memory."""

import io

import numpy as np
import pytest
from mmpretrain.registry import TRANSFORMS
from PIL import Image

from ropim_mm.datasets.transforms import RandomResizedCrop
from ropim_mm.datasets.transforms.cropping import resample
from ropim_mm.datasets.transforms.loading import decode_image
from ropim_mm.errors import InputError

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


FILTERS = {
    'bilinear': Image.Resampling.BILINEAR,
    'bicubic': Image.Resampling.BICUBIC,
}


def by_pillow(img, shape, interpolation):
    """Rows first, then columns, as PyTorch does."""
    method, channels = FILTERS[interpolation], []
    for channel in np.moveaxis(np.atleast_3d(img), -1, 0):
        rows = Image.fromarray(channel).resize(
            (shape[1], channel.shape[0]), method
        )
        channels.append(np.asarray(rows.resize(shape[::-1], method)))
    return np.stack(channels, -1).reshape(*shape, *img.shape[2:])


@pytest.mark.parametrize('interpolation', FILTERS)
@pytest.mark.parametrize(
    'img',
    [decoded(), NOISE, NOISE[::2, 5:], NOISE[::-1], NOISE[:, :, 0], NOISE[:3]],
    ids=['decoded', 'contiguous', 'strided', 'upside', 'grey', 'flat'],
)
@pytest.mark.parametrize('shape', [(24, 32), (100, 60)], ids=str)
def test_torch_resamples_with_the_filter_of_pillow(img, interpolation, shape):
    ours = resample(img, shape, interpolation)
    expected = by_pillow(img, shape, interpolation)
    assert (ours.dtype, ours.shape) == (np.uint8, expected.shape)
    difference = np.abs(ours.astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.05


@pytest.mark.parametrize('interpolation', FILTERS)
def test_torch_draws_and_crops_as_mmpretrain(interpolation):
    crops = []
    for backend in ('pillow', 'torch'):
        step = RandomResizedCrop(
            (24, 32), (0.2, 1.0), backend=backend, interpolation=interpolation
        )
        np.random.seed(3)
        crops.append([step(dict(img=NOISE)) for _ in range(5)])
        crops[-1].append(np.random.rand())
    theirs, ours = crops
    assert theirs.pop() == ours.pop()
    for a, b in zip(theirs, ours, strict=True):
        assert a['img_shape'] == b['img_shape']
        difference = np.abs(a['img'].astype(int) - b['img'])
        assert difference.mean() < 0.2


def test_torch_has_two_filters():
    with pytest.raises(InputError, match="'area'; expected 'bilinear'"):
        RandomResizedCrop(8, backend='torch', interpolation='area')
