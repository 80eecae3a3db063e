"""Reading files never runs code from them."""

import argparse
import builtins
import http.server
import io
import os
import pathlib
import tarfile
import threading
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.fileio.backends import (
    BaseStorageBackend,
    backends,
    prefix_to_backends,
)
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader, load_checkpoint

from ropim_mm.checkpoints import (
    CheckpointError,
    MissingCheckpointError,
    UntrustedCheckpointError,
    read_checkpoint,
    reading,
    register_safe_loader,
    trust_checkpoint,
)
from ropim_mm.checkpoints.reading import TRUST_VARIABLE, load_from_anywhere
from ropim_mm.errors import InputError


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
        'one': np.float32(2),
        'yes': np.array([True, False]),
        'double': np.float64(0.1),
        'complex': np.array([[1j]], np.complex64),
        'huge': np.array([2**64 - 1], np.uint64),
        'flags': {1, 2},
    }
    torch.save({'state_dict': {}, 'message_hub': hub}, path)
    read = read_checkpoint(path)['message_hub']
    assert read['loss'].mean() == 0.375
    assert read['values'].tolist() == [0, 1, 2]
    assert type(read['values']) is np.ndarray
    assert read['one'] == np.float32(2)
    assert type(read['one']) is np.float32
    assert read['yes'].tolist() == [True, False]
    assert read['double'] == 0.1
    assert read['complex'].tolist() == [[1j]]
    assert read['huge'].tolist() == [2**64 - 1]
    # Resuming writes what was read once more.
    torch.save(read, path)
    assert read_checkpoint(path)['loss'].mean() == 0.375
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


class Build:
    """Pickles as a call whose result is then given a state."""

    def __init__(self, function: Callable, args: tuple, state: object):
        self.pickled = function, args, state

    def __reduce__(self) -> tuple:
        return self.pickled


def _planted(how: str) -> object:
    """Objects at an address of the file's choice, in various clothes."""
    array = np.core.multiarray if np.__version__ < '2' else np._core.multiarray
    address = b'\x01' * 8
    plain = (3, '<', None, None, None, -1, -1, 0)
    fields = {'a': (Build(np.dtype, ('O', False, True), plain), 0)}
    code = 'S8' if how == 'text' else 'f8'
    state = (3, '<', None, ('a',), fields, 8, 1, 63)
    if how == 'direct':
        return Call(np.ndarray, (1,), 'O', address)
    if how == 'no fields':
        dtype = Build(np.dtype, ('O8', False, True), plain)
    elif how == 'shared fields':
        # Not even objects are named: only the copy of a dtype is built.
        state = (3, '<', None, ('a',), {'a': (np.dtype('f8'), 0)}, 8, 1, 63)
        dtype = Build(np.dtype, (code, False, True), state)
    else:
        dtype = Build(np.dtype, (code, False, True), state)
    if how == 'scalar':
        return Call(array.scalar, dtype, address)
    return Build(
        array._reconstruct,
        (np.ndarray, (0,), b'b'),
        (1, (1,), dtype, False, address),
    )


@pytest.mark.parametrize(
    'how', ['number', 'text', 'no fields', 'direct', 'scalar']
)
def test_numpy_cannot_plant_addresses(tmp_path, how):
    """Reading such an element would follow a pointer that the file gave."""
    path = tmp_path / 'a.pth'
    torch.save({'x': _planted(how)}, path)
    with pytest.raises(UntrustedCheckpointError, match=r'would call numpy\.'):
        read_checkpoint(path)


def test_dtype_keeps_what_it_is(tmp_path):
    """A state with fields changes neither the array nor NumPy's own type."""
    path = tmp_path / 'a.pth'
    torch.save({'x': _planted('shared fields')}, path)
    assert read_checkpoint(path)['x'].dtype == np.dtype('f8')
    assert np.dtype('f8').fields is None


