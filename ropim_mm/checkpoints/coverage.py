"""Loading weights with a report of what matched and what did not."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import get_state_dict
from torch import Tensor, nn

from ..errors import InputError
from .encoders import PATCH_WEIGHT, family_of
from .reading import CheckpointError
from .shards import KEY as SHARDS

# Where checkpoints of different origins keep their weights.
WEIGHT_ENTRIES = ('state_dict', 'model', 'module')

# Derived from the shape of the model, so no evidence of a match or mismatch.
_DERIVED = re.compile(
    r'(^|\.)(relative_position_(index|grid)|num_batches_tracked)$'
)


class ShapeMismatch(NamedTuple):
    """A tensor whose shape in the file differs from the model's."""

    name: str
    found: tuple[int, ...]
    expected: tuple[int, ...]


@dataclass(frozen=True)
class CoverageReport:
    """What a set of weights covers of a module.

    Index buffers are counted nowhere. Names are those of the module, without
    the prefix they had in the file.

    Attributes:
        source: Where the weights come from.
        target: Class of the module.
        prefix: Prefix of the names in the file, '' for none.
        matched: Tensors found with the right shape.
        missing: Tensors of the module that the weights should have.
        mismatched: Tensors found with another shape.
        unexpected: Tensors left over that are not known to be superfluous.
        fresh: Tensors of the module that may be and are absent.
        superfluous: Left-over tensors that only pretraining needs, or that
            the user skips.
        parameters: Number of values in the matched tensors.
        total_parameters: Number of values in all tensors of the module.
        notes: How names were adapted.
    """

    source: str
    target: str
    prefix: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: tuple[ShapeMismatch, ...]
    unexpected: tuple[str, ...]
    fresh: tuple[str, ...]
    superfluous: tuple[str, ...]
    parameters: int
    total_parameters: int
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Number of tensors of the module."""
        return (
            len(self.matched)
            + len(self.missing)
            + len(self.mismatched)
            + len(self.fresh)
        )

    @property
    def complete(self) -> bool:
        """Whether everything expected matched and nothing is left over."""
        return not (self.missing or self.mismatched or self.unexpected)

    def counts(self) -> str:
        """``matched n of m tensors, p of q parameters``."""
        return (
            f'matched {len(self.matched)} of {self.total} tensors, '
            f'{self.parameters:,} of {self.total_parameters:,} parameters'
        )

    def __str__(self) -> str:
        lines = [f'{self.target} from {self.source}: {self.counts()}']
        lines += self.notes
        if self.fresh:
            lines.append(f'left as initialised: {", ".join(self.fresh)}')
        if self.superfluous:
            names = ', '.join(self.superfluous)
            lines.append(f'not used from the file: {names}')
        return '\n  '.join(lines)


class CoverageError(CheckpointError):
    """Weights do not fit the module they are meant for.

    Attributes:
        report (CoverageReport): What matched and what did not.
    """

    def __init__(self, report: CoverageReport, cure: str) -> None:
        self.report = report
        under = f' under the prefix {report.prefix!r}' if report.prefix else ''
        lines = [
            f'{report.source} does not fit {report.target}{under}: '
            f'{report.counts()}. Nothing was loaded.',
            *report.notes,
        ]
        lines += _listing('missing in the file', report.missing)
        lines += _listing(
            'other shape in the file',
            [
                f'{name}: found {found}, expected {expected}'
                for name, found, expected in report.mismatched
            ],
        )
        lines += _listing('unexpected in the file', report.unexpected)
        lines.append(cure)
        super().__init__('\n'.join(lines))


def _listing(title: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [f'{title} ({len(names)}):', *(f'  {name}' for name in names)]


def find_state_dict(content: Mapping, source: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint, whatever entry it keeps them in.

    The prefix ``module.`` that data-parallel wrappers add is removed.

    Args:
        content: What :func:`read_checkpoint` gave: a state dict, or a
            dictionary with one as ``state_dict``, ``model`` or ``module``.
        source: Name of the file, for messages.

    Returns:
        dict[str, Tensor]: Names to tensors; other values are left out.

    Raises:
        CheckpointError: There are no tensors, or two have the same name
            once ``module.`` is removed; or these are a part of a sharded
            checkpoint.
    """
    if isinstance(content.get(SHARDS), Mapping):
        raise CheckpointError(
            f'{source} is one part of a checkpoint that several processes '
            'wrote. Put them together first: '
            'tools/model_converters/merge_shards.py'
        )
    entries = content
    for _ in range(2):  # for instance {'model': {'module': {...}}}
        for entry in WEIGHT_ENTRIES:
            if isinstance(entries.get(entry), Mapping):
                entries = entries[entry]
                break
    tensors: dict[str, Tensor] = {}
    for name, value in entries.items():
        if not isinstance(value, Tensor):
            continue
        name = str(name).removeprefix('module.')
        if name in tensors:
            raise CheckpointError(
                f'{source} holds both {name} and module.{name}. Expected '
                'one of them; keep the one that is meant.'
            )
        tensors[name] = value
    if not tensors:
        raise CheckpointError(
            f'{source} holds no weights. Found the entries '
            f'{sorted(map(str, content))}; expected tensors, or a dictionary '
            f'of tensors under one of {", ".join(WEIGHT_ENTRIES)}.'
        )
    return tensors


