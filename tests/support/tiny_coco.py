"""A COCO dataset of a few small pictures, for the tests of detectors."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Names and numbers of COCO for three of its 80 classes: MMDetection takes the
# place in its own list for the label, and the number from the file.
CLASSES = {1: 'person', 8: 'truck', 19: 'horse'}
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
        categories=[dict(id=i, name=n) for i, n in CLASSES.items()],
    )
    (root / 'annotations').mkdir(exist_ok=True)
    for split in ('train2017', 'val2017'):
        path = root / 'annotations' / f'instances_{split}.json'
        path.write_text(json.dumps(content))
    return root
