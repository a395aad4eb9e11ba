"""Two passes, held against one after the other by hand, diffusers' pipelines and real files."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file
from support.images import PROMPTS, Img2Img, reference
from support.images import diffusers_run as draw_over
from support.metadata import change, our_image
from support.parity import assert_equal
from support.parity import diffusers_run as draw

from sdpipe import Result, latents, latents_to_pil
from sdpipe.cli.app import main
from sdpipe.errors import SdpipeError, UsageError
from sdpipe.io.png import parameters, read, save
from sdpipe.metadata import a1111
from sdpipe.metadata.replay import prepare
from sdpipe.metadata.verify import verify
from sdpipe.plan import plan
from sdpipe.settings import Settings

# The weights of the tiny model are random, and what it predicts is no picture's noise.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew to")

V1_4 = {"width": 512, "height": 512}


@pytest.mark.parametrize("scheduler", ["lms", "euler_a"])
def test_it_is_a_picture_scaled_by_hand_and_drawn_over(tiny, scheduler):
    same = {"seed": 5, "steps": 4, "scheduler": scheduler, "batch_invariant": True}
    same |= {"variation_strength": 0.3, "variation_seed": 1}
    drawn = tiny.generate(
        "a cat", n=2, width=64, height=32, hires_scale=1.5, hires_strength=0.5, **same
    )
    first = tiny.generate("a cat", n=2, width=64, height=32, **same)
    for i, small in enumerate(first.images):
        large = small.resize((96, 48), Image.Resampling.LANCZOS)
        again = tiny.generate(
            "a cat", init_image=large, strength=0.5, **{**same, "variation_seed": 1 + i}
        )
        assert drawn.images[i].size == (96, 48)
        assert drawn.images[i].tobytes() == again.images[0].tobytes()


@pytest.mark.parametrize("scheduler", ["lms", "pndm", "heun", "dpm++"])
def test_both_passes_are_what_diffusers_draws(tiny, scheduler):
    same = {"seed": 7, "g": 3.0, "steps": 6}
    ours = tiny.generate(PROMPTS, scheduler=scheduler, hires_scale=2, save_int=True, **same)
    vae = tiny.components.vae
    made = reference(scheduler, "epsilon")
    steps, _ = draw(tiny.components, made, PROMPTS, width=64, height=64, **same)
    # What the first pass drew, through diffusers' VAE, Pillow and the VAE again.
    with torch.no_grad():
        x = vae.decode(steps[-1] / vae.config.scaling_factor).sample
        levels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
        pictures = [Image.fromarray(p.numpy()).resize((128, 128), 1) for p in levels]
        x = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2)
        x_0 = vae.encode(x / 127.5 - 1).latent_dist.mode() * vae.config.scaling_factor
    made = reference(scheduler, "epsilon")
    more, images = draw_over(Img2Img, tiny.components, made, image=x_0, strength=0.5, **same)
    assert_equal(ours, ([*steps, *more], images))


def test_the_steps_of_both_passes_are_counted_through(tiny):
    settings = {"seed": 1, "steps": 4, "hires_scale": 2, "hires_strength": 0.75, "save_int": True}
    seen = []
    drawn = tiny.generate("a cat", on_step=seen.append, **settings)
    assert [step.index for step in seen] == list(range(7))
    assert {step.total for step in seen} == {7}
    assert [step.hires for step in seen] == [False] * 4 + [True] * 3
    assert [tuple(step.latents.shape[2:]) for step in seen] == [(8, 8)] * 4 + [(16, 16)] * 3
    assert [step.timestep for step in seen[4:]] == [step.timestep for step in seen[1:4]]
    assert drawn.steps == seen
    assert drawn.steps[0].input.shape[2:] == (8, 8)
    assert next(s for s in drawn.steps if s.hires).input.shape[2:] == (16, 16)
    streamed = list(tiny.stream("a cat", **settings))
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(streamed, seen, strict=True))


def test_a_step_hears_what_the_step_of_the_first_pass_heard(tiny):
    same = {"seed": 5, "steps": 4}
    drawn = tiny.generate("[a cat:a dog:0.5]", hires_scale=2, hires_strength=0.5, **same)
    first = tiny.generate("[a cat:a dog:0.5]", **same).images[0]
    large = first.resize((128, 128), Image.Resampling.LANCZOS)
    again = tiny.generate("a dog", init_image=large, dim=128, strength=0.5, **same)
    assert drawn.images[0].tobytes() == again.images[0].tobytes()


def test_no_more_than_one_picture_is_decoded_or_encoded_at_a_time(tiny, monkeypatch):
    batches = []
    for name in ("decode", "encode"):
        original = getattr(latents, name)

        def spy(vae, x, original=original):
            batches.append(tuple(x.shape))
            return original(vae, x)

        monkeypatch.setattr(latents, name, spy)
    tiny.generate("a cat", n=3, steps=2, hires_scale=2)
    small, large = (1, 4, 8, 8), (1, 4, 16, 16)
    assert sorted(batches) == sorted([small] * 3 + [(1, 3, 128, 128)] * 3 + [large] * 3)


def test_sizes():
    assert Settings(prompt="x", dim=512, hires_scale=2).output_size == (1024, 1024)
    assert Settings(prompt="x", width=520, height=256, hires_scale=1.5).output_size == (784, 384)
    assert Settings(prompt="x", dim=64).output_size == (64, 64)
    assert Settings(prompt="x", hires_scale=2).resolved(V1_4).hires_strength == 0.5
    with pytest.raises(UsageError, match=r"hires_scale=1.5 makes 72 of width=48.* multiple of 16"):
        plan("x", defaults=V1_4, factor=16, layers=1, width=48, height=64, hires_scale=1.5)


def test_a_picture_may_not_ask_for_more_than_it_may_without(tmp_path):
    record = {"prompt": "x", "seed": 1, "width": 2048, "height": 2048, "hires_scale": 4}
    path = our_image(tmp_path / "x.png", change("settings", record))
    with pytest.raises(SdpipeError, match="its size of 8192 x 8192 is more than"):
        prepare(path)
    assert prepare(path, changes={"hires_scale": 4}).settings.output_size == (8192, 8192)


def apart(a, b):
    return max(high for _, high in ImageChops.difference(a, b).getextrema())


def test_from_the_command_line_to_a_file_its_steps_and_back(folder, tmp_path, capsys):
    words = ["a cat", "--seed", "3", "--steps", "4", "--hires-scale", "2", "--save-int", "--json"]
    words += ["--dtype", "float32", "--model", str(folder), "--out", str(tmp_path / "cat.png")]
    assert main(["generate", *words]) == 0
    out, err = capsys.readouterr()
    assert "128 x 128 from 64 x 64" in err
    assert "4 and 2 steps of lms" in err
    [told] = json.loads(out)
    with Image.open(told["path"]) as image:
        assert image.size == (128, 128)
    carried = read(told["path"])
    assert carried["sdpipe"]["settings"]["hires_strength"] == 0.5
    job = prepare(told["path"], model=str(folder))
    pipe = job.load()
    result = Result.join(list(job.draw(pipe)))
    assert verify(told["path"], job.record, result.images[0], carried["sdpipe"]).status == 0

    steps = tmp_path / "cat.steps"
    assert told["steps"] == str(steps)
    for part, count, side in ((steps, 4, 8), (steps / "hires", 2, 16)):
        stored = load_file(part / "latents.safetensors")
        assert stored["x_t"].shape == (count + 1, 4, side, side)
        assert stored["x0"].shape == (count, 4, side, side)
        names = {path.name for path in part.glob("*.png")}
        assert names == {
            *(f"xt-{k:02}.png" for k in range(count + 1)),
            *(f"x0-{k:02}.png" for k in range(1, count + 1)),
            "filmstrip.png",
        }
    with Image.open(steps / "hires" / "xt-02.png") as last, Image.open(told["path"]) as picture:
        # Decoded beside another, and so not to the last bit.
        assert apart(last, picture.convert("RGB")) <= 1
    vae = pipe.components.vae
    end = load_file(steps / "latents.safetensors")["x_t"][-1:]
    with Image.open(steps / "xt-04.png") as last:
        drawn = latents_to_pil(vae, end)[0]
        assert apart(last, drawn) <= 1


@pytest.mark.parametrize(
    ("hires", "told"),
    [(1.5, "192 x 96 from 128 x 64"), (None, "128 x 64"), ("much", "128 x 64")],
)
def test_info_tells_the_size_of_the_finished_picture(tmp_path, capsys, hires, told):
    settings = Settings(prompt="x", seed=3, width=128, height=64).resolved(V1_4)
    notes = {
        "sdpipe": {"settings": {**settings.to_dict(), "hires_scale": hires}},
        "parameters": "x",
    }
    save(Image.new("RGB", (8, 8)), tmp_path / "x.png", notes)
    assert main(["info", str(tmp_path / "x.png")]) == 0
    assert re.search(r"size +(.+)", capsys.readouterr().out)[1] == told


def test_a1111_writes_and_reads_it_by_its_own_names():
    settings = Settings(prompt="x", seed=3, steps=20, hires_scale=2, hires_strength=0.4).resolved(
        V1_4
    )
    text = parameters(settings, {"name": "m"})
    assert "Denoising strength: 0.4, Hires upscale: 2, Hires steps: 8" in text
    assert "Size: 512x512" in text
    record = a1111.read(text)
    assert (record.values["hires_scale"], record.values["hires_strength"]) == (2.0, 0.4)
    assert not record.notes
    theirs = text.replace("Hires steps: 8", "Hires steps: 12").replace("Lanczos", "Latent")
    remarks = " ".join(a1111.read(theirs).notes)
    assert "scaled up by 'Latent' there" in remarks
    assert "its second pass took 12 steps there, and takes 8 here" in remarks
    record = a1111.read("x\nSteps: 20, Sampler: LMS, Seed: 1, Size: 512x512, Hires upscale: 2")
    assert record.settings().hires_scale == 2


def test_a_sweep_over_factors(folder, tmp_path, capsys):
    words = ["a cat", "--hires-scale", "1.5,2", "--seed", "3", "--steps", "2", "--json"]
    words += ["--model", str(folder), "--out", str(tmp_path / "sizes")]
    assert main(["sweep", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    for cell, side in zip(told["cells"], (96, 128), strict=True):
        with Image.open(cell["path"]) as image:
            assert image.size == (side, side)
    assert told["sweep"]["hires_strength"] == 0.5
