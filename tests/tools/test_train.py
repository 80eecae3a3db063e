"""``tools/train.py``, by command line in processes of their own."""

import pytest
import torch

pytestmark = pytest.mark.slow


def test_pretraining(pretrained, configs, history):
    output, work_dir = pretrained
    assert (
        f'Training {configs["pretrain"]} on cpu, 1 process(es), work folder '
        f'{work_dir}, 4 images a step' in output
    ) or torch.cuda.is_available()
    assert 'eta: ' in output
    losses = history(work_dir, 'loss')
    assert list(losses) == list(range(1, 9))
    assert losses[8] < losses[1]
    assert set(history(work_dir, 'grad_norm')) == set(losses)
    state = torch.load(work_dir / 'epoch_2.pth', weights_only=False)
    assert state['meta']['iter'] == 8


def test_resume_continues_the_same_curve(
    call, configs, pretrained, history, tmp_path
):
    args = (configs['pretrain'], '--work-dir', tmp_path, '--resume', 'auto')
    first = call('train.py', *args, '--cfg-options', 'train_cfg.max_epochs=1')
    assert f'no checkpoint in {tmp_path}, starting from the' in first
    assert list(history(tmp_path, 'loss')) == [1, 2, 3, 4]
    second = call('train.py', *args)
    assert f'Resuming from {tmp_path}/epoch_1.pth' in second
    for key in ('loss', 'grad_norm', 'lr'):
        assert history(tmp_path, key) == history(pretrained[1], key)
    weights = [
        torch.load(path / 'epoch_2.pth', weights_only=False)['state_dict']
        for path in (tmp_path, pretrained[1])
    ]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


# Crops and flips in the loader; sketches and dropped paths in the model.
RANDOM = """_base_ = {base!r}
model = dict(backbone=dict(drop_path_rate=0.5))
train_dataloader = dict(num_workers={workers}, dataset=dict(pipeline=[
    dict(type='ropim_mm.LoadImage'),
    dict(type='RandomResizedCrop', scale=32),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs')]))
"""


@pytest.mark.parametrize('workers', [0, 1])
def test_resume_continues_the_random_streams(
    call, configs, history, tmp_path, workers
):
    config = tmp_path / 'random.py'
    config.write_text(
        RANDOM.format(base=str(configs['pretrain']), workers=workers)
    )
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    call('train.py', config, '--work-dir', whole)
    args = (config, '--work-dir', parts, '--resume')
    call('train.py', *args, '--cfg-options', 'train_cfg.max_epochs=1')
    call('train.py', *args)
    losses = history(parts, 'loss')
    assert list(losses) == list(range(1, 9))
    assert losses == history(whole, 'loss')
    weights = [
        torch.load(path / 'epoch_2.pth', weights_only=False)['state_dict']
        for path in (whole, parts)
    ]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_resume_without_the_pretraining_file(
    call, configs, pretrained, tmp_path
):
    encoder = tmp_path / 'encoder.pth'
    encoder.write_bytes((pretrained[1] / 'epoch_2.pth').read_bytes())
    args = (
        'train.py',
        configs['finetune'],
        '--work-dir',
        tmp_path / 'work',
        '--resume',
        '--cfg-options',
        'model.backbone.init_cfg.type=Pretrained',
        f'model.backbone.init_cfg.checkpoint={encoder}',
        'model.backbone.init_cfg.prefix=backbone.',
    )
    first = call(*args)
    assert 'starting from the beginning' in first
    encoder.unlink()
    second = call(*args, 'train_cfg.max_epochs=2')
    assert 'The pretrained weights of model.backbone.init_cfg are not' in (
        second
    )
    assert (tmp_path / 'work/epoch_2.pth').exists()


def test_amp_and_auto_scale_lr(call, configs, history, tmp_path, pretrained):
    output = call(
        'train.py',
        configs['pretrain'],
        '--work-dir',
        tmp_path,
        '--amp',
        '--auto-scale-lr',
        '--cfg-options',
        'train_cfg.max_epochs=1',
    )
    assert 'multiplied by 0.5 = 4 images a step / 8' in output
    assert history(tmp_path, 'base_lr')[1] == pytest.approx(5e-4)
    loss = history(tmp_path, 'loss')[1]
    exact = history(pretrained[1], 'loss')[1]
    # The same step in bfloat16: near, but not the same number.
    assert loss != exact
    assert loss == pytest.approx(exact, rel=1e-2)
    written = (tmp_path / 'pretrain.py').read_text()
    assert "dtype='bfloat16'" in written


@pytest.mark.parametrize(
    'args, message',
    [
        (['none.py'], 'error: config file none.py not found'),
        (
            ['{config}', '--resume', 'no.pth'],
            'error: --resume: checkpoint no.pth not found',
        ),
        (
            [
                '{config}',
                '--cfg-options',
                'train_dataloader.dataset.data_root=x',
            ],
            'error: train_dataloader.dataset.data_root: x not found',
        ),
        (
            ['{config}', '--launcher', 'pytorch'],
            'error: --launcher pytorch: RANK is not in the environment',
        ),
    ],
)
def test_errors_are_one_line(call, configs, tmp_path, args, message):
    args = [a.replace('{config}', str(configs['pretrain'])) for a in args]
    output = call('train.py', *args, status=1, cwd=tmp_path)
    assert message in output
    assert 'Traceback' not in output
    assert not list(tmp_path.iterdir())  # nothing was started


def test_errors_of_config_fields_are_one_line(call, configs, tmp_path):
    output = call(
        'train.py',
        configs['pretrain'],
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'optim_wrapper.dtype=float16',
        status=1,
    )
    assert "error: optim_wrapper.dtype is 'float16', which needs a" in output
    assert 'Traceback' not in output


def test_unexpected_errors_keep_their_traceback(call, configs, tmp_path):
    output = call(
        'train.py',
        configs['pretrain'],
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'optim_wrapper.optimizer.momentum=0.9',  # not of AdamW
        status=1,
    )
    assert 'Traceback' in output
    assert "unexpected keyword argument 'momentum'" in output
