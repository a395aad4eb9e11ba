"""Guidance in all its forms: against closed forms, diffusers' pipeline, and as it is typed."""

import json

import pytest
import torch
from support.denoise_runs import TARGET, run
from support.errors import raises
from support.metadata import INVOKEAI
from support.parity import PROMPT, REFERENCE, assert_equal, diffusers_pipeline, diffusers_run

from sdpipe import SdpipeWarning, UsageError
from sdpipe.guidance import Guidance, predict_guided, rescale_noise_cfg, warn_unguided
from sdpipe.io import png
from sdpipe.latents import latents_to_pil
from sdpipe.metadata import a1111, invokeai
from sdpipe.settings import Settings
from sdpipe.show.compare import compare
from sdpipe.show.guidance import guidance_data
from sdpipe.sweep.sweep import Sweep
from sdpipe.values import format_scale, parse_interval, parse_scale

# Few steps save time; whether a model draws well in them is not looked at here.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew to")


def clean(g):
    """The picture that `test_denoise.Oracle` predicts under a scale."""
    return (3 + g * (1 - 3)) * TARGET


@pytest.mark.parametrize("name", ["euler", "ddim", "heun", "pndm", "unipc"])
def test_a_pair_goes_from_its_first_to_its_last_in_equal_parts(name):
    unet, steps = run(name, g=Guidance((5, 2)))
    scales = torch.linspace(5, 2, len(steps))
    for step, g in zip(steps, scales, strict=True):
        assert torch.allclose(step.x0, clean(g), atol=5e-3), step.index
    assert set(unet.calls) == {2}


def test_where_a_pair_comes_to_one_or_zero_the_work_is_half():
    unet, _ = run(g=Guidance((12.3, 1)))
    assert unet.calls == [2] * 7 + [1]
    unet, _ = run(g=Guidance((0, 3.3)))
    assert unet.calls == [1] + [2] * 7
    unet, steps = run(g=Guidance((-1, 2)), steps=4)  # -1, 0, 1, 2
    assert unet.calls == [2, 1, 1, 2]
    for step, g in zip(steps, (-1, 0, 1, 2), strict=True):
        assert torch.allclose(step.x0, clean(g), atol=2e-3)
    assert Guidance((5, 2)).at(0, 1, 9.0) == 5


@pytest.mark.parametrize("name", ["euler", "ddim", "heun", "pndm"])
def test_outside_of_the_interval_the_prompt_alone_counts_for_half_the_work(name):
    unet, steps = run(name, g=Guidance(2.5, interval=(0.5, 4)))
    inside = [0.5 < step.sigma <= 4 for step in steps]
    assert 0 < sum(inside) < len(steps)
    assert unet.calls == [2 if among else 1 for among in inside]
    for step, among in zip(steps, inside, strict=True):
        assert torch.allclose(step.x0, clean(2.5 if among else 1), atol=5e-3), step.index


def test_an_interval_of_all_noise_levels_is_plain_guidance():
    plain, narrow = (run(g=g)[1] for g in (2.5, Guidance(2.5, interval=(0, 100))))
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(plain, narrow, strict=True))


def test_an_interval_has_its_upper_end_and_not_its_lower():
    guidance = Guidance((8, 2), interval=(1, 4))
    assert [guidance.at(1, 3, sigma) for sigma in (4.01, 4, 1.01, 1, 0)] == [1, 5, 5, 1, 1]


def test_the_last_steps_by_themselves_have_the_scales_that_they_had():
    guidance = Guidance((12, 4), rescale=0.5, interval=(1, 4))
    for some in (1, 3, 9):
        last = guidance.last(some, 9)
        scales = [guidance.at(i, 9, 2) for i in range(9)][9 - some :]
        assert [last.at(i, some, 2) for i in range(some)] == pytest.approx(scales)
        assert (last.rescale, last.interval) == (0.5, (1, 4))
    assert Guidance(3).last(2, 9) == Guidance(3)


