"""From noise to latents: what a run says of a scheduler that does not fit the model's config."""

import warnings
from dataclasses import replace

import pytest

from sdpipe import SdpipeWarning

ZERO_SNR = {"rescale_betas_zero_snr": True}


@pytest.mark.filterwarnings("ignore:the latents grew to")  # the tiny model's weights are random
def test_a_setting_of_the_model_that_the_scheduler_lacks_is_named(tiny):
    pipe = tiny.with_parts()
    config = {**tiny.components.scheduler_config, **ZERO_SNR}
    pipe.components = replace(pipe.components, scheduler_config=config)
    same = {"steps": 2, "dim": 64, "seed": 1, "g": 1}
    with pytest.warns(SdpipeWarning, match="rescale_betas_zero_snr, which heun .* with ddim, eul"):
        pipe.generate("a cat", scheduler="heun", **same)
    with warnings.catch_warnings(record=True) as issued:
        pipe.generate("a cat", scheduler="ddim", **same)
    assert not any("rescale_betas" in str(warning.message) for warning in issued)


@pytest.mark.filterwarnings("ignore:the latents grew to")
def test_what_a_run_warns_of_is_said_once_for_all_its_batches(tiny):
    same = {"steps": 2, "dim": 64, "seed": 1, "n": 2, "batch_invariant": True}
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always", SdpipeWarning)
        tiny.generate("a cat", scheduler="ddim", g=3, guidance_interval=(20, 30), **same)
    assert sum("guidance_interval" in str(warning.message) for warning in issued) == 1


def test_a_solver_without_an_order_is_given_other_remedies(tiny):
    with pytest.warns(SdpipeWarning, match=r"is wrong\. Take a g below 7, or more steps than 2"):
        tiny.generate("a cat", scheduler="euler", steps=2, dim=64, seed=1, g=7)
