"""`sdpipe batch`: draws the jobs of a file, each exactly once, alone or beside other processes."""

import contextlib
import os
import sys
import time
import warnings
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from sdpipe.batch.shard import Shard
from sdpipe.cli import console, options
from sdpipe.cli.fallback import fall_back
from sdpipe.cli.groups import DeviceOptions, ModelOptions, SettingsOptions, SpeedOptions, grouped
from sdpipe.errors import SdpipeWarning, UsageError
from sdpipe.io.names import is_remote
from sdpipe.settings import DEFAULT_OF, IMAGE, OUTPUT, RULES

if TYPE_CHECKING:
    from sdpipe.batch.batch import Batch, Drawn
    from sdpipe.batch.cluster import Cluster
    from sdpipe.batch.plan import Plan
    from sdpipe.batch.rows import Rows

MAX_TOLD = 100  # bad rows that are told
EARLY = 1000  # rows that are checked before anything is loaded

SHARING = "Several processes"
CLUSTER = "On a cluster"


class JobOptions(SettingsOptions):
    """The settings that count for every row that says nothing else."""

    names = tuple(name for name in RULES if name not in ("prompt", "seed", "save_int"))


JobsFile = Annotated[
    str,
    typer.Argument(
        metavar="JOBS",
        help="A file with a row for each job, its prompt and settings by name: .jsonl, .csv or "
        ".parquet; - reads JSON lines from standard input.",
    ),
]
Out = Annotated[
    str,
    options.option(OUTPUT, "The folder to fill.", "--out", "-o", metavar="FOLDER"),
]
Seed = Annotated[
    int | None,
    options.option(
        IMAGE,
        "The base seed: a row without a seed gets one from it and its own number. Default: drawn "
        "once, and kept in the folder.",
        metavar="N",
        parser=RULES["seed"].parse,
    ),
]
Most = Annotated[
    int | None,
    options.whole(
        options.MODEL, "Images at once, at most. Default: as many as the device takes.", "--batch"
    ),
]
PerFolder = Annotated[
    int,
    options.whole(
        OUTPUT, "Where there are more images, they go into folders of N.", "--per-folder"
    ),
]
KeepGoing = Annotated[
    bool,
    options.flag(OUTPUT, "Draw the other rows where some cannot be drawn.", "--keep-going"),
]
ShardText = Annotated[
    str | None,
    options.option(
        SHARING,
        "Draw every COUNTth job; INDEX counts from 0. Default: RANK and WORLD_SIZE, or the ids of "
        "a SLURM array, where they are set.",
        "--shard",
        metavar="INDEX/COUNT",
    ),
]
Steal = Annotated[
    bool, options.flag(SHARING, "Then draw what nobody has drawn of the others.", "--steal")
]

RayAddress = Annotated[
    str | None,
    options.option(
        CLUSTER,
        "Draw on a Ray cluster, a pipeline for each GPU. Without an address: $RAY_ADDRESS, else "
        "the cluster of this machine, else a new one. --out is a folder that all nodes share, or "
        "a URL such as s3://bucket/folder.",
        "--ray",
        metavar="[ADDRESS]",
    ),
]
Cores = Annotated[
    int | None,
    options.whole(
        CLUSTER,
        "Cores of each pipeline, in place of a GPU. Default: all of the smallest node.",
        "--cores",
    ),
]


@grouped
def batch(
    jobs: JobsFile,
    *,
    settings: JobOptions,
    model: ModelOptions,
    device: DeviceOptions,
    speed: SpeedOptions,
    seed: Seed = None,
    most: Most = None,
    shard: ShardText = None,
    steal: Steal = False,
    ray: RayAddress = None,
    cores: Cores = None,
    out: Out = "outputs/batch",
    per_folder: PerFolder = 1000,
    format: options.Format = None,
    no_mark: options.NoMark = False,
    keep_going: KeepGoing = False,
    debug: options.Debug = False,
) -> int:
    """Draws the jobs of a file into a folder, each exactly once, and prints where each image is.

    A row has a prompt, and any setting by its name; options are the settings of rows that don't
    say. An id names the image, else the hash of the settings does. Stopped or killed, the same
    command goes on; several processes with the same command share the work.
    """
    from sdpipe.batch.plan import Model, Plan
    from sdpipe.batch.rows import Rows

    part = Shard.from_environment(os.environ) if shard is None else Shard.parse(shard)
    loaded, machine = model.to_kwargs(), {**device.to_kwargs(), **speed.to_kwargs()}
    given = {k: v for k, v in settings.values.items() if v != DEFAULT_OF[k]}
    _check_cluster(ray, cores, out, is_part=shard is not None or steal)
    if seed is not None:
        RULES["seed"].check("seed", seed)
    if fall_back(loaded, device.dtype, given):
        given = {k: v for k, v in given.items() if v is not None}
    with Rows(sys.stdin.buffer if jobs == "-" else jobs) as rows, warnings.catch_warnings():
        warnings.simplefilter("once", SdpipeWarning)
        if (rules := _rules(loaded, device.dtype)) is not None:
            first = Plan(rows, Model(rules, {}), given, 0, EARLY)
            if first.bad and not keep_going:
                _tell_bad(Plan(rows, Model(rules, {}), given, 0), keep_going)
        with contextlib.ExitStack() as stack:
            results = sys.stdout
            if ray is not None:  # which prints there what its actors die of
                stack.enter_context(contextlib.redirect_stdout(None))
            work = _load(
                rows,
                out,
                {**loaded, **machine},
                stack.enter_context(_cluster(ray, cores)) if ray is not None else None,
                results,
                defaults=given,
                seed=seed,
                per_folder=per_folder,
                format=format or "png",
                mark=not no_mark,
            )
            _tell_bad(work.plan, keep_going)
            return _draw(work, part if ray is None else Shard(), steal, most)


