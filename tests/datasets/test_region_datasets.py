"""Datasets with regions: files found, missing, in workers, from COCO."""

import io
import json
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
from mmengine.dataset import ConcatDataset, default_collate
from mmengine.registry import DefaultScope
from mmpretrain.registry import DATASETS
from PIL import Image
from torch.utils.data import DataLoader

from ropim_mm.datasets import CocoRegionDataset, RegionDataset, RegionZip
from ropim_mm.datasets.coco_regions import instance_maps, panoptic_maps
from ropim_mm.datasets.label_maps import LabelMaps, encode_label_maps
from ropim_mm.datasets.transforms.regions import UnreadableRegionsError
from ropim_mm.errors import InputError

LOAD = [dict(type='ropim_mm.LoadImage'), dict(type='ropim_mm.LoadRegions')]
WHOLE = [
    *LOAD,
    dict(type='ropim_mm.SelectRegions', num_regions=2, patch_size=4),
    dict(type='ropim_mm.PackRegions'),
]


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new('RGB', (8, 12), (value, 0, 0)).save(buffer, 'PNG')
    return buffer.getvalue()


def half(value: int) -> np.ndarray:
    """The first `value` columns are one region, the others the other."""
    maps = np.zeros((1, 12, 8), np.uint8)
    maps[..., value:] = 1
    return maps


def write_maps(path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_label_maps(LabelMaps.from_maps(half(value))))


@pytest.fixture
def root(tmp_path):
    """train/{cat,dog}/ with 3 images each, and fh_train/ with their maps."""
    for i, folder in enumerate(('cat', 'dog')):
        for j in range(3):
            value = 1 + 3 * i + j
            image = tmp_path / 'train' / folder / f'{j}.JPEG.png'
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(png(value))
            write_maps(tmp_path / 'fh_train' / folder / f'{j}.JPEG.png', value)
    return tmp_path


def build(root, **kwargs) -> RegionDataset:
    settings = dict(
        data_root=str(root),
        data_prefix=dict(img_path='train', region_path='fh_train'),
        with_label=False,
        pipeline=LOAD,
    )
    return RegionDataset(**{**settings, **kwargs})


def columns(sample: dict) -> int:
    """What :func:`half` was told, from a loaded sample."""
    maps = LabelMaps(sample['gt_seg_map'], sample['region_tables']).maps
    return int((maps[0, 0] == 0).sum())


def test_every_image_has_its_maps(root):
    dataset = build(root)
    assert len(dataset) == 6
    for sample in (dataset[i] for i in range(6)):
        # The value of the image's red says which one it is.
        assert columns(sample) == sample['img'][0, 0, 2]
    path = dataset.get_data_info(4)['region_path']
    assert path == f'{root}/fh_train/dog/1.JPEG.png'


def test_a_list_of_images_and_labels(root):
    (root / 'few.txt').write_text('dog/2.JPEG.png 7\ncat/0.JPEG.png 3\n')
    dataset = build(root, ann_file='few.txt', with_label=True)
    assert [columns(dataset[i]) for i in range(2)] == [6, 1]
    assert dataset.get_gt_labels().tolist() == [7, 3]


def test_released_arrays_by_their_suffix(root):
    for path in sorted((root / 'fh_train').rglob('*.png')):
        value = 1 + 3 * (path.parent.name == 'dog') + int(path.name[0])
        np.save(path.with_suffix('.npy'), half(value))
        path.unlink()
    dataset = build(root, region_suffix='.npy')
    for i in range(6):
        sample = dataset[i]
        assert columns(sample) == sample['img'][0, 0, 2]
    with pytest.raises(InputError, match=r"suffix \['\.npy'\], while region"):
        build(root)


