"""Random streams by seed, process, worker and epoch."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from ropim_mm.engine import EpochSeedHook, PortableRunner
from ropim_mm.engine.seeding import WorkerSeeds, seed_everything


def draw():
    return [random.random(), np.random.rand(), torch.rand(()).item()]


class Draws(Dataset):
    """Items are numbers drawn from all three generators."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor([index, *draw()], dtype=torch.float64)


class BatchDraws(Draws):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


def test_key_decides_all_generators():
    seed_everything(3, 5)
    first = draw()
    seed_everything(3, 5)
    assert draw() == first
    for key in ((5, 3), (3, 6), (3,), (3, 5, 1), (3, 5, 0)):
        seed_everything(*key)
        assert not set(draw()) & set(first)


def build(dataset, rank=0, workers=1, persistent=True):
    return DataLoader(
        dataset,
        2,
        num_workers=workers,
        persistent_workers=persistent,
        worker_init_fn=WorkerSeeds(7, rank),
    )


def epoch(loader, step):
    loader.worker_init_fn.start_epoch(7, step)
    return torch.cat(list(loader))[:, 1:].contiguous()


@pytest.mark.parametrize('dataset', [Draws(), BatchDraws()])
def test_workers_of_a_resumed_run(dataset):
    loader = build(dataset)
    first, second = epoch(loader, 0), epoch(loader, 2)
    assert not torch.isin(first, second).any()
    assert torch.equal(epoch(build(dataset), 2), second)
    # Whether the workers persist makes no difference.
    loader = build(dataset, persistent=False)
    assert torch.equal(epoch(loader, 0), first)
    assert torch.equal(epoch(loader, 2), second)


def test_every_worker_and_process_has_its_own():
    streams = [
        epoch(build(Draws(), rank, workers=2), 0).flatten() for rank in (0, 1)
    ]
    numbers = torch.cat(streams)
    assert len(numbers.unique()) == len(numbers)


def test_hook_seeds_process_and_workers():
    loader = build(Draws())
    runner = SimpleNamespace(seed=7, iter=6, train_dataloader=loader)
    EpochSeedHook().before_train_epoch(runner)
    drawn, by_worker = draw(), torch.cat(list(loader))[:, 1:]
    seed_everything(7, 6)
    assert draw() == drawn
    assert torch.equal(epoch(build(Draws()), 6), by_worker)
    assert drawn[0] not in by_worker


def test_loaders_of_the_runner():
    cfg = dict(
        dataset=Draws(), batch_size=1, sampler=dict(type='DefaultSampler')
    )
    loader = PortableRunner.build_dataloader(dict(cfg), seed=1)
    assert isinstance(loader.worker_init_fn, WorkerSeeds)
    own = dict(type=print, end='')
    loader = PortableRunner.build_dataloader(
        dict(cfg, worker_init_fn=own), seed=1
    )
    assert loader.worker_init_fn.func is print


@pytest.mark.parametrize('workers', [0, 1])
def test_starting_workers_draws_nothing(workers):
    loader = PortableRunner.build_dataloader(
        dict(
            dataset=range(4),
            batch_size=1,
            num_workers=workers,
            sampler=dict(type='DefaultSampler'),
        ),
        seed=1,
    )
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    drawn = []
    for _ in range(3):
        assert len(list(loader)) == 4
        drawn.append(torch.rand(1))
    assert torch.equal(torch.cat(drawn), expected)
