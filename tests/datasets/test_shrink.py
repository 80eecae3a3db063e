"""Images made smaller once: pixels, names, and what verification finds."""

import io
import json
import multiprocessing
import os
import random
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from ropim_mm.datasets.conversion import UnreadableSourceError
from ropim_mm.datasets.shrink import (
    ShrinkSettings,
    compare_crops,
    shrink_images,
    shrunk_shape,
    verify_shrunk,
)
from ropim_mm.datasets.transforms.loading import decode_image
from ropim_mm.errors import InputError

SETTINGS = ShrinkSettings(24, 80)
FORK = multiprocessing.get_context('fork')


def picture(seed: int, height: int = 60, width: int = 48) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height))


@pytest.fixture
def images(tmp_path) -> Path:
    """12 images in 3 folders, of several formats and sizes."""
    root = tmp_path / 'images'
    for i in range(12):
        path = root / f'class{i % 3}/{i}{(".png", ".JPEG", ".bmp")[i % 3]}'
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i, 60 + i).save(path)
    return root


def names(folder: Path) -> list[str]:
    return sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob('*')
        if p.is_file()
    )


def expected(data: bytes, settings: ShrinkSettings) -> bytes:
    """What Pillow makes of an image, without our comment."""
    image = Image.fromarray(
        np.ascontiguousarray(decode_image(data)[..., ::-1])
    )
    shape = shrunk_shape(image.size[::-1], settings.short_side)
    if shape != image.size[::-1]:
        image = image.resize(shape[::-1], Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(
        file,
        'JPEG',
        quality=settings.quality,
        subsampling=settings.subsampling,
    )
    return file.getvalue()


def check(images: Path, out: Path, settings: ShrinkSettings = SETTINGS):
    """All smaller images are there and right, and nothing else is."""
    assert names(out) == sorted([*names(images), 'shrink_images.json'])
    for name in names(images):
        found = (out / name).read_bytes()
        wanted = expected((images / name).read_bytes(), settings)
        np.testing.assert_array_equal(
            decode_image(found), decode_image(wanted)
        )
        with Image.open(io.BytesIO(found)) as image:
            assert image.format == 'JPEG'
            assert image.mode == 'RGB'
            comment = json.loads(image.info['comment'])
        assert comment['ropim_mm'] == settings.to_json()
    assert not list(out.glob('.*'))


@pytest.mark.parametrize('workers', [0, 2])
def test_names_stay_and_pixels_are_pillows(images, tmp_path, workers):
    out = tmp_path / 'out'
    report = shrink_images(images, out, SETTINGS, workers)
    check(images, out)
    assert (report.total, report.done, report.present) == (12, 12, 0)
    assert report.raw == sum(
        (images / n).stat().st_size for n in names(images)
    )
    sizes = [(out / n).stat().st_size for n in names(images)]
    assert report.written == sum(sizes)
    assert json.loads((out / 'shrink_images.json').read_text()) == dict(
        short_side=24, quality=80, subsampling='4:2:0', filter='lanczos'
    )
    again = shrink_images(images, out, workers=workers)
    assert (again.total, again.done, again.present) == (12, 0, 12)


@pytest.mark.parametrize(
    ('subsampling', 'code'), [('4:2:0', 2), ('4:2:2', 1), ('4:4:4', 0)]
)
def test_colours_are_sampled_as_told(images, tmp_path, subsampling, code):
    settings = ShrinkSettings(24, 95, subsampling)
    shrink_images(images, tmp_path / 'out', settings)
    check(images, tmp_path / 'out', settings)
    with Image.open(tmp_path / 'out/class1/1.JPEG') as image:
        assert JpegImagePlugin.get_sampling(image) == code


@pytest.mark.parametrize(
    ('shape', 'short_side', 'result'),
    [
        ((375, 500), 256, (256, 341)),
        ((500, 375), 256, (341, 256)),
        ((256, 256), 256, (256, 256)),
        ((255, 2000), 256, (255, 2000)),
        ((257, 1000), 256, (256, 996)),
        ((3, 2), 1, (2, 1)),  # halves are rounded up
        ((1, 70000), 1, (1, 70000)),
        ((1000, 999), 1, (1, 1)),
    ],
)
def test_the_short_side_is_told_and_nothing_is_enlarged(
    shape, short_side, result
):
    assert shrunk_shape(shape, short_side) == result


def test_small_photos_are_copied_byte_for_byte(tmp_path):
    images, out = tmp_path / 'images', tmp_path / 'out'
    images.mkdir()
    upright, turned = Image.Exif(), Image.Exif()
    upright[0x0112], turned[0x0112] = 1, 6
    small = picture(0, 24, 40)
    small.save(images / 'small.jpg', quality=99, subsampling='4:4:4')
    small.save(images / 'upright.jpg', exif=upright)
    small.convert('L').save(images / 'grey.jpg')
    small.save(images / 'wrong.png', 'JPEG')
    kept = names(images)
    small.save(images / 'turned.jpg', exif=turned)
    small.convert('CMYK').save(images / 'cmyk.jpg')
    small.save(images / 'small.png')
    assert shrink_images(images, out, SETTINGS).done == 7
    for name in names(images):
        same = (out / name).read_bytes() == (images / name).read_bytes()
        assert same is (name in kept)
        with Image.open(out / name) as image:
            assert image.format == 'JPEG'
            assert 'exif' not in image.info or name in kept
            size = (24, 40) if name == 'turned.jpg' else (40, 24)
            assert image.size == size
    assert verify_shrunk(images, out).done == 7


def test_a_smaller_set_made_of_a_smaller_set(images, tmp_path):
    first, second = tmp_path / 'first', tmp_path / 'second'
    shrink_images(images, first, SETTINGS)
    # Small enough, hence copied with the comment of the first settings.
    shrink_images(first, second, ShrinkSettings(32, 90))
    for name in names(images):
        assert (second / name).read_bytes() == (first / name).read_bytes()
    assert verify_shrunk(first, second).done == 12


def test_every_kind_of_image_is_as_in_training(tmp_path):
    images, out = tmp_path / 'images', tmp_path / 'out'
    images.mkdir()
    image = picture(0, 50, 70)
    settings = ShrinkSettings(40, 100, '4:4:4')
    for mode in ('1', 'L', 'P', 'LA', 'RGBA', 'CMYK'):
        image.convert(mode).save(images / f'{mode}.tif')
    deep = np.arange(50 * 70, dtype=np.uint16).reshape(50, 70) * 18
    Image.fromarray(deep).save(images / '16.png')
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        image.save(images / f'{turn}.jpg', exif=exif)
    frames = [picture(i, 50, 70) for i in range(2)]
    frames[0].save(
        images / 'two.webp', save_all=True, append_images=frames[1:]
    )
    shrink_images(images, out, settings)
    grey = {'1.tif', 'L.tif', 'LA.tif', '16.png'}
    for name in names(images):
        found = (out / name).read_bytes()
        wanted = expected((images / name).read_bytes(), settings)
        with Image.open(out / name) as image:
            assert image.mode == ('L' if name in grey else 'RGB')
        difference = np.abs(
            decode_image(found).astype(int) - decode_image(wanted)
        )
        # Grey stored as grey: its three channels are the same.
        assert difference.max() <= (2 if name in grey else 0)
    assert decode_image((out / '6.jpg').read_bytes()).shape == (56, 40, 3)
    assert verify_shrunk(images, out).done == len(names(images))


def test_verification_finds_each_kind_of_damage(images, tmp_path):
    out = tmp_path / 'out'
    picture(0, 20, 20).save(images / 'small.jpg')
    shrink_images(images, out, SETTINGS)
    whole = (out / 'class0/3.png').read_bytes()
    middle = len(whole) * 3 // 4
    (out / 'class0/0.png').unlink()
    (out / 'class0/3.png').write_bytes(whole[:-9])
    (out / 'class0/6.png').write_bytes(
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    )
    (out / 'class0/9.png').write_bytes(b'')
    (out / 'class1/1.JPEG').write_bytes(whole)
    (out / 'class1/4.JPEG').write_bytes(
        (images / 'class1/4.JPEG').read_bytes()
    )
    (out / 'class1/7.JPEG').write_bytes(b'no image')
    other = tmp_path / 'other'
    shrink_images(images, other, ShrinkSettings(24, 90))
    os.replace(other / 'class2/2.bmp', out / 'class2/2.bmp')
    (out / 'small.jpg').write_bytes((out / 'small.jpg').read_bytes() + b'x')
    (images / 'class2/5.bmp').write_bytes(b'no image')
    before = sorted(p.stat().st_mtime_ns for p in out.rglob('*'))

    report = verify_shrunk(images, out, workers=2)
    assert report.missing == ['class0/0.png']
    assert dict(report.unreadable).keys() == {'class2/5.bmp'}
    assert (report.total, report.done) == (13, 3)
    broken = dict(report.broken)
    assert len(broken) == 8
    assert broken['class0/3.png'] == 'damaged: wrong checksum'
    assert broken['class0/6.png'] == 'damaged: wrong checksum'
    assert broken['class0/9.png'] == 'the file is empty (0 bytes)'
    assert broken['class1/1.JPEG'] == (
        'it is (32, 24) (height, width); expected (31, 24), for an image of '
        '(61, 48)'
    )
    for name in ('4', '7'):
        text = broken[f'class1/{name}.JPEG']
        assert text == 'not made by shrink_images.py, or damaged'
    assert (
        "made with {'short_side': 24, 'quality': 90"
        in (broken['class2/2.bmp'])
    )
    assert 'it is no copy of its image' in broken['small.jpg']
    # Looking changes nothing.
    assert sorted(p.stat().st_mtime_ns for p in out.rglob('*')) == before

    picture(5, 65).save(images / 'class2/5.bmp')
    (out / 'class2/5.bmp').unlink()
    report = shrink_images(images, out, repair=True)
    assert (report.done, report.present) == (10, 3)
    assert verify_shrunk(images, out).done == 13


def test_other_settings_and_folders_are_refused(images, tmp_path):
    out = tmp_path / 'out'
    shrink_images(images, out, SETTINGS, shard=(0, 3))
    with pytest.raises(InputError) as error:
        shrink_images(images, out, ShrinkSettings(24, 90))
    assert str(error.value).startswith(
        f'{out}/shrink_images.json: the smaller images there are made with '
        "ShrinkSettings(short_side=24, quality=80, subsampling='4:2:0'), and "
        'now ShrinkSettings(short_side=24, quality=90'
    )
    text = (out / 'shrink_images.json').read_text()
    for damaged in (
        text.replace('lanczos', 'box'),
        text.replace('24', '24.5'),
        '{}',
        '7',
    ):
        (out / 'shrink_images.json').write_text(damaged)
        with pytest.raises(
            InputError, match=r'\.json does not hold the settings of smal'
        ):
            shrink_images(images, out)
    for bad in (images, images / 'small'):
        with pytest.raises(InputError, match='would be taken for images to'):
            shrink_images(images, bad)
    own = tmp_path / 'own' / 'class0' / '0.png'
    own.parent.mkdir(parents=True)
    own.write_bytes(b'precious')
    with pytest.raises(InputError, match='it is no folder of smaller images'):
        shrink_images(images, tmp_path / 'own', SETTINGS)
    assert own.read_bytes() == b'precious'


@pytest.mark.parametrize(
    ('values', 'text'),
    [
        ((0,), 'short_side is 0; expected a whole number from 1 to 65500'),
        ((24, 101), 'quality is 101; expected a whole number from 1 to 100'),
        ((24, 90.0), r'quality is 90\.0; expected a whole number'),
        ((24, 90, '4:1:1'), "subsampling is '4:1:1'; expected one of 4:2:0"),
    ],
)
def test_settings_out_of_range_are_named(values, text):
    with pytest.raises(InputError, match=text):
        ShrinkSettings(*values)


def test_images_of_which_nothing_can_be_made(images, tmp_path):
    out = tmp_path / 'out'
    cut = images / 'class1/1.JPEG'
    cut.write_bytes(cut.read_bytes()[:-200])
    with pytest.raises(UnreadableSourceError, match=r'class1/1\.JPEG of .*: '):
        shrink_images(images, out, SETTINGS)
    Image.new('L', (66000, 2)).save(images / 'long.png')
    report = shrink_images(images, out, SETTINGS, 2, on_error='skip')
    reasons = dict(report.unreadable)
    assert set(reasons) == {'class1/1.JPEG', 'long.png'}
    assert reasons['long.png'] == (
        'it would be 2x66000 (height x width), and a JPEG has sides of at '
        'most 65500'
    )
    assert report.done + report.present == 11
    assert not (out / 'long.png').exists()


def test_an_archive_of_images(images, tmp_path):
    archive, out = tmp_path / 'images.zip', tmp_path / 'out'
    with zipfile.ZipFile(archive, 'w') as file:
        for name in names(images):
            file.write(images / name, name)
        file.writestr('train_map.txt', b'a list')
    assert shrink_images(archive, out, SETTINGS, 2).done == 12
    check(images, out)
    assert verify_shrunk(archive, out, workers=2).done == 12


@pytest.mark.parametrize('seed', [0, 1])
def test_killed_at_any_moment(tmp_path, seed):
    images, out = tmp_path / 'images', tmp_path / 'out'
    images.mkdir()
    for i in range(60):
        picture(i, 300, 240).save(images / f'{i}.jpg')
    moments = random.Random(seed)
    count = 0
    for least in (0, 10, 25):
        process = FORK.Process(
            target=shrink_images, args=(images, out, SETTINGS, 2)
        )
        process.start()
        while len(list(out.glob('*.jpg'))) < least:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        done = verify_shrunk(images, out, SETTINGS).done
        assert not verify_shrunk(images, out, SETTINGS).broken
        assert done >= count  # what was made stays
        count = done
    # Another number of shards goes on, and clears away what is left.
    for index in range(2):
        shrink_images(images, out, SETTINGS, 2, (index, 2))
    check(images, out)


def test_crops_are_compared_with_those_of_the_originals(images, tmp_path):
    out = tmp_path / 'out'
    with pytest.raises(InputError, match='no smaller images of .* yet'):
        compare_crops(images, out, 5)
    flat = tmp_path / 'flat'
    flat.mkdir()
    for value in (40, 200):
        Image.new('RGB', (90, 60), (value,) * 3).save(flat / f'{value}.png')
    shrink_images(flat, out, SETTINGS)
    found = compare_crops(flat, out, 5, 32)
    assert found.images == 2
    assert found.mean == found.most == 0
    assert found.psnr == float('inf')
    brighter = Image.new('L', (36, 24), 45)
    brighter.save(out / '40.png', 'JPEG', quality=100)
    found = compare_crops(flat, out, 5, 32)
    assert found.mean == pytest.approx(2.5, abs=0.01)  # 5 in one of them
    (out / '40.png').write_bytes(b'')
    with pytest.raises(InputError, match=r'image 40\.png of .*out: the file'):
        compare_crops(flat, out, 5)


def test_crops_keep_what_training_sees(shared, tmp_path):
    """Of 224 px, from photographs and from what is left of them."""
    photos = shared / 'data/imagenet-sample/train'
    images = tmp_path / 'images'
    images.mkdir()
    for path in sorted(photos.rglob('*.JPEG'))[::20]:
        (images / path.name).symlink_to(path)
    found = []
    for side, quality in ((160, 90), (256, 70), (256, 90), (256, 98)):
        out = tmp_path / f'{side}-{quality}'
        shrink_images(images, out, ShrinkSettings(side, quality))
        found.append(compare_crops(images, out, 10))
    means = [difference.mean for difference in found]
    assert means == sorted(means, reverse=True)
    assert 2 < found[2].mean < 5  # of 255
    assert found[2].psnr > 28  # dB
