"""Names in the released LoMaR checkpoints.

A pretraining file has a ViT without prefix, an iRPE table in each block, a
mask token, a final norm and ``encoder_pred``, the linear layer that predicts
pixels. A fine-tuned file has the encoder, ``fc_norm`` after pooling (or
``norm``, where the class token is classified) and ``head``. Both may hold a
table of absolute positions that no forward pass reads.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ..beit_names import from_beit
from ..reading import CheckpointError

_UNUSED = ('pos_embed',)
_OUTSIDE = {
    'encoder_pred.weight': 'neck.pred.weight',
    'encoder_pred.bias': 'neck.pred.bias',
    'head.weight': 'head.fc.weight',
    'head.bias': 'head.fc.bias',
}
_TABLE = 'attn.rpe_k.lookup_table_weight'


def _own(name: str) -> str | None:
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    table = re.fullmatch(rf'blocks\.(\d+)\.{re.escape(_TABLE)}', name)
    if table is not None:
        return f'backbone.layers.{table[1]}.{_TABLE}'
    in_encoder = from_beit(name)
    return in_encoder and f'backbone.{in_encoder}'


def dropped(names: Iterable[str]) -> list[str]:
    """The absolute positions: frozen, saved, and never read."""
    return [name for name in names if name in _UNUSED]


def convert(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released names to ours, one for one.

    Args:
        state_dict: The weights of a pretraining or a fine-tuned model.

    Returns:
        dict[str, Tensor]: Our names to the same tensors, without the
        absolute positions.

    Raises:
        CheckpointError: A name is not one of the released models'.
    """
    converted: dict[str, Tensor] = {}
    unknown = []
    left_out = set(dropped(state_dict))
    for name, tensor in state_dict.items():
        if name in left_out:
            continue
        own = _own(name)
        if own is None:
            unknown.append(name)
        else:
            converted[own] = tensor
    if unknown:
        hint = ''
        if any(name.startswith('backbone.') for name in unknown):
            hint = " The file seems to be in this project's format already."
        raise CheckpointError(
            'These are not names of a released LoMaR model: '
            f'{", ".join(unknown)}. Expected cls_token, patch_embed.proj.*, '
            'blocks.N.*, with blocks.N.attn.rpe_k.lookup_table_weight, '
            f'encoder_pred.* or head.* and the like.{hint}'
        )
    return converted
