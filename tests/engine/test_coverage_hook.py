"""``load_from``, resuming and testing stop when the checkpoint is not it."""

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from ropim_mm.checkpoints import CoverageError, UntrustedCheckpointError
from ropim_mm.engine.coverage import CheckpointCoverageHook


class Backbone(nn.Module):
    """Has what the coverage check looks for."""

    fresh_keys = ('ln2.',)
    pretraining_only_keys = ('mask_token',)

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(depth))
        self.ln2 = nn.LayerNorm(2)

    def adapt_state_dict(self, state_dict: dict, prefix: str = '') -> dict:
        old, new = f'{prefix}old.', f'{prefix}layers.0.'
        return {k.replace(old, new): v for k, v in state_dict.items()}


class Model(BaseModel):
    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.backbone = Backbone(depth)
        self.head = nn.Linear(2, 1)

    def forward(self, inputs, mode: str = 'tensor'):
        x = inputs
        for layer in self.backbone.layers:
            x = layer(x)
        x = self.head(self.backbone.ln2(x))
        return {'loss': x.mean()} if mode == 'loss' else x


def make_runner(tmp_path, depth=2, hook=None, epochs=1, **settings) -> Runner:
    data = [torch.ones(2), torch.zeros(2)]
    return Runner(
        model=Model(depth),
        work_dir=str(tmp_path),
        train_dataloader=dict(
            dataset=data,
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=1,
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=0.1), clip_grad=dict(max_norm=1)
        ),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.5, by_epoch=False, end=2),
            dict(type='CosineAnnealingLR', T_max=4),
        ],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook')),
        custom_hooks=[hook or CheckpointCoverageHook()],
        randomness=dict(seed=0),
        experiment_name=f'{tmp_path.name}-{depth}-{epochs}-{id(settings)}',
        **settings,
    )


@pytest.fixture
def log(caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO)
    yield caplog
    logger.removeHandler(caplog.handler)


def weights(**extra: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**Model().state_dict(), **extra}


def check(model: Model, state_dict: dict, **settings) -> None:
    class Run:
        _load_from = 'a.pth'

    Run.model = model
    hook = CheckpointCoverageHook(**settings)
    hook.after_load_checkpoint(Run, {'state_dict': state_dict})


def test_missing_head_stops():
    state = weights()
    del state['head.weight'], state['head.bias']
    with pytest.raises(CoverageError) as caught:
        check(Model(), state)
    assert caught.value.report.missing == ('head.weight', 'head.bias')
    assert 'a.pth does not fit Model: matched 6 of 8' in str(caught.value)
    assert 'model.backbone.init_cfg=dict(type="Pretrained"' in str(
        caught.value
    )
    check(Model(), state, allow_missing=['head'])


def test_what_pretraining_lacks_is_missing_in_a_whole_model():
    state = weights()
    del state['backbone.ln2.weight']
    with pytest.raises(CoverageError, match='  backbone.ln2.weight'):
        check(Model(), state)


def test_deeper_backbone_stops():
    with pytest.raises(CoverageError) as caught:
        check(Model(2), Model(3).state_dict())
    assert caught.value.report.unexpected == (
        'backbone.layers.2.weight',
        'backbone.layers.2.bias',
    )


def test_what_is_left_over_elsewhere_warns(log):
    extra = {
        'auxiliary_head.weight': torch.ones(1),
        'backbone.mask_token': torch.ones(1),
    }
    check(Model(), weights(**extra))
    assert (
        'a.pth has tensors that the model has no use for: '
        'auxiliary_head.weight\n'
    ) in log.text
    assert 'matched 8 of 8 tensors' in log.text


def test_backbone_adapts_first():
    state = weights()
    for name in ('weight', 'bias'):
        tensor = state.pop(f'backbone.layers.0.{name}')
        state[f'backbone.old.{name}'] = tensor
    check(Model(), state)


def test_prefix_of_parallel_training():
    check(Model(), {f'module.{k}': v for k, v in weights().items()})
    wrapped = torch.nn.parallel.DataParallel(Model())
    check(wrapped, weights())


@pytest.fixture
def trained(tmp_path):
    """An epoch written by MMEngine, with all it keeps for resuming."""
    folder = tmp_path / 'first'
    make_runner(folder).train()
    return folder / 'epoch_1.pth'


def test_resume_reads_all_that_mmengine_keeps(trained, tmp_path):
    runner = make_runner(
        tmp_path / 'second', epochs=2, load_from=str(trained), resume=True
    )
    runner.train()
    (file,) = (tmp_path / 'second').glob('*/*.log')
    log = file.read_text()
    assert 'resumed epoch: 1, iter: 2' in log
    assert f'Model from {trained}: matched 8 of 8 tensors' in log
    assert len(runner.message_hub.get_scalar('train/loss').data[0]) == 4


def test_run_with_another_model_stops_before_its_first_step(trained, tmp_path):
    runner = make_runner(tmp_path / 'second', depth=3, load_from=str(trained))
    with pytest.raises(CoverageError, match='missing in the file'):
        runner.train()
    assert runner.iter == 0
    assert not list((tmp_path / 'second').glob('*.pth'))


def test_hostile_file_stops_the_run(trained, tmp_path):
    class Call:
        def __reduce__(self) -> tuple:
            return print, ('code was run',)

    content = torch.load(trained, weights_only=False)
    torch.save({**content, 'extra': Call()}, trained)
    runner = make_runner(tmp_path / 'second', load_from=str(trained))
    with pytest.raises(UntrustedCheckpointError, match='builtins.print'):
        runner.train()


def test_goes_before_the_averaging_hook():
    assert CheckpointCoverageHook().priority == 'HIGH'
