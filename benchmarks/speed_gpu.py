"""The rows of `speed.py` that need a GPU; with --quick they run on the CPU."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from measure import Measured, interleave, seconds
from speed_setup import (
    HERE,
    PROMPT,
    Bench,
    diffusers_pipeline,
    process,
    process_seconds,
    sdpipe_pipeline,
)

from sdpipe import Pipeline, Step


def image(pipe: Pipeline, bench: Bench, n: int = 1) -> Callable[[], object]:
    """Draws and decodes n images; it waits for the GPU, for they are on the CPU then."""
    side = bench.side
    return lambda: pipe.generate(
        PROMPT, seed=0, g=7.5, steps=bench.steps, width=side, height=side, lms_order=4, n=n
    )


def their_image(pipe: StableDiffusionPipeline, bench: Bench, n: int = 1) -> Callable[[], object]:
    return lambda: pipe(
        PROMPT,
        num_inference_steps=bench.steps,
        width=bench.side,
        height=bench.side,
        num_images_per_prompt=n,
        generator=[torch.Generator("cpu").manual_seed(k) for k in range(n)],
    )


def against(
    bench: Bench, ours: Callable[[], object], theirs: Callable[[], object], pairs: int, **more: Any
) -> Measured:
    """Times two ways to draw; the first three images of each, which compile, do not count."""
    found = interleave(
        lambda: seconds(ours), lambda: seconds(theirs), bench.pairs(pairs), warm_up=3
    )
    return Measured("s", *found, dtype=bench.gpu["dtype"], **more)


def image_eager(bench: Bench) -> Measured:
    """Prompt to image, against diffusers as it comes, in float16."""
    ours = sdpipe_pipeline(bench.v1_4(), **bench.gpu)
    theirs = diffusers_pipeline(bench.v1_4(), **bench.gpu)
    return against(bench, image(ours, bench), their_image(theirs, bench), 20)


def image_compiled(bench: Bench) -> Measured:
    """The same against diffusers at its best: UNet and VAE compiled, channels last."""
    ours = sdpipe_pipeline(bench.v1_4(), **bench.gpu)
    theirs = diffusers_pipeline(bench.v1_4(), **bench.gpu)
    how: dict[str, Any] = {"backend": "eager"} if bench.quick else {"mode": "max-autotune"}
    theirs.unet.to(memory_format=torch.channels_last)
    theirs.vae.to(memory_format=torch.channels_last)
    theirs.unet.compile(fullgraph=True, **how)
    theirs.vae.decode = torch.compile(theirs.vae.decode, fullgraph=True, **how)
    return against(bench, image(ours, bench), their_image(theirs, bench), 20)


def graph(bench: Bench) -> Measured:
    """The default against speed=False, and whether every step has the same bits."""
    ours = sdpipe_pipeline(bench.v1_4(), speed=True, **bench.gpu)
    plain = sdpipe_pipeline(bench.v1_4(), speed=False, **bench.gpu)
    a, b = (torch.stack([step.latents for step in stream(pipe, bench)]) for pipe in (ours, plain))
    apart = float((a - b).abs().max() / b.abs().max())
    note = "bit-identical" if torch.equal(a, b) else f"NOT bit-identical: up to {apart:.1e} apart"
    return against(bench, image(ours, bench), image(plain, bench), 20, note=note)


def stream(pipe: Pipeline, bench: Bench) -> Iterator[Step]:
    side, steps = bench.side, bench.steps
    return pipe.stream(PROMPT, seed=0, g=7.5, steps=steps, width=side, height=side, lms_order=4)


def image_seconds(bench: Bench) -> Measured:
    """Prompt to image, in seconds."""
    pipe = sdpipe_pipeline(bench.v1_4(), **bench.gpu)
    draw = image(pipe, bench)
    for _ in range(3):
        draw()
    times = [seconds(draw) for _ in range(bench.pairs(30))]
    return Measured("s", times, dtype=bench.gpu["dtype"])


def synchronisations(bench: Bench) -> Measured:
    """How often the host waits for the GPU from the end of the first step to that of the last."""
    pipe = sdpipe_pipeline(bench.v1_4(), **bench.gpu)
    for _ in stream(pipe, bench):
        pass
    steps = stream(pipe, bench)
    next(steps)
    count, note = 0.0, "of those that torch tells"
    if bench.quick:
        list(steps)
        return Measured("", [count], dtype=bench.gpu["dtype"], note=note)
    one = torch.ones(1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        expect_refusal(one)
        for _ in range(bench.steps - 1):
            next(steps)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        count, note = 1.0, "and stopped at that"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Measured("", [count], dtype=bench.gpu["dtype"], note=note)


def expect_refusal(one: torch.Tensor) -> None:
    """Proves that a synchronisation is an error now.

    Raises:
        AssertionError: it is none.
    """
    try:
        one.item()
    except RuntimeError:
        return
    raise AssertionError("torch does not tell of synchronisations; the row can't be measured")


PEAK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from speed_gpu import low_memory_pipeline, image, their_image
from speed_setup import Bench, diffusers_pipeline, sdpipe_pipeline
bench = Bench(quick=bool(int(sys.argv[3])), scratch=Path(sys.argv[2]))
pipe = {make}(bench.v1_4(), **bench.gpu)
for _ in range(2):
    {draw}(pipe, bench)()
if bench.quick:
    status = Path("/proc/self/status").read_text().split()
    print("FOUND", int(status[status.index("VmHWM:") + 1]) * 1024, 0)
else:
    print("FOUND", torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated())
"""


