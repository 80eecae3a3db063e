"""What the algorithms share: their preprocessor and the door for replay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from mmpretrain.structures import DataSample
from torch import nn

from ...errors import InputError


class SelfSupervisor(BaseSelfSupervisor):
    """MMPretrain's base, in a config of any framework.

    Args:
        data_preprocessor: Default MMPretrain's ``SelfSupDataPreprocessor``,
            by its full name, which is found whatever framework the config is
            for.
        **kwargs: Those of the base.
    """

    def __init__(
        self, data_preprocessor: dict | nn.Module | None = None, **kwargs
    ) -> None:
        if not isinstance(data_preprocessor, nn.Module):
            data_preprocessor = dict(
                dict(type='mmpretrain.SelfSupDataPreprocessor'),
                **(data_preprocessor or {}),
            )
        super().__init__(data_preprocessor=data_preprocessor, **kwargs)


def check_encoder(backbone: nn.Module, method: str, expected: str) -> None:
    """Refuse an encoder that does not give a method all tokens it needs.

    The method takes one output: all tokens of the last block, normalised.

    Args:
        backbone: The encoder, with a token for masked patches.
        method: Name of the algorithm, for the error message.
        expected: Name of its encoder, likewise.

    Raises:
        InputError: It has another output, or no mask token.
    """
    depth = getattr(backbone, 'num_layers', 0)
    found = dict(
        out_type=getattr(backbone, 'out_type', None),
        out_indices=tuple(getattr(backbone, 'out_indices', ())),
        final_norm=getattr(backbone, 'final_norm', None),
        with_mask_token=getattr(backbone, 'mask_token', None) is not None,
    )
    wanted = dict(
        out_type='raw',
        out_indices=(depth - 1,),
        final_norm=True,
        with_mask_token=True,
    )
    if found != wanted:
        raise InputError(
            f'model.backbone, a {type(backbone).__name__} of {depth} blocks, '
            f'has {found}; {method} needs {wanted} of {expected}'
        )


def replayed(
    data_samples: Sequence[DataSample] | None,
    name: str,
    batch: int,
    shape: tuple[int, ...] | None = None,
    meaning: str = '',
) -> torch.Tensor | None:
    """A random decision that the data samples bring along.

    Args:
        data_samples: B samples, or none.
        name: The field.
        batch: B.
        shape: What each sample's value must have; None if it only must be
            the same for all.
        meaning: What the shape says, for the error message.

    Returns:
        (B, ...), where the samples keep it; None if they have no such field.

    Raises:
        InputError: Only some samples have it, or a shape is another.
    """
    given = [s.get(name) for s in data_samples or () if name in s]
    if not given:
        return None
    if len(given) != batch:
        raise InputError(
            f'of {batch} data samples {len(given)} carry `{name}`; expected '
            'it on all of them, or on none'
        )
    shapes = {tuple(value.shape) for value in given}
    if len(shapes) != 1 or shapes != {shape or next(iter(shapes))}:
        expected = shape or 'the same on all data samples of a batch'
        meaning = f', {meaning}' if meaning else ''
        raise InputError(
            f'`{name}` has shapes {sorted(shapes)}; expected '
            f'{expected}{meaning}'
        )
    return torch.stack(given)
