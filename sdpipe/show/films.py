"""Films of the denoising steps of an image, and of the images between two."""

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
    from sdpipe.show.interpolate import Interpolation

SIDE = 320  # pixels of the longer side of an image, about
MARGIN, BETWEEN, BAR = 20, 10, 4
MOST = 151  # states in a film of the steps; more could not be seen
WHOLE, LONGEST, HOLD = 6000, 200, 2000  # milliseconds: all frames, one frame, the last one
BLUE = (0, 114, 178)


def steps_film(columns: Sequence[Column]) -> Film:
    """A film with x_t on the left and the predicted x_0 on the right; the last frame is held."""
    last = columns[-1].step
    frames = []
    for column in columns:
        pair = (scale_to(column.x_t, SIDE), scale_to(column.x0, SIDE))
        frame, draw, below = _frame(pair)
        captions = ("x_t, the latents, decoded", "x_0, the image predicted")
        for i, caption in enumerate(captions):
            draw.text((MARGIN + i * (pair[0].width + BETWEEN), below), caption, FAINT, font(SMALL))
        state = f"step {column.step} of {last}" if column.step else "noise"
        draw.text((MARGIN, below + 22), state, INK, font(TEXT))
        right = (frame.width - MARGIN, below + 22)
        draw.text(right, f"sigma {format_sigma(column.sigma)}", FAINT, font(TEXT), anchor="ra")
        _draw_bar(draw, frame, column.step / last)
        frames.append(frame)
    return _set_times(frames)


def interpolation_film(data: "Interpolation") -> Film:
    """A film from the first image to the last and back, for a loop; both ends are held."""
    frames = []
    for image, f in zip(data.images, data.fractions, strict=True):
        frame, draw, below = _frame((scale_to(image, SIDE),))
        room = (frame.width - 2 * MARGIN) // 2 - 8
        for text, x, anchor, near in (
            (data.first.prompt, MARGIN, "la", 1 - f),
            (data.last.prompt, frame.width - MARGIN, "ra", f),
        ):
            text = shorten(transliterate(text), room, lambda text: text_width(text, SMALL))
            ink = tuple(round(near * a + (1 - near) * b) for a, b in zip(INK, EDGE, strict=True))
            draw.text((x, below + 6), text, ink, font(SMALL), anchor=anchor)
        _draw_bar(draw, frame, f)
        frames.append(frame)
    forth = _set_times(frames)
    film = Film(
        forth.frames + forth.frames[-2:0:-1], forth.milliseconds + forth.milliseconds[-2:0:-1]
    )
    film.milliseconds[0] = HOLD
    return film


def _set_times(frames: list[Image.Image]) -> Film:
    time = min(LONGEST, max(1, WHOLE // len(frames) // TICK) * TICK)
    return Film(frames, [time] * (len(frames) - 1) + [HOLD])


def _frame(
    images: Sequence[Image.Image],
) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """A frame with images side by side, an object to draw on it, and the y where they end."""
    width, height = images[0].size
    wide = max(2 * MARGIN + len(images) * (width + BETWEEN) - BETWEEN, 320)
    frame = Image.new("RGB", (wide + wide % 2, MARGIN + height + 84 + height % 2), PAPER)
    left = (wide - len(images) * (width + BETWEEN) + BETWEEN) // 2
    for i, image in enumerate(images):
        frame.paste(image, (left + i * (width + BETWEEN), MARGIN))
    return frame, ImageDraw.Draw(frame), MARGIN + height + 8


def _draw_bar(draw: ImageDraw.ImageDraw, frame: Image.Image, fraction: float) -> None:
    """Draws the progress of the film as a thin bar at the bottom."""
    y, end = frame.height - MARGIN - BAR, frame.width - MARGIN
    draw.rectangle((MARGIN, y, end, y + BAR - 1), fill=EDGE)
    draw.rectangle((MARGIN, y, MARGIN + fraction * (end - MARGIN), y + BAR - 1), fill=BLUE)