def test_missing_maps_by_policy(root):
    (root / 'fh_train/dog/1.JPEG.png').unlink()
    (root / 'fh_train/cat/2.JPEG.png').unlink()
    with pytest.raises(InputError) as error:
        build(root)
    assert str(error.value) == (
        f'2 of 6 images have no label maps, e.g. {root}/train/cat/2.JPEG.png,'
        f' for which there is no {root}/fh_train/cat/2.JPEG.png. Make them '
        "with create_fh_masks.py, or set on_missing='skip' to train on the "
        'images that have maps'
    )
    dataset = build(root, on_missing='skip')
    assert len(dataset) == 4
    assert [columns(dataset[i]) for i in range(4)] == [1, 2, 4, 6]
    for path in (root / 'fh_train').rglob('*.png'):
        path.unlink()
    with pytest.raises(InputError, match='6 of 6 images have no label maps'):
        build(root, on_missing='skip')


def test_bad_settings_are_named(root):
    with pytest.raises(InputError, match="data_prefix is 'train'; expected"):
        build(root, data_prefix='train')
    with pytest.raises(InputError, match='data_prefix is .*with region_path'):
        build(root, data_prefix=dict(img_path='train'))
    with pytest.raises(InputError, match="on_missing is 'ignore'"):
        build(root, on_missing='ignore')
    (root / 'few.txt').write_text('/elsewhere/0.png\n')
    with pytest.raises(InputError, match='/elsewhere/0.png does not lie in'):
        build(root, ann_file='few.txt')


def test_maps_of_another_image_stop_training(root):
    path = root / 'fh_train/cat/1.JPEG.png'
    maps = LabelMaps.from_maps(np.zeros((1, 4, 5), np.uint8))
    path.write_bytes(encode_label_maps(maps))
    with pytest.raises(
        UnreadableRegionsError, match=r'is 4x5 .*cat/1\.JPEG\.png is 12x8'
    ):
        build(root)[1]
    pipeline = [LOAD[0], dict(LOAD[1], on_error='skip')]
    np.random.seed(0)
    assert columns(build(root, pipeline=pipeline)[1]) != 2


def test_datasets_are_joined(root):
    parts = [
        dict(
            type='ropim_mm.RegionDataset',
            data_root=str(root),
            data_prefix=dict(
                img_path=f'train/{name}', region_path=f'fh_train/{name}'
            ),
            with_label=False,
            pipeline=LOAD,
        )
        for name in ('dog', 'cat')
    ]
    dataset = DATASETS.build(dict(type='ConcatDataset', datasets=parts))
    assert isinstance(dataset, ConcatDataset)
    assert [columns(dataset[i]) for i in range(6)] == [4, 5, 6, 1, 2, 3]


def test_workers_share_the_cache(root):
    pipeline = [LOAD[0], dict(LOAD[1], cache_bytes=1 << 16), *WHOLE[2:]]
    dataset = build(root, pipeline=pipeline)
    loader = DataLoader(
        dataset,
        batch_size=3,
        num_workers=2,
        collate_fn=default_collate,
        multiprocessing_context='fork',
    )
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == 2
        for batch in batches:
            assert batch['region_bits'].shape == (3, 1, 12, 8)
            # Two regions that make up the image.
            assert batch['region_bits'].unique().tolist() == [1, 2]
    files = [p.stat().st_size for p in (root / 'fh_train').rglob('*.png')]
    cache = dataset.pipeline.transforms[1].cache
    assert cache.used == sum(files)
    # As it travels to spawned workers, which have caches of their own.
    twin = pickle.loads(pickle.dumps(dataset))
    assert twin[0]['region_bits'].unique().tolist() == [1, 2]
    assert 0 < twin.pipeline.transforms[1].cache.used < cache.used


def test_an_archive_and_a_folder_of_maps(tmp_path):
    path = tmp_path / 'images.zip'
    with zipfile.ZipFile(path, 'w') as file:
        for value in (1, 2, 3):
            file.writestr(f'train/cat/{value}.png', png(value))
            write_maps(tmp_path / f'fh/train/cat/{value}.png', value)
    settings = dict(
        prefix='train',
        data_prefix=dict(region_path=str(tmp_path / 'fh')),
        with_label=False,
        pipeline=LOAD,
    )
    dataset = RegionZip(str(path), **settings)
    assert [columns(dataset[i]) for i in range(3)] == [1, 2, 3]
    (tmp_path / 'fh/train/cat/2.png').unlink()
    with pytest.raises(InputError, match=r'1 of 3 .*zip/train/cat/2\.png'):
        RegionZip(str(path), **settings)
    with pytest.raises(InputError, match='RegionZip: data_prefix is None'):
        RegionZip(str(path), **dict(settings, data_prefix=None))


