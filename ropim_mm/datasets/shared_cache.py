"""Files kept in memory that all workers of a loader share."""

from __future__ import annotations

import hashlib
import mmap
import multiprocessing
import os

import numpy as np

from ropim_mm.errors import InputError

# Bytes of content for which there is one place in the table: less than files
# of label maps usually have.
_BYTES_A_PLACE = 1024
_TRIES = 16
_ENTRY = np.dtype([('key', '<u8'), ('start', '<u8'), ('size', '<u8')])


class SharedCache:
    """Contents of files by name, up to a number of bytes, then no more.

    What one process puts in, all others find that were forked from the one
    that made the cache, and itself. A spawned process, or a copy, starts with
    an empty cache of its own. Nothing is ever removed: under a random order
    of samples any choice of files is as good as another.

    Memory is taken as it fills: the contents, and 24 bytes for every 1024 of
    the capacity.

    Args:
        capacity: Bytes of content at most.

    Raises:
        InputError: The system does not give so much.
    """

    def __init__(self, capacity: int) -> None:
        if capacity <= 0:
            raise InputError(
                f'cache_bytes is {capacity}; expected a number of bytes, or 0 '
                'for no cache'
            )
        self.capacity = capacity
        places = -(-capacity // _BYTES_A_PLACE)
        try:
            # Anonymous and shared: not bounded by the size of /dev/shm.
            self._data = mmap.mmap(-1, capacity)
            table = mmap.mmap(-1, (places + 1) * _ENTRY.itemsize)
        except (OSError, OverflowError, ValueError) as error:
            raise InputError(
                f'cache_bytes is {capacity}, and the system refuses to set '
                f'aside so much memory: {error}'
            ) from error
        self._table = np.frombuffer(table, _ENTRY, places)
        # The last entry's `start`: how many bytes are taken.
        self._used = np.frombuffer(table, _ENTRY)[-1:]
        self._lock = multiprocessing.Lock()

    def get(self, name: str) -> bytes | None:
        """Content of a file, if it is here."""
        key = _key(name)
        with self._lock:
            place = self._find(key)
            if place is None or not self._table[place]['key']:
                return None
            _, start, size = self._table[place].item()
        return self._data[start : start + size]

    def put(self, name: str, data: bytes) -> bool:
        """Keep a content; says whether there was room for it."""
        key = _key(name)
        with self._lock:
            start = int(self._used['start'][0])
            place = self._find(key)
            if place is None or start + len(data) > self.capacity:
                return False
            if not self._table[place]['key']:
                self._data[start : start + len(data)] = data
                self._table[place] = (key, start, len(data))
                self._used['start'] = start + len(data)
            return True

    @property
    def used(self) -> int:
        """Bytes of content in it."""
        with self._lock:
            return int(self._used['start'][0])

    def _find(self, key: int) -> int | None:
        """The entry of a key, or the empty one where it belongs."""
        for attempt in range(_TRIES):
            place = (key + attempt) % len(self._table)
            if int(self._table[place]['key']) in (0, key):
                return place
        return None

    def __getstate__(self) -> dict:
        return {'capacity': self.capacity}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state['capacity'])


def _key(name: str) -> int:
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    return int.from_bytes(digest, 'little') or 1  # 0 marks an empty place