def _check_cluster(ray: str | None, cores: int | None, out: str, *, is_part: bool) -> None:
    """Refuses options that don't go together. Raises UsageError."""
    if ray is None and cores is not None:
        raise UsageError("--cores", "is for a cluster", "add --ray, or leave it out")
    if ray is None and is_remote(out):
        raise UsageError(f"--out {out}", "is no folder of this machine", "add --ray")
    if ray is not None and is_part:
        raise UsageError("--ray", "shares the jobs by itself", "leave out --shard and --steal")


def _cluster(ray: str, cores: int | None) -> "Cluster":
    from sdpipe.batch.cluster import Cluster

    def tell(what: str) -> None:
        console.print_status(f"waiting for a node that has {what} free ...")

    return Cluster(ray, cores=cores, on_wait=tell)


def _rules(loaded: dict[str, Any], dtype: str) -> dict[str, Any] | None:
    """What a model on this machine asks of settings, without torch; None if it isn't here."""
    from sdpipe.components import inspect_model

    if (sources := inspect_model(**loaded, dtype=dtype)) is None:
        return None
    return {**sources.constraints, "read_prompt": str}


def _load(
    rows: "Rows",
    out: str,
    loaded: dict[str, Any],
    cluster: "Cluster | None",
    results: TextIO,
    **options: Any,
) -> "Batch":
    def fail(job: str, error: Exception) -> None:
        console.print_status(f"error: {job}: {console.describe(error)}")

    def show(drawn: "Drawn") -> None:
        console.print_result(str(drawn.path), results)

    options |= {"on_saved": show, "on_failed": fail}
    if cluster is not None:
        from sdpipe.batch.cluster import ClusterBatch

        with console.status("loading the model on the cluster, and reading the jobs ..."):
            return ClusterBatch(cluster, loaded, rows, out, **options)
    with console.status("loading the model ..."):
        from sdpipe import Pipeline
        from sdpipe.batch.batch import Batch

        loaded["device"] = _own_device(loaded["device"])
        pipe = Pipeline(**loaded)
    with console.status("reading the jobs ..."):
        return Batch(pipe, rows, out, **options)


def _tell_bad(plan: "Plan", keep_going: bool) -> None:
    """Prints which rows cannot be drawn, and why. Raises UsageError, unless others may be."""
    for number, error in plan.bad[:MAX_TOLD]:
        console.print_status(f"error: {plan.rows.unit} {number}: {error}")
    if more := len(plan.bad[MAX_TOLD:]):
        console.print_status(f"error: so it is with {more} more.")
    if plan.bad and not keep_going:
        rows = f"{len(plan.bad)} rows" if plan.bad[1:] else "a row"
        remedy = "correct what is wrong, or draw the others with --keep-going"
        raise UsageError(plan.rows.name, f"has {rows} that cannot be drawn", remedy)


def _own_device(device: str) -> str:
    """The GPU of a process that a launcher has started as one of several on its machine."""
    import torch

    rank = os.environ.get("LOCAL_RANK", "")
    if device != "auto" or not rank.isdecimal() or not torch.cuda.is_available():
        return device
    return f"cuda:{int(rank) % torch.cuda.device_count()}"


def _draw(work: "Batch", shard: Shard, steal: bool, most: int | None) -> int:
    """Draws, says how far it came, and returns the exit status."""
    numbers = work.numbers(Shard() if steal else shard)
    total, before = len(numbers), len(numbers) - len(work.missing(numbers))
    if 0 < before < total:
        console.print_status(f"{before} of {_count(total)} are there already.")
    drawn, started = 0, time.monotonic()
    try:
        with console.image_bar(total, before) as move:

            def step(_: object) -> None:
                move(total - len(work.missing(numbers)), len(work.failed))

            with contextlib.closing(work.draw(shard, steal=steal, most=most, on_step=step)) as all_:
                for _ in all_:
                    drawn += 1
                    step(None)
    except KeyboardInterrupt:
        done = total - len(work.missing(numbers))
        console.print_status(f"{done} of {_count(total)} are done; the same command goes on.")
        raise
    done = total - len(work.missing(numbers))
    parts = [f"{drawn} drawn in {time.monotonic() - started:.1f} s"] if drawn else []
    parts += [f"{before} there before"] if before else []
    others = done - drawn - before
    parts += [f"{others} drawn by another process"] if others > 0 else []
    parts += [f"{len(work.failed)} without an image (see failed.jsonl)"] if work.failed else []
    bad = len(work.plan.bad)
    parts += [f"{bad} row{'s' * (bad > 1)} left out"] if bad else []
    console.print_status(f"{_count(total)}: {', '.join(parts) or 'none is left'}")
    return console.FAILED if work.failed or work.plan.bad else console.DONE


def _count(images: int) -> str:
    return "1 image" if images == 1 else f"{images} images"
