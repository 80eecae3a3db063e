"""Mask R-CNN in the style of ViTDet: numbers, networks, data, two steps."""

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, MODELS, DefaultScope

import tiny_coco
from config_checks import (
    ARCH,
    CONFIGS,
    check_steps,
    dense_configs,
    load,
    run,
    steps,
)
from ropim_mm.engine import launch
from ropim_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS
from tiny_coco import SIDE, needs_operators
from tiny_models import METHODS, model_config

# Width, blocks, layer decay, drop path, the blocks without windows.
ARCHS = {
    'small': (384, 12, 0.7, 0.1, (2, 5, 8, 11)),
    'base': (768, 12, 0.7, 0.1, (2, 5, 8, 11)),
    'large': (1024, 24, 0.8, 0.4, (5, 11, 17, 23)),
}
# Updates in all, and those before the rate drops. 64 images of 118,000 each
# are 1843.75 an epoch.
SCHEDULES = {
    100: (184375, [163889, 177546]),
    25: (46094, [40972, 44387]),
}
# Sizes and lengths that a method has, and where its encoder is in a file.
RECIPES = {
    'ropim': [('base', 100), ('base', 25), ('small', 100)],
    'lomar': [('base', 100), ('base', 25), ('large', 100)],
    'rmae': [('base', 100), ('base', 25)],
    'conmim': [('base', 100), ('base', 25), ('small', 100), ('large', 100)],
}
ENCODERS = {
    'ropim': ('ropim_mm.ROPIMViT', 'backbone.'),
    'lomar': ('ropim_mm.LoMaRViT', 'backbone.'),
    'rmae': ('ropim_mm.RMAEViT', 'backbone.'),
    'conmim': ('ropim_mm.ConMIMViT', 'momentum.backbone.'),
}
TABLE = {
    f'{method}/benchmarks/mask-rcnn_vit-{arch}-p16_lsj-{epochs}e_coco.py': (
        method,
        arch,
        epochs,
    )
    for method, recipes in RECIPES.items()
    for arch, epochs in recipes
}


def build(cfg, device='cpu'):
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device(device):
        return MODELS.build(cfg.model)


def test_the_table_lists_every_config():
    found = dense_configs('mask-rcnn')
    assert sorted(TABLE) == sorted(n for n in found if 'mimdet' not in n)


@pytest.mark.parametrize('name', TABLE)
def test_schedule(name):
    _, arch, epochs = TABLE[name]
    length, drops = SCHEDULES[epochs]
    cfg = load(name)
    assert length == pytest.approx(epochs * 118000 / 64, abs=0.5)
    assert cfg.train_cfg == dict(
        by_epoch=False, max_iters=length, val_interval=5000
    )
    linear, multi = cfg.param_scheduler
    assert linear == dict(
        type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250
    )
    assert multi == dict(
        type='MultiStepLR',
        milestones=drops,
        gamma=0.1,
        by_epoch=False,
        begin=0,
        end=length,
    )
    full, full_drops = SCHEDULES[100]
    for drop, full_drop in zip(drops, full_drops, strict=True):
        assert drop / length == pytest.approx(full_drop / full, abs=2e-5)

    wrapper = cfg.optim_wrapper
    assert wrapper.type == 'ropim_mm.AutocastOptimWrapper'
    assert wrapper.dtype == 'bfloat16'
    assert wrapper.optimizer == dict(
        type='AdamW',
        lr=1e-4,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.1,
        fused=True,
    )
    assert wrapper.paramwise_cfg.layer_decay_rate == ARCHS[arch][2]
    # 16 machines or devices of 4 images each.
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
    assert (checkpoint.by_epoch, checkpoint.interval) == (False, 5000)
    assert (checkpoint.max_keep_ckpts, checkpoint.save_last) == (3, True)
    assert checkpoint.save_best == 'coco/segm_mAP'
    assert cfg.log_processor.by_epoch is False
    assert cfg.default_hooks.visualization.type == 'DetVisualizationHook'
    assert cfg.visualizer.type == 'DetLocalVisualizer'
    assert cfg.train_dataloader.sampler == dict(
        type='InfiniteSampler', shuffle=True
    )
    assert cfg.val_dataloader.sampler.shuffle is False
    assert cfg.val_dataloader.drop_last is False
    assert cfg.val_dataloader.dataset.test_mode is True
    assert cfg.test_dataloader == cfg.val_dataloader
    assert cfg.test_evaluator == cfg.val_evaluator
    assert cfg.val_evaluator == dict(
        type='CocoMetric',
        ann_file='data/coco/annotations/instances_val2017.json',
        metric=['bbox', 'segm'],
    )


