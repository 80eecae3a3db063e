"""Random streams that a resumed run continues.

MMEngine seeds a process once, when it starts, so a run that is resumed after
epoch 1 draws the crops, sketches and dropped paths of epoch 1 once more. Here
every epoch has a stream of its own, a function of the seed, the process, the
loader worker and the number of updates done so far. An uninterrupted run and
one resumed at the end of an epoch then draw the same numbers, and no state of
a generator has to be saved.

Iteration-based training is one long epoch to MMEngine: resumed, it draws from
a stream that no earlier part of the run has used.
"""

import random

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import Dataset, get_worker_info

from ropim_mm.registry import HOOKS


def seed_everything(*key: int) -> None:
    """Seed Python, NumPy and PyTorch (all devices) by a hash of ``key``.

    Args:
        *key (int): Not negative; nearby keys give unrelated streams.
    """
    # The length: SeedSequence ignores zeros at the end.
    sequence = np.random.SeedSequence([len(key), *key])
    words = sequence.generate_state(3, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]) % 2**32)
    torch.manual_seed(int(words[2]) >> 1)  # takes 64 signed bits


class WorkerSeeds:
    """A loader's ``worker_init_fn``: a stream for each worker and epoch.

    Workers that persist are initialised once, and how far their streams are
    depends on how often the run was interrupted. They look at the epoch's
    key, which lies in shared memory, before each image, and start a new
    stream when it has changed.

    Args:
        seed (int): Of this process, until :meth:`start_epoch` is called.
        rank (int): Of this process; tells equal seeds apart.
    """

    def __init__(self, seed: int, rank: int) -> None:
        self.rank = rank
        self._epoch_key = torch.tensor([seed, 0]).share_memory_()

    def start_epoch(self, seed: int, step: int) -> None:
        """Give the workers their streams; before the loader is iterated.

        Args:
            seed (int): Of this process.
            step (int): Number of updates done before this epoch.
        """
        self._epoch_key.copy_(torch.tensor([seed, step]))

    def __call__(self, worker_id: int) -> None:
        """Seed a worker and have it watch for the next epoch."""
        key = None

        def renew() -> None:
            nonlocal key
            found = self._epoch_key.tolist()
            if found != key:
                key = found
                seed_everything(*key, self.rank, worker_id)

        renew()
        _call_before_each_item(get_worker_info().dataset, renew)


def _call_before_each_item(dataset: Dataset, function) -> None:
    """Change a worker's own copy of a dataset; the class stays as it is."""
    kind = type(dataset)

    def before(name: str):
        method = getattr(kind, name)

        def wrapper(self, index):
            function()
            return method(self, index)

        return wrapper

    # `__getitems__` is what PyTorch calls for a batch where there is one.
    names = ('__getitem__', '__getitems__')
    methods = {name: before(name) for name in names if hasattr(kind, name)}
    try:
        dataset.__class__ = type(kind.__name__, (kind,), methods)
    except TypeError:
        # A list, a range: they cannot be changed, and draw nothing.
        if kind.__module__ == 'builtins':
            return
        raise


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Starts the random streams of each training epoch.

    The process draws from a function of ``runner.seed`` (with
    ``randomness.diff_rank_seed`` another one on each process) and of the
    number of updates done.
    """

    # Before any hook draws.
    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed this process and the workers of its training loader."""
        seed_everything(runner.seed, runner.iter)
        workers = getattr(runner.train_dataloader, 'worker_init_fn', None)
        if isinstance(workers, WorkerSeeds):
            workers.start_epoch(runner.seed, runner.iter)
