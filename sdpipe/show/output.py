"""Where a command of `sdpipe show` leaves what it made: checked before, written at the end."""

import io
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpipe.errors import UsageError
from sdpipe.io import files
from sdpipe.show import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from sdpipe.show.animation import Film

DRAWINGS = (".png", ".svg", ".pdf")
PIXELS = (".png",)
FILMS = (".gif", ".mp4")

_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{1,4}")


class Output:
    """A drawing, or films, or numbers, as a person asked for them.

    A drawing is written where there is an `out`, or where nothing else was asked for: then it goes
    to outputs/, under the next number. Nothing that exists is overwritten.
    """

    def __init__(
        self,
        name: str,
        about: str,
        *,
        out: str | None,
        as_json: bool,
        gif: str | None = None,
        mp4: str | None = None,
        formats: Sequence[str] = DRAWINGS,
    ) -> None:
        """`name` is what is shown, `about` of what; both go into the file's name.

        Raises:
            UsageError: a format that cannot be written, or a folder that cannot be.
            SdpipeError: a library for it is missing.
        """
        self._name, self._json = name, as_json
        self._films = [
            _film_path(option, path)
            for option, path in ((".gif", gif), (".mp4", mp4))
            if path is not None
        ]
        self._drawing: Path | None = None
        if out is not None or not (as_json or self._films):
            out = "outputs" if out is None else out
            _check_suffix(out, formats)
            place = files.Destination(out, 1, formats)
            self._drawing = place.path(0, f"show {name} {about}")
            if formats is DRAWINGS:
                style.need_matplotlib()
        if mp4 is not None:
            from sdpipe.show import animation

            animation.need_av()

    def finish(
        self,
        numbers: Mapping[str, Any],
        draw: "Callable[[], Figure | Image.Image]",
        film: "Callable[[], Film] | None" = None,
    ) -> str:
        """Writes what was asked for, and returns what to print: paths, or a JSON object.

        Raises:
            SdpipeError: a file cannot be written.
        """
        written: dict[str, str] = {}
        if self._drawing is not None:
            data = _encoded(draw(), self._drawing.suffix.lower())
            written["path"] = str(files.write(self._drawing, data))
        if self._films:
            assert film is not None
            from sdpipe.show import animation

            encoders = {".gif": animation.gif, ".mp4": animation.mp4}
            made = film()
            for path in self._films:
                kind = path.suffix.lower()
                written[kind[1:]] = str(files.write(path, encoders[kind](made)))
        if self._json:
            return as_json({"show": self._name, **numbers, **written})
        return "\n".join(written.values())


def as_json(numbers: Mapping[str, Any]) -> str:
    """Numbers as one line of JSON, which knows none that are infinite: they become null."""
    return json.dumps(_finite(numbers), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: _finite(each) for key, each in value.items()}
        case list() | tuple():
            return [_finite(each) for each in value]
        case _:
            return value


def _encoded(made: "Figure | Image.Image", suffix: str) -> bytes:
    from PIL import Image

    if not isinstance(made, Image.Image):
        return style.encoded(made, suffix)
    buffer = io.BytesIO()
    made.save(buffer, "PNG")
    return buffer.getvalue()


def _check_suffix(out: str, formats: Sequence[str]) -> None:
    """Refuses a name that means a file, but of no known format: it would become a folder."""
    suffix = Path(out).suffix.lower()
    if out.endswith(("/", os.sep)) or os.path.isdir(out) or suffix in formats:
        return
    if suffix in FILMS:
        raise UsageError(
            f"{out} asks for a {suffix} file, and this is a drawing: {', '.join(formats)}; where "
            f"there is a film, --{suffix[1:]} writes it."
        )
    if _SUFFIX.fullmatch(suffix):
        raise UsageError(
            f"{out} asks for a {suffix} file, which cannot be written; the formats are "
            f"{', '.join(formats)}. A folder of that name is asked for with a / at its end."
        )


def _film_path(suffix: str, out: str) -> Path:
    option = f"--{suffix[1:]}"
    if Path(out).suffix.lower() != suffix or out.endswith(("/", os.sep)) or os.path.isdir(out):
        raise UsageError(f"{option} {out} names no {suffix} file; give one, such as film{suffix}.")
    return files.Destination(out, 1, (suffix,)).path(0, "")
