"""How fast `sdpipe batch` draws beside a loop of `generate`, and how it plans a million jobs.

    python benchmarks/batch.py                     # both, as they stand in README.md
    python benchmarks/batch.py --only plan
    python benchmarks/batch.py --only one-plan --jobs 10000  # a smaller plan: printed, not kept

The two ways of drawing take turns in one process, A B B A A B ...; each image is in its file at the
end of a turn. Planning and resuming is a process of its own, whose memory is counted beyond that of
the imports. All seconds are those of the processor, of all threads: neighbours change them little.
Writes batch.json beside this file; `make figures` makes the table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from measure import Measured, Row, entry, interleave, read, save, table

ANIMALS = ("cat", "dog face", "owl", "panda", "crab", "frog", "bear", "rabbit face")
FIGURES = Path(__file__).with_name("batch.json")
BEGIN, END = "<!-- batch.py writes this table -->", "<!-- here the table of batches ends -->"
JOBS, IMAGES, STEPS = 1_000_000, 24, 8


def memory(name: str) -> float:
    """Memory of this process in MB: VmRSS is what it has now, VmHWM the most that it had."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def processor_seconds(work: Callable[[], object]) -> float:
    """How long a call takes of the processor, all threads together."""
    began = time.process_time()
    work()
    return time.process_time() - began


def measure_drawing(pairs: int, most: int | None = None) -> Measured:
    """Seconds for images of mixed prompts, seeds and scales, each in its file.

    most: images drawn at once by `run_batch`.
    """
    from sdpipe import Pipeline
    from sdpipe.batch import run_batch

    pipe = Pipeline("emoji")
    rows = [
        {
            "prompt": ANIMALS[i % len(ANIMALS)],
            "seed": i,
            "g": (3.0, 7.5)[i % 2],
            "steps": STEPS,
        }
        for i in range(IMAGES)
    ]

    def in_folder(draw: Callable[[Path], object]) -> Callable[[], float]:
        def turn() -> float:
            with tempfile.TemporaryDirectory() as folder:
                return processor_seconds(lambda: draw(Path(folder)))

        return turn

    def loop(folder: Path) -> None:
        for row in rows:
            pipe.generate(**row).save(f"{folder}/")

    ours = in_folder(lambda folder: list(run_batch(pipe, rows, folder, most=most)))
    found = interleave(ours, in_folder(loop), pairs)
    return Measured("s", *found, str(pipe.components.dtype).removeprefix("torch."))


def measure_plan(jobs: int) -> None:
    """Prints seconds and MB for planning jobs, and for finding that all are there."""
    from sdpipe.batch.folder import BatchFolder
    from sdpipe.batch.plan import Model, Plan
    from sdpipe.batch.rows import Rows

    rules = {"defaults": {"width": 512, "height": 512}, "factor": 8, "layers": 12}
    model = Model({**rules, "read_prompt": str}, {"sha256": "ab" * 32})
    with tempfile.TemporaryDirectory() as place:
        path, out = Path(place, "jobs.jsonl"), Path(place, "out")
        with path.open("w") as file:
            for i in range(jobs):
                prompt = f"a photograph of a red apple, number {i}, on a table, sharp focus"
                file.write(json.dumps({"prompt": prompt, "g": (5, 7.5)[i % 2]}) + "\n")
        with Rows(path) as rows:
            before = memory("VmRSS")
            plans: list[Plan] = []
            planned = processor_seconds(lambda: plans.append(Plan(rows, model, {}, 7)))
            planned_memory = memory("VmHWM") - before
            (plan,) = plans
            folder = BatchFolder(out)
            settings = plan.job(0).settings.to_dict()
            with (out / "metadata.jsonl").open("w") as file:
                for i in range(jobs):
                    name = plan.digests[i].tobytes().hex()
                    image = out / f"{i // 1000:05}" / f"{name}.png"
                    image.parent.mkdir(exist_ok=True)
                    image.touch()
                    line = {"file_name": f"{image.parent.name}/{image.name}", "job": name}
                    line |= {"text": settings["prompt"], "seed": 1, "sha256": "0" * 64}
                    file.write(json.dumps({**line, "settings": settings}) + "\n")
            done: list[bytearray] = []
            found = processor_seconds(lambda: done.append(folder.find(plan)))
            assert all(done[0])
            most = memory("VmHWM") - before
    numbers = {"planned": planned, "planned_memory": planned_memory}
    print(json.dumps(numbers | {"resumed": planned + found, "resumed_memory": most}))


def measure_in_a_process(jobs: int) -> dict[str, Measured]:
    """The four figures of a plan."""
    again = [sys.executable, __file__, "--only", "one-plan", "--jobs", str(jobs)]
    answer = subprocess.run(again, check=True, capture_output=True, text=True)
    return {
        name: Measured("MB" if name.endswith("memory") else "s", [number])
        for name, number in json.loads(answer.stdout).items()
    }


DRAWING = f"{IMAGES} images of the built-in model, {STEPS} steps, two scales, against a loop"
ROWS = {
    "drawing": Row(f"{DRAWING} of `generate`", measure_drawing, None),
    "one-by-one": Row("the same, one image at a time in both", measure_drawing, None),
    "planned": Row(f"{JOBS:,} jobs planned, seconds", measure_in_a_process, 60, "alone"),
    "planned_memory": Row("the same, memory", measure_in_a_process, 200, "alone"),
    "resumed": Row("planned and all found done, seconds", measure_in_a_process, 60, "alone"),
    "resumed_memory": Row("the same, memory", measure_in_a_process, 200, "alone"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("drawing", "plan", "one-plan"))
    parser.add_argument("--jobs", type=int, default=JOBS, help="of one-plan")
    parser.add_argument("--pairs", type=int, default=4)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.only == "one-plan":
        measure_plan(options.jobs)
        return
    found = {}
    if options.only != "plan":
        found["drawing"] = measure_drawing(options.pairs)
        found["one-by-one"] = measure_drawing(options.pairs, most=1)
    if options.only != "drawing":
        found |= measure_in_a_process(JOBS)
    for name, measured in found.items():
        save(FIGURES, name, entry(ROWS[name], measured))
    print(table(ROWS, read(FIGURES)))


if __name__ == "__main__":
    main()
