"""The recipes of MIMDet with a tiny network, for tests."""

import json
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS, DefaultScope

import tiny_coco
from config_checks import ARCH, WIDTH


def smaller(step: ConfigDict) -> None:
    """A tenth of the recipe's sizes, in a step of a pipeline."""
    if 'scales' in step:
        step.scales = [(s // 10, 133) for s, _ in step.scales]
    if 'scale' in step:
        step.scale = (133, 80)
    if 'crop_size' in step:
        step.crop_size = (38, 60)
    for branch in step.get('transforms', ()):
        for each in branch:
            smaller(each)


def shrink(cfg: Config, root: Path) -> None:
    """The same config with a tiny network on tiny photos, for two steps.

    Args:
        cfg: Changed in place.
        root: Of :func:`tiny_coco.write`.
    """
    model = cfg.model
    backbone = model.backbone
    # That of a plain encoder is for others.
    model.backbone = ConfigDict()
    tiny_coco.shrink(cfg, root)
    model.backbone = backbone
    backbone.update(decoder_dims=8, decoder_depth=1, decoder_heads=2)
    backbone.encoder.update(arch=ARCH, img_size=64)
    # MMDetection numbers the classes that the file has.
    content = json.loads(Path(cfg.val_evaluator.ann_file).read_text())
    for head in (model.roi_head.bbox_head, model.roi_head.mask_head):
        head.num_classes = len(content['categories'])
    model.neck.in_channels = [WIDTH // 4, WIDTH // 2, 8, 8]
    model.data_preprocessor.pad_size_divisor = 32
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        for step in loader.dataset.pipeline:
            smaller(step)


def build(cfg: Config, device: str = 'cpu') -> BaseModel:
    """The detector of a config."""
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device(device):
        return MODELS.build(cfg.model)


def dataset(cfg: Config, loader: str) -> BaseDataset:
    """The data of one of the loaders of a config."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DATASETS.build(cfg[loader].dataset)
