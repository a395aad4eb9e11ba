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

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Container, Generator, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from sdpipe.batch.engine import draw_jobs
from sdpipe.batches import common_settings, warn_unused_embeddings
from sdpipe.canvas import Canvas, load_images, prepare
from sdpipe.errors import UsageError
from sdpipe.io import png
from sdpipe.io.files import write_once
from sdpipe.io.mark import term_for
from sdpipe.io.pixels import load_pixels
from sdpipe.metadata.save import metadata_for
from sdpipe.plan import check_seamless, plan
from sdpipe.settings import DEFAULT_OF, RULES, ResolvedSettings, label
from sdpipe.sweep.grid import Place, draw_grid, grid_metadata
from sdpipe.sweep.match import carries, mismatch, read_or_none, settings_key
from sdpipe.sweep.sweep import SINGLE, SWEPT, Sweep

if TYPE_CHECKING:
    from sdpipe.denoise import Step
    from sdpipe.pipeline import Pipeline, Result

FILLED = tuple(name for name in SWEPT if DEFAULT_OF[name] is None)
"""The settings that get the model's value where all cells have the same."""


class SweepFolder:
    """A folder for the images of a sweep.

    mark: write into each file that a model made it, see `io.mark`.
    sweep: with every value filled in that is the model's, and its seed.
    settings: of each cell, resolved, in the order of `sweep.cells`.
    paths: of the cells that are there, by their numbers.
    failed: why a cell has no image, by its number.
    safety: what the safety checker says of a cell, by its number, where it was asked.
    notes: which files have a cell's name and are not that cell, a sentence each.

    Raises:
        UsageError: a cell breaks a rule of the model, or two are the same image with it.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        sweep: Sweep,
        pipe: "Pipeline",
        *,
        mark: bool = True,
    ) -> None:
        self._folder, self._pipe = Path(folder), pipe
        self._mark = term_for(sweep.values.get("init_image"), mark)
        self._sources = (sweep.values.get("init_image"), sweep.values.get("mask_image"))
        digest = hashlib.sha256(json.dumps(sweep.to_dict()).encode()).hexdigest()[:16]
        self._seed_file = self._folder / f".sdpipe-{digest}.seed"
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
            sweep = sweep.with_values(seed=self._drawn_seed(sweep) if seed is None else seed)
        self.settings = self._resolved(sweep)
        self.sweep = self._filled(sweep)
        self._find()
        warn_unused_embeddings(pipe.components, self.settings)

    def draw(
        self,
        batch: int = 8,
        on_step: "Callable[[Step], object] | None" = None,
        on_wait: Callable[[], object] = lambda: time.sleep(1),
    ) -> Generator[int]:
        """Draws what is missing and yields the number of each cell when its file is there.

        What another process draws at the same time is waited for, and drawn here if that process
        ends without. A cell whose numbers overflow, or that memory is too small for, has no image;
        see `failed`.

        batch: images drawn at once, at most.
        on_step: called with every step.
        on_wait: called again and again while only cells of other processes are missing.

        Raises:
            SdpipeError: a file cannot be written.
        """
        alike: dict[ResolvedSettings, list[int]] = {}
        for i in self.missing:
            alike.setdefault(common_settings(self.settings[i]), []).append(i)
        yield from draw_jobs(
            self._pipe,
            self,
            alike.values(),
            self._folder,
            most=batch,
            on_step=on_step,
            on_wait=on_wait,
        )
        self._seed_file.unlink(missing_ok=True)

    @property
    def missing(self) -> list[int]:
        """The cells that have no image yet, and can have one."""
        done = self.paths.keys() | self.failed.keys()
        return [i for i in range(len(self.settings)) if i not in done]

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
        notes = grid_metadata(drawn, self.sweep, self.settings[0], self._pipe)
        for path in self._files("grid"):
            if carries(path, notes):
                return path
        return png.save(drawn, self._folder / "grid.png", notes, mark=self._mark)

    # What the engine asks, see `batch.engine.Jobs`.

    def settings_of(self, i: int) -> ResolvedSettings:
        """What cell i is drawn with."""
        return self.settings[i]

    def name_of(self, i: int) -> str:
        """The name of cell i."""
        return self._names[i]

    def canvas_of(self, i: int) -> Canvas | None:
        """The image that cell i begins with."""
        return prepare(self.settings[i], *load_images(*self._sources))

    def find(self, i: int) -> bool:
        """Whether cell i is there by now."""
        self._look(i)
        return i in self.paths

    def save(self, i: int, result: "Result", k: int) -> None:
        """Writes image k of a result as cell i."""
        if result.safety:
            self.safety[i] = result.safety[k].to_dict()
        path = self._path(self._names[i])
        notes = metadata_for(result, k)
        self.paths[i] = png.save(result.images[k], path, notes, mark=self._mark)

    def fail(self, i: int, error: Exception) -> None:
        """Notes why cell i has no image."""
        self.failed[i] = str(error)

    def _resolved(self, sweep: Sweep) -> list[ResolvedSettings]:
        """The settings of every cell with the model's own values, held against its rules."""
        rules = self._pipe.components.constraints
        levels = len(self._pipe.components.unet.config.block_out_channels)
        found: dict[ResolvedSettings, str] = {}
        for cell in sweep.cells:
            init, mask = self._sources
            values = {**cell.settings.to_dict(), "init_image": init, "mask_image": mask}
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
        keys = {settings_key(settings.to_dict()) for settings in self.settings}
        others = [reason for i in range(len(self.settings)) for reason in self._look(i, keys)]
        if others:
            more = f" (and so on: {len(others)} files)" if others[1:] else ""
            self.notes.append(
                f"{others[0]}{more}; what is there stays, and the cell goes beside it."
            )

    def _look(self, i: int, keys: Container[str] = ()) -> list[str]:
        """Looks for a cell. Where it is not there, says why the files of its name are others.

        keys: of the settings of all cells; a file that is another cell is not told of.
        """
        values, reasons = self.settings[i].to_dict(), []
        for path in self._files(self._names[i]):
            record = read_or_none(path)
            reason = mismatch(path, record, values, self._pipe)
            if reason is None:
                self.paths[i] = path
                if record is not None and record.safety is not None:
                    self.safety[i] = record.safety
                return []
            key = None if record is None else settings_key(record.values)
            if key not in keys or key == settings_key(values):
                reasons.append(f"{path} {reason}")
        return reasons

    def _drawn_seed(self, sweep: Sweep) -> int:
        """A random seed, the same for all processes that begin the same sweep here."""
        write_once(self._seed_file, str(secrets.randbelow(2**32)).encode())
        return int(self._seed_file.read_text(encoding="ascii"))

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
        return " · ".join([*shown, Path(str(self._pipe.components.model.name)).name])
