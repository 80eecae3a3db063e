"""The configs of R-MAE: what they say, that they build, that they train."""

import pytest
import torch

from config_checks import (
    WIDTH,
    build_on_meta,
    check_classification_runs,
    check_imagenet_statistics,
    check_layer_scales,
    check_pretraining_runs,
    check_rates,
    check_table,
    joined,
    load,
    steps,
)
from ropim_mm.datasets.fh_masks import FHSettings, create_maps
from ropim_mm.evaluation.benchmark_loader import training_pipeline
from ropim_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS

BENCHMARKS = 'rmae/benchmarks/'
BASE = 'rmae/rmae_vit-base-p16_8xb512-amp-coslr-'
SOURCE = f'{BASE}800e_in1k.py'
PIXELS = f'{BASE}800e_in1k-pixels.py'
# Length and warm-up: epochs, on COCO updates.
PRETRAIN = {
    SOURCE: (800, 40),
    PIXELS: (800, 40),
    f'{BASE}800e_custom.py': (800, 40),
    f'{BASE}4000e_coco.py': (144000, 12000),
    f'{BASE}4000e_coco-unlabeled.py': (144000, 12000),
}
FINETUNE = f'{BENCHMARKS}vit-base-p16_8xb128-coslr-100e_in1k.py'
LINEAR = f'{BENCHMARKS}vit-base-p16_8xb2048-linear-coslr-90e_in1k.py'
# Recipes of runs that docs/results.md reports, with numbers of their own.
MINI = 'rmae/rmae_vit-mini-p4_1xb256-amp-coslr-20e_cifar10zip-32px.py'
MINI_FINETUNE = f'{BENCHMARKS}vit-mini-p4_1xb256-coslr-15e_cifar10zip-32px.py'


def test_the_tables_list_every_config():
    check_table('rmae', [*PRETRAIN, FINETUNE, LINEAR, MINI, MINI_FINETUNE])


