"""What models of few steps need: where the steps are, zero terminal SNR, their own schedulers."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from support.errors import raises
from support.images import PROMPTS, Img2Img, picture
from support.images import diffusers_run as diffusers_redraw
from support.parity import PROMPT, REFERENCE, assert_equal, diffusers_run
from support.tiny import tiny_model

from sdpipe import Pipeline, SdpipeWarning, UsageError
from sdpipe.cli.app import main
from sdpipe.components import inspect_model
from sdpipe.latents import pil_to_latents
from sdpipe.loading.configs import OWN_SCHEDULERS
from sdpipe.metadata import a1111
from sdpipe.schedule import CLASSES
from sdpipe.settings import DISTILLED_SCHEDULERS, SCHEDULERS, ZERO_SNR_SCHEDULERS

TURBO = {
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
    "use_karras_sigmas": False,
}
LCM = {
    "_class_name": "LCMScheduler",
    "original_inference_steps": 50,
    "timestep_spacing": "leading",
    "timestep_scaling": 10.0,
    "rescale_betas_zero_snr": False,
}
SMALL = {"seed": 7, "g": 2.0, "steps": 3, "width": 64, "height": 64}


def folder_with(place, config, **own):
    """A tiny model with this scheduler config, and settings of its own."""
    folder = tiny_model(place, size=64)
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    if own:
        (folder / "sdpipe.json").write_text(json.dumps(own))
    return folder


@pytest.mark.parametrize(
    ("scheduler", "spacing"),
    [
        *((s, "trailing") for s in SCHEDULERS if s not in DISTILLED_SCHEDULERS),
        *((s, "leading") for s in ("lms", "euler_a", "dpm++")),
        *((s, "linspace") for s in ("ddim", "pndm", "ddpm")),
    ],
)
def test_steps_are_where_diffusers_has_them(emoji, scheduler, spacing):
    order = {"lms_order": 4} if scheduler == "lms" else {}
    ours = emoji.generate(
        PROMPT, scheduler=scheduler, spacing=spacing, save_int=True, **order, **SMALL
    )
    reference = REFERENCE[scheduler](timestep_spacing=spacing)
    assert_equal(ours, diffusers_run(emoji.components, reference, [PROMPT], **SMALL))


@pytest.mark.filterwarnings("ignore:the latents grew")
@pytest.mark.parametrize("scheduler", ZERO_SNR_SCHEDULERS)
def test_zero_terminal_snr_is_that_of_diffusers(emoji, scheduler):
    spacing = {} if scheduler in DISTILLED_SCHEDULERS else {"spacing": "trailing"}
    ours = emoji.generate(
        PROMPT, scheduler=scheduler, zero_snr=True, save_int=True, **spacing, **SMALL
    )
    config = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    reference = REFERENCE[scheduler](**config)
    assert_equal(ours, diffusers_run(emoji.components, reference, [PROMPT], **SMALL))
    assert ours.steps[0].sigma > 1000


def test_an_image_with_infinite_noise_is_the_noise_as_in_diffusers(emoji):
    same = {"seed": 7, "g": 2.0, "steps": 3}
    zero = {"scheduler": "ddim", "spacing": "trailing", "zero_snr": True}
    init = picture(128, 128)
    ours = emoji.generate(PROMPTS, init_image=init, strength=1, save_int=True, **zero, **same)
    assert ours.steps[0].sigma == float("inf")
    reference = REFERENCE["ddim"](timestep_spacing="trailing", rescale_betas_zero_snr=True)
    x_0 = pil_to_latents(emoji.components.vae, init).repeat(2, 1, 1, 1)
    theirs = diffusers_redraw(Img2Img, emoji.components, reference, image=x_0, strength=1.0, **same)
    assert_equal(ours, theirs)
    large = emoji.generate(
        PROMPT, hires_scale=1.5, hires_strength=1, save_int=True, **zero, **SMALL
    )
    assert torch.isfinite(large.steps[-1].latents).all()


def test_zero_snr_is_refused_where_it_cannot_be(tiny, refused, folder):
    with raises(UsageError, value="zero_snr", rule="predicts the noise", remedy="predicts v"):
        tiny.generate("a cat", scheduler="ddim", zero_snr=True, steps=2)
    words = f"generate cat --zero-snr --scheduler ddim --model {folder}"
    assert "predicts the noise" in refused(words.split())
    assert "not from noise" in refused(f"generate cat --steps 1 --model {folder}".split())


def test_a_models_own_scheduler_is_one_of_ours():
    ours = {CLASSES[name].__name__: name for name in reversed(SCHEDULERS)}
    ours["LMSDiscreteScheduler"] = ours.pop("ExactLMSScheduler")
    del ours["PNDMScheduler"]  # of every model of version 1, which lms draws
    assert {kind: own["scheduler"] for kind, own in OWN_SCHEDULERS.items()} == ours


@pytest.mark.parametrize(
    ("config", "own", "expected"),
    [
        ({}, {}, {}),  # PNDM
        (TURBO, {}, {"scheduler": "euler"}),
        (LCM, {}, {"scheduler": "lcm", "steps": 4, "g": 1.0}),
        (LCM, {"steps": 2}, {"scheduler": "lcm", "steps": 2, "g": 1.0}),
        (TURBO, {"scheduler": "ddim"}, {"scheduler": "ddim"}),
        ({"_class_name": "DDIMScheduler"}, {}, {"scheduler": "ddim"}),
        ({"_class_name": "DPMSolverSinglestepScheduler"}, {}, {}),
        (
            {
                "_class_name": "DPMSolverMultistepScheduler",
                "algorithm_type": "sde-dpmsolver++",
                "use_karras_sigmas": True,
            },
            {},
            {"scheduler": "dpm++_2m_sde", "karras": True},
        ),
    ],
)
def test_a_models_own_scheduler_counts(tmp_path, config, own, expected):
    sources = inspect_model(folder_with(tmp_path, config, **own))
    assert sources.defaults() == {"width": 64, "height": 64, **expected}


def test_karras_levels_of_a_model_count_with_its_own_scheduler_alone(tmp_path):
    config = {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}
    pipe = Pipeline(folder_with(tmp_path, config), device="cpu", dtype="float32")
    (own,), _ = pipe.plan("a cat")
    (other,), _ = pipe.plan("a cat", scheduler="euler")
    assert (own.scheduler, own.karras) == ("dpm++", True)
    assert (other.scheduler, other.karras) == ("euler", False)


@pytest.mark.filterwarnings("ignore:the latents grew")
def test_a_turbo_model_draws_in_one_step_what_diffusers_draws(tmp_path, run):
    folder = folder_with(tmp_path / "turbo", TURBO)
    words = "generate cat --steps 1 --g 1 --seed 3 --out x.png --device cpu --dtype float32"
    status, _, err = run(*words.split(), "--model", folder)
    assert status == 0
    assert "1 step of euler" in err or "1 steps of euler" in err
    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    torch.nn.Module.to(pipe.text_encoder, torch.float32)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    theirs = pipe("cat", latents=noise, guidance_scale=1.0, num_inference_steps=1).images[0]
    ours = Pipeline(folder, device="cpu", dtype="float32").generate("cat", seed=3, steps=1, g=1)
    difference = np.asarray(ours.images[0]).astype(int) - np.asarray(theirs).astype(int)
    assert np.abs(difference).max() <= 1
    with pytest.warns(SdpipeWarning, match="as SD-Turbo's is.*50 steps and g 7.5"):
        next(Pipeline(folder, device="cpu", dtype="float32").stream("cat", seed=3))


@pytest.mark.filterwarnings("ignore:the latents grew")
@pytest.mark.parametrize(("more", "hints"), [({}, 0), ({"steps": 9}, 1), ({"g": 2.5}, 1)])
def test_lcm_hints_at_more_than_its_models_are_made_for(tmp_path, recwarn, more, hints):
    pipe = Pipeline(folder_with(tmp_path, LCM), device="cpu", dtype="float32")
    result = pipe.generate("cat", seed=1, **more)
    assert result.settings[0].scheduler == "lcm"
    assert len([w for w in recwarn if "distilled" in str(w.message)]) == hints


def test_where_steps_are_goes_from_file_to_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "generate cat --scheduler ddim --spacing trailing --zero-snr --steps 2 --dim 64"
    assert main([*words.split(), "--seed", "1", "--model", "emoji", "--out", "x.png"]) == 0
    assert "trailing steps, zero snr" in capsys.readouterr().err
    assert main(["replay", "x.png", "--verify"]) == 0


@pytest.mark.parametrize(
    ("line", "values", "note"),
    [
        ("Sampler: Euler, Schedule type: SGM Uniform", {"spacing": "trailing"}, "one timestep"),
        ("Sampler: DDIM, Noise Schedule: Zero Terminal SNR", {"zero_snr": True}, None),
        ("Sampler: LMS, Noise Schedule: Zero Terminal SNR", {"zero_snr": None}, "Noise Schedule"),
        ("Sampler: DPM2 a Karras", {"scheduler": "dpm2_a", "karras": True}, "last noise level"),
        ("Sampler: DPM++ 2M SDE", {"scheduler": "dpm++_2m_sde"}, "Brownian"),
        ("Sampler: LCM, Schedule type: SGM Uniform", {"scheduler": "lcm"}, "timestep 19"),
    ],
)
def test_what_a1111_calls_them(line, values, note):
    record = a1111.read(f"cat\nSteps: 20, {line}, CFG scale: 7, Seed: 1, RNG: CPU, Size: 64x64")
    assert {name: record.values.get(name) for name in values} == values
    assert [n for n in record.notes if note is not None and note in n] or (note is None)
    assert note is not None or not record.notes
