"""What an actor of a cluster does: it draws parts of a batch with the engine of one process."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from sdpipe.batch.engine import draw_jobs
from sdpipe.batch.folder import BatchFolder
from sdpipe.batch.jobs import FolderJobs
from sdpipe.batch.plan import Job, Model
from sdpipe.batch.remote import open_folder
from sdpipe.errors import SdpipeError
from sdpipe.io.names import is_remote


@dataclass(frozen=True)
class Part:
    """Jobs that an actor draws: alike in all but prompts and seeds.

    numbers, rows: of the jobs in the batch, and of their rows.
    names: of their files in the folder.
    """

    numbers: tuple[int, ...]
    rows: tuple[int, ...]
    names: tuple[str, ...]
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Answer:
    """What became of a part: jobs by their numbers in the batch.

    error: what ends the whole, such as a full disk.
    """

    done: tuple[int, ...]
    failed: Mapping[int, str]
    error: SdpipeError | None


class PartJobs(FolderJobs):
    """The jobs of a part, by their numbers in it."""

    def __init__(self, folder: BatchFolder, part: Part, mark: bool) -> None:
        super().__init__(folder, len(part.jobs), mark)
        self._part = part

    def job(self, i: int) -> Job:
        """Job i."""
        return self._part.jobs[i]

    def row(self, i: int) -> int:
        """The number of the row of job i."""
        return self._part.rows[i]

    def file_name(self, i: int) -> str:
        """The file of job i, in the folder."""
        return self._part.names[i]

    def find(self, i: int) -> bool:
        """Whether the image of job i is there by now, as of an actor that died before its lines."""
        was_done = self.done[i]
        if (is_there := super().find(i)) and not was_done:
            self.folder.describe(self.path(i), self.job(i).digest)
        return is_there


class Artist:
    """An actor: a pipeline, which draws parts.

    loaded: the arguments of `Pipeline`.
    out: the folder of the batch.
    mark: see `FolderJobs`.
    most: images drawn at once, at most.
    """

    def __init__(self, loaded: Mapping[str, Any], out: str, mark: bool, most: int | None) -> None:
        self._pipe = _load(loaded)
        self._out, self._mark, self._most = out, mark, most

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, list[Answer]]:
        """Draws a part, of which what is there already is left out."""
        return {"item": [self._draw(part) for part in batch["item"]]}

    def _draw(self, part: Part) -> Answer:
        numbers, error = part.numbers, None
        done: bytearray = bytearray()
        failed: dict[int, str] = {}
        try:
            if not is_remote(self._out) and not Path(self._out).is_dir():
                raise not_shared(self._out)
            jobs = PartJobs(open_folder(self._out), part, self._mark)
            done, failed = jobs.done, jobs.failed
            try:
                # Ray gives a part to one actor alone: claims among actors would be idle.
                with tempfile.TemporaryDirectory() as claims:
                    group = range(len(numbers))
                    for _ in draw_jobs(self._pipe, jobs, [group], Path(claims), most=self._most):
                        pass
            finally:
                jobs.folder.close()
        except SdpipeError as raised:
            error = raised
        return Answer(
            tuple(numbers[k] for k, is_done in enumerate(done) if is_done),
            {numbers[k]: why for k, why in failed.items()},
            error,
        )


def _load(loaded: Mapping[str, Any]) -> Any:
    from sdpipe.pipeline import Pipeline

    return Pipeline(**loaded)


def inspect(loaded: Mapping[str, Any]) -> Model:
    """What planning asks of a model that is loaded here."""
    return Model.of(_load(loaded).components)


def not_shared(out: str) -> SdpipeError:
    """The error of a folder that only some nodes see."""
    return SdpipeError(
        out, "is not on all nodes", "choose a folder that they share, or a URL such as s3://..."
    )
