import pytest
import torch
from mmpretrain.models.utils import build_2d_sincos_position_embedding

from ropim_mm.models.layers.positions import (
    grid_of_sincos,
    kept_for_grids,
    sincos_positions,
)


def test_values_are_the_formula():
    table = sincos_positions((2, 3), 8)
    assert table.shape == (1, 7, 8) and table.dtype == torch.float32
    assert not table[0, 0].any()
    # Row 1, column 2; frequencies 1 and 1/100.
    expected = torch.tensor([2.0, 0.02, 2.0, 0.02, 1.0, 0.01, 1.0, 0.01])
    sine = torch.tensor([1.0, 1.0, 0.0, 0.0] * 2).bool()
    expected = torch.where(sine, expected.sin(), expected.cos())
    torch.testing.assert_close(table[0, 1 + 1 * 3 + 2], expected)


@pytest.mark.parametrize(('side', 'dims'), [(14, 768), (4, 48)])
def test_square_grids_have_the_table_of_mmpretrain(side, dims):
    """Which names the rows first: the same table for the image's transpose."""
    theirs = build_2d_sincos_position_embedding(side, dims, cls_token=True)
    patches = theirs[:, 1:].unflatten(1, (side, side)).transpose(1, 2)
    theirs = torch.cat((theirs[:, :1], patches.flatten(1, 2)), dim=1)
    torch.testing.assert_close(
        sincos_positions((side, side), dims), theirs, rtol=0, atol=2e-6
    )


def test_each_token_has_a_position_of_its_own():
    table = sincos_positions((5, 9), 16)[0, 1:]
    gaps = torch.cdist(table, table) + torch.eye(45) * 9
    assert gaps.min() > 0.1
    # A token's row says nothing about its column, and the other way round.
    cells = table.unflatten(0, (5, 9))
    assert torch.equal(cells[0, :, :8], cells[4, :, :8])
    assert torch.equal(cells[:, 0, 8:], cells[:, 8, 8:])


def test_width_that_does_not_divide():
    with pytest.raises(ValueError, match='width 6: expected a multiple of 4'):
        sincos_positions((2, 2), 6)


@pytest.mark.parametrize('grid', [(2, 8), (4, 4), (8, 2), (1, 7)])
@pytest.mark.parametrize('kind', [torch.float32, torch.bfloat16])
def test_the_table_tells_its_grid(grid, kind):
    table = sincos_positions(grid, 16)
    assert grid_of_sincos(table.to(kind)) == grid
    assert grid_of_sincos(table + torch.randn_like(table)) is None


def test_tables_of_large_grids_are_not_hoarded():
    made = []

    @kept_for_grids
    def table(grid, scale):
        made.append(grid)
        return torch.full(grid, scale)

    for _ in range(2):
        with torch.inference_mode():
            for side in range(1, 29):
                table((side, side), 2.0)
    assert len(made) == 28
    assert not table((4, 4), 2.0).is_inference()
    made.clear()
    for _ in range(2):
        for side in (29, 30, 31):
            assert table((side, side), 2.0).shape == (side, side)
    assert len(made) == 6
    assert table((31, 31), 2.0) is table((31, 31), 2.0)
    assert len(made) == 6
    assert table.large.cache_info().currsize == 2
