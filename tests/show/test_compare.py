import dataclasses
import json
import sys
from xml.etree import ElementTree

import pytest
import torch
from diffusers import LMSDiscreteScheduler, StableDiffusionPipeline
from PIL import Image, ImageChops
from support.errors import raises
from support.parity import TWICE
from support.tiny import tiny_model

import sdpipe.denoise
import sdpipe.pipeline
from sdpipe import Pipeline, UsageError
from sdpipe.cli.app import main
from sdpipe.settings import SCHEDULERS
from sdpipe.show.compare import TOLERANCES, compare
from sdpipe.show.inputs import resolve_one
from sdpipe.show.reference import check_guidance, draw_with_diffusers, plain_text

# A model of random weights draws no image, and its latents know no bounds.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew", "ignore:lcm is for distilled")

PROMPT = "a red cat"
DRAW = ["compare", PROMPT, "--seed", "5", "--steps", "4", "--g", "3", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pipe(folder):
    return Pipeline(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("scheduler", "g"),
    [*((s, 3) for s in SCHEDULERS), *((s, g) for s in ("lms", "heun") for g in (-2, 0, 1))],
)
def test_the_loop_is_within_the_contract(pipe, scheduler, g):
    found = compare(pipe, PROMPT, negative_prompt="dog", scheduler=scheduler, g=g, steps=5, seed=2)
    assert found.passed
    assert found.tolerance == TOLERANCES["float32"]
    assert len(found.steps) == (9 if scheduler in TWICE else 5 + (scheduler == "pndm"))
    assert all(step.relative <= 1e-4 for step in found.steps)
    assert found.image.largest <= 1
    assert any("swapped" in note for note in found.notes) == (g <= 0)


@pytest.mark.parametrize("order", [1, 4])
def test_every_order_of_lms(pipe, order):
    found = compare(pipe, PROMPT, lms_order=order, steps=6, seed=2)
    assert found.passed
    assert any("order 4" in note for note in found.notes) == (order != 4)


def test_the_other_side_is_what_diffusers_draws_of_the_same_folder(pipe, folder):
    run = resolve_one(
        pipe, PROMPT, negative_prompt="dog", g=3, steps=5, seed=8, width=32, height=24,
        scheduler="lms", lms_order=4,
    )  # fmt: skip
    latents = []
    image, notes = draw_with_diffusers(pipe.components, run, latents.append)
    reference = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    torch.nn.Module.to(reference.text_encoder, torch.float32)
    reference.scheduler = LMSDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    reference.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 4, 3, 4), generator=torch.Generator().manual_seed(8))
    same = {"negative_prompt": "dog", "guidance_scale": 3.0, "num_inference_steps": 5}
    end = reference(PROMPT, latents=noise, width=32, height=24, output_type="latent", **same).images
    drawn = reference(PROMPT, latents=noise, width=32, height=24, **same).images[0]
    assert notes == []
    assert torch.equal(latents[-1], end)
    assert ImageChops.difference(image, drawn).getbbox() is None


def wrong_guidance(unet, x_in, t, cond, uncond, g, rescale):
    return right(unet, x_in, t, cond, uncond, g * 1.001, rescale)


def late_guidance(unet, x_in, t, cond, uncond, g, rescale):
    return right(unet, x_in, t, cond, uncond, g + 0.01 * (float(t) < 500), rescale)


def whole_timesteps(unet, x_in, t, cond, uncond, g, rescale):
    return right(unet, x_in, t.int().float(), cond, uncond, g, rescale)


def texts_mistaken(unet, x_in, t, cond, uncond, g, rescale):
    return right(unet, x_in, t, uncond, cond, g, rescale)


right = sdpipe.denoise.predict_guided


@pytest.mark.parametrize(
    ("fault", "first"),
    [(wrong_guidance, 0), (late_guidance, 3), (whole_timesteps, 1), (texts_mistaken, 0)],
)
def test_a_fault_in_the_loop_is_seen_at_the_step_where_it_begins(pipe, monkeypatch, fault, first):
    monkeypatch.setattr(sdpipe.denoise, "predict_guided", fault)
    # 1000, 800, 599, 400, 200, 0: all but the ends are fractions.
    found = compare(pipe, PROMPT, scheduler="lms", g=3, steps=6, seed=2, tolerance=2e-6)
    apart = [step.index for step in found.steps if step.relative > 2e-6]
    assert apart
    assert apart[0] == first
    assert not found.passed
    assert found.worst.index in apart


def test_a_fault_after_the_loop_is_seen_in_the_image(pipe, monkeypatch):
    monkeypatch.setattr(
        sdpipe.pipeline, "latents_to_pil", lambda vae, z: [Image.new("RGB", (32, 32), "red")]
    )
    found = compare(pipe, PROMPT, scheduler="ddim", steps=3, seed=2)
    assert found.worst.relative <= 1e-4
    assert not found.passed


