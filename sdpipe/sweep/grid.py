"""The grid of a sweep: all its images on one sheet, with the values beside them.

The first axis goes across, the second down, and the third has a grid for each of its values. A
single axis is a row, or several where it is long.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from sdpipe.io import png
from sdpipe.io.lettering import distinguish, transliterate
from sdpipe.io.sheet import Table, draw_sheet, split_table
from sdpipe.metadata.save import lora_hashes
from sdpipe.runtime.device import dtype_name
from sdpipe.settings import RULES, ResolvedSettings
from sdpipe.sweep.axes import format_values
from sdpipe.sweep.sweep import Axis, Sweep

if TYPE_CHECKING:
    from sdpipe.pipeline import Pipeline

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


def grid_metadata(
    drawn: Image.Image, sweep: Sweep, settings: ResolvedSettings, pipe: "Pipeline"
) -> dict[str, Any]:
    """What the grid carries: as an image does, with the sweep in place of the settings.

    settings: of the first cell.
    """
    parts = pipe.components
    notes = png.metadata(
        settings,
        parts.model.identity(),
        image=drawn,
        device=str(parts.device),
        dtype=dtype_name(parts.dtype),
        speed=pipe.speed,
        lora_hashes=lora_hashes(pipe),
    )
    own = {k: v for k, v in notes["sdpipe"].items() if k not in ("settings", "batch")}
    told = [notes["parameters"], "Script: X/Y/Z plot"]
    for letter, axis in zip("XYZ", sweep.axes, strict=False):
        rule = RULES[axis.name]  # A1111 calls some otherwise in its own grids
        values = json.dumps(format_values(axis.values), ensure_ascii=False)
        told.append(f"{letter} Type: {rule.a1111_axis or rule.a1111 or axis.name}")
        told.append(f"{letter} Values: {values}")
    return {"parameters": ", ".join(told), "sdpipe": {"sweep": sweep.to_dict(), **own}}


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
