"""How fast `sdpipe serve` answers, alone and many clients at once, and what it keeps of memory.

    python benchmarks/serve.py                     # all, as it stands in README.md
    python benchmarks/serve.py --only growth --requests 100

Two servers with the built-in model, one with --join, and this process's own pipeline take turns:
A B B A A B ... Needs the extras serve and test (httpx). Writes serve.json beside this file.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from measure import Measured, Row, entry, interleave, quartiles, seconds

ASKED = {"prompt": "red apple", "steps": 8, "seed": 1}
FIGURES = Path(__file__).with_name("serve.json")


@dataclass
class Client:
    """Asks a server that runs for this benchmark. `waited`: seconds of every answer."""

    process: subprocess.Popen[str]
    address: str
    waited: list[float] = field(default_factory=list)

    def ask(self, number: int = 0) -> None:
        """One image, whole."""

        def post() -> None:
            values = {**ASKED, "seed": number}
            answer = httpx.post(f"{self.address}/v1/images/generations", json=values, timeout=600)
            answer.raise_for_status()

        self.waited.append(seconds(post))

    def ask_at_once(self, count: int) -> float:
        """Seconds until so many clients that ask at once have their images."""
        with ThreadPoolExecutor(count) as pool:
            return seconds(lambda: list(pool.map(self.ask, range(count))))

    def memory(self) -> float:
        """MB that the server has now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@contextlib.contextmanager
def server(*options: str) -> Iterator[Client]:
    """`sdpipe serve` in a process of its own."""
    command = [sys.executable, "-m", "sdpipe", "serve", "--model", "emoji", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Client(process, process.stdout.readline().strip())
        finally:
            process.terminate()


def measure_alone(pairs: int, _: int) -> Measured:
    """Seconds of a call of `generate`, and of a request for the same image."""
    from sdpipe import Pipeline

    pipe = Pipeline("emoji")
    with server() as client:
        direct = lambda: seconds(lambda: pipe.generate(**ASKED))  # noqa: E731
        found = interleave(lambda: seconds(lambda: client.ask(1)), direct, pairs)
    return Measured("s", *found, str(pipe.components.dtype).removeprefix("torch."))


def measure_joined(pairs: int, clients: int) -> Measured:
    """Seconds for the images of many clients at once, with --join and without."""
    with server("--join") as joined, server() as single:
        found = interleave(
            lambda: joined.ask_at_once(clients), lambda: single.ask_at_once(clients), pairs
        )
    notes = []
    for name, client, times in (("joined", joined, found[0]), ("single", single, found[1])):
        pace, waited = clients / statistics.median(times), client.waited
        p50, p99 = statistics.median(waited), percentile(waited)
        notes.append(f"{name}: {pace:.2f} requests a second, {p50:.1f} s (p50), {p99:.1f} s (p99)")
    return Measured("s", *found, note="; ".join(notes))


def measure_at_once(pairs: int, clients: int) -> Measured:
    """Seconds for the images of many clients at once, and of one after the other."""
    with server("--join") as client:

        def one_by_one() -> float:
            return seconds(lambda: [client.ask(number) for number in range(clients)])

        found = interleave(lambda: client.ask_at_once(clients), one_by_one, pairs)
    return Measured("s", *found)


def measure_growth(requests: int, _: int) -> Measured:
    """MB by which a server grows over requests, once the first 50 are answered."""
    with server() as client:
        for number in range(50):
            client.ask(number)
        before = client.memory()
        for number in range(requests):
            client.ask(number)
        after = client.memory()
    return Measured(
        "MB", [after - before], note=f"{before:.0f} MB before, over {requests} requests"
    )


def percentile(values: list[float], share: float = 0.99) -> float:
    """The value that so many are not above."""
    return sorted(values)[min(len(values) - 1, round(share * len(values)))]


MEASURES: dict[str, tuple[str, Callable[[int, int], Measured]]] = {
    "alone": ("a request against a call of generate, seconds", measure_alone),
    "joined": ("clients at once, with --join against without", measure_joined),
    "at_once": ("clients at once, with --join, against one by one", measure_at_once),
    "growth": ("memory that a server gains", measure_growth),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=tuple(MEASURES))
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=6)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    report = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    for name in [options.only] if options.only else MEASURES:
        title, measure = MEASURES[name]
        is_growth = name == "growth"
        measured = measure(options.requests if is_growth else options.pairs, options.clients)
        row = Row(title, measure, None, "alone" if is_growth else "times")
        report[name] = entry(row, measured)
        FIGURES.write_text(json.dumps(report, indent=1) + "\n")
        low, median, high = quartiles([report[name]["measured"], *report[name]["quartiles"]])
        print(name, f"{median:.3g} ({low:.3g} to {high:.3g})", measured.note)


if __name__ == "__main__":
    main()