def peak(bench: Bench, make: str, draw: str = "image") -> tuple[float, float]:
    """The memory that torch takes from the GPU in a fresh process, loading included, in MB.

    And how much of that is in tensors.
    """
    bench.v1_4()  # before the process, which finds it there
    code = PEAK.format(make=make, draw=draw)
    said = process("-c", code, HERE, bench.scratch, int(bench.quick))
    reserved, allocated = map(int, said.rpartition("FOUND ")[2].split())
    return reserved / 1e6, allocated / 1e6


def image_memory(bench: Bench) -> Measured:
    """The most memory taken for an image."""
    used = {}

    def taken(make: str, draw: str) -> float:
        most, used[make] = peak(bench, make, draw)
        return most

    found = interleave(
        lambda: taken("sdpipe_pipeline", "image"),
        lambda: taken("diffusers_pipeline", "their_image"),
        bench.pairs(2),
        warm_up=0,
    )
    note = "in tensors {:.0f} MB, diffusers' {:.0f}".format(*used.values())
    return Measured("MB", *found, dtype=bench.gpu["dtype"], note=note)


def low_memory_pipeline(folder: Path, **options: Any) -> Pipeline:
    """sdpipe's with low_memory=True, where there is a GPU."""
    return sdpipe_pipeline(folder, low_memory=options["device"] == "cuda", **options)


def low_memory(bench: Bench) -> Measured:
    """The same with low_memory=True, in GB."""
    most, used = zip(
        *(peak(bench, "low_memory_pipeline") for _ in range(bench.pairs(2))), strict=True
    )
    note = f"in tensors {max(used) / 1e3:.2f} GB"
    return Measured("GB", [mb / 1e3 for mb in most], dtype=bench.gpu["dtype"], note=note)


def batch(bench: Bench, n: int) -> Measured:
    """Images a second, n in one call."""
    ours = image(sdpipe_pipeline(bench.v1_4(), **bench.gpu), bench, n)
    theirs = their_image(diffusers_pipeline(bench.v1_4(), **bench.gpu), bench, n)
    found = interleave(
        lambda: n / seconds(ours),
        lambda: n / seconds(theirs),
        bench.pairs(2 if n > 16 else 6),
        warm_up=1 if n > 1 else 3,
    )
    return Measured("images/s", *found, dtype=bench.gpu["dtype"])


FIRST_IMAGE = """
import sys
from sdpipe import Pipeline
folder, out, device, dtype, side, steps = sys.argv[1:]
pipe = Pipeline(folder, device=device, dtype=dtype)
size = dict(width=int(side), height=int(side))
pipe.generate("red apple", steps=int(steps), **size).images[0].save(out)
"""
DIFFUSERS_FIRST_IMAGE = """
import sys
import torch
from diffusers import LMSDiscreteScheduler, StableDiffusionPipeline
folder, out, device, dtype, side, steps = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype), variant="fp16",
    safety_checker=None, feature_extractor=None, requires_safety_checker=False).to(device)
pipe.scheduler = LMSDiscreteScheduler.from_config(pipe.scheduler.config)
size = dict(width=int(side), height=int(side))
pipe("red apple", num_inference_steps=int(steps), **size).images[0].save(out)
"""


def first_image(bench: Bench) -> Measured:
    """A fresh process until the first image is in its file, against diffusers as it comes."""
    gpu = bench.gpu
    rest = [bench.v1_4(), bench.scratch / "image.png", gpu["device"], gpu["dtype"]]
    rest += [bench.side, bench.steps]
    found = interleave(
        lambda: process_seconds("-c", FIRST_IMAGE, *rest),
        lambda: process_seconds("-c", DIFFUSERS_FIRST_IMAGE, *rest),
        bench.pairs(6),
    )
    return Measured("s", *found, dtype=gpu["dtype"])
