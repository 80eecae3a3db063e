"""What the tests of configs share: reading, checking, two steps of training.

A method's own test file has its numbers, and says how its model is made
smaller where width and size of image are not enough.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from mmpretrain.registry import MODELS
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ropim_mm.engine import launch
from ropim_mm.evaluation.synthetic import image_size, synthetic_batch
from ropim_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
# Folders of configs that are not of one method.
NO_METHODS = ('_base_', 'peers')
# What is in the names of configs of MMSegmentation and MMDetection.
DENSE = ('upernet', 'mask-rcnn')

# The tiny network that every config is trained with, and its images' side.
WIDTH = 16
BLOCKS = 2
ARCH = dict(
    embed_dims=WIDTH, num_layers=BLOCKS, num_heads=2, feedforward_channels=32
)
SIDE = 32

Change = Callable[[Config], None]


def methods() -> list[str]:
    """Folders of configs, one a method."""
    return sorted(
        path.name
        for path in CONFIGS.iterdir()
        if path.is_dir() and path.name not in NO_METHODS
    )


def configs_of(method: str) -> list[str]:
    """A method's configs of pretraining and classification.

    Returns:
        list[str]: Names relative to the folder of all configs.
    """
    return [
        name
        for name in _all_configs(method)
        if not any(task in name for task in DENSE)
    ]


def dense_configs(task: str) -> list[str]:
    """All methods' configs of segmentation ('upernet') or detection.

    Args:
        task: One of ``DENSE``.
    """
    names = (name for method in methods() for name in _all_configs(method))
    return [name for name in names if task in name]


def _all_configs(method: str) -> list[str]:
    return sorted(
        path.relative_to(CONFIGS).as_posix()
        for path in (CONFIGS / method).rglob('*.py')
    )


def load(name: str) -> Config:
    return Config.fromfile(CONFIGS / name)


def steps(pipeline: list[dict]) -> dict[str, dict]:
    """The steps of a pipeline by their types."""
    return {step['type']: step for step in pipeline}


def joined(dataset: dict) -> list[dict]:
    """The data sets that a ``ConcatDataset`` joins; else the one given."""
    return dataset.get('datasets', [dataset])


def build_on_meta(cfg: Config) -> torch.nn.Module:
    """The config's model, without memory for its weights."""
    scope = cfg.default_scope
    with torch.device('meta'), MODELS.switch_scope_and_registry(scope) as room:
        return room.build(cfg.model)


def forward_flops(cfg: Config, model: torch.nn.Module) -> int:
    """Multiply-adds of one image's way forward, without running it.

    In pretraining all that a step does before going back: every window, every
    region, the momentum copy too. Otherwise the features and the classifier.

    Args:
        cfg: A config.
        model: Of :func:`build_on_meta`.
    """
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        with sdpa_kernel(SDPBackend.MATH), autocast_that_knows_meta():
            if isinstance(model, BaseSelfSupervisor):
                with DefaultScope.overwrite_default_scope('mmpretrain'):
                    batch = synthetic_batch(cfg, 1)
                    preprocess = MODELS.build(cfg.data_preprocessor)
                model.loss(*to_meta(preprocess(batch, True)))
            else:
                size = image_size(cfg)
                model(torch.empty(1, 3, *size, device='meta'))
    # The counter counts a multiplication and an addition as two.
    return counter.get_total_flops() // 2


@contextmanager
def autocast_that_knows_meta() -> Iterator[None]:
    """PyTorch's refuses that device even where it is to do nothing."""
    autocast = torch.autocast

    def without_meta(device_type: str, *args, **kwargs):
        if device_type == 'meta':
            return nullcontext()
        return autocast(device_type, *args, **kwargs)

    with mock.patch.object(torch, 'autocast', without_meta):
        yield


def to_meta(batch: dict) -> tuple:
    """Inputs and samples of a batch, without values."""

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tensor.shape, device='meta')

    inputs, samples = batch['inputs'], batch['data_samples']
    if isinstance(inputs, list):
        inputs = [empty(view) for view in inputs]
    else:
        inputs = empty(inputs)
    return inputs, [sample.to('meta') for sample in samples]