@pytest.mark.parametrize('name', TABLE)
def test_augmentation(name):
    cfg = load(name)
    train = steps(cfg.train_dataloader.dataset.pipeline)
    assert list(train) == [
        'ropim_mm.LoadImage',
        'LoadAnnotations',
        'RandomResize',
        'RandomCrop',
        'FilterAnnotations',
        'RandomFlip',
        'PackDetInputs',
    ]
    resize = train['RandomResize']
    assert (resize.scale, resize.ratio_range) == ((1024, 1024), (0.1, 2.0))
    assert resize.keep_ratio is True
    crop = train['RandomCrop']
    assert (crop.crop_type, crop.crop_size) == ('absolute', (1024, 1024))
    assert crop.recompute_bbox is True
    assert crop.allow_negative_crop is True
    assert train['RandomFlip'].prob == 0.5
    test = steps(cfg.test_dataloader.dataset.pipeline)
    assert list(test) == [
        'ropim_mm.LoadImage',
        'Resize',
        'LoadAnnotations',
        'PackDetInputs',
    ]
    assert test['Resize'].scale == (1024, 1024)
    assert test['Resize'].keep_ratio is True
    for pipeline in (train, test):
        load_step = pipeline['LoadAnnotations']
        assert load_step.with_mask is load_step.poly2mask is True
    norm = cfg.model.data_preprocessor
    assert norm.bgr_to_rgb is True
    assert np.allclose(np.array(norm.mean) / 255, (0.485, 0.456, 0.406))
    assert np.allclose(np.array(norm.std) / 255, (0.229, 0.224, 0.225))
    assert (norm.pad_size_divisor, norm.pad_value) == (1024, 0)
    assert norm.pad_mask is True


@needs_operators
@pytest.mark.parametrize('name', TABLE)
def test_network(name):
    method, arch, _ = TABLE[name]
    width, blocks, _, drop_path, global_blocks = ARCHS[arch]
    cfg = load(name)
    backbone = cfg.model.backbone
    kind, prefix = ENCODERS[method]
    assert backbone.type == kind
    assert backbone.init_cfg == dict(
        type='Pretrained', checkpoint='', prefix=prefix
    )
    assert backbone.with_cp is False

    model = build(cfg, 'meta')
    encoder = model.backbone
    assert (encoder.embed_dims, encoder.num_layers) == (width, blocks)
    assert encoder.patch_resolution == (64, 64)
    assert encoder.drop_path_rate == drop_path
    assert encoder.final_norm is False
    assert not hasattr(encoder, 'ln1')
    assert (encoder.out_type, encoder.out_indices) == (
        'featmap',
        (blocks - 1,),
    )
    assert [i for i in range(blocks) if encoder.window_of(i) is None] == (
        list(global_blocks)
    )
    windows = {encoder.window_of(i) for i in range(blocks)} - {None}
    assert windows == {(14, 14)}

    neck = model.neck
    assert neck.scales[1].in_channels == width
    assert {tuple(output[2].weight.shape) for output in neck.outputs} == {
        (256, 256, 3, 3)
    }
    assert neck.num_outs == 5
    assert len(model.rpn_head.rpn_conv) == 2
    anchors = model.rpn_head.prior_generator
    assert [s[0] for s in anchors.strides] == [4, 8, 16, 32, 64]
    box = model.roi_head.bbox_head
    mask = model.roi_head.mask_head
    assert [len(box.shared_convs), len(box.shared_fcs)] == [4, 1]
    assert box.fc_cls.out_features == 81
    assert box.fc_reg.out_features == 320
    assert box.shared_fcs[0].out_features == 1024
    assert len(mask.convs) == 4
    assert mask.conv_logits.out_channels == 80
    for conv in (*box.shared_convs, *mask.convs):
        assert isinstance(conv.norm, torch.nn.LayerNorm)
        assert conv.norm.eps == 1e-6
        assert conv.conv.bias is None
    for extractor, size in (
        (model.roi_head.bbox_roi_extractor, 7),
        (model.roi_head.mask_roi_extractor, 14),
    ):
        assert extractor.featmap_strides == [4, 8, 16, 32]
        for layer in extractor.roi_layers:
            assert layer.output_size == (size, size)
            assert (layer.sampling_ratio, layer.aligned) == (0, True)


