import copy
import functools

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    TCDScheduler,
    UniPCMultistepScheduler,
)

BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


TRAINED = {**BETAS, "prediction_type": "v_prediction"}  # as the built-in model was


# Written out from what each class needs for latents, not through sdpipe.schedule.
KINDS = {
    "lms": (LMSDiscreteScheduler, {}),
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "dpm++": (DPMSolverMultistepScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
    "lcm": (LCMScheduler, {}),
    "tcd": (TCDScheduler, {}),
    "dpm++_2m_sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "dpm2": (KDPM2DiscreteScheduler, {}),
    "dpm2_a": (KDPM2AncestralDiscreteScheduler, {}),
    "ddpm": (DDPMScheduler, {"clip_sample": False}),
    "deis": (DEISMultistepScheduler, {}),
}


@functools.cache
def made(name, changes):
    kind, config = KINDS[name]
    return kind(**{**TRAINED, "steps_offset": 1, **config, **dict(changes)})


def new_scheduler(name, **changes):
    """diffusers' own, as a copy: half a second goes by while it makes one of dpm2."""
    return copy.deepcopy(made(name, tuple(changes.items())))


REFERENCE = {name: functools.partial(new_scheduler, name) for name in KINDS}
TWICE = ("heun", "dpm2", "dpm2_a")  # a step calls the U-Net twice, the last one once


PROMPT = "red apple on a blue background"


def diffusers_pipeline(parts, scheduler, kind=StableDiffusionPipeline):
    """diffusers' own pipeline on a model's parts."""
    pipe = kind(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        unet=parts.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def diffusers_run(
    parts, scheduler, prompts, *, seed, g, steps, width, height, negative=None, **more
):
    """Latents after every step and the pictures, as diffusers draws them from the same noise."""
    pipe = diffusers_pipeline(parts, scheduler)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    shape = (1, 4, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor)
    noise = torch.cat([torch.randn(shape, generator=g_) for g_ in generators])
    latents = []

    def keep(_pipe, _index, _timestep, values):
        latents.append(values["latents"].clone())
        return {}

    output = pipe(
        prompts,
        negative_prompt=None if negative is None else [negative] * len(prompts),
        latents=noise,
        generator=generators,
        guidance_scale=g,
        num_inference_steps=steps,
        width=width,
        height=height,
        output_type="pil",
        callback_on_step_end=keep,
        **more,
    )
    return latents, output.images


def assert_equal(result, reference):
    latents, images = reference
    assert len(result.steps) == len(latents)
    for step, expected in zip(result.steps, latents, strict=True):
        error = (step.latents - expected).abs().max() / expected.abs().max()
        assert error < 1e-4, f"step {step.index}: {error:.1e}"
    assert len(result.images) == len(images)
    for ours, theirs in zip(result.images, images, strict=True):
        difference = np.asarray(ours).astype(int) - np.asarray(theirs).astype(int)
        assert np.abs(difference).max() <= 1
