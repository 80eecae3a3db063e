"""The released checkpoint formats, one module a method."""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from ..reading import CheckpointError
from . import conmim, lomar, rmae, ropim

# A converter takes the weights of a released file and returns ours: the same
# tensors under other names.
CONVERTERS: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    'conmim': conmim.convert,
    'lomar': lomar.convert,
    'rmae': rmae.convert,
    'ropim': ropim.convert,
}

# Names of a method's released files that have no place in its models here.
# All others must come out of its converter.
DROPPED: dict[str, Callable[[Iterable[str]], list[str]]] = {
    'conmim': conmim.dropped,
    'lomar': lomar.dropped,
}

# Methods whose student and momentum copy are released in two files: modules
# with `find_pair`, which looks for the other file, and `join`, which makes one
# model of both.
PAIRED = {'conmim': conmim}


def dropped_names(method: str, names: Iterable[str]) -> list[str]:
    """Which tensors of a released file :func:`convert_state_dict` leaves out.

    Args:
        method: Key of :data:`CONVERTERS`.
        names: Released names.

    Returns:
        list[str]: Those without a place in this project's models.
    """
    return DROPPED[method](names) if method in DROPPED else []


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
        same tensors, one for one and in the same order, without those of
        :func:`dropped_names`.

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
    dropped = dropped_names(method, state_dict)
    if len(converted) + len(dropped) != len(state_dict):
        raise AssertionError(
            f'{method}: {len(state_dict)} tensors became {len(converted)} '
            f'and {len(dropped)} dropped ones'
        )
    return converted
