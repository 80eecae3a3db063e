"""Images of whole datasets, made smaller once.

One JPEG an image, under its name and in its place in the tree: folders of
classes and lists of files stay what they are. Label maps do not fit any more,
since they have the size of the image: make them from the small ones. The name
stays even where it ends in ``.png``: readers here, and Pillow, OpenCV
and torchvision, go by the content. ``shrink_images.json`` at the root holds
the settings. How a run goes on, and what happens when it is stopped, see
:mod:`~ropim_mm.datasets.conversion`.

The short side becomes that of the settings, by Pillow's Lanczos filter, and
the long one follows; nothing is enlarged. Pixels are those of
:func:`~ropim_mm.datasets.transforms.loading.decode_image`: upright, 8 bits,
without transparency. Grey images stay grey. EXIF and colour profiles are
dropped, as they are in training. A small JPEG that is upright already is
copied byte for byte, since nothing could be gained from encoding it again.

The others have a comment with the settings and a checksum of the rest of the
file, without which damage inside a JPEG would go unnoticed.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, TextIO

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from ropim_mm.datasets import conversion
from ropim_mm.datasets.conversion import (
    Converter,
    Made,
    Report,
    Settings,
    UnsuitableImageError,
)
from ropim_mm.datasets.transforms.loading import decode_image, image_shape
from ropim_mm.errors import InputError

SETTINGS_FILE = 'shrink_images.json'
SUBSAMPLINGS = ('4:2:0', '4:2:2', '4:4:4')
FILTER = 'lanczos'
_LONGEST = 65500  # of libjpeg, in pixels
_KEY = 'ropim_mm'  # of the comment
_COMMENT = b'\xff\xfe'
_START = struct.Struct('>4sH')  # start of image, marker of JFIF; its length
_JFIF = b'\xff\xd8\xff\xe0'
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class ShrinkSettings(Settings):
    """How images are made smaller.

    Attributes:
        short_side: Pixels, at most.
        quality: Of the JPEG, as libjpeg counts it, 1 to 100.
        subsampling: Of its colours, one of :data:`SUBSAMPLINGS`.

    Raises:
        InputError: One is out of its range.
    """

    short_side: int = 256
    quality: int = 85
    subsampling: str = '4:2:0'

    FILE: ClassVar[str] = SETTINGS_FILE
    PRODUCT: ClassVar[str] = 'smaller images'

    def __post_init__(self) -> None:
        for name, highest in (('short_side', _LONGEST), ('quality', 100)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= highest:
                raise InputError(
                    f'{name} is {value!r}; expected a whole number from 1 to '
                    f'{highest}'
                )
        if self.subsampling not in SUBSAMPLINGS:
            raise InputError(
                f'subsampling is {self.subsampling!r}; expected one of '
                f'{", ".join(SUBSAMPLINGS)}'
            )

    def to_json(self) -> dict:
        """As files hold it, with the filter."""
        return dict(asdict(self), filter=FILTER)

    @classmethod
    def from_json(cls, found: dict) -> ShrinkSettings:
        """What :meth:`to_json` gave."""
        if found['filter'] != FILTER:
            raise ValueError(f'filter {found["filter"]!r} is not known')
        return cls(found['short_side'], found['quality'], found['subsampling'])


def shrunk_shape(shape: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Height and width of an image made smaller.

    Args:
        shape: Height and width.
        short_side: Of the result, in pixels, at most.
    """
    shortest = min(shape)
    if shortest <= short_side:
        return shape
    # Halves are rounded up.
    height, width = (
        (2 * side * short_side + shortest) // (2 * shortest) for side in shape
    )
    return height, width


class _Found(NamedTuple):
    """A file made earlier, and the settings in its comment, if it has one."""

    content: bytes
    settings: object


