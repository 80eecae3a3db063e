"""A destination holds the old content or the whole new one."""

import os

import pytest

from ropim_mm.checkpoints import CheckpointError
from ropim_mm.checkpoints.writing import write_atomically


def test_writes_and_creates_folders(tmp_path):
    path = tmp_path / 'new' / 'folder' / 'a.bin'
    write_atomically(path, lambda file: file.write(b'abc'))
    assert path.read_bytes() == b'abc'
    assert os.listdir(path.parent) == ['a.bin']


def test_permissions_follow_the_umask(tmp_path):
    path = tmp_path / 'a.bin'
    before = os.umask(0o027)
    try:
        write_atomically(path, lambda file: file.write(b'abc'))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_existing_file_is_kept_without_force(tmp_path):
    path = tmp_path / 'a.bin'
    path.write_bytes(b'old')
    with pytest.raises(CheckpointError, match=f'{path} exists already'):
        write_atomically(path, lambda file: file.write(b'new'))
    assert path.read_bytes() == b'old'
    write_atomically(path, lambda file: file.write(b'new'), force=True)
    assert path.read_bytes() == b'new'


def test_file_that_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / 'a.bin'

    def write(file):
        file.write(b'new')
        path.write_bytes(b'theirs')

    with pytest.raises(CheckpointError, match='exists already'):
        write_atomically(path, write)
    assert path.read_bytes() == b'theirs'
    assert os.listdir(tmp_path) == ['a.bin']


@pytest.mark.parametrize('force', [False, True])
@pytest.mark.parametrize('error', [OSError('disk full'), KeyboardInterrupt()])
def test_interrupted_write_leaves_nothing(tmp_path, force, error):
    path = tmp_path / 'a.bin'
    if force:
        path.write_bytes(b'old')

    def write(file):
        file.write(b'half')
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write, force)
    assert os.listdir(tmp_path) == (['a.bin'] if force else [])
    assert not force or path.read_bytes() == b'old'


def test_folder_is_no_destination(tmp_path):
    with pytest.raises(CheckpointError, match='is a folder'):
        write_atomically(tmp_path, lambda file: None, force=True)