def check_table(method: str, names: Iterable[str]) -> None:
    """The tables of a test file list each config of the method once."""
    assert sorted(names) == configs_of(method)


def check_rates(
    cfg: Config,
    peak: float,
    start: float,
    end: float,
    *,
    batch: int,
    length: int,
    warmup: int,
    per: int = 256,
) -> None:
    """Linear warm-up, then half a cosine, to the end of the run.

    Args:
        cfg: The config.
        peak: Rate after the warm-up, for a batch of ``per`` images.
        start: Rate of the first step, likewise.
        end: Rate at the end, likewise.
        batch: Images of all devices.
        length: Of the run, in epochs; in updates where the config counts
            those.
        warmup: Length of the warm-up, likewise.
        per: What rates refer to.
    """
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(
        peak * batch / per, rel=1e-12
    )
    assert cfg.auto_scale_lr.base_batch_size == batch
    by_epoch = cfg.train_cfg.get('by_epoch', True)
    assert cfg.train_cfg['max_epochs' if by_epoch else 'max_iters'] == length
    linear, cosine = cfg.param_scheduler
    assert linear.type == 'LinearLR'
    assert linear.start_factor == pytest.approx(start / peak, rel=1e-12)
    assert (linear.begin, linear.end) == (0, warmup)
    assert cosine.type == 'CosineAnnealingLR'
    assert cosine.eta_min == pytest.approx(end * batch / per, rel=1e-12)
    assert (cosine.begin, cosine.end) == (warmup, length)
    assert 'T_max' not in cosine
    for scheduler in (linear, cosine):
        assert scheduler.by_epoch is by_epoch
        assert scheduler.get('convert_to_iter_based', False) is by_epoch


def check_layer_scales(
    cfg: Config, model: torch.nn.Module, decay: float
) -> None:
    """Rates of a fine-tuning grow by 1/decay from depth to depth."""
    wrapper = cfg.optim_wrapper
    groups = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type=wrapper.constructor,
            optim_wrapper_cfg=dict(optimizer=wrapper.optimizer),
            paramwise_cfg=wrapper.paramwise_cfg,
        )
    ).param_groups(model)
    depths = model.backbone.num_layers + 2
    assert sorted({g['lr_scale'] for g in groups}, reverse=True) == (
        pytest.approx([decay**i for i in range(depths)])
    )


def check_imagenet_statistics(cfg: Config) -> None:
    norm = cfg.data_preprocessor
    assert np.allclose(np.array(norm.mean) / 255, (0.485, 0.456, 0.406))
    assert np.allclose(np.array(norm.std) / 255, (0.229, 0.224, 0.225))


# --- Two steps of training --------------------------------------------------


def shrink(cfg: Config, root: Path, side: int = SIDE) -> None:
    """The same config on a few small images, with a tiny network, two steps.

    Widths of necks and heads that follow that of the encoder are changed with
    it.

    Args:
        cfg: Changed in place.
        root: Folder of generated data sets, of the fixture ``data``.
        side: Of images.
    """
    model = cfg.model
    model.backbone.update(arch=ARCH, img_size=side)
    if 'frozen_stages' in model.backbone:
        model.backbone.frozen_stages = BLOCKS
    for part in (model.get('neck'), model.get('head')):
        for key in ('embed_dims', 'input_features', 'in_channels'):
            if part is not None and key in part:
                part[key] = WIDTH
    for name in ('train', 'val', 'test'):
        loader = cfg.get(f'{name}_dataloader')
        if loader is None:
            continue
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.pin_memory = False
        for dataset in joined(loader.dataset):
            if 'zip_file' in dataset:
                dataset.zip_file = str(root / 'images.zip')
            else:
                dataset.data_root = str(root)
            if name == 'train':
                dataset.indices = 4
            for step in dataset.pipeline:
                for key in ('scale', 'crop_size'):
                    if key in step:
                        step[key] = side + (step['type'] == 'ResizeEdge') * 4
    if cfg.train_cfg.get('by_epoch', True):
        cfg.train_cfg.max_epochs = 1
    else:
        cfg.train_cfg.max_iters = 2
    cfg.default_hooks.logger.interval = 1


