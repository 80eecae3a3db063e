"""Felzenszwalb-Huttenlocher label maps of whole datasets, in files.

One file an image, in the format of :mod:`~ropim_mm.datasets.label_maps`, in a
folder tree that mirrors the images'. ``fh_masks.json`` at its root holds the
settings, so that maps of different settings do not get mixed.

Every file is written aside, made durable and renamed. What is there under its
name is therefore complete, whatever happened, and a run that was stopped goes
on from there. Unfinished files are in ``.unfinished-I-of-N`` (shard I of N),
which only the run that holds its lock touches, and empties when it starts.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np
from mmengine import fileio
from tqdm import tqdm

from ropim_mm.checkpoints.writing import write_atomically
from ropim_mm.datasets.label_maps import (
    LabelMaps,
    decode_label_maps,
    encode_label_maps,
)
from ropim_mm.datasets.region_datasets import map_name
from ropim_mm.datasets.regions import check_fh_settings, felzenszwalb_maps
from ropim_mm.datasets.transforms.loading import decode_image, image_shape
from ropim_mm.datasets.zip_images import (
    IMG_EXTENSIONS,
    ZipReader,
    check_member_name,
)
from ropim_mm.errors import InputError

SETTINGS_FILE = 'fh_masks.json'
_UNFINISHED = '.unfinished-'
# Images a worker that are under way at a time.
_UNDER_WAY = 4
# Seconds between two lines of progress where it does not go to a terminal.
_LINES = 10.0
# Seconds to wait for the workers of a run that was killed to be gone.
_GRACE = 2.0
_PR_SET_PDEATHSIG = 1  # of Linux: the signal a process gets with its parent


@dataclass(frozen=True)
class FHSettings:
    """How maps are made, see
    :func:`~ropim_mm.datasets.regions.felzenszwalb_maps`.

    Raises:
        InputError: The settings do not fit together.
    """

    scales: tuple[float, ...] = (500, 1000, 1500)
    min_sizes: tuple[int, ...] = (500, 1000, 1500)
    sigma: float = 0.8

    def __post_init__(self) -> None:
        check_fh_settings(self.scales, self.min_sizes, self.sigma)

    def to_json(self) -> dict:
        """As files hold it."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def of_folder(cls, out: str | os.PathLike) -> FHSettings | None:
        """The settings that a folder of maps was begun with, if it was.

        Raises:
            InputError: Its file of settings is damaged.
        """
        path = Path(out, SETTINGS_FILE)
        try:
            found = json.loads(path.read_bytes())
            return cls(
                tuple(found['scales']),
                tuple(found['min_sizes']),
                found['sigma'],
            )
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InputError(f'cannot read {path}: {error}') from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f'{path} does not hold the settings of label maps: '
                f'{error!r}. Put it back as it was, such as '
                f'{json.dumps(cls().to_json())}, or choose an empty folder'
            ) from error


