"""Reading files never runs code from them."""

import argparse
import builtins
import http.server
import os
import pathlib
import tarfile
import threading
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader, load_checkpoint

from ropim_mm.checkpoints import (
    CheckpointError,
    MissingCheckpointError,
    UntrustedCheckpointError,
    read_checkpoint,
    trust_checkpoint,
)
from ropim_mm.checkpoints.reading import TRUST_VARIABLE


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


@pytest.fixture(autouse=True)
def nothing_trusted(monkeypatch):
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)


def test_hostile_file_is_refused(hostile, marker):
    path, name = hostile
    with pytest.raises(UntrustedCheckpointError) as caught:
        read_checkpoint(path)
    assert caught.value.names == (name,)
    message = str(caught.value)
    assert message.startswith(f'{path} was refused: reading it would call')
    assert name in message
    assert '--trust-checkpoint' in message
    assert f'{TRUST_VARIABLE}={path}' in message
    assert not marker.exists()


def test_hostile_file_is_refused_by_mmengine_too(hostile, marker):
    """MMEngine alone would warn, then unpickle without restriction."""
    path, name = hostile
    with pytest.raises(UntrustedCheckpointError, match=name):
        load_checkpoint(torch.nn.Linear(1, 1), str(path))
    with pytest.raises(UntrustedCheckpointError, match=name):
        CheckpointLoader.load_checkpoint(str(path))
    assert not marker.exists()


def test_environment_cannot_switch_the_restriction_off(
    hostile, marker, monkeypatch
):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    with pytest.raises(UntrustedCheckpointError):
        read_checkpoint(hostile[0])
    assert not marker.exists()


@pytest.mark.parametrize('how', ['argument', 'variable', 'function'])
def test_trusted_file_is_unpickled(tmp_path, marker, monkeypatch, how):
    path = tmp_path / 'mine.pth'
    torch.save({'a': Call(os.system, f'touch {marker}')}, path)
    if how == 'variable':
        value = os.pathsep.join(['/elsewhere.pth', str(path)])
        monkeypatch.setenv(TRUST_VARIABLE, value)
    elif how == 'function':
        monkeypatch.setenv(TRUST_VARIABLE, '')  # restored afterwards
        trust_checkpoint(path)
    assert read_checkpoint(path, trust=how == 'argument') == {'a': 0}
    assert marker.exists()


def test_trusting_one_file_trusts_no_other(hostile, tmp_path, monkeypatch):
    monkeypatch.setenv(TRUST_VARIABLE, str(tmp_path / 'other.pth'))
    with pytest.raises(UntrustedCheckpointError):
        read_checkpoint(hostile[0])


def test_trusted_file_of_an_absent_package(tmp_path, yacs_node):
    path = tmp_path / 'a.pth'
    yacs_node({'x': Call(builtins.eval, '1')}, path)
    with pytest.raises(CheckpointError, match="No module named 'yacs'"):
        read_checkpoint(path, trust=True)


def test_records_that_released_files_hold(tmp_path, yacs_node):
    path = tmp_path / 'released.pth'
    args = argparse.Namespace(lr=0.1, out=pathlib.Path('a/b'))
    yacs_node({'model': {'w': torch.ones(2)}, 'args': args}, path)
    content = read_checkpoint(path)
    assert content['model']['w'].tolist() == [1, 1]
    assert content['config']['LR'] == 0.1
    assert content['config']['MODEL'] == {'NAME': 'ropim', 'SIZES': [224, 16]}
    assert content['args'].lr == 0.1
    assert content['args'].out == pathlib.PurePosixPath('a/b')


