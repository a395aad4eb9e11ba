"""The files and numbers that a command of `sdpipe show` writes: checked first, written last."""

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpipe.errors import UsageError
from sdpipe.io import files, names
from sdpipe.io.mark import GENERATED
from sdpipe.show import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from sdpipe.show.animation import Film

DRAWINGS = (".png", ".svg", ".pdf")
PIXELS = (".png",)
FILMS = (".gif", ".mp4")
OF_IMAGES = ("attention", "denoise", "guidance", "interpolate", "steps")
"""The commands whose drawings contain images that the model made: their PNGs say so."""

_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{1,4}")


class Output:
    """A drawing, films or numbers, as the options ask for them.

    A drawing is written to `out`, or, if neither films nor numbers are asked for, to outputs/ under
    the next number.
    """

    def __init__(
        self,
        name: str,
        about: str,
        *,
        out: str | None,
        as_json: bool,
        overwrite: bool = False,
        gif: str | None = None,
        mp4: str | None = None,
        formats: Sequence[str] = DRAWINGS,
    ) -> None:
        """`name` is the command and `about` its subject; both are part of the file's name.

        overwrite: files that are named and exist are replaced, else refused.

        Raises:
            UsageError: a format is not supported, or a folder is not writable.
            SdpipeError: a library is missing.
        """
        self._name, self._json, self._overwrite = name, as_json, overwrite
        self._films = [
            _film_path(option, path, overwrite)
            for option, path in ((".gif", gif), (".mp4", mp4))
            if path is not None
        ]
        self._drawing: Path | None = None
        if out is not None or not (as_json or self._films):
            out = "outputs" if out is None else out
            _check_suffix(out, formats)
            place = names.Destination(out, 1, formats, overwrite=overwrite)
            self._drawing = place.path(0, f"show {name} {about}")
            if formats is DRAWINGS:
                style.check_matplotlib()
        if mp4 is not None:
            from sdpipe.show import animation

            animation.check_av()

    def finish(
        self,
        numbers: Mapping[str, Any],
        draw: "Callable[[], Figure | Image.Image]",
        film: "Callable[[], Film] | None" = None,
    ) -> str:
        """Writes the files and returns the text to print: their paths, or a JSON object.

        Raises:
            SdpipeError: a file cannot be written.
        """
        written: dict[str, str] = {}
        if self._drawing is not None:
            mark = GENERATED if self._name in OF_IMAGES else None
            data = _encode(draw(), self._drawing.suffix.lower(), mark)
            written["path"] = self._write(self._drawing, data)
        if self._films:
            assert film is not None
            from sdpipe.show import animation

            encoders = {".gif": animation.encode_gif, ".mp4": animation.encode_mp4}
            frames = film()
            for path in self._films:
                kind = path.suffix.lower()
                written[kind[1:]] = self._write(path, encoders[kind](frames))
        if self._json:
            return to_json({"show": self._name, **numbers, **written})
        return "\n".join(written.values())

    def _write(self, path: Path, data: bytes) -> str:
        return str(files.write(path, data, overwrite=self._overwrite))


def to_json(numbers: Mapping[str, Any]) -> str:
    """Numbers as one line of JSON; infinite ones, which JSON lacks, become null."""
    return json.dumps(_finite(numbers), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value


def _encode(drawing: "Figure | Image.Image", suffix: str, mark: str | None) -> bytes:
    from PIL import Image

    from sdpipe.io import png

    if isinstance(drawing, Image.Image):
        return png.encode(drawing, "PNG", mark=mark)
    return style.encode(drawing, suffix, mark)


def _check_suffix(out: str, formats: Sequence[str]) -> None:
    """Refuses file names of unknown formats, which would become folders."""
    suffix = Path(out).suffix.lower()
    if out.endswith(("/", os.sep)) or os.path.isdir(out) or suffix in formats:
        return
    if suffix in FILMS:
        raise UsageError(
            f"out={out!r}",
            f"is a film, and --out writes a drawing ({', '.join(formats)})",
            f"where a command draws a film, --{suffix[1:]} writes it",
        )
    if _SUFFIX.fullmatch(suffix):
        raise UsageError(
            f"out={out!r}",
            f"has the suffix {suffix}, which cannot be written",
            f"the formats are {', '.join(formats)}, and a folder's name ends with /",
        )


def _film_path(suffix: str, out: str, overwrite: bool) -> Path:
    option = f"--{suffix[1:]}"
    if Path(out).suffix.lower() != suffix or out.endswith(("/", os.sep)) or os.path.isdir(out):
        raise UsageError(f"{option} {out}", f"is not a {suffix} file", f"use {option} film{suffix}")
    return names.Destination(out, 1, (suffix,), overwrite=overwrite).path(0, "")
