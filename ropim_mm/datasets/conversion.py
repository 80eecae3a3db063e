"""From the images of a folder or archive to a file each, by many processes.

A :class:`Converter` says what is made of one image; :func:`convert` and
:func:`verify` run it over all of them. The files lie in a tree that mirrors
the images'. A file of settings at its root keeps results of different ones
from being mixed.

Every file is written aside, made durable and renamed. What is there under its
name is therefore complete, whatever happened, and a run that was stopped goes
on from there. Unfinished files are in ``.unfinished-I-of-N`` (shard I of N),
which only the run that holds its lock touches, and empties when it starts. It
also removes those that runs of another number of shards have left.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple, TextIO

import numpy as np
from mmengine import fileio
from tqdm import tqdm

from ropim_mm.datasets.transforms.loading import decode_image, image_shape
from ropim_mm.datasets.zip_images import (
    IMG_EXTENSIONS,
    ZipReader,
    check_member_name,
)
from ropim_mm.errors import InputError

_UNFINISHED = '.unfinished-'
_LOCK = 'lock'
# Batches of names a worker that are under way at a time.
_UNDER_WAY = 4
# Seconds between two lines of progress where it does not go to a terminal.
_LINES = 10.0
# Seconds to wait for the workers of a run that was killed to be gone.
_GRACE = 2.0
_PR_SET_PDEATHSIG = 1  # of Linux: the signal a process gets with its parent


class UnreadableSourceError(InputError):
    """An image to be converted cannot be read."""


class UnsuitableImageError(InputError):
    """An image can be read, and nothing be made of it; says why."""


class Settings(ABC):
    """How files are made; a frozen dataclass whose default is complete.

    Attributes:
        FILE: Name of the file that holds them, in the folder of results.
        PRODUCT: What results are called in messages, such as 'label maps'.
    """

    FILE: ClassVar[str]
    PRODUCT: ClassVar[str]

    @abstractmethod
    def to_json(self) -> dict:
        """As files hold them: numbers, texts and lists."""

    @classmethod
    @abstractmethod
    def from_json(cls, found: dict) -> Settings:
        """What :meth:`to_json` gave.

        Raises:
            ValueError, KeyError, TypeError: It is something else.
        """

    @classmethod
    def of_folder(cls, out: str | os.PathLike) -> Settings | None:
        """The settings that a folder of results was begun with, if it was.

        Raises:
            InputError: Its file of settings is damaged.
        """
        path = Path(out, cls.FILE)
        try:
            return cls.from_json(json.loads(path.read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InputError(f'cannot read {path}: {error}') from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f'{path} does not hold the settings of {cls.PRODUCT}: '
                f'{error!r}. Put it back as it was, such as '
                f'{json.dumps(cls().to_json())}, or choose an empty folder'
            ) from error


class Made(NamedTuple):
    """What was made of an image: the file's content, and the size in bytes
    that reports compare it with."""

    content: bytes
    raw: int


@dataclass
class Converter(ABC):
    """What is made of an image, and how that is checked.

    Travels to the workers as it is.

    Attributes:
        settings: How files are made.
        SETTINGS: Their class.
        ITEMS: What the files made are called in messages, in the plural.
        OUTSIDE: Why they may not lie among the images.
        BATCH: Images that a worker is given at a time, at most: many where
            one takes milliseconds.
    """

    settings: Any

    SETTINGS: ClassVar[type[Settings]]
    ITEMS: ClassVar[str]
    OUTSIDE: ClassVar[str]
    BATCH: ClassVar[int] = 1

    @abstractmethod
    def target(self, name: str) -> str:
        """Path of the file below its folder, of an image's below its."""

    @abstractmethod
    def make(self, data: bytes, image: np.ndarray) -> Made:
        """Convert an image.

        Args:
            data: The encoded image.
            image: The same decoded, (H, W, 3) uint8; blue, green, red.

        Raises:
            UnsuitableImageError: Nothing can be made of it.
        """

    @abstractmethod
    def inspect(self, content: bytes) -> Any:
        """What a file made earlier holds, for :meth:`compare`.

        Raises:
            InputError: It is damaged, or made with other settings.
        """

    @abstractmethod
    def compare(self, found: Any, data: bytes, shape: tuple[int, int]) -> None:
        """Check that a file belongs to an image.

        Args:
            found: By :meth:`inspect`.
            data: The encoded image.
            shape: Its height and width.

        Raises:
            InputError: It does not.
        """


