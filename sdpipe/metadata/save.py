"""From a result to image files that say how they were drawn."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpipe.errors import UsageError
from sdpipe.io import names
from sdpipe.io.mark import term_for
from sdpipe.runtime.device import dtype_name

if TYPE_CHECKING:
    from PIL import Image

    from sdpipe.pipeline import Pipeline, Result


def save_image(
    image: "Image.Image",
    record: Mapping[str, Any] | None,
    path: str | os.PathLike[str],
    *,
    mark: bool = True,
    overwrite: bool = False,
) -> Path:
    """Writes one image and returns its path.

    record: how it was drawn, from `Result.records`; None leaves it out.
    path: a .png, .jpg or .webp file.
    mark: write that a model made it, see `io.mark`.
    overwrite: replace a file that exists.

    Raises:
        UsageError: the file exists, its format is unknown, or the folder cannot be written.
        SdpipeError: the file cannot be written.
    """
    from sdpipe.io import png

    destination = names.Destination(path, 1, overwrite=overwrite)
    if not destination.is_file:
        raise UsageError(
            f"{os.fspath(path)}", "is no image file", f"use a name in {', '.join(names.FORMATS)}"
        )
    drawn = {} if record is None else record["sdpipe"].get("settings", {})
    term = term_for(drawn.get("init_image"), mark)
    return png.save(image, destination.path(0, ""), record, mark=term, overwrite=overwrite)


def save_result(
    result: "Result",
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    with_metadata: bool = True,
    mark: bool = True,
    overwrite: bool = False,
) -> list[Path]:
    """Writes every image of a result and returns their paths; see `Result.save`."""
    count = len(result.images)
    destination = names.Destination(path, count, format=format, overwrite=overwrite)
    places = {k: k for k in range(count)}
    options = {"with_metadata": with_metadata, "mark": mark}
    return [Path(entry["path"]) for entry in save_images(result, destination, places, **options)]


def save_images(
    result: "Result",
    destination: names.Destination,
    places: Mapping[int, int],
    *,
    with_metadata: bool = True,
    mark: bool = True,
) -> Iterator[dict[str, Any]]:
    """Writes one image after the other, and yields a description of each when its file is there.

    places: of each image to write, by its number from 0, which one of the destination's it is.
    with_metadata: write into each image how it was drawn.
    mark: write into each image that a model made it, see `io.mark`.

    Raises:
        SdpipeError: a file cannot be written.
    """
    from sdpipe.io import png

    for k, place in places.items():
        settings = result.settings[k]
        metadata = metadata_for(result, k) if with_metadata else None
        path = destination.path(place, settings.prompt)
        term = term_for(settings.init_image, mark)
        path = png.save(
            result.images[k], path, metadata, mark=term, overwrite=destination.overwrite
        )
        entry = {"path": str(path), "seed": settings.seed, "settings": settings.to_dict()}
        yield entry | ({"safety": result.safety[k].to_dict()} if result.safety else {})


def metadata_for(result: "Result", k: int) -> dict[str, Any]:
    """The metadata of image k of a result; see `png.metadata`.

    Raises:
        UsageError: the result does not know the pipeline that drew it.
    """
    from sdpipe.io import png

    if (pipe := result.pipeline) is None:
        raise UsageError("the result", "has no pipeline to describe", "save it without metadata")
    index, n = result.batch_positions[k]
    return png.metadata(
        result.settings[k],
        pipe.components.model.identity(),
        image=result.images[k],
        device=str(pipe.components.device),
        dtype=dtype_name(pipe.components.dtype),
        speed=pipe.speed,
        n=n,
        index=index,
        safety=result.safety[k].to_dict() if result.safety else None,
        lora_hashes=lora_hashes(pipe),
    )


def lora_hashes(pipe: "Pipeline") -> dict[str, str]:
    """The hashes by which other programs know a pipeline's LoRAs, by the names of their files."""
    return {lora.path.name: lora.tensors_sha256 for lora in pipe.components.model.loras}
