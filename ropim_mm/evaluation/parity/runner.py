"""Running every case of a directory."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .cases import Case, load_cases
from .compare import Comparison

METHODS = ('ropim', 'lomar', 'rmae', 'conmim')


@dataclass
class CaseResult:
    """What came of one case.

    Attributes:
        name: The case.
        comparisons: One a quantity.
        unused: Stored arrays that were neither replayed nor compared.
        error: Why the case could not be run to its end; empty if it was.
    """

    name: str
    comparisons: list[Comparison] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    error: str = ''

    @property
    def ok(self) -> bool:
        return (
            not self.error
            and bool(self.comparisons)
            and all(c.ok for c in self.comparisons)
        )


def run_directory(directory: str | Path) -> Iterator[CaseResult]:
    """Run the cases of a directory one after another, in float32 on the CPU.

    Raises:
        FileNotFoundError, ValueError: See :func:`load_cases`; also for a
            method that has no module here.
    """
    method, cases = load_cases(directory)
    if method not in METHODS:
        raise ValueError(
            f'{directory} holds reference vectors of method {method!r}; '
            f'expected one of {METHODS}'
        )
    module = importlib.import_module(f'{__name__.rpartition(".")[0]}.{method}')
    for case in cases:
        yield _run(module, case)


def _run(module, case: Case) -> CaseResult:
    result = CaseResult(case.name)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for comparison in module.run(case):
                result.comparisons.append(comparison)
    except Exception:
        # One broken case must not hide the others.
        result.error = traceback.format_exc()
    result.unused = case.unused
    return result
