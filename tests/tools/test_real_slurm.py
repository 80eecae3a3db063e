"""``slurm_train.sh`` and ``slurm_test.sh`` under a real Slurm of one node."""

import json
import os
import tempfile
from pathlib import Path

import pytest

import real_slurm
import tiny_coco
import tiny_segmentation
from config_checks import load
from real_slurm import PARTITION

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(real_slurm.why_not()), reason=real_slurm.why_not()
    ),
]

# Two processes on a node without GPUs, each with one thread.
SETTINGS = dict(GPUS='2', GPUS_PER_NODE='0', CPUS_PER_TASK='1')
UPERNET = (
    'lomar/benchmarks/vit-base-p16_upernet_8xb2-amp-160k_ade20k-512x512.py'
)
MASK_RCNN = 'rmae/benchmarks/mask-rcnn_vit-base-p16_lsj-100e_coco.py'


@pytest.fixture(scope='module')
def slurm(call):
    """Call one of the scripts under it."""
    with (
        tempfile.TemporaryDirectory(prefix='slurm') as folder,
        real_slurm.cluster(Path(folder)) as env,
    ):

        def run(tool, *args, **kwargs):
            return call(
                tool, PARTITION, 'a job', *args, **SETTINGS | env | kwargs
            )

        yield run


def test_pretraining(slurm, configs, pretrained, history, tmp_path):
    """Two processes of Slurm are two processes of ``dist_train.sh``."""
    work_dir = tmp_path / 'work'
    output = slurm(
        'slurm_train.sh',
        configs['pretrain'],
        work_dir,
        '--cfg-options',
        'train_dataloader.batch_size=2',
    )
    assert '2 process(es)' in output
    one = history(pretrained[1], 'grad_norm')
    two = history(work_dir, 'grad_norm')
    assert list(two) == list(range(1, 9))
    for step in two:
        assert two[step] == pytest.approx(one[step], rel=1e-5), step


def test_exit_status_and_message(slurm, configs, tmp_path):
    output = slurm(
        'slurm_train.sh',
        configs['pretrain'],
        tmp_path / 'work',
        '--cfg-options',
        'train_dataloader.dataset.data_root=/nowhere',
        # srun gives the highest: 143 where the other was ended meanwhile.
        status=(1, 143),
    )
    assert '/nowhere' in output


def test_segmentation(slurm, tmp_path):
    tiny_segmentation.write_ade(tmp_path / 'ade')
    cfg = load(UPERNET)
    tiny_segmentation.shrink(cfg, tmp_path / 'ade')
    cfg.model.backbone.init_cfg = None
    train_and_test(slurm, cfg, tmp_path, 'mIoU')


@tiny_coco.needs_operators
def test_detection(slurm, tmp_path):
    cfg = load(MASK_RCNN)
    tiny_coco.shrink(cfg, tiny_coco.write(tmp_path / 'coco'))
    cfg.model.backbone.init_cfg = None
    train_and_test(slurm, cfg, tmp_path, 'coco/segm_mAP')


def train_and_test(slurm, cfg, tmp_path, metric):
    """Two updates in two processes, and a test of what they gave."""
    cfg.train_dataloader.batch_size = 2
    cfg.default_hooks.checkpoint.update(interval=2, save_best=None)
    config, work_dir = tmp_path / 'config.py', tmp_path / 'work'
    cfg.dump(config)
    output = slurm('slurm_train.sh', config, work_dir)
    assert '2 process(es)' in output
    out = tmp_path / 'metrics.json'
    slurm(
        'slurm_test.sh',
        config,
        work_dir / 'iter_2.pth',
        '--work-dir',
        tmp_path / 'test',
        '--out',
        out,
    )
    assert metric in json.loads(out.read_text())
    assert os.listdir(tmp_path / 'test')
