"""What files say about BEiT-style encoders, and how they name it.

Names: those of BEiT, timm and ROPIM, and ours, which are MMPretrain's. The
correspondence is one to one, and where plain ViTs have the same parts, timm
and MMPretrain name these the same way. Sizes: the architectures that have a
name, and the grid behind a relative position bias table.
"""

import re

from torch import Tensor

from ..errors import InputError

# Width, blocks, heads and hidden width of the MLPs.
ARCHS = {
    'tiny': (192, 12, 3, 768),
    'small': (384, 12, 6, 1536),
    'base': (768, 12, 12, 3072),
    'large': (1024, 24, 16, 4096),
}

# Rows of a table after those of the offsets: class token to any, any to class
# token, class token to itself.
NUM_CLASS_ROWS = 3

# Ours on the left.
_OUTSIDE_BLOCKS = {
    'cls_token': 'cls_token',
    'pos_embed': 'pos_embed',
    'mask_token': 'mask_token',
    'patch_embed.projection.weight': 'patch_embed.proj.weight',
    'patch_embed.projection.bias': 'patch_embed.proj.bias',
    'rel_pos_bias.relative_position_bias_table': (
        'rel_pos_bias.relative_position_bias_table'
    ),
    'rel_pos_bias.relative_position_index': (
        'rel_pos_bias.relative_position_index'
    ),
    'ln1.weight': 'norm.weight',
    'ln1.bias': 'norm.bias',
    'ln2.weight': 'fc_norm.weight',
    'ln2.bias': 'fc_norm.bias',
}
_IN_BLOCK = {
    'gamma_1': 'gamma_1',
    'gamma_2': 'gamma_2',
    'ln1.weight': 'norm1.weight',
    'ln1.bias': 'norm1.bias',
    'ln2.weight': 'norm2.weight',
    'ln2.bias': 'norm2.bias',
    'attn.q_bias': 'attn.q_bias',
    'attn.v_bias': 'attn.v_bias',
    'attn.qkv.weight': 'attn.qkv.weight',
    'attn.qkv.bias': 'attn.qkv.bias',
    'attn.proj.weight': 'attn.proj.weight',
    'attn.proj.bias': 'attn.proj.bias',
    'attn.relative_position_bias_table': 'attn.relative_position_bias_table',
    'attn.relative_position_index': 'attn.relative_position_index',
    'ffn.layers.0.0.weight': 'mlp.fc1.weight',
    'ffn.layers.0.0.bias': 'mlp.fc1.bias',
    'ffn.layers.1.weight': 'mlp.fc2.weight',
    'ffn.layers.1.bias': 'mlp.fc2.bias',
}
_OUTSIDE_BLOCKS_BACK = {v: k for k, v in _OUTSIDE_BLOCKS.items()}
_IN_BLOCK_BACK = {v: k for k, v in _IN_BLOCK.items()}


def from_beit(name: str) -> str | None:
    """Our name of one of BEiT's tensors, ``None`` if there is none.

    >>> from_beit('blocks.3.mlp.fc1.bias')
    'layers.3.ffn.layers.0.0.bias'
    """
    block = re.fullmatch(r'blocks\.(\d+)\.(.+)', name)
    if block is None:
        return _OUTSIDE_BLOCKS_BACK.get(name)
    own = _IN_BLOCK_BACK.get(block[2])
    return own and f'layers.{block[1]}.{own}'


def to_beit(name: str) -> str | None:
    """BEiT's name of one of our tensors, ``None`` if there is none.

    >>> to_beit('layers.3.ffn.layers.0.0.bias')
    'blocks.3.mlp.fc1.bias'
    """
    layer = re.fullmatch(r'layers\.(\d+)\.(.+)', name)
    if layer is None:
        return _OUTSIDE_BLOCKS.get(name)
    other = _IN_BLOCK.get(layer[2])
    return other and f'blocks.{layer[1]}.{other}'


def _rows(grid: tuple[int, int]) -> int:
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + NUM_CLASS_ROWS


def grid_of_table(
    rows: int,
    index: Tensor | None = None,
    expected: tuple[int, int] | None = None,
    saved: Tensor | None = None,
) -> tuple[int, int]:
    """The grid (h, w) a table was made for.

    Args:
        rows: Rows of the table.
        index: Its ``relative_position_index`` (1 + L, 1 + L) when the file
            has one. It settles non-square grids.
        expected: Grid of the model, believed if its table has as many rows
            and nothing speaks against it.
        saved: Its ``relative_position_grid`` (2,) when the file has one, as
            those of windows do: it settles everything.

    Raises:
        InputError: No grid, or no unambiguous one, has such a table.
    """
    spatial = rows - NUM_CLASS_ROWS
    if saved is not None:
        height, width = grid = tuple(saved.tolist())
        if min(grid) < 1 or _rows(grid) != rows:
            raise InputError(
                f'relative_position_grid says {height}x{width}, which is not '
                f'the grid of a table of {rows} rows'
            )
        return grid
    if index is not None:
        tokens = index.shape[0] - 1
        # (2h-1)(2w-1) = 4hw - 2(h+w) + 1 gives the sum, hw the product.
        total, rest = divmod(4 * tokens + 1 - spatial, 2)
        sides = [(h, total - h) for h in range(1, total)]
        # The next row's first key is 2w-1 table rows away. A single row and
        # a single column of tokens look the same: the model's grid decides.
        grids = [
            (h, w)
            for h, w in sides
            if not rest
            and h * w == tokens
            and (1 in (h, w) or index[1, 1] - index[1, 1 + w] == 2 * w - 1)
        ]
        if grids:
            return expected if expected in grids else grids[0]
        raise InputError(
            f'a table of {rows} rows does not belong to an index of '
            f'{tuple(index.shape)}'
        )
    if expected is not None and _rows(expected) == rows:
        return expected
    side = round(spatial**0.5)
    if spatial < 1 or side * side != spatial or side % 2 == 0:
        raise InputError(
            f'a relative position bias table of {rows} rows belongs to no '
            'square grid, and the file has no relative_position_index that '
            'says which other grid it is for'
        )
    return ((side + 1) // 2,) * 2
