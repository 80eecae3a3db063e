"""An account of skipped images, written by workers, read by the main one."""

from __future__ import annotations

import hashlib
import os
from typing import NamedTuple

import torch
from torch.utils.data import get_worker_info

# One row a worker, so that no two processes write to the same one.
_WORKERS = 256
_FILES = 1024  # distinct files that a worker can report
_EXAMPLES = 3  # of which so many with their text,
_BYTES = 1024  # of so many bytes


class Skipped(NamedTuple):
    """What was skipped so far.

    ``reads`` counts each time that a file could not be read, in every epoch
    again; ``files`` are digests of the distinct paths; ``examples`` are texts
    on the first of them; ``complete`` is False where there were more files
    than could be told apart.
    """

    reads: int = 0
    files: frozenset[int] = frozenset()
    examples: tuple[str, ...] = ()
    complete: bool = True

    def __add__(self, other: Skipped) -> Skipped:
        return Skipped(
            self.reads + other.reads,
            self.files | other.files,
            tuple(dict.fromkeys(self.examples + other.examples)),
            self.complete and other.complete,
        )


class SkipAccount:
    """Counts what loader workers skip, in memory that all processes share.

    It reaches workers by fork and by spawn, takes 2.9 MB and belongs to one
    step of one pipeline: a copy starts at nothing.
    """

    def __init__(self) -> None:
        self._reads = torch.zeros(_WORKERS, dtype=torch.int64)
        self._files = torch.zeros(_WORKERS, _FILES, dtype=torch.int64)
        self._texts = torch.zeros(
            _WORKERS, _EXAMPLES, _BYTES, dtype=torch.uint8
        )
        self._full = torch.zeros(_WORKERS, dtype=torch.bool)
        for tensor in (self._reads, self._files, self._texts, self._full):
            tensor.share_memory_()

    def add(self, path: str, text: str) -> bool:
        """Count a skipped read of ``path``; ``text`` is for the log.

        Returns:
            bool: Whether the file is a new one, for all workers together.
        """
        worker = get_worker_info()
        row = worker.id % _WORKERS if worker else 0
        self._reads[row] += 1
        digest = int.from_bytes(
            hashlib.blake2b(os.fsencode(path), digest_size=8).digest(),
            'little',
            signed=True,
        )
        if (self._files == digest).any():
            return False
        place = int(self._files[row].count_nonzero())
        if place == _FILES:
            self._full[row] = True
            return False
        if place < _EXAMPLES:
            data = text.encode(errors='replace')[:_BYTES]
            self._texts[row, place, : len(data)] = torch.tensor(
                list(data), dtype=torch.uint8
            )
        self._files[row, place] = digest
        return True

    def read(self) -> Skipped:
        """What all workers of this process skipped so far."""
        examples = []
        for place in range(_EXAMPLES):  # the first of each worker, first
            for row in self._files[:, place].nonzero().flatten().tolist():
                data = bytes(self._texts[row, place].tolist()).rstrip(b'\0')
                examples.append(data.decode(errors='replace'))
        return Skipped(
            int(self._reads.sum()),
            frozenset(self._files[self._files != 0].tolist()),
            tuple(dict.fromkeys(examples)),
            not self._full.any(),
        )

    def __deepcopy__(self, memo: dict) -> SkipAccount:
        # Copied tensors would leave the shared memory.
        return type(self)()
