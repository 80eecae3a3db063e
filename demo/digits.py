"""scikit-learn's digits as folders of PNG files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SIDE = 32
NUM_CLASSES = 10
# Of each class of the 1797 images, on average: 100 to learn from, 30 to
# watch the training with, and the rest, about 50, to report.
TRAIN, VAL = 100, 30


@dataclass(frozen=True)
class Split:
    """Indices into scikit-learn's images.

    Attributes:
        train: To pretrain on, without labels.
        val: For the curves.
        test: For the table.
        few: A draw of labelled images out of ``train`` for each seed.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    few: tuple[np.ndarray, ...]


def split_digits(labels: np.ndarray, few: int, seeds: int) -> Split:
    """Split each class alike; the same split in every run.

    Args:
        labels: (N,) int, the class of each image.
        few: Labelled images a class for fine-tuning, 1 to 100.
        seeds: Number of draws of those.
    """
    random = np.random.default_rng(0)
    parts: dict[str, list[np.ndarray]] = {'train': [], 'val': [], 'test': []}
    for digit in range(NUM_CLASSES):
        own = random.permutation(np.flatnonzero(labels == digit))
        parts['train'].append(own[:TRAIN])
        parts['val'].append(own[TRAIN : TRAIN + VAL])
        parts['test'].append(own[TRAIN + VAL :])
    draws = []
    for seed in range(seeds):
        random = np.random.default_rng([1, seed])
        draws.append(
            np.concatenate(
                [
                    random.choice(own, few, replace=False)
                    for own in parts['train']
                ]
            )
        )
    joined = {name: np.concatenate(part) for name, part in parts.items()}
    return Split(few=tuple(draws), **joined)


def enlarge(image: np.ndarray) -> Image.Image:
    """(8, 8) of 0 to 16 -> a grey picture of 32 x 32 pixels."""
    picture = Image.fromarray((image * (255 / 16)).round().astype(np.uint8))
    return picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def write_digits(
    folder: Path, few: int, seeds: int, samples: int
) -> dict[str, int]:
    """Write the images as ``<part>/<label>/<number>.png``.

    Args:
        folder: Replaced if it exists.
        few: Labelled images a class.
        seeds: Number of draws of those.
        samples: Test images, one a class in turn, that are also written to
            ``samples`` for the picture of reconstructions.

    Returns:
        Number of images of each part.
    """
    digits = load_digits()
    split = split_digits(digits.target, few, seeds)
    if folder.exists():
        shutil.rmtree(folder)
    parts: dict[str, Sequence[int]] = {
        'train': split.train,
        'val': split.val,
        'test': split.test,
        **{f'few-seed{i}': draw for i, draw in enumerate(split.few)},
    }
    pictures = [enlarge(image) for image in digits.images]
    for name, indices in parts.items():
        for index in indices:
            label = folder / name / str(digits.target[index])
            label.mkdir(parents=True, exist_ok=True)
            pictures[index].save(label / f'{index:04}.png')
    (folder / 'samples').mkdir()
    for i in range(samples):
        digit = i % NUM_CLASSES
        own = split.test[digits.target[split.test] == digit]
        index = own[i // NUM_CLASSES]
        pictures[index].save(folder / 'samples' / f'{digit}-{index:04}.png')
    return {name: len(indices) for name, indices in parts.items()}