def test_rescaled_outputs_have_the_spread_of_the_one_under_the_prompt():
    generator = torch.Generator().manual_seed(0)
    out_cond, output = (torch.randn((3, 4, 5, 5), generator=generator) for _ in range(2))
    output = output * torch.tensor([1.0, 4.0, 0.3]).view(3, 1, 1, 1) + 0.5
    whole = rescale_noise_cfg(output, out_cond, 1.0)
    for picture, cond, before in zip(whole, out_cond, output, strict=True):
        assert float(picture.std()) == pytest.approx(float(cond.std()), rel=1e-5)
        share = picture / before
        assert torch.allclose(share, share.flatten()[0])
    assert torch.allclose(
        rescale_noise_cfg(output, out_cond, 0.3), 0.3 * whole + 0.7 * output, atol=1e-5
    )


def test_a_single_prediction_is_not_rescaled():
    class Flat:
        dtype = torch.float32

        def __call__(self, x_in, t, text):
            return type("Output", (), {"sample": 2 * x_in + text.mean()})

    x_in, t, text = torch.randn(1, 4, 2, 2), torch.tensor(1), torch.ones(1, 2, 2)
    for g in (0, 1):
        plain, never = (predict_guided(Flat(), x_in, t, text, text, g, r) for r in (0.0, 0.7))
        assert torch.equal(plain, never)


@pytest.mark.parametrize(
    ("scheduler", "rescale"), [("lms", 0.7), ("ddim", 1.0), ("dpm++", 0.3), ("heun", 0.7)]
)
def test_rescale_is_guidance_rescale_of_diffusers(emoji, scheduler, rescale):
    same = {"seed": 7, "g": 6.0, "steps": 4, "width": 64, "height": 64}
    order = {"lms_order": 4} if scheduler == "lms" else {}
    prompts = [PROMPT, "cat"]
    ours = emoji.generate(
        prompts, scheduler=scheduler, guidance_rescale=rescale, save_int=True, **order, **same
    )
    reference = REFERENCE[scheduler]()
    theirs = diffusers_run(emoji.components, reference, prompts, guidance_rescale=rescale, **same)
    assert_equal(ours, theirs)
    plain = emoji.generate(prompts, scheduler=scheduler, **order, **same)
    assert plain.images[0].tobytes() != ours.images[0].tobytes()


def test_a_pair_is_what_diffusers_draws_with_another_scale_at_each_step(emoji):
    ours = emoji.generate("cat", g=(9, 3), steps=4, seed=2, dim=64, lms_order=4, save_int=True)
    pipe = diffusers_pipeline(emoji.components, REFERENCE["lms"]())
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(2))
    latents = []

    def turn(pipe, i, _timestep, values):
        latents.append(values["latents"].clone())
        pipe._guidance_scale = (7, 5, 3, 0)[i]
        return {}

    images = pipe(
        "cat", latents=noise, guidance_scale=9, num_inference_steps=4, width=64, height=64,
        callback_on_step_end=turn,
    ).images  # fmt: skip
    assert_equal(ours, (latents, images))


def test_compare_holds_pairs_and_rescale_against_diffusers(emoji):
    same = {"steps": 4, "seed": 2, "dim": 64}
    found = compare(emoji, "cat", g=(7, 2), guidance_rescale=0.6, scheduler="heun", **same)
    assert found.passed
    assert len(found.steps) == 7
    assert "g 7:2 rescaled by 0.6, 4 steps of heun" in str(found)
    for wrong, value, rule in (
        ({"g": (3, 1)}, "g=3:1", "not above 1 at every step"),
        ({"g": -1, "guidance_rescale": 0.5}, "guidance_rescale=0.5", "cannot be compared at g=-1"),
        ({"guidance_interval": (1, 5)}, "guidance_interval", "not part of diffusers' pipeline"),
    ):
        with raises(UsageError, value=value, rule=rule):
            compare(emoji, "cat", **same, **wrong)


