"""The glyphs of Noto Color Emoji, and the scenes that are drawn with them.

A rendered glyph is called ink: RGBA with premultiplied alpha, so that scaling does not bring the
black behind transparent pixels to the edge.
"""

import copy
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont, features

from sdpipe.errors import SdpipeError
from sdpipe.prompt.vocabulary import Vocabulary
from sdpipe.training.emoji.scenes import (
    COLOURS,
    KINDS,
    PAIR,
    PLACES,
    RELATIONS,
    SIZES,
    Scene,
    caption,
    other_words,
    reword,
)
from sdpipe.training.recipe import Scenes

FONTS = (
    Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/noto/NotoColorEmoji.ttf"),
)
FONT_SIZE = 109  # the one size that the font's bitmaps have
SIDE = 136  # of those bitmaps, in pixels

SKIN_TONES = range(0x1F3FB, 0x1F400)
REGIONS = range(0x1F1E6, 0x1F200)  # two of them are a country's flag
TAGS = range(0xE0020, 0xE0080)  # what spells the flag of a part of a country
KEYCAP = 0x20E3


def named_glyphs() -> dict[str, str]:
    """The characters of every emoji by its English name, but flags, keycaps and skin tones.

    Keycaps are the twelve sequences that Unicode calls so; U+1F51F, "keycap 10", is none of them.

    Raises:
        SdpipeError: the package `emoji`, which has the names, is not installed.
    """
    try:
        from emoji import EMOJI_DATA, STATUS
    except ImportError:
        raise SdpipeError(
            "the names of the glyphs come from the package emoji, which is not installed; "
            'install it with pip install "sdpipe[train]".'
        ) from None

    left_out = {KEYCAP, *SKIN_TONES, *REGIONS, *TAGS}
    return {
        name: text
        for text, entry in EMOJI_DATA.items()
        if entry["status"] == STATUS["fully_qualified"]
        and not left_out & set(map(ord, text))
        and "flag" not in (name := plain(entry["en"]))
    }


def plain(name: str) -> str:
    """A name of the package `emoji` as a person writes it: `:red_apple:` is `red apple`."""
    for old, new in ((":", ""), ("(", ""), (")", ""), ("_", " "), ("\u2019", "'")):
        name = name.replace(old, new)
    return name.lower()


def load_font() -> ImageFont.FreeTypeFont:
    """Noto Color Emoji, where a Linux distribution puts it.

    Raises:
        SdpipeError: the font is not there, or Pillow can't compose glyphs of several characters.
    """
    if not features.check("raqm"):
        raise SdpipeError(
            "this Pillow has no Raqm, which composes emoji of several characters; install "
            "libraqm, on Debian and Ubuntu with apt install libraqm0."
        )
    for path in FONTS:
        if path.exists():
            return ImageFont.truetype(path, FONT_SIZE)
    raise SdpipeError(
        f"the font Noto Color Emoji is not at {FONTS[0]}; install it, on Debian and Ubuntu with "
        "apt install fonts-noto-color-emoji."
    )


