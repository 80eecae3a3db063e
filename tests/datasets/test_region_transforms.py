"""Regions in a pipeline: in step with the image, chosen, packed."""

import io
import logging

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose, default_collate
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from PIL import Image

from ropim_mm.datasets.label_maps import LabelMaps, encode_label_maps
from ropim_mm.datasets.regions import binary_regions, felzenszwalb_maps
from ropim_mm.datasets.transforms import (
    LoadRegions,
    MakeRegions,
    RandomResizedCrop,
    SelectRegions,
)
from ropim_mm.datasets.transforms.cropping import resize_labels
from ropim_mm.datasets.transforms.regions import UnreadableRegionsError
from ropim_mm.errors import InputError

COLOURS = np.array(
    [[250, 10, 20], [30, 240, 40], [50, 60, 230], [200, 200, 210]],
    dtype=np.uint8,
)


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def photo(height: int = 60, width: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """An image of flat colours and the map of which one is where."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (height, width), dtype=np.uint8)
    labels = labels.repeat(10, 0).repeat(10, 1)[:height, :width]
    return COLOURS[labels][..., ::-1], labels


def start(image: np.ndarray, maps: LabelMaps) -> dict:
    return dict(
        img=image,
        img_path='photo.png',
        gt_seg_map=maps.index,
        region_tables=maps.tables,
    )


def files(folder, maps: np.ndarray, size=None) -> dict:
    """An image file and one of its maps."""
    height, width = size or maps.shape[1:]
    Image.new('RGB', (width, height)).save(folder / 'image.png')
    path = folder / 'maps.png'
    path.write_bytes(encode_label_maps(LabelMaps.from_maps(maps)))
    return dict(
        img_path=str(folder / 'image.png'),
        img=np.zeros((height, width, 3), np.uint8),
        region_path=str(path),
    )


# --- In step with the image -------------------------------------------------


@pytest.mark.parametrize('make', [LabelMaps.from_maps, LabelMaps.stacked])
@pytest.mark.parametrize('size', [(64, 64), (48, 96)])
@pytest.mark.parametrize('direction', ['horizontal', 'vertical'])
def test_maps_stay_where_their_colours_are(make, size, direction):
    image, labels = photo()
    maps = make(np.stack([labels, labels % 2]))
    steps = Compose(
        [
            dict(
                type='ropim_mm.RandomResizedCrop',
                scale=size,
                crop_ratio_range=(0.2, 1.0),
                backend='pillow',
                interpolation='nearest',
            ),
            dict(type='RandomFlip', prob=0.5, direction=direction),
        ]
    )
    flips = set()
    np.random.seed(0)
    for _ in range(20):
        out = steps(start(image, maps))
        flips.add(out['flip'])
        found = LabelMaps(out['gt_seg_map'], out['region_tables']).maps
        assert found.shape == (2, *size)
        # Nearest for both. Pillow's sums of floats fall to either side where
        # a centre falls on a border; a shift by one pixel would be 10%.
        wrong = (COLOURS[found[0]] != out['img'][..., ::-1]).any(axis=2)
        assert wrong.mean() < 0.025
        np.testing.assert_array_equal(found[1], found[0] % 2)
    assert flips == {True, False}


def test_maps_fit_an_image_resized_smoothly():
    image, labels = photo(200, 300)
    crop = RandomResizedCrop(
        64, (0.2, 1.0), backend='pillow', interpolation='bicubic'
    )
    np.random.seed(0)
    shifts = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]
    wrong = np.zeros(len(shifts))
    for _ in range(10):
        out = crop(start(image, LabelMaps.stacked(labels[None])))
        for i, shift in enumerate(shifts):
            found = np.roll(out['gt_seg_map'][..., 0], shift, axis=(0, 1))
            expected = COLOURS[found][..., ::-1].astype(int)
            error = np.abs(expected - out['img']).max(axis=2)
            wrong[i] += (error > 100).mean() / 10
    # More than a blend of two colours is off at few borders only, and maps
    # moved by a pixel are worse in any direction, equally.
    assert wrong[0] < 0.03
    assert wrong[1:].min() > 3 * wrong[0]
    assert wrong[1:].max() < 1.5 * wrong[1:].min()


def test_the_crop_is_the_same_without_maps():
    image, labels = photo()
    crop = RandomResizedCrop(32, (0.2, 1.0), backend='pillow')
    np.random.seed(1)
    alone = crop(dict(img=image))
    np.random.seed(1)
    both = crop(start(image, LabelMaps.stacked(labels[None])))
    np.testing.assert_array_equal(alone['img'], both['img'])
    assert 'gt_seg_map' not in alone


@pytest.mark.parametrize('shape', [(7, 9), (30, 5), (64, 64)])
def test_labels_are_resized_as_pillow_does(shape):
    labels = np.random.default_rng(0).integers(0, 256, (23, 31)).astype('u1')
    expected = Image.fromarray(labels).resize(
        shape[::-1], Image.Resampling.NEAREST
    )
    found = resize_labels(labels, shape)
    assert found.dtype == labels.dtype
    np.testing.assert_array_equal(found, np.asarray(expected))


@pytest.mark.parametrize(
    'step',
    [
        dict(type='RandomResizedCrop', scale=64),
        dict(type='RandomCrop', crop_size=64, padding=8),
        dict(type='ResizeEdge', scale=64),
    ],
    ids=lambda step: step['type'],
)
@pytest.mark.parametrize('last', ['select', 'crop'])
def test_steps_that_move_the_image_alone_are_refused(step, last):
    image, _ = photo(64, 64)  # sizes stay equal
    last = dict(
        select=dict(type='ropim_mm.SelectRegions'),
        crop=dict(type='ropim_mm.RandomResizedCrop', scale=64),
    )[last]
    first = dict(type='ropim_mm.MakeRegions', scales=(20,))
    sample = dict(img=image, img_path='x.jpg', img_shape=image.shape[:2])
    with pytest.raises(
        InputError, match=r'x\.jpg: the image has been cropped'
    ):
        Compose([first, step, last])(sample)


def test_steps_that_move_both_or_change_colours_are_not_refused():
    image, _ = photo(60, 80)
    steps = Compose(
        [
            dict(type='ropim_mm.MakeRegions', scales=(20,)),
            dict(type='ColorJitter', brightness=0.4),
            dict(type='Resize', scale=(70, 60)),
            dict(type='CenterCrop', crop_size=64),
            dict(type='ropim_mm.RandomResizedCrop', scale=64),
            dict(type='RandomFlip', prob=0.5),
            dict(type='RandomGrayscale', prob=0.5, keep_channels=True),
            dict(type='ropim_mm.SelectRegions', num_regions=3),
        ]
    )
    for _ in range(4):
        out = steps(dict(img=image, img_shape=image.shape[:2]))
        assert out['regions'].shape == (3, 64, 64)
        assert not {'gt_seg_map', 'region_tables', 'region_step'} & set(out)


@pytest.mark.parametrize(
    'step', [SelectRegions(), RandomResizedCrop(32)], ids=lambda s: type(s)
)
def test_maps_of_another_size_than_the_image_are_refused(step):
    image, labels = photo(64, 64)
    sample = start(image, LabelMaps.stacked(labels[None]))
    sample['img'] = image[:48]
    with pytest.raises(InputError) as error:
        step(sample)
    text = str(error.value)
    assert text.startswith('photo.png: the image is 48x64 (height x width)')
    assert 'gt_seg_map, its label maps, 64x64' in text
    assert 'ropim_mm.RandomResizedCrop' in text


# --- Loading ----------------------------------------------------------------


def test_maps_are_loaded(tmp_path):
    maps = np.random.default_rng(0).integers(0, 5, (2, 6, 8), dtype=np.uint8)
    results = files(tmp_path, maps)
    out = LoadRegions()(dict(results))
    found = LabelMaps(out['gt_seg_map'], out['region_tables'])
    np.testing.assert_array_equal(found.maps, maps)
    np.save(tmp_path / 'maps.npy', maps)
    out = LoadRegions()(dict(results, region_path=str(tmp_path / 'maps.npy')))
    found = LabelMaps(out['gt_seg_map'], out['region_tables'])
    np.testing.assert_array_equal(found.maps, maps)


def test_another_size_names_file_and_both_sizes(tmp_path):
    results = files(tmp_path, np.zeros((1, 6, 8), np.uint8), size=(8, 6))
    with pytest.raises(UnreadableRegionsError) as error:
        LoadRegions()(results)
    text = str(error.value)
    assert f'regions {tmp_path}/maps.png: it is 6x8 (height x width)' in text
    assert f'image {tmp_path}/image.png is 8x6' in text
    assert 'create_fh_masks.py' in text


@pytest.mark.parametrize(
    'damage, message',
    [
        (lambda p: p.unlink(), r'no such file, which the image .*image\.png'),
        (lambda p: p.write_bytes(b''), r'the file is empty \(0 bytes\)'),
        (lambda p: p.write_bytes(p.read_bytes()[:50]), 'truncated: 50 bytes'),
        (lambda p: p.write_bytes(b'GIF89a'), 'neither PNG nor .npy'),
    ],
    ids=['missing', 'empty', 'truncated', 'other'],
)
def test_damage_by_policy(tmp_path, damage, message, caplog):
    results = files(tmp_path, np.zeros((1, 6, 8), np.uint8))
    damage(tmp_path / 'maps.png')
    with pytest.raises(UnreadableRegionsError, match=message) as error:
        LoadRegions()(dict(results))
    assert f'cannot read regions {tmp_path}/maps.png: ' in str(error.value)
    assert "on_error='skip' in LoadRegions" in str(error.value)

    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    step = LoadRegions(on_error='skip')
    with caplog.at_level(logging.WARNING):
        assert step(dict(results)) is None
        assert step(dict(results)) is None
    logger.removeHandler(caplog.handler)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert lines[0].startswith(
        f'skipped unreadable regions {tmp_path}/maps.png: '
    )
    skipped = step.skipped.read()
    assert (skipped.reads, len(skipped.files)) == (2, 1)


def test_a_dataset_without_regions_is_named():
    with pytest.raises(InputError, match='no regions for a.jpg.*RegionData'):
        LoadRegions()(dict(img_path='a.jpg', img=np.zeros((4, 4, 3))))
    with pytest.raises(InputError, match="LoadRegions: on_error is 'no'"):
        LoadRegions(on_error='no')


def test_files_may_be_kept_in_memory(tmp_path):
    maps = np.random.default_rng(0).integers(0, 5, (2, 6, 8), dtype=np.uint8)
    results = files(tmp_path, maps)
    size = (tmp_path / 'maps.png').stat().st_size
    large = LoadRegions(cache_bytes=size)
    small = LoadRegions(cache_bytes=size - 1)
    for step in (large, small):
        step(dict(results))
    assert (large.cache.used, small.cache.used) == (size, 0)
    (tmp_path / 'maps.png').unlink()
    out = large(dict(results))
    found = LabelMaps(out['gt_seg_map'], out['region_tables'])
    np.testing.assert_array_equal(found.maps, maps)
    with pytest.raises(UnreadableRegionsError, match='no such file'):
        small(dict(results))


# --- Making -----------------------------------------------------------------


def test_maps_are_made_from_the_image():
    image, _ = photo()
    out = MakeRegions((20, 300), (10, 50))(dict(img=image))
    found = LabelMaps(out['gt_seg_map'], out['region_tables']).maps
    rgb = np.ascontiguousarray(image[..., ::-1])
    expected = felzenszwalb_maps(rgb, (20, 300), (10, 50))
    np.testing.assert_array_equal(found, expected)
    assert MakeRegions((20, 300)).min_sizes == (20, 300)
    with pytest.raises(InputError, match='2 scales .* and 1 min_sizes'):
        MakeRegions((20, 300), (10,))


# --- Choosing and packing ---------------------------------------------------


@pytest.mark.parametrize('sample_type', ['random', 'random_fg'])
def test_regions_become_fields(sample_type):
    image, labels = photo(64, 96)
    steps = Compose(
        [
            dict(
                type='ropim_mm.SelectRegions',
                num_regions=5,
                patch_size=(16, 8),
                sample_type=sample_type,
            ),
            dict(type='PackInputs', algorithm_keys=('regions', 'shuffle_ids')),
        ]
    )
    sample = steps(start(image, LabelMaps.stacked(labels[None])))
    regions = sample['data_samples'].regions
    assert regions.dtype == torch.bool
    assert regions.shape == (5, 64, 96)
    masks = torch.from_numpy(binary_regions(labels[None]))
    for region in regions:
        assert (region == masks).flatten(1).all(dim=1).any()
    assert ('shuffle_ids' in sample['data_samples']) is (
        sample_type == 'random_fg'
    )
    if sample_type == 'random_fg':
        assert sorted(sample['data_samples'].shuffle_ids.tolist()) == list(
            range(4 * 12)
        )


def test_packed_and_plain_are_the_same():
    image, labels = photo(64, 96)
    packed = []
    plain = dict(type='PackInputs', algorithm_keys=('regions', 'shuffle_ids'))
    ours = dict(type='ropim_mm.PackRegions')
    for as_bits, last in ((False, plain), (False, ours), (True, ours)):
        steps = Compose(
            [
                dict(
                    type='ropim_mm.SelectRegions',
                    num_regions=9,
                    sample_type='random_fg',
                    as_bits=as_bits,
                ),
                last,
            ]
        )
        torch.manual_seed(0)
        samples = [
            steps(start(image, LabelMaps.stacked(labels[None])))
            for _ in range(2)
        ]
        packed.append(default_collate(samples))
    from ropim_mm.models import RegionDataPreprocessor

    expected, *others = (RegionDataPreprocessor()(batch) for batch in packed)
    for found in others:
        assert torch.equal(found['inputs'], expected['inputs'])
        for a, b in zip(
            found['data_samples'], expected['data_samples'], strict=True
        ):
            assert torch.equal(a.regions, b.regions)
            assert torch.equal(a.shuffle_ids, b.shuffle_ids)


def test_without_regions_there_is_no_field():
    image, labels = photo(64, 64)
    step = SelectRegions(num_regions=0)
    out = step(start(image, LabelMaps.stacked(labels[None])))
    assert set(out) == {'img', 'img_path'}
    assert set(step(dict(img=image))) == {'img'}  # nor need there be maps


def test_bad_settings_are_named():
    with pytest.raises(InputError, match='num_regions is -1'):
        SelectRegions(-1)
    with pytest.raises(InputError, match='region_mask_ratio is 1'):
        SelectRegions(region_mask_ratio=1)
    with pytest.raises(InputError, match="'fg'; expected one of"):
        SelectRegions(sample_type='fg')
    with pytest.raises(InputError, match=r'no label maps of x\.jpg.*LoadReg'):
        SelectRegions()(dict(img=np.zeros((4, 4, 3)), img_path='x.jpg'))
    image, labels = photo(60, 80)
    with pytest.raises(InputError, match=r'60x80 .* patches of 16x16'):
        SelectRegions()(start(image, LabelMaps.stacked(labels[None])))


def test_steps_say_what_they_are():
    assert repr(LoadRegions(cache_bytes=99)) == (
        "LoadRegions(on_error='raise', cache_bytes=99, backend_args=None)"
    )
    assert 'num_regions=3, patch_size=(8, 8)' in repr(SelectRegions(3, 8))
    assert repr(MakeRegions()) == (
        'MakeRegions(scales=(1000,), min_sizes=(1000,), sigma=0.8)'
    )


def test_an_upright_photo_has_upright_maps(tmp_path):
    """A file whose EXIF turns it by 90 degrees: maps are of what is seen."""
    image, labels = photo(60, 80)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    buffer = io.BytesIO()
    stored = np.rot90(image[..., ::-1]).copy()
    Image.fromarray(stored).save(buffer, 'PNG', exif=exif)
    path = tmp_path / 'image.png'
    path.write_bytes(buffer.getvalue())
    results = files(tmp_path, labels[None])
    path.write_bytes(buffer.getvalue())
    steps = Compose(
        [dict(type='ropim_mm.LoadImage'), dict(type='ropim_mm.LoadRegions')]
    )
    results.pop('img')
    out = steps(results)
    np.testing.assert_array_equal(
        COLOURS[out['gt_seg_map']], out['img'][..., ::-1]
    )
