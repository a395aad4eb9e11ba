"""What the rows of `speed.py` measure with: models, both pipelines, fresh processes."""

import inspect
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import LMSDiscreteScheduler, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from measure import NotMeasured, seconds
from transformers.utils import logging as transformers_logging

import sdpipe
from sdpipe import Pipeline
from sdpipe.runtime.device import dtype_name

HERE = Path(__file__).parent
EMOJI = Path(sdpipe.__file__).parent / "models/emoji"
PROMPT = "red apple"  # the built-in model has read both words


@dataclass(frozen=True)
class Bench:
    """How large a row is measured.

    quick: with a tiny model on the CPU, a few times: whether the code is complete, and no figure.
    scratch: a folder for models, which the rows share.
    """

    quick: bool
    scratch: Path

    @property
    def side(self) -> int:
        """Width and height of an image of v1-4."""
        return 64 if self.quick else 512

    @property
    def steps(self) -> int:
        return 3 if self.quick else 50

    @property
    def gpu(self) -> dict[str, str]:
        """Device and type of the rows for a GPU."""
        if self.quick:
            return {"device": "cpu", "dtype": "float32"}
        return {"device": "cuda", "dtype": "float16"}

    def pairs(self, count: int) -> int:
        return 2 if self.quick else count

    def v1_4(self, *, half: bool = True) -> Path:
        """v1-4's five parts with random weights: fp16 files, or float32 ones."""
        folder = self.scratch / f"{'tiny' if self.quick else 'v1-4'}{'-fp16' if half else ''}"
        if (folder / "model_index.json").exists():
            return folder
        if self.quick:
            sys.path.insert(0, str(HERE.parent / "tests"))
            from tiny import tiny_model

            dtype = torch.float16 if half else torch.float32
            return tiny_model(folder, variant="fp16" if half else None, dtype=dtype, size=self.side)
        # Its memory is another process's, so that it does not count here.
        script = [sys.executable, HERE / "v1_4_folder.py", "--write", folder]
        subprocess.run([*script, *([] if half else ["--float32"])], check=True)
        return folder


def sdpipe_pipeline(model: Path, **options: Any) -> Pipeline:
    """sdpipe's pipeline.

    Raises:
        NotMeasured: this version of sdpipe does not know one of the options.
    """
    if any(name not in inspect.signature(Pipeline).parameters for name in options):
        raise NotMeasured("not in this version")
    return Pipeline(model, **options)


def diffusers_pipeline(
    folder: Path, *, dtype: str = "float32", device: str = "cpu"
) -> StableDiffusionPipeline:
    """diffusers' own pipeline, with LMS as sdpipe's, and no safety checker and no bars."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    fp16 = any(folder.glob("unet/*.fp16.safetensors"))
    pipe = StableDiffusionPipeline.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        variant="fp16" if fp16 else None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        local_files_only=True,
    )
    pipe.scheduler = LMSDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def type_of(pipe: Pipeline) -> str:
    return dtype_name(pipe.components.dtype)


def process(*arguments: object, status: int = 0) -> str:
    """Runs a fresh Python with these arguments, and returns what it wrote to stdout and stderr.

    It keeps the bytecode of what it imports, as pip does, also where the environment forbids it.
    """
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": ""},
    )
    if done.returncode != status:
        raise RuntimeError(f"status {done.returncode} of {arguments}:\n{done.stdout}")
    return done.stdout


def process_seconds(*arguments: object, status: int = 0) -> float:
    return seconds(lambda: process(*arguments, status=status))
