"""Whether a picture that was drawn again came out the same, and if not, by how much and why."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from sdpipe.io.pixels import Difference, compare_pixels, load_pixels, pixels_sha256
from sdpipe.metadata.info import plain
from sdpipe.metadata.record import Record

TOLERANCE = 35.0
"""dB of PSNR: what is at least as near, another machine may have drawn. With the built-in model a
picture alone and in a batch of four were 92 dB apart or the same, float32 and bfloat16 52 to 54 (in
four steps 48), and two seeds of one prompt, on the same white background, 23."""

LOSSY = 30.0
"""dB: at least as near is a JPEG to what was saved in it. One of ours, of quality 95, was at 44."""

IDENTICAL, DIFFERENT, CLOSE = 0, 1, 3  # exit statuses


@dataclass(frozen=True)
class Verdict:
    """What came of drawing a picture again.

    word: "identical"; "close", as far off as another machine may be; "different"; or "edited",
        where the file no longer holds the pixels that were drawn.
    off: how far the file's pixels and those drawn again are apart; None where their sizes differ.
    as_recorded: what was drawn again has the recorded hash; None where none was recorded.
    kept: the file's own pixels have it; None also for a JPEG, which never does.
    changed: what differs between then and now, name: (then, now).
    """

    word: str
    off: Difference | None
    as_recorded: bool | None
    kept: bool | None
    changed: Mapping[str, tuple[str, str]]

    @property
    def status(self) -> int:
        """The exit status that it deserves."""
        return {"identical": IDENTICAL, "close": CLOSE}.get(self.word, DIFFERENT)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        off = self.off
        return {
            "verdict": self.word,
            "largest": None if off is None else off.largest,
            "mean": None if off is None else off.mean,
            "psnr": None if off is None else off.psnr,
            "drawn_as_recorded": self.as_recorded,
            "file_as_recorded": self.kept,
            "changed": {name: {"then": a, "now": b} for name, (a, b) in self.changed.items()},
        }

    def __str__(self) -> str:
        lines = [self._first_line()]
        if self.word != "identical" and self.as_recorded is not True:
            for name, values in self.changed.items():
                then, now = (v if len(v) <= 60 else f"{v[:12]}..." for v in values)
                lines.append(f"  {name}: {then} then, {now} now")
            if not self.changed:
                lines.append("  Nothing that was recorded is another now; the processor may be.")
        return "\n".join(lines)

    def _first_line(self) -> str:
        off = "their sizes differ" if self.off is None else str(self.off)
        if self.word == "edited":
            again = "it has" if self.as_recorded else "it does not have"
            return (
                f"edited: the file's pixels are no longer those that were drawn ({off}); drawn "
                f"again {again} the recorded hash"
            )
        if self.word != "identical":
            return f"{self.word}: {off}"
        if self.as_recorded is False:
            return "identical, although the hash that the file carries is another"
        if self.off is not None and self.off.psnr is not None:
            return f"identical to what was saved; what the JPEG lost: {off}"
        return "identical"


def verify(
    path: str | os.PathLike[str], record: Record, drawn: Image.Image, now: Mapping[str, Any]
) -> Verdict:
    """Holds a picture that was drawn again against the file, and against the recorded hash.

    now: our own metadata of `drawn`; see `png.metadata`.

    Raises:
        SdpipeError: the file's pixels can't be read.
    """
    file = load_pixels(path)
    recorded = record.pixels_sha256
    as_recorded = kept = None
    if recorded is not None:
        as_recorded = pixels_sha256(drawn) == recorded
        kept = None if file.format == "JPEG" else pixels_sha256(file) == recorded
    off = compare_pixels(file, drawn) if file.size == drawn.size else None
    changed = _changed(record, now)
    return Verdict(_word(off, as_recorded, kept, file.format), off, as_recorded, kept, changed)


def _word(
    off: Difference | None, as_recorded: bool | None, kept: bool | None, format: str | None
) -> str:
    if off is not None and off.psnr is None:
        return "identical"
    if kept is False or (off is None and as_recorded):
        return "edited"
    near = -1.0 if off is None or off.psnr is None else off.psnr
    if format == "JPEG" and as_recorded:
        return "identical" if near >= LOSSY else "edited"
    return "close" if near >= (LOSSY if format == "JPEG" else TOLERANCE) else "different"


def _changed(record: Record, now: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """What was recorded of model and machine, where it is another now."""
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
            "loras": (_files(record.loras, "weight"), _files(model["loras"], "weight")),
            "embeddings": (_files(record.embeddings, "word"), _files(model["embeddings"], "word")),
        }
    else:
        pairs["program"] = (record.versions.get("program") or record.source, "sdpipe")
    return {
        name: (_told(before), _told(after))
        for name, (before, after) in pairs.items()
        if before != after
    }


def _files(files: Iterable[Mapping[str, Any]], key: str) -> str | None:
    """What was added to a model, in a line."""
    return ", ".join(f"{file['name']}:{file[key]}" for file in files) or None


def _told(value: object) -> str:
    return "none" if value is None else plain(str(value))
