"""Every config: what it says, that it builds, and that it trains."""

import ast
import json
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from PIL import Image

from ropim_mm.checkpoints.reading import CheckpointError
from ropim_mm.engine import launch
from ropim_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
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
SMALL = sorted(
    p.relative_to(CONFIGS).as_posix()
    for p in (CONFIGS / 'ropim').rglob('*vit-mini-*.py')
)
SMALL_PRETRAIN = [n for n in SMALL if n.startswith('ropim/ropim_')]
SMALL_FINETUNE = [n for n in SMALL if n.startswith(BENCHMARKS)]
ALL = [*PRETRAIN, *FINETUNE, LINEAR, *SMALL]


def load(name: str) -> Config:
    return Config.fromfile(CONFIGS / name)


def steps(pipeline: list[dict]) -> dict[str, dict]:
    return {step['type']: step for step in pipeline}


def test_the_table_lists_every_config():
    found = {
        p.relative_to(CONFIGS).as_posix()
        for p in (CONFIGS / 'ropim').rglob('*.py')
    }
    assert found == set(ALL)


@pytest.mark.parametrize(
    'path', sorted(CONFIGS.rglob('*.py')), ids=lambda p: p.stem
)
def test_text_without_logic(path):
    """Assignments of data and arithmetic; bases of this repository only.

    A list may take over what follows an index in a list of its base.
    """
    text = path.read_text()
    allowed = (
        ast.Module, ast.Assign, ast.Name, ast.Load, ast.Store, ast.Constant,
        ast.List, ast.Tuple, ast.Dict, ast.keyword, ast.BinOp, ast.Mult,
        ast.Div, ast.Call, ast.Attribute, ast.UnaryOp, ast.USub,
        ast.Starred, ast.Subscript, ast.Slice,
    )  # fmt: skip
    tree = ast.parse(text)
    for node in ast.walk(tree):
        assert isinstance(node, allowed), ast.unparse(node)
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) == 'dict'
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node.value) == '_base_'
        if isinstance(node, (ast.Starred, ast.Subscript)):
            assert re.fullmatch(r'\*?_base_\.\w+(\[\d:\])?', ast.unparse(node))
    assert len(text.splitlines()) <= 90
    for node in tree.body:
        if ast.unparse(node.targets[0]) != '_base_':
            continue
        bases = ast.literal_eval(node.value)
        for base in [bases] if isinstance(bases, str) else bases:
            target = (path.parent / base).resolve()
            assert target.is_file(), base
            assert target.is_relative_to(CONFIGS)


@pytest.mark.parametrize('name', ALL)
def test_what_all_share(name):
    cfg = load(name)
    assert cfg.default_scope == 'mmpretrain'
    assert cfg.custom_imports == dict(
        imports=['ropim_mm'], allow_failed_imports=False
    )
    assert cfg.resume is False
    assert cfg.randomness == dict(seed=0, diff_rank_seed=True)
    assert cfg.optim_wrapper.type == 'ropim_mm.AutocastOptimWrapper'
    assert cfg.optim_wrapper.dtype == 'bfloat16'
    hooks = [hook.type for hook in cfg.custom_hooks]
    assert hooks[0] == 'ropim_mm.CheckpointCoverageHook'
    skips = cfg.train_dataloader.dataset.pipeline[0].get('on_error') == 'skip'
    assert ('ropim_mm.SkippedImagesHook' in hooks) is skips
    assert ('custom' in name) is skips
    checkpoint = cfg.default_hooks.checkpoint
    assert checkpoint.max_keep_ckpts == 3
    assert checkpoint.save_last is True
    assert cfg.train_dataloader.drop_last is True
    assert cfg.train_dataloader.sampler == dict(
        type='DefaultSampler', shuffle=True
    )
    devices, batch = map(int, re.search(r'_(\d+)xb(\d+)-', name).groups())
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr == dict(base_batch_size=devices * batch)
    epochs = int(re.search(r'-(\d+)e_', name)[1])
    assert cfg.train_cfg.max_epochs == epochs
    for loader in ('val_dataloader', 'test_dataloader'):
        if loader in cfg:
            assert cfg[loader].dataset.test_mode is True
            assert cfg[loader].drop_last is False
            assert cfg[loader].sampler.shuffle is False
    assert cfg.get('test_dataloader') == cfg.get('val_dataloader')


