"""Reading checkpoint files without running code from them.

A ``.pth`` file is a pickle, and a pickle is a program: unpickling it may call
any function it names. Files are therefore read by PyTorch's weights-only
unpickler with a fixed list of further names (:func:`allowed_globals`): what
MMEngine itself writes beside the tensors, and inert records for the harmless
extras of released files. A file that names anything else is refused unless the
user trusts it explicitly.
"""

import argparse
import logging
import os
import pickle
import pickletools
import re
import tarfile
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
from mmengine.dist import get_dist_info
from mmengine.logging import print_log
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader
from torch._weights_only_unpickler import _get_allowed_globals

TRUST_VARIABLE = 'ROPIM_MM_TRUST_CHECKPOINT'


class CheckpointError(RuntimeError):
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
    raise pickle.UnpicklingError(
        'Unsupported global: GLOBAL builtins.getattr was not an allowed '
        f'global by default (asked for {name!r} of {owner!r})'
    )


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
    multiarray = getattr(np, '_core', None) or np.core
    multiarray = multiarray.multiarray
    allowed = {
        # Written by MMEngine: the message hub's histories, numpy numbers.
        'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
        'builtins.getattr': _renamed(_statistics_method, 'builtins.getattr'),
        'numpy.ndarray': np.ndarray,
        'numpy.dtype': np.dtype,
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
        for attribute in ('_reconstruct', 'scalar'):
            name = f'{package}.multiarray.{attribute}'
            allowed[name] = _renamed(getattr(multiarray, attribute), name)
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
    for code in '?bBhHiIlLqQefdgFDGSU':
        kind = type(np.dtype(code))
        allowed[f'{kind.__module__}.{kind.__qualname__}'] = kind
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
        path: The file. It is added to ``ROPIM_MM_TRUST_CHECKPOINT``.
    """
    trusted = os.environ.get(TRUST_VARIABLE, '').split(os.pathsep)
    trusted = [p for p in trusted if p]
    trusted.append(os.path.realpath(os.path.expanduser(os.fspath(path))))
    os.environ[TRUST_VARIABLE] = os.pathsep.join(trusted)


def _is_trusted(path: str) -> bool:
    trusted = os.environ.get(TRUST_VARIABLE, '').split(os.pathsep)
    here = os.path.realpath(path)
    return any(
        os.path.realpath(os.path.expanduser(p)) == here for p in trusted if p
    )


def read_checkpoint(
    path: str | os.PathLike,
    map_location: Any = 'cpu',
    trust: bool = False,
) -> dict:
    """Reads a checkpoint without running code from the file.

    Args:
        path: A ``.pth`` or ``.safetensors`` file, or a URL. ``http(s)`` files
            are kept in PyTorch's cache folder; other schemes are MMEngine's.
        map_location: Where the tensors go, as in :func:`torch.load`.
        trust (bool): Unpickle the file even if that runs code from it. A path
            listed in the environment variable ``ROPIM_MM_TRUST_CHECKPOINT``
            (several are separated as in ``PATH``) is trusted as well.

    Returns:
        dict: The content of the file. A ``.safetensors`` file gives
        ``dict(meta=..., state_dict=...)``.

    Raises:
        MissingCheckpointError: There is no such file.
        UntrustedCheckpointError: The file would call something that is not
            allowed, and it is not trusted.
        CheckpointError: The file is empty, truncated or no checkpoint.
    """
    path = os.fspath(path)
    if path.startswith(('http://', 'https://')):
        path = _download(path)
    elif '://' in path:
        return CheckpointLoader.load_checkpoint(path, map_location)
    return _read_local(path, map_location, trust)


def _read_local(path: str, map_location: Any, trust: bool = False) -> dict:
    if not path:
        raise CheckpointError(
            'The path of the checkpoint is empty. Give the path of a file.'
        )
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        raise CheckpointError(
            f'{path} is a folder. Expected a checkpoint file; give the path '
            'of one inside it.'
        )
    if not os.path.exists(path):
        raise MissingCheckpointError(
            f'There is no checkpoint file {path} (current folder: '
            f'{os.getcwd()}). Check the path.'
        )
    if os.path.getsize(path) == 0:
        raise CheckpointError(
            f'{path} is empty (0 bytes). Expected a PyTorch or safetensors '
            'checkpoint; copy or download it again.'
        )
    if path.endswith('.safetensors'):
        content = _read_safetensors(path, map_location)
    else:
        content = _read_pickle(path, map_location, trust or _is_trusted(path))
    if not isinstance(content, dict):
        raise CheckpointError(
            f'{path} holds a {type(content).__name__}. Expected a dictionary '
            'of tensors, or one with an entry state_dict or model.'
        )
    return content


def _read_pickle(path: str, map_location: Any, trust: bool) -> Any:
    with open(path, 'rb') as file:
        # PyTorch before 2.6 unpickles its oldest, tar-based format without
        # any restriction (CVE-2025-32434); later ones refuse it as well.
        if _is_tar(file):
            raise CheckpointError(
                f'{path} is a tar archive. Expected a checkpoint written by '
                'torch.save; if it is packed, unpack it first.'
            )
        try:
            with _only_allowed_globals():
                return torch.load(
                    file, map_location=map_location, weights_only=True
                )
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            refusal = _refusal(file, error)
            if refusal is None:
                raise CheckpointError(
                    f'{path} cannot be read as a checkpoint: '
                    f'{_describe(file)}. Expected a whole file written by '
                    'torch.save, or .safetensors; copy or download it again. '
                    f'(PyTorch: {_reason(error)})'
                ) from error
            if not trust:
                raise UntrustedCheckpointError(
                    f'{path} was refused: {refusal.why}. Nothing of it was '
                    'run. If you know who made the file and want it anyway, '
                    'pass --trust-checkpoint to the tool, trust=True to '
                    'read_checkpoint or in init_cfg, or set '
                    f'{TRUST_VARIABLE}={path}',
                    refusal.names,
                ) from None
        print_log(
            f'{path} is trusted by the user and is unpickled without '
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
                f'{path} is trusted, but cannot be unpickled here: '
                f'{_reason(error)}. Install what defines it.'
            ) from error


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
    names += [name for name in _named_globals(file) if name not in known]
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


def _named_globals(file: BinaryIO) -> list[str]:
    """Names of the globals in a file, found without unpickling anything."""
    names: list[str] = []
    file.seek(0)
    try:
        if zipfile.is_zipfile(file):
            archive = zipfile.ZipFile(file)
            for member in archive.namelist():
                if member.endswith('data.pkl'):
                    with archive.open(member) as stream:
                        _collect_globals(stream, names)
        else:
            # Before PyTorch 1.6 a file was a row of pickles, then the data.
            file.seek(0)
            while True:
                _collect_globals(file, names)
    except (ValueError, IndexError, KeyError, EOFError, OSError):
        pass  # the end of the pickles, or damage that is reported elsewhere
    except zipfile.BadZipFile:
        pass
    return names


def _collect_globals(stream: IO[bytes], names: list[str]) -> None:
    """Appends the globals that the next pickle in ``stream`` names."""
    strings: list[str] = []
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


def _read_safetensors(path: str, map_location: Any) -> dict:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise CheckpointError(
            f'{path} is a safetensors file and the package safetensors is '
            'not installed. Install it: pip install safetensors'
        ) from error
    try:
        with safe_open(path, framework='pt', device='cpu') as file:
            meta = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        with open(path, 'rb') as raw:
            found = _describe(raw)
        raise CheckpointError(
            f'{path} cannot be read as a safetensors file: {found}. Copy or '
            f'download it again. (safetensors: {_reason(error)})'
        ) from error
    if isinstance(map_location, (str, torch.device)):
        tensors = {n: t.to(map_location) for n, t in tensors.items()}
    return dict(meta=meta, state_dict=tensors)


def _download(url: str) -> str:
    """Fetches a file once a machine, where PyTorch keeps such files."""
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    name = os.path.basename(urlparse(url).path)
    if not name:
        raise CheckpointError(f'{url} names no file. Give the URL of one.')
    path = os.path.join(folder, name)
    rank, world_size = get_dist_info()

    def fetch() -> None:
        if not os.path.exists(path):
            os.makedirs(folder, exist_ok=True)
            print_log(f'Downloading {url} to {path}', logger='current')
            torch.hub.download_url_to_file(url, path, progress=rank == 0)

    # One process first, so that those of its machine find the file there.
    if rank == 0:
        fetch()
    if world_size > 1:
        torch.distributed.barrier()
        fetch()
    return path


def load_from_local(filename: str, map_location: Any = None) -> dict:
    """MMEngine's loader of local files, as :func:`read_checkpoint` reads."""
    return _read_local(filename, map_location)


def load_from_http(filename: str, map_location: Any = None) -> dict:
    """MMEngine's loader of URLs, as :func:`read_checkpoint` reads."""
    return read_checkpoint(filename, map_location)


def register_safe_loader() -> None:
    """Makes MMEngine read local files and URLs by :func:`read_checkpoint`.

    MMEngine's own loader falls back to unrestricted unpickling as soon as the
    restricted one refuses a file, with no more than a warning. Its extension
    point for loaders replaces it for every model of the process: ``init_cfg``,
    ``load_from``, resuming and testing. Calling this twice is harmless.
    """
    CheckpointLoader.register_scheme(
        prefixes='', loader=load_from_local, force=True
    )
    CheckpointLoader.register_scheme(
        prefixes=('http://', 'https://'), loader=load_from_http, force=True
    )
