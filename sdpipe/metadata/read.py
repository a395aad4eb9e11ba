"""Reading an image's record, whichever program wrote it."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping

from sdpipe.errors import SdpipeError
from sdpipe.io.mark import PNG_XMP, find_term
from sdpipe.io.texts import parse_object, read_texts
from sdpipe.metadata import a1111, comfyui, invokeai, others
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
    "DgenerateConfig": lambda texts: others.read_dgenerate(texts["DgenerateConfig"]),
    "prompt": lambda texts: comfyui.read(_parse(texts["prompt"])),
    "workflow": lambda texts: comfyui.read_workflow(_parse(texts["workflow"])),
    PNG_XMP: lambda texts: others.read_draw_things(texts[PNG_XMP]),
}
"""By the names of texts, as `read_texts` finds them; the first that can be read counts."""

COMMON = {
    **dict.fromkeys(("Comment", "prompt", "workflow"), re.compile(r"\{")),
    PNG_XMP: re.compile(r"(?s).*>Draw Things<"),
}
"""Names that anybody may give to a text, and how one of these programs' begins."""


def read_record(path: str | os.PathLike[str]) -> Record:
    """Reads what an image says of how it was drawn.

    Our own metadata comes before A1111's text, and that before other programs'.

    Raises:
        SdpipeError: there is no such image, it is damaged, or its metadata is missing or invalid.
    """
    texts = read_texts(path, READERS.keys() - COMMON.keys())
    mark = find_term(texts.get(PNG_XMP, ""))
    unreadable: list[SdpipeError] = []
    for key, reader in READERS.items():
        if key in texts and (key not in COMMON or COMMON[key].match(texts[key])):
            try:
                record = reader(texts)
            except RecordError as error:
                unreadable.append(
                    about_image(path, f"has a text {key!r} that makes no sense", error)
                )
            else:
                notes = [f"it {error.rule}; {key!r} is read instead." for error in unreadable]
                return dataclasses.replace(record, notes=(*notes, *record.notes), mark=mark)
    if unreadable:
        raise unreadable[0]
    if mark is not None:
        del texts[PNG_XMP]
    there = f"; its texts are {', '.join(map(truncate, list(texts)[:12]))}" if texts else ""
    there += f"; as its source it names {mark}" if mark is not None else ""
    raise SdpipeError(f"{path}", f"has no metadata of a program that is known here{there}", "")


def _read_parameters(text: str) -> Record:
    """A1111's text, or the JSON or the command that other programs write in its place."""
    if text.startswith("#!") and "dgenerate" in text[:200]:
        return others.read_dgenerate(text)
    is_json = text.lstrip().startswith("{") and "\nSteps: " not in text
    return others.read(_parse(text)) if is_json else a1111.read(text)


def _parse(text: str) -> Mapping[str, object]:
    try:
        return parse_object(text)
    except ValueError as error:
        raise RecordError("it", f"{error}") from error
