"""The pictures that the built-in model learns from, and their captions.

A picture is one glyph of Noto Color Emoji on a plain background. Its caption is the glyph's
English name, with "on a COLOUR background" behind it; on white the colour may go unsaid.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont

from sdpipe.errors import SdpipeError, UsageError
from sdpipe.training.recipe import Pictures

COLOURS = {
    "white": (255, 255, 255),
    "black": (20, 20, 20),
    "red": (220, 50, 47),
    "green": (60, 160, 70),
    "blue": (50, 100, 220),
    "yellow": (250, 220, 80),
    "purple": (140, 80, 190),
    "pink": (250, 160, 200),
    "orange": (250, 150, 50),
    "gray": (140, 140, 140),
}

FONTS = (
    Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/noto/NotoColorEmoji.ttf"),
)
FONT_SIZE = 109  # the one size that the font's bitmaps have
SIDE = 136  # of those bitmaps, in pixels


@dataclass(frozen=True)
class Glyph:
    """One glyph: its name as a caption says it, and its characters."""

    name: str
    text: str


def caption(name: str, colour: str | None = None) -> str:
    """What a picture of this glyph on this background is called."""
    return name if colour is None else f"{name} on a {colour} background"


def glyphs(pictures: Pictures) -> list[Glyph]:
    """The glyphs of a recipe, by name: those of its blocks and those it adds, less those left out.

    Raises:
        SdpipeError: the package `emoji`, which has the names, is not installed.
        UsageError: the recipe names a glyph that does not exist.
    """
    try:
        from emoji import EMOJI_DATA, STATUS
    except ImportError:
        raise SdpipeError(
            "the names of the glyphs come from the package emoji, which is not installed; "
            'install it with pip install "sdpipe[train]".'
        ) from None

    named = {
        _plain(entry["en"]): text
        for text, entry in EMOJI_DATA.items()
        if entry["status"] == STATUS["fully_qualified"] and len(text.rstrip("\ufe0f")) == 1
    }
    if strange := [name for name in pictures.also if name not in named]:
        raise UsageError(f"the recipe adds {strange[0]!r}, which is the name of no glyph.")
    chosen = [
        name
        for name, text in named.items()
        if name in pictures.also
        or (
            any(first <= ord(text[0]) <= last for first, last in pictures.blocks)
            and not any(f" {word} " in f" {name} " for word in pictures.leave_out)
        )
    ]
    return [Glyph(name, named[name]) for name in sorted(chosen)]


def _plain(name: str) -> str:
    for old, new in ((":", ""), ("(", ""), (")", ""), ("_", " "), ("\u2019", "'")):
        name = name.replace(old, new)
    return name.lower()


def load_font() -> ImageFont.FreeTypeFont:
    """Noto Color Emoji, where a Linux distribution puts it.

    Raises:
        SdpipeError: the font is not there.
    """
    for path in FONTS:
        if path.exists():
            return ImageFont.truetype(path, FONT_SIZE)
    raise SdpipeError(
        f"the font Noto Color Emoji is not at {FONTS[0]}; install it, on Debian and Ubuntu with "
        "apt install fonts-noto-color-emoji."
    )


def render(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """The glyph in the middle of a transparent square, RGBA with premultiplied alpha.

    Premultiplied, so that scaling does not bring the black behind transparent pixels to the edge.
    """
    sheet = Image.new("RGBA", (SIDE, SIDE))
    draw = ImageDraw.Draw(sheet)
    draw.text((SIDE / 2, SIDE / 2), text, font=font, embedded_color=True, anchor="mm")
    return sheet.convert("RGBa")


def draw(
    glyph: Image.Image,
    size: int,
    background: tuple[int, int, int] = COLOURS["white"],
    *,
    scale: float = 0.96,
    shift: tuple[float, float] = (0.0, 0.0),
) -> Image.Image:
    """A picture of size x size pixels, RGB: a rendered glyph, scaled and shifted, on a background.

    `scale` is the glyph's side as a share of the picture's, `shift` how far to the right and down
    it stands off the middle, in the same unit.
    """
    side = round(size * scale)
    small = glyph.resize((side, side), Image.Resampling.LANCZOS)
    left, top = (round((size - side) / 2 + s * size) for s in shift)
    ink = Image.new("RGBa", (size, size))
    ink.paste(small, (left, top))
    # Source over background: with premultiplied colours, ink + (1 - alpha) * background.
    *rgb, alpha = ink.split()
    plain = Image.new("RGB", (size, size), background)
    faded = Image.composite(Image.new("RGB", (size, size)), plain, alpha)
    return ImageChops.add(Image.merge("RGB", rgb), faded)


def draw_at_random(
    glyph: Image.Image, pictures: Pictures, rng: random.Random
) -> tuple[Image.Image, str | None]:
    """A picture of the recipe's kind and the colour that its caption names (None: left unsaid)."""
    on_white = rng.random() < pictures.on_white
    colour = "white" if on_white else rng.choice(list(COLOURS))
    scale = rng.uniform(*pictures.scale)
    shift = tuple(rng.uniform(-pictures.shift, pictures.shift) for _ in range(2))
    picture = draw(glyph, pictures.size, COLOURS[colour], scale=scale, shift=(shift[0], shift[1]))
    return picture, None if on_white else colour
