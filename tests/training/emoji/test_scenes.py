"""Scenes and their captions: what is said is what is drawn, and what is held out stays out."""

import dataclasses
import itertools
import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sdpipe.training.emoji import glyphs
from sdpipe.training.emoji.scenes import (
    COLOURS,
    PLACES,
    RELATIONS,
    SIZES,
    Scene,
    caption,
    mistype,
    plural,
    reword,
)
from sdpipe.training.recipe import load_recipe

SCENES = dataclasses.replace(load_recipe().scenes, alike=0.0)  # each glyph as often


def disc(colour):
    sheet = Image.new("RGBA", (glyphs.SIDE, glyphs.SIDE))
    ImageDraw.Draw(sheet).ellipse((4, 4, 132, 132), fill=colour)
    return sheet.convert("RGBa")


@pytest.fixture
def inks():
    return {"red disc": disc((255, 0, 0)), "blue disc": disc((0, 0, 255)), "eye": disc((9, 9, 9))}


@pytest.fixture
def emoji(monkeypatch, inks):
    monkeypatch.setattr(glyphs, "render_all", lambda: inks)
    return glyphs.Emoji(SCENES, 64, seed=1)


def test_captions_say_what_stands_where():
    assert caption(Scene("cat")) == "cat"
    assert caption(Scene("cat", "blue")) == "cat on a blue background"
    placed = Scene("cat", "blue", size="small", place="top")
    assert caption(placed) == "small cat at the top on a blue background"
    pair = Scene("cat", relation="left of", other="owl")
    assert caption(pair) == "a cat left of an owl"


def test_plurals_follow_the_rule():
    said = [plural(name) for name in ("cat", "box", "peach", "cherry", "key")]
    assert said == ["cats", "boxes", "peaches", "cherries", "keys"]


def test_a_mistyped_caption_has_one_word_wrong():
    rng = random.Random(0)
    for _ in range(500):
        said = "small elephant on a purple background"
        words = mistype(said, rng).split(" ")
        wrong = [(a, b) for a, b in zip(said.split(" "), words, strict=True) if a != b]
        assert len(wrong) <= 1
        assert all(abs(len(a) - len(b)) <= 1 and a[0] == b[0] for a, b in wrong)
    assert mistype("a cat", rng) == "a cat"  # too short to be told from another


def test_other_words_keep_the_subject():
    rng = random.Random(0)
    said = {reword(Scene("owl"), rng) for _ in range(400)}
    assert {"owl", "an owl", "one owl", "picture of an owl", "owls", "OWL", "Owl"} <= said
    middle = {reword(Scene("owl", place="centre"), rng).lower() for _ in range(300)}
    assert {"owl in the centre", "owl in the middle"} <= middle
    pair = Scene("tiger", relation="above", other="lemon")
    wrong = [reword(pair, rng).lower().split() for _ in range(300)]
    assert not any("tigers" in words or words[0] == "one" for words in wrong)
    assert sum("tiger" not in words or "lemon" not in words for words in wrong) > 100


def test_one_combination_in_eight_is_held_out():
    names = [f"thing {i}" for i in range(400)]
    for scenes in (
        [Scene(name, colour) for name in names for colour in COLOURS],
        [Scene(n, size=size, place=place) for n in names for size in SIZES for place in PLACES],
        [Scene(n, relation="above", other=m) for n in names[:60] for m in names[60:120]],
    ):
        share = sum(scene.held_out for scene in scenes) / len(scenes)
        assert share == pytest.approx(1 / 8, abs=0.015)
    assert not any(Scene(name).held_out for name in names)
    # A pair that is held out stays so the other way round and with any relation.
    for a, b in zip(names[:200], names[200:], strict=True):
        both = {
            Scene(x, relation=r, other=y).held_out for x, y in ((a, b), (b, a)) for r in RELATIONS
        }
        assert len(both) == 1


def ink_box(picture, background):
    far = np.abs(np.asarray(picture, int) - background).max(axis=2) > 60
    rows, columns = np.flatnonzero(far.any(axis=1)), np.flatnonzero(far.any(axis=0))
    return columns[0] / 128, rows[0] / 128, (columns[-1] + 1) / 128, (rows[-1] + 1) / 128


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", PLACES)
def test_size_and_place_are_drawn(inks, size, place):
    scene = Scene("red disc", "white", size, place)
    picture = glyphs.draw_scene(scene, inks, 128, SCENES, random.Random(0))
    left, top, right, bottom = ink_box(picture, COLOURS["white"])
    assert right - left == pytest.approx(SIZES[size] * 128 / 136, abs=0.04)
    x, y = PLACES[place][1]
    room = (1 - SIZES[size]) / 2 - 0.01
    assert (left + right) / 2 - 0.5 == pytest.approx(x * room, abs=0.04)
    assert (top + bottom) / 2 - 0.5 == pytest.approx(y * room, abs=0.04)
    assert min(left, top, 1 - right, 1 - bottom) > 0


@pytest.mark.parametrize("relation", RELATIONS)
def test_two_glyphs_stand_where_the_caption_says(inks, relation):
    scene = Scene("red disc", relation=relation, other="blue disc")
    picture = glyphs.draw_scene(scene, inks, 128, SCENES, random.Random(0))
    x, y = RELATIONS[relation]
    assert picture.getpixel((64 + 32 * x, 64 + 32 * y)) == (255, 0, 0)
    assert picture.getpixel((64 - 32 * x, 64 - 32 * y)) == (0, 0, 255)
    assert picture.getpixel((1, 1)) == picture.getpixel((64, 64)) == (255, 255, 255)


