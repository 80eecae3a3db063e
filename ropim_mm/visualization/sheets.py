"""Pictures with captions, laid out in rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_BACKGROUND = (255, 255, 255)
_TEXT = (32, 32, 32)
_FAINT = (110, 110, 110)
_FRAME = (205, 205, 205)


@dataclass(frozen=True)
class Cell:
    """One picture of a sheet.

    Attributes:
        image: (H, W, 3) uint8.
        caption: A few words below it; may be ''.
    """

    image: np.ndarray
    caption: str = ''


@dataclass(frozen=True)
class Row:
    """One line of a sheet: a label to the left, then the pictures."""

    cells: Sequence[Cell]
    label: str = ''


def draw_sheet(
    columns: Sequence[tuple[str, str]],
    rows: Sequence[Row],
    side: int = 192,
    title: str = '',
    note: str = '',
    shrink: bool = False,
) -> np.ndarray:
    """Draw pictures in a grid.

    All pictures of a sheet have one scale. Small ones are enlarged by a
    whole factor without smoothing, so that every pixel is seen.

    Args:
        columns: Heading and smaller second line of each column.
        rows: At least one; each has one cell a column.
        side: The longer side, in pixels, that small pictures are enlarged
            towards.
        title: Above everything; may be ''.
        note: Below everything; may be ''.
        shrink: Also reduce pictures that are larger than ``side``.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: There are no rows, or one has a wrong number of cells.
    """
    counts = sorted({len(row.cells) for row in rows})
    if counts != [len(columns)]:
        raise ValueError(
            f'the rows of a sheet have {counts} pictures; expected '
            f'{len(columns)} in each, one a column, and at least one row'
        )
    # Largest height and width over all pictures.
    height, width = np.max(
        [cell.image.shape[:2] for row in rows for cell in row.cells], axis=0
    )
    scale = _scale(int(max(height, width)), side, shrink)
    height, width = max(1, int(height * scale)), max(1, int(width * scale))

    text = max(13, min(20, round(0.075 * width)))
    head, small = _font(text), _font(round(0.85 * text))
    gap = max(6, text // 2)
    line = round(1.35 * text)
    measure = ImageDraw.Draw(Image.new('RGB', (1, 1)))

    # A column is as wide as its heading needs.
    wide = width
    for words, font in [
        *((c[0], head) for c in columns),
        *((c[1], small) for c in columns),
        *((c.caption, small) for row in rows for c in row.cells),
    ]:
        wide = max(wide, int(measure.textlength(words, font)) + 2)
    labels = [_shorten(row.label, small, 9 * text, measure) for row in rows]
    left = max(int(measure.textlength(x, small)) for x in labels)
    left = gap + (left + gap if left else 0)
    captioned = any(cell.caption for row in rows for cell in row.cells)

    top = gap + (line + gap // 2 if title else 0)
    heading = line * (2 if any(formula for _, formula in columns) else 1)
    step = height + (line if captioned else 0) + gap
    whole = left + len(columns) * (wide + gap)
    notes = _wrap(note, small, whole - 2 * gap, measure)
    sheet = Image.new(
        'RGB',
        (
            whole,
            top + heading + gap // 2 + len(rows) * step + len(notes) * line,
        ),
        _BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    if title:
        room = sheet.width - 2 * gap
        draw.text((gap, gap), _shorten(title, head, room, draw), _TEXT, head)
    lefts = [left + i * (wide + gap) for i in range(len(columns))]
    for x, (name, formula) in zip(lefts, columns, strict=True):
        _centred(draw, x, top, wide, name, head, _TEXT)
        _centred(draw, x, top + line, wide, formula, small, _FAINT)
    for i, row in enumerate(rows):
        y = top + heading + gap // 2 + i * step
        if labels[i]:
            middle = y + (height - text) // 2
            draw.text((gap, middle), labels[i], _TEXT, small)
        for x, cell in zip(lefts, row.cells, strict=True):
            picture = _resize(cell.image, scale)
            at = x + (wide - picture.width) // 2
            frame = (at - 1, y - 1, at + picture.width, y + picture.height)
            draw.rectangle(frame, outline=_FRAME)
            sheet.paste(picture, (at, y))
            _centred(
                draw, x, y + height + 2, wide, cell.caption, small, _FAINT
            )
    for i, words in enumerate(reversed(notes), start=1):
        draw.text((gap, sheet.height - i * line), words, _FAINT, small)
    return np.array(sheet)


def stack_sheets(sheets: Sequence[np.ndarray]) -> np.ndarray:
    """Sheets below each other, as wide as the widest.

    Args:
        sheets: At least one, (H, W, 3) uint8 each.

    Returns:
        (sum of H, largest W, 3) uint8.
    """
    width = max(sheet.shape[1] for sheet in sheets)
    parts = []
    for sheet in sheets:
        shape = (sheet.shape[0], width, 3)
        part = np.full(shape, _BACKGROUND, dtype=np.uint8)
        part[:, : sheet.shape[1]] = sheet
        parts.append(part)
    return np.concatenate(parts)


def _scale(longer: int, side: int, shrink: bool) -> float:
    """What to multiply sides by: a whole number when enlarging."""
    if longer <= side:
        return side // longer
    return side / longer if shrink else 1


def _resize(image: np.ndarray, scale: float) -> Image.Image:
    picture = Image.fromarray(image)
    if scale == 1:
        return picture
    size = tuple(max(1, int(edge * scale)) for edge in picture.size)
    enlarge = scale > 1
    return picture.resize(
        size,
        Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS,
    )


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font; its small bitmap one where FreeType is missing."""
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError):  # Pillow < 10.1, or without FreeType
        return ImageFont.load_default()


def _centred(draw, left, top, width, words, font, colour) -> None:
    if words:
        offset = (width - draw.textlength(words, font)) / 2
        draw.text((left + offset, top), words, colour, font)


def _wrap(words: str, font, width: float, draw) -> list[str]:
    """Lines that fit; a single word may be longer."""
    lines = []
    for word in words.split():
        longer = f'{lines[-1]} {word}' if lines else word
        if lines and draw.textlength(longer, font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _shorten(words: str, font, width: float, draw) -> str:
    """Cut the middle out of words that are too long; file names differ at
    both ends."""
    if draw.textlength(words, font) <= width:
        return words
    for keep in range(len(words) - 1, 1, -1):
        cut = words[: (keep + 1) // 2] + '...' + words[-(keep // 2) :]
        if draw.textlength(cut, font) <= width:
            return cut
    return '...'
