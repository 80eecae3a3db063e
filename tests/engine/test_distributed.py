"""Process groups, and the runner that works with and without GPUs."""

import os
import socket
import stat

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from torch import nn

from ropim_mm.engine import PortableRunner, distributed
from ropim_mm.engine.distributed import (
    LaunchError,
    adapt_dataloader,
    first_host,
    process_environment,
)
from ropim_mm.registry import RUNNERS


class TestEnvironment:
    def test_torchrun(self):
        given = dict(
            RANK='3',
            WORLD_SIZE='4',
            LOCAL_RANK='1',
            MASTER_ADDR='gpu1',
            MASTER_PORT='1234',
        )
        assert process_environment('pytorch', given) == given

    def test_slurm(self, scontrol):
        scontrol('gpu03\ngpu04\n')
        given = dict(
            SLURM_PROCID='9',
            SLURM_NTASKS='16',
            SLURM_LOCALID='1',
            SLURM_NODELIST='gpu[03-04]',
            SLURM_JOB_ID='1234567',
        )
        assert process_environment('slurm', given) == dict(
            RANK='9',
            WORLD_SIZE='16',
            LOCAL_RANK='1',
            MASTER_ADDR='gpu03',
            MASTER_PORT='24567',
        )
        given.update(MASTER_ADDR='10.0.0.1', MASTER_PORT='5')
        found = process_environment('slurm', given)
        assert (found['MASTER_ADDR'], found['MASTER_PORT']) == (
            '10.0.0.1',
            '5',
        )

    def test_slurm_step_on_part_of_the_job(self):
        given = dict(
            SLURM_PROCID='0',
            SLURM_NTASKS='1',
            SLURM_LOCALID='0',
            SLURM_NODELIST='a[1-9]',
            SLURM_STEP_NODELIST='a7',
        )
        assert process_environment('slurm', given)['MASTER_ADDR'] == 'a7'

    def test_mpi(self):
        given = dict(
            OMPI_COMM_WORLD_RANK='1',
            OMPI_COMM_WORLD_SIZE='2',
            OMPI_COMM_WORLD_LOCAL_RANK='1',
            OMPI_COMM_WORLD_LOCAL_SIZE='2',
        )
        found = process_environment('mpi', given)
        assert found['MASTER_ADDR'] == '127.0.0.1'
        assert found['MASTER_PORT'] == '29500'
        given['OMPI_COMM_WORLD_LOCAL_SIZE'] = '1'
        with pytest.raises(LaunchError, match='mpi: set MASTER_ADDR'):
            process_environment('mpi', given)

    def test_not_started_by_the_launcher(self):
        with pytest.raises(
            LaunchError, match='slurm: SLURM_PROCID is not in the environment'
        ):
            process_environment('slurm', {})
        with pytest.raises(LaunchError, match='dist_train.sh'):
            process_environment('pytorch', {})
        with pytest.raises(LaunchError, match='expected one of none, pytorch'):
            process_environment('pbs', {})


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """Put a program ``scontrol`` on PATH that answers with given lines."""

    def write(answer, status=0):
        path = tmp_path / 'scontrol'
        path.write_text(
            f'#!/bin/sh\n[ "$1 $2" = "show hostnames" ] || exit 9\n'
            f'printf "{answer}"\nexit {status}\n'
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')

    return write


class TestMeeting:
    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch):
        self.set = monkeypatch.setenv
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
        names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_PORT')
        for name, value in zip(names, '0201', strict=True):
            self.set(name, value)
        self.set('MASTER_ADDR', '127.0.0.1')

    def test_the_port_is_taken(self):
        with socket.socket() as listener:
            listener.bind(('127.0.0.1', 0))
            listener.listen()
            port = listener.getsockname()[1]
            self.set('MASTER_PORT', str(port))
            with pytest.raises(
                LaunchError, match=f'port 127.0.0.1:{port} is in use by'
            ):
                distributed.init_process_group('pytorch')

    def test_nobody_comes(self):
        with socket.socket() as listener:
            listener.bind(('127.0.0.1', 0))
            port = listener.getsockname()[1]
        with pytest.raises(
            LaunchError,
            match=f'process 0 of 2 cannot meet .* 127.0.0.1:{port}',
        ):
            distributed.init_process_group('pytorch', timeout=1, port=port)
        assert not torch.distributed.is_initialized()


class TestFirstHost:
    def test_without_brackets(self, monkeypatch):
        monkeypatch.setenv('PATH', '')
        assert first_host('node-7') == 'node-7'
        assert first_host('b,a') == 'b'

    def test_scontrol_missing(self, monkeypatch):
        monkeypatch.setenv('PATH', '')
        with pytest.raises(LaunchError, match='scontrol is not on PATH'):
            first_host('a[1-2]')

    def test_scontrol_fails(self, scontrol):
        scontrol('', status=1)
        with pytest.raises(LaunchError, match='hostnames a\\[1-2\\] failed'):
            first_host('a[1-2]')