class ImageSource:
    """Images of a folder, at any depth, or of a zip archive.

    Args:
        path: The folder or the archive.
        converter: Says where the files made of them lie.

    Raises:
        InputError: There is neither, it holds no images, two of which the
            same file would be made, or one whose name leads out of it.
    """

    def __init__(self, path: str | os.PathLike, converter: Converter) -> None:
        self.path = os.fspath(path)
        self._members = None
        if os.path.isdir(self.path):
            found = fileio.list_dir_or_file(
                self.path, list_dir=False, recursive=True
            )
        elif os.path.exists(self.path):
            self._reader = ZipReader(self.path)
            self._members = {m.name: m for m in self._reader.members()}
            found = [n for n in self._members if '__MACOSX/' not in n]
        else:
            raise InputError(
                f'no folder or zip archive {self.path} (current folder '
                f'{os.getcwd()})'
            )
        #: Names relative to the root, with slashes, sorted.
        self.names = sorted(
            name for name in found if name.lower().endswith(IMG_EXTENSIONS)
        )
        if not self.names:
            raise InputError(
                f'no images in {self.path}; expected names that end in '
                f'{IMG_EXTENSIONS}, at any depth'
            )
        seen: dict[str, str] = {}
        for name in self.names:
            if self._members is not None:
                check_member_name(name, self.path)
            target = converter.target(name)
            other = seen.setdefault(target, name)
            if other != name:
                raise InputError(
                    f'{other} and {name} in {self.path} would have the same '
                    f'file of {converter.SETTINGS.PRODUCT}, {target}; rename '
                    'one of them'
                )

    def read(self, name: str) -> bytes:
        """The encoded image."""
        if self._members is not None:
            return self._reader.read(self._members[name])
        return Path(self.path, name).read_bytes()


@dataclass
class Report:
    """What a run did to the images of its shard.

    Attributes:
        total: Images of the shard.
        done: Files that were made, or found in order by a verification.
        present: Files that had been there before.
        missing: Images that can be read and whose files are not there, by a
            verification.
        broken: Files that are not as they should be, with the reason; by a
            verification.
        unreadable: Images that cannot be read, or of which nothing can be
            made, with the reason.
        written: Bytes of the files made.
        raw: Bytes that they are compared with, see :class:`Made`.
        seconds: It took.
    """

    total: int
    done: int = 0
    present: int = 0
    missing: list[str] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    written: int = 0
    raw: int = 0
    seconds: float = 0.0


def convert(
    kind: type[Converter],
    images: str | os.PathLike,
    out: str | os.PathLike,
    settings: Settings | None = None,
    workers: int = 1,
    shard: tuple[int, int] = (0, 1),
    on_error: str = 'raise',
    repair: bool = False,
    progress: TextIO | None = None,
) -> Report:
    """Make the files of all images that have none yet.

    Args:
        kind: What to make of them.
        images: Folder or zip archive.
        out: Folder for the files; made where it is missing.
        settings: None for those that ``out`` was begun with, else the default.
        workers: Processes; 0 works in this one.
        shard: (I, N): only every N-th image, beginning with the I-th, from 0.
        on_error: ``'raise'`` stops at an image that cannot be read;
            ``'skip'`` leaves it out and reports it.
        repair: Check the files that are there first, and make the bad ones
            again.
        progress: Where to show a bar, such as ``sys.stderr``; under
            ``repair`` one for the check comes first.

    Raises:
        InputError: The images, the folder or an argument do not fit; another
            run is at the same shard; a worker died.
        UnreadableSourceError: An image cannot be read, under ``'raise'``.
    """
    if on_error not in ('raise', 'skip'):
        raise InputError(
            f"on_error is {on_error!r}; expected 'raise' or 'skip'"
        )
    converter, source, names = prepare(kind, images, out, settings, shard)
    start = time.perf_counter()
    report = Report(total=len(names))
    with _own_shard(out, shard) as aside:
        with _naming('cannot write', out):
            _keep_settings(out, converter, aside)
        present = _present(out, converter, names)
        if repair and present:
            checked = _verify(
                source, out, converter, present, workers, progress
            )
            bad = {name for name, _ in checked.broken}
            present = [name for name in present if name not in bad]
        skip = set(present)
        report.present = len(present)
        todo = [name for name in names if name not in skip]
        maker = _Maker(source, os.fspath(out), converter, aside)
        with (
            Bar(len(names), report.present, progress) as bar,
            closing(_work(maker, todo, workers, kind.BATCH)) as results,
        ):
            for name, error, written, raw in results:
                bar.step()
                if error is None:
                    report.done += 1
                    report.written += written
                    report.raw += raw
                    continue
                report.unreadable.append((name, error))
                if on_error == 'raise':
                    raise UnreadableSourceError(
                        f'cannot read image {name} of {source.path}: {error}. '
                        'Repair or remove it, or leave such images out '
                        f'(--on-error skip). The {kind.ITEMS} made so far are '
                        'kept'
                    )
    report.seconds = time.perf_counter() - start
    return report


