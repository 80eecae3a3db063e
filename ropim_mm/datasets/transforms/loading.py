"""From a file, or bytes out of an archive, to pixels."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from functools import partial

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmengine.logging import print_log
from PIL import Image, UnidentifiedImageError

from ropim_mm.datasets import jpeg
from ropim_mm.datasets.skipped import SkipAccount
from ropim_mm.errors import InputError
from ropim_mm.registry import TRANSFORMS

# What stands an image upright, by the value of its EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # of these, height and width change places
_ORIENTATION_TAG = 0x0112
_BITS_TAG = 0x0102  # BitsPerSample of TIFF


class UnreadableFileError(InputError):
    """A file of a dataset cannot be read; the message says which and why."""

    def __init__(self, message: str) -> None:
        # A loader's worker hands it on with a traceback in front.
        super().__init__(
            message.rpartition(f'{type(self).__name__}: ')[2].strip()
        )


class UnreadableImageError(UnreadableFileError):
    """An image of a dataset cannot be read; the message says which and why."""


def decode_image(data: bytes) -> np.ndarray:
    """Decode an encoded image to colour.

    Pillow decodes, since it refuses a truncated file (OpenCV fills the rest
    with grey); or simplejpeg where it gives the same pixels sooner, see
    :mod:`ropim_mm.datasets.jpeg`. The first frame of an animation is taken,
    EXIF orientation is applied, grayscale, palette and CMYK images become
    colour, transparency is dropped and 16 (or 12) bits a channel are reduced
    to their upper 8. Which they are is read from the file's header, not from
    the values.

    Args:
        data: The content of an image file, in any format Pillow reads.

    Returns:
        (H, W, 3) uint8 in the order blue, green, red, as MMPretrain's
        pipelines expect.

    Raises:
        InputError: The data are no image, or grey values of a type whose
            range is not known: 32 bits, signed or floating point.
        Exception: Whatever Pillow raises for damaged data.
    """
    if not data:
        raise InputError('the file is empty (0 bytes)')
    array = jpeg.decode(data) if _upright_header(data) else None
    return _decode_any(data) if array is None else array


def _upright_header(data: bytes) -> jpeg.JpegHeader | None:
    """Header of a plain JPEG that is not to be turned, else None."""
    header = jpeg.read_header(data)
    if header is None or (header.app1 and _turned(data)):
        return None
    return header


def _turned(data: bytes) -> bool:
    """Whether a JPEG says that it is to be turned or mirrored."""
    try:
        with Image.open(io.BytesIO(data)) as img:
            return _orientation(img) in _UPRIGHT
    except Exception:  # whose message is for the decoder to find
        return True


def _decode_any(data: bytes) -> np.ndarray:
    try:
        img = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise InputError(
            f'not an image in a format that Pillow reads ({len(data)} bytes, '
            f'beginning with {data[:8]!r})'
        ) from None
    bits = _grey_bits(img)
    img.load()
    img = _stand_upright(img)
    if bits is not None:
        array = (np.asarray(img) >> (bits - 8)).astype(np.uint8)
        return np.repeat(array[..., None], 3, axis=2)
    # A view is enough: the crop that follows copies what it needs.
    return np.asarray(img.convert('RGB'))[..., ::-1]


def image_shape(data: bytes) -> tuple[int, int]:
    """Height and width that :func:`decode_image` gives, from the header.

    Args:
        data: The content of an image file.

    Raises:
        Exception: Whatever Pillow raises where it knows no such image.
    """
    with Image.open(io.BytesIO(data)) as img:
        width, height = img.size
        if _orientation(img) in _SIDEWAYS:
            return width, height
        return height, width


def _grey_bits(img: Image.Image) -> int | None:
    """Bits of a grey pixel where they are more than 8, from the header."""
    if img.mode.startswith('I;16'):
        if img.format == 'TIFF':  # 12 bits have this mode, too
            return img.tag_v2.get(_BITS_TAG, (16,))[0]
        return 16
    if img.mode == 'I' and img.format in ('PNG', 'PPM'):
        # 16-bit PNG in an older Pillow; PGM, which Pillow scales to 16 bits.
        return 16
    if img.mode in ('I', 'F'):
        # Taking the range from the pixels would brighten each image by
        # another factor, and turn dark ones into others than they are.
        kind = 'floating point' if img.mode == 'F' else 'signed or 32 bits'
        raise InputError(
            f'grey values of unknown range ({kind}); expected unsigned ones '
            'of 8 or 16 bits. Save the image so, with black as 0 and white '
            'as 255 or 65535'
        )
    return None


def _stand_upright(img: Image.Image) -> Image.Image:
    orientation = _orientation(img)
    if orientation in _UPRIGHT:
        img = img.transpose(_UPRIGHT[orientation])
    return img


def _orientation(img: Image.Image) -> int | None:
    try:
        return img.getexif().get(_ORIENTATION_TAG)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return None


class FileLoader(BaseTransform):
    """A step that reads a file of each sample, with a policy for broken ones.

    Args:
        on_error: ``'raise'`` or ``'skip'``, see :class:`LoadImage`.

    Raises:
        InputError: ``on_error`` is another word.
    """

    # What a message calls the files, and what it raises.
    kind = 'file'
    error = UnreadableFileError

    def __init__(self, on_error: str = 'raise') -> None:
        if on_error not in ('raise', 'skip'):
            raise InputError(
                f'{type(self).__name__}: on_error is {on_error!r}; expected '
                "'raise' or 'skip'"
            )
        self.on_error = on_error
        self.skipped = SkipAccount() if on_error == 'skip' else None

    def refuse(self, path: str, error: Exception) -> None:
        """Do with a broken file what the policy says.

        Args:
            path: The file.
            error: What happened.

        Raises:
            UnreadableFileError: Under ``'raise'``.
        """
        reason = str(error) or type(error).__name__
        if self.on_error == 'raise':
            raise self.error(
                f'cannot read {self.kind} {path}: {reason}. Repair or remove '
                f"it, or set on_error='skip' in {type(self).__name__} to "
                'train without it'
            ) from error
        text = f'{path}: {reason}'
        if self.skipped.add(path, text):
            print_log(
                f'skipped unreadable {self.kind} {text}. Another sample '
                'takes its place',
                logger='current',
                level=logging.WARNING,
            )


class DeferredImage:
    """A photograph of which only the header has been read.

    Stands for (H, W, 3) uint8, blue, green, red. numpy, and an index, decode
    the whole of it.

    Args:
        data: The content of the file.
        header: Its header.
        refuse: Called with the error where the file turns out to be damaged;
            raises if it is not to be skipped.
    """

    ndim = 3
    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        data: bytes,
        header: jpeg.JpegHeader,
        refuse: Callable[[Exception], None],
    ) -> None:
        self.shape = (header.height, header.width, 3)
        self._data, self._header, self._refuse = data, header, refuse

    def crop(
        self, top: int, left: int, height: int, width: int
    ) -> np.ndarray | None:
        """Pixels of a rectangle, (height, width, 3); None to skip the file.

        Raises:
            UnreadableImageError: The file is damaged, and not to be skipped.
        """
        rows = jpeg.decode_rows(self._data, self._header, top + height)
        if rows is None:
            try:
                rows = _decode_any(self._data)
            except Exception as error:
                self._refuse(error)
                return None
        return rows[top : top + height, left : left + width]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(decode_image(self._data), dtype=dtype)

    def __getitem__(self, index) -> np.ndarray:
        return np.asarray(self)[index]


@TRANSFORMS.register_module()
class LoadImage(FileLoader):
    """Load an image from a file or an archive, with a policy for broken ones.

    **Required keys:**

    - img_path (str): the file, or a name for messages where the next key is
      given
    - img_source (Callable[[], bytes], optional): gives the encoded image, for
      datasets that keep images in an archive; removed

    **Added keys:**

    - img: (H, W, 3) uint8, blue, green, red; with ``defer`` perhaps a
      :class:`DeferredImage`
    - img_shape, ori_shape: (H, W)

    Args:
        on_error: ``'raise'`` stops at an image that cannot be read and says
            which and why. ``'skip'`` says the same in a warning, once a file,
            counts it (:attr:`skipped`, which ``ropim_mm.SkippedImagesHook``
            reports in the log file) and lets the dataset take another sample
            at random. Only for training: a dataset in ``test_mode`` must not
            lose samples, and stops.
        defer: Leave a plain JPEG undecoded, for a step that needs a part of
            it: ``ropim_mm.RandomResizedCrop``, which then decodes the rows
            down to the crop's lower edge and no others. Draws and results
            are the same. No step in between may look at the pixels;
            ``ropim_mm.LoadRegions`` does not.
        backend_args: Storage backend of :func:`mmengine.fileio.get`.

    Raises:
        InputError: ``on_error`` is another word.
        UnreadableImageError: By :meth:`transform`, under ``'raise'``.
    """

    kind = 'image'
    error = UnreadableImageError

    def __init__(
        self,
        on_error: str = 'raise',
        defer: bool = False,
        backend_args: dict | None = None,
    ) -> None:
        super().__init__(on_error)
        self.defer = defer
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict | None:
        """Add the pixels; None asks the dataset for another sample."""
        path = results['img_path']
        source = results.pop('img_source', None)
        try:
            if source is None:
                data = fileio.get(path, backend_args=self.backend_args)
            else:
                data = source()
            img = self._deferred(path, data)
            if img is None:
                img = decode_image(data)
        except Exception as error:
            self.refuse(path, error)
            return None
        results['img'] = img
        results['img_shape'] = img.shape[:2]
        results['ori_shape'] = img.shape[:2]
        return results

    def _deferred(self, path: str, data: bytes) -> DeferredImage | None:
        header = _upright_header(data) if self.defer else None
        if header is None or not jpeg.in_one_piece(data, header):
            return None
        return DeferredImage(data, header, partial(self.refuse, path))

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(on_error={self.on_error!r}, '
            f'defer={self.defer}, backend_args={self.backend_args})'
        )
