"""``dist_train.sh`` and ``dist_test.sh``: several processes on one machine."""

import json
import time

import pytest
import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        torch.cuda.device_count() == 1, reason='2 processes need 0 or 2 GPUs'
    ),
]

FAILING_HOOK = """
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class FailOnSecondProcess(Hook):
    def after_train_iter(self, runner, batch_idx, **kwargs):
        if runner.rank == 1 and runner.iter == 0:
            raise MemoryError('process 1 fails here')
"""


def test_two_processes_equal_one(call, configs, pretrained, history, tmp_path):
    work_dir = tmp_path / 'a work folder'
    output = call(
        'dist_train.sh',
        configs['pretrain'],
        2,
        '--work-dir',
        work_dir,
        '--cfg-options',
        'train_dataloader.batch_size=2',
        'train_dataloader.num_workers=1',
        cwd=tmp_path,
    )
    assert '2 process(es)' in output
    assert '4 images a step' in output
    # The norm of the gradients averaged over both processes.
    one = history(pretrained[1], 'grad_norm')
    two = history(work_dir, 'grad_norm')
    assert list(two) == list(range(1, 9))
    for step in two:
        assert two[step] == pytest.approx(one[step], rel=1e-5), step
    for epoch in (1, 2):
        name = f'epoch_{epoch}.pth'
        ours, theirs = (
            torch.load(path / name, weights_only=False)['state_dict']
            for path in (work_dir, pretrained[1])
        )
        # Where a gradient is near 0, Adam turns its rounding into a part of a
        # whole step of 1e-3; 1e-5 is a hundredth of one.
        for key, tensor in theirs.items():
            torch.testing.assert_close(
                ours[key], tensor, rtol=0, atol=1e-5, msg=key
            )
    assert 'Error' not in output


def test_a_process_that_fails_ends_the_run(call, configs, tmp_path):
    (tmp_path / 'failing.py').write_text(FAILING_HOOK)
    config = tmp_path / 'config.py'
    config.write_text(
        configs['pretrain'].read_text()
        + "\ncustom_imports['imports'].append('failing')\n"
        "custom_hooks = [dict(type='FailOnSecondProcess')]\n"
    )
    start = time.monotonic()
    output = call(
        'dist_train.sh',
        config,
        2,
        '--work-dir',
        tmp_path / 'work',
        status=1,
        PYTHONPATH=str(tmp_path),
    )
    assert 'process 1 fails here' in output
    # The other waits for it in vain; the default timeout is half an hour.
    assert time.monotonic() - start < 120
    assert not list((tmp_path / 'work').glob('*.pth'))


def test_testing(call, configs, tmp_path):
    # An untrained classifier will do: both must say the same of it.
    checkpoint = tmp_path / 'epoch_1.pth'
    call('train.py', configs['finetune'], '--work-dir', tmp_path)
    results = []
    for tool, processes in (('test.py', []), ('dist_test.sh', [2])):
        out = tmp_path / f'{tool}.json'
        call(
            tool,
            configs['finetune'],
            checkpoint,
            *processes,
            '--work-dir',
            tmp_path / 'work',
            '--out',
            out,
        )
        results.append(json.loads(out.read_text()))
    assert results[0] == results[1]


@pytest.mark.parametrize('gpus', ['', '0', 'two'])
@pytest.mark.parametrize(
    'tool, files', [('dist_train.sh', ['c.py']), ('dist_test.sh', ['c', 'w'])]
)
def test_number_of_processes_is_checked(call, tool, files, gpus):
    output = call(tool, *files, gpus, status=2)
    assert f"error: GPUS is '{gpus}', expected a number above 0" in output
    assert f'usage: bash tools/{tool} CONFIG' in output


def test_machines_and_port_from_the_environment(call, tmp_path):
    python = tmp_path / 'python with space'
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    output = call(
        'dist_train.sh',
        'my config.py',
        8,
        '--resume',
        'a b.pth',
        PYTHON=str(python),
        NNODES='4',
        NODE_RANK='3',
        MASTER_ADDR='first',
        PORT='1234',
    )
    lines = output.splitlines()
    assert lines[:7] == [
        '-m',
        'torch.distributed.run',
        '--nnodes=4',
        '--node_rank=3',
        '--master_addr=first',
        '--master_port=1234',
        '--nproc_per_node=8',
    ]
    assert lines[7].endswith('/tools/train.py')
    assert lines[8:] == [
        'my config.py',
        '--launcher',
        'pytorch',
        '--resume',
        'a b.pth',
    ]
