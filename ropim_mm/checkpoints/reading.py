"""Reading checkpoint files without running code from them.

A ``.pth`` file is a pickle, and a pickle is a program: unpickling it may call
any function it names. Files are therefore read by PyTorch's weights-only
unpickler with a fixed list of further names (:func:`allowed_globals`): what
MMEngine itself writes beside the tensors, and inert records for the harmless
extras of released files. A file that names anything else is refused unless the
user trusts it explicitly.
"""

import argparse
import hashlib
import logging
import os
import pickle
import pickletools
import re
import sys
import tarfile
import tempfile
import threading
import zipfile
from _codecs import encode
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import PurePosixPath, PureWindowsPath
from typing import IO, Any, BinaryIO, NamedTuple
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine import fileio
from mmengine.dist import get_dist_info
from mmengine.fileio.backends import prefix_to_backends
from mmengine.logging import print_log
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner import checkpoint as zoo
from mmengine.runner.checkpoint import CheckpointLoader
from torch._weights_only_unpickler import _get_allowed_globals

from ..errors import InputError

TRUST_VARIABLE = 'ROPIM_MM_TRUST_CHECKPOINT'


class CheckpointError(InputError, RuntimeError):
    """A checkpoint file cannot be used; the message names it and says why."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """There is no such file."""


class UntrustedCheckpointError(CheckpointError):
    """Reading the file would have called something that is not allowed.

    Attributes:
        names (tuple[str, ...]): What the file wanted to call, for instance
            ``('posix.system', )``.
    """

    def __init__(self, message: str, names: tuple[str, ...]) -> None:
        super().__init__(message)
        self.names = names


class _ConfigNode(dict):
    """Stands for ``yacs.config.CfgNode``: becomes an ``OrderedDict``.

    The weights-only unpickler fills only plain and ordered dictionaries, so
    an instance of a subclass of its own could not receive its items.
    """

    def __new__(cls, *args: Any) -> OrderedDict:
        return OrderedDict()


def _posix_path(*parts: str) -> PurePosixPath:
    return PurePosixPath(*parts)


def _windows_path(*parts: str) -> PureWindowsPath:
    return PureWindowsPath(*parts)


def _statistics_method(owner: type, name: str) -> Callable:
    """Stands for ``getattr``, which would reach anything from anything.

    Early MMEngine releases pickled the default methods of ``HistoryBuffer``
    as ``getattr(HistoryBuffer, 'mean')``; nothing more is answered.
    """
    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(HistoryBuffer, name)
    raise _refused('builtins.getattr', f'asked for {name!r} of {owner!r}')


def _refused(name: str, why: str) -> pickle.UnpicklingError:
    """An error that :func:`_refusal` reads as PyTorch's own."""
    return pickle.UnpicklingError(
        f'Unsupported global: GLOBAL {name} was not an allowed global by '
        f'default ({why})'
    )


class _Restored:
    """Stands for a type whose instances may get a state, but not be made.

    The unpickler asks whether the type of an instance equals one of the
    allowed objects. Were it NumPy's own, a file could also call it, and
    ``numpy.ndarray((1,), 'O', b'...')`` makes objects of raw addresses.
    """

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.__module__ = kind.__module__
        self.__name__ = self.__qualname__ = kind.__qualname__

    def __eq__(self, other: object) -> bool:
        return other is self or other is self.kind

    def __hash__(self) -> int:
        return hash(self.kind)

    def __call__(self, *args: Any) -> Any:
        raise _refused(f'{self.__module__}.{self.__name__}', f'with {args!r}')


# Booleans and numbers. Other types refer to memory (objects), are made of
# others (records), or are no weights (text, dates).
_NUMBERS = {
    np.dtype(code).str[1:]: np.dtype(code) for code in '?bBhHiIlLefdgFDG'
}


def _number_dtype(code: str, *_: Any) -> np.dtype:
    """Stands for ``numpy.dtype``: gives one of its singletons, no copy.

    The state that a file gives to a copy may declare fields of objects at
    addresses that the file holds. Singletons ignore it.
    """
    if not isinstance(code, str) or code not in _NUMBERS:
        raise _refused(f'numpy.dtype({code!r})', 'no number')
    return _NUMBERS[code]


