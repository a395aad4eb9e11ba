"""Draws an image with diffusers' StableDiffusionPipeline, from the same weights and noise.

Settings that it cannot draw as the loop does are refused; assumptions are returned as notes.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from PIL import Image

from sdpipe.errors import UsageError
from sdpipe.guidance import Guidance
from sdpipe.prompt.chunks import split_tokens
from sdpipe.prompt.syntax import parse
from sdpipe.runtime.device import dtype_name
from sdpipe.settings import ResolvedSettings
from sdpipe.values import Scale, format_scale

if TYPE_CHECKING:
    from diffusers import SchedulerMixin
    from torch import Tensor

    from sdpipe.components import Components


def check_guidance(g: Scale | None, rescale: float = 0.0) -> None:
    """Checks that diffusers' pipeline can draw with a guidance scale.

    Raises:
        UsageError: g is between 0 and 1, not above 1 at every step, or negative and rescaled.
    """
    if g is None:
        return
    if isinstance(g, tuple):
        if min(g) <= 1:
            raise UsageError(
                f"g={format_scale(g, 'g')}",
                "is not above 1 at every step, and diffusers' pipeline cannot stop guiding midway",
                "use a pair above 1",
            )
        return
    if g < 0 and rescale:
        raise UsageError(
            f"guidance_rescale={rescale:g}",
            f"cannot be compared at g={g:g}, which diffusers' pipeline draws with swapped prompts",
            "leave it out, or use a g above 1",
        )
    if 0 < g < 1:
        raise UsageError(
            f"g={g:g}",
            "is between 0 and 1, where diffusers' pipeline draws without guidance, as for 1",
            "use a value outside of that range",
        )


def plain_text(prompt: str) -> str:
    """A prompt without syntax, as diffusers' pipeline reads it.

    Raises:
        UsageError: it has weights, breaks, or words that change over the steps.
    """
    read = parse(prompt)
    parts = read.at(0, 1)
    if read.is_scheduled or len(parts) > 1 or any(weight != 1 for _, weight in parts[0]):
        raise UsageError(
            f"prompt={prompt!r}",
            "has weights or other syntax, which diffusers' pipeline does not read",
            r"leave it out, or write \( for a bracket",
        )
    return "".join(text for text, _ in parts[0])


def check_length(parts: "Components", text: str) -> None:
    """Checks that a prompt fits into one chunk, since diffusers' pipeline cuts longer ones.

    Raises:
        UsageError: it is longer.
    """
    room = parts.tokenizer.model_max_length
    if len(split_tokens(parts.tokenizer, (((text, 1.0),),))) > 1:
        raise UsageError(
            f"prompt={text!r}",
            f"has more than {room - 2} tokens, and diffusers' pipeline drops the rest",
            "use a shorter one",
        )


def draw_with_diffusers(
    parts: "Components", run: ResolvedSettings, on_step: "Callable[[Tensor], object]"
) -> tuple[Image.Image, list[str]]:
    """Draws an image with diffusers' pipeline; returns it with notes on what was assumed.

    run: the settings of one image. on_step: called with the latents after each step,
        (1, C, h, w), in the dtype of the parts.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    from sdpipe.latents import draw_noise, make_generators, vae_factor
    from sdpipe.runtime.philox import DrawFrom

    class Drawer(StableDiffusionPipeline):
        """diffusers' pipeline with its own g at each step; it reads this property at each."""

        steps_done = 0

        @property
        def guidance_scale(self) -> float:
            return g_at(self.steps_done, len(self.scheduler.timesteps))

    notes: list[str] = []
    scheduler = _scheduler(parts, run, notes)
    before, size = dict(scheduler.config), parts.unet.config.sample_size
    drawer = Drawer(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        unet=parts.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    # diffusers sets the size of an old U-Net below 64 to 64, and this U-Net is shared: undo it.
    parts.unet.register_to_config(sample_size=size)
    notes += [
        f"diffusers' pipeline sets {name} of the scheduler to {value}; the model has {before[name]}"
        for name, value in scheduler.config.items()
        if before.get(name, value) != value
    ]
    drawer.set_progress_bar_config(disable=True)
    prompt, negative, g = _guidance(run, notes)
    g_at = functools.partial(Guidance(g).at, sigma=0.0)
    if parts.dtype != torch.float32:
        dtype = dtype_name(parts.dtype)
        notes.append(
            f"diffusers' pipeline rounds the latents to {dtype} after every step, so only large "
            "faults are seen; float32 shows small ones"
        )

    def keep(drawer: Any, i: int, _: object, values: "dict[str, Tensor]") -> "dict[str, Tensor]":
        on_step(values["latents"])
        drawer.steps_done = i + 1
        return {}

    factor = vae_factor(parts.vae)
    generators = make_generators([run.seed], run.rng)
    shape = (parts.unet.config.in_channels, run.height // factor, run.width // factor)
    noise = draw_noise(generators, shape).to(parts.dtype)
    with DrawFrom(generators):
        images = drawer(
            prompt,
            negative_prompt=negative,
            latents=noise,
            generator=[g for g in generators if isinstance(g, torch.Generator)] or None,
            guidance_scale=g_at(0, 1),
            guidance_rescale=run.guidance_rescale,
            eta=run.eta or 0.0,
            num_inference_steps=run.steps,
            width=run.width,
            height=run.height,
            callback_on_step_end=keep,
        ).images
    return images[0], notes


def _scheduler(parts: "Components", run: ResolvedSettings, notes: list[str]) -> "SchedulerMixin":
    """diffusers' own scheduler; its pipeline sets the timesteps."""
    from diffusers import LMSDiscreteScheduler

    from sdpipe.schedule import schedule_for

    made = schedule_for(run, parts.scheduler_config, parts.device).scheduler
    if run.scheduler != "lms":
        return type(made).from_config(made.config)
    scheduler = LMSDiscreteScheduler.from_config(made.config)
    if run.lms_order != 4:
        # diffusers' pipeline has no parameter for the order.
        scheduler.step = functools.partial(scheduler.step, order=run.lms_order)
        notes.append(f"diffusers' pipeline takes LMS of order 4; here it was given {run.lms_order}")
    return scheduler


def _guidance(run: ResolvedSettings, notes: list[str]) -> tuple[str, str, Scale]:
    """Prompt, negative prompt and g for diffusers' pipeline, so that it draws the same.

    For g <= 1 it uses the prompt alone. As uncond + g (cond - uncond) equals
    cond + (1 - g) (uncond - cond), g <= 0 is drawn with swapped prompts.
    """
    prompt, negative = plain_text(run.prompt), plain_text(run.negative_prompt)
    if isinstance(run.g, tuple) or run.g > 0:
        return prompt, negative, run.g
    notes.append(
        f"diffusers' pipeline has no g = {run.g:g}: prompt and negative prompt were swapped, and "
        f"g is {1 - run.g:g}, which is the same formula"
    )
    return negative, prompt, 1 - run.g