def render(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """The ink of a glyph in the middle of a transparent square."""
    sheet = Image.new("RGBA", (SIDE, SIDE))
    draw = ImageDraw.Draw(sheet)
    draw.text((SIDE / 2, SIDE / 2), text, font=font, embedded_color=True, anchor="mm")
    return sheet.convert("RGBa")


def render_all() -> dict[str, Image.Image]:
    """The ink of every named glyph that the font has: neither empty nor several side by side."""
    font = load_font()
    single = {n: t for n, t in named_glyphs().items() if font.getlength(t) <= SIDE}
    inks = {name: render(text, font) for name, text in sorted(single.items())}
    return {name: ink for name, ink in inks.items() if ink.getbbox() is not None}


def classes(inks: dict[str, Image.Image]) -> dict[str, str]:
    """For every name the first name whose glyph is the same to the last pixel."""
    first: dict[bytes, str] = {}
    return {name: first.setdefault(ink.tobytes(), name) for name, ink in inks.items()}


def distinct(inks: dict[str, Image.Image]) -> list[str]:
    """One name of every glyph, the first."""
    return sorted(set(classes(inks).values()))


def look_alikes(inks: dict[str, Image.Image], side: int = 24) -> list[str]:
    """The half of the names whose glyphs are the nearest to another one, pixel by pixel.

    side: pixels a side to which glyphs are scaled before they are compared, on gray.
    """
    of, names = classes(inks), distinct(inks)
    pixels = np.stack(
        [np.asarray(draw([(inks[name], 1.0, (0, 0))], side, COLOURS["gray"])) for name in names]
    ).reshape(len(names), -1)
    pixels = pixels.astype(np.float32) / 255
    squares = np.square(pixels).sum(axis=1)
    apart = squares[:, None] + squares - 2 * pixels @ pixels.T  # squared distances
    np.fill_diagonal(apart, np.inf)
    nearest = dict(zip(names, apart.min(axis=1).tolist(), strict=True))
    return sorted(inks, key=lambda name: (nearest[of[name]], name))[: len(inks) // 2]


def draw(
    inks: Iterable[tuple[Image.Image, float, tuple[float, float]]],
    size: int,
    background: tuple[int, int, int] = COLOURS["white"],
) -> Image.Image:
    """Glyphs on a plain background: a picture of size x size pixels, RGB.

    Of each glyph `inks` has the ink, its side as a share of the picture's, and how far to the
    right and down it stands off the middle, in the same unit.
    """
    picture = Image.new("RGB", (size, size), background)
    for ink, scale, shift in inks:
        side = round(size * scale)
        small = ink.resize((side, side), Image.Resampling.LANCZOS)
        left, top = (round((size - side) / 2 + s * size) for s in shift)
        sheet = Image.new("RGBa", (size, size))
        sheet.paste(small, (left, top))
        # Source over: with premultiplied colours, ink + (1 - alpha) * what is below.
        *rgb, alpha = sheet.split()
        below = Image.composite(Image.new("RGB", (size, size)), picture, alpha)
        picture = ImageChops.add(Image.merge("RGB", rgb), below)
    return picture


def draw_scene(
    scene: Scene, inks: dict[str, Image.Image], size: int, recipe: Scenes, rng: random.Random
) -> Image.Image:
    """A picture of a scene. What its caption leaves open is drawn by lot, within a little."""

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


class Emoji:
    """The pictures of the built-in model: `len` scenes, the same in every run of a recipe."""

    def __init__(self, recipe: Scenes, size: int, seed: int) -> None:
        self.recipe, self.size, self.seed = recipe, size, seed
        self.inks = render_all()
        self.names = list(self.inks)
        self.distinct = distinct(self.inks)
        self.alike = look_alikes(self.inks) if recipe.alike else []

    def __len__(self) -> int:
        return self.recipe.pictures

    def scene(self, i: int) -> Scene:
        """Scene i: each glyph is as often the first of one, and look-alikes are once more."""
        rng = self._rng(i)
        name = self.names[i % len(self.names)]
        if self.recipe.alike and rng.random() < self.recipe.alike:
            name = rng.choice(self.alike)
        while True:
            scene = self._any_scene(name, rng)
            if not scene.held_out:
                return scene

    def with_shares(self, shares: list[float]) -> "Emoji":
        """The same names, each as often, in scenes of which the kinds are more or less often."""
        other = copy.copy(self)
        other.recipe = replace(self.recipe, shares=shares, alike=0.0)
        return other

    def _any_scene(self, name: str, rng: random.Random) -> Scene:
        kind = rng.choices(KINDS, self.recipe.shares)[0]
        colour = rng.choice(list(COLOURS))
        if kind == "plain":
            return Scene(name)
        if kind == "coloured":
            return Scene(name, colour)
        said = colour if rng.random() < self.recipe.placed_on_colour else None
        if kind == "placed":
            size = rng.choice(list(SIZES)) if rng.random() < 0.85 else None
            place = rng.choice(list(PLACES)) if size is None or rng.random() < 0.85 else None
            return Scene(name, said, size, place)
        other = rng.choice(self.names)
        return Scene(name, said, relation=rng.choice(list(RELATIONS)), other=other)

    def rivals(self) -> tuple["Combinations", list[int]]:
        """All glyphs of a size at a place, or on a colour, are rivals of each other."""
        pictures = Combinations(self)
        kinds = [replace(scene, name="") for scene in pictures.scenes]
        numbers = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
        return pictures, [numbers[kind] for kind in kinds]

    def caption(self, i: int) -> str:
        """Scene i in plain words."""
        return caption(self.scene(i))

    def reworded(self, i: int, rng: random.Random) -> str:
        """Scene i in other words, now these and now those."""
        return reword(self.scene(i), rng)

    def captions(self) -> list[str]:
        """Every word that the tokenizer should know, in captions."""
        return [self.caption(i) for i in range(len(self))] + self.names * 4

    def subjects(self) -> list[str]:
        """The names."""
        return self.names

    def vocabulary(self) -> Vocabulary:
        """The names, and every word around them."""
        return Vocabulary.from_captions(self.names, other_words(self.names))

    def picture(self, i: int) -> Image.Image:
        """Scene i drawn."""
        return draw_scene(self.scene(i), self.inks, self.size, self.recipe, self._rng(-1 - i))

    def any_picture(self, rng: random.Random) -> Image.Image:
        """What the VAE learns from: a glyph of any size anywhere, also mirrored, also in wrong
        colours, on any colour, so that it learns to see and not to remember.
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

    def _rng(self, i: int) -> random.Random:
        return random.Random(self.seed * 1_000_003 + i)


class Combinations(Emoji):
    """Each glyph once in each size at each place off the centre, and once on each colour but white;
    what is held out is not among them.
    """

    def __init__(self, emoji: Emoji) -> None:
        self.__dict__ |= vars(emoji)
        places = [place for place in PLACES if place != "centre"]
        colours = [colour for colour in COLOURS if colour != "white"]
        scenes = [Scene(n, size=s, place=p) for n in self.distinct for s in SIZES for p in places]
        scenes += [Scene(n, colour) for n in self.distinct for colour in colours]
        self.scenes = [scene for scene in scenes if not scene.held_out]

    def __len__(self) -> int:
        return len(self.scenes)

    def scene(self, i: int) -> Scene:
        """Scene i."""
        return self.scenes[i]
