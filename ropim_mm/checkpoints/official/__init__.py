"""The released checkpoint formats, one module a method."""

from collections.abc import Callable, Mapping

from torch import Tensor

from ..reading import CheckpointError
from . import ropim

# A converter takes the weights of a released file and returns ours, tensor
# by tensor, with the same tensors under other names.
CONVERTERS: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    'ropim': ropim.convert,
}


def convert_state_dict(
    method: str, state_dict: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weights of a released checkpoint under this project's names.

    Args:
        method: Key of :data:`CONVERTERS`.
        state_dict: Released names to tensors, of a pretraining or a
            fine-tuned model; not changed.

    Returns:
        dict[str, Tensor]: ``backbone.*``, ``neck.*`` or ``head.*`` to the
        same tensors, one for one.

    Raises:
        CheckpointError: There is no such method, or the names are not those
            of its released files.
    """
    if method not in CONVERTERS:
        raise CheckpointError(
            f'There is no converter for {method!r}. Available: '
            f'{", ".join(sorted(CONVERTERS))}.'
        )
    converted = CONVERTERS[method](state_dict)
    if len(converted) != len(state_dict):
        raise AssertionError(
            f'{method}: {len(state_dict)} tensors became {len(converted)}'
        )
    return converted
