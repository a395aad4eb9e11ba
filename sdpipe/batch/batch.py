"""`run_batch`: draws the jobs of a file into a folder, each exactly once.

from sdpipe import Pipeline
from sdpipe.batch import run_batch

for drawn in run_batch(Pipeline("emoji"), "jobs.jsonl", "out"):
    print(drawn.path)
"""

import contextlib
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdpipe.batch.engine import STALE, draw_jobs
from sdpipe.batch.jobs import FolderJobs
from sdpipe.batch.plan import Job, Model, Plan, check_rows
from sdpipe.batch.remote import open_folder
from sdpipe.batch.rows import Rows, Source
from sdpipe.batch.shard import Shard
from sdpipe.errors import SdpipeError, UsageError
from sdpipe.io.names import FOLDER_FORMATS, is_remote
from sdpipe.settings import ResolvedSettings
from sdpipe.values import check_choice

if TYPE_CHECKING:
    from sdpipe.denoise import Step
    from sdpipe.pipeline import Pipeline, Result

PER_FOLDER = 1000


@dataclass(frozen=True)
class Drawn:
    """An image that is in place: its id, its row, its file, and what it was drawn with."""

    id: str
    row: int
    path: Path
    settings: ResolvedSettings


def run_batch(
    pipeline: "Pipeline",
    jobs: Source,
    out: str | os.PathLike[str],
    *,
    defaults: Mapping[str, Any] | None = None,
    seed: int | None = None,
    shard: Shard | None = None,
    steal: bool = False,
    most: int | None = None,
    per_folder: int = PER_FOLDER,
    format: str = "png",
    mark: bool = True,
    keep_going: bool = False,
    on_step: "Callable[[Step], object] | None" = None,
) -> Iterator[Drawn]:
    """Draws jobs into a folder, and yields each image that was drawn when it is in place.

    Jobs whose images are there are done; what other processes draw meanwhile is not drawn here.

    jobs: a .jsonl, .csv or .parquet file, a stream of JSON lines, or mappings: settings by their
        names, and "id", which names the file.
    defaults: settings of all rows that say nothing else.
    seed: of the folder, from which rows without a seed get theirs; None draws one, once.
    shard: the part to draw; with `steal`, then what nobody has drawn of the others.
    most: images drawn at once, at most; None is as many as the device takes.
    per_folder: where there are more jobs, they go into folders of so many.
    format: "png", "webp" or "jpg".
    mark: write into each image that a model made it, see `io.mark`.
    keep_going: draw the others where rows cannot be drawn.
    on_step: called with every step.

    Raises:
        UsageError: rows break rules, each named with its number and why; or the folder has images
            of other jobs.
        SdpipeError: an image cannot be written.
    """
    if is_remote(out):
        raise UsageError(str(out), "is no folder of this machine", "use ClusterBatch for URLs")
    with Rows(jobs) as rows:
        batch = Batch(
            pipeline,
            rows,
            out,
            defaults=defaults,
            seed=seed,
            format=format,
            mark=mark,
            per_folder=per_folder,
        )
        if not keep_going:
            check_rows(batch.plan)
        yield from batch.draw(shard or Shard(), steal=steal, most=most, on_step=on_step)


