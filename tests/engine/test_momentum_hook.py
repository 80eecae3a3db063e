import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

from ropim_mm.engine import AutocastOptimWrapper, MomentumCopyHook
from ropim_mm.engine.momentum import cosine_momentum
from ropim_mm.models.layers import MomentumCopy


class Follower(BaseModel):
    """One linear layer and its copy; remembers the updates."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.momentum = MomentumCopy(layer=self.layer)
        self.updates = []

    def forward(self, inputs, mode):
        return dict(loss=self.layer(torch.stack(inputs)).square().mean())

    def update_momentum_copy(self, momentum):
        self.updates.append(momentum)
        self.momentum.update(momentum)


class Plain(Follower):
    update_momentum_copy = None

    def __getattribute__(self, name):
        if name == 'update_momentum_copy':
            raise AttributeError(name)
        return super().__getattribute__(name)


def run(tmp_path, model, accumulate=1, images=8, wrapper=None, **kwargs):
    torch.manual_seed(0)
    runner = Runner(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader=dict(
            dataset=[dict(inputs=torch.ones(2)) for _ in range(images)],
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=1,
            num_workers=0,
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=wrapper
        or OptimWrapper(
            torch.optim.SGD(model.layer.parameters(), lr=0.1),
            accumulative_counts=accumulate,
        ),
        custom_hooks=[MomentumCopyHook(**kwargs)],
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        experiment_name=tmp_path.name,
    )
    runner.train()
    return runner


def test_momentum_is_the_released_schedule(shared):
    folder = shared / 'parity' / 'conmim'
    manifest = json.loads((folder / 'manifest.json').read_text())
    config = manifest['cases']['schedules']['config']
    stored = np.load(folder / 'schedules.npz')['momentum']
    ours = [
        cosine_momentum(config['t_momentum'], 1.0, i, len(stored))
        for i in range(len(stored))
    ]
    assert ours == pytest.approx(stored, rel=1e-15)


def test_ends():
    assert cosine_momentum(0.9, 1.0, 0, 10) == 0.9
    assert cosine_momentum(0.9, 1.0, 10, 10) == 1.0
    assert cosine_momentum(0.9, 1.0, 9, 10) < 1.0


def test_updates_after_every_step_and_logs(tmp_path):
    model = Follower()
    run(tmp_path, model, start=0.5, end=0.9)
    assert model.updates == [
        cosine_momentum(0.5, 0.9, i, 16) for i in range(16)
    ]
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [x['copy_momentum'] for x in lines] == pytest.approx(model.updates)


def test_sees_the_parameters_after_the_step(tmp_path):
    model = Follower()
    run(tmp_path, model, start=0.0, end=0.0)
    for ours, theirs in zip(
        model.momentum.layer.parameters(),
        model.layer.parameters(),
        strict=True,
    ):
        assert torch.equal(ours, theirs.data)


def test_only_where_the_optimizer_stepped(tmp_path):
    model = Follower()
    run(tmp_path, model, accumulate=3, images=7)
    # Gradients of the last two of 14 iterations are used as well.
    steps = [2, 5, 8, 11, 13]
    assert model.updates == [cosine_momentum(0.996, 1, i, 14) for i in steps]


def test_accumulated_steps_count_from_their_first(tmp_path):
    model = Follower()
    wrapper = AutocastOptimWrapper(
        dtype='float32',
        optimizer=torch.optim.SGD(model.layer.parameters(), lr=0.1),
        accumulative_counts=3,
    )
    wrapper.epoch_length = 7
    run(tmp_path, model, images=7, wrapper=wrapper)
    # Groups of 3, 3 and 1 in each of two epochs.
    steps = [0, 3, 6, 7, 10, 13]
    assert model.updates == [cosine_momentum(0.996, 1, i, 14) for i in steps]


def test_a_model_without_a_copy(tmp_path):
    with pytest.raises(ValueError, match='Plain has no method update_mom'):
        run(tmp_path, Plain())


@pytest.mark.parametrize('field', ['start', 'end'])
def test_momentum_outside_its_range(field):
    with pytest.raises(ValueError, match=f'{field} is 1.2; expected'):
        MomentumCopyHook(**{field: 1.2})


def test_value_depends_on_nothing_but_the_iteration():
    """A resumed run makes a new hook."""
    model = Follower()
    runner = SimpleNamespace(
        model=model,
        iter=7,
        max_iters=20,
        optim_wrapper=SimpleNamespace(should_update=lambda: True),
        message_hub=SimpleNamespace(update_scalar=lambda *args: None),
    )
    for hook in (MomentumCopyHook(), MomentumCopyHook()):
        hook.after_train_iter(runner, 0)
        hook.after_train_iter(runner, 0)
    assert set(model.updates) == {cosine_momentum(0.996, 1.0, 7, 20)}
