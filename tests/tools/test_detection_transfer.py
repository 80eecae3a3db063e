"""From pretraining to boxes and masks, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

import tiny_coco
from config_checks import ARCH, CONFIGS, load
from tiny_coco import SIDE, needs_operators
from tiny_models import config_text

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
RECIPE = 'conmim/benchmarks/mask-rcnn_vit-base-p16_lsj-100e_coco.py'


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    return tiny_coco.write(tmp_path_factory.mktemp('coco'))


@pytest.fixture(scope='module')
def detection(coco, tmp_path_factory):
    """A config file: the recipe on pictures of 64 pixels."""
    cfg = load(RECIPE)
    tiny_coco.shrink(cfg, coco)
    cfg.train_cfg.update(max_iters=8, val_interval=8)
    cfg.default_hooks.checkpoint.interval = 2
    cfg.default_hooks.visualization.score_thr = 0.0
    path = tmp_path_factory.mktemp('detection') / 'detection.py'
    cfg.dump(path)
    return path


@pytest.fixture(scope='module')
def pretrained(call, images, tmp_path_factory):
    """Checkpoints by method, from a run of ``tools/train.py`` each."""
    folder = tmp_path_factory.mktemp('pretrained')
    checkpoints = {}
    for method in ('conmim', 'rmae'):
        config = folder / f'{method}.py'
        config.write_text(
            config_text(method, images, size=SIDE, patch_size=16, arch=ARCH)
        )
        call('train.py', config, '--work-dir', folder / method)
        checkpoints[method] = folder / method / 'epoch_1.pth'
    return checkpoints


def weights_from(checkpoint):
    return (
        '--cfg-options',
        f'model.backbone.init_cfg.checkpoint={checkpoint}',
    )


def stop_after_first_checkpoint(log, *command):
    """Run a tool until it has written a checkpoint, then end it."""
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    with log.open('w') as file:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=env,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        work_dir = Path(command[command.index('--work-dir') + 1])
        try:
            deadline = time.monotonic() + 200
            while not (work_dir / 'last_checkpoint').exists():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(30)


@needs_operators
def test_train_stop_resume_test_and_draw(
    call, detection, pretrained, coco, history, tmp_path
):
    work_dir = tmp_path / 'work'
    # Long enough to be stopped before its end.
    stop_after_first_checkpoint(
        tmp_path / 'log',
        ROOT / 'tools' / 'train.py',
        detection,
        '--work-dir',
        work_dir,
        *weights_from(pretrained['conmim']),
    )
    log = (tmp_path / 'log').read_text()
    assert 'Parameter groups of MaskRCNN' in log
    before = history(work_dir, 'loss')
    assert not (work_dir / 'iter_8.pth').exists()

    output = call(
        'train.py',
        detection,
        '--work-dir',
        work_dir,
        '--resume',
        *weights_from(tmp_path / 'is_not_read_again.pth'),
    )
    assert f'Resuming from {work_dir}/iter_' in output
    losses = history(work_dir, 'loss')
    assert sorted(losses) == list(range(1, 9))
    assert len(before) < 8
    assert np.isfinite(list(losses.values())).all()
    # The warm-up goes on where it was: a straight line over 250 updates.
    rates = history(work_dir, 'base_lr')
    slope = 1e-4 * (1 - 0.001) / 249
    assert [rates[i] for i in range(1, 9)] == pytest.approx(
        [1e-7 + slope * i for i in range(8)]
    )
    trained = history(work_dir, 'coco/segm_mAP')
    assert list(trained) == [8]

    out, pictures = tmp_path / 'metrics.json', tmp_path / 'pictures'
    call(
        'test.py',
        detection,
        work_dir / 'iter_8.pth',
        '--work-dir',
        tmp_path / 'test',
        '--out',
        out,
        '--show-dir',
        pictures,
    )
    metrics = json.loads(out.read_text())
    assert metrics['coco/segm_mAP'] == pytest.approx(trained[8])
    assert 0 <= metrics['coco/bbox_mAP'] <= 1
    check_pictures(pictures, coco)


def check_pictures(folder, coco):
    """Left the annotations, right the predictions, both drawn over."""
    paths = sorted(folder.rglob('*.png'))
    originals = sorted((coco / 'val2017').iterdir())
    assert [p.name for p in paths] == [p.name for p in originals]
    for path, original in zip(paths, originals, strict=True):
        photo = cv2.imread(str(original)).astype(int)
        drawn = cv2.imread(str(path))
        height, width = photo.shape[:2]
        # Matplotlib may round the size by a pixel.
        assert abs(drawn.shape[0] - height) <= 2
        assert abs(drawn.shape[1] - 2 * width) <= 4
        for half in np.split(drawn[:, : 2 * (drawn.shape[1] // 2)], 2, axis=1):
            half = cv2.resize(half, (width, height)).astype(int)
            assert (abs(half - photo).max(axis=2) > 40).mean() > 0.02


@needs_operators
def test_by_mim(detection, mim_train, history, tmp_path):
    """MMDetection's own training script takes the configs, too."""
    mim_train(
        'mmdetection',
        detection,
        tmp_path / 'work',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'model.backbone.init_cfg=None',
    )
    assert list(history(tmp_path / 'work', 'loss')) == [1, 2]


@needs_operators
def test_a_checkpoint_of_another_method(call, detection, pretrained, tmp_path):
    output = call(
        'train.py',
        detection,
        '--work-dir',
        tmp_path,
        *weights_from(pretrained['rmae']),
        'model.backbone.init_cfg.prefix=backbone.',
        status=1,
    )
    assert 'Traceback' not in output
    message = output[output.index('error: ') :]
    assert str(pretrained['rmae']) in message
    assert 'layers.0.attn.relative_position_bias_table' in message
    assert 'pos_embed' in message
    assert not list(tmp_path.glob('*.pth'))


@needs_operators
def test_missing_folders(call, tmp_path):
    """The recipe as it is, where COCO is not."""
    output = call(
        'train.py',
        CONFIGS / RECIPE,
        '--work-dir',
        tmp_path / 'work',
        status=1,
        cwd=tmp_path,
    )
    assert 'Traceback' not in output
    assert (
        'error: train_dataloader.dataset.data_root: data/coco/ not found '
        f'(current folder {tmp_path}); put the data there, or point to it '
        'with --cfg-options train_dataloader.dataset.data_root=PATH'
    ) in output
    assert not (tmp_path / 'work').exists()


WITHOUT_OPERATORS = """
import sys


class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == 'mmcv._ext':
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)


sys.meta_path.insert(0, Hide())
"""


@pytest.mark.parametrize(
    'command',
    [('train.py', CONFIGS / RECIPE), ('test.py', CONFIGS / RECIPE, 'no.pth')],
    ids=['train', 'test'],
)
def test_operators_that_are_not_there(call, command, tmp_path):
    (tmp_path / 'sitecustomize.py').write_text(WITHOUT_OPERATORS)
    output = call(
        *command,
        status=1,
        PYTHONPATH=os.pathsep.join((str(tmp_path), str(ROOT))),
    )
    assert 'Traceback' not in output
    assert (
        "error: MMDetection needs MMCV's compiled operators, which are not "
        'installed. In a checkout of this project, `make detection` builds '
        'them into .venv'
    ) in output
