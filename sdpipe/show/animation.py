"""Pictures that move: frames and how long each stays, as GIF or MP4."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sdpipe.errors import SdpipeError

FRAMES_PER_SECOND = 25  # of an MP4; GIF counts in hundredths of a second
TICK = 1000 // FRAMES_PER_SECOND


@dataclass(frozen=True)
class Film:
    """Frames of one size, RGB with even sides, and for each how many milliseconds it stays.

    The times are multiples of `TICK`, which both formats can keep.
    """

    frames: list[Image.Image]
    milliseconds: list[int]


def gif(film: Film) -> bytes:
    """A film as a GIF that starts again at its end; each frame has 256 colours of its own."""
    few = [in_few_colors(frame) for frame in film.frames]
    buffer = io.BytesIO()
    few[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=few[1:],
        duration=film.milliseconds,
        loop=0,
        optimize=False,
        disposal=1,
    )
    return buffer.getvalue()


def in_few_colors(frame: Image.Image) -> Image.Image:
    """The 256 colours that suit a frame best, mixed from dots where one is between them.

    White stays white: a mean of nearly white ones would tint the paper, another in each frame.
    """
    palette = frame.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=2)
    few = frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    white = Image.fromarray((np.asarray(frame) == 255).all(axis=2))
    if white.getbbox() is not None:
        colors = few.getpalette() or []
        lightest = max(range(len(colors) // 3), key=lambda i: sum(colors[3 * i : 3 * i + 3]))
        colors[3 * lightest : 3 * lightest + 3] = [255, 255, 255]
        few.putpalette(colors)
        few.paste(lightest, mask=white)
    return few


def need_av() -> None:
    """Says what to do where the library that writes MP4 is missing.

    Raises:
        SdpipeError: it is.
    """
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise SdpipeError(
            "an MP4 is written with PyAV, which is not installed: "
            'pip install "sdpipe[show]", or take --gif.'
        ) from error


def mp4(film: Film) -> bytes:
    """A film as an MP4, H.264 as every browser plays it."""
    need_av()
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"crf": "16"})
        stream.width, stream.height = film.frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame, milliseconds in zip(film.frames, film.milliseconds, strict=True):
            for _ in range(milliseconds // TICK):
                picture = av.VideoFrame.from_image(frame)
                for packet in stream.encode(picture):
                    container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return buffer.getvalue()
