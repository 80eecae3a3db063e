"""What the tensors of an encoder say about it: family, size, grid."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..errors import InputError
from .beit_names import ARCHS, grid_of_table

TABLE = 'relative_position_bias_table'
INDEX = 'relative_position_index'
# (h, w) of the table of a window, which has no index.
GRID = 'relative_position_grid'
# The table of contextual relative positions on keys: (1, head width, buckets).
KEY_TABLE = 'attn.rpe_k.lookup_table_weight'

# What every encoder has.
PATCH_WEIGHT = 'patch_embed.projection.weight'

# How positions enter, which is what tells the encoders apart.
BEIT = 'BEiT-style'
PLAIN = 'plain ViT'
IRPE = 'ViT with iRPE'


@dataclass(frozen=True)
class EncoderShape:
    """What the tensors of an encoder say about it.

    Attributes:
        family: :data:`BEIT` (relative position bias; ROPIM and ConMIM),
            :data:`PLAIN` (absolute positions; R-MAE) or :data:`IRPE` (LoMaR).
        arch: Name of the architecture, or its numbers.
        patch_size: (height, width) of a patch.
        grid: (h, w) that positions were made for. None where the tensors do
            not say it or differ, and always with iRPE, whose tables fit every
            grid.
        grids: All of them, where tables of blocks differ: those of windows
            and those of the whole image.
    """

    family: str
    arch: str
    patch_size: tuple[int, int]
    grid: tuple[int, int] | None
    grids: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        def size(pair: tuple[int, int]) -> str:
            return f'{pair[0]}x{pair[1]}'

        grid = 'unknown' if self.grid is None else size(self.grid)
        if self.grids:
            grid = ' and '.join(map(size, self.grids))
        if self.family == IRPE:
            grid = 'any'
        return (
            f'{self.family}, arch {self.arch}, patch {size(self.patch_size)}, '
            f'grid {grid}'
        )


def family_of(weights: Mapping[str, Tensor]) -> str:
    """:data:`BEIT`, :data:`PLAIN` or :data:`IRPE`.

    Args:
        weights: Our names, without ``backbone.``.
    """
    if any(name.endswith(KEY_TABLE) for name in weights):
        return IRPE
    ends = (TABLE, 'attn.q_bias', '.gamma_1')
    return BEIT if any(name.endswith(ends) for name in weights) else PLAIN


def encoder_shape(weights: Mapping[str, Tensor]) -> EncoderShape:
    """Reads family, architecture, patch and grid from an encoder's tensors.

    Args:
        weights: Our names, without ``backbone.``.

    Returns:
        EncoderShape: A grid is taken to be square where nothing says another.
    """
    projection = weights[PATCH_WEIGHT]
    layers = {n.split('.')[1] for n in weights if n.startswith('layers.')}
    width, depth = projection.shape[0], len(layers)
    hidden = weights.get('layers.0.ffn.layers.0.0.bias')
    found = (
        width,
        depth,
        _heads(weights, width),
        None if hidden is None else len(hidden),
    )
    names = [name for name, arch in ARCHS.items() if _fits(found, arch)]
    if names:
        name = names[0]
    else:
        name = f'{width} wide, {depth} blocks'
        name += f', {found[2]} heads' if found[2] else ''
    grids = _grids(weights)
    return EncoderShape(
        family_of(weights),
        name,
        tuple(projection.shape[2:]),
        grids[0] if len(grids) == 1 else None,
        grids if len(grids) > 1 else (),
    )


def _fits(found: tuple[int | None, ...], arch: tuple[int, ...]) -> bool:
    """Whether all numbers that are known agree."""
    pairs = zip(found, arch, strict=True)
    return all(a is None or a == b for a, b in pairs)


def _heads(weights: Mapping[str, Tensor], width: int) -> int | None:
    """A plain ViT's tensors do not say it."""
    for name, tensor in weights.items():
        if name.endswith(TABLE):
            return tensor.shape[1]
        if name.endswith(KEY_TABLE):
            return width // tensor.shape[1]
    return None


def _grids(weights: Mapping[str, Tensor]) -> tuple[tuple[int, int], ...]:
    """Each grid once; none where one of them is not known."""
    tables = [
        name.removesuffix(TABLE) for name in weights if name.endswith(TABLE)
    ]
    if tables:
        try:
            grids = [
                grid_of_table(
                    len(weights[start + TABLE]),
                    weights.get(start + INDEX),
                    saved=weights.get(start + GRID),
                )
                for start in tables
            ]
        except InputError:  # not square, and the file does not say what else
            return ()
        return tuple(dict.fromkeys(grids))
    positions = weights.get('pos_embed')
    if positions is None:
        return ()
    length = positions.shape[1] - 1
    side = math.isqrt(length)
    return ((side, side),) if side * side == length else ()
