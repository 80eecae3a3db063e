"""Layout of pictures and captions."""

import numpy as np
import pytest

from ropim_mm.visualization import Cell, Row, draw_sheet, stack_sheets

COLUMNS = [('one', ''), ('two', 'x + y')]


def picture(height, width, colour):
    return np.full((height, width, 3), colour, np.uint8)


def box(sheet, colour):
    """Top, left, height and width of the area of a colour."""
    rows, columns = np.nonzero((sheet == colour).all(-1))
    top, left = rows.min(), columns.min()
    assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1), 'not a box'
    return top, left, np.ptp(rows) + 1, np.ptp(columns) + 1


def test_small_pictures_are_enlarged_by_a_whole_factor():
    checks = picture(8, 8, 0)
    checks[::2, ::2] = (1, 200, 3)
    row = Row([Cell(checks), Cell(picture(8, 8, (250, 2, 3)))])
    sheet = draw_sheet(COLUMNS, [row], side=50)
    top, left, height, width = box(sheet, (250, 2, 3))
    assert (height, width) == (48, 48)
    # Not smoothed: a pixel is a block of 6 x 6.
    rows, columns = np.nonzero((sheet == (1, 200, 3)).all(-1))
    assert len(rows) == 16 * 36
    assert rows.min() == top
    assert columns.max() < left


def test_large_pictures_keep_their_size_unless_asked():
    row = Row([Cell(picture(90, 120, (250, 2, 3))), Cell(picture(9, 12, 0))])
    sheet = draw_sheet(COLUMNS, [row], side=60)
    assert box(sheet, (250, 2, 3))[2:] == (90, 120)
    sheet = draw_sheet(COLUMNS, [row], side=60, shrink=True)
    assert box(sheet, (250, 2, 3))[2:] == (45, 60)


def test_rows_and_columns_line_up():
    colours = [[(250, 0, 0), (0, 250, 0)], [(0, 0, 250), (250, 0, 250)]]
    rows = [
        Row([Cell(picture(20, 30, c), 'words') for c in line], f'row {i}')
        for i, line in enumerate(colours)
    ]
    sheet = draw_sheet(COLUMNS, rows, side=60, title='title', note='note')
    boxes = [[box(sheet, c) for c in line] for line in colours]
    assert boxes[0][0][0] == boxes[0][1][0] < boxes[1][0][0]
    assert boxes[0][0][1] == boxes[1][0][1] < boxes[0][1][1]
    assert {b[2:] for line in boxes for b in line} == {(40, 60)}


@pytest.mark.parametrize('field', ['label', 'caption', 'title', 'note'])
def test_words_are_drawn(field):
    def draw(words):
        cells = [Cell(picture(40, 40, 0))] * 2
        if field == 'caption':
            cells = [Cell(picture(40, 40, 0), words)] * 2
        rows = [Row(cells, words if field == 'label' else '')]
        extra = {field: words} if field in ('title', 'note') else {}
        return draw_sheet(COLUMNS, rows, side=40, **extra)

    assert not np.array_equal(draw('abc'), draw('xyz'))
    assert draw('abc').size > draw('').size


def test_long_names_do_not_widen_the_sheet():
    def width(label):
        cells = [Cell(picture(40, 40, 0))] * 2
        return draw_sheet(COLUMNS, [Row(cells, label)]).shape[1]

    assert width('a' * 500) < width('a') + 200


def test_wrong_number_of_pictures():
    cells = [Cell(picture(4, 4, 0))]
    with pytest.raises(ValueError, match=r'have \[1\] pictures; expected 2'):
        draw_sheet(COLUMNS, [Row(cells)])
    with pytest.raises(ValueError, match='at least one row'):
        draw_sheet(COLUMNS, [])


def test_sheets_below_each_other():
    stacked = stack_sheets([picture(2, 3, 7), picture(4, 5, 9)])
    assert stacked.shape == (6, 5, 3)
    assert (stacked[:2, :3] == 7).all()
    assert (stacked[:2, 3:] == 255).all()
    assert (stacked[2:] == 9).all()


def test_long_notes_are_wrapped():
    row = Row([Cell(picture(8, 8, 0)), Cell(picture(8, 8, 0))])
    one = draw_sheet(COLUMNS, [row], side=50, note='short')
    three = draw_sheet(COLUMNS, [row], side=50, note='some more words ' * 6)
    none = draw_sheet(COLUMNS, [row], side=50)
    line = one.shape[0] - none.shape[0]
    assert line > 10
    assert (three.shape[0] - none.shape[0]) % line == 0
    assert three.shape[0] > one.shape[0] + line
    assert three.shape[1] == none.shape[1]
    # Nothing is written over the right edge.
    assert (three[none.shape[0] :, -3:] == 255).all()
