"""The denoising steps of one image: as numbers, as a filmstrip, and saved to a folder."""

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

import sdpipe
from sdpipe.denoise import Step
from sdpipe.errors import UsageError
from sdpipe.io import png
from sdpipe.io.files import temporary_path, write_error
from sdpipe.io.mark import term_for
from sdpipe.latents import latents_to_pil
from sdpipe.runtime.seamless import with_circular_padding
from sdpipe.settings import Settings
from sdpipe.show.filmstrip import COLUMNS, Column, filmstrip, spread_states, title_lines

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from sdpipe.pipeline import Pipeline, Result

LATENT_PIXELS = 2 * 64 * 64  # decoded at a time: two images of v1-4


@dataclass(frozen=True, eq=False)
class StepHistory:
    """An image and its steps. result: drawn with `save_int`. vae: decodes the steps."""

    result: "Result"
    vae: "AutoencoderKL"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types: sigma and x_t have one entry more than there are steps."""
        steps = self.result.steps
        x_t = [steps[0].input, *(step.latents for step in steps)]
        return {
            "settings": self.result.settings[0].to_dict(),
            "timestep": [step.timestep for step in steps],
            "sigma": [steps[0].sigma, *(step.sigma_next for step in steps)],
            "x_t_std": [_std(x) for x in x_t],
            "x0_std": [_std(step.x0) for step in steps],
        }

    def columns(self, most: int) -> list[Column]:
        """The starting noise and the states after `most` steps or fewer, evenly spread, decoded."""
        return decode_columns(self.vae, self.result, 0, most)

    def strip(self) -> Image.Image:
        """Draws the filmstrip."""
        return filmstrip(self.columns(COLUMNS), *title_lines(self.result.settings[0]))


def steps_data(
    pipe: "Pipeline",
    prompt: str,
    *,
    on_step: "Callable[[Step], object] | None" = None,
    **settings: Any,
) -> StepHistory:
    """Draws an image as `Pipeline.generate` does, and keeps its steps.

    Raises:
        UsageError: a value breaks its rule.
    """
    result = pipe.generate(prompt, save_int=True, on_step=on_step, **settings)
    return StepHistory(result, pipe.components.vae)


def _std(x: Tensor) -> float:
    return float(x.std(correction=0))


def save_steps(
    vae: "AutoencoderKL",
    result: "Result",
    index: int,
    folder: str | Path,
    *,
    describe: bool = True,
    mark: bool = True,
    overwrite: bool = False,
    on_decoded: Callable[[int, int], object] | None = None,
) -> Path:
    """Saves every step of image `index` of a result that was drawn with `save_int`.

    The folder gets, of S steps, counted from 1,
      xt-00.png, xt-01.png, ...: the latents, decoded; xt-00 is the starting noise, xt-S the image;
      x0-01.png, ...: the image that each step predicts from the latents before it;
      latents.safetensors: x_t (S + 1, C, h, w), as they are in the loop, x0 (S, C, h, w),
        sigma (S + 1,), the noise level of each x_t, and timestep (S,), the input of the U-Net;
      filmstrip.png: an overview;
      hires: with hires_scale, a folder with the same of the second pass; its xt-00 is the
        enlarged image with noise.

    describe: write the prompt and the settings on the strip and into latents.safetensors.
    mark: write into each image that a model made it, see `io.mark`.
    overwrite: replace the folder if it exists.
    on_decoded: called with the number of images that are done, and of all.

    Raises:
        UsageError: the result was drawn without `save_int`.
        SdpipeError: the folder exists or cannot be written.
    """
    folder, passes = Path(folder), _passes(result, index)
    term = term_for(result.settings[index].init_image, mark)
    vae = _decoder(vae, result)
    decoded, total = count(1), sum(2 * len(steps) + 1 for steps in passes)

    def count_decoded() -> None:
        if on_decoded is not None:
            on_decoded(next(decoded), total)

    try:
        if folder.exists() and not overwrite:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        with temporary_path(folder.parent) as temporary:
            for into, steps in zip((temporary, temporary / "hires"), passes, strict=False):
                into.mkdir()
                settings = result.settings[index] if describe else None
                _save_latents(into / "latents.safetensors", steps, settings)
                states = _trajectory(steps)
                kept = _save_images(vae, *states, into, term, count_decoded)
                strip = filmstrip(kept, *(() if settings is None else title_lines(settings)))
                (into / "filmstrip.png").write_bytes(png.encode(strip, "PNG", mark=term))
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        raise write_error(folder, error) from error
    return folder


def decode_columns(
    vae: "AutoencoderKL", result: "Result", index: int, most: int = COLUMNS
) -> list[Column]:
    """Decodes the columns of a filmstrip of image `index`; of two passes, those of the first.

    Raises:
        UsageError: the result was drawn without `save_int`.
    """
    x_t, x0, sigmas = _trajectory(_passes(result, index)[0])
    vae = _decoder(vae, result)
    states = spread_states(len(x0), most)
    above = list(_decode(vae, x_t[states]))
    below = list(_decode(vae, x0[states[:-1]]))
    return [
        Column(k, sigmas[k], above[i], below[i] if k < len(x0) else above[i])
        for i, k in enumerate(states)
    ]


def _decoder(vae: "AutoencoderKL", result: "Result") -> "AutoencoderKL":
    """The VAE that a result was decoded with: with circular padding if it is seamless."""
    axes = result.settings[0].seamless
    return vae if axes is None else with_circular_padding(vae, axes)


def _passes(result: "Result", index: int) -> list[list[Step]]:
    """The steps of each pass over an image: one pass, with `hires_scale` two."""
    steps = result.steps_of(index)
    if not steps:
        raise UsageError("this result", "has no steps", "draw it with save_int=True")
    return [list(group) for _, group in groupby(steps, lambda step: step.hires)]


def _trajectory(steps: list[Step]) -> tuple[Tensor, Tensor, list[float]]:
    """x_t (S + 1, C, h, w) in the range of latents, x0 (S, C, h, w), sigma of each x_t."""
    sigmas = [steps[0].sigma, *(step.sigma_next for step in steps)]
    x_t = torch.cat([steps[0].input, *(step.latents for step in steps)]).cpu()
    if steps[0].variance_exploding:
        # x_t = x_0 + sigma eps grows with sigma; the VAE knows latents of about unit variance.
        x_t = torch.stack([x / math.sqrt(1 + s * s) for x, s in zip(x_t, sigmas, strict=True)])
    x0 = torch.cat([step.x0 for step in steps]).cpu()
    return x_t, x0, sigmas


def _save_latents(path: Path, steps: list[Step], settings: Settings | None) -> None:
    tensors = {
        "x_t": torch.cat([steps[0].input, *(step.latents for step in steps)]).cpu(),
        "x0": torch.cat([step.x0 for step in steps]).cpu(),
        "sigma": torch.tensor([steps[0].sigma, *(s.sigma_next for s in steps)]),
        "timestep": torch.tensor([s.timestep for s in steps]),
    }
    notes = {
        "sdpipe": sdpipe.__version__,
        "variance_exploding": json.dumps(steps[0].variance_exploding),
    }
    if settings is not None:
        notes["settings"] = settings.to_json()
    save_file(tensors, path, notes)


def _save_images(
    vae: "AutoencoderKL",
    x_t: Tensor,
    x0: Tensor,
    sigmas: list[float],
    folder: Path,
    mark: str | None,
    on_saved: Callable[[], None],
) -> list[Column]:
    """Saves the images of all steps, and returns those of the filmstrip."""
    steps = len(x0)
    digits = max(2, len(str(steps)))
    states = spread_states(steps)
    kept: dict[str, dict[int, Image.Image]] = {"xt": {}, "x0": {}}
    for name, latents, first in (("xt", x_t, 0), ("x0", x0, 1)):
        for step, image in enumerate(_decode(vae, latents), first):
            path = folder / f"{name}-{step:0{digits}}.png"
            path.write_bytes(png.encode(image, "PNG", mark=mark))
            if step - first in states:  # the prediction of step k + 1 is made from state k
                kept[name][step - first] = image
            on_saved()
    above, below = kept["xt"], kept["x0"]
    return [Column(k, sigmas[k], above[k], below.get(k, above[k])) for k in states]


def _decode(vae: "AutoencoderKL", latents: Tensor) -> Iterator[Image.Image]:
    """Decodes latents (S, C, h, w), a few at a time."""
    height, width = latents.shape[-2:]
    few = max(1, LATENT_PIXELS // (height * width))
    for part in latents.split(few):
        yield from latents_to_pil(vae, part)
