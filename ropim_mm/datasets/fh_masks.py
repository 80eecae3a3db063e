"""Felzenszwalb-Huttenlocher label maps of whole datasets, in files.

One file an image, in the format of :mod:`~ropim_mm.datasets.label_maps`, in a
folder tree that mirrors the images'. ``fh_masks.json`` at its root holds the
settings, so that maps of different settings do not get mixed. How a run goes
on, and what happens when it is stopped, see
:mod:`~ropim_mm.datasets.conversion`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import ClassVar, TextIO

import numpy as np

from ropim_mm.datasets import conversion
from ropim_mm.datasets.conversion import (
    Converter,
    Made,
    Report,
    Settings,
    UnreadableSourceError,
)
from ropim_mm.datasets.label_maps import (
    LabelMaps,
    decode_label_maps,
    encode_label_maps,
)
from ropim_mm.datasets.region_datasets import map_name
from ropim_mm.datasets.regions import check_fh_settings, felzenszwalb_maps
from ropim_mm.errors import InputError

__all__ = [
    'SETTINGS_FILE',
    'FHSettings',
    'Report',
    'UnreadableSourceError',
    'create_maps',
    'verify_maps',
]

SETTINGS_FILE = 'fh_masks.json'


@dataclass(frozen=True)
class FHSettings(Settings):
    """How maps are made, see
    :func:`~ropim_mm.datasets.regions.felzenszwalb_maps`.

    Raises:
        InputError: The settings do not fit together.
    """

    scales: tuple[float, ...] = (500, 1000, 1500)
    min_sizes: tuple[int, ...] = (500, 1000, 1500)
    sigma: float = 0.8

    FILE: ClassVar[str] = SETTINGS_FILE
    PRODUCT: ClassVar[str] = 'label maps'

    def __post_init__(self) -> None:
        check_fh_settings(self.scales, self.min_sizes, self.sigma)

    def to_json(self) -> dict:
        """As files hold it."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, found: dict) -> FHSettings:
        """What :meth:`to_json` gave."""
        return cls(
            tuple(found['scales']), tuple(found['min_sizes']), found['sigma']
        )


@dataclass
class _MapConverter(Converter):
    settings: FHSettings

    SETTINGS: ClassVar[type[Settings]] = FHSettings
    ITEMS: ClassVar[str] = 'maps'
    OUTSIDE: ClassVar[str] = (
        'maps are PNG files, and would be taken for images'
    )

    def target(self, name: str) -> str:
        return map_name(name)

    def make(self, data: bytes, image: np.ndarray) -> Made:
        maps = felzenszwalb_maps(
            np.ascontiguousarray(image[..., ::-1]),
            self.settings.scales,
            self.settings.min_sizes,
            self.settings.sigma,
        )
        content = encode_label_maps(
            LabelMaps.from_maps(maps, self.settings.to_json())
        )
        return Made(content, maps.size)

    def inspect(self, content: bytes) -> LabelMaps:
        maps = decode_label_maps(content)
        if maps.settings != self.settings.to_json():
            raise InputError(
                f'made with {maps.settings}; expected '
                f'{self.settings.to_json()}'
            )
        if maps.num_maps != len(self.settings.scales):
            raise InputError(
                f'it has {maps.num_maps} maps; expected '
                f'{len(self.settings.scales)}'
            )
        return maps

    def compare(
        self, found: LabelMaps, data: bytes, shape: tuple[int, int]
    ) -> None:
        if found.shape != shape:
            raise InputError(
                f'it is {found.shape} (height, width) and its image {shape}'
            )


def create_maps(
    images: str | os.PathLike,
    out: str | os.PathLike,
    settings: FHSettings | None = None,
    workers: int = 1,
    shard: tuple[int, int] = (0, 1),
    on_error: str = 'raise',
    repair: bool = False,
    progress: TextIO | None = None,
) -> Report:
    """Make the label maps of all images that have none yet.

    Args:
        images: Folder or zip archive.
        out: Folder for the maps; made where it is missing.
        settings: None for those that ``out`` was begun with, else the default.
        workers: Processes; 0 works in this one.
        shard: (I, N): only every N-th image, beginning with the I-th, from 0.
        on_error: ``'raise'`` stops at an image that cannot be read;
            ``'skip'`` leaves it out and reports it.
        repair: Check the maps that are there first, and make the bad ones
            again.
        progress: Where to show a bar, such as ``sys.stderr``; under
            ``repair`` one for the check comes first.

    Returns:
        Its ``raw`` are the bytes of the maps made as raw uint8 arrays.

    Raises:
        InputError: The images, the folder or an argument do not fit; another
            run is at the same shard; a worker died.
        UnreadableSourceError: An image cannot be read, under ``'raise'``.
    """
    return conversion.convert(
        _MapConverter,
        images,
        out,
        settings,
        workers,
        shard,
        on_error,
        repair,
        progress,
    )


def verify_maps(
    images: str | os.PathLike,
    out: str | os.PathLike,
    settings: FHSettings | None = None,
    workers: int = 1,
    shard: tuple[int, int] = (0, 1),
    progress: TextIO | None = None,
) -> Report:
    """Check that every image has maps that can be read and fit it.

    Images whose maps are missing or broken are decoded, to tell those whose
    maps can be made from those that cannot be read.

    Arguments as of :func:`create_maps`. Nothing is written.

    Raises:
        InputError: The images, the folder or an argument do not fit.
    """
    return conversion.verify(
        _MapConverter, images, out, settings, workers, shard, progress
    )