@pytest.mark.parametrize(
    'array',
    [
        np.array(['a']),
        np.array([b'a']),
        np.array([{}]),
        np.zeros(1, [('a', 'f4')]),
        np.array(['2020-01-01'], 'M8[D]'),
        np.array([1.5], np.dtype('f8').newbyteorder('S')),
    ],
)
def test_arrays_of_other_things_than_plain_numbers(tmp_path, array):
    path = tmp_path / 'a.pth'
    torch.save({'x': array}, path)
    with pytest.raises(UntrustedCheckpointError, match=r"numpy\.dtype\('"):
        read_checkpoint(path)


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


def test_errors_are_those_that_tools_report():
    for error in (CheckpointError, UntrustedCheckpointError):
        assert issubclass(error, InputError)
        assert issubclass(error, RuntimeError)


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


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Serves a folder over HTTP; gives the folder and its URL."""
    folder = tmp_path / 'served'
    folder.mkdir()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), partial(Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def test_url(serve, hostile, marker):
    """A URL that the user gives is fetched, and read as safely."""
    served, url = serve
    torch.save({'w': torch.ones(2)}, served / 'good.pth')
    hostile[0].rename(served / 'bad.pth')
    assert read_checkpoint(f'{url}/good.pth')['w'].tolist() == [1, 1]
    (served / 'good.pth').unlink()  # now in the cache
    assert read_checkpoint(f'{url}/good.pth')['w'].tolist() == [1, 1]
    with pytest.raises(UntrustedCheckpointError) as caught:
        CheckpointLoader.load_checkpoint(f'{url}/bad.pth', 'cpu')
    assert str(caught.value).startswith(f'{url}/bad.pth was refused')
    assert f'{TRUST_VARIABLE}={url}/bad.pth' in str(caught.value)
    with pytest.raises(CheckpointError, match='nowhere.pth cannot be downlo'):
        read_checkpoint(f'{url}/nowhere.pth')
    assert not marker.exists()


def test_urls_of_one_name_are_kept_apart(serve, log):
    served, url = serve
    for i in (1, 2):
        (served / f'run{i}').mkdir()
        torch.save({'i': i}, served / f'run{i}' / 'checkpoint.pth')
    for i in (1, 2):
        assert read_checkpoint(f'{url}/run{i}/checkpoint.pth')['i'] == i
    log.clear()
    assert read_checkpoint(f'{url}/run1/checkpoint.pth')['i'] == 1
    assert (
        f'{url}/run1/checkpoint.pth was downloaded before: using' in log.text
    )


def test_trusted_url(serve, tmp_path, marker, monkeypatch):
    served, url = serve
    path = served / 'a.pth'
    torch.save({'a': Call(os.system, f'touch {marker}')}, path)
    url = f'{url}/a.pth'
    monkeypatch.setenv(TRUST_VARIABLE, str(tmp_path / 'other.pth'))
    for other in (f'{url}x', url[:-1], f'{url}/b.pth'):
        trust_checkpoint(other)
    with pytest.raises(UntrustedCheckpointError):
        read_checkpoint(url)
    trust_checkpoint(url)
    trust_checkpoint(path)
    assert read_checkpoint(url) == {'a': 0}
    marker.unlink()
    assert read_checkpoint(path) == {'a': 0}  # URLs do not hide paths


@pytest.fixture
def store(monkeypatch):
    """An object store behind ``s3://``; gives its content."""
    files: dict[str, bytes] = {}

    class Store(BaseStorageBackend):
        def get(self, filepath: str) -> bytes:
            return files[filepath]

        def get_text(self, filepath: str) -> str:
            raise NotImplementedError

    monkeypatch.setattr('mmengine.fileio.io.backend_instances', {})
    monkeypatch.setitem(backends, 'petrel', Store)
    for scheme in ('s3', 'petrel'):
        monkeypatch.setitem(prefix_to_backends, scheme, Store)
    return files


PREFIXES = ('s3://b/', 'cluster:s3://b/', 'petrel://b/')


