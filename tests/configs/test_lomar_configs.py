"""The configs of LoMaR: what they say, that they build, that they train."""

import pytest
import torch

from config_checks import (
    build_on_meta,
    check_classification_runs,
    check_imagenet_statistics,
    check_layer_scales,
    check_pretraining_runs,
    check_rates,
    check_table,
    configs_of,
    load,
    steps,
)
from ropim_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS

BENCHMARKS = 'lomar/benchmarks/'

# Warm-up and all epochs, width, blocks, size of images.
PRETRAIN = {
    'vit-base-p16_8xb512-amp-coslr-400e_in1k': (20, 400, 768, 12, 224),
    'vit-base-p16_8xb512-amp-coslr-1600e_in1k': (40, 1600, 768, 12, 224),
    'vit-base-p16_8xb512-amp-coslr-400e_in1k-384px': (20, 400, 768, 12, 384),
    'vit-base-p16_8xb512-amp-coslr-400e_in1k-448px': (20, 400, 768, 12, 448),
    'vit-base-p16_8xb512-amp-coslr-400e_custom': (20, 400, 768, 12, 224),
    'vit-large-p16_8xb512-amp-coslr-400e_in1k': (20, 400, 1024, 24, 224),
    'vit-large-p16_8xb512-amp-coslr-1600e_in1k': (40, 1600, 1024, 24, 224),
}
PRETRAIN = {f'lomar/lomar_{k}.py': v for k, v in PRETRAIN.items()}
# Size of images.
FINETUNE = {
    'vit-base-p16_8xb128-coslr-100e_in1k': 224,
    'vit-base-p16_8xb128-coslr-100e_in1k-384px': 384,
    'vit-base-p16_8xb128-coslr-100e_in1k-448px': 448,
}
FINETUNE = {f'{BENCHMARKS}{k}.py': v for k, v in FINETUNE.items()}
LINEAR = f'{BENCHMARKS}vit-base-p16_8xb2048-linear-coslr-90e_in1k.py'
# Recipes of runs that docs/results.md reports, with numbers of their own.
SMALL = [name for name in configs_of('lomar') if 'vit-mini-' in name]
SMALL_PRETRAIN = [n for n in SMALL if n.startswith('lomar/lomar_')]
SMALL_FINETUNE = [n for n in SMALL if n.startswith(BENCHMARKS)]
SOURCE = next(iter(PRETRAIN))


def test_the_tables_list_every_config():
    check_table('lomar', [*PRETRAIN, *FINETUNE, LINEAR, *SMALL])


@pytest.mark.parametrize('name', PRETRAIN)
def test_pretraining_numbers(name):
    warmup, epochs, width, blocks, size = PRETRAIN[name]
    cfg = load(name)
    check_rates(
        cfg, 1.5e-4, 1.5e-10, 0.0, batch=4096, length=epochs, warmup=warmup
    )
    wrapper = cfg.optim_wrapper
    optimizer = dict(wrapper.optimizer)
    assert optimizer.pop('lr') == pytest.approx(2.4e-3)
    assert optimizer == dict(
        type='AdamW',
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.05,
        fused=True,
    )
    assert wrapper.clip_grad == dict(max_norm=5.0)

    pipeline = steps(cfg.train_dataloader.dataset.pipeline)
    assert list(pipeline) == [
        'ropim_mm.LoadImage',
        'ropim_mm.RandomResizedCrop',
        'RandomFlip',
        'PackInputs',
    ]
    crop = pipeline['ropim_mm.RandomResizedCrop']
    assert crop.scale == size
    assert crop.crop_ratio_range == (0.2, 1.0)
    assert crop.aspect_ratio_range == (3 / 4, 4 / 3)
    assert (crop.interpolation, crop.backend) == ('bicubic', 'torch')
    assert pipeline['RandomFlip'].prob == 0.5
    check_imagenet_statistics(cfg)

    model = build_on_meta(cfg)
    assert (model.window_size, model.num_windows) == (7, 4)
    assert (model.mask_ratio, model.num_masked) == (0.8, 39)
    assert model.window_sampling == 'batch'
    assert model.window_replacement is False
    assert model.head.norm_pix is True
    encoder = model.backbone
    assert (encoder.embed_dims, encoder.num_layers) == (width, blocks)
    assert encoder.patch_resolution == (size // 16, size // 16)
    assert encoder.drop_path_rate == 0.0
    assert encoder.pos_embed is None
    assert model.neck.pred.weight.shape == (768, width)
    tables = [n for n, _ in model.named_parameters() if 'rpe_k' in n]
    assert tables == [
        f'backbone.layers.{i}.attn.rpe_k.lookup_table_weight'
        for i in range(blocks)
    ]

    # Only vectors and biases do not decay.
    groups = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type=wrapper.constructor,
            optim_wrapper_cfg=dict(optimizer=wrapper.optimizer),
            paramwise_cfg=wrapper.paramwise_cfg,
        )
    ).param_groups(model)
    decayed, plain = groups
    assert (decayed['weight_decay'], plain['weight_decay']) == (0.05, 0.0)
    names = set(decayed['param_names'])
    assert {'backbone.cls_token', 'backbone.mask_token', *tables} <= names
    assert all(p.ndim < 2 for p in plain['params'])


