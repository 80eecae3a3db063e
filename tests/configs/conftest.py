"""Generated data sets in the layouts that the configs read."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIDE = 32


@pytest.fixture(scope='session')
def data(tmp_path_factory) -> Path:
    """Four images a split, in the layout of each data set."""
    root = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    lists = dict(train=[], val=[])
    with zipfile.ZipFile(root / 'images.zip', 'w') as archive:
        for split, zipped in (('train', 'train'), ('val', 'test')):
            for i in range(4):
                name = f'{split}/class{i % 2}/{i}.png'
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
                archive.write(path, f'{zipped}/class{i % 2}/{i}.png')
                lists[split].append((name, i % 2))
    (root / 'meta').mkdir()
    for split, entries in lists.items():
        (root / 'meta' / f'{split}.txt').write_text(
            ''.join(f'{n.split("/", 1)[1]} {y}\n' for n, y in entries)
        )
        (root / f'{split}2017.txt').write_text(
            ''.join(f'{n} {y}\n' for n, y in entries)
        )
    (root / 'train' / 'broken.jpg').write_bytes(b'')
    pixels = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
    batches = [f'cifar-10-batches-py/data_batch_{i}' for i in range(1, 6)]
    batches += ['cifar-10-batches-py/test_batch']
    batches += [f'cifar-100-python/{split}' for split in ('train', 'test')]
    for name in batches:
        (root / name).parent.mkdir(exist_ok=True)
        labels = 'labels' if '-10-' in name else 'fine_labels'
        (root / name).write_bytes(
            pickle.dumps({'data': pixels, labels: [0, 1, 0, 1]})
        )
    return root


@pytest.fixture
def cifar(monkeypatch) -> None:
    """MMPretrain's CIFAR takes the generated files."""
    from mmpretrain.datasets import CIFAR10

    # They have not the sums of the real ones.
    monkeypatch.setattr(CIFAR10, '_check_integrity', lambda self: True)
