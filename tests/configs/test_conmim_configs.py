"""The configs of ConMIM: what they say, that they build, that they train."""

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

BENCHMARKS = 'conmim/benchmarks/'
BATCH = 2048

# Peak for 2048 images, warm-up and all epochs, width, blocks, LayerScale.
SMALL_AND_BASE, LARGE = (5e-4, 5), (7.5e-4, 10)
PRETRAIN = {
    'vit-small-p16_8xb256-amp-coslr-300e_in1k': (
        *SMALL_AND_BASE, 300, 384, 12, 0.1,
    ),
    'vit-base-p16_8xb256-amp-coslr-300e_in1k': (
        *SMALL_AND_BASE, 300, 768, 12, 0.1,
    ),
    'vit-base-p16_8xb256-amp-coslr-800e_in1k': (
        *SMALL_AND_BASE, 800, 768, 12, 0.1,
    ),
    'vit-base-p16_8xb256-amp-coslr-300e_custom': (
        *SMALL_AND_BASE, 300, 768, 12, 0.1,
    ),
    'vit-base-p16_8xb256-amp-coslr-300e_in1kzip': (
        *SMALL_AND_BASE, 300, 768, 12, 0.1,
    ),
    'vit-large-p16_8xb256-amp-coslr-400e_in1k': (*LARGE, 400, 1024, 24, 1e-5),
    'vit-large-p16_8xb256-amp-coslr-800e_in1k': (*LARGE, 800, 1024, 24, 1e-5),
    'vit-large-p16_8xb256-amp-coslr-1600e_in1k': (
        *LARGE, 1600, 1024, 24, 1e-5,
    ),
}  # fmt: skip
PRETRAIN = {f'conmim/conmim_{k}.py': v for k, v in PRETRAIN.items()}

# Peak for 1024 images, layer decay, drop path, width, size of images.
FINETUNE = {
    'vit-small-p16_8xb128-coslr-100e_in1k': (4e-3, 0.65, 0.1, 384, 224),
    'vit-base-p16_8xb128-coslr-100e_in1k': (4e-3, 0.65, 0.1, 768, 224),
    'vit-base-p16_8xb128-coslr-100e_in1kzip': (4e-3, 0.65, 0.1, 768, 224),
    'vit-base-p16_8xb128-coslr-100e_in1k-384px': (4e-3, 0.65, 0.1, 768, 384),
    'vit-large-p16_8xb128-coslr-100e_in1k': (1e-3, 0.75, 0.2, 1024, 224),
}
FINETUNE = {f'{BENCHMARKS}{k}.py': v for k, v in FINETUNE.items()}
LINEAR = f'{BENCHMARKS}vit-base-p16_8xb2048-linear-coslr-90e_in1k.py'
# Recipes of runs that docs/results.md reports, with numbers of their own.
MINI = 'conmim/conmim_vit-mini-p4_1xb256-amp-coslr-20e_cifar10zip-32px.py'
MINI_FINETUNE = f'{BENCHMARKS}vit-mini-p4_1xb256-coslr-15e_cifar10zip-32px.py'
SOURCE = 'conmim/conmim_vit-base-p16_8xb256-amp-coslr-300e_in1k.py'


def test_the_tables_list_every_config():
    check_table('conmim', [*PRETRAIN, *FINETUNE, LINEAR, MINI, MINI_FINETUNE])


