"""Writing files so that nothing half-written is ever under their name."""

import os
from collections.abc import Callable
from typing import BinaryIO

from .reading import CheckpointError


def check_destination(path: str | os.PathLike, force: bool = False) -> None:
    """Refuses a destination before work is spent on its content.

    Args:
        path: File to be written.
        force: Whether an existing file may be replaced.

    Raises:
        CheckpointError: It is a folder, or exists and ``force`` is off.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        raise CheckpointError(
            f'{path} is a folder. Expected the name of a file to write.'
        )
    if os.path.lexists(path) and not force:
        raise CheckpointError(
            f'{path} exists already. Give another name, or --force to '
            'replace it.'
        )


def write_atomically(
    path: str | os.PathLike,
    write: Callable[[BinaryIO], None],
    force: bool = False,
) -> None:
    """Writes beside ``path``, makes it durable, then renames.

    Whatever interrupts this, ``path`` holds either what it held before or
    the complete new content. Missing folders are created.

    Args:
        path: File to write.
        write: Puts the content into the open file it is given.
        force: Whether an existing file may be replaced.

    Raises:
        CheckpointError: See :func:`check_destination`.
        OSError: The content could not be written.
    """
    path = os.path.abspath(os.fspath(path))
    check_destination(path, force)
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    aside = os.path.join(folder, f'.{name}.{os.getpid()}.partial')
    # Unlike tempfile's, these permissions follow the user's umask.
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if force:
            os.replace(aside, path)
        else:
            # Unlike a rename, fails if somebody made the file meanwhile.
            try:
                os.link(aside, path)
            except FileExistsError:
                check_destination(path)
                raise
            except OSError:  # a file system without hard links
                check_destination(path)
                os.rename(aside, path)
    finally:
        if os.path.exists(aside):
            os.unlink(aside)
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """Makes a rename durable, where the system can open folders."""
    if not hasattr(os, 'O_DIRECTORY'):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
