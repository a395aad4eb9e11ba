"""Scenes: their canonical captions, and which of them are held out."""

import pytest

from sdpipe.training.emoji.scenes import COLOURS, PLACES, RELATIONS, SIZES, Scene, caption


def test_a_caption_names_glyph_size_place_and_colour():
    assert caption(Scene("cat")) == "cat"
    assert caption(Scene("cat", "blue")) == "cat on a blue background"
    placed = Scene("cat", "blue", size="small", place="top")
    assert caption(placed) == "small cat at the top on a blue background"
    pair = Scene("cat", relation="left of", other="owl")
    assert caption(pair) == "a cat left of an owl"


def test_one_combination_in_eight_is_held_out():
    names = [f"thing {i}" for i in range(400)]
    for scenes in (
        [Scene(name, colour) for name in names for colour in COLOURS],
        [Scene(n, size=size, place=place) for n in names for size in SIZES for place in PLACES],
        [Scene(n, relation="above", other=m) for n in names[:60] for m in names[60:120]],
    ):
        share = sum(scene.is_held_out for scene in scenes) / len(scenes)
        assert share == pytest.approx(1 / 8, abs=0.015)
    assert not any(Scene(name).is_held_out for name in names)
    # A pair is held out in either order and with any relation.
    for a, b in zip(names[:200], names[200:], strict=True):
        both = {
            Scene(x, relation=r, other=y).is_held_out
            for x, y in ((a, b), (b, a))
            for r in RELATIONS
        }
        assert len(both) == 1
