from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers import LMSDiscreteScheduler, PNDMScheduler
from numpy.polynomial import Polynomial
from support.errors import raises

from sdpipe.errors import UsageError
from sdpipe.schedule import CLASSES, lms_coefficients, make_scheduler, schedule_for
from sdpipe.settings import (
    DISTILLED_SCHEDULERS,
    KARRAS_SCHEDULERS,
    SCHEDULERS,
    SPACINGS,
    ZERO_SNR_SCHEDULERS,
    Settings,
)

V1_4 = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}


def exact_coefficient(sigmas, i, j, order):
    """The same integral in rational numbers, from the antiderivative of the Lagrange polynomial."""
    points = [Fraction(sigmas[i - k]) for k in range(min(i + 1, order))]
    polynomial = [Fraction(1)]  # coefficients, lowest power first
    for k, p in enumerate(points):
        if k != j:
            scale = points[j] - p
            shifted = [Fraction(0), *polynomial]
            lowered = [*(-p * c for c in polynomial), Fraction(0)]
            polynomial = [(a + b) / scale for a, b in zip(shifted, lowered, strict=True)]
    low, high = Fraction(sigmas[i]), Fraction(sigmas[i + 1])
    return sum(c * (high ** (n + 1) - low ** (n + 1)) / (n + 1) for n, c in enumerate(polynomial))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("karras", [False, True])
def test_lms_coefficients_are_the_integrals_exactly(order, karras):
    scheduler = make_scheduler("lms", V1_4, 50, karras=karras)
    sigmas = scheduler.sigmas.double().tolist()
    table = lms_coefficients(sigmas, order)
    assert len(table) == 50
    for i, row in enumerate(table):
        assert len(row) == min(i + 1, order)
        assert sum(row) == pytest.approx(sigmas[i + 1] - sigmas[i], rel=1e-9)
        for j, c in enumerate(row):
            assert c == pytest.approx(float(exact_coefficient(sigmas, i, j, order)), abs=1e-12)


def test_lms_coefficients_are_those_that_diffusers_approximates():
    ours = make_scheduler("lms", V1_4, 20)
    theirs = LMSDiscreteScheduler.from_config(V1_4)
    theirs.set_timesteps(20)
    for i in range(20):
        for j in range(min(i + 1, 4)):
            expected = theirs.get_lms_coefficient(min(i + 1, 4), i, j)
            assert ours.get_lms_coefficient(min(i + 1, 4), i, j) == pytest.approx(
                expected, abs=1e-4
            )


def test_lms_of_order_4_is_exact_for_a_cubic():
    sigmas = [9.0, 7.5, 6.0, 4.0, 2.5, 1.0, 0.0]
    cubic = Polynomial([1.0, -2.0, 0.5, 0.25])
    for i in range(3, 6):
        row = lms_coefficients(sigmas, 4)[i]
        moved = sum(c * cubic(sigmas[i - j]) for j, c in enumerate(row))
        whole = cubic.integ()
        assert moved == pytest.approx(whole(sigmas[i + 1]) - whole(sigmas[i]), rel=1e-12)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("spacing", [None, *SPACINGS])
def test_one_step_begins_with_noise_or_is_refused(name, spacing):
    """As diffusers' own class places it, with v1-4's configuration."""
    if spacing is not None and name in DISTILLED_SCHEDULERS:
        return
    theirs = (LMSDiscreteScheduler if name == "lms" else CLASSES[name]).from_config(
        V1_4, **({} if spacing is None else {"timestep_spacing": spacing})
    )
    theirs.set_timesteps(1)
    alpha_bar = float(theirs.alphas_cumprod[int(theirs.timesteps[0])])
    settings = Settings(prompt="x", scheduler=name, steps=1, spacing=spacing)
    run = settings.resolved({"width": 64, "height": 64})
    if alpha_bar > 0.5:
        with raises(UsageError, value="steps=1", rule="not from noise", remedy="trailing"):
            schedule_for(run, V1_4, "cpu")
    else:
        schedule = schedule_for(run, V1_4, "cpu")
        assert schedule.sigmas[0] == pytest.approx((1 / alpha_bar - 1) ** 0.5, rel=1e-3)


def test_lms_starts_where_v1_4_starts():
    scheduler = make_scheduler("lms", V1_4, 50)
    assert float(scheduler.init_noise_sigma) == pytest.approx(14.6146, abs=1e-4)
    assert scheduler.timesteps.dtype == torch.float32
    assert not torch.equal(scheduler.timesteps, scheduler.timesteps.round())


def test_lms_order_is_the_default_of_step():
    def draw(lms_order, **step):
        scheduler = make_scheduler("lms", V1_4, 10, lms_order=lms_order)
        x = torch.ones(1, 4, 2, 2) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            eps = torch.sin(scheduler.scale_model_input(x, t))
            x = scheduler.step(eps, t, x, **step).prev_sample
        return x

    assert torch.equal(draw(2), draw(4, order=2))
    assert not torch.equal(draw(2), draw(4))


def test_the_names_are_those_of_the_settings():
    assert tuple(CLASSES) == SCHEDULERS
    with_karras = [name for name, kind in CLASSES.items() if "use_karras_sigmas" in kind().config]
    assert tuple(with_karras) == KARRAS_SCHEDULERS
    zero = [name for name, kind in CLASSES.items() if "rescale_betas_zero_snr" in kind().config]
    assert tuple(zero) == ZERO_SNR_SCHEDULERS


@pytest.mark.parametrize(
    ("name", "count"), [("pndm", 21), ("heun", 39), ("ddim", 20), ("lms", 20), ("unipc", 20)]
)
def test_steps_of_a_model_that_says_nothing_of_its_class(name, count):
    betas = {k: V1_4[k] for k in ("beta_start", "beta_end", "beta_schedule")}
    scheduler = make_scheduler(name, betas, 20)
    assert len(scheduler.timesteps) == count


def test_ddim_and_pndm_are_made_for_latents():
    betas = {k: V1_4[k] for k in ("beta_start", "beta_end", "beta_schedule")}
    ddim = make_scheduler("ddim", betas, 20)
    assert (ddim.config.clip_sample, ddim.config.set_alpha_to_one) == (False, False)
    assert ddim.config.steps_offset == 1
    assert make_scheduler("pndm", betas, 20).config.skip_prk_steps is True
    assert make_scheduler("ddim", {**betas, "steps_offset": 0}, 20).config.steps_offset == 0


def test_pndm_has_its_runge_kutta_steps_if_a_model_wants_them_and_none_are_left_out():
    config = {**V1_4, "skip_prk_steps": False}
    theirs = PNDMScheduler.from_config(config)
    theirs.set_timesteps(20)
    assert torch.equal(make_scheduler("pndm", config, 20).timesteps, theirs.timesteps)
    whole, late = (make_scheduler("pndm", V1_4, 20, skip=skip).timesteps for skip in (0, 4))
    assert torch.equal(late.unique(), whole.unique()[:16])
    assert torch.equal(make_scheduler("pndm", config, 20, skip=4).timesteps, late)


def test_each_run_has_a_scheduler_of_its_own():
    one, other = (make_scheduler("lms", V1_4, 5) for _ in range(2))
    one.scale_model_input(torch.ones(1, 4, 2, 2), one.timesteps[0])
    one.step(torch.ones(1, 4, 2, 2), one.timesteps[0], torch.ones(1, 4, 2, 2))
    assert one.derivatives
    assert not other.derivatives
    assert np.array_equal(one.timesteps, other.timesteps)