def verify(
    kind: type[Converter],
    images: str | os.PathLike,
    out: str | os.PathLike,
    settings: Settings | None = None,
    workers: int = 1,
    shard: tuple[int, int] = (0, 1),
    progress: TextIO | None = None,
) -> Report:
    """Check that every image has a file that can be read and fits it.

    Images whose files are missing or broken are decoded, to tell those whose
    files can be made from those that cannot be read.

    Arguments as of :func:`convert`. Nothing is written.

    Raises:
        InputError: The images, the folder or an argument do not fit.
    """
    converter, source, names = prepare(kind, images, out, settings, shard)
    start = time.perf_counter()
    present = _present(out, converter, names)
    report = _verify(source, out, converter, present, workers, progress)
    report.total = len(names)
    skip = set(present)
    missing = [name for name in names if name not in skip]
    doubtful = missing + [name for name, _ in report.broken]
    unreadable = _unreadable(source, doubtful, workers, kind.BATCH, progress)
    report.missing = [name for name in missing if name not in unreadable]
    report.unreadable += unreadable.items()
    report.seconds = time.perf_counter() - start
    return report


def prepare(
    kind: type[Converter],
    images: str | os.PathLike,
    out: str | os.PathLike,
    settings: Settings | None = None,
    shard: tuple[int, int] = (0, 1),
) -> tuple[Converter, ImageSource, list[str]]:
    """Check the arguments of a run, and list its images.

    Arguments as of :func:`convert`. Nothing is written.

    Returns:
        The converter, the images and the names of those of the shard.

    Raises:
        InputError: The images, the folder or an argument do not fit.
    """
    index, count = shard
    if not 0 <= index < count:
        raise InputError(
            f'shard is {index}/{count}; expected I/N with I from 0 to N - 1'
        )
    real_in, real_out = Path(images).resolve(), Path(out).resolve()
    if real_out in real_in.parents:
        raise InputError(
            f'{images} lies in {out}: {kind.ITEMS} would come among what is '
            'not theirs. Give a folder beside it'
        )
    if real_out == real_in or real_in in real_out.parents:
        raise InputError(
            f'{out} lies in {images}: {kind.OUTSIDE}. Give a folder beside it'
        )
    if real_out.exists() and not real_out.is_dir():
        raise InputError(
            f'{out} is a file; expected a folder for the {kind.ITEMS}'
        )
    begun = kind.SETTINGS.of_folder(out)
    if begun is None:
        with _naming('cannot read', out):
            _check_new(out, kind)
    if settings is None:
        settings = begun or kind.SETTINGS()
    elif begun not in (None, settings):
        raise InputError(
            f'{Path(out, settings.FILE)}: the {kind.ITEMS} there are made '
            f'with {begun}, and now {settings} is asked for. Give another '
            'folder, or the same settings'
        )
    converter = kind(settings)
    source = ImageSource(images, converter)
    return converter, source, source.names[index::count]


def _check_new(out: str | os.PathLike, kind: type[Converter]) -> None:
    """Refuse a folder of something else: its files might be overwritten."""
    try:
        found = sorted(os.listdir(out))
    except (FileNotFoundError, NotADirectoryError):
        return
    found = [name for name in found if not name.startswith(_UNFINISHED)]
    # A shard that has begun since has written its settings before its files.
    if found and not Path(out, kind.SETTINGS.FILE).exists():
        raise InputError(
            f'{out} holds {len(found)} entries, such as {found[:5]}, and no '
            f'{kind.SETTINGS.FILE}: it is no folder of '
            f'{kind.SETTINGS.PRODUCT}. Choose an empty one, or one that does '
            'not exist'
        )


@contextmanager
def _naming(failure: str, path: str | os.PathLike) -> Iterator[None]:
    """Say what could not be done with which file or folder."""
    try:
        yield
    except OSError as error:
        raise InputError(f'{failure} {path}: {error}') from error


def _write_durably(path: str, data: bytes) -> None:
    """Write a file of a folder that no other run uses."""
    with open(path, 'wb') as file:
        file.write(data)
        file.flush()
        # Else a machine that fails may keep the new name and not the bytes.
        os.fsync(file.fileno())


