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
REFERENCE = {
    "lms": lambda **k: LMSDiscreteScheduler(**TRAINED, steps_offset=1, **k),
    "ddim": lambda **k: DDIMScheduler(
        **TRAINED, clip_sample=False, set_alpha_to_one=False, steps_offset=1, **k
    ),
    "pndm": lambda **k: PNDMScheduler(
        **TRAINED, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, **k
    ),
    "euler": lambda **k: EulerDiscreteScheduler(**TRAINED, steps_offset=1, **k),
    "euler_a": lambda **k: EulerAncestralDiscreteScheduler(**TRAINED, steps_offset=1, **k),
    "heun": lambda **k: HeunDiscreteScheduler(**TRAINED, steps_offset=1, **k),
    "dpm++": lambda **k: DPMSolverMultistepScheduler(**TRAINED, steps_offset=1, **k),
    "unipc": lambda **k: UniPCMultistepScheduler(**TRAINED, steps_offset=1, **k),
    "lcm": lambda **k: LCMScheduler(**TRAINED, steps_offset=1, **k),
    "tcd": lambda **k: TCDScheduler(**TRAINED, steps_offset=1, **k),
    "dpm++_2m_sde": lambda **k: DPMSolverMultistepScheduler(
        **TRAINED, algorithm_type="sde-dpmsolver++", steps_offset=1, **k
    ),
    "dpm2": lambda **k: KDPM2DiscreteScheduler(**TRAINED, steps_offset=1, **k),
    "dpm2_a": lambda **k: KDPM2AncestralDiscreteScheduler(**TRAINED, steps_offset=1, **k),
    "ddpm": lambda **k: DDPMScheduler(**TRAINED, clip_sample=False, steps_offset=1, **k),
    "deis": lambda **k: DEISMultistepScheduler(**TRAINED, steps_offset=1, **k),
}
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
