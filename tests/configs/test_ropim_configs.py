"""The configs of ROPIM: what they say, that they build, that they train."""

import pytest
import torch

from config_checks import (
    CONFIGS,
    build_on_meta,
    check_classification_runs,
    check_imagenet_statistics,
    check_layer_scales,
    check_pretraining_runs,
    check_rates,
    check_table,
    configs_of,
    load,
    run,
    shrink,
    steps,
)
from ropim_mm.checkpoints.reading import CheckpointError
from ropim_mm.engine import launch

BENCHMARKS = 'ropim/benchmarks/'

# The numbers of the recipes, rates for a batch of 512: peak, start, end;
# then epochs, batch of all devices, devices, (width, patch).
PRETRAIN = {
    'vit-base-p16_8xb128-amp-coslr-300e_in1k': (
        (1.5e-4, 5e-7, 5e-6),
        300,
        1024,
        8,
        (768, 16),
    ),
    'vit-base-p16_8xb128-amp-coslr-800e_in1k': (
        (1.5e-4, 5e-7, 5e-6),
        800,
        1024,
        8,
        (768, 16),
    ),
    'vit-base-p16_8xb128-amp-coslr-300e_custom': (
        (1.5e-4, 5e-7, 5e-6),
        300,
        1024,
        8,
        (768, 16),
    ),
    'vit-small-p16_8xb128-amp-coslr-300e_in1k': (
        (1.5e-4, 5e-7, 5e-6),
        300,
        1024,
        8,
        (384, 16),
    ),
    'vit-small-p16_8xb128-amp-coslr-800e_in1k': (
        (1.5e-4, 5e-7, 5e-6),
        800,
        1024,
        8,
        (384, 16),
    ),
    'vit-tiny-p16_8xb128-amp-coslr-300e_in100': (
        (1e-3, 5e-7, 5e-6),
        300,
        1024,
        8,
        (192, 16),
    ),
    'vit-tiny-p16_8xb128-amp-coslr-800e_in100': (
        (1e-3, 5e-7, 5e-6),
        800,
        1024,
        8,
        (192, 16),
    ),
    'vit-tiny-p4_1xb512-amp-coslr-300e_cifar10-32px': (
        (1e-3, 5e-7, 5e-6),
        300,
        512,
        1,
        (192, 4),
    ),
    'vit-tiny-p4_1xb512-amp-coslr-300e_cifar10zip-32px': (
        (1e-3, 5e-7, 5e-6),
        300,
        512,
        1,
        (192, 4),
    ),
}
PRETRAIN = {f'ropim/ropim_{k}.py': v for k, v in PRETRAIN.items()}

# The same, then layer decay and number of classes.
FINETUNE = {
    'vit-base-p16_8xb128-coslr-100e_in1k': (
        (5e-3, 2.5e-7, 5e-6),
        100,
        1024,
        8,
        (768, 16),
        0.75,
        1000,
    ),
    'vit-small-p16_8xb128-coslr-200e_in1k': (
        (5e-3, 2.5e-7, 2.5e-7),
        200,
        1024,
        8,
        (384, 16),
        0.65,
        1000,
    ),
    'vit-tiny-p16_8xb128-coslr-100e_in100': (
        (1e-2, 2.5e-7, 2.5e-7),
        100,
        1024,
        8,
        (192, 16),
        0.7,
        100,
    ),
    'vit-base-p16_8xb128-coslr-100e_cifar10': (
        (5e-3, 2.5e-7, 5e-6),
        100,
        1024,
        8,
        (768, 16),
        0.75,
        10,
    ),
    'vit-base-p16_8xb128-coslr-100e_cifar100': (
        (5e-3, 2.5e-7, 5e-6),
        100,
        1024,
        8,
        (768, 16),
        0.75,
        100,
    ),
    'vit-base-p16_8xb128-coslr-100e_inat2017': (
        (5e-3, 2.5e-7, 5e-6),
        100,
        1024,
        8,
        (768, 16),
        0.75,
        5089,
    ),
    'vit-tiny-p4_1xb512-coslr-100e_cifar10-32px': (
        (1e-2, 2.5e-7, 2.5e-7),
        100,
        512,
        1,
        (192, 4),
        0.7,
        10,
    ),
    'vit-tiny-p4_1xb512-coslr-100e_cifar10zip-32px': (
        (1e-2, 2.5e-7, 2.5e-7),
        100,
        512,
        1,
        (192, 4),
        0.7,
        10,
    ),
}
FINETUNE = {f'{BENCHMARKS}{k}.py': v for k, v in FINETUNE.items()}
LINEAR = f'{BENCHMARKS}vit-base-p16_8xb2048-linear-coslr-90e_in1k.py'
# Recipes of runs that docs/results.md reports, with numbers of their own.
SMALL = [name for name in configs_of('ropim') if 'vit-mini-' in name]
SMALL_PRETRAIN = [n for n in SMALL if n.startswith('ropim/ropim_')]
SMALL_FINETUNE = [n for n in SMALL if n.startswith(BENCHMARKS)]