@needs_operators
@pytest.mark.parametrize('name', TABLE)
def test_groups_of_parameters(name):
    method, arch, _ = TABLE[name]
    _, blocks, decay, _, _ = ARCHS[arch]
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
    settings = {
        n: (g['lr'], g['weight_decay'])
        for g in groups
        for n in g['param_names']
    }
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(settings) == trained
    assert 'backbone.cls_token' not in trained

    shapes = {n: p.ndim for n, p in model.named_parameters()}
    tables = ('relative_position_bias_table', 'lookup_table_weight')
    for name_, (rate, weight_decay) in settings.items():
        parts = name_.split('.')
        depth = blocks + 1
        if parts[:2] == ['backbone', 'layers']:
            depth = int(parts[2]) + 1
        elif parts[0] == 'backbone':
            assert parts[1] in ('patch_embed', 'pos_embed')
            depth = 0
        assert rate == pytest.approx(1e-4 * decay ** (blocks + 1 - depth))
        plain = shapes[name_] < 2 or parts[-1] in ('pos_embed', *tables)
        assert weight_decay == (0.0 if plain else 0.1), name_
    positions = {
        'ropim': blocks,
        'conmim': blocks,
        'lomar': blocks,
        'rmae': 1,
    }
    found = [n for n in trained if n.endswith(('pos_embed', *tables))]
    assert len(found) == positions[method]


@pytest.mark.parametrize('method', ('ropim', 'conmim'))
@needs_operators
def test_tables_are_those_of_windows_and_of_the_whole(method):
    name = f'{method}/benchmarks/mask-rcnn_vit-base-p16_lsj-100e_coco.py'
    blocks = build(load(name), 'meta').backbone.layers
    rows = [len(b.attn.relative_position_bias_table) for b in blocks]
    window, whole = 27 * 27 + 3, 127 * 127 + 3
    assert rows == [window, window, whole] * 4


# --- Data -------------------------------------------------------------------


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    return tiny_coco.write(tmp_path_factory.mktemp('coco'))


def samples(cfg, loader):
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DATASETS.build(cfg[loader].dataset)


@needs_operators
def test_polygons_and_run_lengths_become_masks(coco):
    """Both kinds are where they were drawn, as they are in testing."""
    cfg = load(next(iter(TABLE)))
    cfg.val_dataloader.dataset.data_root = str(coco)
    cfg.val_dataloader.dataset.pipeline[1].scale = (128, 128)
    packed = samples(cfg, 'val_dataloader')[0]
    # 48 x 64 pixels, made twice as large.
    assert tuple(packed['inputs'].shape) == (3, 96, 128)
    sample = packed['data_samples']
    assert sample.scale_factor == (2.0, 2.0)
    # Annotations come after the resizing, as the metric's do.
    truth = sample.gt_instances
    assert truth.labels.tolist() == [0, 17]  # person, horse
    assert truth.bboxes.tensor.tolist() == [[4, 6, 16, 26], [18, 4, 32, 20]]
    crowd = sample.ignored_instances.bboxes.tensor
    assert crowd.tolist() == [[54, 40, 62, 46]]
    person, horse = truth.masks.masks
    expected = np.zeros((48, 64), bool)
    expected[6:26, 4:16] = True
    assert (person == expected).all()
    expected[:] = False
    expected[4:20, 18:32] = True
    assert (horse == expected).all()


