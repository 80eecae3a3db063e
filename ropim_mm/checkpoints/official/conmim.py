"""Names in the released ConMIM checkpoints.

Pretraining writes two files an epoch, of one layout: ``checkpoint-<e>.pth``
has the student, ``checkpoint_copy-<e>.pth`` its momentum copy, which is what
fine-tuning starts from. Each holds a BEiT-style ViT without prefix (one
relative position table for all blocks, a mask token, a final norm), the
projector as ``projectors.N`` and an output layer ``lm_head`` that nothing
trains. A fine-tuned file has the encoder with a table a block, ``fc_norm``
after pooling and ``head``.
"""

import os
import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ..beit_names import from_beit
from ..reading import CheckpointError

MOMENTUM = 'momentum.'

# Numbers 2 and 5 are ReLUs.
_PROJECTOR = {
    '0': 'fc0',
    '1': 'bn0',
    '3': 'fc1',
    '4': 'bn1',
    '6': 'fc2',
    '7': 'bn2',
}
_IN_LAYER = (
    'weight',
    'bias',
    'running_mean',
    'running_var',
    'num_batches_tracked',
)
_HEAD = {'head.weight': 'head.fc.weight', 'head.bias': 'head.fc.bias'}
_UNUSED = ('lm_head.weight', 'lm_head.bias')


def _own(name: str) -> str | None:
    if name in _HEAD:
        return _HEAD[name]
    layer = re.fullmatch(r'projectors\.(\d)\.(\w+)', name)
    if layer is not None:
        if layer[1] in _PROJECTOR and layer[2] in _IN_LAYER:
            return f'neck.{_PROJECTOR[layer[1]]}.{layer[2]}'
        return None
    in_encoder = from_beit(name)
    return in_encoder and f'backbone.{in_encoder}'


def dropped(names: Iterable[str]) -> list[str]:
    """Those of the output layer, which has no gradient in the release."""
    return [name for name in names if name in _UNUSED]


def convert(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released names of one file to ours, one for one.

    The names are those of the student (``backbone.*``, ``neck.*``) or of a
    classifier (``backbone.*``, ``head.*``); :func:`join` makes a whole model
    of a student and a copy.

    Args:
        state_dict: The weights of a student, a momentum copy or a fine-tuned
            model.

    Returns:
        dict[str, Tensor]: Our names to the same tensors, without the output
        layer.

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
            'These are not names of a released ConMIM model: '
            f'{", ".join(unknown)}. Expected cls_token, patch_embed.proj.*, '
            'blocks.N.*, projectors.N.*, lm_head.* or head.* and the '
            f'like.{hint}'
        )
    return converted


def join(
    student: Mapping[str, Tensor], copy: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """A whole pretraining model of two converted files.

    Args:
        student: What :func:`convert` gave for the student.
        copy: And for its momentum copy. None where there is but one file:
            student and copy of the model are then equal, as they are when
            training starts.

    Returns:
        dict[str, Tensor]: ``backbone.*`` and ``neck.*`` of the student,
        ``momentum.backbone.*`` and ``momentum.neck.*`` of the copy. A
        fine-tuned model stays as it is.

    Raises:
        CheckpointError: The two are not of one model.
    """
    if not any(name.startswith('neck.') for name in student):
        if copy is not None:
            raise CheckpointError(
                'a momentum copy was given with a file that has no '
                'projectors.*, which only pretraining files have. Convert '
                'the file alone'
            )
        return dict(student)
    copy = student if copy is None else copy
    odd = sorted(
        name
        for name in {**student, **copy}
        if name not in student
        or name not in copy
        or student[name].shape != copy[name].shape
    )
    if odd:
        raise CheckpointError(
            'student and momentum copy are not of one model: '
            f'{", ".join(odd[:10])} differ in shape or are in one of the two '
            'only'
        )
    return {**student, **{MOMENTUM + n: t for n, t in copy.items()}}


def find_pair(path: str | os.PathLike) -> tuple[str, str | None]:
    """Student and momentum copy, where they lie beside each other.

    Args:
        path: One of ``checkpoint-<e>.pth`` and ``checkpoint_copy-<e>.pth``,
            or a file of any other name.

    Returns:
        tuple[str, str | None]: The file to convert first, the student if
        there is one, and the copy; None where ``path`` has no other half.
    """
    path = os.fspath(path)
    folder, name = os.path.split(path)
    match = re.fullmatch(r'checkpoint(_copy)?(-.+\.pth)', name)
    if match is None:
        return path, None
    student = os.path.join(folder, f'checkpoint{match[2]}')
    copy = os.path.join(folder, f'checkpoint_copy{match[2]}')
    if os.path.isfile(student) and os.path.isfile(copy):
        return student, copy
    return path, None