def test_nan_is_not_within(pipe):
    found = compare(pipe, PROMPT, scheduler="ddim", steps=3, seed=2)
    broken = dataclasses.replace(found.steps[1], relative=float("nan"))
    found = dataclasses.replace(found, steps=[found.steps[0], broken, found.steps[2]])
    assert found.worst.index == 1
    assert not found.passed


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_have_a_tolerance_of_their_own(folder, dtype):
    found = compare(Pipeline(folder, device="cpu", dtype=dtype), PROMPT, steps=5, seed=2)
    assert found.passed
    assert found.worst.relative > 1e-4
    assert any(f"rounds the latents to {dtype}" in note for note in found.notes)


def test_what_diffusers_changes_is_noted_and_the_parts_stay_as_they_were(tmp_path):
    folder = tiny_model(tmp_path / "old")
    for name, key, value in (
        ("unet/config.json", "_diffusers_version", "0.8.0"),  # then 4 latents a side are "wrong"
        ("scheduler/scheduler_config.json", "steps_offset", 0),
    ):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, key: value}))
    pipe = Pipeline(folder, device="cpu", dtype="float32")
    before = [part.clone() for part in pipe.components.unet.parameters()]
    with pytest.warns(FutureWarning):
        found = compare(pipe, PROMPT, scheduler="lms", steps=3, seed=2)
    assert found.passed
    assert any("steps_offset of the scheduler to 1" in note for note in found.notes)
    assert pipe.components.unet.config.sample_size == 4
    assert all(map(torch.equal, before, pipe.components.unet.parameters()))


@pytest.mark.parametrize("g", [0.01, 0.5])
def test_a_g_that_diffusers_leaves_out_is_refused(pipe, g):
    with raises(UsageError, value=f"g={g}", rule="between 0 and 1"):
        check_guidance(g)
    with raises(UsageError, value=f"g={g}", rule="between 0 and 1"):
        compare(pipe, PROMPT, g=g)


@pytest.mark.parametrize("prompt", ["a (red:1.3) cat", "a [cat:dog:0.5]", "a cat BREAK a dog"])
def test_signs_that_diffusers_takes_for_text_are_refused(pipe, prompt):
    with raises(UsageError, value=repr(prompt), rule="weights or other syntax"):
        compare(pipe, prompt)
    with raises(UsageError, value=repr(prompt), rule="weights or other syntax"):
        compare(pipe, PROMPT, negative_prompt=prompt)


def test_a_prompt_that_diffusers_would_cut_is_refused(pipe):
    with raises(UsageError, rule="more than 75 tokens"):
        compare(pipe, "cat " * 80)


def test_written_brackets_are_brackets_for_both(pipe):
    assert plain_text(r"a \(red\) cat") == "a (red) cat"
    assert compare(pipe, r"a \(red\) cat", steps=3, seed=2).passed


def test_the_command_prints_a_table_and_a_verdict(folder, capsys):
    assert main([*DRAW, "--model", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "seed 5, g 3, 4 steps of lms, float32 on cpu" in lines[0]
    assert lines[2].split() == ["step", "timestep", "sigma", "relative", "absolute"]
    assert [line.split()[0] for line in lines[3:7]] == ["0", "1", "2", "3"]
    assert lines[-1] == "passed"


def test_the_exit_status_follows_the_tolerance(folder, capsys):
    assert main([*DRAW, "--model", str(folder), "--tolerance", "0"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "failed"


def test_json_is_one_object_with_every_step(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*DRAW, "--model", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is True
    assert report["settings"]["seed"] == 5
    assert [step["index"] for step in report["steps"]] == [0, 1, 2, 3]
    assert report["largest"]["relative"] == max(step["relative"] for step in report["steps"])


@pytest.mark.parametrize("scheduler", ["lms", "ddim"])  # some steps apart; the same bits in all
def test_the_curve(folder, capsys, tmp_path, scheduler):
    path = tmp_path / "curve.svg"
    more = ["--model", str(folder), "--scheduler", scheduler, "--out", str(path)]
    assert main([*DRAW, *more]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(path)
    ElementTree.parse(path)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (["--g", "0.5"], "g=0.5"),
        (["--tolerance", "-1"], "tolerance=-1"),
        (["--tolerance", "nan"], "tolerance=nan"),
        (["--out", "curve.txt"], "curve.txt"),
        (["--out", "curve"], "curve"),
        (["--dim", "500"], "dim=500"),
        (["--dtype", "int8"], "int8"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_loaded(wrong, word, capsys, monkeypatch):
    monkeypatch.setattr(sdpipe.pipeline, "load", lambda *_, **__: pytest.fail("loaded"))
    assert main(["compare", PROMPT, "--model", "emoji", *wrong]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert word in err


def test_without_matplotlib_the_curve_is_refused_at_once(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(sdpipe.pipeline, "load", lambda *_, **__: pytest.fail("loaded"))
    assert main(["compare", PROMPT, "--model", "emoji", "--out", "curve.png"]) == 1
    assert "pip install" in capsys.readouterr().err
