"""Images with labels on one sheet: tables of them, below a title and a subtitle.

A label is one text, or two: what follows a line break is smaller and fainter, and stands below.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from PIL import Image, ImageDraw

from sdpipe.io.lettering import (
    EDGE,
    FAINT,
    LEADING,
    PAPER,
    SMALL,
    TEXT,
    TITLE,
    distinguish,
    font,
    height_of,
    label_lines,
    label_width,
    text_width,
    transliterate,
    write,
)

K = TypeVar("K")

SMALLEST = 128  # pixels: smaller images are enlarged by whole factors
LARGEST = 2**25  # pixels of a sheet, 96 MiB of memory; and of its sides:
LARGEST_SIDE = 16384

MARGIN = 36  # around all
GAP, ROW_GAP, TABLE_GAP = 8, 18, 44  # between images, tables without headings, and with
SIDE = 190  # maximum width of the labels of rows
HEAD = 112  # width for the label of a column where its images are narrower
LABEL_GAP = 14  # between the labels of rows and their images
NARROWEST = 420  # width of the narrowest sheet, without its margins
SHAPE = 1.4  # width to height that several tables are arranged towards
LINES = 3  # of a title, and of the label of a column
MISSING = (243, 243, 245)  # stands for an image that is not there


@dataclass(frozen=True)
class Table(Generic[K]):
    """Images in rows and columns.

    columns, rows: their labels; `rows` may be empty for rows without.
    cells: row by row, what `draw_sheet` gets each image from.
    """

    columns: Sequence[str]
    rows: Sequence[str]
    cells: Sequence[Sequence[K]]
    heading: str = ""


def split_table(table: Table[K], most: int) -> list[Table[K]]:
    """Splits a table into several of `most` columns or fewer, as even as possible."""
    count = len(table.columns)
    width = -(-count // -(-count // most))
    parts = [slice(i, i + width) for i in range(0, count, width)]
    return [
        replace(table, columns=table.columns[part], cells=[row[part] for row in table.cells])
        for part in parts
    ]


def scale_to(image: Image.Image, side: int) -> Image.Image:
    """Scales the longer side to `side`; small images by a whole factor, so that they stay crisp."""
    longest = max(image.size)
    if longest <= side:
        factor = side // longest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    size = (max(1, image.width * side // longest), max(1, image.height * side // longest))
    return image.resize(size, Image.Resampling.LANCZOS)


def draw_sheet(
    tables: Sequence[Table[K]],
    size: tuple[int, int],
    image: Callable[[K], Image.Image | None],
    title: str = "",
    subtitle: str = "",
) -> Image.Image:
    """Draws tables of images; those with headings side by side, others below one another.

    size: width and height of the largest image. All images are scaled alike: enlarged by a whole
        factor to about `SMALLEST` pixels, or reduced until the sheet is no larger than `LARGEST`.
    image: called once for each cell, just before it is drawn, so that not all images are in memory
        at once; None leaves the cell empty.
    """
    layout = _fit_layout(tables, size)
    tables = _with_distinct_labels(tables, layout)
    width = max(NARROWEST, layout.size[0])
    titles = "\n".join(map(transliterate, (title, subtitle)))
    lines = label_lines(titles, TITLE, width, LINES)
    top = MARGIN + height_of(lines) + (20 if lines else 0)

    sheet = Image.new("RGB", (width + 2 * MARGIN, top + layout.size[1] + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    write(draw, (MARGIN, MARGIN), lines)
    for i, table in enumerate(tables):
        x = MARGIN + i % layout.across * (layout.table[0] + layout.gap)
        y = top + i // layout.across * (layout.table[1] + layout.gap)
        _draw_table(sheet, draw, table, layout, (x, y), size, image)
    return sheet


@dataclass(frozen=True)
class _Layout:
    """Sizes in pixels. column, row: of the slots that images stand in, without the gaps."""

    scale: float
    text: int
    column: int
    row: int
    side: int
    heading: int
    head: int
    table: tuple[int, int]
    across: int
    down: int
    gap: int

    @property
    def row_lines(self) -> int:
        """How many lines of a row's label fit beside its images."""
        return max(1, self.row // (self.text + LEADING))

    @property
    def size(self) -> tuple[int, int]:
        """Of all tables, with the gaps between them."""
        width, height = self.table
        return (
            self.across * (width + self.gap) - self.gap,
            self.down * (height + self.gap) - self.gap,
        )


def _with_distinct_labels(tables: Sequence[Table[K]], layout: _Layout) -> list[Table[K]]:
    """The tables, with numbers at the labels that look alike because they are shortened."""

    def number(labels: Iterable[str], size: int, room: int, most: int) -> dict[str, str]:
        return distinguish(labels, lambda label: label_lines(label, size, room, most))

    text, table = layout.text, layout.table[0]
    columns = number((c for t in tables for c in t.columns), text, layout.column, LINES)
    rows = number((r for t in tables for r in t.rows), text, layout.side, layout.row_lines)
    headings = number((t.heading for t in tables), TITLE, table, 1)
    return [
        replace(
            table,
            columns=[columns[label] for label in table.columns],
            rows=[rows[label] for label in table.rows],
            heading=headings[table.heading],
        )
        for table in tables
    ]


def _fit_layout(tables: Sequence[Table[K]], size: tuple[int, int]) -> _Layout:
    """The largest layout that is not too large for a sheet."""
    longest = max(size)
    scale = float(max(1, SMALLEST // longest))
    while True:
        layout = _lay_out(tables, size, scale)
        width, height = layout.size
        room = min(LARGEST_SIDE / max(width, height), (LARGEST / (width * height)) ** 0.5)
        if room >= 1 or longest * scale < 16:
            return layout
        scale *= min(room, 0.97)  # labels do not shrink, so one round may not be enough


def _lay_out(tables: Sequence[Table[K]], size: tuple[int, int], scale: float) -> _Layout:
    width, height = (max(1, round(side * scale)) for side in size)
    text = TEXT if width >= HEAD else SMALL
    heads = list(dict.fromkeys(label for table in tables for label in table.columns))
    column = max(width, min(HEAD, max(label_width(label, text) for label in heads)))
    head = max(height_of(label_lines(label, text, column, LINES)) for label in heads) + 4
    rows = tables[0].rows
    side = min(SIDE, max((label_width(label, text) for label in rows), default=0))
    row = max(height, *(height_of(label_lines(label, text, side, 1)) for label in rows), 0)
    heading = TITLE + 14 if tables[0].heading else 0

    across, down = max(len(table.columns) for table in tables), len(tables[0].cells)
    table = (
        (side + LABEL_GAP if side else 0) + across * (column + GAP) - GAP,
        heading + head + down * (row + GAP) - GAP,
    )
    across = _arrange(len(tables), table) if heading else 1
    down = -(-len(tables) // across)
    gap = TABLE_GAP if heading else ROW_GAP
    return _Layout(scale, text, column, row, side, heading, head, table, across, down, gap)


def _arrange(count: int, table: tuple[int, int]) -> int:
    """How many tables go side by side, so that all of them have about the shape of a page."""

    def badness(across: int) -> float:
        down = -(-count // across)
        shape = across * (table[0] + TABLE_GAP) / (down * (table[1] + TABLE_GAP))
        return abs(math.log(shape / SHAPE)) + (across * down - count) / count

    return min(range(1, count + 1), key=badness)


def _draw_table(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    table: Table[K],
    layout: _Layout,
    corner: tuple[int, int],
    size: tuple[int, int],
    image: Callable[[K], Image.Image | None],
) -> None:
    x, y = corner
    left, text = x + (layout.side + LABEL_GAP if layout.side else 0), layout.text
    if table.heading:
        room = layout.table[0] - (left - x)
        write(draw, (left, y), label_lines(table.heading, TITLE, room, 1))
    y += layout.heading
    for i, label in enumerate(table.columns):
        lines = label_lines(label, text, layout.column, LINES)
        middle = left + i * (layout.column + GAP) + layout.column / 2
        write(draw, (middle, y + layout.head - 4 - height_of(lines)), lines, centred=True)
    y += layout.head
    for j, cells in enumerate(table.cells):
        above = y + j * (layout.row + GAP)
        if table.rows:
            label = table.rows[j]
            most = 1 if "\n" in label else layout.row_lines
            lines = label_lines(label, text, layout.side, most)
            write(draw, (x, above + (layout.row - height_of(lines)) / 2), lines)
        for i, cell in enumerate(cells):
            slot = (left + i * (layout.column + GAP), above, layout.column, layout.row)
            _paste(sheet, draw, image(cell), slot, layout.scale, size)


def _paste(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    image: Image.Image | None,
    slot: tuple[int, int, int, int],
    scale: float,
    size: tuple[int, int],
) -> None:
    """Puts an image into the middle of its slot, with a thin line around it."""
    width, height = (max(1, round(side * scale)) for side in (image.size if image else size))
    x, y = slot[0] + (slot[2] - width) // 2, slot[1] + (slot[3] - height) // 2
    if image is None:
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=MISSING)
        if text_width("none", SMALL) < width:
            middle = (x + width / 2, y + height / 2)
            draw.text(middle, "none", FAINT, font(SMALL), anchor="mm")
    else:
        way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
        sheet.paste(image.convert("RGB").resize((width, height), way), (x, y))
    draw.rectangle((x - 1, y - 1, x + width, y + height), outline=EDGE)
