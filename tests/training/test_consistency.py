"""Distillation: the consistency function, the teacher's paths, and the LoRA that comes out."""

from dataclasses import replace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, LCMScheduler, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from support.errors import raises
from support.training_run import write_images

from sdpipe import Pipeline, UsageError
from sdpipe.loading.lora import Lora
from sdpipe.training.adapter import add_adapters
from sdpipe.training.consistency import (
    ConsistencyLoss,
    Teacher,
    boundary_scalings,
    path_timesteps,
    pseudo_huber,
)
from sdpipe.training.job import plan_job
from sdpipe.training.recipe_file import load_distillation
from sdpipe.training.train import train

STAGE = replace(load_distillation(), sampler_steps=2, solver_steps=2)


def test_f_is_the_identity_at_0_and_what_diffusers_draws_with_elsewhere():
    c_skip, c_out = boundary_scalings(torch.tensor([0, 1, 259, 999]))
    assert (c_skip[0], c_out[0]) == (1, 0)
    scheduler = LCMScheduler()
    for t, *ours in zip((1, 259, 999), c_skip[1:], c_out[1:], strict=True):
        theirs = scheduler.get_scalings_for_boundary_condition_discrete(t)
        assert [float(c) for c in ours] == pytest.approx([float(c) for c in theirs])


def test_the_loss_is_square_near_0_and_absolute_far_from_it():
    x = torch.tensor([1e-5, 100.0])
    near, far = (float(pseudo_huber(v, torch.zeros(()))) for v in x)
    assert near == pytest.approx(1e-10 / 2e-3, rel=0.01)
    assert far == pytest.approx(100 - 1e-3)


def test_the_teacher_stops_where_the_sampler_will_ask():
    times = path_timesteps([999, 759, 499, 259], 2)
    assert times == [999, 879, 759, 629, 499, 379, 259, 130]


@torch.no_grad()
def test_a_path_is_that_of_the_guided_pipeline(folder, tiny):
    """diffusers' own solver and pipeline, at the same timesteps."""
    model, times = tiny.components, [999, 749, 499, 250]
    theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    theirs.scheduler = DPMSolverMultistepScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    x_t = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    cond, uncond, *_ = theirs.encode_prompt("a red cat", "cpu", 1, True)
    points, end = Teacher(model, STAGE).follow(x_t, cond, uncond)
    seen = [x_t]
    expected = theirs(
        prompt_embeds=cond,
        negative_prompt_embeds=uncond,
        latents=x_t,
        timesteps=times,
        guidance_scale=7.5,
        height=64,
        width=64,
        output_type="latent",
        callback_on_step_end=lambda pipe, i, t, values: seen.append(values["latents"]) or values,
    ).images
    torch.testing.assert_close(points[0], torch.cat([seen[0], seen[2]]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(end, expected, rtol=1e-4, atol=1e-4)


def test_only_adapters_learn_and_begin_without_an_effect(folder):
    model = Pipeline(folder, device="cpu", dtype="float32").components
    model.unet.requires_grad_(False)
    x_t, t = torch.randn(2, 4, 8, 8), torch.tensor([999, 499])
    text = torch.randn(2, 77, model.text_encoder.config.hidden_size)
    with torch.no_grad():
        before = model.unet(x_t, t, text).sample
    loss = ConsistencyLoss(model, add_adapters(model.unet, 2))
    after = model.unet(x_t, t, text).sample
    assert torch.equal(before, after)
    loss(x_t, t, text, torch.zeros_like(x_t)).backward()
    assert not [p for p in model.unet.parameters() if p.grad is not None]
    assert all(a.up.weight.grad.abs().sum() > 0 for a in loss.adapters.values())


@pytest.fixture(scope="module")
def distilled(folder, tmp_path_factory):
    """A job of a few steps, and the LoRA that it makes."""
    place = tmp_path_factory.mktemp("distilled")
    write_images(place / "data")
    job = plan_job(
        distill=str(folder), data=place / "data", out=place / "tiny-lcm", steps=2, device="cpu"
    )
    stage = replace(job.recipe.consistency, paths=3, batch_size=2, steps=4, rank=2)
    job = replace(job, recipe=replace(job.recipe, consistency=stage))
    return job, train(job, save_every=0)


def test_a_stopped_distillation_ends_with_the_same_weights(distilled, tmp_path):
    """Stopped after the first batch of paths, and in the middle of the training."""
    job, lora = distilled
    steps = []

    def stop(task, done, total, note=""):
        steps.append((task, done))
        if steps[-1] in (("drawing the teacher's paths", 2), ("consistency", 2)):
            raise KeyboardInterrupt

    job = replace(job, out=tmp_path / "again")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(job, save_every=0, progress=stop)
    again = load_file(train(job, save_every=0))
    assert steps.count(("drawing the teacher's paths", 2)) == 1
    whole = load_file(lora)
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert any(tensor.abs().sum() for name, tensor in whole.items() if "lora_B" in name)


@pytest.mark.filterwarnings("ignore:the latents grew")  # the model's weights are random
def test_the_lora_brings_its_settings_and_draws_what_diffusers_draws(distilled, folder):
    _, lora = distilled
    assert lora.name == "tiny-lcm.safetensors"
    with safe_open(lora, "pt") as file:
        notes = file.metadata()
    assert notes["modelspec.architecture"] == "stable-diffusion-v1/lora"  # of ModelSpec's ids
    assert notes["modelspec.title"] == "tiny-lcm"
    assert notes["modelspec.hash_sha256"] == f"0x{Lora.read(lora).tensors_sha256}"
    pipe = Pipeline(folder, loras=[lora], device="cpu", dtype="float32")
    steps = list(pipe.stream("a red cat", seed=3))
    settings = pipe.generate("a red cat", seed=3).settings[0]
    assert (settings.steps, settings.g, settings.scheduler) == (2, 1.0, "lcm")
    theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    theirs.load_lora_weights(lora.parent, weight_name=lora.name)
    theirs.scheduler = LCMScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(3)
    latents = torch.randn((1, 4, 8, 8), generator=generator)
    expected = theirs(
        "a red cat",
        latents=latents,
        num_inference_steps=2,
        guidance_scale=1.0,
        height=64,
        width=64,
        generator=generator,
        output_type="latent",
    ).images
    torch.testing.assert_close(steps[-1].latents, expected, rtol=1e-4, atol=1e-4)


def test_its_weight_0_leaves_the_models_own_settings(distilled, folder):
    defaults = Pipeline(folder, loras=[(distilled[1], 0)]).components.defaults
    assert "scheduler" not in defaults


@pytest.mark.parametrize(
    ("arguments", "value", "rule"),
    [
        ({"distill": "emoji", "start": "emoji"}, "from='emoji'", "does not go with --distill"),
        ({"distill": "my/model"}, "distill='my/model'", "needs captions"),
        ({"distill": "emoji", "steps": 0}, "steps=0", "less than 1"),
        ({"distill": "emoji", "steps": 60}, "steps=60", "50 timesteps"),
    ],
)
def test_wrong_usage_is_refused(arguments, value, rule):
    with raises(UsageError, value=value, rule=rule):
        plan_job(**arguments)


def test_the_built_in_model_is_distilled_with_its_own_captions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = plan_job(distill="emoji", steps=8)
    assert (job.entries, job.out.as_posix()) == (None, "runs/emoji-lcm")
    assert job.recipe.consistency.sampler_steps == 8
