"""From a result to image files that say how they were drawn."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpipe.errors import UsageError
from sdpipe.io import files
from sdpipe.runtime.device import dtype_name

if TYPE_CHECKING:
    from sdpipe.pipeline import Result


def save_result(
    result: "Result", path: str | os.PathLike[str], *, with_metadata: bool = True
) -> list[Path]:
    """Writes every image of a result and returns their paths.

    path: a .png, .jpg or .webp file, for several images NAME-1, NAME-2, ...; anything else is a
        folder, whose images are numbered.
    with_metadata: write into each image how it was drawn.

    Raises:
        UsageError: the format is unknown, or the folder cannot be written.
        SdpipeError: a file cannot be written.
    """
    destination = files.Destination(path, len(result.images))
    return [Path(entry["path"]) for entry in save_images(result, destination, with_metadata)]


def save_images(
    result: "Result",
    destination: files.Destination,
    with_metadata: bool = True,
    indices: Iterable[int] | None = None,
) -> Iterator[dict[str, Any]]:
    """Writes one image after the other, and yields a description of each when its file is there.

    with_metadata: write into each image how it was drawn.
    indices: which images, from 0; None is all of them.

    Raises:
        SdpipeError: a file cannot be written.
    """
    from sdpipe.io import png

    for place, k in enumerate(range(len(result.images)) if indices is None else indices):
        settings = result.settings[k]
        metadata = metadata_for(result, k) if with_metadata else None
        path = png.save(result.images[k], destination.path(place, settings.prompt), metadata)
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
    )
