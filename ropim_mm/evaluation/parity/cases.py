"""Reading a directory of reference vectors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


class Arrays(dict):
    """Name to tensor; remembers which were looked at."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.used.add(name)
        return super().__getitem__(name)


@dataclass
class Case:
    """One case: its entry in the manifest and its arrays.

    Attributes:
        name: Key in the manifest.
        info: The manifest's entry.
        arrays: Name to tensor, as stored.
    """

    name: str
    info: dict
    arrays: Arrays

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """The arrays below ``prefix``, without it: ``under('state/')``."""
        return {
            k[len(prefix) :]: self.arrays[k]
            for k in self.arrays
            if k.startswith(prefix)
        }

    @property
    def unused(self) -> list[str]:
        """Arrays that the run neither replayed nor compared."""
        return sorted(set(self.arrays) - self.arrays.used)


def load_cases(directory: str | Path) -> tuple[str, list[Case]]:
    """Read every case of a directory.

    Returns:
        The method's name and the cases, in the manifest's order.

    Raises:
        FileNotFoundError: The manifest or a case's file is absent.
        ValueError: The manifest is not one, or an array is missing.
    """
    directory = Path(directory)
    path = directory / 'manifest.json'
    if not path.is_file():
        raise FileNotFoundError(
            f'{path} not found; expected a directory of reference vectors '
            'with manifest.json and one .npz file a case'
        )
    try:
        manifest = json.loads(path.read_text())
        method, entries = manifest['method'], manifest['cases']
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is not a manifest of reference vectors (JSON with '
            f'"method" and "cases"): {error!r}'
        ) from error
    cases = []
    for name, info in entries.items():
        with np.load(directory / info['file'], allow_pickle=False) as file:
            arrays = Arrays({k: torch.from_numpy(file[k]) for k in file.files})
        lost = sorted(set(info.get('arrays', ())) - set(arrays))
        if lost:
            raise ValueError(
                f'{directory / info["file"]} lacks the arrays {lost} that '
                'the manifest lists'
            )
        cases.append(Case(name, info, arrays))
    return method, cases
