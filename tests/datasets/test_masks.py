import random

import numpy as np
import pytest
import torch
from mmpretrain.datasets.transforms import (
    PackInputs,
    SimMIMMaskGenerator,
)

from ropim_mm.datasets.transforms import BlockMask, RandomCellMask
from ropim_mm.registry import TRANSFORMS


def draw(step, count=1):
    return np.stack([step.transform({})['mask'] for _ in range(count)])


@pytest.mark.parametrize('size', [64, 192, 224])
def test_cells_are_mmpretrains(size):
    theirs = SimMIMMaskGenerator(size, 32, 16, 0.6)
    ours = RandomCellMask(size // 16, 0.6, 2)
    np.random.seed(3)
    expected = [theirs.transform({})['mask'] for _ in range(5)]
    np.random.seed(3)
    assert np.array_equal(draw(ours, 5), np.array(expected).astype(bool))


@pytest.mark.parametrize(
    ('grid', 'cell', 'ratio', 'patches'),
    [
        ((14, 14), 2, 0.75, {148}),
        ((4, 6), (2, 1), 0.5, {12}),
        ((5, 3), 2, 0.5, set(range(5, 11))),
        (8, 1, 0.3, {20}),
    ],
)
def test_cells_on_any_grid(grid, cell, ratio, patches):
    masks = draw(RandomCellMask(grid, ratio, cell), 50)
    assert masks.dtype == bool
    assert masks.shape[1:] == ((grid, grid) if grid == 8 else grid)
    assert set(masks.sum((1, 2)).tolist()) <= patches


@pytest.mark.parametrize(
    ('grid', 'count', 'smallest', 'largest'),
    [((14, 14), 75, 16, None), ((8, 20), 60, 4, 12), ((5, 9), 20, 2, 8)],
)
def test_blocks_on_any_grid(grid, count, smallest, largest):
    random.seed(0)
    masks = draw(BlockMask(grid, count, smallest, largest), 100)
    assert masks.shape[1:] == grid and masks.dtype == bool
    counts = masks.sum((1, 2))
    assert counts.max() <= count
    assert counts.mean() > 0.95 * count
    assert len({m.tobytes() for m in masks}) == 100


def test_blocks_end_where_nothing_fits():
    # No rectangle of 16 patches fits into 4 rows and 4 columns.
    assert not draw(BlockMask((4, 4), 15, 16 - 1)).any()


def test_blocks_of_a_seed_are_the_same():
    step = BlockMask()
    masks = []
    for _ in range(2):
        random.seed(5)
        masks.append(draw(step, 3))
    assert np.array_equal(*masks)


@pytest.mark.parametrize('kind', ['RandomCellMask', 'BlockMask'])
def test_mask_reaches_the_sample(kind):
    step = TRANSFORMS.build(dict(type=f'ropim_mm.{kind}', grid=14))
    results = step(dict(img=np.zeros((4, 4, 3), np.uint8)))
    sample = PackInputs()(results)['data_samples']
    assert sample.mask.dtype == torch.bool and sample.mask.shape == (14, 14)
    assert np.array_equal(sample.mask.numpy(), results['mask'])
    assert 'grid=(14, 14)' in repr(step)


@pytest.mark.parametrize('ratio', [0, 1, 1.1])
def test_ratio_outside_its_range(ratio):
    with pytest.raises(ValueError, match=f'mask_ratio is {ratio}'):
        RandomCellMask(14, ratio)


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(num_masked=196), 'num_masked is 196 on a grid of 14x14'),
        (dict(num_masked=0), 'expected 1 to 195'),
        (dict(min_block=80), 'min_block is 80 and max_block 75'),
        (dict(min_block=0), 'expected 0 < min_block'),
        (dict(min_aspect=0), 'min_aspect is 0; expected'),
        (dict(min_aspect=2), 'min_aspect is 2; expected'),
    ],
)
def test_blocks_that_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        BlockMask(14, **wrong)
