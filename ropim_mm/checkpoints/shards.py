"""Checkpoints of which every process wrote its own part.

Such a checkpoint is a folder with one file a process, ``rank0.pth`` and so
on. Each has an entry ``shards``: whose it is, how many there are, and the
process's rows of every tensor that is split (along the first dimension, in
the order of the ranks). The file of rank 0 is, besides, the whole checkpoint
with ``None`` in the places of split tensors. They are read as any other
checkpoint is, without running code from them.
"""

import os
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from .reading import CheckpointError, read_checkpoint
from .writing import check_destination, write_atomically

# The entry of each file that says what it is.
KEY = 'shards'
FIELDS = ('rank', 'world_size', 'iter', 'state_dict', 'optimizer')


def shard_file(folder: str | os.PathLike, rank: int) -> str:
    """Path of the part of process ``rank``."""
    return os.path.join(os.fspath(folder), f'rank{rank}.pth')


def is_sharded(path: str | os.PathLike) -> bool:
    """Whether ``path`` is a folder with the parts of a checkpoint."""
    return os.path.isfile(shard_file(path, 0))


def read_shards(folder: str | os.PathLike) -> dict:
    """Put the parts of a checkpoint together.

    Args:
        folder: One that :func:`is_sharded` knows.

    Returns:
        dict: What one process would have written: ``state_dict``,
        ``optimizer`` (if it was saved), ``meta`` and all else, tensors whole
        and on the CPU.

    Raises:
        MissingCheckpointError: A part is missing.
        CheckpointError: A part is of another checkpoint, or damaged.
    """
    folder = os.fspath(folder)
    checkpoint = read_checkpoint(shard_file(folder, 0))
    first = _shards_of(checkpoint, folder, 0)
    parts = [first]
    for rank in range(1, first['world_size']):
        content = read_checkpoint(shard_file(folder, rank))
        own = _shards_of(content, folder, rank)
        for field in ('world_size', 'iter'):
            if own[field] != first[field]:
                raise CheckpointError(
                    f'{shard_file(folder, rank)}: {field} is {own[field]}, '
                    f'but {first[field]} in rank0.pth: the files are of '
                    'different checkpoints. Take all from one folder that a '
                    'run wrote.'
                )
        parts.append(own)
    del checkpoint[KEY]
    _fill(
        checkpoint['state_dict'],
        [part['state_dict'] for part in parts],
        f'{folder}: state_dict',
    )
    lost = [n for n, t in checkpoint['state_dict'].items() if t is None]
    if lost:
        raise CheckpointError(
            f'{folder}: no part has {", ".join(lost)}. Expected the folder as '
            'a run wrote it.'
        )
    optimizer = checkpoint.get('optimizer')
    if optimizer is not None:
        for index, state in optimizer['state'].items():
            _fill(
                state,
                [part['optimizer'].get(index, {}) for part in parts],
                f'{folder}: optimizer.state.{index}',
            )
    return checkpoint


def merge_shards(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    optimizer: bool = True,
    force: bool = False,
) -> str:
    """Write a sharded checkpoint as a plain one.

    Args:
        src: The folder.
        dst: The file to write.
        optimizer: Whether the state of the optimizer is kept, without which
            a run cannot be resumed; it is two thirds of the file.
        force: Replace ``dst`` if it exists.

    Returns:
        str: One line that says what was written.

    Raises:
        CheckpointError: ``src`` is no sharded checkpoint or incomplete, or
            ``dst`` exists.
    """
    src, dst = os.fspath(src), os.fspath(dst)
    check_destination(dst, force)
    if not is_sharded(src):
        kind = 'is a file' if os.path.isfile(src) else 'has no rank0.pth'
        raise CheckpointError(
            f'{src} {kind}. Expected the folder of a sharded checkpoint, with '
            'rank0.pth, rank1.pth and so on; a plain checkpoint needs no '
            'merging.'
        )
    count = 1
    while os.path.isfile(shard_file(src, count)):
        count += 1
    checkpoint = read_shards(src)
    if not optimizer:
        checkpoint.pop('optimizer', None)
    write_atomically(dst, partial(torch.save, checkpoint), force)
    tensors = [t for t in checkpoint['state_dict'].values()]
    return (
        f'{dst}: {len(tensors)} tensors, '
        f'{sum(t.numel() for t in tensors):,} numbers, from {count} parts'
        + ('' if 'optimizer' in checkpoint else ', without the optimizer')
    )


def _shards_of(content: dict, folder: str, rank: int) -> dict:
    shards = content.get(KEY)
    path = shard_file(folder, rank)
    if not isinstance(shards, dict) or any(f not in shards for f in FIELDS):
        raise CheckpointError(
            f'{path} has no entry {KEY!r} with {", ".join(FIELDS)}. Expected '
            'a part that a run with strategy.checkpoints="sharded" wrote.'
        )
    if shards['rank'] != rank:
        raise CheckpointError(
            f'{path} is the part of process {shards["rank"]}: the file was '
            'renamed. Give it its own name back.'
        )
    return shards


def _fill(tensors: dict, parts: list[dict], where: str) -> None:
    """Replace what is None in ``tensors`` by its parts, joined."""
    for name, value in tensors.items():
        if value is None and any(name in part for part in parts):
            tensors[name] = _join(list(_rows(name, parts, where)))


def _rows(name: str, parts: list[dict], where: str) -> Iterator[Tensor]:
    shape = None
    for rank, part in enumerate(parts):
        if name not in part:
            raise CheckpointError(
                f'{where}.{name} is missing in rank{rank}.pth, but not in '
                'others: the files are of different checkpoints.'
            )
        tensor, whole = part[name]
        shape = shape or list(whole)
        if list(whole) != shape or list(tensor.shape[1:]) != shape[1:]:
            raise CheckpointError(
                f'{where}.{name} has rows of shape {list(tensor.shape)} of '
                f'{list(whole)} in rank{rank}.pth; expected rows of {shape}.'
            )
        yield tensor
    rows = sum(part[name][0].shape[0] for part in parts)
    if rows != shape[0]:
        raise CheckpointError(
            f'{where}.{name} has {rows} rows in {len(parts)} parts; expected '
            f'{shape[0]}.'
        )


def _join(rows: list[Tensor]) -> Tensor:
    return torch.cat(rows) if len(rows) > 1 else rows[0]
