"""Names of BEiT-style encoders: those of BEiT, timm and ROPIM, and ours.

Ours are MMPretrain's. The correspondence is one to one.
"""

import re

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
