"""Images of a zip archive that a text file lists."""

from __future__ import annotations

import logging
import os
from pathlib import PurePosixPath
from typing import NamedTuple

from mmengine.logging import print_log

from ropim_mm.errors import InputError
from ropim_mm.registry import DATASETS

from .zip_images import ImageZip, ZipMember


class MissingMapError(InputError, FileNotFoundError):
    """There is no such list; the message says where it was sought."""


class MapLine(NamedTuple):
    """A line of a list: its number, from 1, the image's path, the label."""

    number: int
    path: str
    label: int


def parse_map(data: bytes, source: str) -> list[MapLine]:
    """Read a list of images: a relative path and a label a line.

    The label is what follows the last white space, so paths may have spaces
    in them. Empty lines are passed over. A line that is repeated counts once.

    Args:
        data: Content of the list, UTF-8.
        source: Its name, for messages.

    Raises:
        InputError: A line is no path and label, leads out of the archive, or
            contradicts an earlier one; or there is no line.
    """
    try:
        text = data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise InputError(
            f'{source} is no UTF-8 text ({error.reason} at byte '
            f'{error.start}); expected a relative path and a label a line'
        ) from error
    lines: dict[str, MapLine] = {}
    repeated = []
    for number, line in enumerate(text.split('\n'), start=1):
        if not line.strip():
            continue
        path, label = _split(line, f'{source}, line {number}')
        earlier = lines.setdefault(path, MapLine(number, path, label))
        if earlier.label != label:
            raise InputError(
                f'{source}, line {number}: {path} has the label {label}, and '
                f'in line {earlier.number} the label {earlier.label}'
            )
        if earlier.number != number:
            repeated.append(number)
    if repeated:
        print_log(
            f'{source} repeats {len(repeated)} lines (the first is line '
            f'{repeated[0]}); they count once',
            logger='current',
            level=logging.WARNING,
        )
    if not lines:
        raise InputError(
            f'{source} is empty; expected a relative path and a label a line'
        )
    return list(lines.values())


def _split(line: str, where: str) -> tuple[str, int]:
    path, *label = line.strip().rsplit(None, 1)
    if not (label and label[0].isascii() and label[0].isdecimal()):
        raise InputError(
            f'{where}: found {line.strip()!r}; expected a relative path, '
            'white space and a label (0, 1, ...)'
        )
    parts = path.split('/')
    if not parts[0] or '..' in parts:
        raise InputError(
            f'{where}: {path} leads out of the archive; expected a relative '
            "path without '..'"
        )
    return '/'.join(p for p in parts if p not in ('', '.')), int(label[0])


@DATASETS.register_module()
class ImageZipMap(ImageZip):
    """Images of a zip archive, with labels from a list.

    The list, such as ``train_map.txt`` or ``val_map.txt``, has a relative
    path and a label a line. It lies in the archive or beside it. Images are
    read where they are, by any number of workers and processes.

    Samples are those of :class:`ImageZip`, in the order of the list.

    Args:
        zip_file: Path of the archive.
        map_file: The list: its name in the archive, or, where the archive
            has none, in the archive's folder, or a path of its own.
        prefix: Folder inside the archive that the paths are relative to, ''
            for the archive itself.
        with_label: Whether the samples carry the labels.
        **kwargs: As for :class:`ImageZip`, without ``extensions``.

    Raises:
        MissingArchiveError: No such archive.
        MissingMapError: No such list.
        InputError: The archive or the list cannot be read, the list names
            images that the archive does not hold, or a label has no name in
            ``classes``.
    """

    def __init__(
        self,
        zip_file: str,
        map_file: str,
        prefix: str = '',
        with_label: bool = True,
        **kwargs,
    ) -> None:
        self.map_file = map_file
        # The list says what an image is, not the ending of a name.
        super().__init__(
            zip_file,
            prefix=prefix,
            with_label=with_label,
            extensions=(),
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """One entry a line of the list."""
        members = {m.name: m for m in self.reader.members()}
        source, data = self._read_map(members)
        start = f'{self.prefix}/' if self.prefix else ''
        lines = parse_map(data, source)
        absent = [li for li in lines if start + li.path not in members]
        if absent:
            raise InputError(self._absent(absent, members, source, start))
        if self.with_label and self.CLASSES is not None:
            self._check_labels(lines, source)
        entries = []
        for line in lines:
            member = members[start + line.path]
            entry = dict(
                img_path=f'{self.reader.path}/{member.name}',
                member=tuple(member),
            )
            if self.with_label:
                entry['gt_label'] = line.label
            entries.append(entry)
        return entries

    def _read_map(self, members: dict[str, ZipMember]) -> tuple[str, bytes]:
        """Name of the list, for messages, and its content."""
        inside = str(PurePosixPath(self.map_file))
        if inside in members:
            name = f'{self.reader.path}/{inside}'
            return name, self.reader.read(members[inside])
        folder = os.path.dirname(os.path.abspath(self.reader.path))
        # An absolute path stays what it is.
        beside = os.path.join(folder, os.path.expanduser(self.map_file))
        if os.path.isfile(beside):
            with open(beside, 'rb') as file:
                return beside, file.read()
        lists = sorted(n for n in members if n.endswith('.txt'))
        raise MissingMapError(
            f'no list {self.map_file}, neither in {self.reader.path} (which '
            f'has {lists[:5] or "no .txt file"}) nor as {beside}; expected a '
            'file with a relative path and a label a line. Set map_file'
        )

    def _absent(
        self,
        absent: list[MapLine],
        members: dict[str, ZipMember],
        source: str,
        start: str,
    ) -> str:
        first = absent[0]
        examples = ', '.join(
            f'{start}{li.path} (line {li.number})' for li in absent[:5]
        )
        text = (
            f'{source} names {len(absent)} images that {self.reader.path} '
            f'does not hold: {examples}. '
        )
        ends = [n for n in members if n.endswith(f'/{first.path}')]
        if ends:
            prefix = ends[0][: -len(first.path) - 1]
            return f'{text}It does hold {ends[0]}: set prefix={prefix!r}'
        folders = sorted({n.split('/')[0] for n in members})
        return (
            f'{text}It has {len(members)} files in {folders[:10]}: set '
            'prefix to the folder that the paths are relative to, or repair '
            'the list'
        )

    def _check_labels(self, lines: list[MapLine], source: str) -> None:
        last = max(lines, key=lambda line: line.label)
        if last.label >= len(self.CLASSES):
            raise InputError(
                f'{source}, line {last.number}: label {last.label} of '
                f'{last.path}, but there are {len(self.CLASSES)} classes; '
                'expected labels from 0'
            )

    def extra_repr(self) -> list[str]:
        """Lines for ``repr``."""
        return [*super().extra_repr(), f'List: \t{self.map_file}']
