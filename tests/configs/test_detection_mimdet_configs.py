"""Mask R-CNN in the style of MIMDet: numbers, networks, data, two steps."""

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

import tiny_coco
from config_checks import (
    ARCH,
    CONFIGS,
    check_imagenet_statistics,
    dense_configs,
    load,
    run,
    steps,
)
from ropim_mm.engine import launch
from ropim_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS
from tiny_coco import needs_operators
from tiny_mimdet import build, dataset, shrink
from tiny_models import model_config

BENCHMARK = 'conmim/benchmarks/mask-rcnn_mimdet-vit-base-p16'
# The part of the tokens that the encoder sees in training.
TABLE = {
    f'{BENCHMARK}_ms-36e_coco.py': 0.5,
    f'{BENCHMARK}-sample25_ms-36e_coco.py': 0.25,
}
FIRST = next(iter(TABLE))
EPOCH = 1875


def test_the_table_lists_every_config():
    found = dense_configs('mask-rcnn')
    assert sorted(TABLE) == sorted(n for n in found if 'mimdet' in n)


@pytest.mark.parametrize('name', TABLE)
def test_schedule(name):
    cfg = load(name)
    assert cfg.train_cfg == dict(
        by_epoch=False, max_iters=36 * EPOCH, val_interval=5000
    )
    linear, multi = cfg.param_scheduler
    assert linear.end == pytest.approx(EPOCH / 4, abs=0.5)
    assert linear == dict(
        type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=469
    )
    assert multi == dict(
        type='MultiStepLR',
        milestones=[27 * EPOCH, 33 * EPOCH],
        gamma=0.1,
        by_epoch=False,
        begin=0,
        end=36 * EPOCH,
    )
    wrapper = cfg.optim_wrapper
    assert wrapper.type == 'ropim_mm.AutocastOptimWrapper'
    assert wrapper.dtype == 'bfloat16'
    assert wrapper.optimizer == dict(
        type='AdamW',
        lr=8e-5,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.1,
        fused=True,
    )
    assert wrapper.paramwise_cfg.layer_decay_rate == 1.0
    # 16 devices of 4 images each.
    assert cfg.train_dataloader.batch_size == 4
    assert cfg.auto_scale_lr == dict(base_batch_size=64)


@pytest.mark.parametrize('name', TABLE)
def test_what_all_share(name):
    cfg = load(name)
    assert cfg.default_scope == 'mmdet'
    assert cfg.custom_imports == dict(
        imports=['ropim_mm'], allow_failed_imports=False
    )
    assert cfg.resume is False
    assert cfg.randomness == dict(seed=0, diff_rank_seed=True)
    assert [hook.type for hook in cfg.custom_hooks] == [
        'ropim_mm.CheckpointCoverageHook'
    ]
    checkpoint = cfg.default_hooks.checkpoint
    assert (checkpoint.by_epoch, checkpoint.max_keep_ckpts) == (False, 3)
    assert cfg.default_hooks.visualization.type == 'DetVisualizationHook'
    assert cfg.train_dataloader.sampler == dict(
        type='InfiniteSampler', shuffle=True
    )
    # A loader that has a batch sampler must not say it a second time.
    assert cfg.train_dataloader.batch_sampler == dict(
        type='AspectRatioBatchSampler', drop_last=True
    )
    assert cfg.train_dataloader.drop_last is False
    assert cfg.val_dataloader.batch_size == 1
    assert cfg.val_dataloader.dataset.test_mode is True
    assert cfg.test_dataloader == cfg.val_dataloader
    assert cfg.test_evaluator == cfg.val_evaluator
    assert cfg.val_evaluator.metric == ['bbox', 'segm']


