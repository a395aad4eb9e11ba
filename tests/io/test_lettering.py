import numpy as np
import pytest
from PIL import Image, ImageDraw

from sdpipe.io.lettering import (
    LEADING,
    SMALL,
    TEXT,
    distinguish,
    height_of,
    label_lines,
    label_width,
    shorten,
    text_width,
    transliterate,
    wrap,
    write,
)


def test_letters_that_the_font_lacks_are_spelled_with_those_it_has():
    assert transliterate("café\n日本 fi ·  x") == "cafe fi · x"
    assert transliterate("日本") == ""


@pytest.mark.parametrize("room", range(12))
def test_a_shortened_text_is_the_longest_beginning_that_fits(room):
    short = shorten("some words", room, len)
    if room >= len("some words"):
        assert short == "some words"
        return
    fits = [n for n in range(10) if len("some words"[:n].rstrip() + "...") <= room]
    assert short == "some words"[: max(fits, default=0)].rstrip() + "..."


def test_labels_that_look_alike_get_their_number():
    labels = ["é", "e", "a", "日本", "猫", "a", ""]
    assert distinguish(labels, transliterate) == {
        "é": "no. 1 é",
        "e": "no. 2 e",
        "a": "a",
        "日本": "no. 4 日本",
        "猫": "no. 5 猫",
        "": "",
    }
    assert distinguish(["long a", "long b"], len) == {
        "long a": "no. 1 long a",
        "long b": "no. 2 long b",
    }


def test_wrapped_lines_hold_all_words_or_end_with_dots():
    text = "the quick brown fox jumps over the lazy dog"
    lines = wrap(text, TEXT, 120, 9)
    assert " ".join(lines) == text
    assert all(text_width(line, TEXT) <= 120 for line in lines)
    few = wrap(text, TEXT, 120, 2)
    assert len(few) == 2
    assert few[0] == lines[0]
    assert few[1].endswith("...")
    assert wrap("", TEXT, 120, 2) == []
    assert wrap("inseparabilities", TEXT, 60, 2)[0].endswith("...")


def test_a_note_is_smaller_and_below():
    lines = label_lines("step 3\nsigma 2.5", TEXT, 200, 1)
    assert [(line.text, line.size) for line in lines] == [("step 3", TEXT), ("sigma 2.5", SMALL)]


def test_lines_are_written_below_one_another_in_the_height_that_is_told():
    lines = label_lines("step 3\nsigma 2.5", TEXT, 200, 1)
    assert height_of(lines) == TEXT + SMALL + 2 * LEADING
    for centred, left in ((False, 30), (True, 30 - label_width("step 3\nsigma 2.5", TEXT) // 2)):
        paper = Image.new("RGB", (120, 80), "white")
        write(ImageDraw.Draw(paper), (30, 10), lines, centred=centred)
        y, x = np.nonzero(np.asarray(paper.convert("L")) < 200)
        assert abs(x.min() - left) <= 3
        second = 10 + TEXT + LEADING
        assert (y < second - 2).any()
        assert (y >= second).any()
        assert y.min() >= 10
        assert y.max() < 10 + height_of(lines)


def test_a_label_is_as_wide_as_the_wider_of_text_and_note():
    wide, narrow = "a long text", "i"
    assert label_width(f"{wide}\n{narrow}", TEXT) == text_width(wide, TEXT)
    assert label_width(f"{narrow}\n{wide}", TEXT) == text_width(wide, SMALL)
