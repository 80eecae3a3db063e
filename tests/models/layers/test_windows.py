import pytest
import torch

from ropim_mm.errors import InputError
from ropim_mm.models.layers.patches import patchify
from ropim_mm.models.layers.tokens import take_patches
from ropim_mm.models.layers.windows import (
    free_positions,
    sample_windows,
    window_patches,
)


def test_where_windows_can_begin():
    assert free_positions((14, 20), 7) == (8, 14)
    assert free_positions((7, 7), 7) == (1, 1)


@pytest.mark.parametrize('window', [0, 8])
def test_a_window_larger_than_the_grid(window):
    with pytest.raises(
        InputError,
        match=rf'window_size is {window} patches, the grid has 9x7 \(rows x '
        r'columns\); expected 1 to 7',
    ):
        free_positions((9, 7), window)


@pytest.mark.parametrize('draws', [1, 50])
def test_all_tops_and_all_lefts_of_a_draw_differ(draws):
    torch.manual_seed(0)
    tops, lefts = sample_windows((10, 12), 7, 4, draws)
    for values, positions in ((tops, 4), (lefts, 6)):
        assert values.shape == (draws, 4)
        assert values.dtype == torch.int64
        assert 0 <= values.min() and values.max() < positions
        assert all(len(set(row)) == 4 for row in values.tolist())
    if draws > 1:
        # As many as there are: every one of them, in any order.
        assert (tops.sort().values == torch.arange(4)).all()
        assert len(set(map(tuple, tops.tolist()))) > 10
        assert set(lefts.flatten().tolist()) == set(range(6))


def test_draws_are_uniform():
    tops, lefts = sample_windows(
        (8, 9), 4, 2, 4000, generator=torch.Generator().manual_seed(0)
    )
    for values, positions in ((tops, 5), (lefts, 6)):
        share = values.flatten().bincount(minlength=positions) / 8000
        assert (share - 1 / positions).abs().max() < 0.02


def test_a_generator_decides():
    def draw():
        return sample_windows(
            (9, 9), 3, 3, 2, generator=torch.Generator().manual_seed(3)
        )

    for first, second in zip(draw(), draw(), strict=True):
        assert torch.equal(first, second)


def test_too_many_windows():
    with pytest.raises(InputError) as caught:
        sample_windows((8, 10), 7, 3)
    text = str(caught.value)
    assert 'num_windows is 3, but windows of 7x7 patches' in text
    assert 'only 2 rows and 4 columns of a grid of 8x10' in text
    assert 'Use at most 2 windows' in text
    assert 'window_replacement=True' in text


def test_no_window():
    with pytest.raises(InputError, match='num_windows is 0'):
        sample_windows((8, 8), 4, 0)


def test_with_replacement_windows_share_rows():
    tops, lefts = sample_windows((8, 8), 7, 5, 40, replacement=True)
    assert tops.shape == lefts.shape == (40, 5)
    assert set(tops.flatten().tolist()) == {0, 1}
    assert not torch.equal(tops, lefts)


def test_patches_of_windows():
    tops, lefts = torch.tensor([[0, 2]]), torch.tensor([[3, 1]])
    ids = window_patches(tops, lefts, 2, (4, 5))
    assert ids.tolist() == [[[3, 4, 8, 9], [11, 12, 16, 17]]]


def test_patches_are_those_cut_out_of_the_image():
    images = torch.randn(3, 2, 12, 20)
    tops, lefts = sample_windows((3, 5), 2, 2, draws=3)
    ids = window_patches(tops, lefts, 2, (3, 5))
    patches = take_patches(images, ids.flatten(1), 4).view(3, 2, 4, -1)
    for image in range(3):
        for window in range(2):
            y, x = 4 * tops[image, window], 4 * lefts[image, window]
            cut = images[image : image + 1, :, y : y + 8, x : x + 8]
            assert torch.equal(patches[image, window], patchify(cut, 4)[0])
