"""The images of the built-in model: scenes that are drawn, the same in every run of a recipe."""

import copy
import hashlib
import random
from collections.abc import Callable
from dataclasses import replace

from PIL import Image

from sdpipe.prompt.vocabulary import Vocabulary
from sdpipe.training.emoji.glyphs import distinct_names, draw, look_alikes, named_glyphs, render_all
from sdpipe.training.emoji.paraphrase import list_words, paraphrase
from sdpipe.training.emoji.scenes import (
    COLOURS,
    KINDS,
    PAIR,
    PLACES,
    RELATIONS,
    SIZES,
    Scene,
    caption,
)
from sdpipe.training.recipe import Scenes


def draw_scene(
    scene: Scene, inks: dict[str, Image.Image], size: int, recipe: Scenes, rng: random.Random
) -> Image.Image:
    """Draws a scene. What its caption leaves open is random within narrow limits."""

    def about(value: float, width: float) -> float:
        return value + rng.uniform(-width, width)

    if scene.relation is not None:
        x, y = RELATIONS[scene.relation]
        placed = [
            (
                inks[name],
                about(PAIR, 0.015),
                (about(sign * x / 4, 0.01), about(sign * y / 4, 0.01)),
            )
            for name, sign in zip(scene.names, (1, -1), strict=True)
        ]
    elif scene.size is None and scene.place is None:
        scale = rng.uniform(*recipe.scale)
        shift = (about(0, recipe.shift), about(0, recipe.shift))
        placed = [(inks[scene.name], scale, shift)]
    else:
        scale = about(SIZES[scene.size or rng.choice(list(SIZES))], 0.015)
        room = (1 - scale) / 2 - 0.01
        x, y = PLACES[scene.place or "centre"][1]
        placed = [(inks[scene.name], scale, (about(x * room, 0.01), about(y * room, 0.01)))]
    return draw(placed, size, COLOURS[scene.colour or "white"])


