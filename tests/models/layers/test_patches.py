import pytest
import torch
from torch import nn

from ropim_mm.models.layers import (
    PatchEmbed,
    grid_of,
    normalize_patches,
    patchify,
    unpatchify,
)


@pytest.mark.parametrize('channels', [1, 3, 5])
@pytest.mark.parametrize(
    ('size', 'patch', 'grid'),
    [((8, 8), 4, (2, 2)), ((12, 20), (3, 4), (4, 5)), ((2, 6), 2, (1, 3))],
)
def test_round_trip(channels, size, patch, grid):
    images = torch.randn(2, channels, *size)
    patches = patchify(images, patch)
    assert grid_of(size, patch) == grid
    assert patches.shape[1] == grid[0] * grid[1]
    assert torch.equal(unpatchify(patches, patch, grid), images)


def test_values_are_ordered_channel_row_column():
    images = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    second = patchify(images, 2)[0, 1]
    assert second.tolist() == [2, 3, 6, 7, 18, 19, 22, 23]
    # The layout of a pixel shuffle.
    maps = patchify(images, 2).transpose(1, 2).unflatten(2, (2, 2))
    assert torch.equal(nn.PixelShuffle(2)(maps), images)


def test_embedding_is_the_convolution():
    embed = PatchEmbed(5, 7, (2, 3))
    images = torch.randn(2, 5, 6, 12)
    tokens, grid = embed(images)
    expected = embed.projection(images).flatten(2).transpose(1, 2)
    assert grid == (3, 4)
    torch.testing.assert_close(tokens, expected)
    assert tokens.is_contiguous()


def test_size_not_a_multiple_of_the_patch():
    with pytest.raises(ValueError, match=r'image size 50x64 .* 16x16.*48x64'):
        patchify(torch.zeros(1, 3, 50, 64), 16)


def test_wrong_channels():
    with pytest.raises(ValueError, match=r'\(2, 1, 4, 4\).*\(B, 3, H, W\)'):
        PatchEmbed(3, 8, 2)(torch.zeros(2, 1, 4, 4))


def test_patches_that_do_not_fill_the_grid():
    with pytest.raises(ValueError, match='grid of 2x3 patches of 2x2'):
        unpatchify(torch.zeros(1, 5, 12), 2, (2, 3))


def test_patches_with_channels_last():
    images = torch.arange(2 * 5 * 4 * 6.0).view(2, 5, 4, 6)
    patches = patchify(images, (2, 3), channels_last=True)
    assert patches.shape == (2, 4, 30)
    # The second patch of the first row: (row, column, channel).
    second = images[0, :, 0:2, 3:6].permute(1, 2, 0).flatten()
    assert torch.equal(patches[0, 1], second)
    back = unpatchify(patches, (2, 3), (2, 2), channels_last=True)
    assert torch.equal(back, images)


def test_normalized_patches():
    patches = torch.randn(2, 3, 12, generator=torch.manual_seed(0)) * 5 + 7
    normalized = normalize_patches(patches)
    mean = patches.mean(-1, keepdim=True)
    expected = (patches - mean) / (patches.var(-1, keepdim=True) + 1e-6) ** 0.5
    torch.testing.assert_close(normalized, expected)
    flat = normalize_patches(torch.full((1, 1, 12), 3.0))
    assert torch.equal(flat, torch.zeros(1, 1, 12))
    assert normalize_patches(patches.bfloat16()).dtype == torch.float32