def test_the_tables_list_every_config():
    check_table('ropim', [*PRETRAIN, *FINETUNE, LINEAR, *SMALL])


def check_schedule(cfg, rates, epochs, batch):
    check_rates(cfg, *rates, batch=batch, length=epochs, warmup=5, per=512)


@pytest.mark.parametrize('name', PRETRAIN)
def test_pretraining_numbers(name):
    rates, epochs, batch, devices, (width, patch) = PRETRAIN[name]
    cfg = load(name)
    check_schedule(cfg, rates, epochs, batch)
    assert cfg.train_dataloader.batch_size * devices == batch
    wrapper = cfg.optim_wrapper
    optimizer = dict(wrapper.optimizer)
    optimizer.pop('lr')
    assert optimizer == dict(
        type='AdamW',
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.05,
        fused=True,
    )
    assert wrapper.constructor == 'ropim_mm.LayerDecayOptimWrapperConstructor'
    assert wrapper.clip_grad == dict(max_norm=5.0)
    assert cfg.default_hooks.checkpoint.interval == 5

    pipeline = steps(cfg.train_dataloader.dataset.pipeline)
    crop = pipeline['ropim_mm.RandomResizedCrop']
    assert crop.scale == (224 if patch == 16 else 32)
    assert crop.crop_ratio_range == (0.67, 1.0)
    assert crop.aspect_ratio_range == (3 / 4, 4 / 3)
    assert (crop.interpolation, crop.backend) == ('bilinear', 'torch')
    assert pipeline['RandomFlip'].prob == 0.5
    check_imagenet_statistics(cfg)
    # Only MMPretrain's CIFAR gives pixels as red, green, blue.
    to_rgb = cfg.data_preprocessor.to_rgb
    assert to_rgb is ('ropim_mm.LoadImage' in pipeline)

    model = build_on_meta(cfg)
    encoder = model.backbone
    assert encoder.embed_dims == width
    assert encoder.num_layers == 12
    assert encoder.patch_size == (patch, patch)
    assert encoder.patch_resolution == (crop.scale // patch,) * 2
    assert model.sketch_ratio == 0.14
    assert model.sketch_scale is None
    backbone = cfg.model.backbone
    assert backbone.drop_path_rate == 0.1
    assert backbone.layer_scale_init_value == 0.1
    assert backbone.init_cutoff == 0.02
    assert encoder.pos_embed is None
    names = [n for n, _ in model.named_parameters() if 'position_bias' in n]
    assert names == ['backbone.rel_pos_bias.relative_position_bias_table']
    heads = width // 64
    table = encoder.rel_pos_bias.relative_position_bias_table
    side = crop.scale // patch
    assert table.shape == ((2 * side - 1) ** 2 + 3, heads)
    assert model.neck.decoder[0].weight.shape == (
        3 * patch**2, width, 1, 1
    )  # fmt: skip


@pytest.mark.parametrize('name', FINETUNE)
def test_finetuning_numbers(name):
    rates, epochs, batch, devices, (width, patch), decay, classes = FINETUNE[
        name
    ]
    cfg = load(name)
    check_schedule(cfg, rates, epochs, batch)
    assert cfg.train_dataloader.batch_size * devices == batch
    wrapper = cfg.optim_wrapper
    optimizer = dict(wrapper.optimizer)
    optimizer.pop('lr')
    assert optimizer == dict(
        type='AdamW',
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.05,
        fused=True,
    )
    assert wrapper.paramwise_cfg == dict(layer_decay_rate=decay)
    assert wrapper.clip_grad == dict(max_norm=5.0)

    train = steps(cfg.train_dataloader.dataset.pipeline)
    test = steps(cfg.val_dataloader.dataset.pipeline)
    rgb = 'ropim_mm.LoadImage' not in train
    assert ('ropim_mm.LoadImage' not in test) is rgb
    assert cfg.data_preprocessor.to_rgb is not rgb
    assert cfg.data_preprocessor.num_classes == classes
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    assert (cfg.data_preprocessor.mean, cfg.data_preprocessor.std) == (
        mean,
        std,
    )
    augment = train['RandAugment']
    assert augment.policies == 'timm_increasing'
    assert (
        augment.num_policies,
        augment.magnitude_level,
        augment.magnitude_std,
        augment.total_level,
    ) == (2, 9, 0.5, 10)
    order = slice(None) if rgb else slice(None, None, -1)
    assert augment.hparams == dict(
        pad_val=[124, 116, 104][order], interpolation='bicubic'
    )
    erase = train['RandomErasing']
    assert (erase.erase_prob, erase.mode) == (0.25, 'rand')
    assert (erase.min_area_ratio, erase.max_area_ratio) == (0.02, 1 / 3)
    assert (erase.fill_color, erase.fill_std) == (mean[order], std[order])
    assert train['RandomFlip'].prob == 0.5
    if patch == 16:
        crop = train['RandomResizedCrop']
        assert (crop.scale, crop.crop_ratio_range) == (224, (0.08, 1.0))
        assert (crop.interpolation, crop.backend) == ('bicubic', 'pillow')
        resize = test['ResizeEdge']
        assert (resize.scale, resize.edge) == (256, 'short')
        assert (resize.interpolation, resize.backend) == ('bicubic', 'pillow')
        assert test['CenterCrop'].crop_size == 224
    else:
        assert train['RandomCrop'] == dict(
            type='RandomCrop', crop_size=32, padding=4
        )
        assert set(test) <= {'ropim_mm.LoadImage', 'PackInputs'}

    assert cfg.model.train_cfg.augments == [
        dict(type='Mixup', alpha=0.8),
        dict(type='CutMix', alpha=1.0),
    ]
    loss = cfg.model.head.loss
    assert (loss.type, loss.label_smooth_val) == ('LabelSmoothLoss', 0.1)
    assert cfg.model.head.init_cfg.std == pytest.approx(2e-5)
    backbone = cfg.model.backbone
    assert (backbone.drop_path_rate, backbone.final_norm) == (0.1, False)
    assert backbone.init_cfg == dict(
        type='Pretrained', checkpoint='', prefix='backbone.'
    )

    model = build_on_meta(cfg)
    assert model.head.fc.weight.shape == (classes, width)
    assert model.backbone.patch_size == (patch, patch)
    names = [n for n, _ in model.named_parameters() if 'position_bias' in n]
    assert names == [
        f'backbone.layers.{i}.attn.relative_position_bias_table'
        for i in range(12)
    ]
    check_layer_scales(cfg, model, decay)


def test_linear_probe_numbers():
    cfg = load(LINEAR)
    assert cfg.optim_wrapper.optimizer == dict(
        type='LARS', lr=0.1 * 16384 / 256, momentum=0.9, weight_decay=0.0
    )
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(6.4)
    linear, cosine = cfg.param_scheduler
    assert (linear.start_factor, linear.end) == (1e-4, 10)
    assert (cosine.begin, cosine.end, cosine.eta_min) == (10, 90, 0.0)
    model = build_on_meta(cfg)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained == ['head.fc.weight', 'head.fc.bias']
    assert isinstance(model.neck.bn, torch.nn.BatchNorm1d)
    assert model.data_preprocessor.batch_augments is None
    assert list(steps(cfg.train_dataloader.dataset.pipeline)) == [
        'ropim_mm.LoadImage',
        'RandomResizedCrop',
        'RandomFlip',
        'PackInputs',
    ]
    model.train()
    assert not any(block.training for block in model.backbone.layers)


@pytest.mark.slow
@pytest.mark.parametrize('name', [*PRETRAIN, *SMALL_PRETRAIN])
def test_pretraining_runs(name, data, tmp_path, cifar):
    check_pretraining_runs(name, data, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('name', [*FINETUNE, LINEAR, *SMALL_FINETUNE])
def test_classification_runs(name, data, tmp_path, cifar):
    check_classification_runs(name, next(iter(PRETRAIN)), data, tmp_path)


@pytest.mark.slow
def test_an_empty_checkpoint_is_refused(data, tmp_path):
    name = next(iter(FINETUNE))
    cfg = launch.load_config(str(CONFIGS / name))
    shrink(cfg, data)
    with pytest.raises(CheckpointError, match="checkpoint is ''. Give one"):
        run(cfg, tmp_path)
    assert not list(tmp_path.rglob('*.pth'))
