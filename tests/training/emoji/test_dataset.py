"""The dataset of scenes: what is drawn is what the caption says, and it repeats."""

import dataclasses
import itertools
import random

import numpy as np
import pytest
from support.inks import discs

from sdpipe.training.emoji.dataset import EmojiDataset, draw_scene
from sdpipe.training.emoji.scenes import COLOURS, PLACES, RELATIONS, SIZES, Scene, caption
from sdpipe.training.recipe_file import load_recipe

SCENES = dataclasses.replace(load_recipe().scenes, look_alike_fraction=0.0)


@pytest.fixture
def inks():
    return discs()


@pytest.fixture
def emoji(inks):
    return EmojiDataset(SCENES, 64, seed=1, inks=inks)


def ink_box(image, background):
    far = np.abs(np.asarray(image, int) - background).max(axis=2) > 60
    rows, columns = np.flatnonzero(far.any(axis=1)), np.flatnonzero(far.any(axis=0))
    return columns[0] / 128, rows[0] / 128, (columns[-1] + 1) / 128, (rows[-1] + 1) / 128


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", PLACES)
def test_size_and_place_are_drawn(inks, size, place):
    scene = Scene("red disc", "white", size, place)
    image = draw_scene(scene, inks, 128, SCENES, random.Random(0))
    left, top, right, bottom = ink_box(image, COLOURS["white"])
    assert right - left == pytest.approx(SIZES[size] * 128 / 136, abs=0.04)
    x, y = PLACES[place][1]
    room = (1 - SIZES[size]) / 2 - 0.01
    assert (left + right) / 2 - 0.5 == pytest.approx(x * room, abs=0.04)
    assert (top + bottom) / 2 - 0.5 == pytest.approx(y * room, abs=0.04)
    assert min(left, top, 1 - right, 1 - bottom) > 0


@pytest.mark.parametrize("relation", RELATIONS)
def test_two_glyphs_are_where_the_caption_says(inks, relation):
    scene = Scene("red disc", relation=relation, other="blue disc")
    image = draw_scene(scene, inks, 128, SCENES, random.Random(0))
    x, y = RELATIONS[relation]
    assert image.getpixel((64 + 32 * x, 64 + 32 * y)) == (255, 0, 0)
    assert image.getpixel((64 - 32 * x, 64 - 32 * y)) == (0, 0, 255)
    assert image.getpixel((1, 1)) == image.getpixel((64, 64)) == (255, 255, 255)


def test_scenes_repeat_and_are_never_held_out(emoji, inks):
    scenes = [emoji.scene(i) for i in range(600)]
    assert not any(scene.is_held_out for scene in scenes)
    assert {scene.name for scene in scenes[:3]} == set(inks)
    assert {scene.relation for scene in scenes} == {None, *RELATIONS}
    again = EmojiDataset(SCENES, 64, seed=1, inks=inks)
    assert [again.scene(i) for i in range(600)] == scenes
    assert emoji.image(7).tobytes() == again.image(7).tobytes()
    assert [EmojiDataset(SCENES, 64, seed=2, inks=inks).scene(i) for i in range(600)] != scenes


def test_a_balanced_dataset_may_have_another_mixture(emoji):
    pairs = emoji.balanced([0, 0, 0, 1])
    assert all(pairs.scene(i).other and not pairs.scene(i).is_held_out for i in range(60))
    assert len(pairs) == len(emoji)
    assert not all(emoji.scene(i).other for i in range(60))


def test_a_contrast_group_has_all_glyphs_of_a_size_at_a_place_or_on_a_colour(emoji, inks):
    emoji.inks = {**inks, "crimson disc": inks["red disc"]}  # an equal glyph is not a negative
    images, groups = emoji.contrast_groups()
    scenes = [images.scene(i) for i in range(len(images))]
    places = [place for place in PLACES if place != "centre"]
    every = [Scene(n, size=s, place=p) for n in inks for s in SIZES for p in places]
    every += [Scene(n, colour) for n in inks for colour in COLOURS if colour != "white"]
    assert set(scenes) == {scene for scene in every if not scene.is_held_out}
    assert len(scenes) == len(set(scenes)) < len(every)
    group_of = dict(zip(scenes, groups, strict=True))
    for a, b in itertools.product(group_of, group_of):
        same = dataclasses.replace(a, name="") == dataclasses.replace(b, name="")
        assert (group_of[a] == group_of[b]) == same
    left = next(i for i, scene in enumerate(scenes) if scene.place == "left")
    assert images.caption(left) == caption(scenes[left])
    ink = np.asarray(images.image(left).convert("L"), float)
    across = ((255 - ink) * np.arange(64)).sum() / (255 - ink).sum()
    assert across < 31  # the centre of mass is on the left


def test_look_alikes_are_drawn_more_often(inks):
    near = inks["red disc"].copy()
    near.putpixel((60, 60), (0, 0, 0, 255))
    inks = {**inks, "red disc with a dot": near}
    shares = {}
    for fraction in (0.0, 0.5):
        recipe = dataclasses.replace(SCENES, look_alike_fraction=fraction)
        images = EmojiDataset(recipe, 64, seed=1, inks=inks)
        names = [images.scene(i).name for i in range(1200)]
        shares[fraction] = [names.count(name) / len(names) for name in inks]
    assert shares[0.0] == [0.25] * 4
    assert shares[0.5] == pytest.approx([0.375, 0.125, 0.125, 0.375], abs=0.03)
    balanced = images.balanced([1, 0, 0, 0])
    assert [balanced.scene(i).name for i in range(4)] == list(inks)
