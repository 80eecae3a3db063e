"""From image files to files of explained pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from mmpretrain.registry import MODELS
from PIL import Image

from ..checkpoints import load_weights, read_checkpoint
from ..datasets.transforms.loading import decode_image
from ..engine.distributed import LaunchError
from .reconstruction import (
    EXPLAINERS,
    Details,
    Explanation,
    Panel,
    explain,
    input_channels,
)
from .sheets import Cell, Row, draw_sheet, stack_sheets

# What a folder is searched for. A file given by name may have any ending.
IMAGE_ENDINGS = (
    '.bmp',
    '.gif',
    '.jpeg',
    '.jpg',
    '.pgm',
    '.png',
    '.ppm',
    '.tif',
    '.tiff',
    '.webp',
)
OVERVIEW = 'overview'
_NOTE = 'differs by: mean of |input - picture|, in grey levels of 255'


def load_model(
    cfg: Config,
    checkpoint: str,
    device: str | None = None,
    trust: bool = False,
) -> BaseSelfSupervisor:
    """Build the model of a pretraining config and load a checkpoint into it.

    Args:
        cfg: The config.
        checkpoint: Path or URL of a whole pretraining checkpoint.
        device: As PyTorch names it; None for the best there is.
        trust: Whether the file may run code when read.

    Returns:
        The model, on the device, in evaluation mode.

    Raises:
        CheckpointError: The file cannot be read, or a part of the model and
            the file do not fit each other. The message lists the tensors.
        LaunchError: The config's model cannot be pictured, or there is no
            such device.
    """
    if cfg.get('model') is None:
        raise LaunchError(
            f'{cfg.filename} has no model; expected a config of pretraining'
        )
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    model_cfg = cfg.model.copy()
    model_cfg.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    model = MODELS.build(model_cfg)
    try:
        EXPLAINERS.of(model)
        input_channels(model)
        model.to(device or get_device())
    except (ValueError, RuntimeError) as error:
        raise LaunchError(f'{cfg.filename}: {error}') from error
    content = read_checkpoint(checkpoint, trust=trust)
    # Part by part, since a part may fit tensors to itself.
    for name, part in model.named_children():
        if part.state_dict():
            load_weights(part, content, source=checkpoint, prefix=f'{name}.')
    return model.eval()


def find_images(
    path: str | os.PathLike, out: str | os.PathLike
) -> tuple[Path, list[Path]]:
    """The image files that a path stands for.

    Args:
        path: A file, or a folder that is searched at any depth.
        out: Folder that pictures will be written to.

    Returns:
        The folder that names are relative to, and the files, sorted.

    Raises:
        LaunchError: There is nothing, or ``out`` lies in the folder.
    """
    path = Path(path)
    if path.is_file():
        return path.parent, [path]
    if not path.is_dir():
        raise LaunchError(
            f'image file or folder {path} not found (current folder '
            f'{os.getcwd()})'
        )
    if Path(out).resolve().is_relative_to(path.resolve()):
        raise LaunchError(
            f'the folder for the pictures, {out}, is inside the folder of '
            f'images, {path}: next time they would be taken for images. Give '
            'a folder outside'
        )
    files = sorted(
        file
        for file in path.rglob('*')
        if file.suffix.lower() in IMAGE_ENDINGS and file.is_file()
    )
    if not files:
        raise LaunchError(
            f'no images in folder {path}; expected files ending in '
            f'{", ".join(IMAGE_ENDINGS)}, at any depth'
        )
    return path, files


def read_image(path: str | os.PathLike) -> np.ndarray:
    """An image file as (H, W, 3) uint8, red, green, blue.

    Raises:
        OSError, ValueError, SyntaxError: The file cannot be read; the
            datasets' reader (:func:`~ropim_mm.datasets.transforms.loading.
            decode_image`) says what Pillow found.
    """
    pixels = decode_image(Path(path).read_bytes())
    return np.ascontiguousarray(pixels[..., ::-1])


@dataclass
class Gallery:
    """Writes one sheet an image, and one of all of them.

    Attributes:
        model: From :func:`load_model`.
        out: Folder for the sheets; made when the first one is written.
        seed: The image at position i gets the random decisions of seed + i.
        written: Sheets written so far.
        unreadable: Files that could not be read, each with the reason.
    """

    model: BaseSelfSupervisor
    out: Path
    seed: int = 0
    written: list[Path] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.out = Path(self.out)
        self._columns: list[tuple[str, str]] = []
        self._note = ''
        self._rows: list[Row] = []

    def draw(self, root: Path, files: list[Path]) -> Iterator[str]:
        """Draw the sheets, then the overview.

        Args:
            root: Names are relative to it.
            files: Image files.

        Yields:
            str: One line a file on what was done.

        Raises:
            LaunchError: A sheet would overwrite one of the images.
        """
        names = sheet_names(root, files)
        for name in (OVERVIEW, *names):
            target = self.out / f'{name}.png'
            if any(target.resolve() == file.resolve() for file in files):
                raise LaunchError(
                    f'{target} is one of the images and would be '
                    'overwritten; give another folder for the pictures'
                )
        for i, (file, name) in enumerate(zip(files, names, strict=True)):
            label = str(file.relative_to(root))
            try:
                image = read_image(file)
            # Pillow raises nearly anything for damaged files.
            except Exception as error:
                self.unreadable.append((file, f'{error}'))
                yield f'{file} cannot be read: {error}; left out'
                continue
            found = explain(self.model, [image], [self.seed + i])
            target = self._save(name, self._sheet(found, label))
            self.written.append(target)
            yield f'{label} -> {target}'
        if self._rows:
            overview = draw_sheet(
                self._columns,
                self._rows,
                side=128,
                note=self._note,
                shrink=True,
            )
            self._save(OVERVIEW, overview)

    def _sheet(self, found: Explanation, label: str) -> np.ndarray:
        compared = any(panel.compare for panel in found.panels)
        notes = (found.note, _NOTE if compared else '')
        self._note = '; '.join(filter(None, notes))
        self._columns = _columns(found.panels)
        cells = _cells(found.panels, found.panels[0])
        self._rows.append(Row(cells, label))
        parts = [
            draw_sheet(
                self._columns,
                [Row(cells)],
                side=256,
                title=label,
                note=self._note,
            ),
            *map(_table, found.details),
        ]
        return stack_sheets(parts)

    def _save(self, name: str, sheet: np.ndarray) -> Path:
        target = self.out / f'{name}.png'
        target.parent.mkdir(parents=True, exist_ok=True)
        # Nothing half-written stays behind under the final name.
        partial = target.with_name(f'{target.name}.part')
        Image.fromarray(sheet).save(partial, format='png')
        os.replace(partial, target)
        return target


def _columns(panels: Sequence[Panel]) -> list[tuple[str, str]]:
    return [(panel.title, panel.formula) for panel in panels]


def _cells(panels: Sequence[Panel], first: Panel) -> list[Cell]:
    """The only image of each panel, with what there is to say below it."""
    cells = []
    for panel in panels:
        caption = panel.captions[0] if panel.captions else ''
        if panel.compare:
            caption = f'differs by {panel.distance(first)[0]:.1f}'
        cells.append(Cell(panel.images()[0], caption))
    return cells


def _table(details: Details) -> np.ndarray:
    rows = [
        Row(_cells(panels, panels[0]), label) for label, panels in details.rows
    ]
    columns = _columns(details.rows[0][1])
    return draw_sheet(columns, rows, side=200, title=details.title)


def sheet_names(root: Path, files: list[Path]) -> list[str]:
    """Names of sheets, without ending, one a file and all different.

    The path below ``root`` without its ending; with it (``a_jpg``) where two
    files differ by that only.

    Args:
        root: Folder above all files.
        files: Image files.
    """
    stems = [str(file.relative_to(root).with_suffix('')) for file in files]
    taken = {OVERVIEW}
    names = []
    for file, stem in zip(files, stems, strict=True):
        name = stem
        if name in taken or stems.count(stem) > 1:
            name = f'{stem}_{file.suffix[1:]}'
        while name in taken:
            name += '_'
        taken.add(name)
        names.append(name)
    return names
