"""Draws a sweep into a folder: finds the cells that are there, draws the others, and the grid.

    from sdpipe import Pipeline
    from sdpipe.sweep import Sweep
    from sdpipe.sweep.folder import SweepFolder

    folder = SweepFolder("apples", Sweep("red apple", g=[1, 3, 7.5], seed=range(4)), Pipeline())
    for i in folder.draw():
        print(folder.paths[i])
    print(folder.save_grid())

Every cell is an image of its own, found again by its metadata, see `sdpipe.sweep.match`. A file
that has a cell's name but is not that cell stays as it is, and the cell is written beside it.
"""

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from sdpipe.canvas import prepare
from sdpipe.errors import NotFiniteError, UsageError
from sdpipe.io import png
from sdpipe.io.pixels import load_pixels
from sdpipe.metadata.record import Record, about_image
from sdpipe.metadata.save import metadata_for
from sdpipe.plan import check_seamless, plan
from sdpipe.runtime.device import dtype_name
from sdpipe.settings import DEFAULT_OF, RULES, ResolvedSettings, label
from sdpipe.sweep.axes import format_values
from sdpipe.sweep.grid import Place, draw_grid
from sdpipe.sweep.match import carries, mismatch, read_or_none, settings_key
from sdpipe.sweep.sweep import BATCH, SINGLE, SWEPT, Sweep, batches

if TYPE_CHECKING:
    from sdpipe.pipeline import Pipeline

FILLED = tuple(name for name in SWEPT if DEFAULT_OF[name] is None)
"""The settings that get the model's value where all cells have the same."""


