"""The same tools with an MMSegmentation config."""

import json

import cv2
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.slow

# SyncBN is what MMSegmentation's recipes have; CPUs have no such layer.
CONFIG = """
custom_imports = dict(imports=['ropim_mm'], allow_failed_imports=False)
default_scope = 'mmseg'
norm_cfg = dict(type='SyncBN', requires_grad=True)
find_unused_parameters = True
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[128] * 3, std=[64] * 3,
        size=(64, 64), pad_val=0, seg_pad_val=255),
    backbone=dict(
        type='ropim_mm.ROPIMViT',
        arch=dict(embed_dims=32, num_layers=4, num_heads=2,
                  feedforward_channels=64),
        img_size=64, patch_size=8, out_type='featmap',
        out_indices=(0, 1, 2, 3), final_norm=False),
    neck=dict(type='Feature2Pyramid', embed_dim=32, norm_cfg=norm_cfg),
    decode_head=dict(
        type='FCNHead', in_channels=32, in_index=1, channels=8, num_convs=1,
        num_classes=2, norm_cfg=norm_cfg,
        loss_decode=dict(type='CrossEntropyLoss')),
    test_cfg=dict(mode='whole'))
dataset = dict(
    type='BaseSegDataset', data_root={root!r},
    data_prefix=dict(img_path='images', seg_map_path='labels'),
    img_suffix='.png', seg_map_suffix='.png',
    metainfo=dict(classes=('left', 'right'),
                  palette=[[0, 0, 0], [255, 0, 0]]),
    pipeline=[
        dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
        dict(type='PackSegInputs')])
train_dataloader = dict(
    batch_size=2, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dataset)
test_dataloader = val_dataloader = dict(
    batch_size=1, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dataset)
test_evaluator = val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
optim_wrapper = dict(
    type='ropim_mm.AutocastOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    constructor='ropim_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.5))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
    visualization=dict(type='SegVisualizationHook'))
log_processor = dict(by_epoch=False)
visualizer = dict(type='SegLocalVisualizer', vis_backends=[
    dict(type='LocalVisBackend')])
"""


@pytest.fixture
def config(tmp_path):
    """A config file and four images whose right half is class 1."""
    random = np.random.default_rng(0)
    label = np.zeros((64, 64), np.uint8)
    label[:, 32:] = 1
    for folder in ('images', 'labels'):
        (tmp_path / folder).mkdir()
    for i in range(4):
        image = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        image[..., 0] = label * 200
        cv2.imwrite(str(tmp_path / f'images/{i}.png'), image)
        cv2.imwrite(str(tmp_path / f'labels/{i}.png'), label)
    path = tmp_path / 'segmentation.py'
    path.write_text(CONFIG.replace('{root!r}', repr(str(tmp_path))))
    return path


@pytest.mark.skipif(
    torch.cuda.device_count() == 1, reason='2 processes need 0 or 2 GPUs'
)
def test_train_and_test(call, config, history, tmp_path):
    work_dir = tmp_path / 'work'
    output = call('dist_train.sh', config, 2, '--work-dir', work_dir)
    assert '4 images a step' in output
    # Depth 0 of 5 after the stem: 0.5 ** 5.
    rates = history(work_dir, 'lr')
    assert rates[1] == pytest.approx(1e-3 * 0.5**5)
    assert history(work_dir, 'mIoU')  # validated at the end

    out = tmp_path / 'metrics.json'
    pictures = tmp_path / 'pictures'
    call(
        'test.py',
        config,
        work_dir / 'iter_2.pth',
        '--work-dir',
        tmp_path / 'test',
        '--out',
        out,
        '--show-dir',
        pictures,
    )
    assert 0 < json.loads(out.read_text())['mIoU'] <= 100
    assert len(list(pictures.rglob('*.png'))) == 4
