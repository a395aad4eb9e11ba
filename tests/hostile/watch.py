"""Runs attacks in a process of its own, bounded in memory, and watches that it goes on.

    python tests/hostile/watch.py                  # the long run: `make test-hostile`
    python tests/hostile/watch.py weights 1234     # one file again: its kind and its seed

Each attack makes a hostile thing from its seed and hands it to sdpipe. What may come of it: it is
read, drawn, or refused by one SdpipeError. Another exception, no end, or more memory than
`MEMORY` is a failure, told with the seed.
"""

import collections
import contextlib
import os
import resource
import selectors
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

MEMORY = 2**30  # bytes beyond those that the process has at the start
MOST_FAILURES = 50
SILENCE = 120  # seconds without a sign of life after which it hangs
ROUNDS = {
    "hub": 200, "texts": 300, "metadata": 200, "weights": 1500, "images": 2000,
    "configurations": 600,
}  # fmt: skip
"""The seeds of each kind in the long run."""

Job = tuple[str, int]


def check_message(text: str) -> None:
    """A few sentences that a terminal can show: no line breaks, no control, no megabytes."""
    from sdpipe.io.encoding import escape_control

    shown = escape_control(text)
    assert 0 < len(shown) < 1200, len(shown)
    assert "Traceback" not in shown
    assert "not enough memory" not in shown
    assert "more memory than is here" not in shown


def attack(jobs: Iterable[Job], say: Callable[[str], object], *, draw: bool) -> None:
    """Makes and hands over one thing after the other; says what comes of each."""
    from hostile.kinds import KINDS

    from sdpipe.errors import SdpipeError

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        handlers = {kind: KINDS[kind](Path(folder), draw) for kind, _ in ROUNDS.items()}
        status = Path("/proc/self/status").read_text()
        used = next(int(line.split()[1]) for line in status.splitlines() if "VmData" in line)
        resource.setrlimit(resource.RLIMIT_DATA, (used * 1024 + MEMORY,) * 2)
        warnings.simplefilter("ignore")
        for kind, seed in jobs:
            say(f"start {kind} {seed}")
            try:
                outcome = handlers[kind](seed)
            except SdpipeError as error:
                try:
                    check_message(str(error))
                    outcome = "refused"
                except AssertionError:
                    outcome = f"FAILED message: {ascii(str(error))[:300]}"
            except BaseException as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                what = f"{type(error).__name__}: {ascii(str(error))[:200]}"
                outcome = f"FAILED {what} at {where.filename}:{where.lineno}"
            say(f"end {kind} {outcome}")
        say(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}")


def watch(jobs: list[Job], *, draw: bool) -> tuple[collections.Counter[tuple[str, str]], list[str]]:
    """The number of outcomes by kind, and the failures. A process that hangs or dies is replaced.

    draw: load and draw with every configuration and every file of weights that is accepted.
    """
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    failures: list[str] = []
    peak = 0
    while jobs and len(failures) < MOST_FAILURES:
        process, reader = _start(jobs, draw)
        done, current = 0, jobs[0]
        for line in _lines(reader):
            word, _, rest = line.partition(" ")
            if word == "start":
                kind, _, seed = rest.partition(" ")
                current = (kind, int(seed))
            elif word == "end":
                kind, _, outcome = rest.partition(" ")
                done += 1
                if outcome.startswith("FAILED"):
                    failures.append(f"{kind} {current[1]}: {outcome}")
                counts[kind, outcome.split()[0]] += 1
            elif word == "peak":
                peak = max(peak, int(rest))
        os.close(reader)
        os.kill(process, signal.SIGKILL)  # it may have ended, but has not been waited for
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if done < len(jobs):
            failures.append(f"{current[0]} {current[1]}: FAILED hangs or dies ({status})")
            done += 1
        jobs = jobs[done:]
    counts["MiB", "peak"] = peak
    return counts, failures


def _start(jobs: list[Job], draw: bool) -> tuple[int, int]:
    """A fork of this process that attacks: its number, and where to read what it says."""
    reader, writer = os.pipe()
    with warnings.catch_warnings(action="ignore"):  # of threads, which do not come along
        pid = os.fork()
    if pid != 0:
        os.close(writer)
        return pid, reader
    status = 1
    try:
        os.close(reader)
        attack(jobs, lambda line: os.write(writer, f"{line}\n".encode()), draw=draw)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _lines(reader: int) -> Iterator[str]:
    """What a process says until it ends, or says nothing for `SILENCE` seconds."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        while selector.select(SILENCE) and (block := os.read(reader, 2**16)):
            *lines, rest = (rest + block).split(b"\n")
            yield from (line.decode() for line in lines)


def main() -> None:
    if len(sys.argv) == 3:
        jobs = [(sys.argv[1], int(sys.argv[2]))]
    else:
        kinds = sys.argv[1:] or list(ROUNDS)
        jobs = [(kind, seed) for kind in kinds for seed in range(ROUNDS[kind])]
    began = time.time()
    counts, failures = watch(jobs, draw=True)
    for (kind, outcome), number in sorted(counts.items()):
        print(f"{kind:16} {outcome:10} {number}")
    print(*failures, f"{time.time() - began:.0f} s", sep="\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