class EmojiDataset:
    """The dataset of `len` scenes, a `training.dataset.Dataset`."""

    def __init__(
        self, recipe: Scenes, size: int, seed: int, inks: dict[str, Image.Image] | None = None
    ) -> None:
        """`inks` are the glyphs by name; None renders those of the font.

        Raises:
            SdpipeError: the font or the package `emoji` is missing.
        """
        self.recipe, self.size, self.seed = recipe, size, seed
        self.inks = render_all() if inks is None else inks
        self.names = list(self.inks)
        self.distinct = distinct_names(self.inks)
        self.look_alikes = look_alikes(self.inks) if recipe.look_alike_fraction else []

    def __len__(self) -> int:
        return self.recipe.images

    def scene(self, i: int) -> Scene:
        """Scene i. Each glyph is equally often the first of a scene, but look-alikes are more."""
        rng = self._rng(i)
        name = self.names[i % len(self.names)]
        if self.recipe.look_alike_fraction and rng.random() < self.recipe.look_alike_fraction:
            name = rng.choice(self.look_alikes)
        while True:
            scene = self._draw_scene(name, rng)
            if not scene.is_held_out:
                return scene

    def image(self, i: int) -> Image.Image:
        """Scene i, drawn."""
        return draw_scene(self.scene(i), self.inks, self.size, self.recipe, self._rng(-1 - i))

    def augmented_image(self, rng: random.Random) -> Image.Image:
        """A glyph of any size anywhere, also mirrored or in wrong colours, on any colour: the VAE
        learns to see rather than to memorise.
        """
        ink = self.inks[rng.choice(self.distinct)]
        if rng.random() < 0.5:
            ink = ink.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < 0.35:
            *rgb, alpha = ink.split()
            ink = Image.merge("RGBa", (*rng.sample(rgb, 3), alpha))
        scale = rng.uniform(0.85, 1.0) if rng.random() < 0.6 else rng.uniform(0.35, 1.4)
        room = abs(1 - scale) / 2 + 0.02
        shift = (rng.uniform(-room, room), rng.uniform(-room, room))
        kind = rng.random()
        if kind < 0.3:
            background = COLOURS["white"]
        elif kind < 0.75:
            background = rng.choice(list(COLOURS.values()))
        else:
            background = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        return draw([(ink, scale, shift)], self.size, background)

    def caption(self, i: int) -> str:
        """The canonical caption of scene i."""
        return caption(self.scene(i))

    def paraphrase(self, i: int, rng: random.Random) -> str:
        """A random paraphrase of the caption of scene i."""
        return paraphrase(self.scene(i), rng)

    def captions(self) -> list[str]:
        """All captions, and the names, which count four times."""
        return [self.caption(i) for i in range(len(self))] + self.names * 4

    def vocabulary(self) -> Vocabulary:
        """The names, and every word around them."""
        glyphs = {text: name for name, text in named_glyphs().items() if name in self.inks}
        return Vocabulary.from_captions(self.names, list_words(self.names), glyphs)

    def subjects(self) -> list[str]:
        """The names."""
        return self.names

    def balanced(self, shares: list[float] | None) -> "EmojiDataset":
        """The dataset with every name equally often, and with this mixture of kinds of scenes."""
        other = copy.copy(self)
        shares = shares or self.recipe.shares
        other.recipe = replace(self.recipe, shares=shares, look_alike_fraction=0.0)
        return other

    def contrast_groups(self) -> tuple["Combinations", list[int]]:
        """All glyphs of one size at one place, or on one colour, are a group."""
        images = Combinations(self)
        kinds = [replace(scene, name="") for scene in images.scenes]
        numbers = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
        return images, [numbers[kind] for kind in kinds]

    def fingerprint(self) -> list[list[str]]:
        """One row: the font, its number of glyphs, and the hash of their pixels."""
        digest = hashlib.sha256(b"".join(ink.tobytes() for ink in self.inks.values()))
        return [["the font", f"{len(self.names)} glyphs", digest.hexdigest()]]

    def prepare(self, progress: Callable[[int, int], None]) -> None:
        """Does nothing: scenes are drawn when they are needed."""

    def describe(self) -> str:
        """Numbers of glyphs and images."""
        return f"{len(self.names)} glyphs, {len(self)} images"

    def _draw_scene(self, name: str, rng: random.Random) -> Scene:
        """A random scene whose first glyph has this name."""
        kind = rng.choices(KINDS, self.recipe.shares)[0]
        colour = rng.choice(list(COLOURS))
        if kind == "plain":
            return Scene(name)
        if kind == "coloured":
            return Scene(name, colour)
        background = colour if rng.random() < self.recipe.colour_fraction else None
        if kind == "placed":
            size = rng.choice(list(SIZES)) if rng.random() < 0.85 else None
            place = rng.choice(list(PLACES)) if size is None or rng.random() < 0.85 else None
            return Scene(name, background, size, place)
        other = rng.choice(self.names)
        return Scene(name, background, relation=rng.choice(list(RELATIONS)), other=other)

    def _rng(self, i: int) -> random.Random:
        return random.Random(self.seed * 1_000_003 + i)


class Combinations(EmojiDataset):
    """Each glyph once in each size at each place off the centre, and once on each colour but white,
    without the combinations that are held out.
    """

    def __init__(self, emoji: EmojiDataset) -> None:
        self.__dict__ |= vars(emoji)
        places = [place for place in PLACES if place != "centre"]
        colours = [colour for colour in COLOURS if colour != "white"]
        scenes = [Scene(n, size=s, place=p) for n in self.distinct for s in SIZES for p in places]
        scenes += [Scene(n, colour) for n in self.distinct for colour in colours]
        self.scenes = [scene for scene in scenes if not scene.is_held_out]

    def __len__(self) -> int:
        return len(self.scenes)

    def scene(self, i: int) -> Scene:
        """Scene i."""
        return self.scenes[i]