def test_what_mmengine_writes_beside_weights(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    hub = {
        'loss': HistoryBuffer([0.5, 0.25], [1, 1]),
        'values': np.arange(3, dtype=np.int64),
        'names': np.array(['a', 'b']),
        'one': np.float32(2),
        'flags': {1, 2},
    }
    torch.save({'state_dict': {}, 'message_hub': hub}, path)
    read = read_checkpoint(path)['message_hub']
    assert read['loss'].mean() == 0.375
    assert read['values'].tolist() == [0, 1, 2]
    assert read['names'].tolist() == ['a', 'b']
    assert read['one'] == np.float32(2)
    assert read['flags'] == {1, 2}


def test_names_of_the_other_numpy(tmp_path):
    """NumPy 2 renamed its modules; files of either are read by either."""
    path = tmp_path / 'a.pth'
    for package in ('numpy.core', 'numpy._core'):
        torch.save(
            {'x': np.arange(3)}, path, _use_new_zipfile_serialization=False
        )
        raw = path.read_bytes()
        for written in (b'numpy._core', b'numpy.core'):
            raw = raw.replace(
                b'c' + written + b'.multiarray\n',
                b'c' + package.encode() + b'.multiarray\n',
            )
        path.write_bytes(raw)
        assert package.encode() + b'.multiarray' in raw
        assert read_checkpoint(path)['x'].tolist() == [0, 1, 2]


@pytest.fixture
def allow():
    """Adds to PyTorch's list of what may be unpickled, for one test."""
    before = torch.serialization.get_safe_globals()
    yield torch.serialization.add_safe_globals
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def test_allowed_list_of_the_user_is_kept(tmp_path, allow):
    path = tmp_path / 'a.pth'
    torch.save({'w': torch.ones(1)}, path)
    allow([HistoryBuffer, complex])
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(path)
    assert set(torch.serialization.get_safe_globals()) == before
    assert {HistoryBuffer, complex} <= before


def test_getattr_stays_shut_whoever_allowed_it(tmp_path, allow):
    """MMEngine puts ``getattr`` on PyTorch's list while it reads a file."""
    path = tmp_path / 'a.pth'
    torch.save({'x': Call(getattr, torch.Tensor, '__class__')}, path)
    allow([getattr])
    with pytest.raises(UntrustedCheckpointError, match='getattr'):
        read_checkpoint(path)


def _whole(path: pathlib.Path, legacy: bool) -> bytes:
    torch.save(
        {'w': torch.ones(1000)},
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    return path.read_bytes()


def test_missing_file(tmp_path):
    path = tmp_path / 'nowhere.pth'
    with pytest.raises(MissingCheckpointError) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert os.getcwd() in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(MissingCheckpointError, match='unknown://a.pth'):
        read_checkpoint('unknown://a.pth')


@pytest.mark.parametrize(
    ('content', 'found'),
    [
        (b'', r'is empty \(0 bytes\)'),
        (b'hello world', "11 bytes that start with b'hello world'"),
        (b'<!DOCTYPE html><html></html>', 'a web page'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'a Git LFS pointer'),
    ],
)
def test_not_a_checkpoint(tmp_path, content, found):
    path = tmp_path / 'a.pth'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=found) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(str(path))
    assert not isinstance(caught.value, UntrustedCheckpointError)
    # PyTorch's own advice would be to drop the protection.
    assert 'weights_only' not in str(caught.value)


@pytest.mark.parametrize('legacy', [False, True])
def test_truncated_file(tmp_path, legacy):
    path = tmp_path / 'a.pth'
    whole = _whole(path, legacy)
    for length in (len(whole) // 2, 200):
        path.write_bytes(whole[:length])
        with pytest.raises(
            CheckpointError, match=rf'truncated .*{length} bytes'
        ) as caught:
            read_checkpoint(path)
        assert str(caught.value).startswith(str(path))


def test_archives_that_are_no_checkpoint(tmp_path):
    path = tmp_path / 'a.npz'
    np.savez(path, x=np.ones(2))
    with pytest.raises(CheckpointError, match='a zip archive of something'):
        read_checkpoint(path)
    path = tmp_path / 'a.pth.tar'
    with tarfile.open(path, 'w') as archive:
        archive.addfile(tarfile.TarInfo('storages'))
    # PyTorch before 2.6 unpickles its tar format without restriction.
    with pytest.raises(CheckpointError, match='is a tar archive'):
        read_checkpoint(path)


def test_other_content(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save([torch.ones(1)], path)
    with pytest.raises(CheckpointError, match='holds a list. Expected a dict'):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match='is a folder'):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match='path .* is empty'):
        read_checkpoint('')


def test_other_pickle_protocol_is_named(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save({'w': torch.ones(1)}, path, pickle_protocol=4)
    with pytest.raises(UntrustedCheckpointError, match='pickle protocol'):
        read_checkpoint(path)
    assert read_checkpoint(path, trust=True)['w'].tolist() == [1]


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    path = tmp_path / 'a.safetensors'
    safetensors.save_file({'w': torch.arange(3.0)}, path, {'by': 'test'})
    content = read_checkpoint(path)
    assert content['state_dict']['w'].tolist() == [0, 1, 2]
    assert content['meta'] == {'by': 'test'}
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match='as a safetensors file') as e:
        read_checkpoint(path)
    assert str(e.value).startswith(str(path))


def test_url(tmp_path, hostile, marker, monkeypatch):
    """A URL that the user gives is fetched, and read as safely."""
    served = tmp_path / 'served'
    served.mkdir()
    torch.save({'w': torch.ones(2)}, served / 'good.pth')
    hostile[0].rename(served / 'bad.pth')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), partial(Quiet, directory=str(served))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}'
    try:
        assert read_checkpoint(f'{url}/good.pth')['w'].tolist() == [1, 1]
        (served / 'good.pth').unlink()  # now in the cache
        assert read_checkpoint(f'{url}/good.pth')['w'].tolist() == [1, 1]
        with pytest.raises(UntrustedCheckpointError):
            CheckpointLoader.load_checkpoint(f'{url}/bad.pth', 'cpu')
    finally:
        server.shutdown()
        server.server_close()
    assert not marker.exists()
