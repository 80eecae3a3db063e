"""A tiny run for the command line tests: images, a config, a caller."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

# Sketches belong to the images and nothing else is random, so that runs can
# be compared number by number.
PRETRAIN = """
custom_imports = dict(imports=['ropim_mm'], allow_failed_imports=False)
default_scope = 'mmpretrain'
model = dict(
    type='ropim_mm.ROPIM',
    backbone=dict(
        type='ropim_mm.ROPIMViT',
        arch=dict(embed_dims=32, num_layers=2, num_heads=2,
                  feedforward_channels=64),
        img_size=32, patch_size=8, drop_path_rate=0.0, out_type='raw',
        final_norm=True, use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True),
    neck=dict(type='ropim_mm.ROPIMNeck', embed_dims=32, patch_size=8),
    head=dict(type='ropim_mm.ROPIMHead', patch_size=8))
data_preprocessor = dict(
    type='SelfSupDataPreprocessor', mean=[128, 128, 128], std=[64, 64, 64])
train_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset', data_root={images!r}, with_label=False,
        pipeline=[
            dict(type='ropim_mm.LoadImage'),
            dict(type='ropim_mm.SampleSketch', grid=4, seed=1),
            dict(type='PackInputs',
                 algorithm_keys=('sketch_hash', 'sketch_sign'))]))
optim_wrapper = dict(
    type='ropim_mm.AutocastOptimWrapper', dtype='float32',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    constructor='ropim_mm.LayerDecayOptimWrapperConstructor',
    clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=8,
         eta_min=1e-5)]
train_cfg = dict(by_epoch=True, max_epochs=2)
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', interval=1))
log_processor = dict(window_size=1)
visualizer = dict(type='Visualizer', vis_backends=[
    dict(type='LocalVisBackend')])
randomness = dict(seed=3)
"""

FINETUNE = """
custom_imports = dict(imports=['ropim_mm'], allow_failed_imports=False)
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ropim_mm.ROPIMViT',
        arch=dict(embed_dims=32, num_layers=2, num_heads=2,
                  feedforward_channels=64),
        img_size=32, patch_size=8, out_type='avg_featmap', final_norm=False),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=32))
data_preprocessor = dict(num_classes=2, mean=[128] * 3, std=[64] * 3)
dataset = dict(
    type='CustomDataset', data_root={images!r},
    pipeline=[dict(type='ropim_mm.LoadImage'), dict(type='PackInputs')])
train_dataloader = dict(
    batch_size=8, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dataset)
test_dataloader = val_dataloader = dict(
    batch_size=5, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dataset)
test_evaluator = val_evaluator = dict(type='Accuracy', topk=1)
test_cfg = val_cfg = dict()
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2),
    constructor='ropim_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.75))
train_cfg = dict(by_epoch=True, max_epochs=1)
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
visualizer = dict(type='UniversalVisualizer', vis_backends=[
    dict(type='LocalVisBackend')])
randomness = dict(seed=3)
"""


@pytest.fixture(scope='session')
def images(tmp_path_factory):
    """A folder of 16 images of 32 px in 2 classes."""
    root = tmp_path_factory.mktemp('images')
    random = np.random.default_rng(0)
    for i in range(16):
        image = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        image[..., i % 2] //= 4  # the classes have different colours
        folder = root / f'class{i % 2}'
        folder.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f'{i:02}.png'), image)
    return root


@pytest.fixture(scope='session')
def configs(images, tmp_path_factory):
    """Config files by name: ``pretrain`` and ``finetune``."""
    # A path with a space: no tool may fall over it.
    folder = tmp_path_factory.mktemp('tiny configs')
    paths = {}
    for name, text in (('pretrain', PRETRAIN), ('finetune', FINETUNE)):
        paths[name] = folder / f'{name}.py'
        paths[name].write_text(text.replace('{images!r}', repr(str(images))))
    return paths


@pytest.fixture(scope='session')
def call():
    """Run a file of ``tools/`` in a process of its own.

    Its exit status must be ``status``, or one of these.
    """

    def run(tool, *args, status=0, cwd=ROOT, timeout=300, **environ):
        interpreter = 'bash' if str(tool).endswith('.sh') else sys.executable
        env = dict(os.environ, PYTHON=sys.executable, PYTHONPATH=str(ROOT))
        env.update(environ)
        done = subprocess.run(
            [interpreter, str(ROOT / 'tools' / tool), *map(str, args)],
            cwd=cwd,
            env=env,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        expected = status if isinstance(status, tuple) else (status,)
        assert done.returncode in expected, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope='session')
def mim_train():
    """Train with another package's own script, by ``mim train PACKAGE``."""

    def run(package, config, work_dir, *options):
        folder = Path(sys.executable).parent
        done = subprocess.run(
            [
                *(folder / 'mim', 'train', package, config),
                *('--gpus', '0', '--work-dir', work_dir),
                *('--cfg-options', *options),
            ],
            cwd=work_dir.parent,
            env=dict(os.environ, PATH=f'{folder}:{os.environ["PATH"]}'),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert 'Training finished successfully' in done.stdout

    return run


@pytest.fixture(scope='session')
def history():
    """The logged scalars of the runs in a work folder, by step."""

    def read(work_dir, key):
        values = {}
        for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                if key in entry:
                    values[entry['step']] = entry[key]
        return values

    return read


@pytest.fixture(scope='session')
def pretrained(call, configs, tmp_path_factory):
    """Output and work folder of an uninterrupted run of 2 epochs."""
    work_dir = tmp_path_factory.mktemp('pretrained')
    output = call('train.py', configs['pretrain'], '--work-dir', work_dir)
    return output, work_dir
