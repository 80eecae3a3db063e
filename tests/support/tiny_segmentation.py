"""ADE20K's configs made small: four photos, an encoder of four blocks."""

from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image

from config_checks import steps

SIDE, PATCH, BLOCKS, WIDTH = 64, 16, 4, 16
ARCH = dict(
    embed_dims=WIDTH,
    num_layers=BLOCKS,
    num_heads=2,
    feedforward_channels=32,
)


def write_ade(root: Path) -> None:
    """Four photos a split in the layout of ADE20K, with sides of any size."""
    rng = np.random.default_rng(0)
    for split in ('training', 'validation'):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        for i in range(4):
            size = (70 + i, 85 - i)
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            labels = rng.integers(0, 151, size, dtype=np.uint8)
            stem = f'{split}/{i}'
            Image.fromarray(pixels).save(root / f'images/{stem}.jpg')
            Image.fromarray(labels).save(root / f'annotations/{stem}.png')


def shrink(cfg: Config, root: Path) -> None:
    """The same config with a tiny network, small crops and two steps.

    Args:
        cfg: Changed in place.
        root: Folder of :func:`write_ade`.
    """
    model = cfg.model
    model.backbone.update(
        arch=ARCH, img_size=SIDE, out_indices=tuple(range(BLOCKS))
    )
    model.neck.embed_dim = WIDTH
    model.decode_head.update(in_channels=[WIDTH] * 4, channels=WIDTH)
    model.auxiliary_head.update(in_channels=WIDTH, channels=WIDTH)
    model.data_preprocessor.size = (SIDE, SIDE)
    model.test_cfg.update(crop_size=(SIDE, SIDE), stride=(43, 43))
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(root)
        pipeline = steps(loader.dataset.pipeline)
        resize = pipeline['RandomResize' if split == 'train' else 'Resize']
        resize.scale = (4 * SIDE, SIDE)
        if split == 'train':
            pipeline['RandomCrop'].crop_size = (SIDE, SIDE)
    for resize in steps(cfg.tta_pipeline)['TestTimeAug'].transforms[0]:
        resize.scale = tuple(side * SIDE // 512 for side in resize.scale)
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.default_hooks.logger.interval = 1
