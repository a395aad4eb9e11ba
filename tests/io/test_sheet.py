import random

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageColor

from sdpipe.io.lettering import EDGE
from sdpipe.io.sheet import (
    GAP,
    LABEL_GAP,
    LARGEST,
    LARGEST_SIDE,
    MARGIN,
    NARROWEST,
    ROW_GAP,
    SIDE,
    TABLE_GAP,
    Table,
    draw_sheet,
    scale_to,
    split_table,
)


def noisy(*size):
    return Image.frombytes("RGB", size, random.Random(0).randbytes(size[0] * size[1] * 3))


@pytest.mark.parametrize(("count", "widths"), [(4, [4]), (10, [10]), (11, [6, 5]), (23, [8, 8, 7])])
def test_a_long_table_is_split_evenly_and_in_order(count, widths):
    table = Table([str(k) for k in range(count)], ["a", "b"], [range(count), range(count)])
    parts = split_table(table, 10)
    assert [len(part.columns) for part in parts] == widths
    assert [name for part in parts for name in part.columns] == table.columns
    for row in range(2):
        assert [cell for part in parts for cell in part.cells[row]] == [*range(count)]


@pytest.mark.parametrize(
    ("size", "scaled"),
    [((8, 8), (128, 128)), ((50, 20), (100, 40)), ((65, 3), (65, 3)), ((512, 100), (128, 25))],
)
def test_small_images_are_enlarged_by_whole_factors(size, scaled):
    assert scale_to(noisy(*size), 128).size == scaled
    if max(size) <= 64:
        assert (
            scale_to(noisy(*size), 128).reduce(128 // max(size)).tobytes() == noisy(*size).tobytes()
        )


def plain(color):
    """A square image of this colour, or none."""
    return None if color == "none" else Image.new("RGB", (128, 128), color)


def boxes(sheet, *colors):
    """Where the area of each colour lies: left, top, right, bottom."""
    found = []
    for color in colors:
        y, x = np.nonzero((np.asarray(sheet) == ImageColor.getrgb(color)).all(axis=2))
        found.append((x.min(), y.min(), x.max() + 1, y.max() + 1))
    return found


def is_square(box, side=128):
    return (box[2] - box[0], box[3] - box[1]) == (side, side)


def test_an_image_is_asked_for_when_it_is_drawn_and_lies_where_its_labels_say():
    asked = []

    def image(color):
        asked.append(color)
        return plain(color)

    table = Table(["left", "right"], ["above", "below"], [["red", "lime"], ["blue", "none"]])
    sheet = draw_sheet([table], (128, 128), image, "title", "subtitle")
    assert asked == ["red", "lime", "blue", "none"]
    missing = "#f3f3f5"
    red, lime, blue, none = boxes(sheet, "red", "lime", "blue", missing)
    assert is_square(red)
    assert lime == (red[0] + 128 + GAP, red[1], red[2] + 128 + GAP, red[3])
    assert blue == (red[0], red[1] + 128 + GAP, red[2], red[3] + 128 + GAP)
    assert none == (lime[0], blue[1], lime[2], blue[3])
    assert sheet.getpixel((red[0] - 1, red[1] - 1)) == EDGE
    assert sheet.getpixel((red[2], red[3])) == EDGE
    assert sheet.size == (NARROWEST + 2 * MARGIN, blue[3] + MARGIN)
    paper = Image.new("RGB", sheet.size, "white")
    left, top, right, bottom = ImageChops.difference(sheet, paper).getbbox()
    assert min(left, top, sheet.width - right, sheet.height - bottom) >= MARGIN - 1


def test_tables_with_headings_fill_a_page_line_by_line_and_others_stand_in_a_column():
    colors = ("red", "lime", "blue", "fuchsia")
    for heading in ("one", ""):
        tables = [Table(["a"], [], [[color]], heading) for color in colors]
        sheet = draw_sheet(tables, (128, 128), plain)
        red, lime, blue, fuchsia = boxes(sheet, *colors)
        if heading:
            across, down = 128 + TABLE_GAP, blue[1] - red[1]
            assert lime[:2] == (red[0] + across, red[1])
            assert fuchsia[:2] == (red[0] + across, red[1] + down)
            assert down > 128 + TABLE_GAP
            assert sheet.width - 2 * MARGIN == max(NARROWEST, 2 * across - TABLE_GAP)
        else:
            down = lime[1] - red[1]
            assert down > 128 + ROW_GAP
            assert [box[:2] for box in (blue, fuchsia)] == [
                (red[0], red[1] + 2 * down),
                (red[0], red[1] + 3 * down),
            ]
        assert all(map(is_square, (red, lime, blue, fuchsia)))
        assert sheet.height == fuchsia[3] + MARGIN
        two = boxes(draw_sheet(tables[:2], (128, 128), plain), "red", "lime")
        assert (two[0][1] == two[1][1]) == bool(heading)


def test_images_of_one_sheet_are_scaled_alike_and_stand_in_the_middle_of_their_slots():
    images = {"red": (20, 10), "lime": (10, 10), "blue": (20, 4)}

    def image(color):
        return Image.new("RGB", images[color], color)

    sheet = draw_sheet([Table(["a", "b", "c"], [], [[*images]])], (20, 10), image)
    red, lime, blue = boxes(sheet, *images)
    assert (red[2] - red[0], red[3] - red[1]) == (6 * 20, 6 * 10)
    assert lime == (red[2] + GAP + 30, red[1], red[2] + GAP + 90, red[3])
    assert blue == (red[2] + 2 * GAP + 120, red[1] + 18, red[2] + 2 * GAP + 240, red[1] + 42)


def test_labels_of_rows_have_as_much_room_as_they_need_and_no_more_than_so_much():
    for label, least, most in (("i", 1, 20), ("several words " * 9, SIDE, SIDE)):
        sheet = draw_sheet([Table(["a"], [label], [["red"]])], (128, 128), plain)
        [red] = boxes(sheet, "red")
        assert least <= red[0] - MARGIN - LABEL_GAP <= most
    sheet = draw_sheet([Table(["a"], [], [["red"]])], (128, 128), plain)
    assert boxes(sheet, "red")[0][0] == MARGIN


@pytest.mark.parametrize(("size", "rows"), [((100, 9000), 8), ((8000, 7000), 1)])
def test_a_sheet_is_as_large_as_it_may_be_and_no_larger(size, rows):
    sheet = draw_sheet([Table(["a"], [], [["none"]] * rows)], size, plain)
    height = sheet.height - 2 * MARGIN
    width = sheet.width - 2 * MARGIN
    share = max(max(width, height) / LARGEST_SIDE, width * height / LARGEST)
    assert 0.93 < share <= 1
