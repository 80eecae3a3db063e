"""The images that the demo learns from."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope='module')
def digits(demo):
    return demo('digits')


@pytest.fixture(scope='module')
def labels():
    from sklearn.datasets import load_digits

    return load_digits().target


def test_split(digits, labels):
    split = digits.split_digits(labels, few=7, seeds=3)
    assert [len(p) for p in (split.train, split.val)] == [1000, 300]
    everything = np.concatenate([split.train, split.val, split.test])
    assert sorted(everything) == list(range(1797))
    assert (np.bincount(labels[split.train]) == 100).all()
    assert (np.bincount(labels[split.val]) == 30).all()
    for draw in split.few:
        assert len(set(draw)) == 70
        assert set(draw) <= set(split.train)
        assert (np.bincount(labels[draw]) == 7).all()
    assert set(split.few[0]) != set(split.few[1])


def test_split_is_the_same_every_time(digits, labels):
    one = digits.split_digits(labels, few=5, seeds=1)
    more = digits.split_digits(labels, few=5, seeds=4)
    for part in ('train', 'val', 'test'):
        np.testing.assert_array_equal(getattr(one, part), getattr(more, part))
    np.testing.assert_array_equal(one.few[0], more.few[0])


def test_write_digits(digits, tmp_path):
    folder = tmp_path / 'digits'
    (folder / 'train/9').mkdir(parents=True)
    (folder / 'train/9/left-over.png').write_bytes(b'')
    counts = digits.write_digits(folder, few=3, seeds=2, samples=12)
    expected = {
        'train': 1000,
        'val': 300,
        'test': 497,
        'few-seed0': 30,
        'few-seed1': 30,
    }
    assert counts == expected
    for name, count in expected.items():
        files = list((folder / name).glob('[0-9]/*.png'))
        assert len(files) == count, name
    samples = sorted(path.name for path in (folder / 'samples').iterdir())
    assert len(samples) == 12
    assert [name[0] for name in samples] == list('001123456789')
    # Samples are test images.
    for name in samples:
        label, file = name.split('-')
        assert (folder / 'test' / label / file).is_file()
    image = Image.open(folder / 'samples' / samples[0])
    assert (image.mode, image.size) == ('L', (32, 32))


def test_enlarge(digits):
    image = np.zeros((8, 8))
    image[:, 4:] = 16
    pixels = np.array(digits.enlarge(image))
    assert pixels.shape == (32, 32)
    assert pixels[:, :12].max() <= 25
    assert pixels[:, 20:].min() >= 230
