"""LoadImage: colours, orientations, and files that cannot be read."""

import io
import logging
import shutil
import struct

import numpy as np
import pytest
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmpretrain.datasets import CustomDataset
from PIL import Image, PngImagePlugin
from torch.utils.data import DataLoader

from ropim_mm.datasets import LoadImage
from ropim_mm.datasets.transforms.loading import (
    UnreadableImageError,
    decode_image,
)
from ropim_mm.errors import InputError
from ropim_mm.registry import TRANSFORMS

RGB = np.array(
    [[[250, 10, 20], [30, 240, 40], [50, 60, 230]]] * 2, dtype=np.uint8
)  # (2, 3, 3): two rows of red, green, blue


def encode(img: Image.Image, fmt: str = 'PNG', **kwargs) -> bytes:
    buffer = io.BytesIO()
    img.save(buffer, fmt, **kwargs)
    return buffer.getvalue()


def jpeg(size: int = 64) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3))
    return encode(Image.fromarray(noise.astype(np.uint8)), 'JPEG')


def test_pixels_are_blue_green_red():
    img = decode_image(encode(Image.fromarray(RGB)))
    assert img.dtype == np.uint8
    np.testing.assert_array_equal(img, RGB[..., ::-1])


@pytest.mark.parametrize('mode', ['L', '1', 'P', 'RGBA', 'LA'])
def test_every_mode_becomes_colour(mode):
    img = Image.fromarray(RGB).convert(mode)
    expected = np.asarray(img.convert('RGB'))[..., ::-1]
    np.testing.assert_array_equal(decode_image(encode(img)), expected)


def test_cmyk_jpeg_keeps_its_colour():
    flat = Image.new('RGB', (16, 16), (200, 30, 60)).convert('CMYK')
    img = decode_image(encode(flat, 'JPEG', quality=95))
    assert np.abs(img.astype(int) - [60, 30, 200]).max() <= 6


def test_sixteen_bits_keep_the_upper_eight():
    grey = np.array([[0, 255, 256], [32768, 65280, 65535]], dtype=np.uint16)
    img = decode_image(encode(Image.fromarray(grey)))
    np.testing.assert_array_equal(img[..., 0], [[0, 0, 1], [128, 255, 255]])
    np.testing.assert_array_equal(img[..., 0], img[..., 2])


def test_sixteen_bits_of_a_pgm_and_of_an_older_pillow(monkeypatch):
    grey = np.array([[0, 511, 65535]], dtype=np.uint16)
    pgm = b'P5 3 1 65535\n' + grey.astype('>u2').tobytes()
    assert Image.open(io.BytesIO(pgm)).mode == 'I'
    np.testing.assert_array_equal(decode_image(pgm)[..., 1], [[0, 1, 255]])
    png = encode(Image.fromarray(grey))
    monkeypatch.setitem(PngImagePlugin._MODES, (16, 0), ('I', 'I;16B'))
    assert Image.open(io.BytesIO(png)).mode == 'I'
    np.testing.assert_array_equal(decode_image(png)[..., 1], [[0, 1, 255]])


def test_twelve_bits_of_a_tiff_keep_the_upper_eight():
    # Two pixels, 0xFFF and 0x800; then width, height, bits, no compression,
    # black is 0, offset, rows a strip, bytes.
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1)]
    tags += [(273, 8), (278, 1), (279, 3)]
    data = b'II*\0' + struct.pack('<I', 12) + b'\xff\xf8\x00\0'
    data += struct.pack('<H', len(tags))
    data += b''.join(struct.pack('<HHII', t, 4, 1, v) for t, v in tags)
    img = decode_image(data + bytes(4))
    np.testing.assert_array_equal(img, [[[255] * 3, [128] * 3]])


@pytest.mark.parametrize(
    ('dtype', 'kind'),
    [(np.int32, 'signed or 32 bits'), (np.float32, 'floating point')],
)
def test_values_of_unknown_range_are_refused(dtype, kind):
    # Neither black, as the upper bits would be, nor guessed from 200.
    grey = Image.fromarray(np.full((2, 2), 200, dtype=dtype))
    with pytest.raises(InputError, match=f'{kind}.*expected.* 8 or 16 bits'):
        decode_image(encode(grey, 'TIFF'))


