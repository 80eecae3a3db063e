"""AutocastOptimWrapper and LayerDecayOptimWrapperConstructor."""

import copy
import json

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.optim import ExponentialLR, LinearLR, build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from ropim_mm.engine import (
    AutocastOptimWrapper,
    LayerDecayOptimWrapperConstructor,
    PortableRunner,
    UpdateParamSchedulerHook,
    optimizer,
)
from ropim_mm.errors import InputError
from ropim_mm.registry import MODELS

BACKBONE = dict(
    type='ropim_mm.ROPIMViT',
    arch=dict(
        embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=128
    ),
    img_size=32,
    patch_size=8,
    layer_scale_init_value=0.1,
)


def sgd(model, lr=1.0, **kwargs):
    return AutocastOptimWrapper(
        optimizer=torch.optim.SGD(model.parameters(), lr=lr), **kwargs
    )


class TestAutocast:
    @pytest.mark.parametrize(
        'dtype, expected',
        [('bfloat16', torch.bfloat16), ('float32', torch.float32)],
    )
    def test_dtype_inside_forward(self, dtype, expected):
        model = nn.Linear(4, 4)
        wrapper = sgd(model, dtype=dtype)
        with wrapper.optim_context(model):
            inside = model(torch.ones(2, 4))
        outside = model(torch.ones(2, 4))
        assert inside.dtype == expected
        assert outside.dtype == torch.float32
        wrapper.update_params(inside.float().sum())
        assert model.weight.dtype == torch.float32

    def test_bfloat16_is_the_default(self):
        assert sgd(nn.Linear(1, 1)).cast_dtype == torch.bfloat16

    def test_unknown_dtype(self):
        with pytest.raises(InputError, match="dtype is 'bf16': expected one"):
            sgd(nn.Linear(1, 1), dtype='bf16')

    def test_float16_needs_a_gpu(self):
        with pytest.raises(InputError, match="'float16', which needs a GPU"):
            sgd(nn.Linear(1, 1), dtype='float16')

    def test_clipping_reports_the_norm_before_it(self):
        model = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(model.weight)
        wrapper = sgd(model, dtype='float32', clip_grad=dict(max_norm=1.0))
        wrapper.message_hub = MessageHub('clip')
        for _ in range(3):
            wrapper.update_params(model(torch.tensor([[3.0, 4.0]])).sum())
        # Gradient (3, 4) of norm 5, shortened to norm 1, three times.
        torch.testing.assert_close(
            model.weight.detach(), torch.tensor([[-1.8, -2.4]])
        )
        history = wrapper.message_hub.get_scalar('train/grad_norm')
        assert history.data[0] == pytest.approx([5.0, 5.0, 5.0])

    def test_clipping_values_logs_nothing(self):
        model = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(model.weight)
        wrapper = sgd(
            model,
            clip_grad=dict(type='value', clip_value=0.5),
            dtype='float32',
        )
        wrapper.message_hub = MessageHub('values')
        wrapper.update_params(model(torch.tensor([[3.0, 4.0]])).sum())
        assert model.weight.tolist() == [[-0.5, -0.5]]
        assert not wrapper.message_hub.log_scalars

    def test_accumulation_equals_one_large_batch(self):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        data = torch.randn(5, 4, 3)
        other = copy.deepcopy(model)
        wrapper = sgd(model, dtype='float32', accumulative_counts=2)
        wrapper.initialize_count_status(model, 0, 5)
        for batch in data:
            with wrapper.optim_context(model):
                loss = model(batch).square().mean()
            wrapper.update_params(loss)
        # Two updates from two batches each, and one from the remaining one.
        plain = torch.optim.SGD(other.parameters(), lr=1.0)
        for batch in (data[:2], data[2:4], data[4:]):
            plain.zero_grad()
            other(batch).square().mean().backward()
            plain.step()
        torch.testing.assert_close(model.weight, other.weight)
        torch.testing.assert_close(model.bias, other.bias)

    @pytest.mark.parametrize(
        'length, first, total, groups',
        [
            (None, 0, 7, [3, 3, 1]),
            # Groups end with the epoch: a checkpoint has no gradients.
            (5, 0, 10, [3, 2, 3, 2]),
            (3, 0, 6, [3, 3]),
            (2, 0, 4, [2, 2]),
            (5, 5, 10, [3, 2]),
            # Resumed within a group: the mean of the gradients that are left.
            (None, 4, 9, [2, 3]),
        ],
    )
    def test_groups_of_steps(self, length, first, total, groups):
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        wrapper = sgd(model, dtype='float32', accumulative_counts=3)
        wrapper.epoch_length = length
        wrapper.initialize_count_status(model, first, total)
        found, updates = [], []
        for step in range(first, total):
            expected = wrapper.should_sync()
            with wrapper.optim_context(model):
                loss = model(torch.tensor([[float(step)]])).sum()
            wrapper.update_params(loss)
            assert wrapper.should_update() == expected
            if expected:
                found.append(wrapper.steps_in_update)
                updates.append(-model.weight.item())
        assert found == groups
        # Each update is the mean gradient, which is the mean of its steps.
        steps = iter(range(first, total))
        means = [np.mean([next(steps) for _ in range(n)]) for n in groups]
        assert updates == pytest.approx(list(np.cumsum(means)))

    def test_state_round_trip(self):
        def make():
            torch.manual_seed(0)
            model = nn.Linear(3, 2)
            groups = [dict(params=[p]) for p in model.parameters()]
            return model, AutocastOptimWrapper(
                optimizer=torch.optim.AdamW(groups, lr=0.1)
            )

        def step(model, wrapper, x):
            with wrapper.optim_context(model):
                loss = model(x).float().square().sum()
            wrapper.update_params(loss)
            return loss.item()

        x = torch.randn(4, 3)
        model, wrapper = make()
        step(model, wrapper, x)
        state = copy.deepcopy(wrapper.state_dict())
        weights = copy.deepcopy(model.state_dict())
        expected = [step(model, wrapper, x) for _ in range(2)]

        model, wrapper = make()
        model.load_state_dict(weights)
        before = copy.deepcopy(state)
        # What a float16 run saves beside; other precisions ignore it.
        state['loss_scaler'] = dict(scale=2.0)
        wrapper.load_state_dict(state)
        assert state.pop('loss_scaler') == dict(scale=2.0)
        assert state.keys() == before.keys()
        assert 'base_param_settings' in state
        assert [step(model, wrapper, x) for _ in range(2)] == expected

    def test_exchangeable_with_mmengine(self):
        from mmengine.optim import OptimWrapper

        model = nn.Linear(2, 1)
        ours = AutocastOptimWrapper(
            optimizer=torch.optim.AdamW(model.parameters())
        )
        ours.update_params(model(torch.ones(1, 2)).sum())
        theirs = OptimWrapper(torch.optim.AdamW(model.parameters()))
        theirs.load_state_dict(ours.state_dict())
        ours.load_state_dict(theirs.state_dict())
        assert ours.optimizer.state[model.bias]['step'] == 1

    @pytest.mark.gpu
    @pytest.mark.parametrize(
        'loss_scale', ['dynamic', 128.0, dict(init_scale=8.0)]
    )
    def test_float16(self, loss_scale):
        torch.manual_seed(0)
        model = nn.Linear(2, 1, bias=False).cuda()
        nn.init.zeros_(model.weight)
        wrapper = sgd(
            model,
            dtype='float16',
            loss_scale=loss_scale,
            clip_grad=dict(max_norm=1.0),
        )
        wrapper.message_hub = MessageHub('float16')
        x = torch.tensor([[3.0, 4.0]], device='cuda')
        with wrapper.optim_context(model):
            y = model(x)
        assert y.dtype == torch.float16
        wrapper.update_params(y.float().sum())
        # The scale is taken out before the norm is measured and clipped.
        torch.testing.assert_close(
            model.weight.detach().cpu(), torch.tensor([[-0.6, -0.8]])
        )
        history = wrapper.message_hub.get_scalar('train/grad_norm')
        assert history.current() == pytest.approx(5.0)
        state = wrapper.state_dict()
        scale = {'dynamic': 65536.0, 128.0: 128.0}.get(
            loss_scale if not isinstance(loss_scale, dict) else None, 8.0
        )
        assert state['loss_scaler']['scale'] == scale
        state['loss_scaler']['scale'] = 4.0
        wrapper.load_state_dict(state)
        assert wrapper.loss_scaler.get_scale() == 4.0

    @pytest.mark.gpu
    def test_no_wait_for_the_device(self):
        model = nn.Linear(2, 1).cuda()
        wrapper = sgd(model, clip_grad=dict(max_norm=1.0))
        wrapper.message_hub = MessageHub('sync')
        x = torch.ones(1, 2, device='cuda')

        def step():
            with wrapper.optim_context(model):
                loss = model(x).float().sum()
            wrapper.update_params(loss)

        step()  # the first value of a history is fetched
        torch.cuda.set_sync_debug_mode('error')
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode('default')


