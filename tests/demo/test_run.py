"""``demo/run.py``: its plan, its folder, and a much shortened run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def run(demo):
    return demo('run')


def test_configs_agree(run):
    """The classifier's encoder is the one that is pretrained."""
    pretrain = Config.fromfile(run.PRETRAIN)
    finetune = Config.fromfile(run.FINETUNE)
    one, other = pretrain.model.backbone, finetune.model.backbone
    for key in ('arch', 'img_size', 'patch_size', 'in_channels'):
        assert one[key] == other[key], key
    for key in ('mean', 'std'):
        assert (
            pretrain.data_preprocessor[key]
            == (finetune.data_preprocessor[key])
        )
    for path, cfg in ((run.PRETRAIN, pretrain), (run.FINETUNE, finetune)):
        epochs = cfg.train_cfg.max_epochs
        batch = cfg.train_dataloader.batch_size
        assert f'_1xb{batch}-' in path.name
        assert f'-{epochs}e_' in path.name
        assert cfg.param_scheduler[1].end == epochs
        assert cfg.param_scheduler[0].end == cfg.param_scheduler[1].begin
        assert cfg.auto_scale_lr.base_batch_size == batch
        # What the demo does for other numbers of epochs gives the same.
        changed = Config.fromfile(path)
        options = run.schedule_options(epochs, default=-1)
        pairs = (option.split('=') for option in options)
        changed.merge_from_dict({key: int(value) for key, value in pairs})
        assert changed.param_scheduler == cfg.param_scheduler


def test_both_arms_differ_by_their_start_only(run, tmp_path):
    args = run.parse_args(['--work-dir', str(tmp_path), '--seeds', '3'])
    args.epochs, args.finetune_epochs = 7, 5
    jobs = run.plan(args, dict(pretrain=7, finetune=5))
    names = [job.name for job in jobs]
    assert names == [
        'pretraining',
        *(f'{arm}, seed {i}' for arm in run.ARMS for i in range(3)),
        'reconstructions',
    ]
    by_name = {job.name: job for job in jobs}
    for seed in range(3):
        scratch = by_name[f'scratch, seed {seed}']
        pretrained = by_name[f'pretrained, seed {seed}']
        assert (scratch.after, pretrained.after) == ((), ('pretraining',))
        train = list(map(str, scratch.commands[0]))
        other = list(map(str, pretrained.commands[0]))
        differing = [
            pair for pair in zip(train, other, strict=True) if len({*pair}) > 1
        ]
        assert differing == [
            (f'scratch-seed{seed}', f'pretrained-seed{seed}'),
            (
                'model.backbone.init_cfg=None',
                'model.backbone.init_cfg.checkpoint=pretrain/epoch_7.pth',
            ),
        ]
        assert f'randomness.seed={seed}' in train
        assert f'train_dataloader.dataset.data_prefix=few-seed{seed}' in train


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--seeds', '0'], '--seeds is 0; expected 1 to 100'),
        (['--labels', '101'], '--labels is 101; expected 2 to 100'),
        (['--epochs', '1'], '--epochs is 1; expected 2 or more'),
        (
            ['--finetune-epochs', '0'],
            '--finetune-epochs is 0; expected 2 or more',
        ),
    ],
)
def test_wrong_options(run, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run.parse_args(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_short_run(run, tmp_path):
    """From another folder, into a path with a space."""
    work_dir = tmp_path / 'the demo'
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / 'demo/run.py')),
            *('--work-dir', work_dir.name, '--seeds', '1'),
            *('--epochs', '2', '--finetune-epochs', '3', '--labels', '4'),
        ],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '| difference          |' in done.stdout
    assert '40 labelled images (4 a class)' in done.stdout

    results = json.loads((work_dir / 'results.json').read_text())
    for arm in run.ARMS:
        (accuracy,) = results['accuracy'][arm]['values']
        assert 0 <= accuracy <= 100
        assert f'test accuracy {accuracy:.1f} %' in done.stdout
        # What is reported is what tools/test.py measured.
        assert accuracy == run.test_accuracy(work_dir / f'{arm}-seed0')
        log = (work_dir / f'logs/{arm}-seed0.log').read_text()
        start = 'pretrain/epoch_2.pth: matched 67 of 69 tensors' in log
        assert start == (arm == 'pretrained')
    losses = results['pretraining']
    assert losses['last_loss'] < losses['first_loss'] < 1
    assert results['images']['test'] == 497
    for name in ('curves.png', 'reconstructions.png'):
        assert Image.open(work_dir / name).width > 500
    checkpoint = torch.load(
        work_dir / 'pretrain/epoch_2.pth', weights_only=False
    )
    assert 'neck.decoder.0.weight' in checkpoint['state_dict']
    assert (work_dir / 'results.md').read_text() in done.stdout


@pytest.mark.slow
def test_a_failing_step_stops_the_demo(run, tmp_path):
    """With the end of its log."""
    config = tmp_path / 'wrong.py'
    config.write_text(
        f'_base_ = {str(run.PRETRAIN)!r}\nmodel = dict(sketch_ratio=2.0)\n'
    )
    work_dir = tmp_path / 'work'
    code = (
        f'import pathlib, run; run.PRETRAIN = pathlib.Path({str(config)!r})\n'
        'run.main()'
    )
    done = subprocess.run(
        [sys.executable, '-c', code, '--work-dir', str(work_dir)],
        cwd=run.DEMO,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    message = done.stderr[done.stderr.index('error: ') :]
    assert 'pretraining failed with status 1' in message
    assert str(work_dir / 'logs/pretrain.log') in message
    assert 'sketch_ratio is 2.0' in message
    assert 'Traceback' not in done.stderr.replace(message, '')
    assert not (work_dir / 'results.md').exists()
