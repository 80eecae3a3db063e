"""Two processes against one, and what a split model's checkpoints hold."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import default_collate
from mmengine.model import MMDistributedDataParallel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from two_processes import dataset

from ropim_mm.checkpoints.shards import is_sharded, read_shards
from ropim_mm.engine import LayerDecayOptimWrapperConstructor
from ropim_mm.engine.momentum import cosine_momentum
from ropim_mm.engine.sharding import (
    Strategy,
    check_optimizer,
    read_strategy,
    shard_model,
    shard_units,
)
from ropim_mm.errors import InputError
from ropim_mm.registry import MODELS
from tiny_models import METHODS, model_config

SCRIPT = Path(__file__).resolve().parents[1] / 'support/two_processes.py'
# AdamW turns the rounding of a gradient near 0 into a part of a step of 1e-3.
WEIGHTS, NORMS = 2e-5, 2e-5


class TestStrategy:
    @pytest.mark.parametrize(
        'given, expected',
        [
            (None, Strategy()),
            ('ddp', Strategy('ddp', 'whole')),
            ('fsdp', Strategy('fsdp', 'whole')),
            (
                dict(type='fsdp', checkpoints='sharded'),
                Strategy('fsdp', 'sharded'),
            ),
        ],
    )
    def test_forms(self, given, expected):
        assert read_strategy(ConfigDict(strategy=given)) == expected
        assert read_strategy({}) == Strategy()

    @pytest.mark.parametrize(
        'cfg, message',
        [
            (dict(strategy='zero'), "type is 'zero': expected one of 'ddp',"),
            (
                dict(strategy=dict(type='fsdp', checkpoints='local')),
                "checkpoints is 'local': expected one of 'whole', 'sharded'",
            ),
            (
                dict(strategy=dict(type='fsdp', offload=True)),
                'unknown field(s) offload: expected type, checkpoints, shard_',
            ),
            (
                dict(strategy=dict(checkpoints='sharded')),
                "but strategy.type is 'ddp'",
            ),
            (
                dict(strategy=dict(shard_over=8)),
                "strategy.shard_over is set, but strategy.type is 'ddp'",
            ),
            (
                dict(strategy=dict(type='fsdp', shard_over='8')),
                "strategy.shard_over is '8': expected a number of processes",
            ),
            (
                dict(strategy='fsdp', model_wrapper_cfg=dict(type='X')),
                'model_wrapper_cfg and strategy',
            ),
            (
                dict(strategy='fsdp', custom_hooks=[dict(type='EMAHook')]),
                'an EMAHook, which copies the model',
            ),
        ],
    )
    def test_refused(self, cfg, message):
        with pytest.raises(InputError, match=re.escape(message)):
            read_strategy(ConfigDict(cfg))


@pytest.mark.parametrize(
    'method, expected',
    [
        ('ropim', ['backbone.layers.0', 'backbone.layers.1']),
        (
            'conmim',
            [
                f'{copy}backbone.layers.{i}'
                for copy in ('', 'momentum.')
                for i in (0, 1)
            ],
        ),
    ],
)
def test_blocks_are_the_units(method, expected):
    model = MODELS.build(model_config(method))
    units = shard_units(model)
    names = [n for n, module in model.named_modules() if module in units]
    assert names == expected


def test_what_is_no_unit():
    lone = nn.ModuleList([nn.Linear(9, 9)])
    small = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    assert shard_units(nn.Sequential(lone, small, nn.Linear(50, 50))) == []


@pytest.mark.parametrize('name, fits', [('AdamW', True), ('LBFGS', False)])
def test_optimizers(name, fits):
    optimizer = getattr(torch.optim, name)(nn.Linear(1, 1).parameters())
    if fits:
        check_optimizer(optimizer)
        return
    with pytest.raises(InputError, match="type is LBFGS: strategy='fsdp'"):
        check_optimizer(optimizer)


def free_port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """The folder with all runs of ``two_processes.py``."""
    if torch.cuda.is_available():
        pytest.skip('compares runs on CPUs')
    folder = tmp_path_factory.mktemp('runs')
    for mode, processes in (('one', 1), ('two', 2), ('four', 4)):
        launcher = []
        if processes > 1:
            launcher = [
                '-m',
                'torch.distributed.run',
                f'--nproc_per_node={processes}',
                f'--master_port={free_port()}',
            ]
        done = subprocess.run(
            [sys.executable, *launcher, str(SCRIPT), str(folder), mode],
            env=dict(os.environ, OMP_NUM_THREADS='1'),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def checkpoint(folder, epoch=2):
    path = folder / f'epoch_{epoch}.pth'
    if is_sharded(path):
        return read_shards(path)
    return torch.load(path, weights_only=False)


def norms(folder):
    return json.loads((folder / 'norms.json').read_text())


@pytest.mark.slow
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize(
    'ours, theirs',
    [
        # One process with the whole batch. A projector normalises over the
        # images of a step and process: its statistics are held still.
        ('fsdp turns', 'whole'),
        # Half a batch a step on one process: the same statistics as above.
        ('ddp', 'turns'),
        ('fsdp', 'turns'),
        ('fsdp', 'ddp'),
        ('parts', 'fsdp'),
        # Blocks compiled, and their activations computed again.
        ('fsdp variants', 'fsdp'),
        # The second epoch only, from a checkpoint of the other strategy.
        ('fsdp resumed', 'ddp'),
        ('ddp resumed', 'fsdp'),
        ('parts resumed', 'parts'),
    ],
)
def test_equal(runs, method, ours, theirs):
    check_equal(runs, method, ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize('method', ['ropim', 'conmim'])
@pytest.mark.parametrize(
    'ours, theirs', [('copies', 'whole'), ('copies resumed', 'copies')]
)
def test_two_copies_in_two_parts(runs, method, ours, theirs):
    check_equal(runs, method, ours, theirs)
    parts = (runs / ours / method / 'epoch_2.pth').iterdir()
    assert {part.name for part in parts} == {'rank0.pth', 'rank1.pth'}


def check_equal(runs, method, ours, theirs):
    ours, theirs = runs / ours / method, runs / theirs / method
    found, expected = norms(ours), norms(theirs)
    assert len(expected) == 6
    assert len(found) == (3 if 'resumed' in ours.parent.name else 6)
    # A norm that all gradients of a run share would hide an error.
    assert len(set(expected)) > 3 and min(expected) > 0.01
    assert found == pytest.approx(expected[-len(found) :], rel=NORMS)
    found, expected = checkpoint(ours), checkpoint(theirs)
    assert list(found['state_dict']) == list(expected['state_dict'])
    # Each process has its own statistics; with one, those of all images.
    alone = theirs.parent.name in ('whole', 'turns')
    for name, tensor in expected['state_dict'].items():
        if alone and ('running' in name or 'num_batches' in name):
            continue
        torch.testing.assert_close(
            found['state_dict'][name], tensor, rtol=0, atol=WEIGHTS, msg=name
        )
    moments = expected['optimizer']['state']
    assert found['optimizer']['state'].keys() == moments.keys()
    for index, state in moments.items():
        for key, value in state.items():
            torch.testing.assert_close(
                found['optimizer']['state'][index][key],
                value,
                rtol=1e-4,
                atol=1e-7,
            )
    for key in ('meta', 'message_hub', 'param_schedulers'):
        assert (
            found[key].keys() == expected[key].keys()
            if isinstance(found[key], dict)
            else len(found[key]) == len(expected[key])
        )
    assert found['meta']['epoch'] == 2


@pytest.mark.slow
def test_parameters_move_far_more_than_the_tolerance(runs):
    for method in METHODS:
        first, last = (
            checkpoint(runs / 'fsdp' / method, epoch)['state_dict']
            for epoch in (1, 2)
        )
        moved = max(
            (last[name] - first[name]).abs().max().item()
            for name in first
            if first[name].is_floating_point() and 'running' not in name
        )
        assert moved > 20 * WEIGHTS, method


@pytest.mark.slow
@pytest.mark.parametrize('rank', [0, 1])
def test_windows_of_a_split_encoder(runs, rank):
    found = json.loads((runs / f'windows{rank}.json').read_text())
    assert found['difference'] < 1e-6
    assert found['gradients'] < 1e-6 < 1e-3 < found['scale']
    # Blocks are taken apart as soon as they ran.
    assert found['open'] == [0, 0]


@pytest.mark.slow
def test_the_momentum_copy_follows(runs):
    """Once an update, along its schedule, split or not."""
    weights = checkpoint(runs / 'parts' / 'conmim')['state_dict']
    name = 'backbone.layers.0.attn.qkv.weight'
    difference = (weights[name] - weights[f'momentum.{name}']).abs().max()
    assert 1e-5 < difference < 1e-2
    # An update of two steps has the momentum of the whole batch's step.
    for run, steps in (('whole', 1), ('fsdp turns', 2)):
        (log,) = (runs / run / 'conmim').glob('*/vis_data/scalars.json')
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        found = [
            line['copy_momentum']
            for line in lines
            if line['step'] % steps == 0
        ]
        assert found == pytest.approx(
            [cosine_momentum(0.5, 1.0, i, 6) for i in range(6)]
        )


@pytest.mark.slow
def test_each_process_wrote_half(runs):
    folder = runs / 'parts' / 'ropim' / 'epoch_2.pth'
    assert sorted(p.name for p in folder.iterdir()) == [
        'rank0.pth',
        'rank1.pth',
    ]
    name = 'backbone.layers.0.ffn.layers.0.0.weight'
    for rank in (0, 1):
        content = torch.load(folder / f'rank{rank}.pth', weights_only=False)
        rows, shape = content['shards']['state_dict'][name]
        assert (list(rows.shape), shape) == ([16, 16], [32, 16])
    assert 'state_dict' not in content  # only rank 0's file has all names
    assert not list(folder.parent.glob('*.partial'))
    last = (folder.parent / 'last_checkpoint').read_text()
    assert Path(last) == folder


class Syncs(TorchDispatchMode):
    """Counts what makes the host wait for a device."""

    WAITS = ('_local_scalar_dense', 'nonzero', 'masked_select', 'equal')

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.WAITS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def alone():
    """A process group of one."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group(
        'gloo', store=store, rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_copies_that_do_not_fill_the_processes(alone):
    with pytest.raises(InputError, match='shard_over is 2, but there are 1 '):
        shard_model(nn.Linear(1, 1), shard_over=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason='is for CPUs')
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('strategy', ['ddp', 'fsdp'])
def test_no_step_waits_for_the_device(alone, method, strategy):
    model = MODELS.build(model_config(method))
    if strategy == 'fsdp':
        shard_model(model)
        wrapped = model
    else:
        wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    wrapper = LayerDecayOptimWrapperConstructor(
        dict(
            optimizer=dict(type='AdamW', lr=1e-3, fused=True),
            clip_grad=dict(max_norm=1.0),
            accumulative_counts=2,
        )
    )(wrapped)
    wrapper.initialize_count_status(wrapped, 0, 100)
    batch = default_collate(dataset(method)[:4])
    for sample in batch['data_samples']:
        # Given decisions are checked number by number; drawn ones are not.
        for name in set(sample.keys()) - {'regions'}:
            del sample[name]

    def step():
        for _ in range(2):
            wrapped.train_step(batch, wrapper)
        if method == 'conmim':
            model.update_momentum_copy(0.9)

    step()  # the first makes the states and fetches its own norm
    with Syncs() as syncs:
        step()
        assert syncs.found == []
        torch.ones(1).item()
        assert syncs.found == ['_local_scalar_dense']
