import numpy as np
import torch
from diffusers import (
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
)
from PIL import Image
from support.parity import REFERENCE, diffusers_pipeline

from sdpipe.settings import ImageRef

PROMPTS = ["a red apple", "a cat"]


ID = ImageRef("a.png", "0" * 64)


def picture(width=64, height=64, seed=0):
    """Soft colours, all over the range."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


class LateLMS(LMSDiscreteScheduler):
    """diffusers' own, but as a run begins in the middle it has no derivatives to combine."""

    def step(self, model_output, timestep, sample, order=4, return_dict=True):
        order = min(order, len(self.derivatives) + 1)
        return super().step(model_output, timestep, sample, order, return_dict)


class LatePipeline:
    """What diffusers' pipelines from pictures lack for PNDM: its second timestep twice."""

    def get_timesteps(self, num_inference_steps, strength, device):
        timesteps, taken = super().get_timesteps(num_inference_steps, strength, device)
        if isinstance(self.scheduler, PNDMScheduler):
            last = self.scheduler._timesteps[:taken]  # rising; then as in its set_timesteps
            last = np.concatenate([last[:-1], last[-2:-1], last[-1:]])[::-1].copy()
            timesteps = torch.from_numpy(last)
        return timesteps, taken


class Img2Img(LatePipeline, StableDiffusionImg2ImgPipeline):
    pass


def reference(name, prediction_type):
    """diffusers' scheduler for a pipeline, none of it from sdpipe."""
    made = REFERENCE[name](prediction_type=prediction_type)
    return LateLMS.from_config(made.config) if name == "lms" else made


def diffusers_run(kind, parts, scheduler, *, seed, g, steps, **inputs):
    """Latents after every step and the pictures of `PROMPTS`, as diffusers draws them."""
    latents = []

    def keep(_pipe, _index, _timestep, values):
        latents.append(values["latents"].clone())
        return {}

    output = diffusers_pipeline(parts, scheduler, kind)(
        PROMPTS,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(len(PROMPTS))],
        guidance_scale=g,
        num_inference_steps=steps,
        callback_on_step_end=keep,
        **inputs,
    )
    return latents, output.images