def test_draw_is_source_over_background():
    ink = Image.new("RGBA", (136, 136))
    ink.paste((200, 0, 0, 128), (0, 0, 136, 68))  # the upper half, half transparent
    ink = ink.convert("RGBa")
    picture = glyphs.draw([(ink, 1.0, (0, 0))], 64, (0, 100, 200))
    upper, lower = picture.getpixel((32, 10)), picture.getpixel((32, 50))
    expected = [round(c * 128 / 255 + b * 127 / 255) for c, b in ((200, 0), (0, 100), (0, 200))]
    assert np.abs(np.array(upper) - expected).max() <= 2
    assert lower == (0, 100, 200)
    moved = glyphs.draw([(ink, 0.5, (0.25, 0.0))], 64)
    assert moved.getpixel((20, 20)) == (255, 255, 255)
    assert moved.getpixel((60, 20)) != (255, 255, 255)


def test_scenes_are_the_same_in_every_run_and_never_held_out(emoji, inks, monkeypatch):
    scenes = [emoji.scene(i) for i in range(600)]
    assert not any(scene.held_out for scene in scenes)
    assert {scene.name for scene in scenes[:3]} == set(inks)
    assert {scene.relation for scene in scenes} == {None, *RELATIONS}
    again = glyphs.Emoji(SCENES, 64, seed=1)
    assert [again.scene(i) for i in range(600)] == scenes
    assert emoji.picture(7).tobytes() == again.picture(7).tobytes()
    assert [glyphs.Emoji(SCENES, 64, seed=2).scene(i) for i in range(600)] != scenes


def test_a_stage_may_have_scenes_of_other_shares(emoji):
    pairs = emoji.with_shares([0, 0, 0, 1])
    assert all(pairs.scene(i).other and not pairs.scene(i).held_out for i in range(60))
    assert len(pairs) == len(emoji)
    assert not all(emoji.scene(i).other for i in range(60))


def test_rivals_are_all_glyphs_of_a_size_at_a_place_or_on_a_colour(emoji, inks):
    emoji.inks = {**inks, "crimson disc": inks["red disc"]}  # looks the same: no rival of it
    pictures, groups = emoji.rivals()
    scenes = [pictures.scene(i) for i in range(len(pictures))]
    places = [place for place in PLACES if place != "centre"]
    every = [Scene(n, size=s, place=p) for n in inks for s in SIZES for p in places]
    every += [Scene(n, colour) for n in inks for colour in COLOURS if colour != "white"]
    assert set(scenes) == {scene for scene in every if not scene.held_out}
    assert len(scenes) == len(set(scenes)) < len(every)
    of = dict(zip(scenes, groups, strict=True))
    for one, other in itertools.product(of, of):
        alike = dataclasses.replace(one, name="") == dataclasses.replace(other, name="")
        assert (of[one] == of[other]) == alike
    left = next(i for i, scene in enumerate(scenes) if scene.place == "left")
    assert pictures.caption(left) == caption(scenes[left])
    ink = np.asarray(pictures.picture(left).convert("L"), float)
    across = ((255 - ink) * np.arange(64)).sum() / (255 - ink).sum()
    assert across < 31  # more of it on the left


def test_look_alikes_are_shown_more_often(inks, monkeypatch):
    near = inks["red disc"].copy()
    near.putpixel((60, 60), (0, 0, 0, 255))
    inks = {**inks, "red disc with a dot": near}
    assert set(glyphs.look_alikes(inks)) == {"red disc", "red disc with a dot"}
    monkeypatch.setattr(glyphs, "render_all", lambda: inks)
    shares = {}
    for alike in (0.0, 0.5):
        pictures = glyphs.Emoji(dataclasses.replace(SCENES, alike=alike), 64, seed=1)
        names = [pictures.scene(i).name for i in range(1200)]
        shares[alike] = [names.count(name) / len(names) for name in inks]
    assert shares[0.0] == [0.25] * 4
    assert shares[0.5] == pytest.approx([0.375, 0.125, 0.125, 0.375], abs=0.03)
    even = pictures.with_shares([1, 0, 0, 0])
    assert [even.scene(i).name for i in range(4)] == list(inks)


def test_glyphs_that_render_alike_are_one_class(inks):
    inks["crimson disc"] = inks["red disc"].copy()
    same = glyphs.classes(inks)
    assert same["crimson disc"] == "red disc"
    assert len(set(same.values())) == 3


def test_names_are_plain_english_and_leave_out_flags_keycaps_and_skin_tones():
    pytest.importorskip("emoji")
    named = glyphs.named_glyphs()
    assert named["red apple"] == "\N{RED APPLE}"
    assert named["woman astronaut"] == "\N{WOMAN}\u200d\N{ROCKET}"
    assert 1600 < len(named) < 1700
    assert not any(letter in name for name in named for letter in ":_()\u2019")
    assert all(name == name.lower() for name in named)
    assert not any("flag" in name or "skin tone" in name for name in named)
    # Unicode's keycaps are the twelve sequences; "keycap 10" is a character of its own.
    assert [name for name in named if "keycap" in name] == ["keycap 10"]
