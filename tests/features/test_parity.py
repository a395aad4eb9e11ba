"""The loop against diffusers' own StableDiffusionPipeline, on the built-in model's weights."""

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionPipeline,
)
from support.parity import (
    PROMPT,
    REFERENCE,
    assert_equal,
    diffusers_run,
)

from sdpipe.settings import KARRAS_SCHEDULERS, SCHEDULERS

pytestmark = pytest.mark.filterwarnings("ignore:lcm is for distilled")


@pytest.mark.parametrize("g", [1.0, 3.0])
@pytest.mark.parametrize("scheduler", ["lms", "heun", "dpm++", "euler_a"])
def test_an_image_alone_is_what_diffusers_draws(emoji, scheduler, g):
    same = {"seed": 7, "g": g, "steps": 6, "width": 64, "height": 64}
    order = {"lms_order": 4} if scheduler == "lms" else {}  # diffusers' pipeline always takes 4
    ours = emoji.generate(PROMPT, scheduler=scheduler, save_int=True, **order, **same)
    theirs = diffusers_run(emoji.components, REFERENCE[scheduler](), [PROMPT], **same)
    assert_equal(ours, theirs)


@pytest.mark.parametrize("scheduler", KARRAS_SCHEDULERS)
def test_karras_noise_levels_are_those_of_diffusers(emoji, scheduler):
    same = {"seed": 3, "g": 2.0, "steps": 5, "width": 64, "height": 64}
    order = {"lms_order": 4} if scheduler == "lms" else {}
    ours = emoji.generate(PROMPT, scheduler=scheduler, karras=True, save_int=True, **order, **same)
    reference = REFERENCE[scheduler](use_karras_sigmas=True)
    theirs = diffusers_run(emoji.components, reference, [PROMPT], **same)
    assert_equal(ours, theirs)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_draws_what_diffusers_draws(emoji, scheduler):
    """Several images, with a negative prompt, on a rectangle."""
    same = {"seed": 11, "g": 4.0, "steps": 5, "width": 96, "height": 64}
    prompts = ["red apple", "rocket on a pink background"]
    order = {"lms_order": 4} if scheduler == "lms" else {}
    ours = emoji.generate(
        prompts, negative_prompt="banana", scheduler=scheduler, save_int=True, **order, **same
    )
    reference = REFERENCE[scheduler]()
    theirs = diffusers_run(emoji.components, reference, prompts, negative="banana", **same)
    assert_equal(ours, theirs)


def test_diffusers_opens_the_built_in_model_by_itself(emoji):
    pipe = StableDiffusionPipeline.from_pretrained(
        emoji.components.model.folder, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(5))
    torch.nn.Module.to(pipe.text_encoder, torch.float32)
    # diffusers' pipeline always takes LMS of order 4, ours what sdpipe.json says.
    theirs = pipe("cat", latents=noise, guidance_scale=3.0, num_inference_steps=5).images
    ours = emoji.generate("cat", seed=5, g=3, steps=5, lms_order=4).images
    difference = np.asarray(ours[0]).astype(int) - np.asarray(theirs[0]).astype(int)
    assert np.abs(difference).max() <= 1
