"""Variations: noise between two seeds, held against the formula, diffusers and real files."""

import json
import math

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from support.parity import BETAS, assert_equal, diffusers_pipeline

from sdpipe import Result
from sdpipe.cli.app import main
from sdpipe.io.png import parameters, read
from sdpipe.latents import draw_noise, make_generators
from sdpipe.metadata import a1111
from sdpipe.metadata.info import info
from sdpipe.metadata.replay import prepare
from sdpipe.metadata.verify import verify
from sdpipe.plan import plan
from sdpipe.settings import MAX_SEED, Settings

# The weights of the tiny model are random, and what it predicts is no picture's noise.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew to")

V1_4 = {"width": 512, "height": 512}


def noise(seed, shape=(4, 8, 8)):
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))


def arc(a, b, share):
    """By Gram and Schmidt: so far from a in the plane of both, and of a length between theirs."""
    u = a / a.norm()
    v = b - (b * u).sum() * u
    v = v / v.norm()
    angle = share * math.atan2(float((b * v).sum()), float((b * u).sum()))
    length = (1 - share) * a.norm() + share * b.norm()
    return length * (math.cos(angle) * u + math.sin(angle) * v)


def test_the_loop_begins_on_the_arc_between_the_two_seeds_picture_by_picture(tiny):
    same = {"scheduler": "ddim", "steps": 2, "save_int": True}
    drawn = tiny.generate("a cat", seed=5, n=2, variation_strength=0.2, variation_seed=9, **same)
    for i, seed in enumerate((9, 10)):
        assert torch.allclose(
            drawn.steps[0].input[i], arc(noise(5), noise(seed), 0.2)[0], atol=1e-5
        )
    assert [(s.seed, s.variation_seed) for s in drawn.settings] == [(5, 9), (5, 10)]


def test_none_of_it_is_the_seeds_own_picture_and_all_of_it_the_others(tiny):
    same = {"steps": 3, "save_int": True}
    own = tiny.generate("a cat", seed=5, **same)
    other = tiny.generate("a cat", seed=9, **same)
    for share, expected in ((0, own), (1, other)):
        drawn = tiny.generate("a cat", seed=5, variation_strength=share, variation_seed=9, **same)
        assert torch.equal(drawn.steps[-1].latents, expected.steps[-1].latents)
        assert drawn.images[0].tobytes() == expected.images[0].tobytes()
    # The noise of a seed on its way to itself is that noise.
    drawn = tiny.generate("a cat", seed=5, variation_strength=0.3, variation_seed=5, **same)
    assert torch.equal(drawn.steps[0].input, own.steps[0].input)


def test_later_noise_is_the_seeds_own_as_diffusers_draws_it(tiny):
    """Of euler_a, which draws noise at every step; diffusers gets the mixed noise handed over."""
    same = {"seed": 5, "steps": 4, "g": 3.0, "scheduler": "euler_a"}
    prompts = ["a red apple", "a cat"]
    ours = tiny.generate(prompts, variation_strength=0.4, variation_seed=9, save_int=True, **same)
    generators = make_generators([5, 5])
    draw_noise(generators, (4, 8, 8))
    latents = []

    def keep(_pipe, _index, _timestep, values):
        latents.append(values["latents"].clone())
        return {}

    scheduler = EulerAncestralDiscreteScheduler(**BETAS, steps_offset=1)
    theirs = diffusers_pipeline(tiny.components, scheduler)(
        prompts,
        latents=torch.cat([arc(noise(5), noise(seed), 0.4) for seed in (9, 10)]),
        generator=generators,
        guidance_scale=3.0,
        num_inference_steps=4,
        callback_on_step_end=keep,
    )
    assert_equal(ours, (latents, theirs.images))


def test_variations_of_one_picture_are_the_pictures_that_each_is_alone(tiny):
    same = {"seed": 5, "steps": 2, "batch_invariant": True}
    drawn = tiny.generate("a cat", n=3, variation_seed=8, variation_strength=0.3, **same)
    assert drawn.seeds == [5, 5, 5]
    assert [s.variation_seed for s in drawn.settings] == [8, 9, 10]
    assert {(s.n, s.variation_strength) for s in drawn.settings} == {(1, 0.3)}
    for picture, settings in zip(drawn.images, drawn.settings, strict=True):
        values = settings.to_dict()
        again = tiny.generate(values.pop("prompt"), **values)
        assert again.images[0].tobytes() == picture.tobytes()
    assert len({picture.tobytes() for picture in drawn.images}) == 3


