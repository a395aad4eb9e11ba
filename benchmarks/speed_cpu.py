"""The rows of `speed.py` that a CPU answers."""

import time
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from diffusers import LMSDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from measure import Measured, NotMeasured, interleave, seconds, turns
from speed_setup import (
    EMOJI,
    PROMPT,
    Bench,
    diffusers_pipeline,
    process,
    process_seconds,
    sdpipe_pipeline,
    type_of,
)
from torch import Tensor

from sdpipe import Pipeline, Step
from sdpipe.runtime.device import dtype_name, pick_dtype
from sdpipe.schedule import lms_coefficients

# ------------------------------------------------------------------ one guided step of v1-4


def step_against(
    bench: Bench, dtype: str, pairs: int, *, openvino: bool = False, **options: Any
) -> Measured:
    """A guided step of v1-4, text encoder and VAE not counted, against diffusers in `dtype`."""
    ours = sdpipe_pipeline(bench.v1_4(), device="cpu", **options)
    theirs = diffusers_pipeline(bench.v1_4(), dtype="float32" if openvino else dtype)
    if openvino:
        theirs.unet = OpenVINOUNet(theirs.unet, bench.side // 8)
    pairs = bench.pairs(pairs)
    stream = draw(ours, bench, steps=pairs + 1)
    found = interleave_steps(stream, theirs, bench.side, pairs)
    return Measured("s", *found, dtype=f"{type_of(ours)} / {dtype}")


def draw(pipe: Pipeline, bench: Bench, steps: int) -> Iterator[Step]:
    side = bench.side
    return pipe.stream(PROMPT, seed=0, g=7.5, steps=steps, width=side, height=side, lms_order=4)


def interleave_steps(
    stream: Iterator[Step], pipe: StableDiffusionPipeline, side: int, pairs: int
) -> tuple[list[float], list[float]]:
    """Times the steps of both in turn: ours are taken while diffusers waits between two of its own.

    The first step of each does not count.
    """
    step = partial(seconds, partial(next, stream))
    found: tuple[list[float], list[float]] = ([], [])
    order = turns(pairs)
    began = 0.0

    def between_steps(_: Any, index: int, __: Any, ___: Any) -> dict[str, Any]:
        nonlocal began
        if index == 0:
            step()
        else:
            found[1].append(time.perf_counter() - began)
        for turn in order:
            if turn:
                break
            found[0].append(step())
        began = time.perf_counter()
        return {}

    pipe(
        PROMPT,
        num_inference_steps=pairs + 1,
        width=side,
        height=side,
        output_type="latent",
        callback_on_step_end=between_steps,
    )
    return found


class OpenVINOUNet(torch.nn.Module):
    """A UNet compiled by OpenVINO in bfloat16, for latents of one size, in diffusers' pipeline."""

    def __init__(self, unet: UNet2DConditionModel, side: int) -> None:
        super().__init__()
        try:
            import openvino
        except ImportError:
            raise NotMeasured("no openvino (pip install openvino)") from None
        self.config, self.dtype, self.device = unet.config, unet.dtype, unet.device
        example = (
            torch.zeros(2, unet.config.in_channels, side, side),
            torch.tensor(999.0),
            torch.zeros(2, 77, unet.config.cross_attention_dim),
        )
        shapes = [tuple(x.shape) for x in example]
        with warnings.catch_warnings():
            # The UNet's own checks of shapes become constants, as they may: the shapes are static.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            model = openvino.convert_model(_Positional(unet), example_input=example, input=shapes)
        how = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY"}
        self.request = openvino.Core().compile_model(model, "CPU", how).create_infer_request()

    def forward(
        self, x_in: Tensor, t: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> tuple[Tensor]:
        inputs = [x_in.numpy(), t.float().numpy(), encoder_hidden_states.numpy()]
        return (torch.from_numpy(self.request.infer(inputs)[0].copy()),)


class _Positional(torch.nn.Module):
    """A UNet with nothing but tensors in and out, as a converter wants it."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_in: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return self.unet(x_in, t, text, return_dict=False)[0]


def step_compiled(bench: Bench) -> Measured:
    """A step with compile=True against one without, from the second image on."""
    compiled = sdpipe_pipeline(bench.v1_4(), device="cpu", compile=True)
    default = sdpipe_pipeline(bench.v1_4(), device="cpu")
    began = time.perf_counter()
    for _ in draw(compiled, bench, steps=2):
        pass
    first = time.perf_counter() - began
    pairs = bench.pairs(12)
    a, b = (draw(pipe, bench, steps=pairs + 1) for pipe in (compiled, default))
    found = interleave(
        partial(seconds, partial(next, a)), partial(seconds, partial(next, b)), pairs
    )
    return Measured("s", *found, dtype=type_of(default), note=f"first two steps {first:.0f} s")


# ------------------------------------------------------------------ beside UNet and VAE


class StubUNet(UNet2DConditionModel):
    """Returns its input, and knows when it was called first."""

    began: float | None = None

    def forward(
        self, sample: Tensor, *_: Any, return_dict: bool = True, **__: Any
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        if self.began is None:
            self.began = time.perf_counter()
        return UNet2DConditionOutput(sample=sample) if return_dict else (sample,)

    def milliseconds_a_step(self, loop: Callable[[], object], steps: int) -> float:
        """From the UNet's first call to the end of the loop."""
        self.began = None
        loop()
        assert self.began is not None
        return (time.perf_counter() - self.began) * 1e3 / steps


def host_time(bench: Bench) -> Measured:
    """All that a loop of LMS does beside the UNet, 50 steps, 512 x 512, float32."""
    steps, side = 50, 512
    stub = StubUNet.from_config(UNet2DConditionModel.load_config(EMOJI, subfolder="unet"))
    ours = Pipeline(EMOJI, device="cpu", dtype="float32", unet=stub)
    theirs = diffusers_pipeline(EMOJI)
    theirs.unet = stub
    size = {"width": side, "height": side}

    def loop() -> None:
        for _ in ours.stream(PROMPT, seed=0, g=7.5, steps=steps, lms_order=4, **size):
            pass

    def their_loop() -> None:
        theirs(PROMPT, num_inference_steps=steps, output_type="latent", **size)

    found = interleave(
        partial(stub.milliseconds_a_step, loop, steps),
        partial(stub.milliseconds_a_step, their_loop, steps),
        bench.pairs(30),
    )
    return Measured("ms", *found, dtype="float32")


def coefficients(bench: Bench) -> Measured:
    """The coefficients of 50 steps of LMS, and how far they are from the exact ones."""
    scheduler = LMSDiscreteScheduler.from_pretrained(EMOJI, subfolder="scheduler")
    scheduler.set_timesteps(50)
    sigmas = scheduler.sigmas.double().tolist()
    orders = [min(i + 1, 4) for i in range(50)]

    def theirs() -> list[list[float]]:
        return [
            [scheduler.get_lms_coefficient(order, i, j) for j in range(order)]
            for i, order in enumerate(orders)
        ]

    ours = partial(lms_coefficients, sigmas, 4)
    exact = exact_coefficients(sigmas, 4)
    errors = [largest_difference(table, exact) for table in (ours(), theirs())]
    times = [partial(seconds, table) for table in (ours, theirs)]
    found = interleave(*(lambda time=time: time() * 1e3 for time in times), bench.pairs(50))
    return Measured("ms", *found, note="largest error {:.1e}, diffusers' {:.1e}".format(*errors))


def exact_coefficients(sigmas: list[float], order: int) -> list[list[Fraction]]:
    """The integrals of the Lagrange polynomials, in rational numbers."""
    s, rows = [Fraction(sigma) for sigma in sigmas], []
    for i in range(len(s) - 1):
        points, row = s[i::-1][:order], []
        for j, point in enumerate(points):
            polynomial = [Fraction(1)]  # its coefficients, the constant first
            for k, other in enumerate(points):
                if k != j:
                    shifted = [Fraction(0), *polynomial]
                    scaled = [other * c for c in polynomial] + [Fraction(0)]
                    factors = zip(shifted, scaled, strict=True)
                    polynomial = [(a - b) / (point - other) for a, b in factors]
            terms = [
                c * (s[i + 1] ** (n + 1) - s[i] ** (n + 1)) / (n + 1)
                for n, c in enumerate(polynomial)
            ]
            row.append(sum(terms, Fraction(0)))
        rows.append(row)
    return rows


def largest_difference(table: list[list[float]], exact: list[list[Fraction]]) -> float:
    """Of a coefficient from its exact value; sigmas are up to 14.6, coefficients up to about 2."""
    found, true = ([c for row in rows for c in row] for rows in (table, exact))
    return float(max(abs(Fraction(float(a)) - b) for a, b in zip(found, true, strict=True)))


# ------------------------------------------------------------------ fresh processes

IMPORTS = "from diffusers import UNet2DConditionModel, AutoencoderKL, LMSDiscreteScheduler"

FIRST_STEP = """
import sys
from sdpipe import Pipeline
next(Pipeline(sys.argv[1], device="cpu").stream("red apple"))
"""
DIFFUSERS_FIRST_STEP = """
import sys
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1])
stop = lambda *_: sys.exit()
pipe("red apple", num_inference_steps=30, guidance_scale=5, callback_on_step_end=stop)
"""


def command(bench: Bench, *arguments: str, status: int) -> Measured:
    """A command that draws nothing, as a process, against the imports of diffusers."""
    said = process("-X", "importtime", "-m", "sdpipe", *arguments, status=status)
    modules = {line.rpartition("|")[2].strip() for line in said.splitlines()}
    found = interleave(
        lambda: process_seconds("-m", "sdpipe", *arguments, status=status),
        lambda: process_seconds("-c", IMPORTS),
        bench.pairs(6),
    )
    note = "imports torch" if "torch" in modules else "imports no torch"
    return Measured("s", *found, note=note)


def first_step(bench: Bench) -> Measured:
    """A fresh process until the first step of the built-in model is done."""
    found = interleave(
        lambda: process_seconds("-c", FIRST_STEP, EMOJI),
        lambda: process_seconds("-c", DIFFUSERS_FIRST_STEP, EMOJI),
        bench.pairs(6),
    )
    ours = dtype_name(pick_dtype("auto", torch.device("cpu")))
    return Measured("s", *found, dtype=f"{ours} / float32")


PEAK = """
import sys
from pathlib import Path
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
import torch
from sdpipe import Pipeline

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

folder, variant = Path(sys.argv[1]), sys.argv[2] or None
before = peak()
{load}
print("FOUND", peak() - before, parts.unet.dtype, sum(
    tensor.nbytes
    for part in (parts.text_encoder, parts.unet, parts.vae)
    for tensor in part.state_dict().values()
))
"""
LOAD = 'parts = Pipeline(folder, device="cpu").components'
DIFFUSERS_LOAD = """
parts = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.{dtype}, variant=variant,
    safety_checker=None, feature_extractor=None, requires_safety_checker=False)
"""


def load_memory(bench: Bench, *, half: bool) -> Measured:
    """The most memory that loading v1-4's folder takes, against that of the loaded weights.

    Both are of fresh processes: VmHWM at the end less VmHWM after the imports.
    """
    folder = bench.v1_4(half=half)

    def peak(load: str) -> list[str]:
        said = process("-c", PEAK.format(load=load), folder, "fp16" if half else "")
        return said.rpartition("FOUND ")[2].split()

    ours = [peak(LOAD) for _ in range(bench.pairs(3))]
    dtype = ours[0][1].removeprefix("torch.")
    diffusers = int(peak(DIFFUSERS_LOAD.format(dtype=dtype))[0]) / 1e6
    return Measured(
        "MB",
        [int(found[0]) / 1e6 for found in ours],
        [int(found[2]) / 1e6 for found in ours],
        dtype=dtype,
        note=f"diffusers takes {diffusers:.0f} MB",
    )


# ------------------------------------------------------------------ many images


def batch(bench: Bench) -> Measured:
    """Seconds for 16 images of the built-in model: one call against 16."""
    pipe = Pipeline(EMOJI, device="cpu")
    count, steps = (2, 2) if bench.quick else (16, 30)
    pipe.generate("red apple", n=count, seed=0, steps=2)
    pipe.generate("red apple", seed=0, steps=2)
    found = interleave(
        lambda: seconds(lambda: pipe.generate("red apple", n=count, seed=0, steps=steps)),
        lambda: seconds(
            lambda: [pipe.generate("red apple", seed=k, steps=steps) for k in range(count)]
        ),
        bench.pairs(3),
        warm_up=0,
    )
    return Measured("s", *found, dtype=type_of(pipe))