def _keep_settings(
    out: str | os.PathLike, converter: Converter, aside: str
) -> None:
    settings = converter.settings
    path = Path(out, settings.FILE)
    if not path.exists():
        data = json.dumps(settings.to_json()).encode() + b'\n'
        draft = os.path.join(aside, settings.FILE)
        _write_durably(draft, data)
        # Shards start at the same time: the first one's settings stay.
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(draft, path)
    begun = settings.of_folder(out)
    if begun != settings:
        raise InputError(
            f'{path}: another run has just begun to make {converter.ITEMS} '
            f'there with {begun}, and this one is asked for {settings}'
        )


@contextmanager
def _own_shard(
    out: str | os.PathLike, shard: tuple[int, int]
) -> Iterator[str]:
    """A folder for unfinished files that no other run uses, empty."""
    folder = Path(out, f'{_UNFINISHED}{shard[0]}-of-{shard[1]}')
    with _naming('cannot write', out):
        lock = _open_locked(folder / _LOCK)
    if lock is None:
        raise InputError(
            f'another process is making shard {shard[0]}/{shard[1]} of '
            f'{out} (it holds {folder / _LOCK}); wait for it, or stop it'
        )
    with lock:
        # Left behind by a run that was killed.
        with _naming('cannot write', out):
            for entry in folder.iterdir():
                if entry.name != _LOCK:
                    entry.unlink()
            _sweep(out, shard[1])
        try:
            yield str(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(out: str | os.PathLike, count: int) -> None:
    """Remove what runs of another number of shards than this have left.

    Those of the same number are left alone, since each empties its own. So
    the shards of a job on several machines are safe from each other where
    the file system keeps locks to one machine.
    """
    for folder in Path(out).glob(f'{_UNFINISHED}*'):
        if folder.name.endswith(f'-of-{count}'):
            continue
        try:
            file = open(folder / _LOCK, 'ab')
        except OSError:  # its run has just ended
            continue
        with file:
            # Where there are no locks, nobody knows whether it is in use.
            if _try_lock(file):
                shutil.rmtree(folder, ignore_errors=True)


def _open_locked(path: Path) -> BinaryIO | None:
    """The file, locked by this process; None where another one has it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, 'ab')
        except FileNotFoundError:  # a run that ends has removed the folder
            continue
        try:
            if not _lock(file):
                file.close()
                return None
            # A run that ended meanwhile has removed what is locked here, and
            # a third one would lock another file of the same name.
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        file.close()


def _lock(file: BinaryIO) -> bool:
    """Whether nobody else has the file locked."""
    end = time.monotonic() + _GRACE
    while _try_lock(file) is False:
        if time.monotonic() > end:
            return False
        time.sleep(_GRACE / 20)
    return True


def _try_lock(file: BinaryIO) -> bool | None:
    """Whether the file could be locked; None where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _present(
    out: str | os.PathLike, converter: Converter, names: Iterable[str]
) -> list[str]:
    """Images whose file is there; folders are listed once each."""
    listed: dict[str, set[str]] = {}
    found = []
    for name in names:
        folder, _, file = converter.target(name).rpartition('/')
        if folder not in listed:
            try:
                listed[folder] = set(os.listdir(Path(out, folder)))
            except (FileNotFoundError, NotADirectoryError):
                listed[folder] = set()
        if file in listed[folder]:
            found.append(name)
    return found


def _verify(
    source: ImageSource,
    out: str | os.PathLike,
    converter: Converter,
    names: Sequence[str],
    workers: int,
    progress: TextIO | None,
) -> Report:
    report = Report(total=len(names))
    checker = _Checker(source, os.fspath(out), converter)
    with (
        Bar(len(names), 0, progress) as bar,
        closing(_work(checker, names, workers, converter.BATCH)) as results,
    ):
        for name, broken, unreadable in results:
            bar.step()
            if broken is not None:
                report.broken.append((name, broken))
            elif unreadable is not None:
                report.unreadable.append((name, unreadable))
            else:
                report.done += 1
    return report


def _unreadable(
    source: ImageSource,
    names: Sequence[str],
    workers: int,
    batch: int,
    progress: TextIO | None,
) -> dict[str, str]:
    """Images that cannot be decoded, with the reason."""
    if not names:
        return {}
    found = {}
    with (
        Bar(len(names), 0, progress) as bar,
        closing(_work(_Decoder(source), names, workers, batch)) as results,
    ):
        for name, error in results:
            bar.step()
            if error is not None:
                found[name] = error
    return found


@dataclass
class _Decoder:
    """Tries to decode an image: name -> (name, error)."""

    source: ImageSource

    def __call__(self, name: str) -> tuple[str, str | None]:
        try:
            decode_image(self.source.read(name))
        except Exception as error:
            return name, str(error) or type(error).__name__
        return name, None


@dataclass
class _Maker:
    """Makes the file of an image: name -> (name, error, bytes, raw bytes)."""

    source: ImageSource
    out: str
    converter: Converter
    aside: str

    def __call__(self, name: str) -> tuple[str, str | None, int, int]:
        try:
            data = self.source.read(name)
            image = decode_image(data)
        except Exception as error:
            return name, str(error) or type(error).__name__, 0, 0
        try:
            content, raw = self.converter.make(data, image)
        except UnsuitableImageError as error:
            return name, str(error), 0, 0
        target = os.path.join(self.out, self.converter.target(name))
        # No suffix: whoever lists the folder must not take it for an image.
        aside = os.path.join(self.aside, str(os.getpid()))
        with _naming('cannot write', target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            _write_durably(aside, content)
            os.replace(aside, target)
        return name, None, len(content), raw


@dataclass
class _Checker:
    """Checks the file of an image: name -> (name, broken, unreadable)."""

    source: ImageSource
    out: str
    converter: Converter

    def __call__(self, name: str) -> tuple[str, str | None, str | None]:
        converter = self.converter
        try:
            found = converter.inspect(
                Path(self.out, converter.target(name)).read_bytes()
            )
        except (InputError, OSError) as error:
            return name, str(error), None
        try:
            data = self.source.read(name)
            shape = image_shape(data)
        except Exception as error:
            return name, None, str(error) or type(error).__name__
        try:
            converter.compare(found, data, shape)
        except InputError as error:
            return name, str(error), None
        return name, None, None


# What a worker process does with a name; set once in each.
_TASK = None


def _work(
    task: Callable[[str], tuple],
    names: Sequence[str],
    workers: int,
    batch: int = 1,
) -> Iterator[tuple]:
    """Results of a task on each name, as they come.

    Only a few names are under way at a time, however many there are.

    Args:
        task: Name to result.
        names: What to do it on.
        workers: Processes; 0 works in this one.
        batch: Names that are handed to a worker at a time, at most; fewer
            where not every worker would have some.
    """
    if not workers:
        yield from map(task, names)
        return
    if not names:
        return
    batch = max(1, min(batch, len(names) // (_UNDER_WAY * workers)))
    batches = (names[i : i + batch] for i in range(0, len(names), batch))
    # fork: workers take over what is imported and listed.
    pool = ProcessPoolExecutor(
        min(workers, len(names)),
        mp_context=get_context('fork'),
        initializer=_start_worker,
        initargs=(task, os.getpid()),
    )
    pending = {
        pool.submit(_run_task, some)
        for some in islice(batches, _UNDER_WAY * workers)
    }
    try:
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for some in islice(batches, len(done)):
                pending.add(pool.submit(_run_task, some))
            for future in done:
                yield from future.result()
    except BrokenProcessPool:
        raise InputError(
            'a worker process died (killed from outside, or out of memory). '
            'What is finished is kept: run the same command again, with '
            'fewer workers if memory was short'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(task: Callable[[str], tuple], parent: int) -> None:
    global _TASK
    _TASK = task
    # Ctrl-C reaches the whole group; the main process ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A main process that is killed cannot do so. A thread that watches it
    # would wait for a task that keeps the interpreter's lock.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _run_task(names: Sequence[str]) -> list[tuple]:
    return [_TASK(name) for name in names]


class Bar:
    """tqdm's bar on a terminal; elsewhere one of its lines now and then."""

    def __init__(self, total: int, done: int, file: TextIO | None) -> None:
        terminal = file is not None and file.isatty()
        self._bar = tqdm(
            total=total,
            initial=done,
            unit='image',
            file=file if terminal or file is None else _Lines(file),
            disable=file is None,
            mininterval=0.5 if terminal else _LINES,
            miniters=None if terminal else 1,
            ncols=None if terminal else 79,
        )

    def step(self) -> None:
        self._bar.update()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()


class _Lines:
    """A file in which every state of a bar has a line of its own."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        text = text.strip('\r\n ')
        if text:
            self._file.write(f'{text}\n')

    def flush(self) -> None:
        self._file.flush()
