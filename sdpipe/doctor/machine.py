"""What the machine has: memory, processors, and room for pictures."""

import contextlib
import os
import shutil
from pathlib import Path

from sdpipe.doctor.finding import Finding, size
from sdpipe.errors import UsageError
from sdpipe.io import files

OUTPUTS = Path("outputs")  # where the command line writes if nothing else is asked for
V1_4_MEMORY = 3_000_000_000  # bytes that v1-4 takes in 16 bits; see benchmarks/v1_4_folder.py
PICTURE = 10_000_000  # bytes, more than a picture and its steps take


def memory() -> Finding:
    """How much memory is left, for the machine or for the container that this is in."""
    left = _left()
    if left is None:
        return Finding("memory", "ok", "cannot be told on this system")
    text, facts = f"{size(left)} free", {"free": left}
    if left < V1_4_MEMORY:
        text += f", and v1-4 takes about {size(V1_4_MEMORY)} in 16 bits"
        return Finding("memory", "note", text, "close what else uses it before v1-4", facts)
    return Finding("memory", "ok", text, facts=facts)


def processors() -> int:
    """How many processors this process may use, a container's share rounded up."""
    with contextlib.suppress(AttributeError):
        usable = len(os.sched_getaffinity(0))
        with contextlib.suppress(OSError, ValueError):
            quota, period = _control_group("cpu.max").split()
            return min(usable, -(-int(quota) // int(period)))  # "max" is no number: no limit
        return usable
    return os.cpu_count() or 1


def outputs() -> Finding:
    """Whether pictures can be written where they go if nothing else is asked for."""
    place = OUTPUTS.absolute()
    try:
        files.Destination(OUTPUTS, 1)
    except UsageError as error:
        return Finding("outputs", "problem", str(error), "--out FOLDER writes elsewhere")
    room = free(place)
    facts = {"folder": str(place), "free": room}
    if room < PICTURE:
        text = f"{place} has {size(room)} left"
        return Finding("outputs", "problem", text, "make room, or give another --out", facts)
    return Finding("outputs", "ok", f"{place} can be written, {size(room)} free", facts=facts)


def free(folder: Path) -> int:
    """The bytes that are free where a folder is, or will be."""
    there = next(f for f in (folder, *folder.parents) if f.exists())
    return shutil.disk_usage(there).free


def _left() -> int | None:
    """Bytes of memory that can be taken without swapping."""
    left = None
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        left = int(fields["MemAvailable"].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError):
        limit, used = _control_group("memory.max"), _control_group("memory.current")
        room = int(limit) - int(used)
        left = room if left is None else min(left, room)
    return left


def _control_group(name: str) -> str:
    """A limit of the container that this process is in: version 2 of Linux's control groups."""
    return Path("/sys/fs/cgroup", name).read_text(encoding="utf-8").strip()
