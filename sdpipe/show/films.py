"""The films: a picture as it comes about, and the way from one picture to another."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from sdpipe.io.lettering import (
    EDGE,
    FAINT,
    INK,
    PAPER,
    SMALL,
    TEXT,
    font,
    shorten,
    text_width,
    transliterate,
)
from sdpipe.io.sheet import scale_to
from sdpipe.show.animation import TICK, Film
from sdpipe.show.filmstrip import Column, format_sigma

if TYPE_CHECKING:
    from sdpipe.show.interpolate import Way

SIDE = 320  # pixels of the longer side of a picture, at most; small ones are enlarged towards it
MARGIN, BETWEEN, BAR = 20, 10, 4
MOST = 151  # states of a film of the steps: what is left out of more would pass unseen
WHOLE, LONGEST, HOLD = 6000, 200, 2000  # milliseconds: of many frames, of one, of the last
BLUE = (0, 114, 178)


def steps_film(columns: Sequence[Column]) -> Film:
    """x_t to the left, the predicted x0 to the right, state after state; the last one stays."""
    last = columns[-1].step
    frames = []
    for column in columns:
        pair = (scale_to(column.x_t, SIDE), scale_to(column.x0, SIDE))
        frame, draw, below = _frame(pair)
        captions = ("x_t, the latents, decoded", "x_0, the picture predicted")
        for i, caption in enumerate(captions):
            draw.text((MARGIN + i * (pair[0].width + BETWEEN), below), caption, FAINT, font(SMALL))
        state = f"step {column.step} of {last}" if column.step else "noise"
        draw.text((MARGIN, below + 22), state, INK, font(TEXT))
        right = (frame.width - MARGIN, below + 22)
        draw.text(right, f"sigma {format_sigma(column.sigma)}", FAINT, font(TEXT), anchor="ra")
        _draw_bar(draw, frame, column.step / last)
        frames.append(frame)
    return _timed(frames)


def way_film(way: "Way") -> Film:
    """From the first picture to the last and back again, so that it goes round; both ends stay."""
    frames = []
    for picture, f in zip(way.pictures, way.fractions, strict=True):
        frame, draw, below = _frame((scale_to(picture, SIDE),))
        room = (frame.width - 2 * MARGIN) // 2 - 8
        for text, x, anchor, near in (
            (way.first.prompt, MARGIN, "la", 1 - f),
            (way.last.prompt, frame.width - MARGIN, "ra", f),
        ):
            text = shorten(transliterate(text), room, lambda text: text_width(text, SMALL))
            ink = tuple(round(near * a + (1 - near) * b) for a, b in zip(INK, EDGE, strict=True))
            draw.text((x, below + 6), text, ink, font(SMALL), anchor=anchor)
        _draw_bar(draw, frame, f)
        frames.append(frame)
    there = _timed(frames)
    film = Film(
        there.frames + there.frames[-2:0:-1], there.milliseconds + there.milliseconds[-2:0:-1]
    )
    film.milliseconds[0] = HOLD
    return film


def _timed(frames: list[Image.Image]) -> Film:
    each = min(LONGEST, max(1, WHOLE // len(frames) // TICK) * TICK)
    return Film(frames, [each] * (len(frames) - 1) + [HOLD])


def _frame(
    pictures: Sequence[Image.Image],
) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """Paper with pictures side by side, something to draw on it with, and where they end."""
    width, height = pictures[0].size
    wide = max(2 * MARGIN + len(pictures) * (width + BETWEEN) - BETWEEN, 320)
    frame = Image.new("RGB", (wide + wide % 2, MARGIN + height + 84 + height % 2), PAPER)
    left = (wide - len(pictures) * (width + BETWEEN) + BETWEEN) // 2
    for i, picture in enumerate(pictures):
        frame.paste(picture, (left + i * (width + BETWEEN), MARGIN))
    return frame, ImageDraw.Draw(frame), MARGIN + height + 8


def _draw_bar(draw: ImageDraw.ImageDraw, frame: Image.Image, fraction: float) -> None:
    """A thin bar at the bottom, as full as the film is far along."""
    y, end = frame.height - MARGIN - BAR, frame.width - MARGIN
    draw.rectangle((MARGIN, y, end, y + BAR - 1), fill=EDGE)
    draw.rectangle((MARGIN, y, MARGIN + fraction * (end - MARGIN), y + BAR - 1), fill=BLUE)
