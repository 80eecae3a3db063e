"""Names in the released ROPIM checkpoints.

A pretraining file has ``encoder.*`` (a BEiT-style ViT with one relative
position table for all blocks and a final norm) and ``decoder.0.*`` (a 1x1
convolution). A fine-tuned file has the encoder without prefix, with a table a
block, ``fc_norm`` after pooling (or ``norm``, where the class token is used)
and ``head``.
"""

from collections.abc import Mapping

from torch import Tensor

from ..beit_names import from_beit
from ..reading import CheckpointError

_PRETRAINING = {
    'decoder.0.weight': 'neck.decoder.0.weight',
    'decoder.0.bias': 'neck.decoder.0.bias',
}
_FINE_TUNED = {'head.weight': 'head.fc.weight', 'head.bias': 'head.fc.bias'}


def convert(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released names to ours, one for one.

    Args:
        state_dict: The weights of a pretraining or a fine-tuned model.

    Returns:
        dict[str, Tensor]: Our names to the same tensors.

    Raises:
        CheckpointError: A name is not one of the released models'.
    """
    pretraining = any(name.startswith('encoder.') for name in state_dict)
    outside = _PRETRAINING if pretraining else _FINE_TUNED
    encoder = 'encoder.' if pretraining else ''
    converted: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state_dict.items():
        own = outside.get(name)
        if own is None and name.startswith(encoder):
            in_encoder = from_beit(name[len(encoder) :])
            own = in_encoder and f'backbone.{in_encoder}'
        if own is None:
            unknown.append(name)
        else:
            converted[own] = tensor
    if unknown:
        hint = ''
        if any(name.startswith('backbone.') for name in unknown):
            hint = " The file seems to be in this project's format already."
        kind = 'pretraining' if pretraining else 'fine-tuned'
        raise CheckpointError(
            f'These are not names of a released ROPIM {kind} model: '
            f'{", ".join(unknown)}. Expected {encoder}cls_token, '
            f'{encoder}patch_embed.proj.*, {encoder}blocks.N.*, '
            f'{", ".join(outside)} and the like.{hint}'
        )
    return converted
