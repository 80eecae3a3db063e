"""The configs of ADE20K: what they say, that they build, that they train."""

import re

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from torch.nn.modules.module import register_module_forward_hook

from config_checks import (
    CONFIGS,
    build_on_meta,
    dense_configs,
    load,
    run,
    steps,
)
from ropim_mm.engine import launch
from ropim_mm.models.layers.relative_position import resize_table
from ropim_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS
from tiny_models import ENCODERS, METHODS
from tiny_models import build as build_pretraining
from tiny_segmentation import ARCH, BLOCKS, PATCH, SIDE, shrink, write_ade

BEIT = ('ropim', 'conmim')
BASE = (768, 12, (3, 5, 7, 11), 768, 0.1)
SMALL = (384, *BASE[1:])
LARGE = (1024, 24, (7, 11, 15, 23), 1024, 0.2)
# By config: width, blocks, those whose maps are used, width of the head, drop
# path; rate for 16 images and its decay from block to block.
TABLE = {
    ('ropim', 'base', ''): (*BASE, 3e-5, 0.9),
    ('ropim', 'base', '-lr1e-4'): (*BASE, 1e-4, 0.65),
    ('ropim', 'small', ''): (*SMALL, 3e-5, 0.9),
    ('lomar', 'base', ''): (*BASE, 1e-4, 0.65),
    ('lomar', 'large', ''): (*LARGE, 1e-4, 0.65),
    ('rmae', 'base', ''): (*BASE, 1e-4, 0.65),
    ('conmim', 'base', ''): (*BASE, 3e-5, 0.9),
    ('conmim', 'base', '-lr1e-4'): (*BASE, 1e-4, 0.65),
    ('conmim', 'small', ''): (*SMALL, 3e-5, 0.9),
    ('conmim', 'large', ''): (*LARGE, 2e-5, 0.95),
}
TABLE = {
    f'{method}/benchmarks/vit-{arch}-p16_upernet_8xb2-amp-160k{variant}'
    '_ade20k-512x512.py': numbers
    for (method, arch, variant), numbers in TABLE.items()
}
ALL = pytest.mark.parametrize('name', TABLE)


def method_of(name: str) -> str:
    return name.split('/')[0]


def build(cfg) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope('mmseg'):
        return build_on_meta(cfg)


def groups_of(cfg, model: torch.nn.Module) -> list[dict]:
    wrapper = cfg.optim_wrapper
    return OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type=wrapper.constructor,
            optim_wrapper_cfg=dict(optimizer=wrapper.optimizer),
            paramwise_cfg=wrapper.paramwise_cfg,
        )
    ).param_groups(model)


def test_the_table_lists_every_config():
    assert sorted(TABLE) == sorted(dense_configs('upernet'))
    assert {method_of(name) for name in TABLE} == set(METHODS)


@ALL
def test_runtime(name):
    cfg = load(name)
    assert cfg.default_scope == 'mmseg'
    assert cfg.custom_imports == dict(
        imports=['ropim_mm'], allow_failed_imports=False
    )
    assert (cfg.resume, cfg.load_from) == (False, None)
    assert cfg.randomness == dict(seed=0, diff_rank_seed=True)
    assert cfg.custom_hooks == [dict(type='ropim_mm.CheckpointCoverageHook')]
    hooks = cfg.default_hooks
    assert hooks.checkpoint == dict(
        type='CheckpointHook',
        by_epoch=False,
        interval=4000,
        max_keep_ckpts=3,
        save_last=True,
        save_best='mIoU',
    )
    assert hooks.visualization == dict(type='SegVisualizationHook')
    assert hooks.logger.log_metric_by_epoch is False
    assert cfg.log_processor == dict(by_epoch=False)
    assert cfg.visualizer.type == 'SegLocalVisualizer'


