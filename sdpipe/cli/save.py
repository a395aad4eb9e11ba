"""Saves what a command drew, and prints where."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpipe.cli import console
from sdpipe.io import files
from sdpipe.metadata.save import save_images

if TYPE_CHECKING:
    from sdpipe.pipeline import Result


def save(
    result: "Result",
    destination: files.Destination,
    written: list[dict[str, Any]],
    *,
    show: bool,
    with_metadata: bool = True,
    indices: Iterable[int] | None = None,
) -> None:
    """Saves the images of a result, then their steps where they were kept.

    written: gets a description of each image as soon as its file is there.
    show: print the paths.
    indices: which images, from 0; None is all of them.

    Raises:
        SdpipeError: a file cannot be written.
    """
    kept = list(range(len(result.images)) if indices is None else indices)
    for entry in save_images(result, destination, with_metadata, kept):
        written.append(entry)
        if show:
            console.print_result(entry["path"])
        console.print_flagged(entry["path"], entry.get("safety"))
    if result.steps:
        for k, entry in zip(kept, written, strict=True):
            entry["steps"] = _save_steps(result, k, entry["path"], with_metadata)


def _save_steps(result: "Result", k: int, path: str, with_metadata: bool) -> str:
    """Saves the steps of image k, which is at `path`, into a folder beside it: which one."""
    from sdpipe.runtime.modules import on_device
    from sdpipe.show.steps import save_steps

    folder = files.steps_folder(Path(path))
    assert result.pipeline is not None
    parts = result.pipeline.components
    with console.bar(f"writing {folder.name}") as move, on_device(parts.vae, parts.device):
        save_steps(parts.vae, result, k, folder, describe=with_metadata, on_decoded=move)
    return str(folder)
