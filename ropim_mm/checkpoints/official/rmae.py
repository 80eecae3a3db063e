"""Names in the released R-MAE checkpoints.

A file holds one model without a prefix: a plain ViT, MAE's decoder
(``decoder_*`` and ``mask_token``, absent where it learned from regions
alone) and the region branch (``region_*``, absent where it had no regions).
No fine-tuning was released; a classifier on such an encoder is read under the
names of its kin (``fc_norm``, ``head``).
"""

import re
from collections.abc import Mapping

from torch import Tensor

from ..beit_names import from_beit
from ..reading import CheckpointError

# What stands alone, and what weight and bias follow.
_SINGLE = {
    'cls_token': 'backbone.cls_token',
    'pos_embed': 'backbone.pos_embed',
    'mask_token': 'neck.mask_token',
    'decoder_pos_embed': 'neck.decoder_pos_embed',
    'region_pos_embed': 'region_branch.encoder.pos_embed',
    'region_cross_mask_token': 'region_branch.memory.mask_token',
    'region_cross_pos_embed': 'region_branch.memory.decoder_pos_embed',
}
_PAIRS = {
    'patch_embed.proj': 'backbone.patch_embed.projection',
    'norm': 'backbone.ln1',
    'fc_norm': 'backbone.ln2',
    'head': 'head.fc',
    'decoder_embed': 'neck.decoder_embed',
    'decoder_norm': 'neck.ln1',
    'decoder_pred': 'neck.decoder_pred',
    'region_patch_embed.proj': 'region_branch.encoder.patch_embed.projection',
    'region_cross_embed': 'region_branch.memory.decoder_embed',
    'region_dec_norm': 'region_branch.memory.ln1',
    'region_proj.0': 'region_branch.to_query.0',
    'region_proj.1': 'region_branch.to_query.1',
    'region_pred.1': 'region_branch.pred',
}
_BLOCKS = {
    'blocks': 'backbone.layers',
    'decoder_blocks': 'neck.decoder_blocks',
    'region_enc_blocks': 'region_branch.encoder.layers',
    'region_cross_blocks': 'region_branch.memory.decoder_blocks',
}
# The query decoder's last block is the expansion, which maps the memory.
_QUERY = {
    'norm1': 'ln1',
    'attn.qkv': 'attn.qkv',
    'attn.proj': 'attn.proj',
    'norm2': 'ln2',
    'cross_attn.q': 'cross_attn.q',
    'cross_attn.kv': 'cross_attn.kv',
    'cross_attn.proj': 'cross_attn.proj',
    'norm3': 'ln3',
    'mlp.fc1': 'ffn.layers.0.0',
    'mlp.fc2': 'ffn.layers.1',
}
_EXPANSION = {
    'norm1': 'ln1',
    'attn.qkv': 'attn.qkv',
    'attn.proj': 'attn.proj',
    'proj': 'memory',
    'norm3': 'ln2',
    'mlp.fc1': 'ffn.layers.0.0',
    'mlp.fc2': 'ffn.layers.1',
}


def convert(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released names to ours, one for one.

    Args:
        state_dict: The weights of a pretraining model.

    Returns:
        dict[str, Tensor]: Our names to the same tensors.

    Raises:
        CheckpointError: A name is not one of the released model's.
    """
    query_blocks = [
        int(match[1])
        for match in (
            re.match(r'region_dec_blocks\.(\d+)\.', n) for n in state_dict
        )
        if match
    ]
    last = max(query_blocks, default=0)
    converted: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state_dict.items():
        own = _own_name(name, last)
        if own is None:
            unknown.append(name)
        else:
            converted[own] = tensor
    if unknown:
        hint = ''
        if any(n.startswith(('backbone.', 'neck.')) for n in unknown):
            hint = " The file seems to be in this project's format already."
        raise CheckpointError(
            'These are not names of a released R-MAE model: '
            f'{", ".join(unknown)}. Expected cls_token, patch_embed.proj.*, '
            'blocks.N.*, decoder_blocks.N.*, region_cross_blocks.N.* and the '
            f'like.{hint}'
        )
    return converted


def _own_name(name: str, last_query_block: int) -> str | None:
    """Our name of a released tensor, None if there is none."""
    if name in _SINGLE:
        return _SINGLE[name]
    module, _, kind = name.rpartition('.')
    if kind not in ('weight', 'bias'):
        return None
    if module in _PAIRS:
        return f'{_PAIRS[module]}.{kind}'
    block = re.fullmatch(r'(\w+)\.(\d+)\.(.+)', module)
    if block is None:
        return None
    group, number, rest = block.groups()
    if group in _BLOCKS:
        if rest == 'attn.qkv':
            own = f'attn.qkv.{kind}'
        else:
            encoder_name = from_beit(f'blocks.0.{rest}.{kind}')
            own = encoder_name and encoder_name.removeprefix('layers.0.')
        return own and f'{_BLOCKS[group]}.{number}.{own}'
    if group == 'region_dec_blocks':
        if int(number) == last_query_block:
            own, place = _EXPANSION.get(rest), 'region_branch.expansion'
        else:
            own, place = _QUERY.get(rest), f'region_branch.layers.{number}'
        return own and f'{place}.{own}.{kind}'
    return None
