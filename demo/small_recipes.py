"""The published recipes made small: minutes on two cores instead of days.

Each function takes a recipe of ``configs/`` and changes what a small encoder
and a few small photos need: widths, sizes of images, schedules, data. What
the recipe does is left as it is: losses, augmentation, layer decay, metrics.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image

from ropim_mm.datasets.transforms.loading import decode_image

ROOT = Path(__file__).resolve().parent.parent
METHODS = ('ropim', 'lomar', 'rmae', 'conmim')

WIDTH, HEADS = 96, 4
ARCH = dict(
    embed_dims=WIDTH,
    num_layers=6,
    num_heads=HEADS,
    feedforward_channels=4 * WIDTH,
)
# Sides of pretraining and segmentation, and of detection, in pixels.
SIDE, LARGE_SIDE = 128, 192
# A window of detection has the tokens of a pretraining image.
WINDOW = SIDE // 16
# Folders of ADE20K.
ADE = ('images', 'annotations')
SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.webp'}


def recipe(method: str, task: str) -> Config:
    """A recipe of ``configs/``, as it is.

    Args:
        method: One of :data:`METHODS`.
        task: 'pretraining', 'segmentation' or 'detection'.
    """
    folder = ROOT / 'configs' / method
    pattern = dict(
        pretraining=f'{method}_vit-base-*_custom.py',
        segmentation='benchmarks/vit-base-p16_upernet_*-160k_*.py',
        detection='benchmarks/mask-rcnn_vit-base-p16_lsj-100e_coco.py',
    )[task]
    (path,) = folder.glob(pattern)
    return Config.fromfile(path)


def photos_of(folder: Path) -> list[Path]:
    """Images below a folder, sorted."""
    return sorted(
        path
        for path in folder.rglob('*')
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )


def shrink_photo(path: Path, out: Path, number: int) -> None:
    """A copy with a short side a quarter longer than those of training.

    Raises:
        Exception: It cannot be read.
    """
    pixels = decode_image(path.read_bytes())[..., ::-1]
    photo = Image.fromarray(np.ascontiguousarray(pixels))
    scale = min(1.0, 1.25 * SIDE / min(photo.size))
    size = [max(1, round(scale * side)) for side in photo.size]
    small = photo.resize(size, Image.BICUBIC)
    small.save(out / f'{number:05}_{path.stem}.png')


def pretraining(method: str, photos: Path, maps: Path, epochs: int) -> Config:
    """Pretraining on a folder of small photos.

    Args:
        method: One of :data:`METHODS`.
        photos: The folder.
        maps: Their region maps, for R-MAE.
        epochs: At least 4, of which a twentieth warms up.
    """
    cfg = recipe(method, 'pretraining')
    model = cfg.model
    model.backbone.update(arch=ARCH, img_size=SIDE)
    dataset = cfg.train_dataloader.dataset
    if method == 'conmim':
        model.neck.update(in_channels=WIDTH, hid_channels=256, out_channels=64)
    else:
        model.neck.embed_dims = WIDTH
    if method == 'lomar':
        model.update(window_size=5, num_windows=2)
    if method == 'rmae':
        small = dict(embed_dims=WIDTH, img_size=SIDE)
        model.neck.update(
            **small, decoder_dims=WIDTH, decoder_depth=2, decoder_heads=HEADS
        )
        widths = dict(enc_dims=48, enc_heads=4, dec_dims=48, dec_heads=4)
        model.region_branch.update(**small, **widths, cross_layers=2)
        dataset.data_prefix = dict(img_path=str(photos), region_path=str(maps))
    else:
        dataset.data_prefix = str(photos)
    dataset.data_root = ''
    for step in dataset.pipeline:
        if 'scale' in step:
            step.scale = SIDE
    cfg.train_dataloader.update(
        batch_size=20, num_workers=0, persistent_workers=False
    )
    warmup = max(1, epochs // 20)
    spans = dict(by_epoch=True, convert_to_iter_based=True)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.1, begin=0, end=warmup, **spans),
        dict(
            type='CosineAnnealingLR',
            eta_min=1e-5,
            begin=warmup,
            end=epochs,
            **spans,
        ),
    ]
    cfg.train_cfg.max_epochs = epochs
    cfg.default_hooks.logger.interval = 5
    cfg.default_hooks.checkpoint.interval = epochs
    _on_one_core(cfg, lr=1.5e-3)
    return cfg


def segmentation(
    method: str, folder: Path, count: int, iterations: int
) -> Config:
    """UperNet on the photos on which it is measured.

    Args:
        method: One of :data:`METHODS`.
        folder: With ``images/validation`` and ``annotations/validation``.
        count: Photos to use, the first ones.
        iterations: At least 20, of which a tenth warms up.
    """
    cfg = recipe(method, 'segmentation')
    model = cfg.model
    model.backbone.update(
        arch=ARCH, img_size=SIDE, out_indices=(1, 2, 3, 5), drop_path_rate=0.0
    )
    model.neck.embed_dim = WIDTH
    model.decode_head.update(in_channels=[WIDTH] * 4, channels=64)
    model.auxiliary_head.update(in_channels=WIDTH, channels=32)
    model.data_preprocessor.size = (SIDE, SIDE)
    model.test_cfg.update(
        crop_size=(SIDE, SIDE), stride=(SIDE * 2 // 3, SIDE * 2 // 3)
    )
    # Always the same size: the fewer the views, the sooner they are known.
    scale = (4 * SIDE, SIDE)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.update(
            data_root=str(folder),
            data_prefix=dict(
                zip(
                    ('img_path', 'seg_map_path'),
                    (f'{kind}/validation' for kind in ADE),
                    strict=True,
                )
            ),
            indices=count,
        )
        for step in loader.dataset.pipeline:
            if step.type == 'RandomResize':
                step.update(scale=scale, ratio_range=(1.0, 1.0))
            elif step.type == 'Resize':
                step.scale = scale
            elif step.type == 'RandomCrop':
                step.crop_size = (SIDE, SIDE)
    cfg.train_dataloader.batch_size = 3
    warmup = iterations // 10
    first, second = cfg.param_scheduler
    first.update(start_factor=0.1, end=warmup)
    second.update(begin=warmup, end=iterations)
    _iterations(cfg, iterations, lr=4e-3)
    return cfg


def detection(
    method: str, photos: Path, annotations: Path, iterations: int
) -> Config:
    """Mask R-CNN on the photos on which it is measured.

    Args:
        method: One of :data:`METHODS`.
        photos: The folder.
        annotations: Their COCO file.
        iterations: At least 20, of which a tenth warms up.
    """
    cfg = recipe(method, 'detection')
    model = cfg.model
    model.data_preprocessor.pad_size_divisor = LARGE_SIDE
    model.backbone.update(
        arch=ARCH,
        img_size=LARGE_SIDE,
        window_size=WINDOW,
        global_blocks=(2, 5),
        drop_path_rate=0.0,
    )
    width = 64
    model.neck.update(in_channels=WIDTH, out_channels=width)
    model.rpn_head.update(in_channels=width, feat_channels=width)
    model.rpn_head.anchor_generator.scales = [4]
    roi = model.roi_head
    for part in ('bbox', 'mask'):
        roi[f'{part}_roi_extractor'].out_channels = width
        roi[f'{part}_head'].update(in_channels=width, conv_out_channels=width)
    roi.bbox_head.fc_out_channels = 2 * width
    model.train_cfg.rpn_proposal.max_per_img = 200
    model.train_cfg.rcnn.sampler.num = 64
    model.test_cfg.rpn.max_per_img = 200
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.update(
            data_root='',
            ann_file=str(annotations),
            data_prefix=dict(img=str(photos)),
        )
        for step in loader.dataset.pipeline:
            if step.type == 'RandomResize':
                step.ratio_range = (1.0, 1.0)
            if 'scale' in step:
                step.scale = (LARGE_SIDE, LARGE_SIDE)
            if 'crop_size' in step:
                step.crop_size = (LARGE_SIDE, LARGE_SIDE)
    cfg.train_dataloader.batch_size = 2
    cfg.val_evaluator.ann_file = str(annotations)
    cfg.param_scheduler = [
        dict(
            type='LinearLR',
            start_factor=0.01,
            by_epoch=False,
            begin=0,
            end=iterations // 10,
        ),
        dict(
            type='MultiStepLR',
            milestones=[iterations * 5 // 6],
            gamma=0.1,
            by_epoch=False,
            begin=0,
            # Else MMEngine takes the length of the run, which is half of it
            # before it is resumed, and keeps that.
            end=iterations,
        ),
    ]
    _iterations(cfg, iterations, lr=2e-3)
    return cfg


def first_photos(source: Path, count: int, target: Path) -> int:
    """The part of a COCO file that is about its first photos.

    Returns:
        How many photos there are, at most ``count``.
    """
    content = json.loads(source.read_text())
    content['images'] = content['images'][:count]
    kept = {image['id'] for image in content['images']}
    content['annotations'] = [
        entry for entry in content['annotations'] if entry['image_id'] in kept
    ]
    target.write_text(json.dumps(content))
    return len(kept)


def _iterations(cfg: Config, iterations: int, lr: float) -> None:
    cfg.train_cfg.update(max_iters=iterations, val_interval=iterations)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.test_dataloader = cfg.val_dataloader
    cfg.test_evaluator = cfg.val_evaluator
    # Six blocks instead of twelve, and random weights have to learn too.
    cfg.optim_wrapper.paramwise_cfg.layer_decay_rate = 0.9
    cfg.default_hooks.logger.interval = 10
    cfg.default_hooks.checkpoint.update(
        interval=iterations // 2, save_best=None, max_keep_ckpts=2
    )
    _on_one_core(cfg, lr)


def _on_one_core(cfg: Config, lr: float) -> None:
    # Layers this narrow are slower in bfloat16.
    cfg.optim_wrapper.dtype = 'float32'
    cfg.optim_wrapper.optimizer.lr = lr
    cfg.randomness = dict(seed=0)