@needs_operators
def test_large_scale_jitter(coco):
    """Sizes over the whole range, boxes at the edges of their masks."""
    cfg = load(next(iter(TABLE)))
    tiny_coco.change_side(cfg, SIDE)
    cfg.train_dataloader.dataset.data_root = str(coco)
    dataset = samples(cfg, 'train_dataloader')
    np.random.seed(0)
    sides, flips = [], 0
    for i in range(150):
        packed = dataset[i % len(dataset)]
        height, width = packed['inputs'].shape[1:]
        assert max(height, width) <= SIDE
        sample = packed['data_samples']
        sides.append(max(np.multiply(sample.ori_shape, sample.scale_factor)))
        flips += sample.flip
        truth = sample.gt_instances
        assert truth.masks.masks.shape[1:] == (height, width)
        boxes = truth.masks.get_bboxes(dst_type='hbox').tensor
        assert torch.equal(boxes, truth.bboxes.tensor)
    assert 0.1 * SIDE <= min(sides) < 0.3 * SIDE
    assert 1.8 * SIDE < max(sides) <= 2.0 * SIDE + 1
    assert 50 < flips < 100


@needs_operators
def test_photos_are_filled_up_to_the_square(coco):
    cfg = load(next(iter(TABLE)))
    tiny_coco.shrink(cfg, coco)
    model = build(cfg)
    packed = [samples(cfg, 'val_dataloader')[i] for i in (0, 1)]
    batch = dict(
        inputs=[p['inputs'] for p in packed],
        data_samples=[p['data_samples'] for p in packed],
    )
    data = model.data_preprocessor(batch)
    assert tuple(data['inputs'].shape) == (2, 3, SIDE, SIDE)
    # 48 x 64, and 64 x 40: the mean colour, which is 0, below and beside.
    assert not data['inputs'][0, :, 48:].any()
    assert not data['inputs'][1, :, :, 40:].any()
    assert data['inputs'][0, :, :48].ne(0).all()
    assert [s.img_shape for s in data['data_samples']] == [(48, 64), (64, 40)]


# --- Two steps --------------------------------------------------------------


def save_pretrained(method, path):
    """A checkpoint as pretraining writes it, of the tiny encoder.

    Returns:
        dict: Its state dict.
    """
    torch.manual_seed(1)
    cfg = model_config(method, img_size=SIDE, patch_size=16, arch=ARCH)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict()), path)
    return model.state_dict()


@needs_operators
@pytest.mark.slow
@pytest.mark.parametrize('name', TABLE)
def test_two_steps(name, coco, tmp_path):
    """From pretrained weights, in bfloat16, then boxes and masks."""
    method = TABLE[name][0]
    weights = save_pretrained(method, tmp_path / 'pretrained.pth')
    cfg = launch.load_config(str(CONFIGS / name))
    tiny_coco.shrink(cfg, coco)
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'pretrained.pth')
    lines = run(cfg, tmp_path / 'run')
    check_steps(cfg, lines)
    for kind in ('bbox', 'segm'):
        assert 0 <= lines[-1][f'coco/{kind}_mAP'] <= 1
    assert {
        'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox', 'loss_mask',
    } <= set(lines[0])  # fmt: skip

    (log,) = (tmp_path / 'run').glob('*/*.log')
    assert f'Parameter groups of MaskRCNN, lr {1e-4:g}' in log.read_text()
    trained = torch.load(tmp_path / 'run' / 'iter_2.pth', weights_only=False)
    prefix = ENCODERS[method][1]
    key = 'patch_embed.projection.weight'
    start, end = (
        weights[prefix + key],
        trained['state_dict']['backbone.' + key],
    )
    assert 0 < (start - end).abs().max().item() < 1e-6


@needs_operators
@pytest.mark.slow
@pytest.mark.parametrize('method', METHODS)
def test_checkpointed_activations_give_the_same_losses(method, coco, tmp_path):
    save_pretrained(method, tmp_path / 'pretrained.pth')
    name = f'{method}/benchmarks/mask-rcnn_vit-base-p16_lsj-100e_coco.py'
    losses = []
    for with_cp in (False, True):
        cfg = launch.load_config(str(CONFIGS / name))
        tiny_coco.shrink(cfg, coco)
        cfg.model.backbone.update(with_cp=with_cp, drop_path_rate=0.0)
        cfg.model.backbone.init_cfg.checkpoint = str(
            tmp_path / 'pretrained.pth'
        )
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        lines = run(cfg, tmp_path / f'run{with_cp}')
        losses.append([line['loss'] for line in lines])
    assert losses[0] == losses[1]