def matches_prefix(name: str, prefixes: Iterable[str]) -> bool:
    """Whether ``name`` is one of ``prefixes`` or lies under one of them."""
    return any(
        name == prefix.rstrip('.') or name.startswith(prefix.rstrip('.') + '.')
        for prefix in prefixes
    )


def select_prefix(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    prefix: str,
    source: str,
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors under a prefix, with the prefix removed.

    A file that holds only the module itself, without any prefix, is taken as
    it is whatever ``prefix`` says.

    Args:
        module: Whose tensors are wanted.
        tensors: All tensors of the file.
        prefix: With or without the final dot; '' for none.
        source: Name of the file, for messages.

    Returns:
        tuple: Names to tensors, and remarks for the report.

    Raises:
        CheckpointError: Nothing is under the prefix; the message lists the
            prefixes that exist.
    """
    if prefix and not prefix.endswith('.'):
        prefix += '.'
    selected = {
        name[len(prefix) :]: tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    own = [n for n in module.state_dict() if not _DERIVED.search(n)]
    if prefix and not selected and any(name in tensors for name in own):
        remark = f'the file has no prefix {prefix!r}: its names are used as is'
        return dict(tensors), (remark,)
    if selected and (prefix or any(name in selected for name in own)):
        return selected, ()

    # Where the file does hold tensors named as this module names its own.
    fitting = Counter(
        name[: -len(mine)]
        for mine in own
        for name in tensors
        if name.endswith('.' + mine)
    ).most_common(1)
    if fitting and fitting[0][1] > len(own) // 2:
        cure = f'The names fit with prefix={fitting[0][0]!r}.'
    else:
        cure = _cure_of_names(tensors) or (
            'Give the prefix under which the file keeps this module.'
        )
    raise CheckpointError(
        f'{source} holds no tensor of {type(module).__name__} under the '
        f'prefix {prefix!r}. Found {prefixes_of(tensors)}. {cure}'
    )


def prefixes_of(names: Iterable[str]) -> str:
    """What names begin with, for messages."""
    first = Counter(name.split('.', 1)[0] + '.' for name in names)
    if not first:
        return 'nothing'
    found = (f'{p!r} ({n} tensors)' for p, n in first.most_common(8))
    return f'the prefixes {", ".join(found)}'


def _cure_of_names(names: Iterable[str]) -> str:
    """Advice for files with names of the released codes, '' for others."""
    if any(re.match(r'(encoder\.)?blocks\.\d+\.', name) for name in names):
        return (
            'These are names of a released file. Convert it first: python '
            'tools/model_converters/official_to_mm.py METHOD SRC DST'
        )
    return ''


def _cure_of_family(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> str:
    """Advice where the file has another method's encoder, '' elsewhere."""
    if not all(PATCH_WEIGHT in names for names in (tensors, own)):
        return ''
    found, expected = family_of(tensors), family_of(own)
    if found == expected:
        return ''
    return (
        f'The file holds a {found} encoder, expected was a {expected} one: '
        'is it of another method? Use the backbone of the method that made '
        'it.'
    )


def compare(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    prefix: str = '',
    fresh_keys: Sequence[str] = (),
    superfluous_keys: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> CoverageReport:
    """Compares names and shapes; loads nothing.

    Args:
        module: The module the weights are meant for.
        tensors: Names (those of the module) to tensors.
        source: Name of the file.
        prefix: Prefix the names had in the file, for messages.
        fresh_keys: Prefixes of tensors that may be missing.
        superfluous_keys: Prefixes of tensors that may be left over.
        notes: Remarks to carry in the report.

    Returns:
        CoverageReport: The result.
    """
    expected = {
        name: tensor
        for name, tensor in get_state_dict(module).items()
        if isinstance(tensor, Tensor) and not _DERIVED.search(name)
    }
    matched, missing, mismatched, fresh = [], [], [], []
    for name, tensor in expected.items():
        if name not in tensors:
            absent_ok = matches_prefix(name, fresh_keys)
            (fresh if absent_ok else missing).append(name)
        elif tensors[name].shape != tensor.shape:
            found = tuple(tensors[name].shape)
            mismatched.append(ShapeMismatch(name, found, tuple(tensor.shape)))
        else:
            matched.append(name)
    unexpected, superfluous = [], []
    for name in tensors:
        if name not in expected and not _DERIVED.search(name):
            known = matches_prefix(name, superfluous_keys)
            (superfluous if known else unexpected).append(name)
    return CoverageReport(
        source=source,
        target=type(module).__name__,
        prefix=prefix,
        matched=tuple(matched),
        missing=tuple(missing),
        mismatched=tuple(mismatched),
        unexpected=tuple(unexpected),
        fresh=tuple(fresh),
        superfluous=tuple(superfluous),
        parameters=sum(expected[name].numel() for name in matched),
        total_parameters=sum(t.numel() for t in expected.values()),
        notes=tuple(notes),
    )


def load_weights(
    module: nn.Module,
    state_dict: Mapping,
    *,
    source: str,
    prefix: str = '',
    skip_keys: Sequence[str] = (),
) -> CoverageReport:
    """Loads weights into a module, completely or not at all.

    The module may say how it differs from files: ``adapt_state_dict(dict)``
    returns the weights as this instance needs them (tables expanded and
    resized), ``fresh_keys`` are prefixes of tensors that pretraining does not
    have, ``pretraining_only_keys`` prefixes of tensors that only it needs.
    Both kinds may be left over in the file; the first may be missing.

    Args:
        module: The module to fill.
        state_dict: A state dict, or a checkpoint with one.
        source: Name of the file, for messages.
        prefix: What the names in the file begin with, as ``backbone.``.
        skip_keys: Prefixes of tensors to leave as initialised although the
            file may have them.

    Returns:
        CoverageReport: What was loaded; it is logged as well.

    Raises:
        CoverageError: A tensor is missing or has another shape, or the file
            has tensors that belong to no part of this module. The module is
            unchanged.
        CheckpointError: There is nothing under the prefix.
        InputError: An entry of ``skip_keys`` names nothing.
    """
    tensors = find_state_dict(state_dict, source)
    tensors, notes = select_prefix(module, tensors, prefix, source)
    own = module.state_dict()
    for key in skip_keys:
        if not any(matches_prefix(name, [key]) for name in {**own, **tensors}):
            raise InputError(
                f'skip_keys: {key!r} names no tensor of '
                f'{type(module).__name__} nor of {source}. Expected the '
                'beginning of a name, up to a dot.'
            )
    if hasattr(module, 'adapt_state_dict'):
        try:
            tensors = module.adapt_state_dict(tensors)
        except ValueError as error:
            raise CheckpointError(f'{source}: {error}') from error
    tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if not matches_prefix(name, skip_keys)
    }
    fresh_keys = tuple(getattr(module, 'fresh_keys', ()))
    report = compare(
        module,
        tensors,
        source=source,
        prefix=prefix,
        fresh_keys=(*fresh_keys, *skip_keys),
        # What pretraining does not have, another use of the encoder may not
        # need either: the pooled norm of a classifier, in a segmentor.
        superfluous_keys=(
            *getattr(module, 'pretraining_only_keys', ()),
            *fresh_keys,
        ),
        notes=(
            *notes,
            *(f'skipped on request: {key}' for key in skip_keys),
        ),
    )
    if not report.complete:
        raise CoverageError(
            report,
            _cure_of_names(report.unexpected)
            or _cure_of_family(tensors, own)
            or 'Check that arch, img_size, patch_size and in_channels are '
            'those of the file and that prefix names its encoder. To leave '
            'tensors as initialised on purpose, list the beginnings of their '
            'names in init_cfg.skip_keys.',
        )
    chosen = {name: tensors[name] for name in report.matched}
    with torch.no_grad():
        left = module.load_state_dict(chosen, strict=False)
    untouched = set(left.missing_keys) & set(report.matched)
    if untouched or left.unexpected_keys:
        raise CheckpointError(
            f'{report.target} did not accept all of {source}, although names '
            f'and shapes agree: untouched {sorted(untouched)}, refused '
            f'{left.unexpected_keys}. Its load_state_dict hooks must leave '
            'weights of the right shape as they are.'
        )
    print_log(str(report), logger='current', level=logging.INFO)
    return report
