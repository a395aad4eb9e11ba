"""The grid of a sweep: all its images on one sheet, with the values beside them.

The first axis goes across, the second down, and the third has a grid for each of its values. A
single axis is a row, or several where it is long.
"""

import re
from collections.abc import Callable, Sequence

from PIL import Image

from sdpipe.io.lettering import distinguish, transliterate
from sdpipe.io.sheet import Table, draw_sheet, split_table
from sdpipe.sweep.sweep import Axis

Place = tuple[int, ...]
"""The number of a cell's value on each axis, from 0."""

ACROSS = 10  # images in a row, where only one setting varies


def draw_grid(
    axes: Sequence[Axis],
    size: tuple[int, int],
    image: Callable[[Place], Image.Image | None],
    title: str = "",
    subtitle: str = "",
) -> Image.Image:
    """Draws a sweep of one to three axes.

    size: width and height of the largest image.
    image: of each place; None leaves the cell empty. See `draw_sheet`.
    """
    return draw_sheet(_tables(axes), size, image, title, subtitle)


def _tables(axes: Sequence[Axis]) -> list[Table[Place]]:
    across, *others = [_labels(axis) for axis in axes]
    if not others:
        return split_table(Table(across, [], [[(x,) for x in range(len(across))]]), ACROSS)
    down, *more = others
    ends: list[tuple[str, Place]] = [("", ())]
    if more:
        ends = [(heading, (z,)) for z, heading in enumerate(more[0])]
    return [
        Table(
            across,
            down,
            [[(x, y, *end) for x in range(len(across))] for y in range(len(down))],
            heading,
        )
        for heading, end in ends
    ]


def _labels(axis: Axis) -> list[str]:
    """The values of an axis, numbered where the font has no letters that tell them apart."""
    labels = [axis.label(i) for i in range(len(axis.values))]
    numbered = distinguish(labels, lambda label: re.sub(r"\W", "", transliterate(label)))
    return [transliterate(numbered[label]) for label in labels]
