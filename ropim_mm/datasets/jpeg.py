"""Photographs, by a decoder of JPEG alone.

Where simplejpeg is installed, plain photographs are decoded by it: the same
libjpeg-turbo as Pillow's, hence the same pixels, without the copies between.
What is anything but plain is left to Pillow, and so is every file that
simplejpeg objects to: whether it is an image is for Pillow to say.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image

try:
    import simplejpeg
except ImportError:  # no wheel for this platform: Pillow decodes, slower
    simplejpeg = None

_START = b'\xff\xd8\xff'
# Rows decoded below those that are needed: between rows of colours stored at a
# quarter of the height, the ones in between are interpolated.
_MARGIN = 8
_END = b'\xff\xd9'
# Second bytes of markers. Frames: baseline, extended, progressive; the others
# are lossless, hierarchical or arithmetically coded.
_FRAMES = (0xC0, 0xC1, 0xC2)
_PROGRESSIVE = 0xC2
_TABLES = (0xC4, 0xDB, 0xDD, 0xFE)  # Huffman, quantisers, restarts, comments
_APPLICATION = range(0xE0, 0xF0)
_APP1, _APP2 = 0xE1, 0xE2
_SCAN = 0xDA
# Among pixels: neither a byte of theirs nor a restart.
_MARKER = re.compile(rb'\xff[^\x00\xd0-\xd7]')
_FRAME = struct.Struct('>BHHB')  # bits, height, width, components


def decoder_name() -> str:
    """What decodes plain JPEGs here, with its version."""
    if simplejpeg is None:
        return f'Pillow {PIL.__version__}; simplejpeg would be faster'
    return f'simplejpeg {simplejpeg.__version__}'


class JpegHeader(NamedTuple):
    """What a plain JPEG says before its pixels.

    Attributes:
        height: Pixels.
        width: Pixels.
        height_at: Where the two bytes of the height stand in the file.
        app1: Whether there is a block in which an orientation may stand.
        single_scan: Whether rows follow each other in the file, all colours
            of one before the next.
        scan_at: Where they begin.
    """

    height: int
    width: int
    height_at: int
    app1: bool
    single_scan: bool
    scan_at: int


def read_header(data: bytes) -> JpegHeader | None:
    """Header of a plain JPEG, None for anything else.

    Plain are 8 bits of grey or of three components, coded by Huffman, one
    image in the file, of no more pixels than Pillow accepts.

    Args:
        data: The content of a file.
    """
    if simplejpeg is None or not data.startswith(_START):
        return None
    place, frame, app1 = 2, None, False
    try:
        while True:
            fill, marker = data[place], data[place + 1]
            length = data[place + 2] << 8 | data[place + 3]
            if fill != 0xFF or length < 2:
                return None
            if marker in _FRAMES and frame is None:
                frame = place + 4, marker
            elif marker == _SCAN:
                components = data[place + 4]
                break
            elif marker == _APP1:
                app1 = True
            elif marker == _APP2 and data.startswith(b'MPF\0', place + 4):
                return None  # several images
            elif marker not in _TABLES and marker not in _APPLICATION:
                return None
            place += 2 + length
        start, marker = frame
        bits, height, width, channels = _FRAME.unpack_from(data, start)
    except (IndexError, TypeError, struct.error):  # ends early; no frame
        return None
    limit = Image.MAX_IMAGE_PIXELS
    if (
        bits != 8
        or channels not in (1, 3)
        or not height * width
        or (limit is not None and height * width > limit)
    ):
        return None
    return JpegHeader(
        height,
        width,
        start + 1,
        app1,
        marker != _PROGRESSIVE and components == channels,
        place,
    )


def in_one_piece(data: bytes, header: JpegHeader) -> bool:
    """Whether the upper rows can be had without looking at the others.

    So it is where nothing but pixels stands between the header and the
    file's last two bytes, which are the image's end. Damage can then make
    the pixels wrong, which Pillow accepts, but no decoder would refuse them.

    Args:
        data: The content of a file.
        header: Its header.
    """
    if not header.single_scan:
        return False
    marker = _MARKER.search(data, header.scan_at + 2)
    return (
        marker is not None
        and marker.start() == len(data) - 2
        and marker[0] == _END
    )


def decode_rows(
    data: bytes, header: JpegHeader, rows: int
) -> np.ndarray | None:
    """The upper rows of a plain JPEG, without the work for those below.

    Damage that a decoder can go on after is passed over, as Pillow does.

    Args:
        data: The content of a file, :func:`in_one_piece`.
        header: Its header.
        rows: How many are needed, of the header's height.

    Returns:
        (n, W, 3) uint8 in the order blue, green, red, n being ``rows`` or a
        little more; None where the decoder has any objection.
    """
    rows += _MARGIN
    if rows < header.height:
        data = bytearray(data)
        struct.pack_into('>H', data, header.height_at, rows)
    try:
        # The rest of the file, now unexpected, is no error.
        return simplejpeg.decode_jpeg(data, colorspace='BGR', strict=False)
    except ValueError:
        return None


def decode(data: bytes) -> np.ndarray | None:
    """Pixels of a plain JPEG, as they lie in the file.

    Args:
        data: The content of a file that :func:`read_header` accepts.

    Returns:
        (H, W, 3) uint8 in the order blue, green, red; None where the decoder
        has any objection.
    """
    try:
        return simplejpeg.decode_jpeg(data, colorspace='BGR')
    except ValueError:
        return None
