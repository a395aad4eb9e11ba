"""Reading an image's record, whichever program wrote it."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from sdpipe.errors import SdpipeError
from sdpipe.io import png
from sdpipe.metadata import a1111, invokeai
from sdpipe.metadata.record import Record, RecordError, about_image

READERS: Mapping[str, Callable[[Any], Record]] = {
    "sdpipe": Record.from_sdpipe,
    "parameters": a1111.read,
    "invokeai_metadata": invokeai.read,
    "sd-metadata": invokeai.read_version_2,
    "Dream": invokeai.read_dream,
}
"""By the names under which files carry metadata, as `png.read` finds them; the first one counts."""


def read_record(path: str | os.PathLike[str]) -> Record:
    """Reads what an image says of how it was drawn.

    Our own metadata comes before A1111's text, and that before InvokeAI's.

    Raises:
        SdpipeError: there is no such image, it is damaged, or its metadata is missing or invalid.
    """
    found = png.read(path)
    for key, reader in READERS.items():
        if key in found:
            try:
                return reader(found[key])
            except RecordError as error:
                raise about_image(path, "has metadata that makes no sense", error) from error
    raise SdpipeError(f"{path}", "has no metadata of sdpipe, A1111 or InvokeAI", "")