def expected_groups(shared, case):
    """The manifest's groups under the names of our classifier."""
    manifest = json.loads((shared / 'parity/ropim/manifest.json').read_text())
    expected = {}
    for name, group in manifest['cases'][case][
        'layer_decay_0p75_groups'
    ].items():
        for old, new in (
            ('blocks.', 'layers.'),
            ('patch_embed.proj.', 'patch_embed.projection.'),
            ('norm1.', 'ln1.'),
            ('norm2.', 'ln2.'),
            ('mlp.fc1.', 'ffn.layers.0.0.'),
            ('mlp.fc2.', 'ffn.layers.1.'),
            ('fc_norm.', 'ln2.'),
        ):
            name = name.replace(old, new)
        name = (
            'head.fc.' + name[5:]
            if name[:5] == 'head.'
            else ('backbone.' + name)
        )
        expected[name] = (group['lr_scale'], group['weight_decay'])
    return expected


def optim_cfg(rate=0.75, **paramwise):
    return ConfigDict(
        type='ropim_mm.AutocastOptimWrapper',
        optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
        constructor='ropim_mm.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=rate, **paramwise),
    )


@pytest.fixture
def mmpretrain_scope():
    """Whatever scope a runner of another test has left behind."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.mark.usefixtures('mmpretrain_scope')
class TestLayerDecay:
    @pytest.mark.parametrize(
        'case', ['finetune_same_32', 'finetune_interp_64_to_96']
    )
    def test_groups_of_the_released_code(self, shared, case):
        expected = expected_groups(shared, case)
        model = MODELS.build(
            dict(
                type='mmpretrain.ImageClassifier',
                backbone=dict(
                    BACKBONE, out_type='avg_featmap', final_norm=False
                ),
                head=dict(
                    type='mmpretrain.LinearClsHead',
                    num_classes=7,
                    in_channels=32,
                ),
            )
        )
        wrapper = build_optim_wrapper(model, optim_cfg())
        assert isinstance(wrapper, AutocastOptimWrapper)
        groups = wrapper.optimizer.param_groups
        found = {
            name: (group['lr_scale'], group['weight_decay'])
            for group in groups
            for name in group['param_names']
        }
        assert found == expected
        assert len(groups) == 2 * 5  # depths 0 to 4, decayed or not
        named = dict(model.named_parameters())
        for group in groups:
            assert group['lr'] == pytest.approx(2e-3 * group['lr_scale'])
            assert [id(p) for p in group['params']] == [
                id(named[name]) for name in group['param_names']
            ]

    def test_pretraining_has_two_groups(self):
        model = MODELS.build(
            dict(
                type='ropim_mm.ROPIM',
                backbone=dict(
                    BACKBONE,
                    out_type='raw',
                    final_norm=True,
                    use_rel_pos_bias=False,
                    use_shared_rel_pos_bias=True,
                ),
                neck=dict(
                    type='ropim_mm.ROPIMNeck', embed_dims=32, patch_size=8
                ),
                head=dict(type='ropim_mm.ROPIMHead', patch_size=8),
            )
        )
        constructor = LayerDecayOptimWrapperConstructor(
            dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05))
        )
        decayed, plain = constructor.param_groups(model)
        assert decayed['weight_decay'] == 0.05
        assert plain['weight_decay'] == 0.0
        assert (
            'backbone.rel_pos_bias.relative_position_bias_table'
            in decayed['param_names']
        )
        assert 'backbone.cls_token' in plain['param_names']
        assert 'backbone.layers.0.attn.q_bias' in plain['param_names']
        assert 'neck.decoder.0.weight' in decayed['param_names']
        assert 'neck.decoder.0.bias' in plain['param_names']

    def test_bare_backbone_equals_wrapped(self):
        backbone = MODELS.build(BACKBONE)
        model = nn.Module()
        model.backbone = backbone
        constructor = LayerDecayOptimWrapperConstructor(
            dict(optimizer=dict(type='SGD', lr=1.0, weight_decay=0.1)),
            dict(layer_decay_rate=0.5),
        )
        bare = constructor.param_groups(backbone)
        wrapped = constructor.param_groups(model)
        for one, two in zip(bare, wrapped, strict=True):
            assert one['lr_scale'] == two['lr_scale']
            assert [f'backbone.{n}' for n in one['param_names']] == two[
                'param_names'
            ]

    def test_frozen_parameters_are_left_out(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model[0].requires_grad_(False)
        wrapper = build_optim_wrapper(model, optim_cfg(1.0))
        names = [
            name
            for group in wrapper.optimizer.param_groups
            for name in group['param_names']
        ]
        assert names == ['1.weight', '1.bias']

    def test_names_match_by_their_last_part(self):
        model = nn.ModuleDict()
        model.token = nn.Parameter(torch.zeros(1, 1, 4))
        model.tokenizer = nn.Parameter(torch.zeros(1, 1, 4))
        model['token'.upper()] = nn.Linear(4, 4, bias=False)
        constructor = LayerDecayOptimWrapperConstructor(
            dict(optimizer=dict(type='SGD', lr=1.0, weight_decay=0.1)),
            dict(no_decay_names=['token']),
        )
        decayed, plain = constructor.param_groups(model)
        assert plain['param_names'] == ['token']
        assert decayed['param_names'] == ['tokenizer', 'TOKEN.weight']

    def test_lr_mult(self):
        model = nn.ModuleDict(
            dict(a=nn.Linear(2, 2), ab=nn.Linear(2, 2), c=nn.Linear(2, 2))
        )
        wrapper = build_optim_wrapper(
            model, optim_cfg(1.0, lr_mult={'a': 2.0, 'a.bias': 3.0})
        )
        rates = {
            name: group['lr']
            for group in wrapper.optimizer.param_groups
            for name in group['param_names']
        }
        assert rates == {
            'a.weight': 4e-3,
            'a.bias': 6e-3,
            'ab.weight': 2e-3,
            'ab.bias': 2e-3,
            'c.weight': 2e-3,
            'c.bias': 2e-3,
        }

    def test_report(self, monkeypatch):
        messages = []
        monkeypatch.setattr(
            optimizer, 'print_log', lambda text, **_: messages.append(text)
        )
        build_optim_wrapper(nn.Sequential(nn.Linear(3, 2)), optim_cfg(1.0))
        report = [line.split() for line in messages[0].splitlines()[2:]]
        # depth, rate, decay, tensors, parameters
        assert report == [
            ['0', '1', '0.05', '1', '6'],
            ['0', '1', '0.0', '1', '2'],
        ]

    def test_no_depths(self):
        with pytest.raises(InputError, match='Linear has no get_layer_depth'):
            build_optim_wrapper(nn.Linear(2, 2), optim_cfg())

    def test_frozen_backbone(self):
        model = nn.Module()
        model.backbone = MODELS.build(BACKBONE).requires_grad_(False)
        model.head = nn.Linear(2, 2)
        with pytest.raises(InputError, match='would change nothing'):
            build_optim_wrapper(model, optim_cfg())

    def test_depths_that_match_nothing(self):
        model = nn.Module()
        model.backbone = nn.Linear(2, 2)
        model.backbone.get_layer_depth = lambda name, prefix: (11, 12)
        with pytest.raises(InputError, match="such as \\['backbone.weight'"):
            build_optim_wrapper(model, optim_cfg())

    @pytest.mark.parametrize(
        'paramwise, message',
        [
            (
                dict(norm_decay_mult=0.0),
                "field\\(s\\) \\['norm_decay_mult'\\]",
            ),
            (dict(layer_decay_rate=1.5), 'is 1.5: expected a number in'),
            (dict(lr_mult=dict(hed=2.0)), "lr_mult names \\['hed'\\]"),
        ],
    )
    def test_bad_fields(self, paramwise, message):
        cfg = optim_cfg(1.0)
        cfg.paramwise_cfg = paramwise
        with pytest.raises(InputError, match=message):
            build_optim_wrapper(nn.Linear(2, 2), cfg)

    def test_one_name_instead_of_a_list(self):
        with pytest.raises(InputError, match="the string 'pos_embed'"):
            build_optim_wrapper(
                nn.Linear(2, 2), optim_cfg(1.0, no_decay_names='pos_embed')
            )

    def test_missing_rate(self):
        with pytest.raises(InputError, match='optimizer.lr is missing'):
            LayerDecayOptimWrapperConstructor(dict(optimizer=dict(type='SGD')))


@pytest.mark.parametrize(
    'accumulate, by_epoch', [(1, False), (3, False), (3, True)]
)
def test_schedules_move_with_updates(tmp_path, accumulate, by_epoch):
    """All steps of a group have the rate of the first."""

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)
            self.rates = []

        def forward(self, inputs, mode):
            self.rates.append(runner.optim_wrapper.get_lr()['lr'][0])
            return dict(loss=self.layer(torch.stack(inputs)).sum())

    model = Model()
    runner = PortableRunner(
        model=model,
        work_dir=str(tmp_path),
        experiment_name=f'{tmp_path.name} rates',
        train_dataloader=dict(
            dataset=[dict(inputs=torch.ones(1)) for _ in range(4)],
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=1,
            num_workers=0,
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(
            type='ropim_mm.AutocastOptimWrapper',
            dtype='float32',
            optimizer=dict(type='SGD', lr=0.8),
            accumulative_counts=accumulate,
        ),
        param_scheduler=dict(
            type='PolyLR',
            by_epoch=by_epoch,
            begin=0,
            end=3 if by_epoch else 9,  # the last value is MMEngine's end - 1
        ),
        default_scope=None,
    )
    runner.train()
    # Down to 0 in equal steps; the last group of an epoch has one step.
    expected = {
        (1, False): [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1],
        (3, False): [0.8, 0.8, 0.8, 0.5, 0.4, 0.4, 0.4, 0.1],
        (3, True): [0.8] * 4 + [0.4] * 4,
    }[accumulate, by_epoch]
    assert model.rates == pytest.approx(expected)


class FakeRunner:
    """What the hook of schedules asks a runner for."""

    def __init__(self, wrapper, schedulers):
        self.optim_wrapper = wrapper
        self.param_schedulers = schedulers
        self.iter = 0


@pytest.mark.parametrize('stop', [4, 6, 11])
def test_schedules_of_accumulated_steps_after_a_resume(stop):
    """In the middle of a group or not, they catch up with the run."""
    total = 12

    def start():
        wrapper = sgd(nn.Linear(1, 1), accumulative_counts=4, dtype='float32')
        schedules = [
            LinearLR(wrapper, 1.0, end_factor=0.1, end=8, by_epoch=False),
            LinearLR(
                wrapper,
                1.0,
                end_factor=0.5,
                begin=5,
                end=total,
                by_epoch=False,
            ),
            ExponentialLR(wrapper, 0.5, by_epoch=True),
        ]
        return wrapper, schedules

    def run(wrapper, schedules, first, last):
        model = nn.Linear(1, 1)
        runner, hook = (
            FakeRunner(wrapper, schedules),
            UpdateParamSchedulerHook(),
        )
        wrapper.initialize_count_status(model, first, total)
        seen = []
        for runner.iter in range(first, last):
            with wrapper.optim_context(model):
                loss = model(torch.ones(1, 1)).sum()
            wrapper.update_params(loss)
            hook.after_train_iter(runner, runner.iter)
            seen.append([schedule.last_step for schedule in schedules])
        return seen

    whole = run(*start(), 0, total)
    assert [row[0] for row in whole] == [0] * 3 + [4] * 4 + [7] * 5
    assert {row[2] for row in whole} == {0}  # that one counts epochs
    wrapper, schedules = start()
    run(wrapper, schedules, 0, stop)
    states = [schedule.state_dict() for schedule in schedules]
    resumed, again = start()
    resumed.load_state_dict(wrapper.state_dict())
    for schedule, state in zip(again, states, strict=True):
        schedule.load_state_dict(state)
    rest = run(resumed, again, stop, total)
    groups_end = 8 - stop if stop < 8 else total - stop
    assert rest[groups_end - 1 :] == whole[stop + groups_end - 1 :]
