"""Films: frames with their durations, encoded as GIF or MP4."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sdpipe.errors import SdpipeError

FRAMES_PER_SECOND = 25  # of an MP4; GIF counts in hundredths of a second
TICK = 1000 // FRAMES_PER_SECOND


@dataclass(frozen=True)
class Film:
    """Frames of one size, RGB with even sides, and the duration of each in milliseconds.

    Durations are multiples of `TICK`, which both formats can hold.
    """

    frames: list[Image.Image]
    milliseconds: list[int]


def encode_gif(film: Film) -> bytes:
    """Encodes a film as a GIF that loops; each frame has its own 256 colours."""
    few = [quantize_colors(frame) for frame in film.frames]
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


def quantize_colors(frame: Image.Image) -> Image.Image:
    """Reduces a frame to the 256 colours that suit it best, with dithering.

    White stays white. Averaged with nearly white colours it would get a tint, different in each
    frame.
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


def check_av() -> None:
    """Checks that PyAV is installed, before any work is done.

    Raises:
        SdpipeError: it is not.
    """
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise SdpipeError(
            "PyAV",
            "is needed for an MP4 and is not installed",
            'pip install "sdpipe[show]", or use --gif',
        ) from error


def encode_mp4(film: Film) -> bytes:
    """Encodes a film as an MP4 with H.264, which every browser plays."""
    check_av()
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"crf": "16"})
        stream.width, stream.height = film.frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame, milliseconds in zip(film.frames, film.milliseconds, strict=True):
            for _ in range(milliseconds // TICK):
                video_frame = av.VideoFrame.from_image(frame)
                for packet in stream.encode(video_frame):
                    container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return buffer.getvalue()
