"""Reading an image's record, whichever program wrote it."""

import dataclasses
import os
from collections.abc import Callable, Mapping

from sdpipe.errors import SdpipeError
from sdpipe.io.texts import parse_object, read_texts
from sdpipe.metadata import a1111, invokeai, others
from sdpipe.metadata.record import Record, RecordError, about_image, truncate

Texts = Mapping[str, str]

READERS: Mapping[str, Callable[[Texts], Record]] = {
    "sdpipe": lambda texts: Record.from_sdpipe(_parse(texts["sdpipe"])),
    "parameters": lambda texts: _read_parameters(texts["parameters"]),
    "invokeai_metadata": lambda texts: invokeai.read(_parse(texts["invokeai_metadata"])),
    "sd-metadata": lambda texts: invokeai.read_version_2(_parse(texts["sd-metadata"])),
    "Dream": lambda texts: invokeai.read_dream(texts["Dream"]),
    "Comment": lambda texts: others.read_novelai(texts, _parse(texts["Comment"])),
    "num_inference_steps": others.read,
    "prompt": lambda texts: others.read_graph(_parse(texts["prompt"])),
    "workflow": lambda texts: others.read_workflow(_parse(texts["workflow"])),
}
"""By the names of texts, as `read_texts` finds them; the first that can be read counts."""

COMMON = ("Comment", "prompt", "workflow")
"""Names that anybody may give to a text; in these JSON alone is read."""


def read_record(path: str | os.PathLike[str]) -> Record:
    """Reads what an image says of how it was drawn.

    Our own metadata comes before A1111's text, and that before other programs'.

    Raises:
        SdpipeError: there is no such image, it is damaged, or its metadata is missing or invalid.
    """
    texts = read_texts(path, READERS)
    unreadable: list[SdpipeError] = []
    for key, reader in READERS.items():
        if key in texts and (key not in COMMON or texts[key].startswith("{")):
            try:
                record = reader(texts)
            except RecordError as error:
                unreadable.append(
                    about_image(path, f"has a text {key!r} that makes no sense", error)
                )
            else:
                notes = [f"it {error.rule}; {key!r} is read instead." for error in unreadable]
                return dataclasses.replace(record, notes=(*notes, *record.notes))
    if unreadable:
        raise unreadable[0]
    there = f"; its texts are {', '.join(map(truncate, list(texts)[:12]))}" if texts else ""
    raise SdpipeError(f"{path}", f"has no metadata of a program that is known here{there}", "")


def _read_parameters(text: str) -> Record:
    """A1111's text, or the JSON that other programs write in its place."""
    is_json = text.lstrip().startswith("{") and "\nSteps: " not in text
    return others.read(_parse(text)) if is_json else a1111.read(text)


def _parse(text: str) -> Mapping[str, object]:
    try:
        return parse_object(text)
    except ValueError as error:
        raise RecordError("it", f"{error}") from error
