"""Drawing a sweep into a folder: what of it is there already, the rest in batches, the grid.

    from sdpipe import Pipeline
    from sdpipe.sweep import Sweep
    from sdpipe.sweep.folder import SweepFolder

    folder = SweepFolder("apples", Sweep("red apple", g=[1, 3, 7.5], seed=range(4)), Pipeline())
    for i in folder.draw():
        print(folder.paths[i])
    print(folder.save_grid())

Every cell is a picture of its own that tells how it was drawn. That is also how it is known again:
a file counts as a cell where its settings, weights, device and number type are the cell's and its
pixels are those that were drawn. Whatever else has a cell's name stays as it is, and the cell is
written beside it.
"""

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from sdpipe.errors import NotFiniteError, SdpipeError, UsageError
from sdpipe.io import png
from sdpipe.io.pixels import load_pixels, pixels_sha256
from sdpipe.metadata.read import read_record
from sdpipe.metadata.record import Record, about_image
from sdpipe.metadata.save import metadata_for
from sdpipe.plan import plan
from sdpipe.runtime.device import dtype_name
from sdpipe.settings import DEFAULT_OF, RULES, ResolvedSettings, label
from sdpipe.sweep.axes import format_values
from sdpipe.sweep.grid import Place, draw_grid
from sdpipe.sweep.sweep import SINGLE, SWEPT, Sweep

if TYPE_CHECKING:
    from sdpipe.pipeline import Pipeline

BATCH = 8  # cells that are drawn at once, at most
BATCH_PIXELS = BATCH * 512 * 512  # and their pixels: large cells are fewer

FILLED = tuple(name for name in SWEPT if DEFAULT_OF[name] is None)
"""The settings that get the model's value where all cells have the same."""

MARKS = ("revision", "variant", "sha256", "prediction")
"""What tells one model from another, besides its parts and what was added."""


