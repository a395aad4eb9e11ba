"""The kinds of scenes that prompt_accuracy.py has a model draw, and in what each is to be right."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from judge import Judge, Range, Tally
from PIL import Image

from sdpipe import Pipeline
from sdpipe.settings import DEFAULTS
from sdpipe.training.emoji.scenes import COLOURS, PLACES, RELATIONS, SIZES, Scene, caption
from sdpipe.training.recipe_file import load_recipe

NAMES = 200
STEPS = 30
FIRST_SEED = 1000  # image i of a part has seed FIRST_SEED + i: a name and its other words too

Kind = Callable[..., Tally]  # draws a kind of scenes, for a Bench and settings of generate


class Bench:
    """A model, the judge, and the names that the parts ask for: `count` at most in each.

    all_names: nothing is left out, this is no trial.
    """

    def __init__(self, model: str, batch: int, count: int) -> None:
        self.model, self.batch, self.count = model, batch, count
        self.all_names = count == NAMES
        self.pipe = Pipeline(model)
        self.own = {**DEFAULTS, **self.pipe.components.defaults}
        self.judge = Judge()
        self.names = random.Random(0).sample(self.judge.names, NAMES)[:count]
        scenes = load_recipe().scenes
        assert scenes is not None
        self.scale: Range = scenes.scale  # of a glyph whose size is not said
        self._drawn: dict[tuple[Kind, float, str], Tally] = {}

    def with_lora(self, lora: str) -> "Bench":
        """The same with a LoRA added to the model, and with the settings that it brings."""
        other = copy.copy(self)
        other.pipe = Pipeline(self.model, loras=[lora])
        other.own = {**DEFAULTS, **other.pipe.components.defaults}
        other._drawn = {}
        return other

    def draw(self, prompts: Sequence[str], **settings: Any) -> Iterator[Image.Image]:
        settings = {"g": self.own["g"], "steps": STEPS, **settings}
        for i in range(0, len(prompts), self.batch):
            some = prompts[i : i + self.batch]
            yield from self.pipe.generate(some, seed=FIRST_SEED + i, **settings).images

    def scenes(
        self, scenes: Sequence[Scene], **settings: Any
    ) -> Iterator[tuple[Scene, Image.Image]]:
        """Each scene with the image that its caption brings."""
        return zip(scenes, self.draw([*map(caption, scenes)], **settings), strict=True)

    def tally_on_white(self, prompts: Sequence[str], **settings: Any) -> Tally:
        """Draws a prompt for each of the names, and looks for its glyph and a white background."""
        tally = Tally()
        images = self.draw(prompts, **settings)
        for name, prompt, image in zip(self.names, prompts, images, strict=True):
            seen, on = self.judge.name(image, scales=self.scale), self.judge.background(image)
            said = seen if on == "white" else f"{seen} on {on}"
            tally.add(prompt, said, glyph=self.judge.is_a(name, seen), background=on == "white")
        return tally

    def tally(self, kind: "Kind", g: float | None = None, scheduler: str | None = None) -> Tally:
        """A kind of scenes; g and scheduler are the model's own if left out. Each is drawn once."""
        g = self.own["g"] if g is None else g
        scheduler = scheduler or self.own["scheduler"]
        key = (kind, g, scheduler)
        if key not in self._drawn:
            self._drawn[key] = kind(self, g=g, scheduler=scheduler)
        return self._drawn[key]

    def held_out(self, scenes: list[Scene], count: int) -> list[Scene]:
        """So many of those that training left out; a glyph with two names may have been seen."""
        known_twice = {n for both in self.judge.same.items() if both[0] != both[1] for n in both}
        never = [s for s in scenes if s.is_held_out and known_twice.isdisjoint(s.names)]
        return random.Random(0).sample(never, NAMES)[:count]


def tally_alone(bench: Bench, **settings: Any) -> Tally:
    """The names, and nothing else said: glyph, and a white background."""
    return bench.tally_on_white(bench.names, **settings)


def tally_coloured(bench: Bench, **settings: Any) -> Tally:
    """Names and colours that training never had together: glyph and background."""
    said = [c for c in COLOURS if c != "white"]
    scenes = [Scene(name, c) for name in bench.judge.names for c in said]
    scenes = bench.held_out(scenes, bench.count)
    tally = Tally()
    for scene, image in bench.scenes(scenes, **settings):
        seen = bench.judge.name(image, scales=bench.scale)
        on = bench.judge.background(image)
        right = {"glyph": bench.judge.is_a(scene.name, seen), "background": on == scene.colour}
        tally.add(caption(scene), f"{seen} on {on}", **right)
    return tally


def tally_placed(bench: Bench, **settings: Any) -> Tally:
    """Names, sizes and places that training never had together: glyph, size and place."""
    scenes = [
        Scene(name, size=size, place=where)
        for name in bench.judge.names
        for size in SIZES
        for where in PLACES
    ]
    scenes = bench.held_out(scenes, bench.count)
    tally = Tally()
    for scene, image in bench.scenes(scenes, **settings):
        assert scene.size is not None
        seen = bench.judge.name(image, scales=(SIZES[scene.size], SIZES[scene.size]))
        size, where = bench.judge.size_and_place(image, scene.name)
        right = {"size": size == scene.size, "place": where == scene.place}
        right |= {"glyph": bench.judge.is_a(scene.name, seen)}
        tally.add(caption(scene), f"{seen}, {size}, {where}", **right)
    return tally


def tally_paired(bench: Bench, **settings: Any) -> Tally:
    """Two names that training never had together: each glyph in its place."""
    scenes, tally = couples(bench), Tally()
    for scene, image in bench.scenes(scenes, **settings):
        assert scene.relation is not None
        seen = bench.judge.pair(image, scene.relation)
        first, second = map(bench.judge.is_a, scene.names, seen)
        tally.add(caption(scene), ", ".join(seen), first=first, second=second)
    return tally


def couples(bench: Bench) -> list[Scene]:
    """The scenes of two glyphs, as many in each relation."""
    rng = random.Random(0)
    scenes: list[Scene] = []
    for i, relation in enumerate(RELATIONS):
        two = [rng.sample(bench.judge.names, 2) for _ in range(20 * NAMES)]
        some = [Scene(one, relation=relation, other=other) for one, other in two]
        scenes += bench.held_out(some, (bench.count + i) // len(RELATIONS))  # count in all
    return scenes


KINDS: dict[str, Kind] = {
    "the name alone": tally_alone,
    "on another colour": tally_coloured,
    "of a size, at a place": tally_placed,
    "two glyphs": tally_paired,
}
