"""Whether an image that was drawn again came out the same, and if not, by how much and why."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from sdpipe.io.encoding import escape_control
from sdpipe.io.pixels import LOSSY_FORMATS, Difference, compare_pixels, load_pixels, pixels_sha256
from sdpipe.metadata.record import Record

TOLERANCE = 35.0
"""PSNR in dB from which on another machine may account for the difference. With the built-in model,
an image alone and in a batch of four differed by 92 dB or not at all, float32 and bfloat16 by 52 to
54 dB (48 in four steps), and two seeds of one prompt, on the same white background, by 23 dB."""

LOSSY = 30.0
"""PSNR in dB from which on JPEG compression may. Ours, at quality 95, differed by 44 dB."""

IDENTICAL, DIFFERENT, CLOSE = 0, 1, 3  # exit statuses


@dataclass(frozen=True)
class Verdict:
    """What came of drawing an image again.

    outcome: "identical"; "close", no further off than another machine may be; "different"; or
        "edited", where the file no longer holds the pixels that were drawn.
    difference: between the file's pixels and the redrawn ones; None where their sizes differ.
    redraw_matches: whether the redrawn image has the recorded hash; None where none is recorded.
    file_matches: whether the file's pixels have it; None also for `LOSSY_FORMATS`, which never do.
    changed: what differs between then and now: {name: (then, now)}.
    """

    outcome: str
    difference: Difference | None
    redraw_matches: bool | None
    file_matches: bool | None
    changed: Mapping[str, tuple[str, str]]

    @property
    def status(self) -> int:
        """The exit status of the command."""
        return {"identical": IDENTICAL, "close": CLOSE}.get(self.outcome, DIFFERENT)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        off = self.difference
        return {
            "outcome": self.outcome,
            "largest": None if off is None else off.largest,
            "mean": None if off is None else off.mean,
            "psnr": None if off is None else off.psnr,
            "redraw_matches": self.redraw_matches,
            "file_matches": self.file_matches,
            "changed": {name: {"then": a, "now": b} for name, (a, b) in self.changed.items()},
        }

    def __str__(self) -> str:
        lines = [self._first_line()]
        if self.outcome != "identical" and self.redraw_matches is not True:
            for name, values in self.changed.items():
                then, now = (v if len(v) <= 60 else f"{v[:12]}..." for v in values)
                lines.append(f"  {name}: {then} then, {now} now")
            if not self.changed:
                lines.append("  Nothing that was recorded has changed; the processor may have.")
        return "\n".join(lines)

    def _first_line(self) -> str:
        off = "their sizes differ" if self.difference is None else str(self.difference)
        if self.outcome == "edited":
            matches = "matches" if self.redraw_matches else "does not match"
            return (
                f"edited: the file's pixels are no longer those that were drawn ({off}); the "
                f"redrawn image {matches} the recorded hash"
            )
        if self.outcome != "identical":
            return f"{self.outcome}: {off}"
        if self.redraw_matches is False:
            return "identical, although the file carries another hash"
        if self.difference is not None and self.difference.psnr is not None:
            return f"identical to what was saved; lost by the file's format: {off}"
        return "identical"


def verify(
    path: str | os.PathLike[str], record: Record, redrawn: Image.Image, now: Mapping[str, Any]
) -> Verdict:
    """Compares a redrawn image with the file, and with the recorded hash.

    now: our own metadata of `redrawn`; see `png.metadata`.

    Raises:
        SdpipeError: the file's pixels cannot be read.
    """
    file = load_pixels(path)
    is_lossy = file.format in LOSSY_FORMATS
    recorded = record.pixels_sha256
    redraw_matches = file_matches = None
    if recorded is not None:
        redraw_matches = pixels_sha256(redrawn) == recorded
        file_matches = None if is_lossy else pixels_sha256(file) == recorded
    off = compare_pixels(file, redrawn) if file.size == redrawn.size else None
    outcome = _outcome(off, redraw_matches, file_matches, is_lossy=is_lossy)
    return Verdict(outcome, off, redraw_matches, file_matches, _changed(record, now))


def _outcome(
    off: Difference | None,
    redraw_matches: bool | None,
    file_matches: bool | None,
    *,
    is_lossy: bool,
) -> str:
    if off is not None and off.psnr is None:
        return "identical"
    if file_matches is False:
        return "edited"
    psnr = -1.0 if off is None or off.psnr is None else off.psnr
    if is_lossy and redraw_matches:
        return "identical" if psnr >= LOSSY else "edited"
    return "close" if psnr >= (LOSSY if is_lossy else TOLERANCE) else "different"


def _changed(record: Record, now: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """What was recorded of the model and the machine and is different now."""
    then, model = record.model, now["model"]
    pairs: dict[str, tuple[object, object]] = {"model": (then.get("name"), model["name"])}
    if record.source == "sdpipe":
        pairs |= {
            "revision": (then.get("revision"), model["revision"]),
            "variant": (then.get("variant"), model["variant"]),
            "weights": (then.get("sha256"), model["sha256"]),
            "device": (record.device, now["device"]),
            "dtype": (record.dtype, now["dtype"]),
            "speed": (record.speed, now["speed"]),
            **{name: (record.versions.get(name), v) for name, v in now["versions"].items()},
            **{
                part: (record.parts.get(part), model["parts"].get(part))
                for part in (*record.parts, *model["parts"])
            },
            "loras": (_list_files(record.loras, "weight"), _list_files(model["loras"], "weight")),
            "embeddings": (
                _list_files(record.embeddings, "word"),
                _list_files(model["embeddings"], "word"),
            ),
        }
    else:
        pairs["program"] = (record.versions.get("program") or record.source, "sdpipe")
    return {
        name: (_as_text(before), _as_text(after))
        for name, (before, after) in pairs.items()
        if before != after
    }


def _list_files(files: Iterable[Mapping[str, Any]], key: str) -> str | None:
    """The files that were added to a model, in one line."""
    return ", ".join(f"{file['name']}:{file[key]}" for file in files) or None


def _as_text(value: object) -> str:
    return "none" if value is None else escape_control(str(value))