@pytest.mark.parametrize('name', TABLE)
def test_augmentation(name):
    cfg = load(name)
    train = steps(cfg.train_dataloader.dataset.pipeline)
    assert list(train) == [
        'ropim_mm.LoadImage',
        'LoadAnnotations',
        'RandomFlip',
        'RandomChoice',
        'FilterAnnotations',
        'PackDetInputs',
    ]
    assert train['RandomFlip'].prob == 0.5
    choice = train['RandomChoice']
    assert 'prob' not in choice  # both are as likely
    (resize,), (shrink, crop, again) = choice.transforms
    assert resize == again
    assert resize.type == shrink.type == 'RandomChoiceResize'
    assert resize.scales == [(s, 1333) for s in range(480, 801, 32)]
    assert shrink.scales == [(s, 1333) for s in (400, 500, 600)]
    assert resize.keep_ratio is shrink.keep_ratio is True
    assert crop.type == 'RandomCrop'
    assert crop.crop_type == 'absolute_range'
    assert crop.crop_size == (384, 600)
    assert crop.recompute_bbox is True
    test = steps(cfg.test_dataloader.dataset.pipeline)
    assert list(test) == [
        'ropim_mm.LoadImage',
        'Resize',
        'LoadAnnotations',
        'PackDetInputs',
    ]
    assert test['Resize'].scale == (1333, 800)
    assert test['Resize'].keep_ratio is True
    assert 'img_shape' in test['PackDetInputs'].meta_keys
    norm = cfg.model.data_preprocessor
    check_imagenet_statistics(cfg.model)
    assert norm.bgr_to_rgb is norm.pad_mask is True
    assert norm.pad_size_divisor == 32


@needs_operators
@pytest.mark.parametrize('name', TABLE)
def test_network(name):
    cfg = load(name)
    assert cfg.model.backbone.init_cfg == dict(
        type='Pretrained', checkpoint='', prefix='momentum.backbone.'
    )
    model = build(cfg, 'meta')
    assert type(model).__name__ == 'MIMDetMaskRCNN'
    backbone = model.backbone
    assert backbone.sample_ratio == TABLE[name]
    encoder = backbone.encoder
    assert type(encoder).__name__ == 'ConMIMViT'
    assert (encoder.embed_dims, encoder.num_layers) == (768, 12)
    assert (encoder.final_norm, encoder.drop_path_rate) == (True, 0.1)
    assert encoder.with_cp is False
    assert encoder.patch_resolution == (14, 14)
    assert encoder.rel_pos_bias is None
    assert all(layer.attn.has_table for layer in encoder.layers)
    assert all(layer.gamma_1 is not None for layer in encoder.layers)
    assert not list(encoder.patch_embed.parameters())
    assert backbone.stem.widths == (96, 192, 384, 768)
    assert [conv[0].stride for conv in backbone.stem.convs] == [(2, 2)] * 4
    decoder = backbone.decoder
    assert (decoder.dims, len(decoder.blocks)) == (512, 4)
    assert {block.attn.num_heads for block in decoder.blocks} == {16}
    assert {b.ffn.layers[1].in_features for b in decoder.blocks} == {2048}

    neck = model.neck
    assert list(backbone.out_channels) == neck.in_channels
    assert (neck.out_channels, neck.num_outs) == (256, 5)
    head = model.roi_head
    assert len(model.rpn_head.rpn_conv) == 2
    box, mask = head.bbox_head, head.mask_head
    assert [len(box.shared_convs), len(box.shared_fcs)] == [4, 1]
    assert box.shared_fcs[0].out_features == 1024
    assert (box.fc_cls.out_features, mask.conv_logits.out_channels) == (81, 80)
    for conv in (
        *neck.lateral_convs,
        *neck.fpn_convs,
        *box.shared_convs,
        *mask.convs,
    ):
        assert isinstance(conv.norm, torch.nn.SyncBatchNorm)


