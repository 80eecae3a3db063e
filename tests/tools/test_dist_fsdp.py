"""``strategy=fsdp`` and two machines, by the command lines."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        torch.cuda.device_count() == 1, reason='2 processes need 0 or 2 GPUs'
    ),
]
ROOT = Path(__file__).resolve().parents[2]
HALF = ['train_dataloader.batch_size=2', 'train_dataloader.num_workers=0']
SHARDED = ['strategy.type=fsdp', 'strategy.checkpoints=sharded']


def weights(path):
    return torch.load(path, weights_only=False)['state_dict']


def assert_close(ours, theirs):
    assert list(ours) == list(theirs)
    for key, tensor in theirs.items():
        # A hundredth of AdamW's step, see test_dist.py.
        torch.testing.assert_close(
            ours[key], tensor, rtol=0, atol=1e-5, msg=key
        )


@pytest.fixture(scope='module')
def sharded(call, configs, tmp_path_factory):
    """Work folder of a run of two processes that keeps its parts."""
    work_dir = tmp_path_factory.mktemp('sharded')
    output = call(
        'dist_train.sh',
        configs['pretrain'],
        2,
        '--work-dir',
        work_dir,
        '--cfg-options',
        *HALF,
        *SHARDED,
    )
    assert '2 process(es)' in output
    return work_dir


def test_parts_are_merged_and_load_everywhere(
    call, configs, pretrained, sharded, tmp_path
):
    plain = tmp_path / 'plain.pth'
    output = call(
        'model_converters/merge_shards.py', sharded / 'epoch_2.pth', plain
    )
    assert 'numbers, from 2 parts' in output
    assert_close(weights(plain), weights(pretrained[1] / 'epoch_2.pth'))

    encoder = tmp_path / 'encoder.pth'
    call('model_converters/extract_backbone.py', plain, encoder)
    # Fine-tuning: pretrained weights are read before the model is split, and
    # validation sees it whole.
    work = tmp_path / 'finetune'
    output = call(
        'dist_train.sh',
        configs['finetune'],
        2,
        '--work-dir',
        work,
        '--amp',
        '--cfg-options',
        'strategy=fsdp',
        'model.backbone.init_cfg.type=Pretrained',
        f'model.backbone.init_cfg.checkpoint={plain}',
        'model.backbone.init_cfg.prefix=backbone.',
    )
    assert 'accuracy/top1' in output
    call('test.py', configs['finetune'], work / 'epoch_1.pth')


def test_one_process_goes_on_from_parts(
    call, configs, pretrained, sharded, tmp_path
):
    call(
        'train.py',
        configs['pretrain'],
        '--work-dir',
        tmp_path,
        '--resume',
        sharded / 'epoch_1.pth',
    )
    assert_close(
        weights(tmp_path / 'epoch_2.pth'),
        weights(pretrained[1] / 'epoch_2.pth'),
    )


def test_one_process_cannot_be_split(call, configs):
    output = call(
        'train.py',
        configs['pretrain'],
        '--cfg-options',
        'strategy=fsdp',
        status=1,
    )
    assert "is 'fsdp', which splits the model over processes" in output
    assert 'tools/dist_train.sh' in output
    assert 'Traceback' not in output


def test_two_machines(configs, pretrained, tmp_path):
    """Two launchers of one process each, as on two machines."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        port = listener.getsockname()[1]
    command = [
        'bash',
        str(ROOT / 'tools/dist_train.sh'),
        str(configs['pretrain']),
        '1',
        '--work-dir',
        str(tmp_path),
        '--cfg-options',
        *HALF,
        'strategy=fsdp',
    ]
    machines = [
        subprocess.Popen(
            command,
            env=dict(
                os.environ,
                PYTHON=sys.executable,
                NNODES='2',
                NODE_RANK=str(rank),
                MASTER_ADDR='127.0.0.1',
                PORT=str(port),
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert '2 process(es)' in outputs[0]
    assert_close(
        weights(tmp_path / 'epoch_2.pth'),
        weights(pretrained[1] / 'epoch_2.pth'),
    )


def test_a_busy_port_is_named(call, configs):
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        listener.listen()
        port = listener.getsockname()[1]
        output = call(
            'dist_train.sh',
            configs['pretrain'],
            1,
            status=1,
            PORT=str(port),
        )
    assert f'error: port {port} of this machine is in use' in output
    assert 'set PORT' in output
    assert 'Traceback' not in output
