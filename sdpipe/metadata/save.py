"""From a result to image files that say how they were drawn."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from sdpipe.io import files
from sdpipe.runtime.device import dtype_name

if TYPE_CHECKING:
    from sdpipe.pipeline import Pipeline, Result


def save_images(
    pipe: "Pipeline",
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
        metadata = metadata_for(pipe, result, k) if with_metadata else None
        path = png.save(result.images[k], destination.path(place, settings.prompt), metadata)
        entry = {"path": str(path), "seed": settings.seed, "settings": settings.to_dict()}
        yield entry | ({"safety": result.safety[k].to_dict()} if result.safety else {})


def metadata_for(pipe: "Pipeline", result: "Result", k: int) -> dict[str, Any]:
    """The metadata of image k of a result; see `png.metadata`."""
    from sdpipe.io import png

    parts = pipe.components
    index, n = result.batch_positions[k]
    return png.metadata(
        result.settings[k],
        parts.model.identity(),
        image=result.images[k],
        device=str(parts.device),
        dtype=dtype_name(parts.dtype),
        speed=pipe.speed,
        n=n,
        index=index,
        safety=result.safety[k].to_dict() if result.safety else None,
    )
