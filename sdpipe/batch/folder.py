"""The folder of a batch: which of its jobs are there, and the data set that they become.

    FOLDER/0a1b....png            an image by the id of its job, else by its hash
    FOLDER/00012/0a1b....png      where there are more than `per_folder`
    FOLDER/metadata.jsonl         a line for each: file_name, text, seed, sha256, job, settings
    FOLDER/failed.jsonl           a line for each job that has no image, and why
    FOLDER/.sdpipe/               the base seed, claims, and the lines that every process has added

An image is there if its file has the name of the job, and a line says that this file is this job's;
a file without a line is opened, and its own metadata must say so. A process appends its lines to a
file of its own as soon as an image is in place, and merges those of all when it ends.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock

from sdpipe.batch.identity import common_text, job_digest, name_key
from sdpipe.batch.lines import read_lines, to_line
from sdpipe.batch.plan import Plan
from sdpipe.errors import SdpipeError, UsageError, warn
from sdpipe.io.files import atomic_write, write_error, write_once
from sdpipe.io.names import FORMATS
from sdpipe.metadata.read import read_record

STATE = ".sdpipe"
BLOCK = 2**13  # files or lines that are looked up at once


class BatchFolder:
    """A folder that a batch is drawn into.

    Raises:
        UsageError: it is a file, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.state = self.path / STATE
        try:
            self.state.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{self.path}", f"cannot be written: {error.strerror}", "choose another folder"
            ) from error
        self._lines: IO[bytes] | None = None

    def base_seed(self, seed: int | None = None) -> int:
        """The seed from which rows without one get theirs: kept here, and the same for everybody.

        Raises:
            UsageError: `seed` is another than the folder's.
        """
        path = self.state / "seed"
        if not self.exists(path):  # so that a folder that is done may be read-only
            self.put(path, str(secrets.randbelow(2**32) if seed is None else seed).encode())
        kept = int(self.read(path))
        if seed not in (None, kept):
            raise UsageError(
                f"seed={seed}",
                f"is not the base seed of {self.path}, which is {kept}",
                "leave it out, or choose another folder",
            )
        return kept

    def find(self, plan: Plan, suffix: str = ".png") -> bytearray:
        """Which jobs of a plan are there: a byte each, 1 or 0.

        suffix: of the files that are to be drawn; warns of images that are there with another.

        Raises:
            UsageError: images of other jobs are there.
        """
        described, others = self._described(plan)
        done = bytearray(len(plan))
        suffixes = Counter[str]()
        for folder, names in self._listed():
            keys = [_key(name) for name in names]
            for name, key, i in zip(names, keys, plan.find(b"".join(keys)).tolist(), strict=True):
                if i < 0:
                    if key in others:
                        raise UsageError(
                            f"{folder / name}",
                            f"is no job of {plan.rows.name}, but of a batch that was drawn here "
                            "before",
                            "choose another folder, or give the jobs that it was drawn from",
                        )
                    continue
                if not described[i]:  # as where a process was killed between the two
                    self.check_is_job(folder / name, plan.digests[i].tobytes())
                    self.describe(folder / name, plan.digests[i].tobytes())
                done[i] = 1
                if not name.endswith(suffix):
                    suffixes[os.path.splitext(name)[1]] += 1
        for other, count in sorted(suffixes.items()):
            images = "1 image is" if count == 1 else f"{count} images are"
            warn(f"{images} there as {other}, and not drawn again as {suffix}.")
        return done

    def check_is_job(self, path: Path, digest: bytes) -> None:
        """Refuses a file that has the name of a job and is not its image.

        Raises:
            UsageError: its metadata says something else, or nothing.
        """
        with contextlib.suppress(SdpipeError), self.local(path) as file:
            record = read_record(file)
            model = {
                **record.model,
                "parts": dict(record.parts),
                "loras": list(map(dict, record.loras)),
                "embeddings": list(map(dict, record.embeddings)),
            }
            if job_digest(common_text(model, record.values), record.values) == digest:
                return
        raise UsageError(
            f"{path}",
            "has the name of a job and is not its image",
            "move it away, or choose another folder",
        )

    def describe(self, path: Path, digest: bytes, data: bytes | None = None, **more: Any) -> None:
        """Adds the line of an image that is in place. `data` are the bytes of its file."""
        if data is None:
            data = self.read(path)
            with self.local(path) as file:
                more["values"] = dict(read_record(file).values)
        values = more["values"]
        self._add(
            {
                "file_name": path.relative_to(self.path).as_posix(),
                "job": digest.hex(),
                "text": values["prompt"],
                "seed": values["seed"],
                "sha256": hashlib.sha256(data).hexdigest(),
                "settings": values,
            }
        )

    def describe_failure(self, name: str, digest: bytes, row: int, prompt: str, why: str) -> None:
        """Adds the line of a job that has no image."""
        line = {"id": name, "row": row, "text": prompt, "reason": why, "job": digest.hex()}
        self._add({"failed": line})

    def check_is_there(self) -> None:
        """Refuses to go on where the folder has gone away. Raises SdpipeError."""
        if not self.state.is_dir():
            raise SdpipeError(
                f"{self.path}", "is no longer there", "bring it back; the same command goes on"
            )

    def merge(self, plan: Plan, done: bytearray) -> None:
        """Writes metadata.jsonl and failed.jsonl from the lines of all processes.

        done: which jobs are known to be there; gets what others drew.

        Raises:
            SdpipeError: they cannot be written.
        """
        self.check_is_there()
        self.close()
        if not self._sources()[1:]:  # nobody has added a line
            return
        with self._lock():
            *added, metadata = sources = self._sources()
            failed = self.path / "failed.jsonl"
            written, failures = bytearray(len(plan)), dict[int, dict[str, Any]]()
            with self._write(metadata) as file:
                for name, job, raw in self._read_lines(sources):
                    i = int(plan.find(_key(name))[0])
                    if i < 0 or written[i]:
                        continue
                    if job is None:
                        failures[i] = json.loads(raw)["failed"]
                    elif done[i] or self.exists(self.path / name):
                        done[i] = written[i] = 1
                        file.write(raw)
            left = [failure for i, failure in sorted(failures.items()) if not written[i]]
            if left:
                with self._write(failed) as file:
                    file.writelines(map(to_line, left))
            else:
                self._remove([failed])
            if all(written):
                self._remove([*added, *self._claims()])

    def put(self, path: Path, data: bytes) -> bool:
        """Puts a file in place, whole, unless there is one; returns whether it did."""
        return write_once(path, data, "the same command goes on")

    def read(self, path: Path) -> bytes:
        """The bytes of a file."""
        return path.read_bytes()

    def exists(self, path: Path) -> bool:
        """Whether there is a file, or anything else of its name."""
        return os.path.lexists(path)

    def local(self, path: Path) -> AbstractContextManager[Path]:
        """A file as one of this machine."""
        return nullcontext(path)

    def _lock(self) -> AbstractContextManager[object]:
        return FileLock(self.state / "merge.lock")

    def _write(self, path: Path) -> AbstractContextManager[IO[bytes]]:
        return atomic_write(path, "the same command goes on")

    def _claims(self) -> Iterable[Path]:
        return self.state.glob(".*.claim")  # of killed processes, too

    def _remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)

    def _open(self, path: Path) -> IO[bytes]:
        return path.open("rb")

    def _described(self, plan: Plan) -> tuple[bytearray, set[bytes]]:
        """Which jobs have a line that is theirs, and the names of other jobs."""
        described, others = bytearray(len(plan)), set[bytes]()
        marks = np.frombuffer(described, np.uint8)
        lines = self._read_lines(self._sources())
        images = ((_key(name), job) for name, job, _ in lines if job is not None)
        while block := list(islice(images, BLOCK)):
            keys, jobs = zip(*block, strict=True)
            found = plan.find(b"".join(keys))
            wanted = np.frombuffer(bytes.fromhex("".join(jobs)), np.uint8).reshape(-1, 32)
            marks[found[(found >= 0) & (plan.digests[found] == wanted).all(1)]] = 1
            others.update(keys[k] for k in np.flatnonzero(found < 0))
        return described, others

    def _listed(self) -> Iterator[tuple[Path, list[str]]]:
        """The images of the folder and of its numbered folders, in blocks."""
        folders = [self.path]
        for folder in folders:
            names = []
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name
                    if name[0] != "." and os.path.splitext(name)[1] in FORMATS:
                        names.append(name)
                    elif folder == self.path and re.fullmatch(r"\d{5,}", name):
                        folders.append(folder / name)
                    if len(names) >= BLOCK:
                        yield folder, names
                        names = []
            yield folder, names

    def _sources(self) -> list[Path]:
        """The lines of processes, the last first, then the merged file."""
        lines = sorted(self.state.glob("*.jsonl"), key=lambda path: -path.stat().st_mtime_ns)
        return [*lines, self.path / "metadata.jsonl"]

    def _add(self, line: dict[str, Any]) -> None:
        path = self.state / f"{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        try:
            if self._lines is None:
                self._lines = path.open("ab", buffering=0)
            self._lines.write(to_line(line))
        except OSError as error:
            raise write_error(path, error, "the same command goes on") from error

    def close(self) -> None:
        """Ends the file of lines that this process has added."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def _read_lines(self, paths: list[Path]) -> Iterator[tuple[str, str | None, bytes]]:
        """The lines of files, see `read_lines`."""
        for path in paths:
            with contextlib.suppress(FileNotFoundError), self._open(path) as file:
                yield from read_lines(file)


def _key(name: str) -> bytes:
    """The `name_key` of a file."""
    return name_key(name.rpartition("/")[2].rpartition(".")[0])
