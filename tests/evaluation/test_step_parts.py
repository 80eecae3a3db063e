import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import tiny_models
from ropim_mm.evaluation import step_parts
from ropim_mm.evaluation.step_parts import (
    Call,
    PartsClock,
    parts_of,
    profile_table,
)
from ropim_mm.registry import MODELS


class Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, seconds):
        time.sleep(seconds)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        time.sleep(0.1)
        return grad, None


class Model(nn.Module):
    """0.02 s before, 0.05 and 0.1 s in the part, 0.1 s behind it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.inner = nn.Linear(3, 3)
        self.inner.forward = self.slow_linear

    def slow_linear(self, x):
        return nn.functional.linear(
            Slow.apply(x, 0.05), self.inner.weight, self.inner.bias
        )

    def prepare(self):
        return self.later, torch.zeros(3)

    def later(self, x):
        return Slow.apply(x, 0.05)

    def forward(self, x):
        x = Slow.apply(x * self.weight, 0.02)
        return dict(loss=self.inner(x).sum())


def step_of(model, call):
    """What the clock needs of a training step."""

    class Step(SimpleNamespace):
        def __call__(self):
            return call()

    return Step(
        model=model,
        device=torch.device('cpu'),
        spec=SimpleNamespace(compile=False),
    )


@pytest.fixture
def timed(monkeypatch):
    """A model with given parts, and the clock of one step of it."""

    def make(parts, call=None):
        model = Model()
        monkeypatch.setattr(step_parts, 'parts_of', lambda m: parts(m))

        def run():
            model(torch.ones(2, 3))['loss'].backward()

        return model, PartsClock(step_of(model, call or run))

    return make


def test_forward_and_backward_of_a_part(timed):
    model, clock = timed(lambda m: {'inner': [Call(m.inner, 'forward')]})
    forward = model.inner.forward
    shares = clock.shares(2)
    assert list(shares) == ['inner']
    # (0.05 + 0.1) of (0.02 + 0.05 + 0.1 + 0.1) seconds.
    assert shares['inner'] == pytest.approx([15 / 27] * 2, abs=0.06)
    # What was there before is there again.
    assert model.inner.forward == forward


def test_all_of_it(timed):
    model, clock = timed(lambda m: {'all': [Call(m, 'forward')]})
    (share,) = clock.shares(1)['all']
    assert 0.9 < share <= 1
    assert 'forward' not in vars(model)


def test_parts_within_parts_count_once_each(timed):
    _, clock = timed(
        lambda m: {
            'all': [Call(m, 'forward'), Call(m.inner, 'forward')],
            'inner': [Call(m.inner, 'forward')],
        }
    )
    shares = clock.shares(1)
    assert 0.9 < shares['all'][0] <= 1
    assert shares['inner'] == pytest.approx([15 / 27], abs=0.06)


def test_functions_that_a_part_returns(timed):
    def call():
        later, _ = model.prepare()
        time.sleep(0.05)
        later(model.weight).sum().backward()

    model, clock = timed(lambda m: {'later': [Call(m, 'prepare')]}, call)
    (share,) = clock.shares(1)['later']
    assert share == pytest.approx(15 / 20, abs=0.06)


def test_parts_without_gradients(timed):
    def call():
        with torch.no_grad():
            model.later(model.weight)
        time.sleep(0.05)

    model, clock = timed(lambda m: {'later': [Call(m, 'later')]}, call)
    assert clock.shares(1)['later'] == pytest.approx([0.5], abs=0.06)


def test_an_error_leaves_the_model_as_it_was(timed):
    def call():
        raise KeyError('none')

    model, clock = timed(lambda m: {'later': [Call(m, 'later')]}, call)
    with pytest.raises(KeyError):
        clock.shares(1)
    assert 'later' not in vars(model)


def test_a_model_that_declares_nothing():
    assert parts_of(nn.Linear(1, 1)) == {}
    step = step_of(nn.Linear(1, 1), lambda: 1 / 0)
    assert PartsClock(step).shares(3) == {}


@pytest.fixture
def ropim():
    return tiny_models.build('ropim')


PARTS = dict(
    ropim=['projection and loss'],
    lomar=['windows', 'prediction and loss'],
    rmae=['pixel decoder and loss', 'regions'],
    conmim=[
        'forward of the momentum copy',
        'update of the momentum copy',
        'loss',
    ],
)


@pytest.mark.parametrize('method', PARTS)
def test_parts_of_the_methods(method):
    model = tiny_models.build(method)
    data = tiny_models.batch(model)

    def run():
        tiny_models.loss_of(model, *data).backward()
        if method == 'conmim':
            model.update_momentum_copy(0.9)

    shares = PartsClock(step_of(model, run)).shares(2)
    assert list(shares) == PARTS[method]
    for values in shares.values():
        assert len(values) == 2
        assert all(0 < value < 1 for value in values)
    assert sum(values[0] for values in shares.values()) < 1
    # Nothing of the clock stays in the model.
    for module in model.modules():
        assert not {'forward', 'loss', 'regions'} & set(vars(module))


def test_regions_are_no_part_of_a_model_without():
    cfg = tiny_models.model_config('rmae')
    model = MODELS.build(dict(cfg, num_regions=0))
    assert list(parts_of(model)) == ['pixel decoder and loss']


def test_the_clock_does_not_change_the_numbers(ropim):
    images = torch.randn(2, 3, 32, 32)
    losses, grads = [], []

    def run() -> None:
        torch.manual_seed(0)
        loss = ropim.loss(images)['loss']
        loss.backward()
        losses.append(loss.detach())
        grads.append(ropim.backbone.patch_embed.projection.weight.grad)
        ropim.zero_grad()

    run()
    clock = PartsClock(step_of(ropim, run))
    (share,) = clock.shares(1)['projection and loss']
    assert 0 < share < 1
    assert torch.equal(*losses)
    assert torch.equal(*grads)
    assert 'projections' not in vars(ropim)
    assert 'loss' not in vars(ropim.head)


def test_projection_of_ropim_is_all_there(ropim, monkeypatch):
    """Tokens and residual are projected: twice 0.15 s."""
    from ropim_mm.models.layers.sketch import CountSketch

    project = CountSketch.project
    monkeypatch.setattr(
        CountSketch,
        'project',
        lambda s, x: Slow.apply(project(s, x), 0.05),
    )
    run = partial(ropim.loss, torch.randn(2, 3, 32, 32))
    clock = PartsClock(step_of(ropim, lambda: run()['loss'].backward()))
    start = time.perf_counter()
    (share,) = clock.shares(1)['projection and loss']
    elapsed = time.perf_counter() - start
    assert 0.3 < share * elapsed < elapsed
    assert share > 0.5


def test_profile_names_operators(ropim):
    images = torch.randn(2, 3, 32, 32)
    step = step_of(ropim, lambda: ropim.loss(images))
    assert 'aten::addmm' in profile_table(step, rows=40)