def check_schedule(cfg, rates, epochs, batch, warmup=5):
    peak, start, end = rates
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(
        peak * batch / 512, rel=1e-12
    )
    assert cfg.auto_scale_lr.base_batch_size == batch
    linear, cosine = cfg.param_scheduler
    assert linear.type == 'LinearLR'
    assert linear.start_factor == pytest.approx(start / peak, rel=1e-12)
    assert (linear.begin, linear.end) == (0, warmup)
    assert cosine.type == 'CosineAnnealingLR'
    assert cosine.eta_min == pytest.approx(end * batch / 512, rel=1e-12)
    assert (cosine.begin, cosine.end) == (warmup, epochs)
    assert 'T_max' not in cosine
    for scheduler in (linear, cosine):
        assert scheduler.by_epoch and scheduler.convert_to_iter_based


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
    assert (crop.interpolation, crop.backend) == ('bilinear', 'pillow')
    assert pipeline['RandomFlip'].prob == 0.5
    norm = cfg.data_preprocessor
    assert np.allclose(np.array(norm.mean) / 255, (0.485, 0.456, 0.406))
    assert np.allclose(np.array(norm.std) / 255, (0.229, 0.224, 0.225))
    # Only MMPretrain's CIFAR gives pixels as red, green, blue.
    assert norm.to_rgb is ('ropim_mm.LoadImage' in pipeline)

    with torch.device('meta'):
        model = MODELS.build(cfg.model)
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

    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert model.head.fc.weight.shape == (classes, width)
    assert model.backbone.patch_size == (patch, patch)
    names = [n for n, _ in model.named_parameters() if 'position_bias' in n]
    assert names == [
        f'backbone.layers.{i}.attn.relative_position_bias_table'
        for i in range(12)
    ]
    groups = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type=wrapper.constructor,
            optim_wrapper_cfg=dict(optimizer=wrapper.optimizer),
            paramwise_cfg=wrapper.paramwise_cfg,
        )
    ).param_groups(model)
    scales = sorted({g['lr_scale'] for g in groups}, reverse=True)
    assert scales == pytest.approx([decay**i for i in range(14)])


def test_linear_probe_numbers():
    cfg = load(LINEAR)
    assert cfg.optim_wrapper.optimizer == dict(
        type='LARS', lr=0.1 * 16384 / 256, momentum=0.9, weight_decay=0.0
    )
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(6.4)
    linear, cosine = cfg.param_scheduler
    assert (linear.start_factor, linear.end) == (1e-4, 10)
    assert (cosine.begin, cosine.end, cosine.eta_min) == (10, 90, 0.0)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
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


def test_rates_are_written_as_base_times_batch():
    seen = 0
    for path in CONFIGS.rglob('*.py'):
        for field, rate in re.findall(
            r'\b(lr|eta_min)=([^,)\n]+)', path.read_text()
        ):
            if rate == '0.0':
                continue
            seen += 1
            base = '256' if 'linear' in path.stem else '512'
            assert re.fullmatch(rf'[\d.e-]+ \* \d+ / {base}', rate), (
                f'{path.name}: {field}={rate}'
            )
    assert seen >= 20


# --- Two steps of training on generated images -----------------------------

SIDE = 32
ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """Four images a split, in the layout of each data set."""
    root = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    lists = dict(train=[], val=[])
    with zipfile.ZipFile(root / 'images.zip', 'w') as archive:
        for split, zipped in (('train', 'train'), ('val', 'test')):
            for i in range(4):
                name = f'{split}/class{i % 2}/{i}.png'
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
                archive.write(path, f'{zipped}/class{i % 2}/{i}.png')
                lists[split].append((name, i % 2))
    (root / 'meta').mkdir()
    for split, entries in lists.items():
        (root / 'meta' / f'{split}.txt').write_text(
            ''.join(f'{n.split("/", 1)[1]} {y}\n' for n, y in entries)
        )
        (root / f'{split}2017.txt').write_text(
            ''.join(f'{n} {y}\n' for n, y in entries)
        )
    (root / 'train' / 'broken.jpg').write_bytes(b'')
    pixels = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
    batches = [f'cifar-10-batches-py/data_batch_{i}' for i in range(1, 6)]
    batches += ['cifar-10-batches-py/test_batch']
    batches += [f'cifar-100-python/{split}' for split in ('train', 'test')]
    for name in batches:
        (root / name).parent.mkdir(exist_ok=True)
        labels = 'labels' if '-10-' in name else 'fine_labels'
        (root / name).write_bytes(
            pickle.dumps({'data': pixels, labels: [0, 1, 0, 1]})
        )
    return root


