"""Saves what a command drew, and prints where."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpipe.cli import console
from sdpipe.errors import UsageError
from sdpipe.io import names
from sdpipe.io.mark import term_for
from sdpipe.metadata.save import save_images

if TYPE_CHECKING:
    from sdpipe.pipeline import Result

STDOUT = "-"


def save(
    result: "Result",
    destination: names.Destination,
    places: Mapping[int, int],
    written: list[dict[str, Any]],
    *,
    show: bool,
    with_metadata: bool,
    mark: bool,
) -> None:
    """Saves images of a result, then their steps where they were kept.

    places: of each image to save, by its number from 0, which one of the destination's it is.
    written: gets a description of each image as soon as its file is there.
    show: print the paths.
    with_metadata, mark: as in `Result.save`.

    Raises:
        SdpipeError: a file cannot be written.
    """
    first = len(written)
    content = {"with_metadata": with_metadata, "mark": mark}
    for entry in save_images(result, destination, places, **content):
        written.append(entry)
        if show:
            console.print_result(entry["path"])
        console.print_flagged(entry["path"], entry.get("safety"))
    if result.steps:
        for k, entry in zip(places, written[first:], strict=True):
            options = {"describe": with_metadata, "mark": mark, "overwrite": destination.overwrite}
            entry["steps"] = _save_steps(result, k, Path(entry["path"]), options)


def check_stdout(images: int, format: str | None, *, as_json: bool, save_int: bool) -> None:
    """Checks that `--out -` writes one PNG, and to a file or a program.

    Raises:
        UsageError: it is another number or format, there is more to write, or a terminal reads.
    """
    given = f"--out {STDOUT}"
    if images != 1:
        raise UsageError(given, f"writes one image, not {images}", "name a folder")
    if format not in (None, "png"):
        raise UsageError(given, f"writes a PNG, and --format says {format}", "name a file")
    if as_json or save_int:
        other = "--json" if as_json else "--save-int"
        raise UsageError(given, f"writes nothing but the image, and {other} more", "name a file")
    if sys.stdout.isatty():
        raise UsageError(given, "would write an image to the terminal", f"as in {given} > a.png")


def save_to_stdout(result: "Result", *, with_metadata: bool, mark: bool) -> None:
    """Writes the only image of a result to standard output, as a PNG."""
    from sdpipe.io import png

    record = result.records[0] if with_metadata else None
    term = term_for(result.settings[0].init_image, mark)
    sys.stdout.buffer.write(png.encode(result.images[0], "PNG", record, term))
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def tells_progress(written: Sequence[object], images: int, seed: int | None) -> Iterator[None]:
    """Where the block ends early, prints how many images are written, and the seed.

    seed: the seed if it was drawn, not given.
    """
    try:
        yield
    except BaseException:
        parts = [f"{len(written)} of {images} images are written"] if images > 1 else []
        parts += [] if seed is None else [f"--seed {seed} draws the same"]
        if parts:
            console.print_status(f"{'; '.join(parts)}.")
        raise


def _save_steps(result: "Result", k: int, path: Path, options: dict[str, bool]) -> str:
    """Saves the steps of image k, which is at `path`, into a folder beside it: which one."""
    from sdpipe.runtime.modules import on_device
    from sdpipe.show.steps import save_steps

    folder = names.steps_folder(path)
    assert result.pipeline is not None
    parts = result.pipeline.components
    with console.bar(f"writing {folder.name}") as move, on_device(parts.vae, parts.device):
        save_steps(parts.vae, result, k, folder, on_decoded=move, **options)
    return str(folder)