def test_show_guidance_takes_a_pair_that_always_needs_both_predictions(emoji):
    same = {"steps": 3, "seed": 2, "dim": 64}
    data = guidance_data(emoji, "cat", g=(5, 2), at=range(3), **same)
    steps = emoji.generate("cat", g=(5, 2), save_int=True, **same).steps
    for guided_one, step in zip(data.images, steps, strict=True):
        (picture,) = latents_to_pil(emoji.components.vae, step.x0)
        assert guided_one[2].tobytes() == picture.tobytes()
    for wrong, value, rule, remedy in (
        ({"g": (5, 1)}, "g=5:1", "is 1 at step 2, where it uses only the prediction with", "1.5"),
        ({"g": (-1, 1)}, "g=-1:1", "is 0 at step 1, where it uses only the prediction without", ""),
        ({"guidance_rescale": 0.5}, "guidance_rescale", "cannot be shown", "leave it out"),
        ({"guidance_interval": (1, 5)}, "guidance_interval", "cannot be shown", "leave it out"),
    ):
        with raises(UsageError, value=value, rule=rule, remedy=remedy):
            guidance_data(emoji, "cat", **same, **wrong)


def test_an_interval_without_a_noise_level_of_the_run_is_told(emoji):
    same = {"seed": 2, "steps": 3, "dim": 64}
    with pytest.warns(
        SdpipeWarning, match=r"guidance_interval=20,30 contains none .* 14\.6 down to 0\.0292"
    ):
        drawn = emoji.generate("cat", g=3, guidance_interval=(20, 30), **same)
    assert drawn.images[0].tobytes() == emoji.generate("cat", g=1, **same).images[0].tobytes()


def test_only_an_interval_without_any_level_is_told():
    warn_unguided(Guidance(3), [14.6, 0.03])
    warn_unguided(Guidance(3, interval=(0.1, 0.5)), [14.6, 0.5, 0.03])
    with pytest.warns(SdpipeWarning, match=r"interval=0\.5,1 .* 14\.6 down to 0\.0292: no step"):
        warn_unguided(Guidance(3, interval=(0.5, 1)), [14.61, 0.5, 0.02916])


def test_a_number_stays_a_number_and_a_pair_of_the_same_is_one():
    assert Settings(prompt="", g=3).g == Settings(prompt="", g=(3, 3)).g == 3.0
    pair = Settings(prompt="", g=[12, 4.5], guidance_interval=[0, 3])
    assert (pair.g, pair.guidance_interval) == ((12.0, 4.5), (0.0, 3.0))
    told = json.loads(pair.to_json())
    assert (told["g"], told["guidance_rescale"], told["guidance_interval"]) == (
        [12.0, 4.5],
        0.0,
        [0.0, 3.0],
    )
    assert Settings.from_json(pair.to_json()) == pair


@pytest.mark.parametrize("g", [7.5, 0.1, -3.0, (12.0, 4.0), (1 / 3, -1e-7)])
def test_what_is_shown_is_what_is_typed(g):
    assert parse_scale(format_scale(g)) == g
    assert parse_interval("0.3, 5") == (0.3, 5)


def test_invokeai_calls_it_cfg_rescale_multiplier():
    record = invokeai.read({**INVOKEAI, "cfg_rescale_multiplier": 0.7})
    assert record.settings().guidance_rescale == 0.7
    assert record.notes == ("left out: loras, vae.",)


