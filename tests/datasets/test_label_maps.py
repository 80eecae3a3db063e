"""Files of label maps: exact, small, and damaged."""

import io
import struct
import time
import zlib
from functools import partial

import numpy as np
import pytest
from PIL import Image

from ropim_mm.datasets.label_maps import (
    NO_REGION,
    LabelMaps,
    decode_label_maps,
    encode_label_maps,
)
from ropim_mm.datasets.regions import binary_regions, felzenszwalb_maps
from ropim_mm.datasets.transforms.loading import decode_image
from ropim_mm.errors import InputError

SETTINGS = dict(scales=[500], min_sizes=[500], sigma=0.8)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def png(image: Image.Image, **kwargs) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, 'PNG', **kwargs)
    return buffer.getvalue()


def random_maps(labels: list[int], shape=(9, 7), dtype=np.uint8):
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(0, n, shape) for n in labels]).astype(dtype)


@pytest.mark.parametrize(
    'maps, size',
    [
        (random_maps([1]), 1),
        (random_maps([5, 3, 2]), 1),
        (random_maps([256], (40, 30)), 1),
        (random_maps([16, 16, 16], (40, 30)), 2),
        (random_maps([1000], (40, 50), np.uint16), 2),
        (np.arange(70000, dtype=np.uint32).reshape(1, 700, 100), 3),
        (random_maps([3, 2], (1, 1)), 1),
    ],
    ids='one_label few full_byte overlay_wide wide very_wide pixel'.split(),
)
def test_files_are_lossless(maps, size):
    data = encode_label_maps(LabelMaps.from_maps(maps, SETTINGS))
    found = decode_label_maps(data)
    np.testing.assert_array_equal(found.maps, maps)
    assert found.shape == maps.shape[1:]
    assert found.num_maps == len(maps)
    assert found.settings == SETTINGS
    assert found.index.dtype.itemsize == (4 if size == 3 else size)
    # A PNG that others can show.
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.size == maps.shape[:0:-1]


def test_labels_may_have_gaps():
    maps = random_maps([3, 4]) * 60 + 7
    found = decode_label_maps(encode_label_maps(LabelMaps.from_maps(maps)))
    np.testing.assert_array_equal(found.maps, maps)
    assert found.maps.dtype == np.uint8


def test_layers_and_overlays_mean_the_same():
    maps = random_maps([5, 3, 2], (16, 24))
    masks = binary_regions(maps)
    for found in (LabelMaps.from_maps(maps), LabelMaps.stacked(maps)):
        np.testing.assert_array_equal(found.maps, maps)
        assert found.num_regions == len(masks) == 10
        np.testing.assert_array_equal(found.masks(range(10)), masks)
        some = [7, 0, 7, 9]
        np.testing.assert_array_equal(found.masks(some), masks[some])


def test_pixels_may_belong_to_no_region():
    index = np.array([[0, 1], [2, 1]], dtype=np.uint8)
    table = np.array([[NO_REGION, 0, 4], [1, NO_REGION, 1]], dtype=np.int32)
    maps = LabelMaps(index, (table,))
    assert maps.num_regions == 3
    expected = [index == 1, index == 2, index != 1]
    np.testing.assert_array_equal(maps.masks(range(3)), expected)
    assert maps.maps.tolist() == [[[-1, 0], [4, 0]], [[1, -1], [1, -1]]]


@pytest.mark.parametrize('order', ['C', 'F'])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int64])
def test_released_arrays_are_read(order, dtype):
    maps = np.asarray(random_maps([5, 3], dtype=dtype), order=order)
    np.testing.assert_array_equal(decode_label_maps(npy(maps)).maps, maps)
    single = decode_label_maps(npy(maps[0]))
    np.testing.assert_array_equal(single.maps, maps[:1])


def test_other_pngs_are_one_map():
    values = random_maps([9])[0]
    for image in (
        Image.fromarray(values),
        Image.fromarray(values.astype(np.uint16) * 300),
        Image.fromarray(values).convert('P'),
        Image.fromarray(values > 3),
    ):
        found = decode_label_maps(png(image))
        np.testing.assert_array_equal(found.maps[0], np.asarray(image))


def chunk(name: bytes, data: bytes) -> bytes:
    check = struct.pack('>I', zlib.crc32(name + data))
    return struct.pack('>I', len(data)) + name + data + check