@pytest.mark.parametrize('name', PRETRAIN)
def test_pretraining_numbers(name):
    peak, warmup, epochs, width, blocks, layer_scale = PRETRAIN[name]
    cfg = load(name)
    check_rates(
        cfg,
        peak * 256 / BATCH,
        peak * 256 / BATCH * 1e-6,
        1e-5 * 256 / BATCH,
        batch=BATCH,
        length=epochs,
        warmup=warmup,
    )
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(peak)
    optimizer = dict(cfg.optim_wrapper.optimizer)
    optimizer.pop('lr')
    assert optimizer == dict(
        type='AdamW',
        betas=(0.9, 0.98),
        eps=1e-8,
        weight_decay=0.05,
        fused=True,
    )
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=1.0)
    assert cfg.train_dataloader.batch_size * 8 == BATCH
    hooks = {hook.type: hook for hook in cfg.custom_hooks}
    momentum = hooks['ropim_mm.MomentumCopyHook']
    assert (momentum.start, momentum.end) == (0.996, 1.0)
    check_imagenet_statistics(cfg)
    pipeline = steps(cfg.train_dataloader.dataset.pipeline)
    crop = pipeline['ropim_mm.RandomResizedCrop']
    assert (crop.scale, crop.crop_ratio_range) == (224, (0.08, 1.0))
    assert (crop.interpolation, crop.backend) == ('bicubic', 'torch')
    assert crop.aspect_ratio_range == (3 / 4, 4 / 3)
    assert pipeline['RandomFlip'].prob == 0.5
    # What is before the two views is the same for both.
    assert list(pipeline)[-2:] == ['ropim_mm.TwoViews', 'PackInputs']

    model = build_on_meta(cfg)
    assert (model.mask_ratio, model.mask_cell_size) == (0.75, 2)
    assert model.head.temperature == 0.1
    encoder = model.backbone
    assert (encoder.embed_dims, encoder.num_layers) == (width, blocks)
    assert encoder.patch_resolution == (14, 14)
    backbone = cfg.model.backbone
    assert backbone.drop_path_rate == 0.0
    assert backbone.layer_scale_init_value == layer_scale
    assert backbone.init_cutoff == 0.02
    assert encoder.pos_embed is None
    assert encoder.mask_token.shape == (1, 1, width)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    tables = [n for n in trained if 'position_bias' in n]
    assert tables == ['backbone.rel_pos_bias.relative_position_bias_table']
    assert model.neck.fc0.weight.shape == (4096, width)
    assert model.neck.fc2.weight.shape == (256, 4096)


