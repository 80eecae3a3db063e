"""``tools/test.py``, by command line in processes of their own."""

import json
import pickle

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def finetuned(call, configs, pretrained, tmp_path_factory):
    """Output and work folder of a classifier made from ``pretrained``."""
    work_dir = tmp_path_factory.mktemp('finetuned')
    output = call(
        'train.py',
        configs['finetune'],
        '--work-dir',
        work_dir,
        '--cfg-options',
        'model.backbone.init_cfg.type=Pretrained',
        f'model.backbone.init_cfg.checkpoint={pretrained[1]}/epoch_2.pth',
        'model.backbone.init_cfg.prefix=backbone.',
    )
    return output, work_dir


def test_fine_tuning(finetuned, history):
    output, work_dir = finetuned
    assert 'depth  lr scale  weight decay' in output
    assert 'accuracy/top1' in output
    # The rate of the first group: depth 0 of 4, 0.75 ** 3.
    assert history(work_dir, 'lr')[1] == pytest.approx(1e-2 * 0.75**3)


def test_metrics_and_pictures(call, configs, finetuned, images, tmp_path):
    output = call(
        'test.py',
        configs['finetune'],
        finetuned[1] / 'epoch_1.pth',
        '--work-dir',
        tmp_path / 'work',
        '--out',
        tmp_path / 'metrics.json',
        '--show-dir',
        tmp_path / 'pictures',
    )
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert 0 <= metrics['accuracy/top1'] <= 100
    assert f'{metrics["accuracy/top1"]:.4f}' in output
    pictures = list((tmp_path / 'pictures').rglob('*.png'))
    assert len(pictures) == 16


def test_predictions(call, configs, finetuned, tmp_path):
    call(
        'test.py',
        configs['finetune'],
        finetuned[1] / 'epoch_1.pth',
        '--work-dir',
        tmp_path,
        '--out',
        tmp_path / 'predictions.pkl',
    )
    with open(tmp_path / 'predictions.pkl', 'rb') as file:
        predictions = pickle.load(file)
    assert len(predictions) == 16
    assert predictions[0]['pred_score'].sum() == pytest.approx(1.0)


def test_augmented(call, configs, finetuned, tmp_path):
    config = tmp_path / 'tta.py'
    config.write_text(
        f"""_base_ = {str(configs['finetune'])!r}
tta_model = dict(type='AverageClsScoreTTA')
tta_pipeline = [
    dict(type='ropim_mm.LoadImage'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='RandomFlip', prob=p) for p in (0.0, 1.0)],
        [dict(type='PackInputs')]])]
"""
    )
    args = [config, finetuned[1] / 'epoch_1.pth', '--work-dir', tmp_path]
    scores = []
    for flags in ([], ['--tta']):
        out = tmp_path / f'scores{len(flags)}.pkl'
        call('test.py', *args, '--out', out, *flags)
        with open(out, 'rb') as file:
            scores.append(
                [sample['pred_score'] for sample in pickle.load(file)]
            )
    plain, mean = scores
    assert len(plain) == len(mean) == 16
    assert any(
        (a - b).abs().max() > 1e-6 for a, b in zip(plain, mean, strict=True)
    )


def test_checkpoint_of_another_model(call, configs, pretrained, tmp_path):
    checkpoint = pretrained[1] / 'epoch_2.pth'
    output = call(
        'test.py',
        configs['finetune'],
        checkpoint,
        '--work-dir',
        tmp_path,
        status=1,
    )
    assert f'error: {checkpoint}' in output
    assert 'head.fc.weight' in output  # missing
    assert 'neck.decoder.0.weight' in output  # left over
    assert 'Traceback' not in output


def test_missing_checkpoint(call, configs, tmp_path):
    output = call(
        'test.py', configs['finetune'], 'no.pth', status=1, cwd=tmp_path
    )
    assert 'error: checkpoint no.pth not found' in output
    assert 'Traceback' not in output
