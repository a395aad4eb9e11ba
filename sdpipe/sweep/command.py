"""The command line of a sweep, from the grid that it made."""

import os

from sdpipe.errors import UsageError
from sdpipe.metadata.record import Record, about_image
from sdpipe.sweep.sweep import Sweep


def sweep_command(path: str | os.PathLike[str], record: Record) -> str:
    """The command line that draws the sweep again whose grid is the image at `path`.

    Raises:
        SdpipeError: what is recorded of the sweep breaks one of its rules.
    """
    options: dict[str, str | list[str]] = {}
    if name := record.model.get("name"):
        revision = record.model.get("revision")
        options["model"] = name if "@" in name or revision is None else f"{name}@{revision}"
    if prediction := record.model.get("prediction"):
        options["prediction_type"] = prediction
    if vae := record.parts.get("vae"):
        options["vae"] = vae.partition("@sha256:")[0]
    if record.loras:
        options["lora"] = [f"{lora['name']}:{lora['weight']:g}" for lora in record.loras]
    if record.embeddings:
        options["embedding"] = [f"{each['name']}:{each['word']}" for each in record.embeddings]
    if record.dtype is not None:
        options["dtype"] = record.dtype
    try:
        return Sweep.from_dict(record.sweep or {}).command(**options)
    except UsageError as error:
        raise about_image(path, "has metadata that makes no sense", error) from error
