"""What all converters have in common; see test_fh_masks.py for runs."""

import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from ropim_mm.datasets import conversion
from ropim_mm.datasets.conversion import (
    Converter,
    Made,
    Settings,
    UnreadableSourceError,
    UnsuitableImageError,
    convert,
    verify,
)
from ropim_mm.errors import InputError


@dataclass(frozen=True)
class MeanSettings(Settings):
    digits: int = 1

    FILE: ClassVar[str] = 'means.json'
    PRODUCT: ClassVar[str] = 'mean values'

    def to_json(self) -> dict:
        return dict(digits=self.digits)

    @classmethod
    def from_json(cls, found: dict) -> Settings:
        return cls(found['digits'])


class Means(Converter):
    """A text file an image, with its mean; black images have none."""

    SETTINGS: ClassVar[type[Settings]] = MeanSettings
    ITEMS: ClassVar[str] = 'means'
    OUTSIDE: ClassVar[str] = 'means are no images'
    BATCH: ClassVar[int] = 4

    def target(self, name: str) -> str:
        return f'{name}.txt'

    def make(self, data: bytes, image: np.ndarray) -> Made:
        if not image.any():
            raise UnsuitableImageError('it is black')
        text = f'{image.mean():.{self.settings.digits}f}'
        return Made(text.encode(), len(data))

    def inspect(self, content: bytes) -> float:
        try:
            return float(content)
        except ValueError:
            raise InputError('no number') from None

    def compare(self, found: float, data: bytes, shape: tuple) -> None:
        if found != shape[0]:
            raise InputError(f'{found} and {shape[0]} rows')


@pytest.fixture
def images(tmp_path) -> Path:
    """40 images whose values are their number of rows, in 2 folders."""
    root = tmp_path / 'images'
    for i in range(40):
        path = root / str(i % 2) / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (3, i + 1), i + 1).save(path)
    return root


@pytest.mark.parametrize('workers', [0, 1, 3])
def test_a_converter_of_a_few_lines(images, tmp_path, workers):
    out = tmp_path / 'out'
    report = convert(Means, images, out, workers=workers)
    assert (report.total, report.done, report.present) == (40, 40, 0)
    for i in range(40):
        text = (out / str(i % 2) / f'{i}.png.txt').read_text()
        assert text == f'{i + 1}.0'
    assert report.written == 9 * 3 + 31 * 4
    sizes = [p.stat().st_size for p in images.rglob('*.png')]
    assert report.raw == sum(sizes)
    assert json.loads((out / 'means.json').read_text()) == {'digits': 1}
    assert sorted(os.listdir(out)) == ['0', '1', 'means.json']
    (out / '0/4.png.txt').write_text('x')
    (out / '1/5.png.txt').write_text('7.0')
    report = verify(Means, images, out, workers=workers)
    assert dict(report.broken) == {
        '0/4.png': 'no number',
        '1/5.png': '7.0 and 6 rows',
    }
    assert report.done == 38
    report = convert(Means, images, out, workers=workers, repair=True)
    assert (report.done, report.present) == (2, 38)


def test_images_that_do_not_suit_follow_the_policy(images, tmp_path):
    out = tmp_path / 'out'
    Image.new('L', (3, 3), 0).save(images / 'black.png')
    with pytest.raises(
        UnreadableSourceError, match=r'black\.png of .*: it is black\. Repair'
    ):
        convert(Means, images, out, workers=2)
    report = convert(Means, images, out, on_error='skip')
    assert report.unreadable == [('black.png', 'it is black')]
    assert report.done + report.present == 40


def test_words_of_the_converter_are_in_its_messages(images, tmp_path):
    out = tmp_path / 'out'
    with pytest.raises(InputError, match='lies in .*: means are no images'):
        convert(Means, images, images / 'out')
    with pytest.raises(InputError, match='means would come among what'):
        convert(Means, images, tmp_path)
    convert(Means, images, out)
    with pytest.raises(
        InputError, match=r'means\.json: the means there are made with Mean'
    ):
        convert(Means, images, out, MeanSettings(2))
    (out / 'means.json').write_text('[]')
    with pytest.raises(InputError, match='not hold the settings of mean val'):
        verify(Means, images, out)
    (out / 'means.json').unlink()
    with pytest.raises(InputError, match=r'no means\.json: it is no folder'):
        convert(Means, images, out)


@pytest.mark.parametrize(
    ('count', 'workers', 'batch', 'expected'),
    [(40, 2, 4, 4), (40, 2, 16, 5), (7, 2, 16, 1), (100, 1, 16, 16)],
)
def test_batches_leave_something_for_every_worker(
    monkeypatch, count, workers, batch, expected
):
    sizes = []
    submit = conversion.ProcessPoolExecutor.submit

    def count_names(self, function, names):
        sizes.append(len(names))
        return submit(self, function, names)

    monkeypatch.setattr(conversion.ProcessPoolExecutor, 'submit', count_names)
    names = [str(i) for i in range(count)]
    found = list(conversion._work(lambda n: (n,), names, workers, batch))
    assert sorted(found) == sorted((n,) for n in names)
    assert max(sizes) == sizes[0] == expected
    assert sum(sizes) == count


def test_other_numbers_of_shards_leave_nothing_behind(images, tmp_path):
    out = tmp_path / 'out'
    left = [out / f'.unfinished-{i}-of-8' for i in range(3)]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / 'half').write_bytes(b'half')
    (left[0] / 'lock').touch()
    same = out / '.unfinished-1-of-2'
    same.mkdir()
    with open(left[2] / 'lock', 'ab') as used:
        fcntl.flock(used, fcntl.LOCK_EX)
        convert(Means, images, out, shard=(0, 2))
        # Shard 1 of 2 may run on a machine whose locks are not seen here.
        assert sorted(p.name for p in out.glob('.*')) == [
            same.name,
            left[2].name,
        ]
        assert (left[2] / 'half').exists()
    convert(Means, images, out, shard=(1, 2))
    assert not list(out.glob('.*'))


def test_nothing_is_swept_where_there_are_no_locks(
    images, tmp_path, monkeypatch
):
    def flock(*_):
        raise OSError(38, 'Function not implemented')

    out = tmp_path / 'out'
    other = out / '.unfinished-1-of-8'
    other.mkdir(parents=True)
    monkeypatch.setattr(conversion.fcntl, 'flock', flock)
    report = convert(Means, images, out)
    assert report.done == 40
    assert other.exists()


def test_a_lock_that_is_held_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, '_GRACE', 0.2)
    path = tmp_path / 'aside' / 'lock'
    first = conversion._open_locked(path)
    start = time.monotonic()
    assert conversion._open_locked(path) is None
    assert 0.2 <= time.monotonic() - start < 5
    first.close()
    with conversion._open_locked(path) as second:
        assert not second.closed


def test_a_lock_that_was_removed_is_not_held(tmp_path, monkeypatch):
    path = tmp_path / 'aside' / 'lock'
    locks = []

    def lock(file):
        locks.append(file)
        if len(locks) == 1:  # the run that had it ends, and removes it
            path.unlink()
            path.parent.rmdir()
        return True

    monkeypatch.setattr(conversion, '_lock', lock)
    with conversion._open_locked(path) as file:
        assert len(locks) == 2 and locks[0].closed
        assert os.path.samestat(os.fstat(file.fileno()), path.stat())