@dataclass
class _Shrinker(Converter):
    settings: ShrinkSettings

    SETTINGS: ClassVar[type[Settings]] = ShrinkSettings
    ITEMS: ClassVar[str] = 'smaller images'
    OUTSIDE: ClassVar[str] = (
        'smaller images would be taken for images to be made smaller'
    )
    BATCH: ClassVar[int] = 16

    def target(self, name: str) -> str:
        return name

    def make(self, data: bytes, image: np.ndarray) -> Made:
        shape = shrunk_shape(image.shape[:2], self.settings.short_side)
        if shape == image.shape[:2] and _is_plain(data):
            return Made(data, len(data))
        if max(shape) > _LONGEST:
            raise UnsuitableImageError(
                f'it would be {shape[0]}x{shape[1]} (height x width), and a '
                f'JPEG has sides of at most {_LONGEST}'
            )
        rgb = image[..., ::-1]
        if (rgb == rgb[..., :1]).all():
            rgb = rgb[..., 0]
        small = Image.fromarray(np.ascontiguousarray(rgb))
        if shape != image.shape[:2]:
            small = small.resize(shape[::-1], Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(
            file,
            'JPEG',
            quality=self.settings.quality,
            subsampling=self.settings.subsampling,
        )
        return Made(_with_comment(file.getvalue(), self.settings), len(data))

    def inspect(self, content: bytes) -> _Found:
        if not content:
            raise InputError('the file is empty (0 bytes)')
        comment, rest = _take_comment(content)
        if comment is None:
            return _Found(content, None)
        if comment.get('crc32') != zlib.crc32(rest):
            raise InputError('damaged: wrong checksum')
        return _Found(content, comment[_KEY])

    def compare(
        self, found: _Found, data: bytes, shape: tuple[int, int]
    ) -> None:
        expected = shrunk_shape(shape, self.settings.short_side)
        if expected == shape and _is_plain(data):
            if found.content != data:
                raise InputError(
                    'it is no copy of its image, which is small enough'
                )
            return
        if found.settings is None:
            raise InputError('not made by shrink_images.py, or damaged')
        if found.settings != self.settings.to_json():
            raise InputError(
                f'made with {found.settings}; expected '
                f'{self.settings.to_json()}'
            )
        size = image_shape(found.content)
        if size != expected:
            raise InputError(
                f'it is {size} (height, width); expected {expected}, for an '
                f'image of {shape}'
            )


def _is_plain(data: bytes) -> bool:
    """Whether an image is a JPEG of grey or colours that stands upright."""
    with Image.open(io.BytesIO(data)) as image:
        if image.format != 'JPEG' or image.mode not in ('L', 'RGB'):
            return False
        try:
            return image.getexif().get(_ORIENTATION_TAG, 1) == 1
        except Exception:  # damaged, and as in training without effect
            return True


def _with_comment(content: bytes, settings: ShrinkSettings) -> bytes:
    """A JPEG by Pillow with our comment."""
    text = json.dumps(
        {_KEY: settings.to_json(), 'crc32': zlib.crc32(content)}
    ).encode()
    # JFIF's own block has to be the first.
    _, length = _START.unpack_from(content)
    place = 4 + length
    comment = _COMMENT + struct.pack('>H', 2 + len(text)) + text
    return content[:place] + comment + content[place:]


def _take_comment(content: bytes) -> tuple[dict | None, bytes]:
    """Our comment, None where there is none; and the file without it."""
    try:
        start, length = _START.unpack_from(content)
        place = 4 + length
        if start != _JFIF or content[place : place + 2] != _COMMENT:
            return None, content
        (length,) = struct.unpack_from('>H', content, place + 2)
        end = place + 2 + length
        comment = json.loads(content[place + 4 : end])
    except (struct.error, ValueError):
        return None, content
    if not isinstance(comment, dict) or _KEY not in comment:
        return None, content
    return comment, content[:place] + content[end:]


def shrink_images(
    images: str | os.PathLike,
    out: str | os.PathLike,
    settings: ShrinkSettings | None = None,
    workers: int = 1,
    shard: tuple[int, int] = (0, 1),
    on_error: str = 'raise',
    repair: bool = False,
    progress: TextIO | None = None,
) -> Report:
    """Make all images smaller that have not been yet.

    Args:
        images: Folder or zip archive.
        out: Folder for the smaller ones; made where it is missing.
        settings: None for those that ``out`` was begun with, else the default.
        workers: Processes; 0 works in this one.
        shard: (I, N): only every N-th image, beginning with the I-th, from 0.
        on_error: ``'raise'`` stops at an image that cannot be read, or that
            is too long for a JPEG; ``'skip'`` leaves it out and reports it.
        repair: Check the files that are there first, and make the bad ones
            again.
        progress: Where to show a bar, such as ``sys.stderr``; under
            ``repair`` one for the check comes first.

    Returns:
        Its ``raw`` are the bytes of the originals of the images made.

    Raises:
        InputError: The images, the folder or an argument do not fit; another
            run is at the same shard; a worker died.
        UnreadableSourceError: An image cannot be read, under ``'raise'``.
    """
    return conversion.convert(
        _Shrinker,
        images,
        out,
        settings,
        workers,
        shard,
        on_error,
        repair,
        progress,
    )


def verify_shrunk(
    images: str | os.PathLike,
    out: str | os.PathLike,
    settings: ShrinkSettings | None = None,
    workers: int = 1,
    shard: tuple[int, int] = (0, 1),
    progress: TextIO | None = None,
) -> Report:
    """Check that every image has a smaller one, undamaged and of its size.

    Images whose smaller ones are missing or broken are decoded, to tell those
    that can be made smaller from those that cannot be read.

    Arguments as of :func:`shrink_images`. Nothing is written.

    Raises:
        InputError: The images, the folder or an argument do not fit.
    """
    return conversion.verify(
        _Shrinker, images, out, settings, workers, shard, progress
    )


class Difference(NamedTuple):
    """Of crops from smaller images and from the originals, in grey levels.

    Attributes:
        mean: Absolute difference of a value, over all crops.
        most: The 95th percentile of the crops' own means.
        psnr: Peak signal-to-noise ratio in dB, of all crops together;
            infinite where there is no difference.
        images: That were compared.
    """

    mean: float
    most: float
    psnr: float
    images: int


def compare_crops(
    images: str | os.PathLike,
    out: str | os.PathLike,
    count: int,
    size: int = 224,
    area: tuple[float, float] = (0.2, 1.0),
    crops: int = 3,
    progress: TextIO | None = None,
) -> Difference:
    """What training on smaller images sees otherwise than on the originals.

    The same crops are taken from both and resized by Pillow's bicubic filter.

    Args:
        images: Folder or zip archive of the originals.
        out: Folder of the smaller images.
        count: How many of them to compare, evenly spaced, at most.
        size: Of the crops, in pixels.
        area: Range of their share of an image's area; sides are in ratios of
            3:4 to 4:3.
        crops: Of each image; drawn with a fixed seed.
        progress: Where to show a bar.

    Raises:
        InputError: The folders do not fit, there is no smaller image yet, or
            an image of either kind cannot be read.
    """
    _, source, names = conversion.prepare(_Shrinker, images, out)
    names = [name for name in names if Path(out, name).exists()]
    if not names:
        raise InputError(
            f'{out} has no smaller images of {images} yet; make them first'
        )
    count = min(count, len(names))
    names = [names[i * len(names) // count] for i in range(count)]
    absolute, noise = [], []
    with torch.random.fork_rng([]), conversion.Bar(count, 0, progress) as bar:
        torch.manual_seed(0)
        for name in names:
            pair = _read_pair(source, out, name)
            for _ in range(crops):
                difference = _crop_difference(pair, size, area)
                absolute.append(np.abs(difference).mean())
                noise.append(np.square(difference).mean())
            bar.step()
    error = float(np.mean(noise))
    return Difference(
        float(np.mean(absolute)),
        float(np.percentile(absolute, 95)),
        10 * math.log10(255**2 / error) if error else math.inf,
        count,
    )


def _read_pair(
    source: conversion.ImageSource, out: str | os.PathLike, name: str
) -> list[Image.Image]:
    """An image and the smaller one."""
    pair = []
    for read in (lambda: source.read(name), Path(out, name).read_bytes):
        try:
            image = decode_image(read())
        except Exception as error:
            where = os.fspath(out) if pair else source.path
            raise InputError(
                f'cannot read image {name} of {where}: {error}. Look for such '
                'images by --verify'
            ) from error
        pair.append(Image.fromarray(np.ascontiguousarray(image)))
    return pair


def _crop_difference(
    pair: list[Image.Image], size: int, area: tuple[float, float]
) -> np.ndarray:
    width, height = pair[0].size
    top, left, h, w = RandomResizedCrop.get_params(
        torch.empty(1, height, width, device='meta'),
        list(area),
        [3 / 4, 4 / 3],
    )
    found = []
    for image in pair:
        x, y = image.width / width, image.height / height
        box = (left * x, top * y, (left + w) * x, (top + h) * y)
        crop = image.resize((size, size), Image.Resampling.BICUBIC, box)
        found.append(np.asarray(crop, dtype=np.float32))
    return found[0] - found[1]
