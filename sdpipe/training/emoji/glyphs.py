"""The glyphs of Noto Color Emoji: their English names, and how they are rendered and drawn.

A rendered glyph is called ink: RGBA with premultiplied alpha, so that scaling does not bring the
black behind transparent pixels to the edge.
"""

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont, features

from sdpipe.errors import SdpipeError
from sdpipe.training.emoji.scenes import COLOURS

FONT = "NotoColorEmoji.ttf"
FONT_SIZE = 109  # the one size that the font's bitmaps have
SIDE = 136  # of those bitmaps, in pixels

SKIN_TONES = range(0x1F3FB, 0x1F400)
REGIONS = range(0x1F1E6, 0x1F200)  # two of them are a country's flag
TAGS = range(0xE0020, 0xE0080)  # spell the flag of a part of a country
KEYCAP = 0x20E3


def named_glyphs() -> dict[str, str]:
    """The characters of every emoji by its English name, without flags, keycaps and skin tones.

    Keycaps are the twelve sequences that Unicode calls so; U+1F51F, "keycap 10", is not one.

    Raises:
        SdpipeError: the package `emoji`, which has the names, is not installed.
    """
    try:
        from emoji import EMOJI_DATA, STATUS
    except ImportError:
        raise SdpipeError(
            "the package emoji, which has the names of the glyphs,",
            "is not installed",
            'install it with pip install "sdpipe[train]"',
        ) from None

    left_out = {KEYCAP, *SKIN_TONES, *REGIONS, *TAGS}
    return {
        name: text
        for text, entry in EMOJI_DATA.items()
        if entry["status"] == STATUS["fully_qualified"]
        and not left_out & set(map(ord, text))
        and "flag" not in (name := plain_name(entry["en"]))
    }


def plain_name(name: str) -> str:
    """A name of the package `emoji` as a person writes it: `:red_apple:` is `red apple`."""
    for old, new in ((":", ""), ("(", ""), (")", ""), ("_", " "), ("\u2019", "'")):
        name = name.replace(old, new)
    return name.lower()


def load_font() -> ImageFont.FreeTypeFont:
    """Loads Noto Color Emoji from the fonts of the system.

    Raises:
        SdpipeError: the font is missing, or Pillow cannot compose glyphs of several characters.
    """
    if not features.check("raqm"):
        raise SdpipeError(
            "Pillow",
            "has no Raqm, which composes emoji of several characters",
            "install libraqm, on Debian and Ubuntu with apt install libraqm0",
        )
    try:
        return ImageFont.truetype(FONT, FONT_SIZE)
    except OSError:
        raise SdpipeError(
            "the font Noto Color Emoji",
            f"is not among the fonts of this system ({FONT})",
            "install it, on Debian and Ubuntu with apt install fonts-noto-color-emoji",
        ) from None


def render(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """The ink of a glyph, centred on a transparent square."""
    sheet = Image.new("RGBA", (SIDE, SIDE))
    draw = ImageDraw.Draw(sheet)
    draw.text((SIDE / 2, SIDE / 2), text, font=font, embedded_color=True, anchor="mm")
    return sheet.convert("RGBa")


def render_all() -> dict[str, Image.Image]:
    """The ink of every named glyph that the font has: neither empty nor several side by side.

    Raises:
        SdpipeError: the font or the package `emoji` is missing.
    """
    font = load_font()
    single = {n: t for n, t in named_glyphs().items() if font.getlength(t) <= SIDE}
    inks = {name: render(text, font) for name, text in sorted(single.items())}
    return {name: ink for name, ink in inks.items() if ink.getbbox() is not None}


def glyph_classes(inks: dict[str, Image.Image]) -> dict[str, str]:
    """Maps every name to the first name whose glyph has the same pixels."""
    first: dict[bytes, str] = {}
    return {name: first.setdefault(ink.tobytes(), name) for name, ink in inks.items()}


def distinct_names(inks: dict[str, Image.Image]) -> list[str]:
    """The first name of every distinct glyph, sorted."""
    return sorted(set(glyph_classes(inks).values()))


def look_alikes(inks: dict[str, Image.Image], side: int = 24) -> list[str]:
    """The half of the names whose glyphs are nearest to another glyph, by squared distance.

    side: pixels a side to which glyphs are scaled first, on gray.
    """
    class_of, names = glyph_classes(inks), distinct_names(inks)
    pixels = np.stack(
        [np.asarray(draw([(inks[n], 1.0, (0, 0))], side, COLOURS["gray"])) for n in names]
    ).reshape(len(names), -1)
    pixels = pixels.astype(np.float32) / 255
    squares = np.square(pixels).sum(axis=1)
    distances = squares[:, None] + squares - 2 * pixels @ pixels.T
    np.fill_diagonal(distances, np.inf)
    nearest = dict(zip(names, distances.min(axis=1).tolist(), strict=True))
    return sorted(inks, key=lambda name: (nearest[class_of[name]], name))[: len(inks) // 2]


def draw(
    inks: Iterable[tuple[Image.Image, float, tuple[float, float]]],
    size: int,
    background: tuple[int, int, int] = COLOURS["white"],
) -> Image.Image:
    """Draws glyphs on a plain background: an RGB image of size x size pixels.

    Each of `inks` is an ink, its side as a fraction of the image's, and its distances from the
    centre to the right and down, in the same unit.
    """
    image = Image.new("RGB", (size, size), background)
    for ink, scale, shift in inks:
        side = round(size * scale)
        small = ink.resize((side, side), Image.Resampling.LANCZOS)
        left, top = (round((size - side) / 2 + s * size) for s in shift)
        sheet = Image.new("RGBa", (size, size))
        sheet.paste(small, (left, top))
        # Source over: with premultiplied colours, ink + (1 - alpha) * what is below.
        *rgb, alpha = sheet.split()
        below = Image.composite(Image.new("RGB", (size, size)), image, alpha)
        image = ImageChops.add(Image.merge("RGB", rgb), below)
    return image