# --- COCO -------------------------------------------------------------------


def segments_png(ids: np.ndarray) -> bytes:
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
    buffer = io.BytesIO()
    Image.fromarray(rgb.astype(np.uint8)).save(buffer, 'PNG')
    return buffer.getvalue()


def test_panoptic_segments_are_regions():
    ids = np.array([[0, 5], [5, 70000], [300, 0]])
    maps = panoptic_maps(segments_png(ids), [70000, 300, 5])
    expected = [ids == 70000, ids == 300, ids == 5]
    np.testing.assert_array_equal(maps.masks(range(3)), expected)
    assert maps.num_regions == 3  # what is no segment is no region
    with pytest.raises(InputError, match=r'segments \[300\], .* of the 2'):
        panoptic_maps(segments_png(ids), [70000, 5])
    with pytest.raises(InputError, match='mode L; expected RGB'):
        buffer = io.BytesIO()
        Image.new('L', (3, 3)).save(buffer, 'PNG')
        panoptic_maps(buffer.getvalue(), [])
    with pytest.raises(InputError, match='not a PNG that Pillow can read'):
        panoptic_maps(b'hello', [])


def test_instances_may_overlap():
    pytest.importorskip('pycocotools')
    square = [2, 1, 6, 1, 6, 5, 2, 5]  # x from 2 to 6, y from 1 to 5
    other = [4, 3, 9, 3, 9, 7, 4, 7]
    # Column by column: 3 outside, 2 inside, the rest outside.
    runs = dict(size=[8, 10], counts=[3, 2, 75])
    maps = instance_maps(
        [dict(segmentation=s) for s in ([square], [square, other], runs)],
        (8, 10),
    )
    expected = np.zeros((3, 8, 10), bool)
    expected[:2, 1:5, 2:6] = True
    expected[1, 3:7, 4:9] = True
    expected[2, 3:5, 0] = True
    np.testing.assert_array_equal(maps.masks(range(3)), expected)
    assert maps.num_regions == 3


def test_images_without_instances_have_no_regions():
    pytest.importorskip('pycocotools')
    maps = instance_maps([], (8, 8))
    regions, _ = maps.select(2, 4)
    assert regions.shape == (2, 8, 8)
    assert not regions.any()
    # Nor has an instance without a pixel.
    empty = dict(segmentation=dict(size=[8, 8], counts=[64]))
    assert instance_maps([empty], (8, 8)).num_regions == 0


def test_bad_instances_are_named():
    pytest.importorskip('pycocotools')
    runs = dict(size=[8, 10], counts=[80])
    with pytest.raises(InputError, match=r'instance 0 is coded for .*\[8, 10'):
        instance_maps([dict(segmentation=runs)], (10, 8))
    for bad in (None, 'text', [[1, 2]], dict(size=[8, 8])):
        with pytest.raises(InputError, match='instance 0 is neither polygons'):
            instance_maps([dict(segmentation=bad)], (8, 8))


def coco(root, name: str, annotations: list[dict]) -> str:
    images = [
        dict(id=7, file_name='cat/0.JPEG.png'),
        dict(id=9, file_name='dog/2.JPEG.png'),
    ]
    path = root / name
    path.write_text(json.dumps(dict(images=images, annotations=annotations)))
    return str(path)


def panoptic(root) -> tuple[str, dict]:
    (root / 'segments').mkdir()
    annotations = []
    for image, value in ((9, 6), (7, 1)):
        ids = 70000 * half(value)[0].astype(int)
        name = f'{image}.png'
        (root / 'segments' / name).write_bytes(segments_png(ids))
        annotations.append(
            dict(
                image_id=image, file_name=name, segments_info=[dict(id=70000)]
            )
        )
    prefix = dict(
        img_path=str(root / 'train'), region_path=str(root / 'segments')
    )
    return coco(root, 'panoptic.json', annotations), prefix


