"""Tokens taken and put back by a permutation of an image's patches.

A permutation ``ids`` (B, L) int64 lists the patches of each image in a random
order; a masking method keeps the first ones. Nothing here waits for the
device.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ...errors import InputError
from .patches import PatchEmbed, Size, grid_of, to_pair


def random_permutations(
    batch: int, length: int, device: torch.device | str | None = None
) -> torch.Tensor:
    """Independent uniform permutations of 0 ... length - 1, on the device.

    Returns:
        (batch, length) int64
    """
    return torch.rand(batch, length, device=device).argsort(dim=1)


def take_tokens(tokens: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Rows of a table, or the tokens of each image, in the order of ``ids``.

    Args:
        tokens: (1, L, D), the same for all images, or (B, L, D).
        ids: (B, K) int64 in [0, L).

    Returns:
        (B, K, D)
    """
    index = ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    return tokens.expand(len(ids), -1, -1).gather(1, index)


def restore_order(tokens: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Inverse of :func:`take_tokens` for a whole permutation.

    Args:
        tokens: (B, L, D), of which row i belongs to patch ``ids[:, i]``.
        ids: (B, L) int64, a permutation of each image's patches.

    Returns:
        (B, L, D), row-major over the grid.
    """
    index = ids.unsqueeze(-1).expand_as(tokens)
    return torch.empty_like(tokens).scatter(1, index, tokens)


def take_patches(
    images: torch.Tensor,
    ids: torch.Tensor,
    patch_size: Size,
    channels_last: bool = False,
) -> torch.Tensor:
    """Only some patches of each image, without cutting up the whole of it.

    Args:
        images: (B, C, H, W), any type.
        ids: (B, K) int64, row-major over the grid.
        patch_size: Side or (height, width) of a patch.
        channels_last: Order of a patch's values, see
            :func:`~ropim_mm.models.layers.patchify`.

    Returns:
        (B, K, C * ph * pw)

    Raises:
        InputError: A side of the images is not a multiple of the patch's.
    """
    cells, place = _cells(images, ids, patch_size)
    order = (3, 5, 1) if channels_last else (1, 3, 5)
    return cells.permute(0, 2, 4, *order)[place].flatten(2)


def embed_patches(embed: PatchEmbed, patches: torch.Tensor) -> torch.Tensor:
    """Tokens of patches that are cut out already.

    Args:
        embed: The embedding.
        patches: (..., C * ph * pw), values ordered (channel, row, column).

    Returns:
        (..., D)
    """
    projection = embed.projection
    return F.linear(patches, projection.weight.flatten(1), projection.bias)


def embed_some(
    embed: PatchEmbed, images: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """Tokens of some patches of each image; the others cost nothing.

    Args:
        embed: The embedding.
        images: (B, C, H, W).
        ids: (B, K) int64, row-major over the grid.

    Returns:
        (B, K, D)

    Raises:
        InputError: The images have another number of channels, or a side
            that is not a multiple of the patch's.
    """
    if images.ndim != 4 or images.shape[1] != embed.in_channels:
        raise InputError(
            f'inputs have shape {tuple(images.shape)}; expected '
            f'(B, {embed.in_channels}, H, W). Set `in_channels` of the '
            'backbone to the number of channels of the images.'
        )
    return embed_patches(embed, take_patches(images, ids, embed.patch_size))


def take_region_patches(
    regions: torch.Tensor, ids: torch.Tensor, patch_size: Size
) -> torch.Tensor:
    """The same patches of each of an image's maps.

    Args:
        regions: (B, R, H, W), any type.
        ids: (B, K) int64, row-major over the grid; shared by the R maps.
        patch_size: Side or (height, width) of a patch.

    Returns:
        (B, R, K, ph * pw), values of a patch ordered (row, column).

    Raises:
        InputError: A side of the maps is not a multiple of the patch's.
    """
    cells, (image, row, column) = _cells(regions, ids, patch_size)
    maps = torch.arange(regions.shape[1], device=regions.device)
    place = (
        image.unsqueeze(1),
        maps.view(1, -1, 1),
        row.unsqueeze(1),
        column.unsqueeze(1),
    )
    return cells.permute(0, 1, 2, 4, 3, 5)[place].flatten(3)


def _cells(
    images: torch.Tensor, ids: torch.Tensor, patch_size: Size
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Images seen as (B, C, h, ph, w, pw), and (image, row, column) of ids."""
    batch, channels, height, width = images.shape
    ph, pw = to_pair(patch_size)
    rows, columns = grid_of((height, width), (ph, pw))
    cells = images.reshape(batch, channels, rows, ph, columns, pw)
    image = torch.arange(batch, device=ids.device).unsqueeze(1)
    row = torch.div(ids, columns, rounding_mode='floor')
    return cells, (image, row, ids - row * columns)
