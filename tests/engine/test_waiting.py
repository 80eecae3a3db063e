"""The doctor that says whether a run waits for data."""

import logging
import time

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from ropim_mm.engine import DataWaitHook, waiting
from ropim_mm.engine.waiting import advice, workers_needed
from ropim_mm.errors import InputError


class Data(Dataset):
    """Samples that take a while."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(self.seconds)
        return torch.ones(2)


class Model(BaseModel):
    """A step that takes a while."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.layer = nn.Linear(2, 1)

    def forward(self, inputs, mode: str = 'tensor'):
        time.sleep(self.seconds)
        return {'loss': self.layer(inputs).mean()}


class Slow(Hook):
    """Other hooks' time is no waiting."""

    priority = 'VERY_LOW'

    def after_train_iter(self, runner, *args, **kwargs):
        time.sleep(0.02)

    after_train_epoch = before_train_epoch = after_train_iter


def run(tmp_path, caplog, data, step, by_epoch=True, hooks=()):
    """The doctor's lines on three epochs of eight steps."""
    length = dict(max_epochs=3) if by_epoch else dict(max_iters=24)
    runner = Runner(
        model=Model(step),
        work_dir=str(tmp_path),
        train_dataloader=dict(
            dataset=Data(data),
            batch_size=1,
            num_workers=0,
            sampler=dict(
                type='DefaultSampler' if by_epoch else 'InfiniteSampler',
                shuffle=False,
            ),
        ),
        train_cfg=dict(by_epoch=by_epoch, **length),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        default_hooks=dict(
            logger=None,
            checkpoint=None,
            data_wait=dict(type='ropim_mm.DataWaitHook', interval=6),
        ),
        custom_hooks=list(hooks),
        experiment_name=tmp_path.name,
        log_level='INFO',
    )
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    caplog.clear()
    runner.train()
    logger.removeHandler(caplog.handler)
    return [
        (r.levelno, r.getMessage())
        for r in caplog.records
        if r.getMessage().startswith('Training ')
    ]


@pytest.mark.parametrize('by_epoch', [True, False])
def test_one_line_where_data_are_slow(tmp_path, caplog, by_epoch):
    lines = run(tmp_path, caplog, 0.02, 0.002, by_epoch)
    ((level, text),) = lines
    assert level == logging.WARNING
    assert '\n' not in text
    share = int(text.partition('data ')[2].partition('%')[0])
    assert 60 < share < 100
    assert 'of the time of the last 6 steps' in text
    assert '0 loader worker(s) a process; about ' in text
    for cure in ('num_workers', 'shrink_images.py', 'cache_bytes'):
        assert cure in text


@pytest.mark.parametrize('hooks', [[], [Slow()]], ids=['', 'other hooks'])
def test_no_line_where_data_keep_up(tmp_path, caplog, hooks):
    # Long steps: on a busy machine a step waits for its turn, too.
    assert run(tmp_path, caplog, 0.0, 0.12, hooks=hooks) == []


class Clock:
    """Time that passes when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(waiting, 'perf_counter', clock)
    return clock


class FakeRunner:
    """What the hook asks a runner for."""

    def __init__(self, workers: int) -> None:
        self.lines: list[str] = []
        self.logger = self
        self.train_dataloader = self
        self.num_workers = workers
        self.warning = self.info = self.lines.append


def steps(hook, runner, clock, count, wait, work):
    for _ in range(count):
        clock.now += wait
        hook.before_train_iter(runner, 0)
        clock.now += work
        hook.after_train_iter(runner, 0)


def test_shares_and_their_changes(clock):
    hook, runner = DataWaitHook(interval=10, threshold=0.2), FakeRunner(4)
    hook.before_train_epoch(runner)
    steps(hook, runner, clock, 1, 60.0, 60.0)  # workers start
    steps(hook, runner, clock, 9, 1.0, 9.0)
    assert runner.lines == []
    steps(hook, runner, clock, 1, 1.0, 9.0)
    assert runner.lines == []  # 10% of the time
    steps(hook, runner, clock, 30, 3.0, 7.0)
    assert runner.lines == [
        'Training waits for data 30% of the time of the last 10 steps '
        f'(3.000 of 10.000 s a step). {advice(4, 0.3)}.'
    ]
    steps(hook, runner, clock, 10, 1.5, 8.5)
    assert len(runner.lines) == 1  # neither one thing nor the other
    clock.now += 1000  # evaluation, a checkpoint
    hook.after_val(runner)
    steps(hook, runner, clock, 5, 0.5, 9.5)
    clock.now += 1000
    hook.before_train_epoch(runner)
    steps(hook, runner, clock, 5, 0.5, 9.5)
    assert runner.lines[1:] == [
        'Training no longer waits for data: 5% of the time of the last 10 '
        'steps.'
    ]
    steps(hook, runner, clock, 10, 9.0, 1.0)
    assert len(runner.lines) == 3
    assert '90% of the time' in runner.lines[2]


def test_other_processes_are_silent(clock, monkeypatch):
    monkeypatch.setattr(waiting, 'is_main_process', lambda: False)
    hook, runner = DataWaitHook(interval=2), FakeRunner(1)
    steps(hook, runner, clock, 9, 5.0, 5.0)
    assert runner.lines == []


@pytest.mark.parametrize(
    ('workers', 'share', 'expected'),
    [
        (4, 0.0, 4),
        (4, 0.5, 8),
        (8, 0.2, 10),
        (3, 0.3, 5),
        (0, 0.0, 0),
        (0, 0.5, 1),
        (0, 0.75, 3),
        (2, 1.0, 2000),
    ],
)
def test_workers_that_would_keep_up(workers, share, expected):
    assert workers_needed(workers, share) == expected
    text = f'{workers} loader worker(s) a process; about {expected} would'
    assert advice(workers, share).startswith(text)


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        (dict(interval=0), 'interval is 0; expected a number of steps'),
        (dict(threshold=1), r'threshold is 1; expected a share .* \(0, 1\)'),
        (dict(threshold=0.0), 'threshold is 0.0; expected a share'),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(InputError, match=message):
        DataWaitHook(**setting)
