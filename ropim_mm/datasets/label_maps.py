r"""Label maps of an image in one compact file, and regions straight from them.

The file is a PNG. Segmentations of one image at several scales share most of
their borders, so what is stored is the *overlay* of all maps: one pixel value
for each combination of labels that occurs. A table in a chunk of its own says
which label a value means in each map:

- pixels: one, two, three or four bytes each (grey, 16-bit grey, RGB, RGBA),
  the most significant first, not interlaced, no row filter, deflated at the
  highest level;
- chunk ``rgNS`` (ancillary, private, not to be copied by editors), deflated:
  a line of JSON, ``{"version": 1, "maps": M, "values": n, "settings": ...}``,
  and after its newline M * n labels, little-endian int32, map by map.

Any viewer shows the overlay; reading it back takes this module. It is
lossless, far smaller than the raw bytes, and read in less time than the
photo's JPEG is decoded.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np
import torch
from PIL import Image

from ropim_mm.datasets.regions import (
    Randperm,
    check_sample_type,
    draw_regions,
    patch_grid,
)
from ropim_mm.errors import InputError
from ropim_mm.models.layers.patches import Size

# In a table: pixels of this value belong to no region of the map.
NO_REGION = -1

_PNG = b'\x89PNG\r\n\x1a\n'
_NPY = b'\x93NUMPY'
_CHUNK = b'rgNS'
_HEADER = struct.Struct('>IIBBBBB')
# Bytes a pixel: (bits a channel, colour type).
_KINDS = {1: (8, 0), 2: (16, 0), 3: (8, 2), 4: (8, 6)}
_VERSION = 1


@dataclass(frozen=True)
class LabelMaps:
    """Label maps of one image as overlays of maps.

    Attributes:
        index: (H, W) or (H, W, K) of unsigned integers: K overlays.
        tables: K arrays (M_k, n_k) of labels >= 0 or :data:`NO_REGION`: what
            a value of overlay k means in each of its M_k maps.
        settings: How the maps were made, as the file says.
    """

    index: np.ndarray
    tables: tuple[np.ndarray, ...]
    settings: dict = field(default_factory=dict)

    @classmethod
    def from_maps(
        cls, maps: np.ndarray, settings: dict | None = None
    ) -> LabelMaps:
        """Overlay maps (M, H, W) of integers in [0, 2^31).

        Raises:
            InputError: They are of another kind.
        """
        check_maps(maps, 'label maps')
        # Combinations in the order of their labels: the values of a single
        # map are its labels, if these have no gaps.
        index = np.zeros(maps.shape[1:], dtype=np.int64)
        table = np.zeros((0, 1), dtype=np.int64)
        for each in maps:
            labels, place = np.unique(each, return_inverse=True)
            index = index * len(labels) + place.reshape(index.shape)
            found, place = np.unique(index, return_inverse=True)
            index = place.reshape(index.shape)
            before, last = np.divmod(found, len(labels))
            table = np.concatenate([table[:, before], labels[last][None]])
        kind = np.min_scalar_type(table.shape[1] - 1)
        return cls(
            index.astype(kind), (table.astype(np.int32),), settings or {}
        )

    @classmethod
    def stacked(cls, maps: np.ndarray) -> LabelMaps:
        """Maps (M, H, W) of uint8 or uint16 as they are, one a layer.

        Quicker than an overlay, where the maps are to be cropped first.

        Raises:
            InputError: They are of another kind.
        """
        check_maps(maps, 'label maps')
        identity = np.arange(int(maps.max()) + 1, dtype=np.int32)[None]
        return cls(np.moveaxis(maps, 0, -1), (identity,) * len(maps))

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)"""
        return self.index.shape[:2]

    @property
    def num_maps(self) -> int:
        """M, of all overlays together."""
        return sum(map(len, self.tables))

    @property
    def layers(self) -> list[np.ndarray]:
        """The K overlays, each (H, W)."""
        if self.index.ndim == 2:
            return [self.index]
        return [self.index[..., k] for k in range(self.index.shape[2])]

    @property
    def maps(self) -> np.ndarray:
        """(M, H, W) labels; uint8 where they fit, else uint16 or uint32.

        int32 where some pixels belong to no region, :data:`NO_REGION`.
        """
        full = [
            table[:, layer]
            for table, layer in zip(self.tables, self.layers, strict=True)
        ]
        maps = np.concatenate(full)
        if maps.size and maps.min() < 0:
            return maps
        return maps.astype(np.min_scalar_type(int(maps.max(initial=0))))

    @cached_property
    def _present(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each layer, the pixels in one piece, and the values there are."""
        found = []
        for table, layer in zip(self.tables, self.layers, strict=True):
            layer = np.ascontiguousarray(layer)
            found.append((layer, _values(layer, table.shape[1])))
        return found

    @cached_property
    def _labels(self) -> list[tuple[int, int, np.ndarray]]:
        """Of each map, its layer, its row there and its labels, ascending.

        Together they are the regions of
        :func:`~ropim_mm.datasets.regions.binary_regions`, in its order.
        """
        found = []
        for k, (_, values) in enumerate(self._present):
            for row, labels in enumerate(self.tables[k][:, values]):
                labels = np.unique(labels)
                found.append((k, row, labels[labels != NO_REGION]))
        return found

    @property
    def num_regions(self) -> int:
        """How many regions :meth:`masks` can give."""
        return sum(len(labels) for _, _, labels in self._labels)

    def touched(self, patch_size: Size) -> np.ndarray:
        """Which patches each region has a pixel in, bool (n, L).

        Raises:
            InputError: The patch does not divide the maps.
        """
        h, w = patch_grid(self.shape, patch_size)
        rows, columns = self.shape[0] // h, self.shape[1] // w
        patch = (
            np.arange(self.shape[0])[:, None] // rows * w
            + np.arange(self.shape[1]) // columns
        )
        seen = []
        for layer, values in self._present:
            # Consecutive numbers for the values, so that what follows is no
            # larger than it must be.
            number = np.zeros(int(values[-1]) + 1, dtype=np.int64)
            number[values] = np.arange(len(values)) * (h * w)
            hits = np.zeros(len(values) * h * w, dtype=np.bool_)
            hits[np.take(number, layer) + patch] = True
            seen.append(hits.reshape(len(values), h * w))
        out = [np.zeros((0, h * w), dtype=np.bool_)]
        for k, row, labels in self._labels:
            mine = self.tables[k][row, self._present[k][1]]
            order = np.argsort(mine, kind='stable')
            first = np.searchsorted(mine, labels, sorter=order)
            if len(labels):
                out.append(np.logical_or.reduceat(seen[k][order], first))
        return np.concatenate(out)

    def planes(self, ids: Sequence[int]) -> np.ndarray:
        """The regions of these numbers as bits, uint8 (ceil(R / 8), H, W).

        Bit r of plane p is region ``ids[8 p + r]``, see
        :func:`~ropim_mm.models.layers.bit_planes.unpack_bits`.

        Args:
            ids: R numbers below :attr:`num_regions`.
        """
        out = np.zeros((-(-len(ids) // 8), *self.shape), dtype=np.uint8)
        ends = np.cumsum([len(labels) for _, _, labels in self._labels])
        # For each plane and layer, the bits that a value stands for.
        bits: dict[tuple[int, int], np.ndarray] = {}
        for place, i in enumerate(ids):
            m = int(np.searchsorted(ends, i, side='right'))
            k, row, labels = self._labels[m]
            label = labels[i - ends[m]]  # counted from the map's end
            plane, bit = divmod(place, 8)
            table = self.tables[k]
            mine = bits.setdefault(
                (plane, k), np.zeros(table.shape[1], dtype=np.uint8)
            )
            mine |= (table[row] == label).view(np.uint8) << np.uint8(bit)
        for (plane, k), mine in bits.items():
            out[plane] |= _look_up(mine, self._present[k][0])
        return out

    def masks(self, ids: Sequence[int]) -> np.ndarray:
        """The regions of these numbers, bool (R, H, W).

        Args:
            ids: R numbers below :attr:`num_regions`.
        """
        return _unpack(self.planes(ids), len(ids))

    def select_bits(
        self,
        num_regions: int,
        patch_size: Size,
        sample_type: str = 'random',
        filter_small_patches: bool = False,
        region_mask_ratio: float = 0.75,
        randperm: Randperm = torch.randperm,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As :meth:`select`, regions being uint8 (ceil(R / 8), H, W)."""
        check_sample_type(sample_type)
        h, w = patch_grid(self.shape, patch_size)
        touched = None
        if filter_small_patches or sample_type == 'random_fg':
            touched = self.touched(patch_size)
        ids, shuffle_ids = draw_regions(
            self.num_regions,
            touched,
            h * w,
            num_regions,
            sample_type,
            filter_small_patches,
            region_mask_ratio,
            randperm,
        )
        if len(ids):
            chosen = self.planes(ids.tolist())
        else:
            chosen = np.zeros((-(-num_regions // 8), *self.shape), np.uint8)
        return torch.from_numpy(chosen), shuffle_ids

    def select(
        self, num_regions: int, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As :func:`~ropim_mm.datasets.regions.select_regions`, much quicker.

        Only the masks that are chosen are made, and patches are looked at
        only where the choice depends on them. Arguments after the first are
        those of that function: ``patch_size``, ``sample_type``,
        ``filter_small_patches``, ``region_mask_ratio``, ``randperm``.

        Args:
            num_regions: R.

        Returns:
            Regions, bool (R, H, W), and for ``'random_fg'`` the permutation
            of the patches, int64 (L,), else None.

        Raises:
            InputError: The patch does not divide the maps, or
                ``sample_type`` is another word.
        """
        planes, shuffle_ids = self.select_bits(num_regions, *args, **kwargs)
        masks = _unpack(planes.numpy(), num_regions)
        return torch.from_numpy(masks), shuffle_ids


def _unpack(planes: np.ndarray, count: int) -> np.ndarray:
    masks = np.empty((count, *planes.shape[1:]), dtype=np.bool_)
    for number, mask in enumerate(masks):
        bit = np.uint8(1 << number % 8)
        np.not_equal(planes[number // 8] & bit, 0, out=mask)
    return masks


def _values(layer: np.ndarray, count: int) -> np.ndarray:
    """The values below ``count`` that occur, ascending."""
    # Of each run of one value the last pixel: counting all of them waits, in
    # flat parts, for one counter again and again.
    flat = layer.ravel()
    last = np.append((flat[1:] != flat[:-1]).nonzero()[0], len(flat) - 1)
    return np.bincount(flat[last], minlength=count).nonzero()[0]


def _look_up(bits: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """``bits[layer]``, uint8."""
    if layer.dtype == np.uint8:
        # numpy would make eight bytes a pixel of the index first.
        return cv2.LUT(layer, np.resize(bits, 256))
    return np.take(bits, layer)


def check_maps(maps: np.ndarray, name: str) -> None:
    """Refuse what cannot be label maps.

    Args:
        maps: Expected (M, H, W) of integers >= 0, none of the three being 0.
        name: What a message calls them.

    Raises:
        InputError: They are something else.
    """
    if maps.ndim != 3 or not maps.size or maps.dtype.kind not in 'ui':
        raise InputError(
            f'{name}: {maps.dtype} {maps.shape}; expected integers, '
            '(maps, H, W) or (H, W)'
        )
    if maps.dtype.kind == 'i' and maps.min() < 0:
        raise InputError(
            f'{name}: the label {maps.min()} is negative; expected labels '
            'from 0'
        )


def encode_label_maps(maps: LabelMaps) -> bytes:
    """The content of a file, see the module's description.

    Args:
        maps: With one overlay, see :meth:`LabelMaps.from_maps`.
    """
    (table,) = maps.tables
    height, width = maps.shape
    size = max(1, (int(maps.index.max()).bit_length() + 7) // 8)
    # Row by row a byte for the filter, which is none, and the pixels.
    rows = np.zeros((height, 1 + width * size), dtype=np.uint8)
    wide = np.ascontiguousarray(maps.index, dtype='>u4').view(np.uint8)
    wide = wide.reshape(height, width, 4)[..., 4 - size :]
    rows[:, 1:] = wide.reshape(height, width * size)
    facts = dict(
        version=_VERSION,
        maps=table.shape[0],
        values=table.shape[1],
        settings=maps.settings,
    )
    text = json.dumps(facts, separators=(',', ':')).encode() + b'\n'
    chunks = (
        (b'IHDR', _HEADER.pack(width, height, *_KINDS[size], 0, 0, 0)),
        (_CHUNK, zlib.compress(text + table.astype('<i4').tobytes(), 9)),
        (b'IDAT', _deflate(rows.tobytes())),
        (b'IEND', b''),
    )
    return _PNG + b''.join(
        struct.pack('>I', len(data))
        + name
        + data
        + struct.pack('>I', zlib.crc32(name + data))
        for name, data in chunks
    )


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 15, 9)
    return packer.compress(data) + packer.flush()


def decode_label_maps(data: bytes) -> LabelMaps:
    """Read a file of label maps.

    Args:
        data: Content of a file of :func:`encode_label_maps`; of a ``.npy``
            file with integers (M, H, W) or (H, W), as the released tools
            write it; or of any other greyscale or palette PNG, one map.

    Raises:
        InputError: It is none of these, or damaged. The message does not
            name the file.
    """
    if not data:
        raise InputError('the file is empty (0 bytes)')
    if data.startswith(_PNG):
        chunks = _chunks(data)
        if _CHUNK in chunks:
            return _decode_own(chunks)
        return LabelMaps.stacked(_decode_plain(data)[None])
    if data.startswith(_NPY):
        try:
            maps = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise InputError(
                f'not a complete .npy file of integers: {error}'
            ) from error
        if maps.ndim == 2:
            maps = maps[None]
        return LabelMaps.stacked(maps)
    raise InputError(
        f'neither PNG nor .npy ({len(data)} bytes, beginning with '
        f'{data[:8]!r})'
    )


def _chunks(data: bytes) -> dict[bytes, bytes]:
    """Content of a PNG by chunk, those of one name joined."""
    view = memoryview(data)
    found: dict[bytes, list] = {}
    place = len(_PNG)
    while place + 8 <= len(data):
        (length,) = struct.unpack_from('>I', data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            break
        (check,) = struct.unpack_from('>I', data, end)
        if zlib.crc32(view[place + 4 : end]) != check:
            raise InputError(f'damaged: wrong checksum at byte {place}')
        name = bytes(view[place + 4 : place + 8])
        found.setdefault(name, []).append(view[place + 8 : end])
        place = end + 4
        if name == b'IEND':
            return {key: b''.join(parts) for key, parts in found.items()}
    raise InputError(f'truncated: {len(data)} bytes and no end of the PNG')


def _decode_own(chunks: dict[bytes, bytes]) -> LabelMaps:
    try:
        width, height, *kind, _, _, _ = _HEADER.unpack(chunks[b'IHDR'])
        size = {each: n for n, each in _KINDS.items()}[tuple(kind)]
        text, _, labels = zlib.decompress(chunks[_CHUNK]).partition(b'\n')
        facts = json.loads(text)
        table = np.frombuffer(labels, '<i4').astype(np.int32)
        table = table.reshape(facts['maps'], facts['values'])
        settings = facts['settings']
        unpacker = zlib.decompressobj()
        expected = height * (1 + width * size)
        rows = unpacker.decompress(chunks[b'IDAT'], expected)
        if len(rows) != expected or not unpacker.eof:
            raise ValueError(f'not {expected} bytes of pixels')
    except (KeyError, ValueError, struct.error, zlib.error) as error:
        raise InputError(
            f'damaged, or not written by this project: {error!r}'
        ) from error
    rows = np.frombuffer(rows, np.uint8).reshape(height, 1 + width * size)
    if size == 1:
        index = rows[:, 1:]
    else:
        wide = np.zeros((height, width, 2 if size == 2 else 4), np.uint8)
        wide[..., -size:] = rows[:, 1:].reshape(height, width, size)
        kind = f'u{wide.shape[2]}'
        index = wide.view(f'>{kind}')[..., 0].astype(kind)
    if rows[:, 0].any() or index.max(initial=0) >= table.shape[1]:
        raise InputError(
            'the pixels do not fit the table of labels; another program has '
            'written this file anew'
        )
    return LabelMaps(index, (table,), settings)


def _decode_plain(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode, array = image.mode, np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f'not a PNG that Pillow can read: {error}') from error
    if array.ndim != 2:
        raise InputError(
            f'a PNG of mode {mode} has no labels; expected greyscale or '
            'palette. A COCO panoptic PNG needs its JSON file, see '
            'ropim_mm.CocoRegionDataset'
        )
    return array.astype(np.uint8) if mode == '1' else array
