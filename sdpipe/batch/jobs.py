"""What the engine asks of jobs whose images are files of a folder; see `engine.Jobs`."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from sdpipe.batch.folder import BatchFolder
from sdpipe.batch.plan import Job
from sdpipe.canvas import Canvas, prepare
from sdpipe.io import png
from sdpipe.io.mark import term_for
from sdpipe.io.names import FORMATS
from sdpipe.metadata.save import metadata_for
from sdpipe.settings import ResolvedSettings

if TYPE_CHECKING:
    from sdpipe.pipeline import Result


class FolderJobs(ABC):
    """Jobs by their numbers, from 0.

    mark: write into each image that a model made it, see `io.mark`.

    done: which jobs are there, a byte each.
    failed: why a job has no image, by its number.
    """

    def __init__(self, folder: BatchFolder, count: int, mark: bool) -> None:
        self.folder, self._mark = folder, mark
        self.done = bytearray(count)
        self.failed: dict[int, str] = {}

    @abstractmethod
    def job(self, i: int) -> Job:
        """Job i."""

    @abstractmethod
    def row(self, i: int) -> int:
        """The number of the row of job i."""

    @abstractmethod
    def file_name(self, i: int) -> str:
        """The file of job i, in the folder."""

    def settings_of(self, i: int) -> ResolvedSettings:
        """What job i is drawn with."""
        return self.job(i).settings

    def name_of(self, i: int) -> str:
        """The id of job i, else its hash."""
        return self.job(i).name

    def canvas_of(self, i: int) -> Canvas | None:
        """The image that job i begins with."""
        template = self.job(i).template
        return prepare(template.settings, template.init, template.mask)

    def path(self, i: int) -> Path:
        """The file of job i."""
        return self.folder.path / self.file_name(i)

    def find(self, i: int) -> bool:
        """Whether the image of job i is there by now."""
        if not self.done[i] and self.folder.exists(path := self.path(i)):
            self.folder.check_is_job(path, self.job(i).digest)
            self.done[i] = 1
        return bool(self.done[i])

    def save(self, i: int, result: "Result", k: int) -> None:
        """Puts image k of a result in place as that of job i, and adds its line."""
        self.folder.check_is_there()
        path = self.path(i)
        term = term_for(result.settings[k].init_image, self._mark)
        data = png.encode(result.images[k], FORMATS[path.suffix], metadata_for(result, k), term)
        if self.folder.put(path, data):
            values = result.settings[k].to_dict()
            self.folder.describe(path, self.job(i).digest, data, values=values)
        self.done[i] = 1

    def fail(self, i: int, error: Exception) -> None:
        """Notes that job i has no image."""
        job, why = self.job(i), str(error)
        self.failed[i] = why
        self.folder.describe_failure(job.name, job.digest, self.row(i), job.own["prompt"], why)
