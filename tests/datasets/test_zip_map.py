import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image
from torch.utils.data import DataLoader

from ropim_mm.datasets import ImageZipMap
from ropim_mm.datasets.zip_images import MissingArchiveError
from ropim_mm.datasets.zip_map import MissingMapError, parse_map
from ropim_mm.registry import DATASETS

# A path, its label, and the grey of its image.
IMAGES = [
    ('train/n01/a.png', 0, 10),
    ('train/n01/with two  spaces.png', 0, 20),
    ('train/n02/b.png', 1, 30),
    ('train/ünï/c.png', 2, 40),
]


def png(value):
    data = io.BytesIO()
    Image.new('RGB', (4, 4), (value,) * 3).save(data, 'PNG')
    return data.getvalue()


def listing(images=IMAGES, separator='\t', strip=''):
    return ''.join(
        f'{path.removeprefix(strip)}{separator}{label}\n'
        for path, label, _ in images
    )


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / 'images.zip'
    with zipfile.ZipFile(path, 'w') as file:
        for name, _, value in IMAGES:
            file.writestr(name, png(value))
        file.writestr('train/n01/not_listed.png', png(99))
        file.writestr('train_map.txt', listing())
    return path


def build(path, map_file='train_map.txt', **kwargs):
    kwargs.setdefault('pipeline', [dict(type='ropim_mm.LoadImage')])
    return ImageZipMap(zip_file=str(path), map_file=map_file, **kwargs)


def greys(dataset):
    return [int(dataset[i]['img'][0, 0, 0]) for i in range(len(dataset))]


def test_samples_are_those_of_the_list_in_its_order(archive):
    dataset = build(archive)
    assert greys(dataset) == [10, 20, 30, 40]
    assert [dataset[i]['gt_label'] for i in range(4)] == [0, 0, 1, 2]
    assert dataset[1]['img_path'] == f'{archive}/{IMAGES[1][0]}'
    assert 'List: \ttrain_map.txt' in repr(dataset)


def test_without_labels(archive):
    dataset = build(archive, with_label=False)
    assert 'gt_label' not in dataset[0]
    assert greys(dataset) == [10, 20, 30, 40]


@pytest.mark.parametrize('separator', [' ', '   ', '\t', ' \t '])
@pytest.mark.parametrize('where', ['beside', 'elsewhere'])
def test_a_list_outside_the_archive(archive, tmp_path, separator, where):
    folder = archive.parent / ('' if where == 'beside' else 'lists')
    folder.mkdir(exist_ok=True)
    path = folder / 'val_map.txt'
    path.write_text(listing(IMAGES[1:3], separator), encoding='utf-8')
    dataset = build(archive, path.name if where == 'beside' else str(path))
    assert greys(dataset) == [20, 30]


def test_the_list_inside_comes_first(archive):
    (archive.parent / 'train_map.txt').write_text('train/n02/b.png 1')
    assert len(build(archive)) == 4


def test_paths_relative_to_a_folder(archive):
    text = listing(strip='train/')
    (archive.parent / 'short.txt').write_text(text, encoding='utf-8')
    assert greys(build(archive, 'short.txt', prefix='train')) == [
        10, 20, 30, 40,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="set prefix='train'"):
        build(archive, 'short.txt')


@pytest.mark.parametrize(
    'text',
    [
        '\ufeff' + listing(),
        listing().replace('\n', '\r\n'),
        '\n\n' + listing().replace('\n', '\n\n'),
        listing().replace('train/', './train/'),
        listing().rstrip(),
    ],
)
def test_lists_of_other_programs(archive, text):
    path = archive.parent / 'list.txt'
    path.write_bytes(text.encode())
    assert greys(build(archive, 'list.txt')) == [10, 20, 30, 40]


def test_repeated_lines_count_once():
    lines = parse_map((listing() + listing()).encode(), 'list')
    assert [line.path for line in lines] == [path for path, _, _ in IMAGES]
    assert [line.number for line in lines] == [1, 2, 3, 4]


