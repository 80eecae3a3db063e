import numpy as np
import pytest
import torch
from scipy.interpolate import RectBivariateSpline

from ropim_mm.models.layers import (
    grid_of_table,
    relative_position_index,
    resize_table,
    table_rows,
)
from ropim_mm.models.layers.relative_position import (
    SharedRelativePositionBias,
    _source_coordinates,
)

GRIDS = [(1, 1), (2, 2), (3, 5), (5, 3), (4, 4), (1, 6), (6, 1)]


@pytest.mark.parametrize('grid', GRIDS)
def test_index_points_at_query_minus_key(grid):
    h, w = grid
    index = relative_position_index(grid)
    rows = table_rows(grid)
    assert index.shape == (1 + h * w, 1 + h * w)
    for query in range(h * w):
        for key in range(h * w):
            dy = query // w - key // w + h - 1
            dx = query % w - key % w + w - 1
            assert index[1 + query, 1 + key] == dy * (2 * w - 1) + dx
    assert index[0, 0] == rows - 1
    assert (index[0, 1:] == rows - 3).all()
    assert (index[1:, 0] == rows - 2).all()


@pytest.mark.parametrize('grid', GRIDS)
def test_grid_is_read_from_the_index(grid):
    index = relative_position_index(grid)
    found = grid_of_table(table_rows(grid), index, expected=grid)
    assert found == grid
    if 1 not in grid:
        assert grid_of_table(table_rows(grid), index) == grid


def test_grid_is_guessed_from_the_rows():
    assert grid_of_table(table_rows((14, 14))) == (14, 14)
    assert grid_of_table(table_rows((3, 5)), expected=(3, 5)) == (3, 5)
    with pytest.raises(ValueError, match='48 rows belongs to no square grid'):
        grid_of_table(table_rows((3, 5)))


@pytest.mark.parametrize(
    ('old', 'new'), [(4, 6), (14, 24), (14, 7), (7, 14), (3, 9)]
)
def test_resizing_is_the_clamped_cubic_spline(old, new):
    torch.manual_seed(0)
    table = torch.randn(table_rows((old, old)), 2)
    ours = resize_table(table, (old, old), (new, new))
    source = _source_coordinates(old, new)
    target = np.arange(-(new - 1), new).clip(source[0], source[-1])
    for head in range(2):
        z = table[:-3, head].view(2 * old - 1, -1).numpy()
        spline = RectBivariateSpline(source, source, z, s=0)
        expected = spline(target, target).ravel()
        np.testing.assert_allclose(
            ours[:-3, head].numpy(), expected, rtol=1e-5, atol=1e-5
        )
    assert torch.equal(ours[-3:], table[-3:])


def test_resizing_one_axis_leaves_the_other():
    torch.manual_seed(0)
    column = torch.randn(1, 2 * 5 - 1, 3)
    table = torch.cat(
        (column.expand(7, -1, -1).flatten(0, 1), torch.ones(3, 3))
    )
    resized = resize_table(table, (4, 5), (6, 5))
    spatial = resized[:-3].view(11, 9, 3)
    torch.testing.assert_close(spatial, column.expand(11, -1, -1))


@pytest.mark.parametrize(('old', 'new'), [((1, 1), (2, 3)), ((2, 2), (4, 1))])
def test_tiny_grids_resize(old, new):
    table = torch.full((table_rows(old), 2), 0.7)
    resized = resize_table(table, old, new)
    assert resized.shape == (table_rows(new), 2)
    torch.testing.assert_close(resized, torch.full_like(resized, 0.7))


def test_resizing_keeps_type_and_carries_gradients():
    table = torch.zeros(table_rows((3, 3)), 2, dtype=torch.bfloat16)
    assert resize_table(table, (3, 3), (4, 4)).dtype == torch.bfloat16
    table = torch.randn(table_rows((3, 3)), 2, requires_grad=True)
    resize_table(table, (3, 3), (4, 2)).sum().backward()
    assert table.grad[:-3].sum().item() == pytest.approx(7 * 3 * 2, rel=1e-5)


def test_table_of_another_grid_is_refused():
    with pytest.raises(ValueError, match='3x3 has 28 rows, this one has 20'):
        resize_table(torch.zeros(20, 2), (3, 3), (4, 4))


def test_bias_of_another_grid_is_that_of_the_resized_table():
    bias = SharedRelativePositionBias((3, 4), 2)
    torch.nn.init.normal_(bias.relative_position_bias_table)
    other = SharedRelativePositionBias((5, 2), 2)
    with torch.no_grad():
        other.relative_position_bias_table.copy_(
            resize_table(bias.relative_position_bias_table, (3, 4), (5, 2))
        )
    torch.testing.assert_close(bias((5, 2)), other((5, 2)))
    table, index = (
        bias.relative_position_bias_table,
        bias.relative_position_index,
    )
    assert torch.equal(bias((3, 4))[0, 1], table[index][..., 1])
    assert bias((3, 4)).is_contiguous() and bias((5, 2)).is_contiguous()
