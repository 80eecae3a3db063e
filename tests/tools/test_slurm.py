"""``slurm_train.sh`` and ``slurm_test.sh`` with an srun that only notes."""

import os

import pytest

FAKE = """#!/bin/sh
printf '%s\\n' "$@" > "$RECORD"
exit "${STATUS:-0}"
"""


@pytest.fixture
def slurm(call, tmp_path):
    """Call a script; gives the arguments that srun got."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    (folder / 'srun').write_text(FAKE)
    (folder / 'srun').chmod(0o755)
    record = tmp_path / 'arguments'

    def run(tool, *args, **kwargs):
        call(
            tool,
            *args,
            PATH=f'{folder}:{os.environ["PATH"]}',
            RECORD=str(record),
            cwd=tmp_path,
            **{'PYTHON': 'python3', **kwargs},
        )
        return record.read_text().splitlines()

    return run


def test_train_defaults(slurm):
    found = slurm(
        'slurm_train.sh', 'gpu', 'my job', 'a b.py', 'work dir', '--amp'
    )
    assert found[:8] == [
        '--partition=gpu',
        '--job-name=my job',
        '--ntasks=8',
        '--cpus-per-task=5',
        '--kill-on-bad-exit=1',
        '--gres=gpu:8',
        '--ntasks-per-node=8',
        'python3',
    ]
    assert found[8] == '-u'
    assert os.path.samefile(
        found[9],
        os.path.join(os.path.dirname(__file__), '../../tools/train.py'),
    )
    assert found[10:] == [
        'a b.py',
        '--work-dir',
        'work dir',
        '--amp',
        '--launcher',
        'slurm',
    ]


def test_test_with_settings(slurm):
    found = slurm(
        'slurm_test.sh',
        'gpu',
        'job',
        'c.py',
        'w.pth',
        '--out',
        'o.json',
        GPUS='16',
        GPUS_PER_NODE='4',
        CPUS_PER_TASK='2',
        SRUN_ARGS='--qos=high  --exclusive',
    )
    for argument in ('--ntasks=16', '--gres=gpu:4', '--ntasks-per-node=4'):
        assert argument in found
    assert '--cpus-per-task=2' in found
    assert found[7:9] == ['--qos=high', '--exclusive']
    assert found[-6:] == [
        'c.py',
        'w.pth',
        '--out',
        'o.json',
        '--launcher',
        'slurm',
    ]


def test_few_or_no_gpus(slurm):
    args = ('slurm_train.sh', 'p', 'j', 'c.py', 'w')
    assert '--gres=gpu:2' in slurm(*args, GPUS='2')
    without = slurm(*args, GPUS='2', GPUS_PER_NODE='0')
    assert '--ntasks=2' in without
    assert not [a for a in without if 'gpu:' in a or 'per-node' in a]


def test_exit_status_is_passed_on(slurm):
    slurm('slurm_train.sh', 'p', 'j', 'c.py', 'w', STATUS='7', status=7)


@pytest.mark.parametrize('tool', ['slurm_train.sh', 'slurm_test.sh'])
def test_usage(call, tool):
    output = call(tool, 'partition', 'job', 'c.py', status=2)
    assert f'usage: bash tools/{tool} PARTITION JOB_NAME CONFIG' in output