def _bare_call(command: str) -> bytes:
    raw = command.encode()
    size = len(raw).to_bytes(4, 'little')
    return b'\x80\x02cposix\nsystem\nX' + size + raw + b'\x85R.'


@pytest.mark.parametrize('prefix', PREFIXES)
@pytest.mark.parametrize('bare', [True, False])
def test_object_store_runs_nothing(store, marker, prefix, bare):
    """MMEngine's loader of these schemes ends in unrestricted unpickling."""
    url = f'{prefix}x.pth'
    buffer = io.BytesIO(_bare_call(f'touch {marker}'))
    if not bare:
        torch.save({'a': Call(os.system, f'touch {marker}')}, buffer)
    store[url] = buffer.getvalue()
    for read in (read_checkpoint, CheckpointLoader.load_checkpoint):
        with pytest.raises(UntrustedCheckpointError) as caught:
            read(url)
        assert caught.value.names == ('posix.system',)
        assert str(caught.value).startswith(f'{url} was refused')
    assert not marker.exists()


@pytest.mark.parametrize('prefix', PREFIXES)
def test_object_store(store, prefix):
    buffer = io.BytesIO()
    torch.save({'w': torch.ones(2)}, buffer)
    store[f'{prefix}a.pth'] = buffer.getvalue()
    assert read_checkpoint(f'{prefix}a.pth')['w'].tolist() == [1, 1]
    content = CheckpointLoader.load_checkpoint(f'{prefix}a.pth')
    assert content['w'].tolist() == [1, 1]
    with pytest.raises(CheckpointError, match='b.pth cannot be fetched: KeyE'):
        read_checkpoint(f'{prefix}b.pth')
    store[f'{prefix}c.pth'] = b'<html></html>'
    with pytest.raises(CheckpointError, match=rf'{prefix}c.pth .* a web page'):
        read_checkpoint(f'{prefix}c.pth')


@pytest.mark.parametrize('scheme', ['pavi', 'unknown'])
def test_scheme_without_a_backend(scheme):
    for read in (read_checkpoint, CheckpointLoader.load_checkpoint):
        with pytest.raises(CheckpointError, match=f'backend for {scheme}://'):
            read(f'{scheme}://a.pth')


@pytest.mark.parametrize(
    ('scheme', 'listing'),
    [
        ('torchvision', 'get_torchvision_models'),
        ('modelzoo', 'get_torchvision_models'),
        ('open-mmlab', 'get_external_models'),
        ('openmmlab', 'get_external_models'),
        ('mmcls', 'get_mmcls_models'),
    ],
)
def test_model_zoos(scheme, listing, tmp_path, hostile, marker, monkeypatch):
    good = tmp_path / 'good.pth'
    torch.save({'state_dict': {'backbone.w': torch.ones(1)}}, good)
    models = {'good': str(good), 'bad': str(hostile[0])}
    monkeypatch.setattr(reading, '_ZOOS', {scheme: lambda: models})
    content = CheckpointLoader.load_checkpoint(f'{scheme}://good')
    name = 'w' if scheme == 'mmcls' else 'backbone.w'
    assert content['state_dict'][name].tolist() == [1]
    with pytest.raises(UntrustedCheckpointError):
        CheckpointLoader.load_checkpoint(f'{scheme}://bad')
    with pytest.raises(CheckpointError, match=f'{scheme}://other: MMEngine '):
        read_checkpoint(f'{scheme}://other')
    assert not marker.exists()
    monkeypatch.undo()
    assert reading._ZOOS[scheme] is getattr(reading.zoo, listing)


def test_no_loader_of_mmengine_is_left():
    loaders = CheckpointLoader._schemes
    assert {'s3://', 'pavi://', 'mmcls://'} <= {
        scheme.replace(r'(\S+\:)?', '') for scheme in loaders
    }
    register_safe_loader()
    assert set(loaders.values()) == {load_from_anywhere}
