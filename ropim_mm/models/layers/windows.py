"""Square windows of a patch grid: where they are, which patches they hold."""

from __future__ import annotations

import torch

from ...errors import InputError


def free_positions(grid: tuple[int, int], window: int) -> tuple[int, int]:
    """How many rows and columns a window can begin at.

    Args:
        grid: Patches (h, w) of the image.
        window: Side of the window in patches.

    Raises:
        InputError: The window is larger than the grid.
    """
    h, w = grid
    if not 1 <= window <= min(h, w):
        raise InputError(
            f'window_size is {window} patches, the grid has {h}x{w} (rows x '
            f'columns); expected 1 to {min(h, w)}. Set a smaller window_size '
            'or use larger images.'
        )
    return h - window + 1, w - window + 1


def sample_windows(
    grid: tuple[int, int],
    window: int,
    count: int,
    draws: int = 1,
    replacement: bool = False,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw where windows begin, on the device.

    In one draw all tops differ and all lefts differ, as released.

    Args:
        grid: Patches (h, w) of the image.
        window: Side of a window in patches.
        count: M, windows of a draw.
        draws: Independent draws: 1 for all images of a batch, or one each.
        replacement: Draw every top and left independently instead, so that
            windows may share rows and columns or be the same.
        device: Where to draw.
        generator: Source of randomness; the device's default if None.

    Returns:
        tops and lefts, (draws, M) int64 each.

    Raises:
        InputError: The window is larger than the grid, or there are fewer
            free rows or columns than windows.
    """
    free = free_positions(grid, window)
    if count < 1:
        raise InputError(f'num_windows is {count}; expected at least 1')
    if not replacement and count > min(free):
        raise InputError(
            f'num_windows is {count}, but windows of {window}x{window} '
            f'patches can begin at only {free[0]} rows and {free[1]} columns '
            f'of a grid of {grid[0]}x{grid[1]}, and no two may share one. '
            f'Use at most {min(free)} windows, smaller windows (window_size) '
            'or larger images, or let windows share rows and columns with '
            'window_replacement=True.'
        )

    def one_axis(positions: int) -> torch.Tensor:
        if replacement:
            return torch.randint(
                positions, (draws, count), device=device, generator=generator
            )
        noise = torch.rand(
            draws, positions, device=device, generator=generator
        )
        return noise.argsort(-1)[:, :count]

    return one_axis(free[0]), one_axis(free[1])


def window_patches(
    tops: torch.Tensor,
    lefts: torch.Tensor,
    window: int,
    grid: tuple[int, int],
) -> torch.Tensor:
    """Which patches of the grid lie in windows.

    :func:`~ropim_mm.models.layers.tokens.take_patches` takes them straight
    from the images.

    Args:
        tops, lefts: int64 (B, M), first row and column of each window.
        window: w, side of a window in patches.
        grid: Patches (h, w) of the image.

    Returns:
        int64 (B, M, w * w), patches row-major inside the window, numbered
        row-major over the grid.
    """
    steps = torch.arange(window, device=tops.device)
    rows = (tops.unsqueeze(-1) + steps).unsqueeze(-1)
    columns = (lefts.unsqueeze(-1) + steps).unsqueeze(-2)
    return (rows * grid[1] + columns).flatten(2)
