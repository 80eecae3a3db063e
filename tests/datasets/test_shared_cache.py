"""The cache of files: its bound, and several processes."""

import copy
import multiprocessing
import pickle

import pytest

from ropim_mm.datasets import shared_cache
from ropim_mm.datasets.shared_cache import SharedCache
from ropim_mm.errors import InputError


def test_what_is_put_in_is_found():
    cache = SharedCache(10000)
    assert cache.get('a') is None
    assert cache.put('a', b'first')
    assert cache.put('b', b'')
    assert cache.put('a', b'not again')
    assert cache.get('a') == b'first'
    assert cache.get('b') == b''
    assert cache.used == 5


def test_the_bound_holds():
    cache = SharedCache(100)
    assert cache.put('a', b'x' * 60)
    assert not cache.put('b', b'y' * 41)
    assert cache.get('b') is None
    assert cache.used == 60


def test_full_of_entries_is_full():
    cache = SharedCache(4 * shared_cache._BYTES_A_PLACE)
    kept = [str(i) for i in range(100) if cache.put(str(i), b'%d' % i)]
    assert len(kept) == 4
    for name in kept:
        assert cache.get(name) == name.encode()


def fill(cache: SharedCache, first: int) -> None:
    for i in range(first, 400, 2):
        cache.put(str(i), str(i).encode() * 3)
        cache.put(str(i - 1), str(i - 1).encode() * 3)


def test_forked_processes_share_it():
    cache = SharedCache(1 << 20)
    context = multiprocessing.get_context('fork')
    both = [context.Process(target=fill, args=(cache, i)) for i in (1, 2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    names = [str(i) for i in range(400)]
    assert [cache.get(n) for n in names] == [n.encode() * 3 for n in names]
    # Nothing was taken in twice.
    assert cache.used == sum(3 * len(n) for n in names)


def test_copies_start_empty():
    cache = SharedCache(5000)
    cache.put('a', b'content')
    for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert twin.capacity == 5000
        assert twin.get('a') is None
        twin.put('b', b'other')
    assert cache.get('b') is None


def test_impossible_sizes_are_refused():
    with pytest.raises(InputError, match='cache_bytes is -5'):
        SharedCache(-5)
    with pytest.raises(InputError, match='system refuses to set aside'):
        SharedCache(1 << 62)
