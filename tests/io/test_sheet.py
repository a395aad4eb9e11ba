import random

import pytest
from PIL import Image, ImageChops

from sdpipe.io.sheet import MARGIN, Table, draw_sheet, scale_to, split_table


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


def test_an_image_is_asked_for_when_it_is_drawn_and_lies_where_its_labels_say():
    asked = []

    def image(color):
        asked.append(color)
        return None if color == "none" else Image.new("RGB", (128, 128), color)

    table = Table(["left", "right"], ["above", "below"], [["red", "lime"], ["blue", "none"]])
    sheet = draw_sheet([table], (128, 128), image, "title", "subtitle")
    assert asked == ["red", "lime", "blue", "none"]
    boxes = {}
    for color in ("red", "lime", "blue"):
        plain = Image.new("RGB", sheet.size, color)
        away = ImageChops.difference(sheet, plain).convert("L").point(lambda v: 255 * (v == 0))
        boxes[color] = away.getbbox()
        left, top, right, bottom = boxes[color]
        assert (right - left, bottom - top) == (128, 128)
    assert boxes["red"][0] == boxes["blue"][0] < boxes["lime"][0]
    assert boxes["red"][1] == boxes["lime"][1] < boxes["blue"][1]
    paper = Image.new("RGB", sheet.size, "white")
    left, top, right, bottom = ImageChops.difference(sheet, paper).getbbox()
    assert min(left, top, sheet.width - right, sheet.height - bottom) >= MARGIN - 1
