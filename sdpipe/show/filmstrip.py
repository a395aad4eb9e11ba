"""The filmstrip: noise becoming a picture, at a glance."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from sdpipe.guidance import shown
from sdpipe.settings import Settings

COLUMNS = 9
CELL = 128  # the longer side of a picture on the strip, about
GAP, MARGIN, LABELS = 10, 36, 132  # between pictures, around all, for the names of the rows
TITLE, TEXT, SMALL = 24, 18, 15  # font sizes
INK, FAINT, EDGE, PAPER = (30, 30, 34), (116, 116, 124), (226, 226, 230), (255, 255, 255)


@dataclass(frozen=True)
class Column:
    """The state after `step` steps, 0 being the starting noise, and its noise level.

    x_t: the latents of this state, decoded. x0: the picture that is predicted from them, decoded;
    at the end, where no noise is left to take away, the two are one.
    """

    step: int
    sigma: float
    x_t: Image.Image
    x0: Image.Image


def chosen(steps: int, most: int = COLUMNS) -> list[int]:
    """At most `most` of the states 0 to `steps`, evenly spaced, always the first and the last."""
    gaps = min(steps, most - 1)
    return [round(i * steps / max(1, gaps)) for i in range(gaps + 1)]


def filmstrip(columns: Sequence[Column], title: str = "", subtitle: str = "") -> Image.Image:
    """Draws x_t above and the predicted x0 below, step and sigma under each pair."""
    pictures = [(_fitted(c.x_t), _fitted(c.x0)) for c in columns]
    width, height = pictures[0][0].size
    # What the text below a narrow picture needs, and that beside a flat one.
    column_width, row_height = max(width, 92), max(height, 76)
    top = MARGIN + (TITLE + 14 if title else 0) + (SMALL + 22 if subtitle else 0)
    bottom = top + 2 * row_height + GAP
    left = MARGIN + LABELS
    right = left + len(columns) * (column_width + GAP) - GAP
    strip = Image.new("RGB", (right + MARGIN, bottom + 56 + MARGIN), PAPER)
    draw = ImageDraw.Draw(strip)

    room = right - MARGIN
    draw.text((MARGIN, MARGIN), short(draw, title, TITLE, room), INK, font(TITLE))
    under_title = MARGIN + (TITLE + 14 if title else 0)
    draw.text((MARGIN, under_title), short(draw, subtitle, SMALL, room), FAINT, font(SMALL))

    middles = (top + row_height // 2, top + row_height + GAP + row_height // 2)
    _row_name(draw, middles[0], "t", "the latents,\ndecoded")
    _row_name(draw, middles[1], "0", "the picture\npredicted")
    for i, (column, pair) in enumerate(zip(columns, pictures, strict=True)):
        centre = left + i * (column_width + GAP) + column_width // 2
        for middle, picture in zip(middles, pair, strict=True):
            x, y = centre - width // 2, middle - height // 2
            strip.paste(picture, (x, y))
            draw.rectangle((x - 1, y - 1, x + width, y + height), outline=EDGE)
        name = f"step {column.step}" if column.step else "noise"
        draw.text((centre, bottom + 27), name, INK, font(TEXT), anchor="ms")
        sigma = f"sigma {number(column.sigma)}"
        draw.text((centre, bottom + 50), sigma, FAINT, font(SMALL), anchor="ms")
    return strip


def titles(settings: Settings) -> tuple[str, str]:
    """A title and a subtitle out of the settings of a picture, resolved."""
    details = [f"seed {settings.seed}", f"{settings.steps} steps", settings.scheduler or ""]
    if settings.karras:
        details.append("karras")
    if settings.g is not None:
        details.append(f"g {shown(settings.g)}")
    if settings.negative_prompt:
        details.append(f"not: {settings.negative_prompt}")
    return printable(settings.prompt), printable(" · ".join(details))


def _fitted(picture: Image.Image) -> Image.Image:
    """A picture at the size of a cell: small ones by whole pixels, so that they stay crisp."""
    side = max(picture.size)
    if side <= CELL:
        factor = CELL // side
        return picture.resize(
            (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
        )
    size = (max(1, picture.width * CELL // side), max(1, picture.height * CELL // side))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _row_name(draw: ImageDraw.ImageDraw, middle: int, index: str, meaning: str) -> None:
    """x with an index, set by hand because the font has no such letters, and what it means."""
    draw.text((MARGIN, middle - 8), "x", INK, font(TITLE), anchor="ls")
    after = MARGIN + round(draw.textlength("x", font(TITLE))) + 1
    draw.text((after, middle - 3), index, INK, font(SMALL), anchor="ls")
    draw.multiline_text((MARGIN, middle + 4), meaning, FAINT, font(SMALL), spacing=4)


def number(sigma: float) -> str:
    """A noise level in about three digits."""
    return f"{sigma:.1f}" if sigma >= 10 else f"{sigma:.2f}" if sigma else "0"


def short(draw: ImageDraw.ImageDraw, text: str, size: int, room: int) -> str:
    """A text, or as much of it as `room` pixels hold, with dots at the end."""
    if draw.textlength(text, font(size)) <= room:
        return text
    while text and draw.textlength(text + "...", font(size)) > room:
        text = text[:-1]
    return text + "..."


def printable(text: str) -> str:
    """Text in the letters that Pillow's built-in font has: ASCII and a middle dot."""
    plain = unicodedata.normalize("NFKD", text[:500])
    letters = (c if " " <= c <= "~" or c == "·" else " " * c.isspace() for c in plain)
    return " ".join("".join(letters).split())


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow: the same everywhere."""
    return ImageFont.load_default(size)
