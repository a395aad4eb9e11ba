"""The grid of a sweep: all its pictures on one, with the values beside them.

The first axis goes across, the second down, and the third has a grid for each of its values. A
single axis is a row, or several where it is long.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from sdpipe.show.filmstrip import (
    EDGE,
    FAINT,
    INK,
    MARGIN,
    PAPER,
    SMALL,
    TEXT,
    TITLE,
    printable,
    short,
)
from sdpipe.show.filmstrip import font as load_font
from sdpipe.sweep.sweep import Axis

Place = tuple[int, ...]

ACROSS = 10  # pictures in a row, where only one setting varies
SMALLEST = 128  # pixels: pictures below are enlarged, by whole pixels
LARGEST = 2**25  # pixels of a grid, 96 MiB of memory; and of its sides:
LARGEST_SIDE = 16384

GAP, ROW_GAP, BLOCK_GAP = 8, 18, 44  # between pictures, rows of a single axis, and grids
SIDE = 190  # the most that the names of the rows take
HEAD = 112  # what the name of a column may take where its pictures are narrower
NARROWEST = 420
SHAPE = 1.4  # width to height that several grids are arranged towards
NO_PICTURE = (243, 243, 245)

font = functools.cache(load_font)


@dataclass(frozen=True)
class _Block:
    """One grid: its heading, the names of columns and rows, and what is where, row by row."""

    heading: str
    heads: list[str]
    sides: list[str]
    places: list[list[Place]]


@dataclass(frozen=True)
class _Layout:
    """Sizes in pixels. column, row: from one picture's slot to the next, without the gap."""

    scale: float
    text: int
    column: int
    row: int
    side: int
    heading: int
    head: int
    block: tuple[int, int]
    across: int
    down: int
    gap: int

    @property
    def size(self) -> tuple[int, int]:
        """Of all blocks, with the gaps between them."""
        width, height = self.block
        return (
            self.across * (width + self.gap) - self.gap,
            self.down * (height + self.gap) - self.gap,
        )


