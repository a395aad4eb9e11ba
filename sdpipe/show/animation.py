"""Pictures that move: frames and how long each stays, as GIF or MP4."""

import io
from dataclasses import dataclass

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
    few = [_in_few_colors(frame) for frame in film.frames]
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


def _in_few_colors(frame: Image.Image) -> Image.Image:
    """The 256 colours that suit a frame best, mixed from dots where one is between them."""
    palette = frame.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=2)
    return frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


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