def _empty_array(kind: Any, *_: Any) -> np.ndarray:
    """Stands for ``numpy.core.multiarray._reconstruct``."""
    if kind != np.ndarray:
        raise _refused(f'numpy._core.multiarray._reconstruct({kind!r})', '')
    return np.ndarray((0,), 'b')


def _number(dtype: Any, raw: Any) -> np.generic:
    """Stands for ``numpy.core.multiarray.scalar``."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in 'biufc':
        raise _refused(f'numpy._core.multiarray.scalar({dtype!r})', '')
    if isinstance(raw, str):  # as Python 2 wrote bytes
        raw = raw.encode('latin1')
    return np.frombuffer(raw, dtype, count=1)[0]


def _renamed(target: Callable, name: str) -> Callable:
    """A copy of ``target`` that the unpickler knows as ``name``.

    PyTorch before 2.6 takes the name from the object and accepts no
    ``(object, name)`` pairs, so the copy carries it.
    """
    module, _, attribute = name.rpartition('.')
    if isinstance(target, type):
        copy = type(attribute, (target,), {})
    else:

        def copy(*args: Any) -> Any:
            return target(*args)

    copy.__module__ = module
    copy.__name__ = copy.__qualname__ = attribute
    return copy


@lru_cache(maxsize=1)
def allowed_globals() -> dict[str, Callable]:
    """The names a checkpoint may use beside PyTorch's own, and their meaning.

    Returns:
        dict[str, Callable]: Qualified name to what is used for it.
    """
    allowed = {
        # Written by MMEngine: the message hub's histories, numpy numbers.
        'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
        'builtins.getattr': _renamed(_statistics_method, 'builtins.getattr'),
        'numpy.ndarray': _Restored(np.ndarray),
        'numpy.dtype': _renamed(_number_dtype, 'numpy.dtype'),
        'builtins.set': set,
        'builtins.slice': slice,
        # Bytes, as protocol 2 writes them; PyTorch's own since 2.5.
        '_codecs.encode': encode,
        # Left in released files by training scripts; records without
        # behaviour, so the packages that defined them are not needed.
        'argparse.Namespace': argparse.Namespace,
        'yacs.config.CfgNode': _renamed(_ConfigNode, 'yacs.config.CfgNode'),
    }
    # Files of NumPy 1 and 2 name the same functions differently.
    for package in ('numpy.core', 'numpy._core'):
        for attribute, target in (
            ('_reconstruct', _empty_array),
            ('scalar', _number),
        ):
            name = f'{package}.multiarray.{attribute}'
            allowed[name] = _renamed(target, name)
    for package in ('pathlib', 'pathlib._local'):
        for attribute, target in (
            ('PosixPath', _posix_path),
            ('PurePosixPath', _posix_path),
            ('WindowsPath', _windows_path),
            ('PureWindowsPath', _windows_path),
        ):
            name = f'{package}.{attribute}'
            allowed[name] = _renamed(target, name)
    # The state of a dtype is set on an instance of its own class.
    for dtype in _NUMBERS.values():
        kind = type(dtype)
        name = f'{kind.__module__}.{kind.__qualname__}'
        allowed[name] = _Restored(kind)
    return allowed


_allowing = threading.RLock()


@contextmanager
def _only_allowed_globals() -> Iterator[None]:
    """Adds :func:`allowed_globals` to PyTorch's list, then restores it.

    ``torch.serialization.safe_globals`` appeared in PyTorch 2.5 and, on
    leaving, also forgets what the user had allowed before; these functions
    exist since 2.4. What the user allowed stays allowed, except under the
    names that have a stand-in here.
    """
    from torch.serialization import (
        add_safe_globals,
        clear_safe_globals,
        get_safe_globals,
    )

    def name_of(entry: Any) -> str:
        if isinstance(entry, tuple):
            return entry[1]
        return f'{entry.__module__}.{entry.__qualname__}'

    allowed = allowed_globals()
    with _allowing:
        before = list(get_safe_globals())
        clear_safe_globals()
        add_safe_globals([e for e in before if name_of(e) not in allowed])
        add_safe_globals(list(allowed.values()))
        try:
            yield
        finally:
            clear_safe_globals()
            add_safe_globals(before)


def trust_checkpoint(path: str | os.PathLike) -> None:
    """Trusts a file for this process and the ones it starts.

    Args:
        path: The file or its URL, as it is given to :func:`read_checkpoint`.
            It is added to ``ROPIM_MM_TRUST_CHECKPOINT``.
    """
    path = os.fspath(path)
    if '://' not in path:
        path = os.path.realpath(os.path.expanduser(path))
    trusted = [os.environ.get(TRUST_VARIABLE, ''), path]
    os.environ[TRUST_VARIABLE] = os.pathsep.join(filter(None, trusted))


# A URL has the separator of POSIX's lists in it, up to twice.
_URL = re.compile(rf'[\w.+-]+://[^{os.pathsep}/]*(:\d+(?=/))?[^{os.pathsep}]*')


def _is_trusted(name: str) -> bool:
    trusted = os.environ.get(TRUST_VARIABLE, '')
    if '://' in name:
        bounds = os.pathsep
        return f'{bounds}{name}{bounds}' in f'{bounds}{trusted}{bounds}'
    here = os.path.realpath(name)
    paths = _URL.sub('', trusted).split(os.pathsep)
    return any(
        os.path.realpath(os.path.expanduser(p)) == here for p in paths if p
    )


def read_checkpoint(
    path: str | os.PathLike,
    map_location: Any = 'cpu',
    trust: bool = False,
) -> dict:
    """Reads a checkpoint without running code from the file.

    Args:
        path: A ``.pth`` or ``.safetensors`` file, or a URL. ``http(s)`` files
            are kept in PyTorch's cache folder. Other schemes are those of
            MMEngine's file backends (``s3://``, ...) and model zoos
            (``torchvision://``, ``openmmlab://``, ``mmcls://``); whatever
            the scheme, the file is read as a local one would be.
        map_location: Where the tensors go, as in :func:`torch.load`.
        trust (bool): Unpickle the file even if that runs code from it. A path
            or URL listed in the environment variable
            ``ROPIM_MM_TRUST_CHECKPOINT`` (several are separated as in
            ``PATH``) is trusted as well.

    Returns:
        dict: The content of the file. A ``.safetensors`` file gives
        ``dict(meta=..., state_dict=...)``.

    Raises:
        MissingCheckpointError: There is no such file.
        UntrustedCheckpointError: The file would call something that is not
            allowed, and it is not trusted.
        CheckpointError: The file is empty, truncated or no checkpoint, or
            cannot be fetched.
    """
    path = os.fspath(path)
    trust = trust or _is_trusted(path)
    scheme, separator, rest = path.partition('://')
    if not separator:
        return _read_local(path, map_location, trust)
    if scheme in ('http', 'https'):
        return _read_local(_download(path), map_location, trust, path)
    if scheme in _ZOOS:
        content = read_checkpoint(_in_zoo(scheme, rest), map_location, trust)
        return _encoder_of_mmcls(content) if scheme == 'mmcls' else content
    with tempfile.TemporaryDirectory() as folder:
        kept = os.path.join(folder, os.path.basename(rest) or 'checkpoint')
        with open(kept, 'wb') as file:
            file.write(_fetch(path))
        return _read_local(kept, map_location, trust, path)


def _read_local(
    path: str, map_location: Any, trust: bool, name: str = ''
) -> dict:
    """Reads a file; ``name`` is what messages call it, if not its path."""
    if not path:
        raise CheckpointError(
            'The path of the checkpoint is empty. Give the path of a file.'
        )
    path = os.path.expanduser(path)
    name = name or path
    if os.path.isdir(path):
        raise CheckpointError(
            f'{path} is a folder. Expected a checkpoint file; give the path '
            'of one inside it. If it holds the parts of a split model '
            '(rank0.pth, ...), put them together first: '
            'tools/model_converters/merge_shards.py'
        )
    if not os.path.exists(path):
        raise MissingCheckpointError(
            f'There is no checkpoint file {path} (current folder: '
            f'{os.getcwd()}). Check the path.'
        )
    if os.path.getsize(path) == 0:
        raise CheckpointError(
            f'{name} is empty (0 bytes). Expected a PyTorch or safetensors '
            'checkpoint; copy or download it again.'
        )
    if path.endswith('.safetensors'):
        content = _read_safetensors(path, map_location, name)
    else:
        content = _read_pickle(path, map_location, trust, name)
    if not isinstance(content, dict):
        raise CheckpointError(
            f'{name} holds a {type(content).__name__}. Expected a dictionary '
            'of tensors, or one with an entry state_dict or model.'
        )
    return content


def _read_pickle(path: str, map_location: Any, trust: bool, name: str) -> Any:
    with open(path, 'rb') as file:
        # PyTorch before 2.6 unpickles its oldest, tar-based format without
        # any restriction (CVE-2025-32434); later ones refuse it as well.
        if _is_tar(file):
            raise CheckpointError(
                f'{name} is a tar archive. Expected a checkpoint written by '
                'torch.save; if it is packed, unpack it first.'
            )
        try:
            with _only_allowed_globals():
                content = torch.load(
                    file, map_location=map_location, weights_only=True
                )
            _refuse_other_byte_order(file)
            return content
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            refusal = _refusal(file, error)
            if refusal is None:
                raise CheckpointError(
                    f'{name} cannot be read as a checkpoint: '
                    f'{_describe(file)}. Expected a whole file written by '
                    'torch.save, or .safetensors; copy or download it again. '
                    f'(PyTorch: {_reason(error)})'
                ) from error
            if not trust:
                raise UntrustedCheckpointError(
                    f'{name} was refused: {refusal.why}. Nothing of it was '
                    'run. If you know who made the file and want it anyway, '
                    'pass --trust-checkpoint to the tool, trust=True to '
                    'read_checkpoint or in init_cfg, or set '
                    f'{TRUST_VARIABLE}={name}',
                    refusal.names,
                ) from None
        print_log(
            f'{name} is trusted by the user and is unpickled without '
            f'restriction, although {refusal.why}',
            logger='current',
            level=logging.WARNING,
        )
        file.seek(0)
        try:
            return torch.load(
                file, map_location=map_location, weights_only=False
            )
        except (ImportError, AttributeError) as error:
            raise CheckpointError(
                f'{name} is trusted, but cannot be unpickled here: '
                f'{_reason(error)}. Install what defines it.'
            ) from error


def _refuse_other_byte_order(file: BinaryIO) -> None:
    # It is part of the state that NumPy's singletons ignore: the numbers
    # would come out wrong.
    other = '>' if sys.byteorder == 'little' else '<'
    names, strings = _scan(file)
    if 'numpy.dtype' in names and other in strings:
        raise _refused(f'numpy.dtype({other!r})', 'byte order')


def _reason(error: BaseException) -> str:
    """The one line of an error message of PyTorch that says what happened."""
    text = str(error).rsplit('WeightsUnpickler error:', 1)[-1]
    lines = [line.strip() for line in text.splitlines()]
    # The rest of PyTorch's message recommends to switch the protection off.
    lines = [line for line in lines if line and 'weights_only' not in line]
    return lines[0] if lines else type(error).__name__


def _is_tar(file: BinaryIO) -> bool:
    file.seek(0)
    try:
        tarfile.open(fileobj=file, mode='r:').close()
        return True
    except (tarfile.TarError, EOFError, ValueError):
        return False
    finally:
        file.seek(0)


def _describe(file: BinaryIO) -> str:
    """What a file that is no checkpoint looks like."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(64)
    if start.startswith(b'PK\x03\x04'):
        try:
            members = zipfile.ZipFile(file).namelist()
        except zipfile.BadZipFile:
            return f'a truncated or damaged archive of {size} bytes'
        if not any(m.endswith('data.pkl') for m in members):
            return f'a zip archive of something else ({members[:3]})'
        return f'a damaged archive of {size} bytes'
    if start.startswith(b'version https://git-lfs'):
        return 'a Git LFS pointer, not the file itself'
    if start.lstrip().lower().startswith((b'<!doctype', b'<html')):
        return 'a web page, not the file that was to be downloaded'
    if start.startswith(b'\x80'):
        return f'a truncated or foreign pickle of {size} bytes'
    return f'{size} bytes that start with {start[:16]!r}'


class _Refusal(NamedTuple):
    why: str
    names: tuple[str, ...]


def _refusal(file: BinaryIO, error: Exception) -> _Refusal | None:
    """Why the restricted unpickler refused a file; None if it is damaged."""
    message = str(error)
    names = re.findall(
        r'Unsupported global: GLOBAL (\S+) was|unsupported GLOBAL (\S+) whose'
        r'|unrecognized function <\S+ ?\S* \'?([\w.]+)'
        r"|Can only (?:build|create) .* got <class '([\w.]+)'"
        r"|unsupported class <class '([\w.]+)'",
        message,
    )
    names = [next(filter(None, found)) for found in names]
    # PyTorch leaves the module away for builtins.
    names = [n if '.' in n else f'builtins.{n}' for n in names]
    file.seek(0)
    is_pickle = file.read(4)[:1] == b'\x80' or zipfile.is_zipfile(file)
    other_protocol = is_pickle and 'Unsupported operand' in message
    if not names and not other_protocol:
        return None
    known = {*allowed_globals(), *_get_allowed_globals()}
    names += [name for name in _scan(file)[0] if name not in known]
    names = tuple(dict.fromkeys(names))
    if names:
        return _Refusal(
            f'reading it would call {", ".join(names)}, which is not among '
            'the things a checkpoint needs and may run any code',
            names,
        )
    return _Refusal(
        'it is written in a pickle protocol that the restricted reader does '
        'not know (torch.save uses protocol 2)',
        (),
    )


def _scan(file: BinaryIO) -> tuple[list[str], list[str]]:
    """Globals and strings in a file, found without unpickling anything."""
    names: list[str] = []
    strings: list[str] = []
    file.seek(0)
    try:
        if zipfile.is_zipfile(file):
            archive = zipfile.ZipFile(file)
            for member in archive.namelist():
                if member.endswith('data.pkl'):
                    with archive.open(member) as stream:
                        _collect(stream, names, strings)
        else:
            # Before PyTorch 1.6 a file was a row of pickles, then the data.
            file.seek(0)
            while True:
                _collect(file, names, strings)
    except (ValueError, IndexError, KeyError, EOFError, OSError):
        pass  # the end of the pickles, or damage that is reported elsewhere
    except zipfile.BadZipFile:
        pass
    return names, strings


def _collect(stream: IO[bytes], names: list[str], strings: list[str]) -> None:
    """Appends the globals and strings of the next pickle in ``stream``."""
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ('GLOBAL', 'INST'):
            module, name = argument.split(' ', 1)
            # Protocols below 3 spell modules as Python 2 did.
            module, name = NAME_MAPPING.get(
                (module, name), (IMPORT_MAPPING.get(module, module), name)
            )
            names.append(f'{module}.{name}')
        elif opcode.name == 'STACK_GLOBAL' and len(strings) >= 2:
            names.append('.'.join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)


def _read_safetensors(path: str, map_location: Any, name: str) -> dict:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise CheckpointError(
            f'{name} is a safetensors file and the package safetensors is '
            'not installed. Install it: pip install safetensors'
        ) from error
    try:
        with safe_open(path, framework='pt', device='cpu') as file:
            meta = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        with open(path, 'rb') as raw:
            found = _describe(raw)
        raise CheckpointError(
            f'{name} cannot be read as a safetensors file: {found}. Copy or '
            f'download it again. (safetensors: {_reason(error)})'
        ) from error
    if isinstance(map_location, (str, torch.device)):
        tensors = {n: t.to(map_location) for n, t in tensors.items()}
    return dict(meta=meta, state_dict=tensors)


# Model zoos: where MMEngine lists their files.
_ZOOS: dict[str, Callable[[], dict[str, str]]] = {
    'torchvision': zoo.get_torchvision_models,
    'modelzoo': zoo.get_torchvision_models,
    'open-mmlab': zoo.get_external_models,
    'openmmlab': zoo.get_external_models,
    'mmcls': zoo.get_mmcls_models,
}


def _in_zoo(scheme: str, model: str) -> str:
    """URL or path of a model of a zoo."""
    files = _ZOOS[scheme]()
    if model not in files and scheme.endswith('mmlab'):
        model = zoo.get_deprecated_model_names().get(model, model)
    if model not in files:
        raise CheckpointError(
            f'{scheme}://{model}: MMEngine knows no such model. Expected one '
            f'of the {len(files)} it lists, as {scheme}://'
            f'{next(iter(files))}; or give the path or URL of a file.'
        )
    file = files[model]
    if '://' in file:
        return file
    # A user's own list, beside it.
    return os.path.join(zoo._get_mmengine_home(), file)


def _encoder_of_mmcls(content: dict) -> dict:
    """What MMEngine makes of these classifiers: the backbone alone."""
    weights = content.get('state_dict', content)
    start = 'backbone.'
    encoder = {
        name[len(start) :]: tensor
        for name, tensor in weights.items()
        if name.startswith(start)
    }
    return dict(state_dict=encoder)


def _fetch(url: str) -> bytes:
    """Content of a file in an object store."""
    # With or without a cluster: cluster:s3://bucket/file.
    scheme = url.partition('://')[0].rpartition(':')[2]
    if scheme not in prefix_to_backends:
        raise CheckpointError(
            f'{url}: MMEngine has no file backend for {scheme}://. Download '
            'the file and give its path, or register a backend with '
            'mmengine.fileio.register_backend.'
        )
    try:
        return fileio.get(url)
    except Exception as error:  # whatever the client of the store raises
        raise CheckpointError(
            f'{url} cannot be fetched: {type(error).__name__}: {error}. '
            'Check the URL and the access to the store, or download the file '
            'and give its path.'
        ) from error


def _download(url: str) -> str:
    """Fetches a file once a machine, where PyTorch keeps such files."""
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    name = os.path.basename(urlparse(url).path)
    if not name:
        raise CheckpointError(f'{url} names no file. Give the URL of one.')
    # Many files are called checkpoint.pth.
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    path = os.path.join(folder, f'{digest}-{name}')
    rank, world_size = get_dist_info()

    def fetch() -> None:
        if os.path.exists(path):
            print_log(
                f'{url} was downloaded before: using {path}; delete it to '
                'download it again',
                logger='current',
            )
            return
        os.makedirs(folder, exist_ok=True)
        print_log(f'Downloading {url} to {path}', logger='current')
        try:
            torch.hub.download_url_to_file(url, path, progress=rank == 0)
        except OSError as error:
            raise CheckpointError(
                f'{url} cannot be downloaded to {path}: {error}. Check the '
                'URL and the connection, or download the file and give its '
                'path.'
            ) from error

    # One process first, so that those of its machine find the file there.
    try:
        if rank == 0:
            fetch()
    finally:
        if world_size > 1:
            torch.distributed.barrier()
    if rank != 0:
        fetch()
    return path


def load_from_anywhere(filename: str, map_location: Any = None) -> dict:
    """MMEngine's loader of every scheme, as :func:`read_checkpoint` reads."""
    return read_checkpoint(filename, map_location)


def register_safe_loader() -> None:
    """Makes MMEngine read all checkpoints by :func:`read_checkpoint`.

    MMEngine's own loaders fall back to unrestricted unpickling as soon as the
    restricted one refuses a file, with no more than a warning. Its extension
    point for loaders replaces them for every model of the process:
    ``init_cfg``, ``load_from``, resuming and testing, whatever the scheme of
    the URL. Calling this twice is harmless.
    """
    CheckpointLoader.register_scheme(
        prefixes=['', *CheckpointLoader._schemes],
        loader=load_from_anywhere,
        force=True,
    )
