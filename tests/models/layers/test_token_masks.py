import numpy as np
import pytest
import torch

from ropim_mm.models.layers import sample_cell_masks
from ropim_mm.models.layers.token_masks import (
    cells_to_patches,
    grid_of_cells,
    num_masked_cells,
)


@pytest.mark.parametrize(
    ('grid', 'cell', 'ratio', 'cells'),
    [
        ((14, 14), 2, 0.75, 37),
        ((4, 6), 2, 0.75, 5),
        ((6, 3), (3, 1), 0.5, 3),
        ((5, 7), 1, 0.6, 21),
        ((1, 8), (1, 2), 0.5, 2),
    ],
)
def test_every_image_has_the_same_number_of_masked_cells(
    grid, cell, ratio, cells
):
    torch.manual_seed(0)
    masks = sample_cell_masks(5, grid, ratio, cell)
    assert masks.dtype == torch.bool and masks.shape == (5, *grid)
    rows, columns = (cell, cell) if isinstance(cell, int) else cell
    assert masks.flatten(1).sum(1).tolist() == [cells * rows * columns] * 5
    # A cell is masked as a whole.
    parts = masks.view(
        5, grid[0] // rows, rows, grid[1] // columns, columns
    ).transpose(2, 3)
    assert torch.equal(parts.flatten(3).all(-1), parts.flatten(3).any(-1))
    assert len({m.numpy().tobytes() for m in masks}) > 1


def test_cells_at_the_border_are_cut_off():
    masks = sample_cell_masks(200, (5, 3), 0.5, 2)
    assert grid_of_cells((5, 3), 2) == (3, 2)
    assert masks.shape == (200, 5, 3)
    # 3 of 6 cells of 4, 2, 4, 2, 2 and 1 patches.
    counts = masks.flatten(1).sum(1)
    assert counts.min() >= 5 and counts.max() <= 10
    assert (masks[:, 4, 0] == masks[:, 4, 1]).all()
    assert (masks[:, 0, 2] == masks[:, 1, 2]).all()


def test_all_cells_are_equally_likely():
    torch.manual_seed(0)
    share = sample_cell_masks(4000, (4, 6), 0.75, 2).float().mean(0)
    # 5 of 6; four standard deviations of 4000 draws.
    assert (share - 5 / 6).abs().max() < 4 * (5 / 36 / 4000) ** 0.5


def test_cells_to_patches():
    cells = torch.tensor([[[1, 2], [3, 4]]])
    assert cells_to_patches(cells, (1, 2), (2, 3)).tolist() == [
        [[1, 1, 2], [3, 3, 4]]
    ]


def test_number_of_cells():
    assert num_masked_cells(49, 0.75) == 37
    assert num_masked_cells(10, 0.7) == 7
    assert num_masked_cells(10**6, 1e-12) == 1


def test_number_of_cells_is_the_released_one():
    """NumPy's ceil of the product, which is 7.000000000000001 here."""
    assert num_masked_cells(25, 0.28) == int(np.ceil(25 * 0.28)) == 8
    masks = sample_cell_masks(3, (5, 5), 0.28, 1)
    assert masks.flatten(1).sum(1).tolist() == [8, 8, 8]


@pytest.mark.parametrize('ratio', [0.0, 1.0, -1, 1.2])
def test_ratio_outside_its_range(ratio):
    with pytest.raises(ValueError, match=f'mask_ratio is {ratio}'):
        sample_cell_masks(1, (4, 4), ratio)


def test_nothing_left_to_see():
    with pytest.raises(ValueError, match='0.75 of 1 cells masks all of them'):
        sample_cell_masks(1, (2, 2), 0.75)


def test_an_impossible_cell():
    with pytest.raises(ValueError, match='cells of 0x2 patches'):
        sample_cell_masks(1, (4, 4), 0.5, (0, 2))
