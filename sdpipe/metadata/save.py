"""From a result to the files that a command leaves: pictures, what they carry, their steps."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpipe.cli import progress
from sdpipe.io import files
from sdpipe.runtime.device import dtype_name

if TYPE_CHECKING:
    from sdpipe.pipeline import Pipeline, Result


def saved(
    pipe: "Pipeline",
    result: "Result",
    destination: files.Destination,
    describe: bool = True,
    some: Iterable[int] | None = None,
) -> Iterator[dict[str, Any]]:
    """Writes one picture after the other and tells of each when it is there.

    describe: give them their metadata.
    some: the numbers of those that are wanted, from 0; None is all.

    Raises:
        SdpipeError: a file cannot be written.
    """
    from sdpipe.io import png

    numbers = range(len(result.images)) if some is None else some
    for place, k in enumerate(numbers):
        settings = result.settings[k]
        notes = carried(pipe, result, k) if describe else None
        path = png.save(result.images[k], destination.path(place, settings.prompt), notes)
        told = {"path": str(path), "seed": settings.seed, "settings": settings.to_dict()}
        yield told | ({"safety": result.safety[k].to_dict()} if result.safety else {})


def carried(pipe: "Pipeline", result: "Result", k: int) -> dict[str, Any]:
    """The metadata of picture k of a result; see `png.metadata`."""
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


def saved_steps(
    pipe: "Pipeline", result: "Result", k: int, path: str, describe: bool = True
) -> str:
    """Writes the steps of picture k, which is at `path`, into a folder beside it: which one.

    Raises:
        SdpipeError: the folder is there already, or cannot be written.
    """
    from sdpipe.runtime.modules import on_device
    from sdpipe.show.steps import save_steps

    folder = files.steps_folder(Path(path))
    vae, device = pipe.components.vae, pipe.components.device
    with progress.bar(f"writing {folder.name}") as move, on_device(vae, device):
        save_steps(vae, result, k, folder, describe=describe, on_decoded=move)
    return str(folder)
