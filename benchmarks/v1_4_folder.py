"""Load, draw and save with v1-4's exact configurations and random fp16 weights, at full size.

    python benchmarks/v1_4_folder.py [--steps 3] [--device auto] [--dtype auto] [--keep FOLDER]

The image means nothing; the time, the memory and the finite numbers do. What was measured goes
to v1_4_folder.json beside this file. Needs 2.2 GB of disk, and 3 GB of memory for float16 or
bfloat16, 5 GB for float32.
"""

import argparse
import itertools
import json
import math
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"
RESULT = Path(__file__).with_suffix(".json")


def write_folder(folder: Path, half: bool = True) -> None:
    """The five parts of v1-4; each weight is drawn so that its layer keeps the variance.

    With `half` they are the files of the variant fp16, else those in float32.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    sys.path.insert(0, str(TESTS))
    from tiny import write_tokenizer

    shutil.copytree(TESTS / "v1_4", folder, dirs_exist_ok=True)
    write_tokenizer(folder / "tokenizer")  # v1-4's own vocabulary is not ours to copy

    def config(part: str) -> dict[str, object]:
        return json.loads((folder / part / "config.json").read_text())

    with torch.device("meta"):
        parts = {
            "unet/diffusion_pytorch_model": UNet2DConditionModel.from_config(config("unet")),
            "vae/diffusion_pytorch_model": AutoencoderKL.from_config(config("vae")),
            "text_encoder/model": CLIPTextModel(CLIPTextConfig(**config("text_encoder"))),
        }
    torch.manual_seed(0)
    for stem, part in parts.items():
        tensors = {}
        for name, like in part.state_dict().items():
            if like.ndim == 1:
                filled = torch.full(like.shape, float("norm" in name and "weight" in name))
            else:
                filled = torch.randn(like.shape) / math.sqrt(math.prod(like.shape[1:]))
            tensors[name] = filled.half() if half else filled
        variant = ".fp16" if half else ""
        save_file(tensors, folder / f"{stem}{variant}.safetensors", metadata={"format": "pt"})


class Memory:
    """The most memory that the process held, in MB: all of it, and without mapped files."""

    def __init__(self) -> None:
        self.peak = self.peak_anonymous = 0.0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def __enter__(self) -> "Memory":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def watch(self) -> None:
        """Looks every 20 ms, until it is done."""
        while True:
            total, anonymous = resident()
            self.peak = max(self.peak, total)
            self.peak_anonymous = max(self.peak_anonymous, anonymous)
            if self.done.wait(0.02):
                return


def resident() -> tuple[float, float]:
    """Memory now in MB, all of it and without mapped files; zeros where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0, 0.0
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return tuple(int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "RssAnon"))


def measure(folder: Path, steps: int, device: str, dtype: str) -> dict[str, object]:
    """Loads, draws one image of 512 x 512 and saves it."""
    began = time.perf_counter()
    import diffusers
    import torch
    import transformers

    from sdpipe import Pipeline, SdpipeWarning, __version__
    from sdpipe.runtime.device import dtype_name

    # The classes themselves are imported at their first use.
    _ = diffusers.UNet2DConditionModel, diffusers.AutoencoderKL, transformers.CLIPTextModel
    imported = time.perf_counter() - began

    before, before_anonymous = resident()
    began = time.perf_counter()
    with Memory() as memory:
        pipe = Pipeline(folder, device=device, dtype=dtype)
    loaded = time.perf_counter() - began
    parts = pipe.components
    weights = sum(
        tensor.numel() * tensor.element_size()
        for network in (parts.text_encoder, parts.unet, parts.vae)
        for tensor in network.state_dict().values()
    )

    # Random weights predict no noise, so the latents grow, and a warning says so.
    warnings.simplefilter("ignore", SdpipeWarning)
    marks = [time.perf_counter()]
    drawn = pipe.generate(
        "a photo of a red apple",
        seed=42,
        steps=steps,
        on_step=lambda step: marks.append(time.perf_counter()),
    )
    finished = time.perf_counter()
    image = drawn.images[0]
    image.save(folder / "image.png")
    return {
        "sdpipe": __version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "device": str(parts.device),
        "dtype": dtype_name(parts.dtype),
        "variant": parts.model.variant,
        "import_s": round(imported, 2),
        "load_s": round(loaded, 2),
        "weights_mb": round(weights / 1e6),
        "load_peak_mb": round(memory.peak - before),
        "load_peak_without_mapped_files_mb": round(memory.peak_anonymous - before_anonymous),
        "size": list(image.size),
        "steps": steps,
        "text_and_first_step_s": round(marks[1] - marks[0], 2),
        "step_s": [round(b - a, 2) for a, b in itertools.pairwise(marks[1:])],
        "decode_s": round(finished - marks[-1], 2),
        "saved_bytes": (folder / "image.png").stat().st_size,
    }


def processor() -> str:
    """The name of the CPU, where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} threads" if names else platform.processor()


def main() -> None:
    """Writes the folder in a process of its own, so that its memory does not count here."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--keep", type=Path, help="write the model there, and leave it")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--float32", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.write:
        write_folder(asked.write, half=not asked.float32)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.keep or Path(scratch) / "v1-4"
        if not (folder / "unet/diffusion_pytorch_model.fp16.safetensors").exists():
            subprocess.run([sys.executable, __file__, "--write", str(folder)], check=True)
        result = measure(folder, asked.steps, asked.device, asked.dtype)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