def test_damage_is_named():
    maps = random_maps([5, 3], (30, 40))
    data = encode_label_maps(LabelMaps.from_maps(maps))
    assert data[37:41] == b'rgNS'
    for kept in (0, 5, 8, 30, 60, len(data) // 2, len(data) - 1):
        with pytest.raises(InputError, match='empty|truncated|neither PNG'):
            decode_label_maps(data[:kept])
    for place in range(8, len(data) - 12, 7):
        flipped = bytearray(data)
        flipped[place] ^= 0x10
        with pytest.raises(InputError, match='damaged|truncated'):
            decode_label_maps(bytes(flipped))
    with pytest.raises(InputError, match=r'neither PNG nor .npy \(5 bytes'):
        decode_label_maps(b'hello')
    with pytest.raises(InputError, match='not a complete .npy'):
        decode_label_maps(npy(maps)[:-1])
    with pytest.raises(InputError, match='not a complete .npy'):
        decode_label_maps(npy(np.array([{}], dtype=object)))
    with pytest.raises(InputError, match=r'float32 .*expected integers'):
        decode_label_maps(npy(maps.astype(np.float32)))
    with pytest.raises(InputError, match='label -1 is negative'):
        decode_label_maps(npy(maps.astype(np.int8) - 1))
    with pytest.raises(InputError, match=r'\(2, 3, 4, 5\); expected'):
        decode_label_maps(npy(np.zeros((2, 3, 4, 5), np.uint8)))
    with pytest.raises(InputError, match='mode RGB has no labels'):
        decode_label_maps(png(Image.new('RGB', (4, 4))))


def test_a_file_with_other_content_under_good_checksums():
    maps = random_maps([5, 3], (30, 40))
    data = encode_label_maps(LabelMaps.from_maps(maps))
    header = data[8:33]
    table = data[33 : data.index(b'IDAT') - 4]
    end = chunk(b'IEND', b'')

    def read(pixels: bytes, table=table):
        parts = (data[:8], header, table, chunk(b'IDAT', pixels), end)
        return decode_label_maps(b''.join(parts))

    rows = np.zeros((30, 41), np.uint8)
    assert read(zlib.compress(rows.tobytes())).num_maps == 2
    for pixels in (rows[:-1].tobytes(), rows.tobytes() + b'\0'):
        with pytest.raises(InputError, match='not 1230 bytes of pixels'):
            read(zlib.compress(pixels))
    rows[3, 0] = 2  # a row filter
    with pytest.raises(InputError, match='written this file anew'):
        read(zlib.compress(rows.tobytes()))
    rows[3, 0], rows[3, 5] = 0, 15  # 15 combinations, from 0
    with pytest.raises(InputError, match='do not fit the table'):
        read(zlib.compress(rows.tobytes()))
    with pytest.raises(InputError, match='damaged'):
        read(b'no deflated data')
    facts = zlib.compress(b'{"maps": 2, "values": 9}\n')
    with pytest.raises(InputError, match='damaged, or not written'):
        read(zlib.compress(rows.tobytes()), chunk(b'rgNS', facts))


def test_what_cannot_be_maps_is_refused():
    for bad in (np.zeros((2, 0, 3), np.uint8), np.zeros((3, 3), np.uint8)):
        with pytest.raises(InputError, match='expected integers'):
            LabelMaps.from_maps(bad)
    with pytest.raises(InputError, match='negative'):
        LabelMaps.from_maps(np.full((1, 2, 2), -3))


def best(function, times: int = 7) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@pytest.mark.slow
def test_real_photos_take_little_room_and_time(shared):
    photos = sorted((shared / 'data/imagenet-sample').rglob('*.JPEG'))[::50]
    raw, packed = np.zeros(2), np.zeros(2)
    reading, decoding = np.zeros(2), 0.0
    for photo in photos:
        jpeg = photo.read_bytes()
        image = np.ascontiguousarray(decode_image(jpeg)[..., ::-1])
        three = felzenszwalb_maps(image, (500, 1000, 1500), (500, 1000, 1500))
        decoding += best(partial(decode_image, jpeg))
        for i, maps in enumerate((three, three[1:2])):  # COCO, ImageNet
            data = encode_label_maps(LabelMaps.from_maps(maps, SETTINGS))
            np.testing.assert_array_equal(decode_label_maps(data).maps, maps)
            raw[i] += maps.size
            packed[i] += len(data)
            reading[i] += best(partial(decode_label_maps, data))
    assert (raw / packed > 64).all()  # what PNG alone reaches
    # About a tenth; the machine may be busy.
    assert (reading < 0.5 * decoding).all()