class SweepFolder:
    """A folder for the images of a sweep.

    sweep: with every value filled in that is the model's, and its seed.
    settings: of each cell, resolved, in the order of `sweep.cells`.
    paths: of the cells that are there, by their numbers.
    failed: why a cell has no image, by its number.
    safety: what the safety checker says of a cell, by its number, where it was asked.
    notes: which files have a cell's name and are not that cell, a sentence each.

    Raises:
        UsageError: a cell breaks a rule of the model, or two are the same image with it.
    """

    def __init__(self, folder: str | os.PathLike[str], sweep: Sweep, pipe: "Pipeline") -> None:
        self._folder, self._pipe = Path(folder), pipe
        self._identity = pipe.components.model.identity()
        self.paths: dict[int, Path] = {}
        self.failed: dict[int, str] = {}
        self.safety: dict[int, Mapping[str, Any]] = {}
        self.notes: list[str] = []
        read = pipe.components.constraints["read_prompt"]
        told = {name: read(text) for name, text in sweep.to_dict().items() if "prompt" in name}
        sweep = sweep.with_values(**told)
        self._names = [cell.name for cell in sweep.cells]
        if "seed" not in sweep.values:
            seed = self._previous_seed(self._resolved(sweep.with_values(seed=0)))
            sweep = sweep.with_values(seed=secrets.randbelow(2**32) if seed is None else seed)
        self.settings = self._resolved(sweep)
        self.sweep = self._filled(sweep)
        self._find()
        from sdpipe.batches import warn_unused_embeddings

        warn_unused_embeddings(pipe.components, self.settings)

    def draw(
        self, batch: int = BATCH, on_step: Callable[[int, int], object] | None = None
    ) -> Iterator[int]:
        """Draws what is missing and yields the number of each cell when its file is there.

        A cell whose numbers overflow has no image; see `failed`. `batch` is how many are drawn at
        once, at most. `on_step` is called with how many steps of how many are done.

        Raises:
            SdpipeError: a file cannot be written.
        """
        missing = [i for i in range(len(self.settings)) if i not in self.paths]
        todo = [
            [missing[k] for k in numbers]
            for numbers in batches([self.settings[i] for i in missing], batch)
        ]
        total, done = sum(self._steps(numbers) for numbers in todo), 0

        def tell(steps: float) -> None:
            if on_step is not None:
                on_step(done + round(steps), total)

        for numbers in todo:
            yield from self._draw(numbers, tell)
            done += self._steps(numbers)

    def save_grid(self) -> Path:
        """Writes the grid of all cells, and returns where it is; one that is the same stays.

        Raises:
            SdpipeError: a cell has gone away, or the file cannot be written.
        """
        by_index = {cell.index: i for i, cell in enumerate(self.sweep.cells)}

        def picture(place: Place) -> Image.Image | None:
            path = self.paths.get(by_index[place])
            return None if path is None else load_pixels(path)

        sizes = [s.output_size for s in self.settings]
        largest = (max(width for width, _ in sizes), max(height for _, height in sizes))
        drawn = draw_grid(self.sweep.axes, largest, picture, self.sweep.prompt, self._subtitle())
        notes = self._grid_notes(drawn)
        for path in self._files("grid"):
            if carries(path, notes):
                return path
        return png.save(drawn, self._folder / "grid.png", notes)

    def _draw(self, numbers: list[int], tell: Callable[[float], None]) -> Iterator[int]:
        images, given = [self.settings[i] for i in numbers], _images(self.sweep)
        canvas = prepare(images[0], given.get("init_image"), given.get("mask_image"))
        whole, missing = self._steps(numbers), list(numbers)
        try:
            for result in self._pipe.draw(
                images, canvas, on_step=lambda s: tell(whole * (s.index + 1) / s.total)
            ):
                for k, image in enumerate(result.images):
                    i = missing.pop(0)
                    if result.safety:
                        self.safety[i] = result.safety[k].to_dict()
                    notes = metadata_for(result, k)
                    self.paths[i] = png.save(image, self._path(self._names[i]), notes)
                    yield i
        except NotFiniteError as error:
            if len(missing) == 1:
                self.failed[missing[0]] = str(error)
                return
            for i in missing:  # one of them may have spoilt it for all
                yield from self._draw([i], tell)

    def _steps(self, numbers: list[int]) -> int:
        return sum(self.settings[i].steps for i in numbers)

    def _resolved(self, sweep: Sweep) -> list[ResolvedSettings]:
        """The settings of every cell with the model's own values, held against its rules."""
        parts = self._pipe.components
        rules, levels = parts.constraints, len(parts.unet.config.block_out_channels)
        found: dict[ResolvedSettings, str] = {}
        for cell in sweep.cells:
            values = {**cell.settings.to_dict(), **_images(sweep)}
            (settings,) = plan(values.pop("prompt"), **rules, **values)
            check_seamless(settings, rules["factor"], levels)
            if settings in found:
                raise UsageError(
                    f"{found[settings]} and {cell.name} are the same image with this model; "
                    "leave one out."
                )
            found[settings] = cell.name
        return list(found)

    def _filled(self, sweep: Sweep) -> Sweep:
        """The sweep with the model's values where all cells have the same, so that they last."""
        given = set(sweep.values)
        if "dim" in given:
            given |= {"width", "height"}
        values = {}
        for name in FILLED:
            found = {getattr(settings, name) for settings in self.settings}
            if name not in given and len(found) == 1 and found != {None}:
                value = found.pop()
                values[name] = RULES[name].format(value) if isinstance(value, tuple) else value
        return sweep.with_values(**values)

    def _find(self) -> None:
        """Finds the cells that are there, and notes which other files have their names."""
        wanted = {settings_key(settings.to_dict()) for settings in self.settings}
        others: list[str] = []
        for i, settings in enumerate(self.settings):
            values, reasons = settings.to_dict(), []
            for path in self._files(self._names[i]):
                record = read_or_none(path)
                reason = mismatch(path, record, values, self._pipe)
                if reason is None:
                    self.paths[i] = path
                    if record is not None and record.safety is not None:
                        self.safety[i] = record.safety
                    break
                if record is None or settings_key(record.values) not in wanted - {
                    settings_key(values)
                }:
                    reasons.append(f"{path} {reason}")
            if i not in self.paths:
                others += reasons
        if others:
            more = f" (and so on: {len(others)} files)" if others[1:] else ""
            self.notes.append(
                f"{others[0]}{more}; what is there stays, and the cell goes beside it."
            )

    def _previous_seed(self, settings: list[ResolvedSettings]) -> int | None:
        """The seed that was drawn when the same sweep began in this folder."""
        for i, cell in enumerate(settings):
            for path in self._files(self._names[i]):
                record = read_or_none(path)
                seed = None if record is None else record.values.get("seed")
                values = {**cell.to_dict(), "seed": seed}
                if isinstance(seed, int) and mismatch(path, record, values, self._pipe) is None:
                    return seed
        return None

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.png"

    def _files(self, name: str) -> Iterator[Path]:
        """The files that have a name, or one of the numbers after it."""
        for number in count():
            path = self._path(f"{name}-{number}" if number else name)
            if not os.path.lexists(path):
                return
            yield path

    def _subtitle(self) -> str:
        """What all cells have in common."""
        varied = {axis.name for axis in self.sweep.axes}
        given = self.sweep.values
        values = {k: given[k] for k in (*SWEPT, *SINGLE) if k in given and k not in varied}
        width, height = values.pop("width", None), values.pop("height", None)
        shown = [label(name, value) for name, value in values.items() if value is not False]
        if width and height:
            shown.append(f"{width} x {height}")
        elif width or height:
            shown.append(label("width", width) if width else label("height", height))
        return " · ".join([*shown, Path(str(self._identity["name"])).name])

    def _grid_notes(self, drawn: Image.Image) -> dict[str, Any]:
        """What the grid carries: as an image does, with the sweep in place of the settings."""
        parts = self._pipe.components
        notes = png.metadata(
            self.settings[0],
            self._identity,
            image=drawn,
            device=str(parts.device),
            dtype=dtype_name(parts.dtype),
            speed=self._pipe.speed,
        )
        own = {k: v for k, v in notes["sdpipe"].items() if k not in ("settings", "batch")}
        told = [notes["parameters"], "Script: X/Y/Z plot"]
        for letter, axis in zip("XYZ", self.sweep.axes, strict=False):
            told.append(f"{letter} Type: {_a1111_axis(axis.name)}")
            told.append(
                f"{letter} Values: {json.dumps(format_values(axis.values), ensure_ascii=False)}"
            )
        return {"parameters": ", ".join(told), "sdpipe": {"sweep": self.sweep.to_dict(), **own}}


def _a1111_axis(name: str) -> str:
    """What A1111 calls a setting in the metadata of its own grids."""
    return RULES[name].a1111_axis or RULES[name].a1111 or name


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


def _images(sweep: Sweep) -> dict[str, Any]:
    """The images that the cells begin with, with their pixels."""
    names = ("init_image", "mask_image")
    return {name: sweep.values[name] for name in names if name in sweep.values}
