"""A COCO dataset of a few small pictures, for the tests of detectors."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from config_checks import ARCH, WIDTH

# COCO's numbers of its 80 classes have gaps.
GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
NUMBERS = [i for i in range(1, 91) if i not in GAPS]
SIDE = 64
SIZES = ((48, 64), (64, 40), (64, 64), (32, 64))


def _operators_are_there() -> bool:
    try:
        importlib.import_module('mmcv._ext')
    except ImportError:
        return False
    return True


needs_operators = pytest.mark.skipif(
    not _operators_are_there(),
    reason="MMCV's compiled operators are not installed or do not fit: run "
    '`make detection`',
)


def run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed code of a mask, bool (H, W): column by column."""
    flat = mask.flatten(order='F').astype(int)
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    # The first count is of zeros.
    if flat[0]:
        counts = [0, *counts]
    return dict(size=list(mask.shape), counts=counts)


def write(root: Path, sizes: tuple[tuple[int, int], ...] = SIZES) -> Path:
    """Pictures with a rectangle of each kind of annotation, twice.

    Each has a person given by a polygon, a horse given by run lengths and a
    crowd of persons, which is given by run lengths, too.

    Args:
        root: Folder in which ``train2017``, ``val2017`` and ``annotations``
            are made, with the same pictures.
        sizes: (height, width) of the pictures, in pixels; at least 32.

    Returns:
        Path: ``root``.
    """
    # Cannot be imported everywhere, see needs_operators.
    from mmdet.datasets import CocoDataset

    classes = CocoDataset.METAINFO['classes']
    random = np.random.default_rng(0)
    images, annotations = [], []
    for number, (height, width) in enumerate(sizes, start=1):
        pixels = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
        name = f'{number:012}.png'
        images.append(
            dict(id=number, file_name=name, height=height, width=width)
        )
        # (class, crowd, left, top, width, height, channel that is bright)
        shapes = (
            (1, 0, 4, 6, 12, 20, 0),
            (19, 0, 18, 4, 14, 16, 1),
            (1, 1, width - 10, height - 8, 8, 6, 2),
        )
        for kind, crowd, x, y, w, h, channel in shapes:
            pixels[y : y + h, x : x + w, channel] = 220
            mask = np.zeros((height, width), bool)
            mask[y : y + h, x : x + w] = True
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=number,
                    category_id=kind,
                    iscrowd=crowd,
                    bbox=[x, y, w, h],
                    area=w * h,
                    segmentation=(
                        [polygon]
                        if kind == 1 and not crowd
                        else run_lengths(mask)
                    ),
                )
            )
        for split in ('train2017', 'val2017'):
            (root / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / split / name)
    content = dict(
        images=images,
        annotations=annotations,
        categories=[
            dict(id=i, name=n) for i, n in zip(NUMBERS, classes, strict=True)
        ],
    )
    (root / 'annotations').mkdir(exist_ok=True)
    for split in ('train2017', 'val2017'):
        path = root / 'annotations' / f'instances_{split}.json'
        path.write_text(json.dumps(content))
    return root


def change_side(cfg: Config, side: int) -> None:
    """Let a config resize, cut and fill up to another size than 1024.

    Args:
        cfg: Changed in place.
        side: Pixels.
    """
    cfg.model.data_preprocessor.pad_size_divisor = side
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        for step in loader.dataset.pipeline:
            for key in ('scale', 'crop_size'):
                if key in step:
                    step[key] = (side, side)


def shrink(cfg: Config, root: Path) -> None:
    """The same config with a tiny network on these pictures, for two steps.

    Args:
        cfg: Of a Mask R-CNN on a plain encoder; changed in place.
        root: Of :func:`write`.
    """
    change_side(cfg, SIDE)
    model = cfg.model
    model.backbone.update(
        arch=ARCH, img_size=SIDE, window_size=3, global_blocks=(1,)
    )
    model.neck.update(in_channels=WIDTH, out_channels=WIDTH)
    model.rpn_head.update(in_channels=WIDTH, feat_channels=WIDTH)
    heads = model.roi_head
    for part in ('bbox_roi_extractor', 'mask_roi_extractor'):
        heads[part].out_channels = WIDTH
    for part in ('bbox_head', 'mask_head'):
        heads[part].update(in_channels=WIDTH, conv_out_channels=WIDTH)
    heads.bbox_head.fc_out_channels = 32
    # Untrained scores are all alike: 1 of 81.
    model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=10)
    cfg.test_dataloader = cfg.val_dataloader
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.pin_memory = False
        loader.dataset.data_root = str(root)
    cfg.val_evaluator.ann_file = str(
        root / 'annotations' / 'instances_val2017.json'
    )
    cfg.test_evaluator = cfg.val_evaluator
    cfg.train_cfg.max_iters = 2
    cfg.default_hooks.logger.interval = 1
