"""Draws the jobs of a batch on a Ray cluster: the one module that imports Ray.

    with Cluster() as cluster, Rows("jobs.jsonl") as rows:
        loaded = {"model": "emoji"}
        batch = ClusterBatch(cluster, loaded, rows, "s3://bucket/apples")
        for drawn in batch.draw(Shard()):
            print(drawn.path)

The driver plans the jobs and hands them out in parts, as a Ray data set. Each actor of a pool has a
pipeline, and draws a part with the engine of one process. Where an actor or a node dies, Ray gives
its part to another, which draws what of it is not there.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from sdpipe.batch.artist import Answer, Artist, Part, inspect, not_shared
from sdpipe.batch.batch import Batch, Drawn
from sdpipe.batch.engine import STALE
from sdpipe.batch.plan import Model
from sdpipe.batch.rows import Rows
from sdpipe.batch.shard import Shard
from sdpipe.errors import SdpipeError, UsageError
from sdpipe.io.names import is_remote

if TYPE_CHECKING:
    from sdpipe.denoise import Step

PART = 64  # jobs that an actor is given at once, at most
PARTS_OF_ACTOR = 4  # where there are fewer jobs, each actor gets so many parts
PARTS = 2000  # of a data set: what is in the cluster's memory at once
RETRIES = 5  # of a part whose actor dies


class Cluster:
    """A Ray cluster that is there, or one that is started on this machine for the time being.

    address: of a cluster; "auto" is $RAY_ADDRESS, else the one of this machine, else a new one.
    cores: of each pipeline where it has no GPU; None is all of the smallest node.
    on_wait: called with what the cluster has not yet.

    Raises:
        UsageError: Ray is missing.
        SdpipeError: the cluster cannot be reached.
    """

    def __init__(
        self,
        address: str = "auto",
        *,
        cores: int | None = None,
        on_wait: Callable[[str], object] = lambda text: None,
    ) -> None:
        if cores is not None and cores < 1:
            raise UsageError(f"cores={cores}", "is out of range", "use 1 or more")
        self._address, self._cores, self._on_wait = address, cores, on_wait

    def __enter__(self) -> Self:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise UsageError("--ray", "needs Ray", 'pip install "sdpipe[ray]"') from error
        self.ray: Any = ray
        address = None if self._address == "auto" else self._address
        try:
            ray.init(
                address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).split("\n")[0].rstrip(".")
            remedy = "start one with ray start --head, or leave the address out"
            raise SdpipeError(
                f"the Ray cluster {self._address!r}", f"cannot be reached ({reason})", remedy
            ) from error
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.max_errored_blocks = -1  # an actor that dies again and again stops no other
        return self

    def __exit__(self, *error: object) -> None:
        self.ray.shutdown()

    def resources(self, device: str) -> dict[str, float]:
        """What a pipeline asks for: a GPU where there are some, else cores."""
        has_gpus = self.ray.cluster_resources().get("GPU", 0) > 0
        if device.startswith("cuda") or (device == "auto" and self._cores is None and has_gpus):
            return {"num_gpus": 1}
        nodes = [node["Resources"].get("CPU", 0) for node in self.ray.nodes() if node["Alive"]]
        return {"num_cpus": self._cores or min((int(n) for n in nodes if n >= 1), default=1)}

    def room(self, resources: Mapping[str, float]) -> int:
        """How many pipelines the nodes that are there take."""
        kind, number = _asked(resources)
        nodes = [node["Resources"].get(kind, 0) for node in self.ray.nodes() if node["Alive"]]
        return max(1, sum(int(n // number) for n in nodes))

    def inspect(self, loaded: Mapping[str, Any], resources: Mapping[str, float]) -> Model:
        """What planning asks of a model, from a machine that draws.

        Raises:
            SdpipeError: the model cannot be loaded there.
        """
        kind, number = _asked(resources)
        if self.ray.available_resources().get(kind, 0) < number:
            self._on_wait(f"{number:g} {kind}{'s' * (number > 1)}")
        with _own_errors(self.ray):
            task = self.ray.remote(**resources)(inspect)
            return cast(Model, self.ray.get(task.remote(dict(loaded))))

    def draw(
        self,
        parts: Iterator["Part"],
        resources: Mapping[str, float],
        options: Mapping[str, Any],
    ) -> Iterator["Answer"]:
        """Draws parts, in any order, and yields what became of each.

        options: of `Artist`.
        """
        data = self.ray.data
        while window := list(islice(parts, PARTS)):
            pool = data.ActorPoolStrategy(
                min_size=1,
                max_size=len(window),
                initial_size=min(len(window), self.room(resources)),
                max_tasks_in_flight_per_actor=2,
            )
            answers = data.from_items(window, override_num_blocks=len(window)).map_batches(
                Artist,
                fn_constructor_kwargs=dict(options),
                batch_size=1,
                compute=pool,
                ray_remote_args_fn=lambda: {"max_task_retries": RETRIES},
                **resources,
            )
            with _own_errors(self.ray):
                for row in answers.iter_rows():
                    yield row["item"]


class ClusterBatch(Batch):
    """A `Batch` that a cluster draws.

    loaded: the arguments of `Pipeline`.
    options: of `Batch`.

    Raises:
        UsageError: as `Batch`.
        SdpipeError: the model cannot be loaded.
    """

    def __init__(
        self,
        cluster: Cluster,
        loaded: Mapping[str, Any],
        rows: Rows,
        out: str | os.PathLike[str],
        **options: Any,
    ) -> None:
        self._cluster, self._loaded = cluster, dict(loaded)
        self._out = os.fspath(out) if is_remote(out) else os.path.abspath(out)
        self._resources = cluster.resources(self._loaded.get("device", "auto"))
        super().__init__(cluster.inspect(self._loaded, self._resources), rows, out, **options)

    def draw(
        self,
        shard: Shard,
        *,
        steal: bool = False,
        most: int | None = None,
        on_step: "Callable[[Step], object] | None" = None,
        on_wait: Callable[[], object] = lambda: None,
        stale: float = STALE,
    ) -> Generator[Drawn]:
        """Draws the jobs that are missing, and yields those of a part when it is drawn."""
        options = {"loaded": self._loaded, "out": self._out, "mark": self._mark, "most": most}
        missing = self.missing(self.numbers(shard))
        with self._merging():
            while len(missing):
                answers = self._cluster.draw(self._parts(missing), self._resources, options)
                with contextlib.closing(cast(Generator[Answer], answers)):
                    for answer in answers:
                        yield from self._note(answer)
                        if answer.error is not None:
                            raise answer.error
                left = []
                for i in missing.tolist():
                    if self.done[i] or i in self.failed:
                        continue
                    if self.find(i):  # of an actor that died before its lines and its answer
                        self.folder.describe(self.path(i), self.job(i).digest)
                        yield from self._note(Answer((i,), {}, None))
                    else:
                        left.append(i)
                if len(left) == len(missing):  # handing them out again would not help
                    for i in left:
                        why = f"its actor died {RETRIES + 1} times; draw it alone to see why"
                        self.fail(i, SdpipeError(why))
                    break
                missing = np.array(left, np.int64)

    def _note(self, answer: Answer) -> Iterator[Drawn]:
        for i in answer.done:
            if not is_remote(self._out) and not self.folder.exists(self.path(i)):
                raise not_shared(self._out)
            self.done[i] = 1
            self.tell_saved(i)
            yield self.drawn(i)
        for i, why in answer.failed.items():
            self.failed[i] = why
            self.tell_failed(i, SdpipeError(why))

    def _parts(self, missing: NDArray[np.int64]) -> Iterator[Part]:
        actors = self._cluster.room(self._resources)
        size = min(PART, max(1, len(missing) // (actors * PARTS_OF_ACTOR)))
        for group in self.plan.groups(missing):
            for at in range(0, len(group), size):
                numbers = tuple(group[at : at + size].tolist())
                yield Part(
                    numbers,
                    tuple(self.row(i) for i in numbers),
                    tuple(self.file_name(i) for i in numbers),
                    tuple(self.job(i) for i in numbers),
                )


def _asked(resources: Mapping[str, float]) -> tuple[str, float]:
    """What a pipeline asks for, as nodes call it, and how much."""
    ((name, number),) = resources.items()
    return {"num_gpus": "GPU", "num_cpus": "CPU"}[name], number


@contextlib.contextmanager
def _own_errors(ray: Any) -> Iterator[None]:
    """Raises what a task raised of ours as it was there, and Ray's own errors in a sentence."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, SdpipeError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if isinstance(cause, SdpipeError):
            raise type(cause)(cause.value, cause.rule, cause.remedy) from None
        reason = str(error).strip().split("\n")[-1].rstrip(".")
        raise SdpipeError("the Ray cluster", f"cannot draw ({reason})") from error