@ALL
def test_schedule(name):
    *_, rate, decay = TABLE[name]
    cfg = load(name)
    wrapper = cfg.optim_wrapper
    assert wrapper.type == 'ropim_mm.AutocastOptimWrapper'
    assert wrapper.dtype == 'bfloat16'
    assert wrapper.optimizer == dict(
        type='AdamW',
        lr=pytest.approx(rate, rel=1e-12),
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.05,
        fused=True,
    )
    assert 'clip_grad' not in wrapper
    assert wrapper.paramwise_cfg.layer_decay_rate == decay
    assert cfg.param_scheduler == [
        dict(
            type='LinearLR',
            start_factor=1e-6,
            by_epoch=False,
            begin=0,
            end=1500,
        ),
        dict(
            type='PolyLR',
            power=1.0,
            eta_min=0.0,
            by_epoch=False,
            begin=1500,
            end=160000,
        ),
    ]
    assert cfg.train_cfg == dict(
        by_epoch=False, max_iters=160000, val_interval=16000
    )
    devices, images = map(int, re.search(r'_(\d)xb(\d)-', name).groups())
    assert devices * images == 16
    assert cfg.train_dataloader.batch_size == images
    assert cfg.auto_scale_lr == dict(base_batch_size=16)


def test_rates_over_the_run():
    """Warm-up from a millionth, a half in the middle, nothing at the end."""
    cfg = load(next(iter(TABLE)))
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    schedulers = [
        PARAM_SCHEDULERS.build(
            dict(scheduler), default_args=dict(optimizer=optimizer)
        )
        for scheduler in cfg.param_scheduler
    ]
    rates = []
    for _ in range(cfg.train_cfg.max_iters):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert rates[0] == pytest.approx(2e-6)
    assert rates[750] == pytest.approx(1.0, rel=1e-2)
    assert max(rates) == pytest.approx(2.0)
    assert abs(rates.index(max(rates)) - 1500) <= 1
    assert rates[(1500 + 160000) // 2] == pytest.approx(1.0, rel=1e-4)
    assert rates[-1] == pytest.approx(0.0, abs=2e-5)


@ALL
def test_data(name):
    cfg = load(name)
    loader = cfg.train_dataloader
    assert loader.sampler == dict(type='InfiniteSampler', shuffle=True)
    assert loader.drop_last is True
    data = loader.dataset
    assert (data.type, data.reduce_zero_label) == ('ADE20KDataset', True)
    assert data.data_prefix == dict(
        img_path='images/training', seg_map_path='annotations/training'
    )
    assert list(data.pipeline) == [
        dict(type='ropim_mm.LoadImage', on_error='raise'),
        dict(type='LoadAnnotations'),
        dict(
            type='RandomResize',
            scale=(2048, 512),
            ratio_range=(0.5, 2.0),
            keep_ratio=True,
        ),
        dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
        dict(type='PackSegInputs'),
    ]

    assert cfg.val_dataloader == cfg.test_dataloader
    loader = cfg.val_dataloader
    assert loader.sampler == dict(type='DefaultSampler', shuffle=False)
    assert (loader.batch_size, loader.drop_last) == (1, False)
    data = loader.dataset
    assert (data.test_mode, data.reduce_zero_label) == (True, True)
    assert data.data_prefix == dict(
        img_path='images/validation', seg_map_path='annotations/validation'
    )
    assert [step.type for step in data.pipeline] == [
        'ropim_mm.LoadImage',
        'Resize',
        'LoadAnnotations',
        'PackSegInputs',
    ]
    assert data.pipeline[1].scale == (2048, 512)
    assert cfg.val_evaluator == dict(type='IoUMetric', iou_metrics=['mIoU'])
    assert cfg.test_evaluator == cfg.val_evaluator

    # Six sizes, each with and without a flip, for --tta.
    assert cfg.tta_model == dict(type='SegTTAModel')
    sizes, flips, *_ = steps(cfg.tta_pipeline)['TestTimeAug'].transforms
    assert [size.scale for size in sizes] == [
        (2048 * ratio, 512 * ratio)
        for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    ]
    assert all(size.keep_ratio for size in sizes)
    assert [flip.prob for flip in flips] == [0.0, 1.0]


@ALL
def test_model(name):
    width, blocks, indices, head_width, drop_path, *_ = TABLE[name]
    method = method_of(name)
    cfg = load(name)
    prefix = 'momentum.backbone.' if method == 'conmim' else 'backbone.'
    assert cfg.model.backbone.init_cfg == dict(
        type='Pretrained', checkpoint='', prefix=prefix
    )
    assert cfg.model.test_cfg == dict(
        mode='slide', crop_size=(512, 512), stride=(341, 341)
    )
    norm = cfg.model.data_preprocessor
    assert np.allclose(np.array(norm.mean) / 255, (0.485, 0.456, 0.406))
    assert np.allclose(np.array(norm.std) / 255, (0.229, 0.224, 0.225))
    assert (norm.bgr_to_rgb, norm.size) == (True, (512, 512))
    assert (norm.pad_val, norm.seg_pad_val) == (0, 255)

    model = build(cfg)
    encoder = model.backbone
    assert type(encoder).__name__ == ENCODERS[method]
    assert (encoder.embed_dims, encoder.num_layers) == (width, blocks)
    assert encoder.num_heads == width // 64
    assert encoder.patch_resolution == (32, 32)
    assert encoder.out_indices == indices
    assert (encoder.out_type, encoder.final_norm) == ('featmap', False)
    assert encoder.drop_path_rate == drop_path
    assert encoder.window_size is None
    names = dict(encoder.named_parameters())
    for i in range(blocks):
        table = f'layers.{i}.attn.relative_position_bias_table'
        assert (table in names) is (method in BEIT)
        assert (f'layers.{i}.gamma_1' in names) is (method in BEIT)
    assert 'rel_pos_bias.relative_position_bias_table' not in names
    assert (encoder.pos_embed is not None) is (method == 'rmae')
    if method == 'rmae':
        assert encoder.pos_embed.requires_grad
        assert encoder.pos_embed.shape == (1, 1 + 32 * 32, width)

    assert model.neck.rescales == [4, 2, 1, 0.5]
    head, auxiliary = model.decode_head, model.auxiliary_head
    assert type(head).__name__ == 'UPerHead'
    assert head.in_channels == [width] * 4
    assert list(head.in_index) == [0, 1, 2, 3]
    assert (head.channels, head.dropout_ratio) == (head_width, 0.1)
    assert head.psp_modules.pool_scales == (1, 2, 3, 6)
    assert type(auxiliary).__name__ == 'FCNHead'
    assert (auxiliary.in_channels, auxiliary.channels) == (width, 256)
    assert (auxiliary.in_index, auxiliary.num_convs) == (2, 1)
    for part, weight in ((head, 1.0), (auxiliary, 0.4)):
        assert part.num_classes == 150
        assert part.ignore_index == 255
        assert part.loss_decode.loss_weight == weight
        assert part.align_corners is False
    norms = [m for m in model.modules() if 'BatchNorm' in type(m).__name__]
    assert norms
    assert all(isinstance(m, torch.nn.SyncBatchNorm) for m in norms)


@ALL
def test_parameter_groups(name):
    _, blocks, *_, rate, decay = TABLE[name]
    model = build(load(name))
    groups = groups_of(load(name), model)
    lr = {n: g['lr'] for g in groups for n in g['param_names']}
    weight_decay = {
        n: g['weight_decay'] for g in groups for n in g['param_names']
    }
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert set(lr) == set(trained)

    # Embeddings, blocks, then all after them at the full rate.
    depth = blocks + 1
    first = 'backbone.patch_embed.projection.weight'
    assert lr[first] == pytest.approx(rate * decay**depth)
    for i in range(blocks):
        for part in ('attn.qkv.weight', 'ffn.layers.1.bias', 'ln1.weight'):
            assert lr[f'backbone.layers.{i}.{part}'] == pytest.approx(
                rate * decay ** (depth - 1 - i)
            )
    after = [n for n in lr if not n.startswith('backbone.')]
    assert {n.split('.')[0] for n in after} == {
        'neck',
        'decode_head',
        'auxiliary_head',
    }
    assert [lr[n] for n in after] == pytest.approx([rate] * len(after))

    # No decay: vectors, and whatever says where a token is.
    tables = {
        'ropim': 'relative_position_bias_table',
        'conmim': 'relative_position_bias_table',
        'lomar': 'rpe_k.lookup_table_weight',
        'rmae': 'pos_embed',
    }[method_of(name)]
    plain = {n for n, p in trained.items() if p.ndim > 1} & {
        n for n, value in weight_decay.items() if value == 0
    }
    positions = {n for n in trained if n.endswith(tables)}
    assert plain == {'backbone.cls_token', *positions}
    assert len(positions) == (1 if tables == 'pos_embed' else blocks)
    assert {weight_decay[n] for n, p in trained.items() if p.ndim < 2} == {0.0}
    assert set(weight_decay.values()) == {0.0, 0.05}


# --- Two steps of training --------------------------------------------------


@pytest.fixture(scope='session')
def ade(tmp_path_factory):
    root = tmp_path_factory.mktemp('ade')
    write_ade(root)
    return root


@pytest.fixture(scope='session')
def weights(tmp_path_factory):
    """The file of a tiny pretraining, for another size, by its method."""
    folder = tmp_path_factory.mktemp('pretrained')
    for method in METHODS:
        model = build_pretraining(
            method, img_size=48, patch_size=PATCH, arch=ARCH
        )
        state = dict(state_dict=model.state_dict())
        torch.save(state, folder / f'{method}.pth')
    return folder


@pytest.mark.slow
@ALL
def test_two_steps_from_pretrained_weights(name, ade, weights, tmp_path):
    *_, rate, decay = TABLE[name]
    method = method_of(name)
    cfg = launch.load_config(str(CONFIGS / name))
    shrink(cfg, ade)
    checkpoint = weights / f'{method}.pth'
    cfg.model.backbone.init_cfg.checkpoint = str(checkpoint)
    # Sums of blocks are float32 all the same; products must not be.
    products = {True: set(), False: set()}

    def note(module, args, output):
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            products[module.training].add(output.dtype)

    handle = register_module_forward_hook(note)
    try:
        lines = run(cfg, tmp_path)
    finally:
        handle.remove()
    assert products == {True: {torch.bfloat16}, False: {torch.float32}}

    training = [line for line in lines if 'loss' in line]
    assert [line['step'] for line in training] == [1, 2]
    for line in training:
        losses = [v for k, v in line.items() if 'loss' in k]
        assert len(losses) == 3  # of both heads, and their sum
        assert np.isfinite(losses).all()
    # The log shows the first group: the embeddings, below the blocks.
    lowest = rate * decay ** (BLOCKS + 1)
    assert [line['lr'] for line in training] == pytest.approx(
        [lowest * 1e-6, lowest * (1e-6 + (1 - 1e-6) / 1499)]
    )
    assert 0 <= lines[-1]['mIoU'] <= 100

    prefix = 'momentum.backbone.' if method == 'conmim' else 'backbone.'
    start = torch.load(checkpoint)['state_dict']
    end = torch.load(tmp_path / 'iter_2.pth', weights_only=False)['state_dict']
    for part in ('layers.0.attn.proj.weight', 'layers.3.ffn.layers.1.weight'):
        moved = (start[prefix + part] - end[f'backbone.{part}']).abs().max()
        assert 0 < moved < 1e-6  # warm-up has hardly begun
    if method in BEIT:
        table = 'relative_position_bias_table'
        shared = resize_table(
            start[f'{prefix}rel_pos_bias.{table}'], (3, 3), (4, 4)
        )
        for i in range(BLOCKS):
            own = end[f'backbone.layers.{i}.attn.{table}']
            assert torch.allclose(own, shared, atol=1e-6)


@pytest.mark.parametrize('method', METHODS)
def test_every_parameter_gets_a_gradient(method):
    """Else processes that train together would wait for it."""
    name = next(n for n in TABLE if method_of(n) == method)
    cfg = load(name)
    shrink(cfg, '')
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmseg'):
        from mmengine.model import revert_sync_batchnorm
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        model = revert_sync_batchnorm(MODELS.build(cfg.model))
    labels = torch.arange(SIDE * SIDE).reshape(1, SIDE, SIDE) % 150
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
    losses = model.loss(torch.randn(2, 3, SIDE, SIDE), [sample] * 2)
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    without = [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and p.grad is None
    ]
    assert without == []
