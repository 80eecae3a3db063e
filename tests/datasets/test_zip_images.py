"""ImageZip: in place, in several processes, and damaged."""

import copy
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from PIL import Image
from torch.utils.data import DataLoader

from ropim_mm.datasets import ImageZip
from ropim_mm.datasets.transforms.loading import UnreadableImageError
from ropim_mm.errors import InputError

PIPELINE = [dict(type='ropim_mm.LoadImage'), dict(type='PackInputs')]


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new('RGB', (4, 4), (value, 0, 0)).save(buffer, 'PNG')
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path):
    """train/{cat,dog}/ with 3 images each, test/dog/ with 1; out of order.

    Dogs for training are compressed, the others are not.
    """
    path = tmp_path / 'images.zip'
    with zipfile.ZipFile(path, 'w') as file:
        for i in (2, 0, 1):
            file.writestr(
                f'train/dog/{i}.png', png(10 + i), zipfile.ZIP_DEFLATED
            )
            file.writestr(f'train/cat/{i}.png', png(i))
        file.writestr('train/readme.txt', 'not an image')
        file.writestr('__MACOSX/train/cat/0.png', b'resource fork')
        file.writestr('test/dog/0.png', png(99))
    return path


def test_classes_labels_and_order(archive):
    dataset = ImageZip(str(archive), prefix='train', pipeline=PIPELINE)
    assert dataset.CLASSES == ('cat', 'dog')
    assert dataset.get_gt_labels().tolist() == [0, 0, 0, 1, 1, 1]
    # Channel 2 is red.
    values = [int(dataset[i]['inputs'][2, 0, 0]) for i in range(6)]
    assert values == [0, 1, 2, 10, 11, 12]
    sample = dataset[3]['data_samples']
    assert sample.gt_label.item() == 1
    assert sample.img_path == f'{archive}/train/dog/0.png'


def test_without_labels_all_folders_count(archive):
    dataset = ImageZip(str(archive), with_label=False, pipeline=PIPELINE)
    assert len(dataset) == 7
    assert dataset.CLASSES is None
    assert 'gt_label' not in dataset.get_data_info(0)


def test_given_classes_set_the_numbers(archive):
    dataset = ImageZip(str(archive), prefix='test', classes=['cat', 'dog'])
    assert dataset.get_gt_labels().tolist() == [1]
    with pytest.raises(InputError, match=r"\['dog'\] under 'test/'"):
        ImageZip(str(archive), prefix='test', classes=['cat'])


@pytest.mark.parametrize('context', ['fork', 'spawn'])
@pytest.mark.slow
def test_two_workers_read_the_same(archive, context):
    dataset = ImageZip(str(archive), prefix='train', pipeline=PIPELINE)
    alone = torch.stack([dataset[i]['inputs'] for i in range(6)])
    # The handle above is open when the workers fork.
    loader = DataLoader(
        dataset,
        batch_size=1,
        num_workers=2,
        collate_fn=pseudo_collate,
        multiprocessing_context=context,
    )
    batches = [batch['inputs'][0] for batch in loader]
    torch.testing.assert_close(torch.stack(batches), alone)


def test_an_open_dataset_can_be_pickled_and_copied(archive):
    dataset = ImageZip(str(archive), prefix='train', pipeline=PIPELINE)
    first = dataset[0]['inputs']
    for twin in (pickle.loads(pickle.dumps(dataset)), copy.deepcopy(dataset)):
        torch.testing.assert_close(twin[0]['inputs'], first)


def test_damage_names_archive_and_member(archive):
    dataset = ImageZip(str(archive), prefix='test', pipeline=PIPELINE)
    info = dataset.get_data_info(0)
    _, offset, size, *_ = info['img_source'].args[0]
    data = bytearray(archive.read_bytes())
    data[offset + 30 + len('test/dog/0.png') + size // 2] ^= 0xFF
    archive.write_bytes(data)
    with pytest.raises(
        UnreadableImageError, match=r'test/dog/0\.png in .*images\.zip.*damag'
    ):
        dataset[0]


def test_bad_archives(tmp_path, archive):
    for kind in (FileNotFoundError, InputError):
        with pytest.raises(kind, match=r'^no file .*none\.zip'):
            ImageZip(str(tmp_path / 'none.zip'))
    text = tmp_path / 'text.zip'
    text.write_text('hello')
    with pytest.raises(InputError, match=r'text\.zip cannot be read as a zip'):
        ImageZip(str(text))
    with pytest.raises(
        InputError, match=r"no images under 'val/'.*'test', 'train'"
    ):
        ImageZip(str(archive), prefix='val')
    with zipfile.ZipFile(archive, 'a') as file:
        file.writestr('train/loose.png', png(1))
    with pytest.raises(InputError, match=r'train/loose\.png.*no class folder'):
        ImageZip(str(archive), prefix='train')


@pytest.mark.parametrize('name', ['a/../../x.jpg', '/a/x.jpg'])
def test_members_that_lead_out_are_refused(tmp_path, name):
    path = tmp_path / 'images.zip'
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr(name, b'')
    with pytest.raises(InputError, match=f'the member {name} of .* leads out'):
        ImageZip(str(path), with_label=False)


def test_other_compressions_are_refused(tmp_path):
    path = tmp_path / 'x.zip'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_LZMA) as file:
        file.writestr('a/0.png', png(1))
    with pytest.raises(InputError, match=r'a/0\.png in .*type 14.*zip -0'):
        ImageZip(str(path))


def test_cifar_subset(shared):
    path = shared / 'data' / 'cifar10-subset.zip'
    for prefix, each in (('train', 2000), ('test', 500)):
        dataset = ImageZip(str(path), prefix=prefix, pipeline=PIPELINE)
        labels = dataset.get_gt_labels()
        assert np.bincount(labels).tolist() == [each] * 10
        assert dataset.CLASSES[0] == 'airplane'
        assert dataset[len(dataset) - 1]['inputs'].shape == (3, 32, 32)
    few = ImageZip(str(path), prefix='test', indices=7, pipeline=PIPELINE)
    assert len(few) == 7