def test_what_is_left_out():
    """The first variation seed is not the seed itself, which would vary nothing."""
    made = Settings(prompt="x", seed=42, n=4, variation_strength=0.5).resolved(V1_4)
    assert (made.variation_strength, made.variation_seed) == (0.5, 43)
    assert [s.variation_seed for s in made.per_image()] == [43, 44, 45, 46]
    assert [s.seed for s in made.per_image()] == [42] * 4
    assert Settings(prompt="x", variation_seed=0).resolved(V1_4).variation_strength == 0.1
    assert Settings(prompt="x", seed=1).resolved(V1_4).variation_strength is None
    last = Settings(prompt="x", seed=MAX_SEED - 1, n=2, variation_strength=0.5).resolved(V1_4)
    assert last.variation_seed == 0


def test_variations_of_several_prompts_count_on():
    run = plan(["a", "b"], defaults=V1_4, factor=8, layers=12, n=2, seed=3, variation_seed=7)
    assert [(s.prompt, s.seed, s.variation_seed) for s in run] == [
        *(("a", 3, 7), ("a", 3, 8)),
        *(("b", 3, 9), ("b", 3, 10)),
    ]


def test_the_last_seed_has_as_many_variations_as_one_likes():
    assert Settings(prompt="x", seed=MAX_SEED, n=3, variation_seed=0).seed == MAX_SEED


def test_each_of_four_files_replays_alone_from_the_lowest_seed(folder, tmp_path, capsys):
    words = ["a cat", "--seed", "0", "-n", "4", "--variation-strength", "0.25", "--steps", "2"]
    words += ["--dtype", "float32", "--model", str(folder), "--out", str(tmp_path / "cat.png")]
    assert main(["generate", *words]) == 0
    out, err = capsys.readouterr()
    paths = out.split()
    assert [path.rpartition("/")[2] for path in paths] == [f"cat-{i}.png" for i in (1, 2, 3, 4)]
    assert "4 images" in err
    assert "seed 0, 25 % on the way to 1 to 4" in err
    last = paths[3]
    assert "variation_seed" in str(info(last))
    job = prepare(last, model=str(folder))
    assert (job.n, job.index) == (4, 3)
    pipe = job.load()
    result = Result.join(list(job.draw(pipe)))
    now = {**read(last)["sdpipe"]}
    assert result.settings[3].to_dict() == now["settings"]
    assert verify(last, job.record, result.images[3], now).status == 0
    changed = prepare(last, model=str(folder), changes={"n": 2, "variation_seed": 7})
    drawn = Result.join(list(changed.draw(pipe)))
    assert len(drawn.images) == len(changed.indices) == 2


def test_a1111_writes_and_reads_it_by_its_own_names():
    settings = Settings(prompt="x", seed=3, variation_strength=0.25, variation_seed=8).resolved(
        V1_4
    )
    text = parameters(settings, {"name": "m"})
    assert "Variation seed: 8, " in text
    assert "Variation seed strength: 0.25, " in text
    record = a1111.read(text)
    assert record.values["variation_strength"] == 0.25
    assert record.values["variation_seed"] == 8
    assert not any("left out" in note for note in record.notes)
    plain = parameters(Settings(prompt="x", seed=3).resolved(V1_4), {"name": "m"})
    assert "Variation" not in plain


def test_a_sweep_over_variations(folder, tmp_path, capsys):
    words = ["a cat", "--variation-strength", "0,0.5,1", "--seed", "3", "--variation-seed", "4"]
    words += ["--steps", "2", "--model", str(folder), "--out", str(tmp_path / "way"), "--json"]
    assert main(["sweep", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [cell["settings"]["variation_strength"] for cell in told["cells"]] == [0, 0.5, 1]
    assert told["sweep"]["variation_seed"] == 4
    assert (tmp_path / "way" / "variation_strength=0.5.png").exists()