class TestCudaIndex:
    @pytest.mark.parametrize(
        'launcher, local_rank, count, expected',
        [('pytorch', 2, 4, 2), ('slurm', 3, 1, 0)],
    )
    def test_index(self, monkeypatch, launcher, local_rank, count, expected):
        monkeypatch.setenv('LOCAL_RANK', str(local_rank))
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
        assert distributed._cuda_index(launcher) == expected
        assert os.environ['LOCAL_RANK'] == str(expected)

    @pytest.mark.parametrize('launcher, count', [('pytorch', 1), ('slurm', 2)])
    def test_too_few(self, monkeypatch, launcher, count):
        monkeypatch.setenv('LOCAL_RANK', '2')
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
        with pytest.raises(
            LaunchError, match=f'process 2 .* has no GPU: {count} visible'
        ):
            distributed._cuda_index(launcher)


class TestDataloader:
    @pytest.mark.parametrize('gpu', [False, True])
    def test_defaults(self, monkeypatch, gpu):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
        given = dict(num_workers=2)
        assert adapt_dataloader(given) == dict(
            num_workers=2, persistent_workers=True, pin_memory=gpu
        )
        assert given == dict(num_workers=2)

    def test_without_workers(self):
        given = dict(num_workers=0, persistent_workers=True, prefetch_factor=4)
        found = adapt_dataloader(given)
        assert found['persistent_workers'] is False
        assert 'prefetch_factor' not in found

    def test_what_the_config_declines(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
        found = adapt_dataloader(
            dict(num_workers=1, persistent_workers=False, pin_memory=False)
        )
        assert found['persistent_workers'] is False
        assert found['pin_memory'] is False


class Tiny(BaseModel):
    def __init__(self, norm='SyncBatchNorm'):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.norm = getattr(nn, norm)(2)

    def forward(self, inputs, mode='tensor'):
        return self.norm(self.conv(inputs))


@pytest.fixture
def runner(tmp_path):
    return PortableRunner(
        model=Tiny('BatchNorm2d'),
        work_dir=str(tmp_path),
        experiment_name=tmp_path.name,
        default_scope=None,  # would stay for other tests
        cfg=ConfigDict(find_unused_parameters=True, sync_bn='torch'),
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason='is for CPUs')
def test_wrapped_for_the_cpu(runner, monkeypatch):
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group(
        'gloo', store=store, rank=0, world_size=1
    )
    try:
        monkeypatch.setattr(PortableRunner, 'distributed', True)
        model = runner.wrap_model(None, Tiny())
        custom = runner.wrap_model(
            dict(type='MMDistributedDataParallel', static_graph=True), Tiny()
        )
    finally:
        torch.distributed.destroy_process_group()
    assert model.device_ids is None
    assert model.find_unused_parameters and not model.broadcast_buffers
    assert model.gradient_as_bucket_view
    assert not isinstance(model.module.norm, nn.SyncBatchNorm)
    assert custom.static_graph and custom.device_ids is None
    # Works in training, which SyncBatchNorm refuses on a CPU.
    model.module.train()(torch.zeros(2, 1, 2, 2))


def test_a_config_may_name_the_runner():
    assert RUNNERS.get('ropim_mm.PortableRunner') is PortableRunner


def test_default_hooks(runner):
    names = [type(hook).__name__ for hook in runner.hooks]
    assert 'DeferredRuntimeInfoHook' in names
    assert 'RuntimeInfoHook' not in names
    assert {'IterTimerHook', 'LoggerHook', 'CheckpointHook'} <= set(names)


def test_fewer_images_than_a_batch():
    loader = dict(
        dataset=torch.utils.data.TensorDataset(torch.zeros(3, 1)),
        sampler=dict(type='DefaultSampler', shuffle=True),
        batch_size=8,
        num_workers=0,
        collate_fn=dict(type='default_collate'),
    )
    assert len(PortableRunner.build_dataloader(dict(loader))) == 1
    with pytest.raises(LaunchError, match='3 samples in batches of 8'):
        PortableRunner.build_dataloader(dict(loader, drop_last=True))
    # An endless sampler has enough for any batch, unless there is nothing.
    loader.update(drop_last=True, sampler=dict(type='InfiniteSampler'))
    batch = next(iter(PortableRunner.build_dataloader(dict(loader))))
    assert batch[0].shape == (8, 1)
    loader['dataset'] = torch.utils.data.TensorDataset(torch.zeros(0, 1))
    with pytest.raises(LaunchError, match='0 samples in batches of 8'):
        PortableRunner.build_dataloader(loader)
