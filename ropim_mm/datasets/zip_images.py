"""Images read in place from a zip archive."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from functools import partial
from typing import BinaryIO, NamedTuple

from mmpretrain.datasets import BaseDataset

from ropim_mm.errors import InputError
from ropim_mm.registry import DATASETS

IMG_EXTENSIONS = (
    '.jpg',
    '.jpeg',
    '.png',
    '.ppm',
    '.bmp',
    '.pgm',
    '.tif',
    '.tiff',
    '.webp',
)
_ENCRYPTED = 0x1
_LOCAL_HEADER = struct.Struct('<4s22xHH')  # signature ... lengths of 2 fields


class MissingArchiveError(InputError, FileNotFoundError):
    """There is no such archive; the message says which path was tried."""


class ZipMember(NamedTuple):
    """What is needed to read one file of an archive without its directory.

    ``offset`` and ``size`` (of the stored data) are in bytes.
    """

    name: str
    offset: int
    size: int
    method: int
    crc: int


class ZipReader:
    """Reads members of a zip archive, in any number of processes.

    The archive is opened again in each process that reads (a file handle
    shared by forked workers shares its position too), and travels to spawned
    ones as its path. A reader must not be used by two threads at once.

    Args:
        path: The archive.
    """

    def __init__(self, path: str) -> None:
        self.path = os.fspath(path)
        self._file: BinaryIO | None = None
        self._pid: int | None = None

    def members(self) -> list[ZipMember]:
        """All files of the archive, sorted by name.

        Raises:
            MissingArchiveError: There is no such file.
            InputError: It is not a zip archive, or a member is encrypted or
                compressed in another way than deflate.
        """
        if not os.path.isfile(self.path):
            raise MissingArchiveError(
                f'no file {self.path}; expected a zip archive of images'
            )
        try:
            with zipfile.ZipFile(self.path) as archive:
                infos = archive.infolist()
        except zipfile.BadZipFile as error:
            raise InputError(
                f'{self.path} cannot be read as a zip archive: {error}'
            ) from error
        found = []
        for info in infos:
            if info.is_dir():
                continue
            if info.flag_bits & _ENCRYPTED or info.compress_type not in (
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
            ):
                raise InputError(
                    f'{info.filename} in {self.path} is encrypted or of '
                    f'compression type {info.compress_type}; expected '
                    '0 (stored) or 8 (deflate): pack the archive again with '
                    'zip -0'
                )
            found.append(
                ZipMember(
                    info.filename,
                    info.header_offset,
                    info.compress_size,
                    info.compress_type,
                    info.CRC,
                )
            )
        return sorted(found)

    def read(self, member: ZipMember) -> bytes:
        """Content of a member, checked against its checksum.

        Raises:
            InputError: The archive is damaged there, or has been replaced
                since :meth:`members` was called.
        """
        file = self._open()
        file.seek(member.offset)
        header = file.read(_LOCAL_HEADER.size)
        data = None
        if len(header) == _LOCAL_HEADER.size:
            signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
            if signature == b'PK\x03\x04':
                file.seek(name_length + extra_length, os.SEEK_CUR)
                data = file.read(member.size)
        if data is not None and member.method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompress(data, -zlib.MAX_WBITS)
            except zlib.error:
                data = None
        if data is None or zlib.crc32(data) != member.crc:
            raise InputError(
                f'{member.name} in {self.path} is damaged, or the archive was '
                'changed while it was in use; test it with unzip -t'
            )
        return data

    def _open(self) -> BinaryIO:
        if self._pid != os.getpid():
            self._file = open(self.path, 'rb')
            self._pid = os.getpid()
        return self._file

    def __getstate__(self) -> dict:
        return {'path': self.path, '_file': None, '_pid': None}


def check_member_name(name: str, archive: str) -> None:
    """Refuse a member whose name is no place below the archive's root.

    Args:
        name: Of the member.
        archive: Path, for the message.

    Raises:
        InputError: The name is absolute or contains ``..``.
    """
    if name.startswith('/') or '..' in name.split('/'):
        raise InputError(
            f'the member {name} of {archive} leads out of it; expected a '
            "relative name without '..'. Pack the archive again"
        )


@DATASETS.register_module()
class ImageZip(BaseDataset):
    """Images of a zip archive, read where they are.

    The archive holds ``<prefix>/<class>/.../<image>``, or images in any
    folders where ``with_label=False``. Classes are the sorted names of the
    folders under ``prefix``, unless ``classes`` or ``metainfo`` give them in
    an order of their own. Stored members (``zip -0``) are read fastest.

    The samples carry ``img_path`` (archive and member, for messages),
    ``img_source`` (a function that gives the encoded image) and, with labels,
    ``gt_label``. ``ropim_mm.LoadImage`` decodes them.

    Args:
        zip_file: Path of the archive.
        prefix: Folder inside the archive, such as ``'train'``; '' for all.
        with_label: Whether folders are classes.
        extensions: Endings of image files, in lower case; others are ignored.
        **kwargs: ``pipeline``, ``metainfo``, ``classes``, ``indices``,
            ``test_mode``, ``lazy_init`` and the rest of MMPretrain's
            ``BaseDataset``.

    Raises:
        MissingArchiveError: No such archive.
        InputError: No zip archive, no images under ``prefix``, an image whose
            name leads out of the archive or that lies in no class folder, or
            a class folder that ``classes`` does not name.
    """

    def __init__(
        self,
        zip_file: str,
        prefix: str = '',
        with_label: bool = True,
        extensions: Sequence[str] = IMG_EXTENSIONS,
        **kwargs,
    ) -> None:
        self.reader = ZipReader(os.path.expanduser(zip_file))
        self.prefix = prefix.strip('/')
        self.with_label = with_label
        self.extensions = tuple(extensions)
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self) -> list[dict]:
        """One entry an image, sorted by name."""
        start = f'{self.prefix}/' if self.prefix else ''
        everything = self.reader.members()
        images = [
            member
            for member in everything
            if member.name.startswith(start)
            and member.name.lower().endswith(self.extensions)
            # what macOS adds beside each file
            and not member.name.startswith('__MACOSX/')
        ]
        if not images:
            folders = sorted({m.name.split('/')[0] for m in everything})
            raise InputError(
                f'no images under {start or "/"!r} in {self.reader.path}; it '
                f'has {len(everything)} files in {folders[:10]}. Set prefix '
                f'to one of its folders; images end in {self.extensions}'
            )
        for member in images:
            check_member_name(member.name, self.reader.path)
        entries = [
            dict(img_path=f'{self.reader.path}/{m.name}', member=tuple(m))
            for m in images
        ]
        if self.with_label:
            names = [self._class_name(m.name, start) for m in images]
            if self.CLASSES is None:
                self._metainfo['classes'] = tuple(sorted(set(names)))
            numbers = self.class_to_idx
            unknown = sorted(set(names) - set(numbers))
            if unknown:
                raise InputError(
                    f'folders {unknown[:10]} under {start or "/"!r} in '
                    f'{self.reader.path} are none of the {len(numbers)} '
                    f'classes {list(numbers)[:10]}'
                )
            for entry, name in zip(entries, names, strict=True):
                entry['gt_label'] = numbers[name]
        return entries

    def _class_name(self, name: str, start: str) -> str:
        folder, _, rest = name[len(start) :].partition('/')
        if not rest:
            raise InputError(
                f'{name} in {self.reader.path} lies in no class folder; '
                f'expected {start}<class>/<image>, or with_label=False'
            )
        return folder

    def get_data_info(self, idx: int) -> dict:
        """The entry and, under ``img_source``, how to read its image."""
        info = super().get_data_info(idx)
        member = ZipMember(*info.pop('member'))
        info['img_source'] = partial(self.reader.read, member)
        return info

    def extra_repr(self) -> list[str]:
        """Lines for ``repr``."""
        return [
            f'Archive: \t{self.reader.path}',
            f'Folder in it: \t{self.prefix or "/"}',
        ]
