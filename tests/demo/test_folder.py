"""The work folder of a demo, and what its processes are given."""

import os

import pytest


@pytest.fixture(scope='module')
def folder(demo):
    return demo('folder')


def test_only_its_own_files_are_replaced(folder, tmp_path):
    work_dir = tmp_path / 'new' / 'work'
    folder.clear(work_dir)
    folder.own(work_dir, 'results.md', 'pretrain')
    (work_dir / 'results.md').write_text('old')
    (work_dir / 'pretrain').mkdir()
    (work_dir / 'pretrain/epoch_1.pth').write_text('old')
    (work_dir / 'notes.txt').write_text('mine')
    folder.clear(work_dir)
    left = {path.name for path in work_dir.iterdir()}
    assert left == {'notes.txt', folder.MARKER}

    other = tmp_path / 'other'
    other.mkdir()
    (other / 'pretrain').write_text('mine')
    with pytest.raises(folder.DemoError, match='was not made by the demo'):
        folder.clear(other)
    with pytest.raises(folder.DemoError, match='is not a folder'):
        folder.clear(other / 'pretrain')
    assert (other / 'pretrain').read_text() == 'mine'


def test_processes_find_the_package_first(folder, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', 'mine')
    monkeypatch.setenv('OMP_NUM_THREADS', '64')
    env = folder.environment()
    assert env['PYTHONPATH'] == f'{folder.ROOT}{os.pathsep}mine'
    assert env['OMP_NUM_THREADS'] == '1'
    monkeypatch.delenv('PYTHONPATH')
    assert folder.environment()['PYTHONPATH'] == str(folder.ROOT)