def shrink(cfg: Config, root: Path) -> None:
    """The same config on tiny images, with a tiny network, for two steps."""
    cfg.model.backbone.update(arch=ARCH, img_size=SIDE)
    if 'frozen_stages' in cfg.model.backbone:
        cfg.model.backbone.frozen_stages = 2
    if cfg.model.type == 'ropim_mm.ROPIM':
        cfg.model.neck.embed_dims = 16
    else:
        cfg.model.head.in_channels = 16
        if 'neck' in cfg.model:
            cfg.model.neck.input_features = 16
    for name in ('train', 'val', 'test'):
        loader = cfg.get(f'{name}_dataloader')
        if loader is None:
            continue
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.pin_memory = False
        dataset = loader.dataset
        if 'zip_file' in dataset:
            dataset.zip_file = str(root / 'images.zip')
        else:
            dataset.data_root = str(root)
        if name == 'train':
            dataset.indices = 4
        for step in dataset.pipeline:
            for key in ('scale', 'crop_size'):
                if key in step:
                    step[key] = SIDE + (step['type'] == 'ResizeEdge') * 4
    cfg.train_cfg.max_epochs = 1
    cfg.default_hooks.logger.interval = 1


def run(cfg: Config, work_dir: Path) -> list[dict]:
    notes = launch.prepare_train(cfg, work_dir=str(work_dir))
    launch.train(cfg, notes)
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture
def cifar(monkeypatch):
    from mmpretrain.datasets import CIFAR10

    # The generated files have not the sums of the real ones.
    monkeypatch.setattr(CIFAR10, '_check_integrity', lambda self: True)


def check_steps(cfg: Config, lines: list[dict]) -> None:
    lines = [line for line in lines if 'loss' in line]
    assert len(lines) == 2
    assert all(np.isfinite(line['loss']) for line in lines)
    # Two steps an epoch: the rate rises linearly over the warm-up's.
    linear = cfg.param_scheduler[0]
    start, last = linear.start_factor, 2 * linear.end - 1
    decay = cfg.optim_wrapper.get('paramwise_cfg', {}).get(
        'layer_decay_rate', 1.0
    )
    # The log shows the first group: the embeddings, below two blocks.
    first = cfg.optim_wrapper.optimizer.lr * decay**3
    assert [line['lr'] for line in lines] == pytest.approx(
        [first * start, first * (start + (1 - start) / last)]
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', [*PRETRAIN, *SMALL_PRETRAIN])
def test_pretraining_runs(name, data, tmp_path, cifar):
    cfg = launch.load_config(str(CONFIGS / name))
    shrink(cfg, data)
    if 'custom' in name:  # only there is a broken image left out
        cfg.train_dataloader.dataset.data_prefix = 'train'
    else:
        cfg.train_dataloader.dataset.indices = [-4, -3, -2, -1]
    check_steps(cfg, run(cfg, tmp_path))
    assert (tmp_path / 'epoch_1.pth').is_file()
    (log,) = tmp_path.glob('*/*.log')
    skipped = re.findall('By epoch 1, .*', log.read_text())
    if 'custom' in name:
        assert len(skipped) == 1
        assert 'of 1 distinct files' in skipped[0]
        assert 'train/broken.jpg: the file is empty' in skipped[0]
    else:
        assert not skipped


@pytest.mark.slow
@pytest.mark.parametrize('name', [*FINETUNE, LINEAR, *SMALL_FINETUNE])
def test_classification_runs(name, data, tmp_path, cifar):
    cfg = launch.load_config(str(CONFIGS / name))
    patch = cfg.model.backbone.patch_size
    source = Config.fromfile(CONFIGS / next(iter(PRETRAIN)))
    source.model.backbone.update(arch=ARCH, img_size=SIDE, patch_size=patch)
    source.model.neck.update(embed_dims=16, patch_size=patch)
    source.model.head.update(patch_size=patch)
    weights = MODELS.build(source.model).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'pretrained.pth')

    shrink(cfg, data)
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'pretrained.pth')
    work_dir = tmp_path / 'run'
    lines = run(cfg, work_dir)
    check_steps(cfg, lines)
    assert 0 <= lines[-1]['accuracy/top1'] <= 100
    trained = torch.load(work_dir / 'epoch_1.pth', weights_only=False)
    key = 'backbone.patch_embed.projection.weight'
    start, end = weights[key], trained['state_dict'][key]
    moved = (start - end).abs().max().item()
    assert moved == 0 if name == LINEAR else 0 < moved < 1e-3


@pytest.mark.slow
def test_an_empty_checkpoint_is_refused(data, tmp_path):
    name = next(iter(FINETUNE))
    cfg = launch.load_config(str(CONFIGS / name))
    shrink(cfg, data)
    with pytest.raises(CheckpointError, match="checkpoint is ''. Give one"):
        run(cfg, tmp_path)
    assert not list(tmp_path.rglob('*.pth'))