def grid(
    axes: Sequence[Axis],
    size: tuple[int, int],
    picture: Callable[[Place], Image.Image | None],
    title: str = "",
    subtitle: str = "",
) -> Image.Image:
    """Draws the grid of a sweep.

    size: width and height of the largest picture; where others are smaller, they stay so.
    picture: what is in a place, one number for each axis; None leaves it empty. Each is asked for
        once, when it is drawn, so that not all have to be in memory.
    """
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    blocks = _blocks(axes)
    layout = _fitted(measure, blocks, size)
    width = max(NARROWEST, layout.size[0])
    titles = _lines(measure, printable(title), TITLE, width, 3)
    subtitles = _lines(measure, printable(subtitle), SMALL, width, 3)
    top = MARGIN + _height(titles, TITLE) + _height(subtitles, SMALL)
    top += 20 if titles or subtitles else 0

    sheet = Image.new("RGB", (width + 2 * MARGIN, top + layout.size[1] + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (MARGIN, MARGIN), titles, TITLE, INK)
    _write(draw, (MARGIN, MARGIN + _height(titles, TITLE)), subtitles, SMALL, FAINT)
    for i, block in enumerate(blocks):
        x = MARGIN + i % layout.across * (layout.block[0] + layout.gap)
        y = top + i // layout.across * (layout.block[1] + layout.gap)
        _draw_block(sheet, draw, block, layout, (x, y), size, picture)
    return sheet


def _blocks(axes: Sequence[Axis]) -> list[_Block]:
    names = [_names(axis) for axis in axes]
    if len(axes) == 1:
        rows = -(-len(names[0]) // ACROSS)
        across = -(-len(names[0]) // rows)
        return [
            _Block("", names[0][i : i + across], [], [[(k,) for k in numbers]])
            for i in range(0, len(names[0]), across)
            if (numbers := range(len(names[0]))[i : i + across])
        ]
    ends: list[Place] = [(k,) for k in range(len(names[2]))] if len(axes) > 2 else [()]
    return [
        _Block(
            names[2][end[0]] if end else "",
            names[0],
            names[1],
            [[(x, y, *end) for x in range(len(names[0]))] for y in range(len(names[1]))],
        )
        for end in ends
    ]


def _names(axis: Axis) -> list[str]:
    """The values of an axis as far as the font has letters for them, else numbered."""
    shown = (printable(axis.label(i)) for i in range(len(axis.values)))
    return [
        name if any(c.isalnum() for c in name) else f"no. {i + 1}" for i, name in enumerate(shown)
    ]


def _fitted(
    measure: ImageDraw.ImageDraw, blocks: Sequence[_Block], size: tuple[int, int]
) -> _Layout:
    """The largest layout that is no larger than a grid may be."""
    longest = max(size)
    scale = float(max(1, SMALLEST // longest))
    while True:
        layout = _laid_out(measure, blocks, size, scale)
        width, height = layout.size
        room = min(LARGEST_SIDE / max(width, height), (LARGEST / (width * height)) ** 0.5)
        if room >= 1 or longest * scale < 16:
            return layout
        scale *= min(room, 0.97)  # names do not shrink along: it may take another time


def _laid_out(
    measure: ImageDraw.ImageDraw, blocks: Sequence[_Block], size: tuple[int, int], scale: float
) -> _Layout:
    width, height = (max(1, round(side * scale)) for side in size)
    text = TEXT if width >= HEAD else SMALL
    heads = list(dict.fromkeys(name for block in blocks for name in block.heads))
    column = max(width, min(HEAD, max(_length(measure, name, text) for name in heads)))
    head = max(_height(_lines(measure, name, text, column, 3), text) for name in heads) + 4
    sides = blocks[0].sides
    side = min(SIDE, max((_length(measure, name, text) for name in sides), default=0))
    row = max(height, text + 6) if sides else height
    heading = TITLE + 14 if blocks[0].heading else 0

    columns, rows = max(len(block.heads) for block in blocks), len(blocks[0].places)
    block = (
        (side + 14 if side else 0) + columns * (column + GAP) - GAP,
        heading + head + rows * (row + GAP) - GAP,
    )
    across = 1 if not blocks[0].heading else _arranged(len(blocks), block)
    down = -(-len(blocks) // across)
    gap = BLOCK_GAP if heading else ROW_GAP
    return _Layout(scale, text, column, row, side, heading, head, block, across, down, gap)


def _arranged(count: int, block: tuple[int, int]) -> int:
    """How many grids go side by side, so that all of them have about a page's shape."""

    def badness(across: int) -> float:
        down = -(-count // across)
        shape = across * (block[0] + BLOCK_GAP) / (down * (block[1] + BLOCK_GAP))
        return abs(math.log(shape / SHAPE)) + (across * down - count) / count

    return min(range(1, count + 1), key=badness)


def _draw_block(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    block: _Block,
    layout: _Layout,
    corner: tuple[int, int],
    size: tuple[int, int],
    picture: Callable[[Place], Image.Image | None],
) -> None:
    x, y = corner
    left, text = x + (layout.side + 14 if layout.side else 0), layout.text
    if block.heading:
        room = layout.block[0] - (left - x)
        draw.text((left, y), short(draw, block.heading, TITLE, room), INK, font(TITLE))
    y += layout.heading
    for i, name in enumerate(block.heads):
        lines = _lines(draw, name, text, layout.column, 3)
        middle = left + i * (layout.column + GAP) + layout.column / 2
        above = y + layout.head - 4 - _height(lines, text)
        _write(draw, (middle, above), lines, text, INK, centred=True)
    y += layout.head
    for j, places in enumerate(block.places):
        above = y + j * (layout.row + GAP)
        if block.sides:
            most = max(1, layout.row // (text + 6))
            lines = _lines(draw, block.sides[j], text, layout.side, most)
            indent = (layout.row - _height(lines, text)) / 2
            _write(draw, (x, above + indent), lines, text, INK)
        for i, place in enumerate(places):
            slot = (left + i * (layout.column + GAP), above, layout.column, layout.row)
            _put(sheet, draw, picture(place), slot, layout.scale, size)


def _put(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    picture: Image.Image | None,
    slot: tuple[int, int, int, int],
    scale: float,
    size: tuple[int, int],
) -> None:
    """A picture in the middle of its slot, with a thin line around it."""
    width, height = (max(1, round(side * scale)) for side in (picture or sheet).size)
    if picture is None:
        width, height = (max(1, round(side * scale)) for side in size)
    x, y = slot[0] + (slot[2] - width) // 2, slot[1] + (slot[3] - height) // 2
    if picture is None:
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=NO_PICTURE)
        middle = (x + width / 2, y + height / 2)
        if _length(draw, "none", SMALL) < width:
            draw.text(middle, "none", FAINT, font(SMALL), anchor="mm")
    else:
        way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
        sheet.paste(picture.convert("RGB").resize((width, height), way), (x, y))
    draw.rectangle((x - 1, y - 1, x + width, y + height), outline=EDGE)


def _lines(draw: ImageDraw.ImageDraw, text: str, size: int, room: int, most: int) -> list[str]:
    """A text in at most so many lines of `room` pixels, cut where that is not enough."""
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < most:
        line = words.pop(0)
        if len(lines) + 1 == most:
            line, words = " ".join([line, *words]), []
        while words and _length(draw, f"{line} {words[0]}", size) <= room:
            line += f" {words.pop(0)}"
        lines.append(short(draw, line, size, room))
    return lines


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    lines: Sequence[str],
    size: int,
    color: tuple[int, int, int],
    *,
    centred: bool = False,
) -> None:
    for i, line in enumerate(lines):
        place = (at[0], at[1] + i * (size + 6))
        draw.text(place, line, color, font(size), anchor="ma" if centred else "la")


def _height(lines: Sequence[str], size: int) -> int:
    return len(lines) * (size + 6)


def _length(draw: ImageDraw.ImageDraw, text: str, size: int) -> int:
    return math.ceil(draw.textlength(text, font(size)))
