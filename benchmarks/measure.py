"""Measuring side by side: turns, statistics, the machine, a file of results and its table.

Knows nothing of what is measured: that is in the rows of `speed.py`.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

BEGIN, END = "<!-- speed.py writes this table -->", "<!-- here the table ends -->"
AVX512 = " (AVX-512 BF16)"
FLOAT32 = " (float32)"
"""End the name of a row that was measured without AMX, or in float32 without AVX-512 BF16 too: it
is another row of the table."""

INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
PACKAGES = ("torch", "diffusers", "transformers", "scipy", "openvino")

Figure = Literal["times", "share", "alone"]


class NotMeasured(Exception):  # noqa: N818 - no error: it becomes the row's entry
    """Why a row can't be measured here, in a few words."""


@dataclass(frozen=True)
class Measured:
    """What a row found: one number of `ours` and of `theirs` for each pair, in `unit`.

    theirs: empty where a figure has nothing to be compared with.
    note: what else was found.
    """

    unit: str
    ours: list[float]
    theirs: list[float] = field(default_factory=list)
    dtype: str = ""
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A question, and the function that measures the answer.

    figure: "times" is theirs / ours, "share" is ours / theirs, "alone" is ours; the target is a
        lower bound of the first and an upper bound of the others. None: no target, but a curve.
    needs: "bfloat16", matrix instructions of the CPU for it, or "cuda".
    anywhere: where a CPU has none of them, the row is measured in float32.
    """

    title: str
    measure: Callable[[Any], Measured]
    target: float | None
    figure: Figure = "times"
    needs: Literal["bfloat16", "cuda"] | None = None
    anywhere: bool = False


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes. Work on a GPU counts where the call waits for it."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def interleave(
    ours: Callable[[], float], theirs: Callable[[], float], pairs: int, warm_up: int = 1
) -> tuple[list[float], list[float]]:
    """Calls two measurements in turn, A B B A A B ..., and returns the numbers of each.

    What drifts, as a clock or a neighbour's load, so meets both alike. The first `warm_up` calls
    of each do not count.
    """
    for _ in range(warm_up):
        ours()
        theirs()
    found: tuple[list[float], list[float]] = ([], [])
    for turn in turns(pairs):
        found[turn].append((ours, theirs)[turn]())
    return found


def turns(pairs: int) -> Iterator[int]:
    """0 1 1 0 0 1 1 0 ...: which of two has its turn, in `pairs` pairs."""
    for pair in range(pairs):
        yield from (1, 0) if pair % 2 else (0, 1)


def figures_of_pairs(figure: Figure, ours: list[float], theirs: list[float]) -> list[float]:
    """The figure of every pair."""
    if figure == "alone":
        return ours
    pairs = zip(ours, theirs, strict=True)
    return [b / a if figure == "times" else a / b for a, b in pairs]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile; between two values, in proportion."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def entry(row: Row, measured: Measured) -> dict[str, Any]:
    """What the file of results keeps of a row."""
    values = figures_of_pairs(row.figure, measured.ours, measured.theirs)
    low, median, high = quartiles(values)
    return {
        "figure": row.figure,
        "measured": round_to_4_digits(median),
        "quartiles": [round_to_4_digits(low), round_to_4_digits(high)],
        "count": len(values),
        "unit": measured.unit,
        "sdpipe": [round_to_4_digits(value) for value in measured.ours],
        "other": [round_to_4_digits(value) for value in measured.theirs],
        "dtype": measured.dtype,
        "note": measured.note,
        "machine": machine(),
        "versions": versions(),
    }


def round_to_4_digits(value: float) -> float:
    """Four digits: more are noise."""
    return float(f"{value:.4g}")


def machine() -> dict[str, Any]:
    """CPU, cores, instruction sets and GPU, as far as the system tells them."""
    import torch

    cpu = cpuinfo()
    flags = cpu.get("flags", "").split()
    return {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def cpuinfo() -> dict[str, str]:
    """What /proc/cpuinfo says of the first core; nothing where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def versions() -> dict[str, str]:
    import sdpipe

    found = {"python": platform.python_version(), "sdpipe": sdpipe.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def save(path: Path, name: str, found: Mapping[str, Any]) -> None:
    """Puts one row's entry into the file of results; the others stay as they are.

    A row that can't be measured here keeps what was measured elsewhere.
    """
    results = read(path)
    if "not_measured" in found and "measured" in results.get(name, {}):
        return
    results[name] = dict(found)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def write_table(page: Path, rows: Mapping[str, Row], results: Mapping[str, Any]) -> None:
    """Puts the table of the results into a page; raises as `put_between` does."""
    put_between(page, BEGIN, END, table(rows, results))


def put_between(page: Path, begin: str, end: str, text: str) -> None:
    """Replaces what is between two markers of a page, each on a line of its own.

    Raises:
        ValueError: the page lacks a marker.
    """
    before, begun, rest = page.read_text(encoding="utf-8").partition(begin)
    _, ended, after = rest.partition(end)
    if not begun or not ended:
        raise ValueError(f"{page} lacks {end if begun else begin!r}; put the two markers back.")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def table(rows: Mapping[str, Row], results: Mapping[str, Any]) -> str:
    """The results in Markdown, in the order of the rows, and below it where each was measured."""
    lines = [
        "| row | what | target | measured | spread | count | sdpipe | other | type | also | on |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    places: dict[str, str] = {}
    for name, row in rows.items():
        for key in (name, name + AVX512, name + FLOAT32):
            found = results.get(key, {"not_measured": "not yet"} if key == name else None)
            if found is not None:
                cells = [key, row.title, _target(row, found), *_cells(found, places)]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{letter}: {text}  " for text, letter in places.items())])


def _target(row: Row, found: Mapping[str, Any]) -> str:
    if row.target is None:
        return "-"
    unit = "x" if row.figure != "alone" else f" {found['unit']}" if found.get("unit") else ""
    return f"{'≥' if row.figure == 'times' else '≤'} {row.target:g}{unit}"


def _cells(found: Mapping[str, Any], places: dict[str, str]) -> list[str]:
    """What follows the target; `places` gets a letter for every new machine."""
    if "not_measured" in found:
        return [f"not measured: {found['not_measured']}", *[""] * 7]
    unit = f" {found['unit']}" if found["unit"] else ""
    of = unit if found["figure"] == "alone" else "x"
    low, high = found["quartiles"]
    sides = [found["sdpipe"], found["other"]]
    place = places.setdefault(_place(found), "abcdefghijklmnopqrstuvwxyz"[len(places)])
    return [
        f"{digits(found['measured'])}{of}",
        f"{digits(low)} to {digits(high)}",
        str(found["count"]),
        *(f"{digits(statistics.median(side))}{unit}" if side else "" for side in sides),
        found["dtype"],
        found["note"],
        place,
    ]


def _place(found: Mapping[str, Any]) -> str:
    machine, versions = found["machine"], found["versions"]
    sets = " ".join(machine["instruction_sets"]) or "instruction sets unknown"
    parts = [
        f"{machine['cpu']}, {machine['cores']} cores ({sets}), {machine['threads']} used",
        machine["gpu"] or "no GPU",
        ", ".join(f"{name} {number}" for name, number in versions.items()),
    ]
    return "; ".join(parts)


def digits(value: float) -> str:
    """Three digits, but all of a whole number's: 0.0123, 1.23, 12.3, 1234."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def line(name: str, found: Mapping[str, Any]) -> str:
    """A row's entry for a terminal."""
    cells = _cells(found, {})
    if "not_measured" in found:
        return f"{name}: {cells[0]}"
    measured, spread, count, ours, theirs, dtype, note, _ = cells
    sides = f"sdpipe {ours}" + (f", other {theirs}" if theirs else "")
    more = "".join(f"; {text}" for text in (dtype, note) if text)
    return f"{name}: {measured} ({spread}, count {count}); {sides}{more}"


def list_rows(rows: Mapping[str, Row]) -> Iterable[str]:
    for name, row in rows.items():
        yield f"{name:<22} {_target(row, {}):<8} {row.title}"