@pytest.mark.parametrize(
    ('orientation', 'upright'),
    [
        (1, RGB),
        (2, RGB[:, ::-1]),
        (3, RGB[::-1, ::-1]),
        (4, RGB[::-1]),
        (5, RGB.transpose(1, 0, 2)),
        (6, np.rot90(RGB, -1)),
        (7, RGB[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(RGB)),
    ],
)
def test_exif_orientation_is_applied(orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    img = decode_image(encode(Image.fromarray(RGB), exif=exif))
    np.testing.assert_array_equal(img, upright[..., ::-1])


BROKEN = {
    'empty.jpg': (b'', r'the file is empty \(0 bytes\)'),
    'text.jpg': (b'not an image', 'not an image in a format that Pillow'),
    'cut.jpg': (jpeg()[:900], 'truncated'),
    'cut.png': (encode(Image.effect_noise((64, 64), 90))[:900], 'truncated'),
}


@pytest.mark.parametrize('name', BROKEN)
def test_raise_names_the_file_and_the_reason(tmp_path, name):
    content, reason = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=reason) as error:
        LoadImage()(dict(img_path=str(path)))
    assert isinstance(error.value, InputError)
    assert str(path) in str(error.value)
    assert "set on_error='skip'" in str(error.value)


def test_a_missing_file_is_unreadable_too(tmp_path):
    path = tmp_path / 'gone.jpg'
    with pytest.raises(UnreadableImageError, match=r'gone\.jpg.*No such file'):
        LoadImage()(dict(img_path=str(path)))


def test_unknown_policy_is_refused():
    with pytest.raises(InputError, match="on_error is 'ignore'.*'skip'"):
        TRANSFORMS.build(dict(type='ropim_mm.LoadImage', on_error='ignore'))


@pytest.fixture
def folder(tmp_path):
    """Six images at two depths, of which two cannot be read."""
    for i in range(4):
        sub = tmp_path / ('a' if i % 2 else 'b/c')
        sub.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8), (i, i, i)).save(sub / f'{i}.png')
    (tmp_path / 'a' / 'empty.jpg').write_bytes(b'')
    (tmp_path / 'b' / 'cut.jpg').write_bytes(BROKEN['cut.jpg'][0])
    return tmp_path


def build(folder, on_error, **kwargs):
    return CustomDataset(
        data_root=str(folder),
        with_label=False,
        pipeline=[
            dict(type='ropim_mm.LoadImage', on_error=on_error),
            dict(type='PackInputs'),
        ],
        **kwargs,
    )


def test_skip_replaces_counts_and_logs(folder, caplog):
    dataset = build(folder, 'skip')
    assert len(dataset) == 6
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # epochs
            samples = [dataset[i] for i in range(6)]
    logger.removeHandler(caplog.handler)
    readable = {f'{i}.png' for i in range(4)}
    names = [s['data_samples'].img_path.rsplit('/')[-1] for s in samples]
    assert set(names) == readable
    skipped = dataset.pipeline.transforms[0].skipped.read()
    assert skipped.reads >= 4  # two an epoch; replacements may fail again
    assert len(skipped.files) == 2
    lines = [r.getMessage() for r in caplog.records]
    assert sum('empty.jpg: the file is empty' in x for x in lines) == 1
    assert sum('cut.jpg' in x and 'truncated' in x for x in lines) == 1


def test_raise_reaches_the_main_process(folder):
    loader = DataLoader(
        build(folder, 'raise'), 2, num_workers=1, collate_fn=pseudo_collate
    )
    with pytest.raises(UnreadableImageError) as error:
        list(loader)
    assert str(error.value).startswith('cannot read image')
    assert 'Traceback' not in str(error.value)


def test_evaluation_stops_even_under_skip(folder):
    dataset = build(folder, 'skip', test_mode=True)
    broken = [
        i
        for i in range(6)
        if dataset.get_data_info(i)['img_path'][-3:] == 'jpg'
    ]
    assert len(broken) == 2
    with pytest.raises(Exception, match='None'):
        dataset[broken[0]]


def test_a_folder_of_broken_images_ends_in_an_error(folder):
    shutil.rmtree(folder / 'b' / 'c')
    for i in (1, 3):
        (folder / 'a' / f'{i}.png').unlink()
    dataset = build(folder, 'skip', max_refetch=5)
    with pytest.raises(Exception, match='valid image'):
        dataset[0]


def test_real_photos_equal_opencv(shared):
    import cv2

    paths = sorted((shared / 'data' / 'imagenet-sample').rglob('*.JPEG'))[:5]
    for path in paths:
        img = LoadImage()(dict(img_path=str(path)))['img']
        other = cv2.imread(str(path))
        assert img.shape == other.shape
        # Two builds of libjpeg may round differently.
        assert np.abs(img.astype(int) - other).mean() < 0.5
