"""Marks on pictures: faded, framed, coloured by a number.

Pictures are (B, C, H, W) float32 of 0 to 255, C = 1 or 3.
"""

from __future__ import annotations

import torch

from ...models.layers.patches import Size, to_pair

# For the notes below pictures of models that predict normalised patches.
NORMALIZED = (
    'predictions are of normalised patches: mean and contrast of each are the '
    'true ones'
)

GREEN, RED, ORANGE = (30, 160, 60), (215, 45, 40), (255, 130, 0)

# Dark blue over green to yellow; even steps look even, and in grey as well.
_SCALE = torch.tensor(
    [
        [68, 1, 84],
        [59, 82, 139],
        [33, 145, 140],
        [94, 201, 98],
        [253, 231, 37],
    ],
    dtype=torch.float32,
)


def over_pixels(
    values: torch.Tensor, grid: tuple[int, int], patch_size: Size
) -> torch.Tensor:
    """A value of each patch, on its pixels.

    Args:
        values: (B, L), row-major over the grid.
        grid: (h, w) with h * w = L.
        patch_size: Side or (height, width) of a patch.

    Returns:
        (B, 1, H, W), same type.
    """
    rows, columns = to_pair(patch_size)
    image = values.view(-1, 1, *grid)
    return image.repeat_interleave(rows, 2).repeat_interleave(columns, 3)


def fade(pixels: torch.Tensor, share: float = 0.75) -> torch.Tensor:
    """Towards white by ``share``."""
    return pixels * (1 - share) + 255 * share


def tint(
    pixels: torch.Tensor,
    where: torch.Tensor,
    colour: tuple[int, int, int],
    share: float = 0.5,
) -> torch.Tensor:
    """Colour a part of a picture.

    Args:
        pixels: (B, C, H, W).
        where: bool (B, 1, H, W).
        colour: Red, green, blue, of 255.
        share: Of the colour.

    Returns:
        (B, 3, H, W)
    """
    pixels = pixels.expand(-1, 3, -1, -1)
    paint = torch.tensor(colour, dtype=pixels.dtype).view(1, 3, 1, 1)
    return torch.where(where, pixels * (1 - share) + paint * share, pixels)


def frame(
    pixels: torch.Tensor,
    patches: torch.Tensor,
    grid: tuple[int, int],
    patch_size: Size,
    colour: tuple[int, int, int],
) -> torch.Tensor:
    """A frame around one patch of each picture.

    Args:
        pixels: (B, C, H, W).
        patches: int64 (B,), row-major over the grid.
        grid: (h, w).
        patch_size: Side or (height, width) of a patch.
        colour: Red, green, blue, of 255.

    Returns:
        (B, 3, H, W)
    """
    rows, columns = to_pair(patch_size)
    thick = max(1, min(rows, columns) // 8)
    pixels = pixels.expand(-1, 3, -1, -1).clone()
    paint = torch.tensor(colour, dtype=pixels.dtype).view(3, 1, 1)
    for picture, patch in zip(pixels, patches.tolist(), strict=True):
        top = patch // grid[1] * rows
        left = patch % grid[1] * columns
        # Around the patch, so that it stays visible; inside at the border.
        y = slice(max(0, top - thick), top + rows + thick)
        x = slice(max(0, left - thick), left + columns + thick)
        inside = picture[:, top : top + rows, left : left + columns].clone()
        picture[:, y, x] = paint
        picture[:, top : top + rows, left : left + columns] = inside
    return pixels


def colours(values: torch.Tensor) -> torch.Tensor:
    """Numbers of 0 to 1 as colours, dark blue to yellow.

    Args:
        values: (B, 1, H, W); those outside are clamped.

    Returns:
        (B, 3, H, W)
    """
    place = values.float().clamp(0, 1) * (len(_SCALE) - 1)
    low = place.floor().clamp(max=len(_SCALE) - 2)
    share = place - low
    index = low.long().squeeze(1)
    below, above = _SCALE[index], _SCALE[index + 1]
    mixed = below + (above - below) * share.squeeze(1).unsqueeze(-1)
    return mixed.permute(0, 3, 1, 2).contiguous()