@pytest.mark.parametrize('workers', [0, 2])
def test_several_workers(archive, workers):
    dataset = build(archive)
    dataset[0]  # the archive is open before workers are forked
    loader = DataLoader(
        dataset,
        batch_size=1,
        num_workers=workers,
        collate_fn=list,
        multiprocessing_context='fork' if workers else None,
    )
    seen = [int(i['img'][0, 0, 0]) for _ in range(2) for (i,) in loader]
    assert seen == [10, 20, 30, 40] * 2


def test_travels_without_an_open_file(archive):
    dataset = build(archive)
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.reader._file is None
    assert greys(copy) == [10, 20, 30, 40]


def test_is_found_by_its_name(archive):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(
            dict(
                type='ropim_mm.ImageZipMap',
                zip_file=str(archive),
                map_file='train_map.txt',
                indices=2,
                pipeline=[
                    dict(type='ropim_mm.LoadImage'),
                    dict(type='PackInputs'),
                ],
            )
        )
    assert len(dataset) == 2
    sample = dataset[1]
    assert sample['inputs'].shape == (3, 4, 4)
    assert torch.equal(sample['data_samples'].gt_label, torch.tensor([0]))


@pytest.mark.parametrize(
    ('line', 'found'),
    [
        ('train/n02/b.png', "found 'train/n02/b.png'; expected"),
        ('train/n02/b.png one', "found 'train/n02/b.png one'; expected"),
        ('train/n02/b.png -1', "found 'train/n02/b.png -1'; expected"),
        ('train/n02/b.png 1.0', "found 'train/n02/b.png 1.0'; expected"),
        ('7', "found '7'; expected a relative path, white"),
        ('../other/b.png 1', '../other/b.png leads out of the archive'),
        ('train/../../b.png 1', 'train/../../b.png leads out of the'),
        ('/etc/passwd 1', '/etc/passwd leads out of the archive'),
        ('train/n01/a.png 3', 'a.png has the label 3, and in line 1 the'),
    ],
)
def test_a_line_that_is_wrong(archive, line, found):
    path = archive.parent / 'list.txt'
    path.write_text(f'train/n01/a.png 0\n\n{line}\n')
    with pytest.raises(ValueError) as caught:
        build(archive, 'list.txt')
    assert f'{path}, line 3: ' in str(caught.value)
    assert found in str(caught.value)


def test_members_that_are_missing_are_named(archive):
    path = archive.parent / 'list.txt'
    path.write_text(''.join(f'train/n03/{i}.png 0\n' for i in range(7)))
    with pytest.raises(ValueError) as caught:
        build(archive, 'list.txt')
    text = str(caught.value)
    assert text.startswith(f'{path} names 7 images that {archive} does not')
    assert 'train/n03/0.png (line 1), train/n03/1.png (line 2)' in text
    assert "It has 6 files in ['train', 'train_map.txt']" in text


def test_no_list(archive):
    with pytest.raises(MissingMapError) as caught:
        build(archive, 'val_map.txt')
    assert f"(which has ['train_map.txt']) nor as {archive.parent}" in str(
        caught.value
    )


def test_no_archive(tmp_path):
    with pytest.raises(MissingArchiveError, match=r'no file .*absent\.zip'):
        build(tmp_path / 'absent.zip')


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', 'list is empty; expected'),
        (b' \n\n', 'list is empty; expected'),
        (b'a.png 0\n\xff\xfe 1', 'no UTF-8 text .* at byte 8'),
    ],
)
def test_a_list_that_is_none(data, message):
    with pytest.raises(ValueError, match=message):
        parse_map(data, 'list')


def test_label_without_a_class(archive):
    assert build(archive, classes=['a', 'b', 'c']).CLASSES == ('a', 'b', 'c')
    with pytest.raises(ValueError, match='line 4: label 2 .* are 2 classes'):
        build(archive, classes=['a', 'b'])


def test_long_lists_are_read_in_no_time():
    text = '\n'.join(f'train/n{i % 1000:08}/{i}.JPEG\t{i % 1000}'
                     for i in range(100_000))  # fmt: skip
    lines = parse_map(text.encode(), 'list')
    assert len(lines) == 100_000
    assert np.bincount([line.label for line in lines]).tolist() == [100] * 1000
