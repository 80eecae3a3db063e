"""Images to patch tokens and back, for any grid, patch and channel count."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ...errors import InputError

Size = int | tuple[int, int]


def to_pair(size: Size) -> tuple[int, int]:
    """``16 -> (16, 16)``; a pair of ints stays, order (height, width)."""
    if isinstance(size, int):
        return (size, size)
    height, width = size
    return (int(height), int(width))


def grid_of(image_size: Size, patch_size: Size) -> tuple[int, int]:
    """Number of patches (rows, columns) of an image.

    Raises:
        InputError: A side of the image is not a multiple of the patch's.
    """
    image, patch = to_pair(image_size), to_pair(patch_size)
    if image[0] % patch[0] or image[1] % patch[1]:
        rows, columns = (
            max(1, round(i / p)) * p for i, p in zip(image, patch, strict=True)
        )
        raise InputError(
            f'image size {image[0]}x{image[1]} (height x width) is not a '
            f'multiple of patch_size {patch[0]}x{patch[1]}. Resize, crop or '
            f'pad the images, for example to {rows}x{columns}, or '
            'set `img_size` and `patch_size` of the backbone accordingly.'
        )
    return (image[0] // patch[0], image[1] // patch[1])


def patchify(
    images: torch.Tensor, patch_size: Size, channels_last: bool = False
) -> torch.Tensor:
    """Cut images into non-overlapping patches.

    Args:
        images: (B, C, H, W) with B images of C channels.
        patch_size: Side(s) of a patch in pixels.
        channels_last: Whether the values of a patch are ordered (row, column,
            channel), as the predictions of MAE and its kin are, instead of
            (channel, row, column), the layout of a convolution kernel and of
            :class:`torch.nn.PixelShuffle`.

    Returns:
        (B, L, C * ph * pw) with L = (H / ph) * (W / pw) patches, row-major.
    """
    batch, channels, height, width = images.shape
    ph, pw = to_pair(patch_size)
    rows, columns = grid_of((height, width), (ph, pw))
    x = images.reshape(batch, channels, rows, ph, columns, pw)
    order = (3, 5, 1) if channels_last else (1, 3, 5)
    x = x.permute(0, 2, 4, *order)
    return x.reshape(batch, rows * columns, channels * ph * pw)


def unpatchify(
    patches: torch.Tensor,
    patch_size: Size,
    grid: tuple[int, int],
    channels_last: bool = False,
) -> torch.Tensor:
    """Inverse of :func:`patchify`.

    Args:
        patches: (B, L, C * ph * pw).
        patch_size: Side(s) of a patch in pixels.
        grid: Patches (rows, columns); rows * columns = L.
        channels_last: Order of a patch's values, see :func:`patchify`.

    Returns:
        (B, C, rows * ph, columns * pw).
    """
    batch, length, values = patches.shape
    ph, pw = to_pair(patch_size)
    rows, columns = grid
    if length != rows * columns or values % (ph * pw):
        raise InputError(
            f'patches of shape {tuple(patches.shape)} do not fill a grid of '
            f'{rows}x{columns} patches of {ph}x{pw} pixels: expected '
            f'(B, {rows * columns}, channels * {ph * pw})'
        )
    if channels_last:
        x = patches.reshape(batch, rows, columns, ph, pw, -1)
        x = x.permute(0, 5, 1, 3, 2, 4)
    else:
        x = patches.reshape(batch, rows, columns, -1, ph, pw)
        x = x.permute(0, 3, 1, 4, 2, 5)
    return x.reshape(batch, -1, rows * ph, columns * pw)


def normalize_patches(
    patches: torch.Tensor, eps: float = 1e-6
) -> torch.Tensor:
    """Give each patch mean 0 and variance 1, the target of MAE and its kin.

    The variance is the unbiased one, as released (He et al., CVPR 2022).

    Args:
        patches: (..., values of a patch), any floating type.
        eps: Added to the variance.

    Returns:
        Same shape, float32.
    """
    patches = patches.float()
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) * (variance + eps).rsqrt()


class PatchEmbed(nn.Module):
    """Linear embedding of patches, weights laid out as a convolution.

    The convolution of stride = kernel is one matrix product over patches;
    computed as such, its output is contiguous tokens.

    Args:
        in_channels: C, channels of the image.
        embed_dims: D, width of a token.
        patch_size: Side(s) of a patch in pixels.
    """

    def __init__(
        self, in_channels: int, embed_dims: int, patch_size: Size
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.patch_size = to_pair(patch_size)
        self.projection = nn.Conv2d(
            in_channels, embed_dims, self.patch_size, self.patch_size
        )

    def forward(
        self, images: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[int, int]]:
        """(B, C, H, W) -> tokens (B, L, D), grid (rows, columns)."""
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise InputError(
                f'inputs have shape {tuple(images.shape)}; expected '
                f'(B, {self.in_channels}, H, W). Set `in_channels` of the '
                'backbone to the number of channels of the images.'
            )
        grid = grid_of(tuple(images.shape[-2:]), self.patch_size)
        patches = patchify(images, self.patch_size)
        weight = self.projection.weight.flatten(1)
        return F.linear(patches, weight, self.projection.bias), grid
