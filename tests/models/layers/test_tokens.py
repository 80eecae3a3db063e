import pytest
import torch

from ropim_mm.models.layers import PatchEmbed, patchify
from ropim_mm.models.layers.tokens import (
    embed_patches,
    embed_some,
    random_permutations,
    restore_order,
    take_patches,
    take_region_patches,
    take_tokens,
)


def test_permutations_are_uniform_and_independent():
    torch.manual_seed(0)
    ids = random_permutations(4000, 4)
    assert ids.dtype == torch.int64
    assert torch.equal(ids.sort(dim=1).values, torch.arange(4).expand(4000, 4))
    kinds = (
        (ids * torch.tensor([64, 16, 4, 1]))
        .sum(1)
        .unique(return_counts=True)[1]
    )
    assert len(kinds) == 24
    # 4000 / 24 each, give or take 4.5 deviations.
    assert ((kinds - 4000 / 24).abs() < 4.5 * (4000 / 24) ** 0.5).all()


def test_take_tokens_of_images_and_of_a_table():
    tokens = torch.randn(2, 5, 3)
    ids = torch.tensor([[4, 0], [1, 1]])
    taken = take_tokens(tokens, ids)
    assert torch.equal(taken[0], tokens[0, [4, 0]])
    assert torch.equal(taken[1], tokens[1, [1, 1]])
    table = take_tokens(tokens[:1], ids)
    assert torch.equal(table[1], tokens[0, [1, 1]])


def test_restore_order_is_the_inverse():
    torch.manual_seed(0)
    tokens = torch.randn(3, 6, 2, requires_grad=True)
    ids = random_permutations(3, 6)
    back = restore_order(take_tokens(tokens, ids), ids)
    assert torch.equal(back, tokens)
    back.square().sum().backward()
    torch.testing.assert_close(tokens.grad, 2 * tokens.detach())


@pytest.mark.parametrize('last', [True, False])
@pytest.mark.parametrize('kind', [torch.float32, torch.uint8, torch.bool])
def test_take_patches_is_patchify_and_take(last, kind):
    images = torch.randint(0, 2, (2, 5, 4, 18)).to(kind)
    ids = torch.tensor([[5, 0, 3], [2, 2, 4]])
    expected = take_tokens(patchify(images, (2, 6), last), ids)
    assert torch.equal(take_patches(images, ids, (2, 6), last), expected)


def test_take_patches_of_images_that_are_not_contiguous():
    images = torch.randn(2, 6, 4, 3).permute(0, 3, 1, 2)
    ids = torch.tensor([[1, 2], [0, 5]])
    expected = take_tokens(patchify(images, 2), ids)
    assert torch.equal(take_patches(images, ids, 2), expected)


def test_region_patches_are_the_same_of_every_map():
    maps = torch.rand(2, 3, 4, 6) > 0.5
    ids = torch.tensor([[5, 0, 3], [2, 1, 4]])
    taken = take_region_patches(maps, ids, 2)
    assert taken.shape == (2, 3, 3, 4) and taken.dtype == torch.bool
    for r in range(3):
        assert torch.equal(
            taken[:, r], take_patches(maps[:, r : r + 1], ids, 2)
        )


def test_embedding_some_patches():
    embed = PatchEmbed(3, 8, (2, 3))
    images = torch.randn(2, 3, 4, 6)
    ids = torch.tensor([[3, 1], [0, 2]])
    expected = take_tokens(embed(images)[0], ids)
    torch.testing.assert_close(embed_some(embed, images, ids), expected)
    patches = patchify(images, (2, 3))
    torch.testing.assert_close(embed_patches(embed, patches), embed(images)[0])


def test_bad_images():
    embed = PatchEmbed(3, 8, 2)
    ids = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r'\(1, 4, 4, 4\); expected \(B, 3'):
        embed_some(embed, torch.zeros(1, 4, 4, 4), ids)
    with pytest.raises(ValueError, match='image size 4x5 .* 2x2'):
        embed_some(embed, torch.zeros(1, 3, 4, 5), ids)
    with pytest.raises(ValueError, match='image size 5x4 .* 2x2'):
        take_region_patches(torch.zeros(1, 3, 5, 4), ids, 2)