def test_a_sweep_takes_pairs_among_the_values_of_g_and_several_intervals():
    for given in ([1, 3.5, (12, 4)], [1, 3.5, "12:4"], [1, 3.5, [12, 4]]):
        sweep = Sweep("x", g=given, guidance_interval=[(0, 15), (0.3, 5)], guidance_rescale=0.5)
        assert [cell.settings.g for cell in sweep.cells[:3]] == [1, 3.5, (12, 4)]
        assert {cell.settings.guidance_interval for cell in sweep.cells} == {(0, 15), (0.3, 5)}
        assert sweep.cells[5].name == "g=12to4-guidance_interval=0.3to5"
        assert [axis.label(1) for axis in sweep.axes] == ["g 3.5", "interval 0.3,5"]
    again = Sweep.from_dict(json.loads(json.dumps(sweep.to_dict())))
    assert [cell.settings for cell in again.cells] == [cell.settings for cell in sweep.cells]
    assert sweep.command() == (
        "sdpipe sweep x --g 1,3.5,12:4 --guidance-interval '0,15; 0.3,5' --guidance-rescale 0.5"
    )
    alone = Sweep("x", seed=[1, 2], g="12:4", guidance_interval=(0.3, 5))
    assert {(cell.settings.g, cell.settings.guidance_interval) for cell in alone.cells} == {
        ((12, 4), (0.3, 5))
    }


@pytest.fixture
def load_once(emoji):
    """Whatever is asked for, the built-in model in float32."""
    return lambda *_, **__: emoji.components


def test_it_is_drawn_told_and_drawn_again(run):
    status, out, err = run(
        *("generate", "red apple", "--model", "emoji", "--seed", "7", "--steps", "4", "--dim"),
        *(
            "64",
            "--g",
            "6:2",
            "--guidance-rescale",
            "0.5",
            "--guidance-interval",
            "0.1,8",
            "--out",
            "x.png",
        ),
    )
    assert (status, out) == (0, "x.png\n"), err
    assert "4 steps of lms, g 6:2, rescale 0.5, interval 0.1,8, " in err
    told = png.read("x.png")
    settings = told["sdpipe"]["settings"]
    assert (settings["g"], settings["guidance_rescale"], settings["guidance_interval"]) == (
        [6, 2],
        0.5,
        [0.1, 8],
    )
    assert 'Sampler: LMS, CFG scale: "6:2", Seed: 7' in told["parameters"]
    assert a1111.read(told["parameters"]).settings().g == (6, 2)
    _, out, _ = run("info", "x.png")
    shown = {line.split()[0]: line.split(maxsplit=1)[1:] for line in out.splitlines() if line}
    assert (shown["g"], shown["guidance_rescale"], shown["guidance_interval"]) == (
        ["6:2"],
        ["0.5"],
        ["0.1,8"],
    )
    assert run("replay", "x.png", "--verify")[:2] == (0, "identical\n")
    changes = ["--set", "g=5:3", "--set", "guidance_interval=0.2,9", "--set", "guidance_rescale=0"]
    status, _, err = run("replay", "x.png", *changes, "--out", "y.png")
    assert status == 0, err
    settings = png.read("y.png")["sdpipe"]["settings"]
    assert (settings["g"], settings["guidance_rescale"], settings["guidance_interval"]) == (
        [5, 3],
        0,
        [0.2, 9],
    )
    _, out, _ = run("info", "y.png")
    assert "guidance_rescale" not in out
    status, _, err = run("replay", "x.png", "--set", "g=5:")
    assert status == 2
    assert "g='5:' is neither a number" in err


def test_a_sweep_over_pairs_is_known_again(run):
    same = ["sweep", "cat", "--model", "emoji", "--seed", "1", "--steps", "2", "--dim", "64"]
    status, out, err = run(
        *same, "--g", "1,6:2", "--guidance-interval", "0,15; 0.1,8", "--out", "o"
    )
    assert (status, out) == (0, "o/grid.png\n"), err
    status, _, err = run(*same, "--g", "1,6:2", "--guidance-interval", "0,15;0.1,8", "--out", "o")
    assert err == "sdpipe: 4 images: 4 there before\n"
    assert run("replay", "o/g=6to2-guidance_interval=0.1to8.png", "--verify")[:2] == (
        0,
        "identical\n",
    )
    _, out, _ = run("info", "o/grid.png")
    assert "1,6:2" in out
    assert "0,15; 0.1,8" in out