@pytest.mark.parametrize('name', PRETRAIN)
def test_pretraining_numbers(name):
    length, warmup = PRETRAIN[name]
    cfg = load(name)
    check_rates(
        cfg, 1.5e-4, 1.5e-10, 0.0, batch=4096, length=length, warmup=warmup
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
    assert cfg.train_dataloader.batch_size * 8 == 4096
    if length == 800:
        # Images of ImageNet, whole batches: the updates of the release.
        assert 800 * (1281167 // 4096) == 249600
        assert 40 * (1281167 // 4096) == 12480

    pipeline = steps(training_pipeline(cfg))
    crop = pipeline['ropim_mm.RandomResizedCrop']
    assert (crop.scale, crop.crop_ratio_range) == (224, (0.2, 1.0))
    assert crop.aspect_ratio_range == (3 / 4, 4 / 3)
    assert (crop.interpolation, crop.backend) == ('bicubic', 'torch')
    assert pipeline['RandomFlip'].prob == 0.5
    check_imagenet_statistics(cfg)
    if name != PIXELS:
        select = pipeline['ropim_mm.SelectRegions']
        assert (select.num_regions, select.patch_size) == (8, 16)
        assert select.sample_type == 'random'
        assert select.filter_small_patches is False
        assert cfg.data_preprocessor.type == 'ropim_mm.RegionDataPreprocessor'

    model = build_on_meta(cfg)
    assert model.num_regions == (0 if name == PIXELS else 8)
    assert (model.mask_ratio, model.region_mask_ratio) == (0.75, 0.75)
    assert (model.pixel_loss_weight, model.region_loss_weight) == (1.0, 1.0)
    encoder = model.backbone
    assert (encoder.embed_dims, encoder.num_layers) == (768, 12)
    assert encoder.patch_resolution == (14, 14)
    assert not encoder.pos_embed.requires_grad
    assert model.head.norm_pix is True
    assert len(model.neck.decoder_blocks) == 8
    assert model.neck.decoder_blocks[0].attn.num_heads == 16
    assert model.neck.decoder_pred.weight.shape == (768, 512)
    tokens = {'backbone.cls_token', 'neck.mask_token'}
    if name != PIXELS:
        branch = model.region_branch
        assert branch.bg_loss_weight == 1.0
        assert len(branch.encoder.layers) == 1
        assert branch.encoder.layers[0].attn.num_heads == 8
        assert branch.encoder.patch_embed.projection.weight.shape == (
            (128, 1, 16, 16)
        )
        assert len(branch.memory.decoder_blocks) == 8
        assert branch.memory.decoder_blocks[0].attn.num_heads == 8
        assert len(branch.layers) == 0
        assert branch.pred.weight.shape == (256, 128)
        tokens.add('region_branch.memory.mask_token')

    # Only LayerNorms and biases do not decay.
    decayed, plain = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type=wrapper.constructor,
            optim_wrapper_cfg=dict(optimizer=wrapper.optimizer),
            paramwise_cfg=wrapper.paramwise_cfg,
        )
    ).param_groups(model)
    assert (decayed['weight_decay'], plain['weight_decay']) == (0.05, 0.0)
    assert tokens <= set(decayed['param_names'])
    assert all(p.ndim == 1 for p in plain['params'])


def test_pixels_alone_differs_in_the_regions_alone():
    ours, theirs = load(PIXELS).to_dict(), load(SOURCE).to_dict()
    assert ours['model'].pop('num_regions') == 0
    assert theirs['model'].pop('num_regions') == 8
    for key in ('model', 'optim_wrapper', 'param_scheduler', 'train_cfg'):
        assert ours[key] == theirs[key]
    crops = [
        steps(training_pipeline(load(n)))['ropim_mm.RandomResizedCrop']
        for n in (PIXELS, SOURCE)
    ]
    assert crops[0] == crops[1]


def test_finetuning_numbers():
    cfg = load(FINETUNE)
    check_rates(cfg, 5e-4, 5e-8, 2.5e-7, batch=1024, length=100, warmup=5)
    wrapper = cfg.optim_wrapper
    assert wrapper.optimizer.lr == pytest.approx(2e-3)
    assert wrapper.optimizer.betas == (0.9, 0.999)
    assert cfg.param_scheduler[1].eta_min == pytest.approx(1e-6)
    assert wrapper.paramwise_cfg == dict(layer_decay_rate=0.65)
    assert 'clip_grad' not in wrapper
    assert cfg.model.head.init_cfg.std == pytest.approx(2e-5)
    backbone = cfg.model.backbone
    assert backbone.drop_path_rate == 0.1
    assert backbone.init_cfg == dict(
        type='Pretrained', checkpoint='', prefix='backbone.'
    )
    model = build_on_meta(cfg)
    assert model.backbone.pos_embed.requires_grad
    assert model.backbone.out_type == 'avg_featmap'
    assert model.backbone.final_norm is False
    assert model.head.fc.weight.shape == (1000, 768)
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
    assert model.backbone.out_type == 'cls_token'
    assert model.data_preprocessor.batch_augments is None


def test_the_small_recipe_has_the_encoder_data_and_budget_of_ropims():
    for own in (MINI, MINI_FINETUNE):
        ours, theirs = load(own), load(own.replace('rmae', 'ropim'))
        for key in ('arch', 'img_size', 'patch_size'):
            assert ours.model.backbone[key] == theirs.model.backbone[key]
        assert ours.train_cfg == theirs.train_cfg
        for key in ('batch_size', 'num_workers'):
            assert ours.train_dataloader[key] == theirs.train_dataloader[key]
        for key in ('zip_file', 'prefix'):
            assert (
                ours.train_dataloader.dataset[key]
                == (theirs.train_dataloader.dataset[key])
            )
    ours, theirs = (
        load(MINI_FINETUNE.replace('rmae', method)).to_dict()
        for method in ('rmae', 'ropim')
    )
    for key in ('train_dataloader', 'val_dataloader', 'param_scheduler'):
        assert ours[key] == theirs[key]
    assert ours['model']['head'] == theirs['model']['head']
    model = build_on_meta(load(MINI))
    assert model.num_visible((8, 8)) == (16, 16)
    # The decoders together are smaller than the encoder.
    parts = (model.neck, model.region_branch, model.backbone)
    pixels, regions, encoder = (
        sum(p.numel() for p in part.parameters()) for part in parts
    )
    assert pixels + regions < encoder


# --- Two steps of each -------------------------------------------------------


@pytest.fixture(scope='session')
def region_maps(data, tmp_path_factory):
    """Label maps of the generated images: (folder's, archive's)."""
    root = tmp_path_factory.mktemp('maps')
    settings = FHSettings((100,), (20,))
    for source, name in (
        (data / 'train', 'train'),
        (data / 'images.zip', 'z'),
    ):
        create_maps(
            source,
            root / name,
            settings,
            workers=0,
            on_error='skip',
        )
    # So that the broken image is found out only when it is read.
    whole, broken = root / 'train/class0/0.png', root / 'train/broken.png'
    broken.write_bytes(whole.read_bytes())
    return root


@pytest.fixture
def smaller(data, region_maps):
    """The region branch made small, data sets pointed at generated files."""

    def change(cfg):
        model = cfg.model
        if model.type != 'ropim_mm.RMAE':
            return
        side = model.backbone.img_size
        model.neck.update(
            img_size=side, decoder_dims=8, decoder_depth=1, decoder_heads=2
        )
        model.region_branch.update(
            embed_dims=WIDTH,
            img_size=side,
            enc_dims=8,
            enc_heads=2,
            dec_dims=8,
            dec_heads=2,
            cross_layers=1,
        )
        dataset = cfg.train_dataloader.dataset
        for part in joined(dataset):
            if part.type == 'ropim_mm.RegionZip':
                part.data_prefix.region_path = str(region_maps / 'z')
            elif part.type == 'ropim_mm.RegionDataset':
                part.update(
                    data_root='',
                    data_prefix=dict(
                        img_path=str(data / 'train'),
                        region_path=str(region_maps / 'train'),
                    ),
                )

    return change


@pytest.mark.slow
@pytest.mark.parametrize('name', [*PRETRAIN, MINI])
def test_pretraining_runs(name, data, smaller, tmp_path):
    side = 32 if name == MINI else 64
    check_pretraining_runs(name, data, tmp_path, smaller, side)


@pytest.mark.slow
@pytest.mark.parametrize('name', [FINETUNE, LINEAR, MINI_FINETUNE])
def test_classification_runs(name, data, smaller, tmp_path):
    # The region branch has the patches of the encoder.
    source = MINI if name == MINI_FINETUNE else SOURCE
    check_classification_runs(name, source, data, tmp_path, smaller)
