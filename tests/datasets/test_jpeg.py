"""Plain JPEGs by a decoder of their own: the same as by Pillow."""

import io

import numpy as np
import pytest
from mmpretrain.datasets import CustomDataset
from PIL import Image

from ropim_mm.datasets import jpeg
from ropim_mm.datasets.transforms import LoadImage, RandomResizedCrop
from ropim_mm.datasets.transforms.loading import (
    DeferredImage,
    UnreadableImageError,
    decode_image,
)

needs_simplejpeg = pytest.mark.skipif(
    jpeg.simplejpeg is None, reason='simplejpeg is not installed'
)


def scene(height=93, width=70, seed=0):
    """Smooth colours with sharp edges and noise, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 7, 3), np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.BICUBIC)
    noise = rng.integers(-30, 30, (height, width, 3))
    return (np.asarray(smooth).astype(int) + noise).clip(0, 255).astype('u1')


def encode(array, **kwargs):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, 'JPEG', **kwargs)
    return buffer.getvalue()


def by_pillow(data):
    with Image.open(io.BytesIO(data)) as img:
        return np.asarray(img.convert('RGB'))[..., ::-1]


PLAIN = {
    '4:4:4': encode(scene(), subsampling=0),
    '4:2:2': encode(scene(), subsampling=1),
    '4:2:0': encode(scene(), subsampling=2),
    'grey': encode(scene()[..., 0]),
    'rgb': encode(scene(), keep_rgb=True),
    'restarts': encode(scene(), restart_marker_rows=1),
    'comment': encode(scene(), comment=b'\xff\xd9 \xff\xda'),
}


@needs_simplejpeg
@pytest.mark.parametrize('name', PLAIN)
def test_plain_files_have_the_pixels_of_pillow(name):
    data = PLAIN[name]
    header = jpeg.read_header(data)
    assert (header.height, header.width) == (93, 70)
    assert jpeg.in_one_piece(data, header)
    np.testing.assert_array_equal(jpeg.decode(data), by_pillow(data))
    np.testing.assert_array_equal(decode_image(data), by_pillow(data))


@needs_simplejpeg
@pytest.mark.parametrize('name', PLAIN)
def test_upper_rows_are_those_of_the_whole(name):
    data = PLAIN[name]
    header, whole = jpeg.read_header(data), by_pillow(data)
    for rows in range(1, 94):
        upper = jpeg.decode_rows(data, header, rows)
        assert rows <= len(upper) <= rows + 8
        np.testing.assert_array_equal(upper[:rows], whole[:rows])


@needs_simplejpeg
def test_progressive_files_are_plain_but_not_in_one_piece():
    data = encode(scene(), progressive=True)
    assert not jpeg.in_one_piece(data, jpeg.read_header(data))
    np.testing.assert_array_equal(decode_image(data), by_pillow(data))


def with_app(data, marker, content):
    block = bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, 'big')
    return data[:2] + block + content + data[2:]


def not_plain():
    plain = PLAIN['4:2:0']
    frame = jpeg._FRAME
    place = plain.index(b'\xff\xc0') + 4
    twelve, flat, lossless = (bytearray(plain) for _ in range(3))
    frame.pack_into(twelve, place, 12, 93, 70, 3)
    frame.pack_into(flat, place, 8, 0, 70, 3)
    lossless[place - 3] = 0xC3
    buffer = io.BytesIO()
    Image.fromarray(scene()).convert('CMYK').save(buffer, 'JPEG')
    return {
        'png': b'\x89PNG\r\n\x1a\n' + bytes(40),
        'cmyk': buffer.getvalue(),
        '12 bits': bytes(twelve),
        'no height': bytes(flat),
        'lossless': bytes(lossless),
        'several images': with_app(plain, 0xE2, b'MPF\0' + bytes(20)),
        'cut in the header': plain[:100],
        'start only': plain[:3],
        'no markers': b'\xff\xd8\xff' + bytes(99),
    }


@pytest.mark.parametrize('name', not_plain())
def test_all_else_is_for_pillow(name):
    assert jpeg.read_header(not_plain()[name]) is None


@needs_simplejpeg
@pytest.mark.parametrize(
    'tail', [b'', b'\xff', b'\xff\xd9\x00', b'\xff\xc0\x00\x02\xff\xd9']
)
def test_files_with_another_end_are_decoded_as_wholes(tail):
    data = PLAIN['4:2:0'][:-2] + tail
    assert not jpeg.in_one_piece(data, jpeg.read_header(data))


@needs_simplejpeg
def test_huge_images_are_for_pillow(monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 93 * 70 - 1)
    assert jpeg.read_header(PLAIN['4:4:4']) is None
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)
    assert jpeg.read_header(PLAIN['4:4:4']) is not None


@needs_simplejpeg
@pytest.mark.parametrize('defer', [False, True])
@pytest.mark.parametrize('orientation', [1, 3, 6])
def test_orientations(tmp_path, orientation, defer):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / 'image.jpg'
    path.write_bytes(encode(scene(), exif=exif))
    img = LoadImage(defer=defer)(dict(img_path=str(path)))['img']
    assert isinstance(img, DeferredImage) is (defer and orientation == 1)
    turned = {1: 0, 3: 2, 6: -1}[orientation]
    expected = np.rot90(by_pillow(path.read_bytes()), turned)
    np.testing.assert_array_equal(np.asarray(img), expected)


def outcome(function, *args):
    try:
        return function(*args)
    except Exception:
        return None


@needs_simplejpeg
def test_damaged_files_are_taken_or_refused_as_by_pillow():
    """Bytes changed or lost anywhere, with and without the file's end."""
    rng = np.random.default_rng(0)
    refused = taken = 0
    for _ in range(1000):
        data = bytearray(PLAIN[str(rng.choice(list(PLAIN)))])
        place = int(rng.integers(2, len(data) - 2))
        if rng.random() < 0.5:
            data[place] = int(rng.integers(256))
        else:
            del data[place : place + int(rng.integers(1, 400))]
        data = bytes(data)
        expected, whole = outcome(by_pillow, data), outcome(decode_image, data)
        header = jpeg.read_header(data)
        rows = None
        if header is not None and jpeg.in_one_piece(data, header):
            rows = jpeg.decode_rows(data, header, header.height // 2)
        if expected is None:
            assert whole is None
            assert rows is None
            refused += 1
            continue
        taken += 1
        np.testing.assert_array_equal(whole, expected)
        if rows is not None:
            upper = header.height // 2
            np.testing.assert_array_equal(rows[:upper], expected[:upper])
    assert refused > 60
    assert taken > 300


def crop(**kwargs):
    kwargs = (
        dict(crop_ratio_range=(0.1, 0.5), interpolation='bicubic') | kwargs
    )
    return RandomResizedCrop((24, 32), backend='torch', **kwargs)


@needs_simplejpeg
@pytest.mark.parametrize('name', PLAIN)
def test_deferred_crops_are_those_of_the_whole(tmp_path, name):
    path = tmp_path / 'image.jpg'
    path.write_bytes(PLAIN[name])
    found = []
    for defer in (False, True):
        load = LoadImage(defer=defer)
        np.random.seed(0)
        found.append(
            [crop()(load(dict(img_path=str(path)))) for _ in range(20)]
        )
        found[-1].append(np.random.rand())
    whole, deferred = found
    assert whole.pop() == deferred.pop()
    for a, b in zip(whole, deferred, strict=True):
        np.testing.assert_array_equal(a['img'], b['img'])
        assert a['ori_shape'] == b['ori_shape'] == (93, 70)
        assert a['img_shape'] == b['img_shape'] == (24, 32, 3)


@needs_simplejpeg
def test_deferred_images_are_decoded_for_steps_that_look(tmp_path):
    path = tmp_path / 'image.jpg'
    path.write_bytes(PLAIN['4:2:0'])
    img = LoadImage(defer=True)(dict(img_path=str(path)))['img']
    expected = by_pillow(PLAIN['4:2:0'])
    assert (img.shape, img.ndim, img.dtype) == ((93, 70, 3), 3, np.uint8)
    np.testing.assert_array_equal(img[3:9, ::-1], expected[3:9, ::-1])
    np.testing.assert_array_equal(np.flip(img, 1), np.flip(expected, 1))


def test_without_simplejpeg_the_pixels_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(jpeg, 'simplejpeg', None)
    path = tmp_path / 'image.jpg'
    path.write_bytes(PLAIN['4:2:0'])
    img = LoadImage(defer=True)(dict(img_path=str(path)))['img']
    np.testing.assert_array_equal(img, by_pillow(PLAIN['4:2:0']))


@needs_simplejpeg
@pytest.mark.parametrize('on_error', ['raise', 'skip'])
def test_damage_found_in_the_crop_follows_the_policy(
    tmp_path, monkeypatch, on_error
):
    """Files that only the decoder finds fault with, one of two."""
    for name in ('good.jpg', 'torn.jpg'):
        (tmp_path / name).write_bytes(PLAIN['4:2:0'])
    data = bytearray(PLAIN['4:2:0'])
    table = data.index(b'\xff\xc4')
    data[table + 5 : table + 21] = bytes([255]) * 16  # no such code lengths
    (tmp_path / 'torn.jpg').write_bytes(data)
    assert jpeg.in_one_piece(bytes(data), jpeg.read_header(bytes(data)))
    dataset = CustomDataset(
        data_root=str(tmp_path),
        with_label=False,
        pipeline=[
            LoadImage(on_error, defer=True),
            crop(),
            dict(type='PackInputs'),
        ],
    )
    if on_error == 'raise':
        with pytest.raises(UnreadableImageError, match=r'torn\.jpg'):
            dataset[1]
        return
    sample = dataset[1]['data_samples']
    assert sample.img_path.endswith('good.jpg')
    assert dataset.pipeline.transforms[0].skipped.read().reads >= 1
