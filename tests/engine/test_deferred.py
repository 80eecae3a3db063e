"""Scalars that wait on the device."""

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub

from ropim_mm.engine import deferred
from ropim_mm.engine.deferred import (
    DeferredBuffer,
    DeferredRuntimeInfoHook,
    defer_scalar,
)


def test_statistics_equal_those_of_the_plain_buffer():
    plain, ours = HistoryBuffer(), DeferredBuffer()
    for value in (1.0, 5.0, 2.5):
        plain.update(value)
        ours.defer(torch.tensor([value], dtype=torch.float64))
    for method in ('min', 'max', 'mean', 'current'):
        assert ours.statistics(method) == plain.statistics(method)
    ours.update(3.0)
    assert ours.mean(2) == pytest.approx(2.75)


def test_nothing_is_fetched_until_read(monkeypatch):
    buffer = DeferredBuffer()
    fetched = []
    monkeypatch.setattr(
        torch,
        'stack',
        lambda values: (
            fetched.append(len(values))
            or (torch.tensor([float(v) for v in values]))
        ),
    )
    for i in range(4):
        buffer.defer(torch.tensor(float(i)))
    assert fetched == []
    assert buffer.mean() == 1.5
    assert buffer.max() == 3.0
    assert fetched == [4]


def test_waiting_values_are_bounded(monkeypatch):
    monkeypatch.setattr(deferred, 'MAX_PENDING', 3)
    buffer = DeferredBuffer(max_length=5)
    for i in range(8):
        buffer.defer(torch.tensor(float(i)))
        assert len(buffer._pending) < 3
    assert buffer.data[0].tolist() == [3.0, 4.0, 5.0, 6.0, 7.0]
    assert buffer.data[1].tolist() == [1, 1, 1, 1, 1]


def test_saved_and_copied_as_a_plain_buffer():
    buffer = DeferredBuffer([1.0], [1])
    buffer.defer(torch.tensor(2.0))
    for other in (pickle.loads(pickle.dumps(buffer)), copy.deepcopy(buffer)):
        assert type(other) is HistoryBuffer
        np.testing.assert_array_equal(other.data[0], [1.0, 2.0])
    assert b'ropim_mm' not in pickle.dumps(buffer)


def test_hub_continues_after_a_resume():
    hub = MessageHub('deferred')
    for value in (1.0, 2.0):
        defer_scalar(hub, 'train/loss', torch.tensor(value))
    resumed = MessageHub('resumed')
    resumed.load_state_dict(pickle.loads(pickle.dumps(hub.state_dict())))
    defer_scalar(resumed, 'train/loss', torch.tensor(6.0))
    history = resumed.get_scalar('train/loss')
    assert isinstance(history, DeferredBuffer)
    assert history.data[0].tolist() == [1.0, 2.0, 6.0]


def test_hook_takes_tensors_and_numbers():
    runner = SimpleNamespace(message_hub=MessageHub('hook'))
    hook = DeferredRuntimeInfoHook()
    for i in range(3):
        outputs = dict(loss=torch.tensor(float(i)), accuracy=i / 2)
        hook.after_train_iter(runner, i, outputs=outputs)
    hook.after_train_iter(runner, 3, outputs=None)
    hub = runner.message_hub
    assert isinstance(hub.get_scalar('train/loss'), DeferredBuffer)
    assert hub.get_scalar('train/loss').data[0].tolist() == [0.0, 1.0, 2.0]
    assert hub.get_scalar('train/accuracy').data[0].tolist() == [0, 0.5, 1.0]