@pytest.mark.parametrize('name', FINETUNE)
def test_finetuning_numbers(name):
    peak, decay, drop_path, width, side = FINETUNE[name]
    cfg = load(name)
    check_rates(
        cfg,
        peak / 4,
        peak / 4 * 1e-6,
        1e-6 / 4,
        batch=1024,
        length=100,
        warmup=20,
    )
    assert cfg.optim_wrapper.paramwise_cfg == dict(layer_decay_rate=decay)
    assert cfg.optim_wrapper.optimizer.betas == (0.9, 0.999)
    train = steps(cfg.train_dataloader.dataset.pipeline)
    test = steps(cfg.val_dataloader.dataset.pipeline)
    assert list(train) == [
        'ropim_mm.LoadImage',
        'RandomResizedCrop',
        'RandomFlip',
        'RandAugment',
        'RandomErasing',
        'PackInputs',
    ]
    crop = train['RandomResizedCrop']
    assert (crop.scale, crop.interpolation) == (side, 'bicubic')
    # 224 / 0.875, and no margin at 384.
    assert test['ResizeEdge'].scale == {224: 256, 384: 384}[side]
    assert test['CenterCrop'].crop_size == side
    assert cfg.model.train_cfg.augments == [
        dict(type='Mixup', alpha=0.8),
        dict(type='CutMix', alpha=1.0),
    ]
    backbone = cfg.model.backbone
    assert (backbone.drop_path_rate, backbone.final_norm) == (drop_path, False)
    # The momentum copy, not the student.
    assert backbone.init_cfg == dict(
        type='Pretrained', checkpoint='', prefix='momentum.backbone.'
    )
    model = build_on_meta(cfg)
    assert model.backbone.embed_dims == width
    assert model.backbone.mask_token is None
    assert model.backbone.patch_resolution == (side // 16,) * 2
    assert model.head.fc.weight.shape == (1000, width)
    check_layer_scales(cfg, model, decay)


def test_archives():
    names = ['300e_in1kzip', 'benchmarks/vit-base-p16_8xb128-coslr-100e_in1kz']
    pretrain, finetune = (
        load(name)
        for part in names
        for name in configs_of('conmim')
        if part in name
    )
    loaders = (
        pretrain.train_dataloader,
        finetune.train_dataloader,
        finetune.val_dataloader,
    )
    lists = ['train_map.txt', 'train_map.txt', 'val_map.txt']
    assert [x.dataset.map_file for x in loaders] == lists
    assert {x.dataset.type for x in loaders} == {'ropim_mm.ImageZipMap'}
    assert {x.dataset.zip_file for x in loaders} == {'data/imagenet.zip'}


def test_mini_is_ropims_but_for_the_method():
    """So that docs/results.md compares methods and nothing else."""
    theirs = 'vit-mini-p4_1xb256-amp-coslr-20e_cifar10zip-32px.py'
    ours, ropim = load(MINI), load(f'ropim/ropim_{theirs}')
    assert ours.model.backbone.arch == ropim.model.backbone.arch
    for key in ('batch_size', 'num_workers'):
        assert ours.train_dataloader[key] == ropim.train_dataloader[key]
    for key in ('type', 'zip_file', 'prefix'):
        ours_value = ours.train_dataloader.dataset[key]
        assert ours_value == ropim.train_dataloader.dataset[key]
    assert ours.train_cfg == ropim.train_cfg
    # The whole fine-tuning, but for the class and its weights' prefix.
    tuned = load(MINI_FINETUNE).to_dict()
    other = load(MINI_FINETUNE.replace('conmim/', 'ropim/')).to_dict()
    for cfg, prefix in ((tuned, 'momentum.backbone.'), (other, 'backbone.')):
        backbone = cfg['model']['backbone']
        backbone.pop('type')
        assert backbone['init_cfg'].pop('prefix') == prefix
    assert tuned == other


def test_linear_probe_trains_the_classifier_alone():
    cfg = load(LINEAR)
    model = build_on_meta(cfg)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained == ['head.fc.weight', 'head.fc.bias']
    assert isinstance(model.neck.bn, torch.nn.BatchNorm1d)
    assert cfg.model.backbone.init_cfg.prefix == 'momentum.backbone.'


# --- Two steps of each -------------------------------------------------------


@pytest.fixture
def lists(data):
    """Of the archive, beside it."""
    for split, folder in (('train', 'train'), ('val', 'test')):
        (data / f'{split}_map.txt').write_text(
            ''.join(f'{folder}/class{i % 2}/{i}.png {i % 2}\n'
                    for i in range(4))
        )  # fmt: skip


def shrink_projector(cfg):
    if cfg.model.type == 'ropim_mm.ConMIM':
        cfg.model.neck.update(hid_channels=32, out_channels=8)


# Made small, configs that differ in size or length alone are the same.
RUNS = [
    *(n for n in PRETRAIN if 'base' in n and '300e' in n),
    'conmim/conmim_vit-large-p16_8xb256-amp-coslr-1600e_in1k.py',
    MINI,
]
TUNING_RUNS = [*(n for n in FINETUNE if 'base' in n), LINEAR, MINI_FINETUNE]


@pytest.mark.slow
@pytest.mark.parametrize('name', RUNS)
def test_pretraining_runs(name, data, lists, tmp_path):
    # 4 x 4 patches: with fewer, masks of 2 x 2 would hide all.
    side = 32 if 'p4_' in name else 64
    check_pretraining_runs(name, data, tmp_path, shrink_projector, side)


@pytest.mark.slow
@pytest.mark.parametrize('name', TUNING_RUNS)
def test_classification_runs(name, data, lists, tmp_path):
    check_classification_runs(name, SOURCE, data, tmp_path, shrink_projector)