def test_a_panoptic_file(root):
    ann_file, prefix = panoptic(root)
    dataset = CocoRegionDataset(ann_file, prefix, pipeline=LOAD)
    for i, value in enumerate((1, 6)):
        sample = dataset[i]
        assert sample['img'][0, 0, 2] == value
        maps = LabelMaps(sample['gt_seg_map'], sample['region_tables'])
        np.testing.assert_array_equal(maps.masks([0]), half(value) == 1)
        assert maps.num_regions == 1
    (root / 'segments/9.png').unlink()
    with pytest.raises(InputError, match=r'1 of 2 images .*segments/9\.png'):
        CocoRegionDataset(ann_file, prefix)
    few = CocoRegionDataset(ann_file, prefix, on_missing='skip')
    assert len(few) == 1
    with pytest.raises(InputError, match='set data_prefix.region_path'):
        CocoRegionDataset(ann_file, dict(img_path=prefix['img_path']))


def test_an_instance_file(root):
    pytest.importorskip('pycocotools')
    runs = dict(size=[12, 8], counts=[24, 72])  # all but two columns
    ann_file = coco(
        root, 'instances.json', [dict(image_id=9, segmentation=runs)]
    )
    dataset = CocoRegionDataset(
        ann_file, dict(img_path=str(root / 'train')), pipeline=WHOLE
    )
    without, with_one = dataset[0], dataset[1]
    assert without['region_count'] == with_one['region_count'] == 2
    assert not without['region_bits'].any()
    # The one there is, twice.
    expected = torch.from_numpy(3 * half(2))
    torch.testing.assert_close(with_one['region_bits'], expected)


def test_other_files_are_not_coco(root):
    prefix = dict(img_path=str(root / 'train'))
    for text, message in (
        ('hello', 'is not JSON'),
        ('[]', r'not in the format of COCO.*found \[\]'),
        ('{"images": []}', r"found \['images'\]"),
    ):
        (root / 'bad.json').write_text(text)
        with pytest.raises(InputError, match=message):
            CocoRegionDataset(str(root / 'bad.json'), prefix)
    with pytest.raises(InputError, match=r'no file .*none\.json; expected'):
        CocoRegionDataset(str(root / 'none.json'), prefix)
    ann_file = coco(root, 'x.json', [dict(image_id=5, segmentation=[])])
    with pytest.raises(InputError, match=r'annotates the images \[5\]'):
        CocoRegionDataset(ann_file, prefix)


def test_without_pycocotools_it_says_what_to_install(root, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pycocotools', None)
    ann_file = coco(root, 'x.json', [dict(image_id=7, segmentation=[])])
    with pytest.raises(InputError, match='pip install pycocotools'):
        CocoRegionDataset(ann_file, dict(img_path=str(root / 'train')))


def test_real_coco_annotations(shared):
    pytest.importorskip('pycocotools')
    from pycocotools.coco import COCO

    root = shared / 'data/coco-sample'
    ann_file = root / 'annotations/instances_val2017.json'
    dataset = CocoRegionDataset(
        ann_file='annotations/instances_val2017.json',
        data_root=str(root),
        data_prefix=dict(img_path='val2017'),
        pipeline=LOAD,
    )
    assert len(dataset) == 2
    coco = COCO(str(ann_file))
    total = 0
    for i, image in enumerate(coco.dataset['images']):
        sample = dataset[i]
        assert sample['img_path'].endswith(image['file_name'])
        maps = LabelMaps(sample['gt_seg_map'], sample['region_tables'])
        instances = coco.loadAnns(coco.getAnnIds(imgIds=image['id']))
        masks = [coco.annToMask(each).astype(bool) for each in instances]
        assert maps.num_regions == len(masks)
        found = maps.masks(range(len(masks)))
        np.testing.assert_array_equal(found, masks)
        total += len(masks)
    assert total == 43
