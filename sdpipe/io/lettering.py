"""Text on images, in the font that comes with Pillow: the same on every machine."""

import functools
import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

TITLE, TEXT, SMALL = 24, 18, 15  # font sizes in pixels
LEADING = 6  # pixels between two lines
INK, FAINT, EDGE, PAPER = (30, 30, 34), (116, 116, 124), (226, 226, 230), (255, 255, 255)

_measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in font."""
    return ImageFont.load_default(size)


def transliterate(text: str) -> str:
    """Text in the letters that the font has: ASCII and a middle dot; others are left out."""
    decomposed = unicodedata.normalize("NFKD", text[:500])
    letters = (c if " " <= c <= "~" or c == "·" else " " * c.isspace() for c in decomposed)
    return " ".join("".join(letters).split())


def distinguish(labels: Iterable[str], look: Callable[[str], object]) -> dict[str, str]:
    """The labels, each with its number in front where it looks like another, or like nothing.

    look: what is seen of a label.
    """
    different = list(dict.fromkeys(labels))
    looks = [look(label) for label in different]
    return {
        label: label if not label or (seen and looks.count(seen) == 1) else f"no. {i} {label}"
        for i, (label, seen) in enumerate(zip(different, looks, strict=True), 1)
    }


def text_width(text: str, size: int) -> int:
    """The width of a line in pixels, rounded up."""
    return math.ceil(_measure.textlength(text, font(size)))


def shorten(text: str, room: float, width: Callable[[str], float], dots: str = "...") -> str:
    """A text, or as much of it as is at most `room` wide, with dots at the end."""
    if width(text) <= room:
        return text
    fits, too_long = 0, len(text)
    while fits + 1 < too_long:
        middle = (fits + too_long) // 2
        if width(text[:middle].rstrip() + dots) <= room:
            fits = middle
        else:
            too_long = middle
    return text[:fits].rstrip() + dots


def wrap(text: str, size: int, room: int, most: int) -> list[str]:
    """A text in at most `most` lines of `room` pixels; what is too long is shortened."""
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < most:
        line = words.pop(0)
        if len(lines) + 1 == most:
            line, words = " ".join([line, *words]), []
        while words and text_width(f"{line} {words[0]}", size) <= room:
            line += f" {words.pop(0)}"
        lines.append(shorten(line, room, lambda text: text_width(text, size)))
    return lines


class Line(NamedTuple):
    """A line of text as it is to be written."""

    text: str
    size: int
    color: tuple[int, int, int]


def label_lines(label: str, size: int, room: int, most: int) -> list[Line]:
    """The lines of a label: what follows a line break in it is a note, smaller and fainter.

    most: lines of the text, and of the note.
    """
    text, _, note = label.partition("\n")
    return [
        *(Line(line, size, INK) for line in wrap(text, size, room, most)),
        *(Line(line, SMALL, FAINT) for line in wrap(note, SMALL, room, most)),
    ]


def label_width(label: str, size: int) -> int:
    """The width in pixels that a label needs to stand in one line, and its note in another."""
    text, _, note = label.partition("\n")
    return max(text_width(text, size), text_width(note, SMALL))


def height_of(lines: Sequence[Line]) -> int:
    """The height of lines in pixels, with the leading below each."""
    return sum(line.size + LEADING for line in lines)


def write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    lines: Sequence[Line],
    *,
    centred: bool = False,
) -> None:
    """Writes lines below `at`, which is their upper left corner, or the middle of their top."""
    x, y = at
    for line in lines:
        draw.text((x, y), line.text, line.color, font(line.size), anchor="ma" if centred else "la")
        y += line.size + LEADING