class SweepFolder:
    """A folder that gets the pictures of a sweep.

    sweep: with every value filled in that is the model's, and its seed.
    settings: of each cell, resolved, in the order of `sweep.cells`.
    paths: of the cells that are there, by their numbers.
    failed: why a cell has no picture, by its number.
    safety: what the safety checker says of a cell, by its number, where it was asked.
    notes: which files have a cell's name and are not that cell, a sentence each.

    Raises:
        UsageError: a cell breaks a rule of the model, or two are the same picture with it.
    """

    def __init__(self, folder: str | os.PathLike[str], sweep: Sweep, pipe: "Pipeline") -> None:
        self._folder, self._pipe = Path(folder), pipe
        self._identity = pipe.components.model.identity()
        self.paths: dict[int, Path] = {}
        self.failed: dict[int, str] = {}
        self.safety: dict[int, Mapping[str, Any]] = {}
        self.notes: list[str] = []
        self._names = [cell.name for cell in sweep.cells]
        if "seed" not in sweep.values:
            seed = self._previous_seed(self._resolved(sweep.with_values(seed=0)))
            sweep = sweep.with_values(seed=secrets.randbelow(2**32) if seed is None else seed)
        self.settings = self._resolved(sweep)
        self.sweep = self._filled(sweep)
        self._find()

    def draw(
        self, batch: int = BATCH, on_step: Callable[[int, int], object] | None = None
    ) -> Iterator[int]:
        """Draws what is missing and yields the number of each cell when its file is there.

        A cell whose numbers overflow has no picture; see `failed`. `batch` is how many are drawn at
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
            if _carries(path, notes):
                return path
        return png.save(drawn, self._folder / "grid.png", notes)

    def _draw(self, numbers: list[int], tell: Callable[[float], None]) -> Iterator[int]:
        first = self.settings[numbers[0]]
        values = {**first.to_dict(), "n": len(numbers), **_pictures(self.sweep)}
        whole = self._steps(numbers)
        try:
            result = self._pipe.generate(
                values.pop("prompt"),
                on_step=lambda step: tell(whole * (step.index + 1) / step.total),
                **values,
            )
        except NotFiniteError as error:
            if len(numbers) == 1:
                self.failed[numbers[0]] = str(error)
                return
            for i in numbers:  # one of them may have spoilt it for all
                yield from self._draw([i], tell)
            return
        for k, i in enumerate(numbers):
            notes = metadata_for(self._pipe, result, k)
            if result.safety:
                self.safety[i] = result.safety[k].to_dict()
            self.paths[i] = png.save(result.images[k], self._path(self._names[i]), notes)
            yield i

    def _steps(self, numbers: list[int]) -> int:
        return sum(self.settings[i].steps for i in numbers)

    def _resolved(self, sweep: Sweep) -> list[ResolvedSettings]:
        """The settings of every cell with the model's own values, held against its rules."""
        rules = self._pipe.components.constraints
        found: dict[ResolvedSettings, str] = {}
        for cell in sweep.cells:
            values = {**cell.settings.to_dict(), **_pictures(sweep)}
            (settings,) = plan(values.pop("prompt"), **rules, **values)
            if settings in found:
                raise UsageError(
                    f"{found[settings]} and {cell.name} are the same picture with this model; "
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
        """Looks for the cells that are there, and says what else has their names."""
        wanted = {_key(settings.to_dict()) for settings in self.settings}
        others: list[str] = []
        for i, settings in enumerate(self.settings):
            values, reasons = settings.to_dict(), []
            for path in self._files(self._names[i]):
                record = _record(path)
                reason = self._mismatch(path, record, values)
                if reason is None:
                    self.paths[i] = path
                    if record is not None and record.safety is not None:
                        self.safety[i] = record.safety
                    break
                if record is None or _key(record.values) not in wanted - {_key(values)}:
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
        for i, each in enumerate(settings):
            for path in self._files(self._names[i]):
                record = _record(path)
                seed = None if record is None else record.values.get("seed")
                values = {**each.to_dict(), "seed": seed}
                if isinstance(seed, int) and self._mismatch(path, record, values) is None:
                    return seed
        return None

    def _mismatch(self, path: Path, record: Record | None, values: Mapping[str, Any]) -> str | None:
        """What speaks against a file being the cell with these settings; None if nothing does."""
        if record is None or record.source != "sdpipe" or record.sweep is not None:
            return "is no picture of sdpipe's"
        if _key(record.values) != _key(values):
            return "was drawn from other settings"
        then = {name: record.model.get(name) for name in MARKS}
        now = {name: self._identity[name] for name in then}
        if then != now or dict(record.parts) != self._identity["parts"]:
            return f"was drawn by other weights ({_weights(then)}, not {_weights(now)})"
        if list(map(dict, record.loras)) != self._identity["loras"]:
            return "was drawn with other LoRAs"
        if list(map(dict, record.embeddings)) != self._identity["embeddings"]:
            return "was drawn with other embeddings"
        parts = self._pipe.components
        here = (dtype_name(parts.dtype), parts.device.type)
        if (record.dtype, (record.device or "").partition(":")[0]) != here:
            return f"was drawn on {record.device} in {record.dtype}, not on {here[1]} in {here[0]}"
        if record.speed != self._pipe.speed:
            return f"was drawn with speed {record.speed}, not {self._pipe.speed}"
        return None if _kept(path, record.pixels_sha256) else "was changed after it was drawn"

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
        """What the grid carries: as a picture does, with the sweep in place of the settings."""
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


def batches(settings: Sequence[ResolvedSettings], most: int = BATCH) -> list[list[int]]:
    """Which images can be drawn in one call of `Pipeline.generate`: their numbers, from 0.

    Those of a call differ in nothing but the seed, or of variations the variation seed, which goes
    up by one. There are never more than `most`, nor more pixels than `BATCH_PIXELS` unless it is
    one image. `settings` are resolved.
    """

    def seed_of(i: int) -> int:
        seed = settings[i].variation_seed
        return settings[i].seed if seed is None else seed

    alike: dict[ResolvedSettings, list[int]] = {}
    for i, one in enumerate(settings):
        same = replace(one, variation_seed=0) if one.is_variation else replace(one, seed=0)
        alike.setdefault(same, []).append(i)
    found: list[list[int]] = []
    for same, numbers in alike.items():
        width, height = same.output_size
        room = min(most, BATCH_PIXELS // (width * height))
        batch: list[int] = []
        for i in sorted(numbers, key=seed_of):
            if batch and (len(batch) >= room or seed_of(i) != seed_of(batch[-1]) + 1):
                found.append(batch)
                batch = []
            batch.append(i)
        found.append(batch)
    return found


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


def _pictures(sweep: Sweep) -> dict[str, Any]:
    """Those that the cells begin with, and not only which they are."""
    return {
        name: sweep.values[name] for name in ("init_image", "mask_image") if name in sweep.values
    }


def _key(values: Mapping[str, Any]) -> str:
    """The settings that are not at their default; images older than a setting lack it."""
    given = {name: value for name, value in values.items() if value != DEFAULT_OF.get(name)}
    return json.dumps(given, sort_keys=True)


def _record(path: Path) -> Record | None:
    try:
        return read_record(path)
    except SdpipeError:
        return None


def _kept(path: Path, recorded: str | None) -> bool:
    try:
        return pixels_sha256(load_pixels(path)) == recorded
    except SdpipeError:
        return False


def _carries(path: Path, notes: dict[str, Any]) -> bool:
    """Whether a file tells the same, and still has the pixels that it tells of."""
    try:
        same = png.read(path).get("sdpipe") == json.loads(json.dumps(notes["sdpipe"]))
    except SdpipeError:
        return False
    return same and _kept(path, notes["sdpipe"]["pixels_sha256"])


def _weights(model: Mapping[str, Any]) -> str:
    return str(model.get("sha256") or model.get("revision") or "unknown")[:12]