def run(cfg: Config, work_dir: Path) -> list[dict]:
    """Trains, and gives the lines of the log."""
    notes = launch.prepare_train(cfg, work_dir=str(work_dir))
    launch.train(cfg, notes)
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in log.read_text().splitlines()]


def check_steps(cfg: Config, lines: list[dict]) -> None:
    """Two steps with finite losses, and rates that rise as configured."""
    lines = [line for line in lines if 'loss' in line]
    assert len(lines) == 2
    for line in lines:
        losses = [v for k, v in line.items() if k.startswith('loss')]
        assert np.isfinite(losses).all()
    linear = cfg.param_scheduler[0]
    # Two steps an epoch: the rate rises linearly over the warm-up's.
    per_epoch = 2 if linear.get('by_epoch', True) else 1
    start, last = linear.start_factor, per_epoch * linear.end - 1
    decay = cfg.optim_wrapper.get('paramwise_cfg', {}).get(
        'layer_decay_rate', 1.0
    )
    # The log shows the first group: the embeddings, below the blocks.
    first = cfg.optim_wrapper.optimizer.lr * decay ** (BLOCKS + 1)
    assert [line['lr'] for line in lines] == pytest.approx(
        [first * start, first * (start + (1 - start) / last)]
    )


def check_pretraining_runs(
    name: str,
    root: Path,
    work_dir: Path,
    change: Change | None = None,
    side: int = SIDE,
) -> Config:
    """Trains a pretraining config for two steps on generated images.

    Args:
        name: Of the config.
        root: Folder of generated data sets, of the fixture ``data``.
        work_dir: For the run.
        change: What else to change in the config, after :func:`shrink`.
        side: Of images.

    Returns:
        Config: What was run.
    """
    cfg = launch.load_config(str(CONFIGS / name))
    shrink(cfg, root, side)
    if 'custom' in name:  # only there is a broken image left out
        cfg.train_dataloader.dataset.data_prefix = 'train'
    else:
        for dataset in joined(cfg.train_dataloader.dataset):
            dataset.indices = [-4, -3, -2, -1]
    if change is not None:
        change(cfg)
    check_steps(cfg, run(cfg, work_dir))
    (written,) = work_dir.glob('*_[0-9]*.pth')
    assert re.fullmatch(r'epoch_1|iter_2', written.stem)
    (log,) = work_dir.glob('*/*.log')
    skipped = re.findall('By epoch 1, .*', log.read_text())
    if 'custom' in name:
        assert len(skipped) == 1
        assert 'of 1 distinct files' in skipped[0]
        assert 'train/broken.jpg: the file is empty' in skipped[0]
    else:
        assert not skipped
    return cfg


def check_classification_runs(
    name: str,
    source: str,
    root: Path,
    tmp_path: Path,
    change: Change | None = None,
    side: int = SIDE,
) -> None:
    """Trains a fine-tuning or linear config from pretrained tiny weights.

    Args:
        name: Of the config.
        source: Config of the pretraining.
        root: Folder of generated data sets, of the fixture ``data``.
        tmp_path: For the weights and the run.
        change: What else to change, in both configs, after :func:`shrink`.
        side: Of images.
    """
    cfg = launch.load_config(str(CONFIGS / name))
    before = launch.load_config(str(CONFIGS / source))
    for config in (cfg, before):
        shrink(config, root, side)
        if change is not None:
            change(config)
    patch = cfg.model.backbone.patch_size
    for part in ('backbone', 'neck', 'head'):
        if 'patch_size' in before.model.get(part, ()):
            before.model[part].patch_size = patch
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        weights = MODELS.build(before.model).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'pretrained.pth')

    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'pretrained.pth')
    lines = run(cfg, tmp_path / 'run')
    check_steps(cfg, lines)
    assert 0 <= lines[-1]['accuracy/top1'] <= 100
    trained = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=False)
    key = 'backbone.patch_embed.projection.weight'
    start, end = weights[key], trained['state_dict'][key]
    moved = (start - end).abs().max().item()
    assert moved == 0 if '-linear-' in name else 0 < moved < 1e-3