class ImageSource:
    """Images of a folder, at any depth, or of a zip archive.

    Args:
        path: The folder or the archive.

    Raises:
        InputError: There is neither, it holds no images, two whose label
            maps would be one file, or one whose name leads out of it.
    """

    def __init__(self, path: str | os.PathLike) -> None:
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
            other = seen.setdefault(map_name(name), name)
            if other != name:
                raise InputError(
                    f'{other} and {name} in {self.path} would have the same '
                    f'file of label maps, {map_name(name)}; rename one of '
                    'them'
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
        done: Maps that were made, or found in order by a verification.
        present: Maps that had been there before.
        missing: Images that can be read and whose maps are not there, by a
            verification.
        broken: Maps that are not as they should be, with the reason; by a
            verification.
        unreadable: Images that cannot be read, with the reason.
        written: Bytes of the files made.
        raw: Bytes of the same maps as raw uint8 arrays.
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


class UnreadableSourceError(InputError):
    """An image to be segmented cannot be read."""


def create_maps(
    images: str | os.PathLike,
    out: str | os.PathLike,
    settings: FHSettings | None = None,
    workers: int = 1,
    shard: tuple[int, int] = (0, 1),
    on_error: str = 'raise',
    repair: bool = False,
    progress: TextIO | None = None,
) -> Report:
    """Make the label maps of all images that have none yet.

    Args:
        images: Folder or zip archive.
        out: Folder for the maps; made where it is missing.
        settings: None for those that ``out`` was begun with, else the default.
        workers: Processes; 0 works in this one.
        shard: (I, N): only every N-th image, beginning with the I-th, from 0.
        on_error: ``'raise'`` stops at an image that cannot be read;
            ``'skip'`` leaves it out and reports it.
        repair: Check the maps that are there first, and make the bad ones
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
    source, names, settings = _prepare(images, out, settings, shard)
    start = time.perf_counter()
    report = Report(total=len(names))
    with _own_shard(out, shard) as aside:
        with _naming('cannot write', out):
            _keep_settings(out, settings, aside)
        present = _present(out, names)
        if repair and present:
            checked = _verify(
                source, out, settings, present, workers, progress
            )
            bad = {name for name, _ in checked.broken}
            present = [name for name in present if name not in bad]
        skip = set(present)
        report.present = len(present)
        todo = [name for name in names if name not in skip]
        maker = _Maker(source, os.fspath(out), settings, aside)
        with (
            _Bar(len(names), report.present, progress) as bar,
            closing(_work(maker, todo, workers)) as results,
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
                        '(--on-error skip). The maps made so far are kept'
                    )
    report.seconds = time.perf_counter() - start
    return report


def verify_maps(
    images: str | os.PathLike,
    out: str | os.PathLike,
    settings: FHSettings | None = None,
    workers: int = 1,
    shard: tuple[int, int] = (0, 1),
    progress: TextIO | None = None,
) -> Report:
    """Check that every image has maps that can be read and fit it.

    Images whose maps are missing or broken are decoded, to tell those whose
    maps can be made from those that cannot be read.

    Arguments as of :func:`create_maps`. Nothing is written.

    Raises:
        InputError: The images, the folder or an argument do not fit.
    """
    source, names, settings = _prepare(images, out, settings, shard)
    start = time.perf_counter()
    present = _present(out, names)
    report = _verify(source, out, settings, present, workers, progress)
    report.total = len(names)
    skip = set(present)
    missing = [name for name in names if name not in skip]
    doubtful = missing + [name for name, _ in report.broken]
    unreadable = _unreadable(source, doubtful, workers, progress)
    report.missing = [name for name in missing if name not in unreadable]
    report.unreadable += unreadable.items()
    report.seconds = time.perf_counter() - start
    return report


def _prepare(
    images: str | os.PathLike,
    out: str | os.PathLike,
    settings: FHSettings | None,
    shard: tuple[int, int],
) -> tuple[ImageSource, list[str], FHSettings]:
    index, count = shard
    if not 0 <= index < count:
        raise InputError(
            f'shard is {index}/{count}; expected I/N with I from 0 to N - 1'
        )
    real_in, real_out = Path(images).resolve(), Path(out).resolve()
    if real_out in real_in.parents:
        raise InputError(
            f'{images} lies in {out}: maps would come among what is not '
            'theirs. Give a folder beside it'
        )
    if real_out == real_in or real_in in real_out.parents:
        raise InputError(
            f'{out} lies in {images}: maps are PNG files, and would be taken '
            'for images. Give a folder beside it'
        )
    if real_out.exists() and not real_out.is_dir():
        raise InputError(f'{out} is a file; expected a folder for the maps')
    begun = FHSettings.of_folder(out)
    if begun is None:
        with _naming('cannot read', out):
            _check_new(out)
    if settings is None:
        settings = begun or FHSettings()
    elif begun not in (None, settings):
        raise InputError(
            f'{Path(out, SETTINGS_FILE)}: the maps there are made with '
            f'{begun}, and now {settings} is asked for. Give another folder, '
            'or the same settings'
        )
    source = ImageSource(images)
    return source, source.names[index::count], settings


def _check_new(out: str | os.PathLike) -> None:
    """Refuse a folder of something else: its files might be overwritten."""
    try:
        found = sorted(os.listdir(out))
    except (FileNotFoundError, NotADirectoryError):
        return
    found = [name for name in found if not name.startswith(_UNFINISHED)]
    # A shard that has begun since has written its settings before its maps.
    if found and not Path(out, SETTINGS_FILE).exists():
        raise InputError(
            f'{out} holds {len(found)} entries, such as {found[:5]}, and no '
            f'{SETTINGS_FILE}: it is no folder of label maps. Choose an '
            'empty one, or one that does not exist'
        )


@contextmanager
def _naming(failure: str, path: str | os.PathLike) -> Iterator[None]:
    """Say what could not be done with which file or folder."""
    try:
        yield
    except OSError as error:
        raise InputError(f'{failure} {path}: {error}') from error


def _keep_settings(
    out: str | os.PathLike, settings: FHSettings, aside: str
) -> None:
    path = Path(out, SETTINGS_FILE)
    if not path.exists():
        data = json.dumps(settings.to_json()).encode() + b'\n'
        draft = os.path.join(aside, SETTINGS_FILE)
        write_atomically(draft, lambda file: file.write(data), force=True)
        # Shards start at the same time: the first one's settings stay.
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(draft, path)
    begun = FHSettings.of_folder(out)
    if begun != settings:
        raise InputError(
            f'{path}: another run has just begun to make maps there with '
            f'{begun}, and this one is asked for {settings}'
        )


@contextmanager
def _own_shard(
    out: str | os.PathLike, shard: tuple[int, int]
) -> Iterator[str]:
    """A folder for unfinished files that no other run uses, empty."""
    folder = Path(out, f'{_UNFINISHED}{shard[0]}-of-{shard[1]}')
    with _naming('cannot write', out):
        lock = _open_locked(folder / 'lock')
    if lock is None:
        raise InputError(
            f'another process is making shard {shard[0]}/{shard[1]} of '
            f'{out} (it holds {folder / "lock"}); wait for it, or stop it'
        )
    with lock:
        # Left behind by a run that was killed.
        with _naming('cannot write', out):
            for entry in folder.iterdir():
                if entry.name != 'lock':
                    entry.unlink()
        try:
            yield str(folder)
        finally:
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
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(_GRACE / 20)
        except OSError:  # a file system without locks
            return True
        else:
            return True


def _present(out: str | os.PathLike, names: Iterable[str]) -> list[str]:
    """Images whose file of maps is there; folders are listed once each."""
    listed: dict[str, set[str]] = {}
    found = []
    for name in names:
        folder, _, file = map_name(name).rpartition('/')
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
    settings: FHSettings,
    names: Sequence[str],
    workers: int,
    progress: TextIO | None,
) -> Report:
    report = Report(total=len(names))
    checker = _Checker(source, os.fspath(out), settings)
    with (
        _Bar(len(names), 0, progress) as bar,
        closing(_work(checker, names, workers)) as results,
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
    progress: TextIO | None,
) -> dict[str, str]:
    """Images that cannot be decoded, with the reason."""
    if not names:
        return {}
    found = {}
    with (
        _Bar(len(names), 0, progress) as bar,
        closing(_work(_Decoder(source), names, workers)) as results,
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
    """Makes the maps of an image: name -> (name, error, bytes, raw bytes)."""

    source: ImageSource
    out: str
    settings: FHSettings
    aside: str

    def __call__(self, name: str) -> tuple[str, str | None, int, int]:
        try:
            image = decode_image(self.source.read(name))
        except Exception as error:
            return name, str(error) or type(error).__name__, 0, 0
        maps = felzenszwalb_maps(
            np.ascontiguousarray(image[..., ::-1]),
            self.settings.scales,
            self.settings.min_sizes,
            self.settings.sigma,
        )
        data = encode_label_maps(
            LabelMaps.from_maps(maps, self.settings.to_json())
        )
        target = os.path.join(self.out, map_name(name))
        aside = os.path.join(self.aside, f'{os.getpid()}.png')
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            write_atomically(aside, lambda file: file.write(data), force=True)
            os.replace(aside, target)
        except OSError as error:
            raise InputError(f'cannot write {target}: {error}') from error
        return name, None, len(data), maps.size


@dataclass
class _Checker:
    """Checks the maps of an image: name -> (name, broken, unreadable)."""

    source: ImageSource
    out: str
    settings: FHSettings

    def __call__(self, name: str) -> tuple[str, str | None, str | None]:
        try:
            maps = decode_label_maps(
                Path(self.out, map_name(name)).read_bytes()
            )
        except (InputError, OSError) as error:
            return name, str(error), None
        if maps.settings != self.settings.to_json():
            return (
                name,
                f'made with {maps.settings}; expected '
                f'{self.settings.to_json()}',
                None,
            )
        if maps.num_maps != len(self.settings.scales):
            return (
                name,
                f'it has {maps.num_maps} maps; expected '
                f'{len(self.settings.scales)}',
                None,
            )
        try:
            shape = image_shape(self.source.read(name))
        except Exception as error:
            return name, None, str(error) or type(error).__name__
        if maps.shape != shape:
            return (
                name,
                f'it is {maps.shape} (height, width) and its image {shape}',
                None,
            )
        return name, None, None


# What a worker process does with a name; set once in each.
_TASK = None


def _work(task, names: Sequence[str], workers: int) -> Iterator[tuple]:
    """Results of a task on each name, as they come.

    Only a few names are under way at a time, however many there are.
    """
    if not workers:
        yield from map(task, names)
        return
    if not names:
        return
    # fork: workers take over what is imported and listed.
    pool = ProcessPoolExecutor(
        min(workers, len(names)),
        mp_context=get_context('fork'),
        initializer=_start_worker,
        initargs=(task, os.getpid()),
    )
    waiting = iter(names)
    pending = {
        pool.submit(_run_task, name)
        for name in islice(waiting, _UNDER_WAY * workers)
    }
    try:
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for name in islice(waiting, len(done)):
                pending.add(pool.submit(_run_task, name))
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise InputError(
            'a worker process died (killed from outside, or out of memory). '
            'What is finished is kept: run the same command again, with '
            'fewer workers if memory was short'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(task, parent: int) -> None:
    global _TASK
    _TASK = task
    # Ctrl-C reaches the whole group; the main process ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A main process that is killed cannot do so. A thread that watches it
    # would wait for the segmentation, which keeps the interpreter's lock.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _run_task(name: str) -> tuple:
    return _TASK(name)


class _Bar:
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

    def __enter__(self) -> _Bar:
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