class Batch(FolderJobs):
    """The jobs of some rows, which the engine draws; the arguments are those of `run_batch`.

    pipeline: what draws them; a `Model` where it is elsewhere, see `cluster`.
    on_saved, on_failed: called when an image is in place, and for a job that has none.

    Raises:
        UsageError: there is no job, or the folder has images of others.
    """

    def __init__(
        self,
        pipeline: "Pipeline | Model",
        rows: Rows,
        out: str | os.PathLike[str],
        *,
        defaults: Mapping[str, Any] | None = None,
        seed: int | None = None,
        per_folder: int = PER_FOLDER,
        format: str = "png",
        mark: bool = True,
        on_saved: Callable[[Drawn], object] | None = None,
        on_failed: Callable[[str, Exception], object] | None = None,
    ) -> None:
        check_choice("format", format, FOLDER_FORMATS)
        if per_folder < 1:
            raise UsageError(f"per_folder={per_folder}", "is out of range", "use 1 or more")
        self._pipe, self._format, self._per_folder = pipeline, format, per_folder
        self._on_saved, self._on_failed = on_saved, on_failed
        folder = open_folder(out)
        model = pipeline if isinstance(pipeline, Model) else Model.of(pipeline.components)
        self.plan = Plan(rows, model, defaults or {}, folder.base_seed(seed))
        super().__init__(folder, len(self.plan), mark)
        self.done = folder.find(self.plan, f".{format}")
        self._job = lru_cache(4096)(self.plan.job)

    def draw(
        self,
        shard: Shard,
        *,
        steal: bool = False,
        most: int | None = None,
        on_step: "Callable[[Step], object] | None" = None,
        on_wait: Callable[[], object] = lambda: time.sleep(1),
        stale: float = STALE,
    ) -> Generator[Drawn]:
        """Draws a shard's jobs, then with `steal` what is left of the others; see `draw_jobs`."""
        if most is not None and most < 1:
            raise UsageError(f"batch={most}", "is out of range", "draw 1 image or more at once")
        assert not isinstance(self._pipe, Model)
        numbers = self.numbers(shard)
        parts = [numbers]
        if steal:
            parts.append(np.setdiff1d(np.arange(len(self.plan)), numbers))
        with self._merging():
            for part in parts:
                groups = self.plan.groups(self.missing(part))
                for i in draw_jobs(
                    self._pipe,
                    self,
                    groups,
                    self.folder.state,
                    most=most,
                    on_step=on_step,
                    on_wait=on_wait,
                    stale=stale,
                ):
                    yield self.drawn(i)

    @contextlib.contextmanager
    def _merging(self) -> Iterator[None]:
        """Merges the lines of all processes when the block ends, however it ends."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(SdpipeError):  # the first error is the one to tell
                self.folder.merge(self.plan, self.done)
            raise
        self.folder.merge(self.plan, self.done)

    def numbers(self, shard: Shard) -> NDArray[np.int64]:
        """The jobs of a shard."""
        return np.arange(shard.index, len(self.plan), shard.count)

    def missing(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of some jobs that are not there."""
        return numbers[np.frombuffer(self.done, np.uint8)[numbers] == 0]

    def job(self, i: int) -> Job:
        """Job i, from its row. Raises SdpipeError, see `Plan.job`."""
        return self._job(i)

    def row(self, i: int) -> int:
        """The number of the row of job i."""
        return self.plan.row(i)

    def file_name(self, i: int) -> str:
        """The file of job i, in the folder."""
        name = f"{self.name_of(i)}.{self._format}"
        return f"{i // self._per_folder:05}/{name}" if len(self) > self._per_folder else name

    def __len__(self) -> int:
        return len(self.plan)

    def save(self, i: int, result: "Result", k: int) -> None:
        """Puts image k of a result in place as that of job i, and adds its line."""
        super().save(i, result, k)
        self.tell_saved(i)

    def fail(self, i: int, error: Exception) -> None:
        """Notes that job i has no image."""
        super().fail(i, error)
        self.tell_failed(i, error)

    def tell_saved(self, i: int) -> None:
        """Tells that the image of job i is in place."""
        if self._on_saved is not None:
            self._on_saved(self.drawn(i))

    def tell_failed(self, i: int, error: Exception) -> None:
        """Tells that job i has no image."""
        if self._on_failed is not None:
            prompt = self.job(i).own["prompt"]
            self._on_failed(f"{self.plan.rows.unit} {self.row(i)}, {prompt!r}", error)

    def drawn(self, i: int) -> Drawn:
        """What job i is once its image is in place."""
        return Drawn(self.name_of(i), self.row(i), self.path(i), self.settings_of(i))