@pytest.mark.parametrize('name', FINETUNE)
def test_finetuning_numbers(name):
    size = FINETUNE[name]
    cfg = load(name)
    check_rates(cfg, 5e-4, 5e-10, 2.5e-7, batch=1024, length=100, warmup=5)
    wrapper = cfg.optim_wrapper
    optimizer = dict(wrapper.optimizer)
    assert optimizer.pop('lr') == pytest.approx(2e-3)
    assert cfg.param_scheduler[1].eta_min == pytest.approx(1e-6)
    assert optimizer == dict(
        type='AdamW',
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.05,
        fused=True,
    )
    assert wrapper.paramwise_cfg == dict(layer_decay_rate=0.65)
    assert 'clip_grad' not in wrapper

    train = steps(cfg.train_dataloader.dataset.pipeline)
    crop = train['RandomResizedCrop']
    assert (crop.scale, crop.crop_ratio_range) == (size, (0.08, 1.0))
    assert (crop.interpolation, crop.backend) == ('bicubic', 'pillow')
    augment = train['RandAugment']
    assert (
        augment.policies,
        augment.num_policies,
        augment.magnitude_level,
        augment.magnitude_std,
    ) == ('timm_increasing', 2, 9, 0.5)
    assert train['RandomErasing'].erase_prob == 0.25
    test = steps(cfg.val_dataloader.dataset.pipeline)
    resize = test['ResizeEdge']
    # A margin around the crop at 224 px only.
    assert (resize.scale, resize.edge) == (
        256 if size == 224 else size,
        'short',
    )
    assert (resize.interpolation, resize.backend) == ('bicubic', 'pillow')
    assert test['CenterCrop'].crop_size == size
    assert cfg.test_dataloader.dataset.pipeline == (
        cfg.val_dataloader.dataset.pipeline
    )

    assert cfg.model.train_cfg.augments == [
        dict(type='Mixup', alpha=0.8),
        dict(type='CutMix', alpha=1.0),
    ]
    loss = cfg.model.head.loss
    assert (loss.type, loss.label_smooth_val) == ('LabelSmoothLoss', 0.1)
    assert cfg.model.head.init_cfg.std == pytest.approx(2e-5)
    backbone = cfg.model.backbone
    assert backbone.drop_path_rate == 0.1
    assert backbone.init_cfg == dict(
        type='Pretrained', checkpoint='', prefix='backbone.'
    )

    model = build_on_meta(cfg)
    assert model.head.fc.weight.shape == (1000, 768)
    assert model.backbone.out_type == 'avg_featmap'
    assert model.backbone.final_norm is False
    assert model.backbone.mask_token is None
    assert model.backbone.patch_resolution == (size // 16, size // 16)
    check_layer_scales(cfg, model, 0.65)


def test_linear_probe_numbers():
    cfg = load(LINEAR)
    assert cfg.optim_wrapper.optimizer == dict(
        type='LARS', lr=0.1 * 16384 / 256, momentum=0.9, weight_decay=0.0
    )
    model = build_on_meta(cfg)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained == ['head.fc.weight', 'head.fc.bias']
    assert isinstance(model.neck.bn, torch.nn.BatchNorm1d)
    assert model.data_preprocessor.batch_augments is None
    model.train()
    assert not any(block.training for block in model.backbone.layers)


def test_the_small_recipe_has_the_encoder_data_and_budget_of_ropims():
    for own in SMALL:
        ours, theirs = load(own), load(own.replace('lomar', 'ropim'))
        for key in ('arch', 'img_size', 'patch_size', 'drop_path_rate'):
            default = 0.0 if key == 'drop_path_rate' else None
            assert ours.model.backbone.get(
                key, default
            ) == theirs.model.backbone.get(key)
        assert ours.train_cfg == theirs.train_cfg
        for key in ('batch_size', 'num_workers'):
            assert ours.train_dataloader[key] == theirs.train_dataloader[key]
        for key in ('type', 'zip_file', 'prefix'):
            assert (
                ours.train_dataloader.dataset[key]
                == (theirs.train_dataloader.dataset[key])
            )
    model = build_on_meta(load(SMALL_PRETRAIN[0]))
    assert (model.window_size, model.num_windows) == (5, 4)


def smaller_windows(cfg):
    """Those of the recipe need larger images than the generated ones."""
    if cfg.model.type == 'ropim_mm.LoMaR' and cfg.model.window_size == 7:
        cfg.model.update(window_size=3, num_windows=2)


@pytest.mark.slow
@pytest.mark.parametrize('name', [*PRETRAIN, *SMALL_PRETRAIN])
def test_pretraining_runs(name, data, tmp_path):
    side = 32 if 'mini' in name else 64
    check_pretraining_runs(name, data, tmp_path, smaller_windows, side)


@pytest.mark.slow
@pytest.mark.parametrize('name', [*FINETUNE, LINEAR, *SMALL_FINETUNE])
def test_classification_runs(name, data, tmp_path):
    check_classification_runs(name, SOURCE, data, tmp_path, smaller_windows)
