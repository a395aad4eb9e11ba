"""The grid of a sweep: every picture in its place, every text where it can be read."""

from itertools import combinations

import pytest
from PIL import Image, ImageDraw

from sdpipe.io.sheet import LARGEST, LARGEST_SIDE
from sdpipe.sweep.grid import draw_grid
from sdpipe.sweep.sweep import Sweep


def colour(place):
    return tuple((90 + 37 * (i + 1) * (k + 1)) % 200 for i, k in enumerate((*place, 0, 0, 0)[:3]))


GRIDS = {
    "two": (Sweep("x", g=[1, 3, 7.5], steps=[10, 20]), (128, 128)),
    "three": (Sweep("x", g=[1, 3], steps=[10, 20], seed=range(5)), (64, 128)),
    "row": (Sweep("x", scheduler=["lms", "ddim", "euler_a"]), (128, 64)),
    "rows": (Sweep("x", seed=range(23)), (32, 32)),
    "sizes": (Sweep("x", dim=[64, 128], g=[1, 2]), (128, 128)),
    "many": (Sweep("x", g=[1, 2], seed=range(40)), (512, 512)),
    "long": (
        Sweep("{a long name of many words and inseparabilities|b} {c|c c c c c c c c}"),
        (8, 8),
    ),
    "signs": (Sweep("{猫|é}", g=[1, 2]), (128, 128)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_every_picture_is_in_its_place_and_every_text_can_be_read(name, monkeypatch):
    plan, size = GRIDS[name]
    texts, places, write = [], {}, ImageDraw.ImageDraw.text
    paste = Image.Image.paste

    def noting(self, xy, text, *arguments, **options):
        box = self.textbbox(xy, text, font=arguments[1], anchor=options.get("anchor"))
        texts.append((text, *box))
        write(self, xy, text, *arguments, **options)

    def placing(self, image, box):
        places[asked[-1]] = (*box, box[0] + image.width, box[1] + image.height)
        paste(self, image, box)

    asked = []

    def picture(place):
        asked.append(place)
        return Image.new("RGB", size, colour(place))

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noting)
    monkeypatch.setattr(Image.Image, "paste", placing)
    sheet = draw_grid(plan.axes, size, picture, "a title", "what is the same")
    assert sorted(asked) == sorted(cell.index for cell in plan.cells)
    assert sheet.width * sheet.height <= LARGEST * 1.1
    assert max(sheet.size) <= LARGEST_SIDE * 1.1

    for place, (left, top, right, bottom) in places.items():
        assert sheet.getpixel(((left + right) // 2, (top + bottom) // 2)) == colour(place)
        assert (right - left) * size[1] == pytest.approx((bottom - top) * size[0], abs=size[1])
    if len(plan.axes) > 1:
        for a, b in combinations(places, 2):
            if a[1:] == b[1:]:
                assert (places[a][0] < places[b][0]) == (a[0] < b[0])
                assert places[a][1] == places[b][1]
            elif a[::2] == b[::2]:
                assert (places[a][1] < places[b][1]) == (a[1] < b[1])

    boxes = [(text, *box) for text, *box in texts if text]
    assert {"a title", "what is the same"} <= {text for text, *_ in boxes}
    boxes += [("", *box) for box in places.values()]
    for _, left, top, right, bottom in boxes:
        assert 0 <= left <= right <= sheet.width
        assert 0 <= top <= bottom <= sheet.height
    boxes.sort(key=lambda box: box[2])
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            if b[2] >= a[4]:
                break
            assert a[3] <= b[1] or b[3] <= a[1] or a[2] == a[4], (a, b)


def test_the_grid_names_what_the_font_cannot_write(monkeypatch):
    written, write = [], ImageDraw.ImageDraw.text

    def noting(self, xy, text, *arguments, **options):
        written.append(text)
        write(self, xy, text, *arguments, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noting)
    draw_grid(Sweep("{猫|é}").axes, (64, 64), lambda place: None)
    assert written == ["no. 1", "e", "none", "none"]
    written.clear()
    draw_grid(Sweep("{猫|犬} {é|e|i}").axes, (64, 64), lambda place: None)
    assert written[:2] == ["no. 1", "no. 2"]
    assert [text for text in written if text not in ("none", *written[:2])] == [
        *("no. 1 e", "no. 2 e", "i")
    ]
    written.clear()
    long = "a very long prompt of which only the first words can be written above its images "
    draw_grid(Sweep(f"{{{long}1|{long}2}}").axes, (64, 64), lambda place: None)
    assert [text for text in written if text.startswith("no.")] == ["no. 1 a very", "no. 2 a very"]