@needs_operators
@pytest.mark.parametrize('name', TABLE)
def test_groups_of_parameters(name):
    cfg = load(name)
    model = build(cfg, 'meta')
    wrapper = cfg.optim_wrapper
    groups = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type=wrapper.constructor,
            optim_wrapper_cfg=dict(optimizer=wrapper.optimizer),
            paramwise_cfg=wrapper.paramwise_cfg,
        )
    ).param_groups(model)
    # Two rates, with and without decay.
    assert len(groups) == 4
    shapes = {n: p.ndim for n, p in model.named_parameters()}
    settings = {
        n: (g['lr'], g['weight_decay'])
        for g in groups
        for n in g['param_names']
    }
    assert set(settings) == set(shapes)
    plain_names = ('cls_token', 'relative_position_bias_table')
    for key, (rate, decay) in settings.items():
        pretrained = key.startswith('backbone.encoder.')
        assert rate == pytest.approx(8e-5 if pretrained else 16e-5)
        plain = shapes[key] < 2 or key.split('.')[-1] in plain_names
        assert decay == (0.0 if plain else 0.1), key


# --- Data -------------------------------------------------------------------


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    return tiny_coco.write(tmp_path_factory.mktemp('coco'))


@needs_operators
def test_sizes_of_images(coco):
    """Whole at one of 11 sizes, or a piece; boxes at their masks' edges."""
    cfg = load(FIRST)
    shrink(cfg, coco)
    data = dataset(cfg, 'train_dataloader')
    np.random.seed(0)
    short, whole = [], 0
    for i in range(200):
        packed = data[i % len(data)]
        height, width = packed['inputs'].shape[1:]
        short.append(min(height, width))
        assert max(height, width) <= 133
        sample = packed['data_samples']
        assert sample.img_shape == (height, width)
        shape = sample.ori_shape
        whole += abs(height / width - shape[0] / shape[1]) < 0.03
        truth = sample.gt_instances
        assert truth.masks.masks.shape[1:] == (height, width)
    assert {48, 51, 54, 57, 60, 64, 67, 70, 73, 76, 80} >= set(short)
    assert {48, 80} <= set(short)
    # Half of all, and the pieces that happen to have the same shape.
    assert 80 < whole < 170


# --- Two steps --------------------------------------------------------------


@needs_operators
@pytest.mark.slow
@pytest.mark.parametrize('name', TABLE)
def test_two_steps(name, coco, tmp_path):
    """From ConMIM's momentum copy, in bfloat16, then boxes and masks."""
    torch.manual_seed(1)
    before = model_config('conmim', img_size=64, patch_size=16, arch=ARCH)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        pretrained = MODELS.build(before)
    pretrained.init_weights()
    weights = pretrained.state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'pretrained.pth')

    cfg = launch.load_config(str(CONFIGS / name))
    shrink(cfg, coco)
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'pretrained.pth')
    lines = run(cfg, tmp_path / 'run')
    losses = [line for line in lines if 'loss' in line]
    assert len(losses) == 2
    for line in losses:
        names = [key for key in line if 'loss' in key]
        assert len(names) >= 6
        assert all(np.isfinite(line[key]) for key in names)
    # The first group is the encoder's.
    assert [line['lr'] for line in losses] == pytest.approx(
        [8e-11, 8e-5 * (1e-6 + (1 - 1e-6) / 468)]
    )
    for kind in ('bbox', 'segm'):
        assert 0 <= lines[-1][f'coco/{kind}_mAP'] <= 1

    (log,) = (tmp_path / 'run').glob('*/*.log')
    text = log.read_text()
    assert 'not used from the file: ' in text
    assert 'patch_embed.projection.weight' in text
    trained = torch.load(tmp_path / 'run' / 'iter_2.pth', weights_only=False)
    trained = trained['state_dict']
    assert not any('patch_embed' in key for key in trained)
    key = 'layers.1.attn.qkv.weight'
    start = weights[f'momentum.backbone.{key}']
    end = trained[f'backbone.encoder.{key}']
    assert 0 < (start - end).abs().max().item() < 1e-6
