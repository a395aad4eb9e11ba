"""Reading a picture's record, whichever program wrote it."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from sdpipe.errors import SdpipeError
from sdpipe.io import png
from sdpipe.metadata import a1111, invokeai
from sdpipe.metadata.record import Record, RecordError

READERS: Mapping[str, Callable[[Any], Record]] = {
    "sdpipe": Record.of_sdpipe,
    "parameters": a1111.read,
    "invokeai_metadata": invokeai.read,
    "sd-metadata": invokeai.read_2,
    "Dream": invokeai.read_dream,
}
"""By the names under which files carry it, as `png.read` finds them: the first that is there."""


def read_record(path: str | os.PathLike[str]) -> Record:
    """What a picture tells of how it was drawn.

    Our own metadata goes before what other programs would read, and that before InvokeAI's.

    Raises:
        SdpipeError: there is no such picture, it is damaged, it tells nothing, or nonsense.
    """
    carried = png.read(path)
    for key, reader in READERS.items():
        if key in carried:
            try:
                return reader(carried[key])
            except RecordError as error:
                raise SdpipeError(f"{path} has metadata that makes no sense: {error}") from error
    raise SdpipeError(
        f"{path} does not tell how it was drawn: it carries nothing of sdpipe, A1111 or InvokeAI."
    )
