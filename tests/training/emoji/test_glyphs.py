"""Glyphs: how they are drawn and compared, and their names."""

import numpy as np
import pytest
from PIL import Image
from support.inks import discs

from sdpipe.training.emoji import glyphs


def test_glyphs_are_composed_by_source_over():
    ink = Image.new("RGBA", (136, 136))
    ink.paste((200, 0, 0, 128), (0, 0, 136, 68))  # the upper half, half transparent
    ink = ink.convert("RGBa")
    image = glyphs.draw([(ink, 1.0, (0, 0))], 64, (0, 100, 200))
    upper, lower = image.getpixel((32, 10)), image.getpixel((32, 50))
    expected = [round(c * 128 / 255 + b * 127 / 255) for c, b in ((200, 0), (0, 100), (0, 200))]
    assert np.abs(np.array(upper) - expected).max() <= 2
    assert lower == (0, 100, 200)
    moved = glyphs.draw([(ink, 0.5, (0.25, 0.0))], 64)
    assert moved.getpixel((20, 20)) == (255, 255, 255)
    assert moved.getpixel((60, 20)) != (255, 255, 255)


def test_look_alikes_are_the_half_that_is_nearest_to_another():
    inks = discs()
    near = inks["red disc"].copy()
    near.putpixel((60, 60), (0, 0, 0, 255))
    inks["red disc with a dot"] = near
    assert set(glyphs.look_alikes(inks)) == {"red disc", "red disc with a dot"}


def test_equal_glyphs_are_one_class():
    inks = discs()
    inks["crimson disc"] = inks["red disc"].copy()
    classes = glyphs.glyph_classes(inks)
    assert classes["crimson disc"] == "red disc"
    assert len(set(classes.values())) == 3


def test_names_are_plain_english_without_flags_keycaps_and_skin_tones():
    pytest.importorskip("emoji")
    named = glyphs.named_glyphs()
    assert named["red apple"] == "\N{RED APPLE}"
    assert named["woman astronaut"] == "\N{WOMAN}\u200d\N{ROCKET}"
    assert 1600 < len(named) < 1700
    assert not any(letter in name for name in named for letter in ":_()\u2019")
    assert all(name == name.lower() for name in named)
    assert not any("flag" in name or "skin tone" in name for name in named)
    # Unicode's keycaps are twelve sequences; "keycap 10" is a character.
    assert [name for name in named if "keycap" in name] == ["keycap 10"]
