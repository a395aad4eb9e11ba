"""The loop by itself, on a U-Net whose answer is known in closed form."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from support.denoise_runs import BETAS, TARGET, Oracle, run

from sdpipe.denoise import denoise, predict_x0
from sdpipe.guidance import predict_guided
from sdpipe.schedule import Schedule, make_scheduler
from sdpipe.settings import SCHEDULERS


@pytest.mark.parametrize("name", SCHEDULERS)
def test_x0_is_the_image_at_every_step(name):
    _, steps = run(name)
    for step in steps:
        # Float32 leaves sigma times its precision of the noise in x0.
        assert torch.allclose(step.x0, TARGET, atol=2e-4), step.index
    first, last = steps[0], steps[-1]
    assert [s.index for s in steps] == list(range(len(steps)))
    assert first.total == len(steps)
    assert first.timestep > 800
    assert first.sigma > 5 > last.sigma > last.sigma_next


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_last_latents_are_the_image(name):
    _, steps = run(name, steps=20)
    left = steps[-1].sigma_next  # ddim and pndm stop at the first training timestep
    assert torch.allclose(steps[-1].latents, TARGET, atol=2e-3 + 4 * left)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_sigma_next_is_the_sigma_of_the_next_input(name):
    _, steps = run(name)
    for step, after in pairwise(steps):
        assert step.sigma_next == after.sigma
        assert step.timestep >= after.timestep


@pytest.mark.parametrize("name", ["lms", "euler", "ddim", "dpm++"])
def test_v_prediction_ends_at_the_same_image(name):
    _, steps = run(name, config={**BETAS, "prediction_type": "v_prediction"})
    assert torch.allclose(steps[0].x0, TARGET, atol=2e-3)
    assert torch.allclose(steps[-1].x0, TARGET, atol=2e-3)


def test_guidance_is_literal_and_one_and_zero_cost_half():
    unet, steps = run(g=1.0)
    assert set(unet.calls) == {1}
    assert torch.allclose(steps[-1].x0, TARGET, atol=1e-3)
    unet, steps = run(g=0.0)
    assert set(unet.calls) == {1}
    assert torch.allclose(steps[-1].x0, 3 * TARGET, atol=1e-3)
    unet, steps = run(g=2.5)
    assert set(unet.calls) == {2}
    assert torch.allclose(steps[-1].x0, (3 + 2.5 * (1 - 3)) * TARGET, atol=1e-3)
    _, steps = run(g=-1.0)
    assert torch.allclose(steps[-1].x0, 5 * TARGET, atol=2e-3)


def test_uncond_comes_first_in_the_batch():
    scheduler = make_scheduler("euler", BETAS, 4)
    seen = []

    class Recorder(Oracle):
        def __call__(self, x_in, t, text):
            seen.append(text.clone())
            return super().__call__(x_in, t, text)

    cond, uncond = torch.ones(2, 3, 5), torch.zeros(2, 3, 5)
    x_in, t = torch.zeros(2, 4, 2, 2), scheduler.timesteps[0]
    predict_guided(Recorder(scheduler), x_in, t, cond, uncond, 3.0)
    assert torch.equal(seen[0], torch.cat([uncond, cond]))


def test_the_noise_of_a_stochastic_scheduler_is_each_images_own():
    _, together = run("euler_a", batch=3)
    _, alone = run("euler_a", batch=1)
    assert torch.allclose(together[3].latents[:1], alone[3].latents, atol=1e-6)
    _, other = run("ddim", batch=3)
    assert torch.allclose(other[3].x0[2:], TARGET, atol=2e-3)


def test_stopping_is_break_and_nothing_runs_ahead():
    scheduler = make_scheduler("lms", BETAS, 10)
    unet = Oracle(scheduler)
    x_t = torch.randn(1, 4, 2, 2) * scheduler.init_noise_sigma
    cond = torch.ones(1, 3, 5)
    for step in denoise(unet, scheduler, x_t, cond, cond, 1.0):
        if step.index == 2:
            break
    assert len(unet.calls) == 3


def test_only_schedulers_that_scale_their_input_have_an_exploding_variance():
    kinds = {name: run(name)[1][0].variance_exploding for name in SCHEDULERS}
    assert [name for name, explodes in kinds.items() if explodes] == [
        "lms",
        "euler",
        "euler_a",
        "heun",
        "dpm2",
        "dpm2_a",
    ]


def test_predict_x0_undoes_the_forward_process():
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn((2, 4, 3, 3), generator=generator) for _ in range(2))
    for sigma in (0.03, 1.0, 14.6):
        alpha_bar = 1 / (1 + sigma**2)
        x_in = alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * eps
        v = alpha_bar**0.5 * eps - (1 - alpha_bar) ** 0.5 * x_0
        assert torch.allclose(predict_x0(x_in, eps, sigma, "epsilon"), x_0, atol=1e-4)
        assert torch.allclose(predict_x0(x_in, v, sigma, "v_prediction"), x_0, atol=1e-5)
        assert predict_x0(x_in, x_0, sigma, "sample") is x_0


def test_a_step_of_one_image_has_its_tensors_alone():
    _, steps = run("euler", batch=3)
    step = steps[2].only(1)
    assert step.images == range(1, 2)
    for name in ("input", "latents", "x0"):
        assert torch.equal(getattr(step, name), getattr(steps[2], name)[1:2])
    assert (step.index, step.sigma_next) == (2, steps[2].sigma_next)
    late = replace(steps[2], images=range(6, 9)).only(8)
    assert late.images == range(8, 9)
    assert torch.equal(late.x0, steps[2].x0[2:])


def test_the_input_of_a_step_is_what_the_step_before_left():
    _, steps = run("lms", batch=2)
    for step, after in pairwise(steps):
        assert torch.equal(after.input, step.latents)
    assert [step.is_last for step in steps] == [False] * 7 + [True]


def test_a_bare_scheduler_and_its_schedule_are_the_same_run():
    scheduler = make_scheduler("euler_a", BETAS, 5)
    _, expected = run("euler_a", steps=5)
    unet = Oracle(scheduler)
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn((1, 4, 2, 2), generator=generator) * scheduler.init_noise_sigma
    cond = torch.ones(1, 3, 5)
    found = denoise(unet, Schedule.of(scheduler), x_t, cond, 0 * cond, 1.0, [generator])
    for step, other in zip(found, expected, strict=True):
        assert torch.equal(step.latents, other.latents)


@pytest.mark.parametrize("name", ["euler", "ddim"])
def test_a_constraint_is_applied_after_every_step_at_its_noise_level(name):
    scheduler = make_scheduler(name, BETAS, 4)
    seen = []

    def constraint(x_t, sigma):
        seen.append(sigma)
        return torch.full_like(x_t, sigma)

    x_t = torch.randn(1, 4, 2, 2) * scheduler.init_noise_sigma
    cond = torch.ones(1, 3, 5)
    steps = list(denoise(Oracle(scheduler), scheduler, x_t, cond, cond, 1, constraint=constraint))
    assert seen[:-1] == [step.sigma_next for step in steps[:-1]]
    assert seen[-1] == 0  # also where the scheduler leaves some noise, as DDIM does
    assert (steps[-1].sigma_next > 0) == (name == "ddim")
    for step, sigma in zip(steps, seen, strict=True):
        assert torch.equal(step.latents, torch.full_like(x_t, sigma))


@pytest.mark.parametrize(
    ("name", "steps", "turns"),
    [("euler", 6, [0, 0, 1, 1, 2, 2]), ("heun", 3, [0, 0, 1, 1, 2]), ("euler", 4, [0, 0, 1, 2])],
)
def test_several_embeddings_take_turns_of_equal_shares(name, steps, turns):
    """As U-Net calls, of which Heun's method makes two a step."""
    scheduler = make_scheduler(name, BETAS, steps)
    x_t = torch.randn(1, 4, 2, 2) * scheduler.init_noise_sigma
    here, there = torch.ones(1, 3, 5), torch.zeros(1, 3, 5)
    for k in range(3):
        cond = [here if turn == k else there for turn in range(3)]
        found = denoise(Oracle(scheduler), Schedule.of(scheduler), x_t, cond, there, 1)
        for step, turn in zip(found, turns, strict=True):
            assert torch.allclose(step.x0, TARGET * (1 if turn == k else 3), atol=2e-3)
        scheduler = make_scheduler(name, BETAS, steps)


def test_the_unet_is_called_in_its_dtype_and_the_rest_is_float32():
    scheduler = make_scheduler("euler", BETAS, 2)
    seen = set()

    class Half(Oracle):
        dtype = torch.float16

        def __call__(self, x_in, t, text):
            seen.update({x_in.dtype, text.dtype})
            output = super().__call__(x_in, t, text)
            output.sample = output.sample.half()
            return output

    x_t, cond = torch.randn(2, 4, 2, 2) * scheduler.init_noise_sigma, torch.ones(2, 3, 5)
    for step in denoise(Half(scheduler), scheduler, x_t, cond, [cond.double()], 2.0):
        assert {step.input.dtype, step.latents.dtype, step.x0.dtype} == {torch.float32}
    assert seen == {torch.float16}
