"""diffusers' own StableDiffusionPipeline, to draw a picture from the same parts and noise.

What it cannot draw as the loop does is refused; what has to be assumed is told.
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
from sdpipe.settings import Settings
from sdpipe.values import Scale, format_scale

if TYPE_CHECKING:
    from diffusers import SchedulerMixin
    from torch import Tensor

    from sdpipe.components import Components


def check_guidance(g: Scale | None, rescale: float = 0.0) -> None:
    """Refuses scales at which diffusers' pipeline draws something else.

    Raises:
        UsageError: g is between 0 and 1, not above 1 at every step, or negative and rescaled.
    """
    if g is None:
        return
    if isinstance(g, tuple):
        if min(g) <= 1:
            raise UsageError(
                f"g={format_scale(g, 'g')}",
                "is not above 1 at every step, and diffusers' pipeline cannot stop guiding on its "
                "way: there is nothing to compare with",
                "use a pair above 1",
            )
        return
    if g < 0 and rescale:
        raise UsageError(
            f"g={g:g} is drawn by diffusers' pipeline with the prompts in each other's places, and "
            "would be rescaled by the wrong one; leave rescale out, or take a g above 1."
        )
    if 0 < g < 1:
        raise UsageError(
            f"g={g:g} is between 0 and 1, where diffusers' pipeline leaves the guidance out and "
            "draws as for 1: there is nothing to compare with; take 0, 1 or another number."
        )


def plain_text(prompt: str) -> str:
    """What a prompt says where it is nothing but text, as diffusers' pipeline takes it.

    Raises:
        UsageError: it has weights, breaks, or words that change over the steps.
    """
    read = parse(prompt)
    parts = read.at(0, 1)
    if read.is_scheduled or len(parts) > 1 or any(weight != 1 for _, weight in parts[0]):
        raise UsageError(
            f"prompt={prompt!r} has weights or other signs, which diffusers' pipeline takes for "
            r"text: there is nothing to compare with; leave them out, or write \( for a bracket."
        )
    return "".join(text for text, _ in parts[0])


def check_length(parts: "Components", text: str) -> None:
    """Refuses a prompt of which diffusers' pipeline would draw the beginning alone.

    Raises:
        UsageError: it has more tokens than the text encoder takes at once.
    """
    room = parts.tokenizer.model_max_length
    if len(split_tokens(parts.tokenizer, (((text, 1.0),),))) > 1:
        raise UsageError(
            f"prompt={text!r} has more than {room - 2} tokens, of which diffusers' pipeline drops "
            "the rest: there is nothing to compare with; take a shorter one."
        )


def draw_with_diffusers(
    parts: "Components", run: Settings, on_step: "Callable[[Tensor], object]"
) -> tuple[Image.Image, list[str]]:
    """The picture as diffusers' pipeline draws it from the same parts, and what was assumed.

    run: the settings of one picture, resolved. `on_step` is called with the latents after each of
    its steps, (1, C, h, w), in the parts' dtype.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    from sdpipe.latents import draw_noise, make_generators, vae_factor

    class Drawer(StableDiffusionPipeline):
        """diffusers' pipeline with a g of its own at each step, which it reads anew every time."""

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
    # Of an old UNet it takes a size below 64 for a mistake and makes it 64: the UNet is ours too.
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

    assert run.seed is not None
    assert run.width is not None
    assert run.height is not None
    factor = vae_factor(parts.vae)
    generators = make_generators([run.seed])
    shape = (parts.unet.config.in_channels, run.height // factor, run.width // factor)
    images = drawer(
        prompt,
        negative_prompt=negative,
        latents=draw_noise(generators, shape).to(parts.dtype),
        generator=generators,
        guidance_scale=g_at(0, 1),
        guidance_rescale=run.guidance_rescale,
        num_inference_steps=run.steps,
        width=run.width,
        height=run.height,
        callback_on_step_end=keep,
    ).images
    return images[0], notes


def _scheduler(parts: "Components", run: Settings, notes: list[str]) -> "SchedulerMixin":
    """The scheduler as diffusers has it; its pipeline places the steps itself."""
    from diffusers import LMSDiscreteScheduler

    from sdpipe.schedule import make_scheduler

    assert run.scheduler is not None
    assert run.steps is not None
    made = make_scheduler(run.scheduler, parts.scheduler_config, run.steps, karras=run.karras)
    if run.scheduler != "lms":
        return type(made).from_config(made.config)
    scheduler = LMSDiscreteScheduler.from_config(made.config)
    if run.lms_order != 4:
        # Its pipeline has no way to ask for another order.
        scheduler.step = functools.partial(scheduler.step, order=run.lms_order)
        notes.append(f"diffusers' pipeline takes LMS of order 4; here it was given {run.lms_order}")
    return scheduler


def _guidance(run: Settings, notes: list[str]) -> tuple[str, str, Scale]:
    """Prompt, negative prompt and g with which diffusers' pipeline draws what `run` says.

    For g <= 1 it takes the prompt alone. uncond + g (cond - uncond) is also
    cond + (1 - g) (uncond - cond): the two prompts change places.
    """
    assert run.g is not None
    prompt, negative = plain_text(run.prompt), plain_text(run.negative_prompt)
    if isinstance(run.g, tuple) or run.g > 0:
        return prompt, negative, run.g
    notes.append(
        f"diffusers' pipeline has no g = {run.g:g}: prompt and negative prompt changed places, and "
        f"g is {1 - run.g:g}, which is the same formula"
    )
    return negative, prompt, 1 - run.g
