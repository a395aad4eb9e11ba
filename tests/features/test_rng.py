"""The setting rng: noise of torch's CUDA generator, and images that other programs drew with it."""

import json

import pytest
import torch
from support.errors import raises
from support.images import picture
from support.metadata import A1111, foreign_image

from sdpipe import Settings, UsageError
from sdpipe.cli import main
from sdpipe.io.png import read
from sdpipe.metadata import a1111
from sdpipe.runtime.philox import Philox

FIRST = (0.1940, 2.1614, -0.1721, 0.8491)  # of seed 42, as GPUs printed them
SECOND = (0.1391, -0.1082, -0.7174, 0.7566)
THIRD = (-0.5187, 1.2268, 0.6255, -0.9117)


@pytest.fixture
def ancestral(tiny):
    """Steps of a scheduler that adds noise; the model predicts about nothing."""
    same = {"scheduler": "euler_a", "steps": 4, "rng": "cuda", "save_int": True}
    return lambda **more: tiny.generate("a cat", **same, **more)


@pytest.mark.filterwarnings("ignore:the latents grew to")
def test_an_image_begins_and_goes_on_with_the_numbers_of_the_gpu(ancestral):
    steps = ancestral(seed=42).steps
    noises = [steps[0].input / steps[0].input.std() * Philox(42).randn((1, 4, 8, 8)).std()]
    for step in steps[:2]:
        sigma, to = step.sigma, step.sigma_next
        up = (to**2 * (sigma**2 - to**2) / sigma**2) ** 0.5
        down = (to**2 - up**2) ** 0.5
        # Without its noise the step goes straight towards x0, as far as sigma falls to `down`.
        straight = step.x0 + (step.input - step.x0) * down / sigma
        noises.append((step.latents - straight) / up)
    for noise, numbers in zip(noises, (FIRST, SECOND, THIRD), strict=True):
        assert noise.flatten()[:4].tolist() == pytest.approx(numbers, abs=1e-3)


@pytest.mark.filterwarnings("ignore:the latents grew to")
def test_an_image_has_the_same_noise_alone_and_in_a_batch(ancestral):
    both = ancestral(seed=41, n=2).steps
    alone = ancestral(seed=42).steps
    for a, b in zip(both, alone, strict=True):
        assert torch.allclose(a.input[1:], b.input, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:the latents grew to")
def test_all_of_a_variation_is_the_noise_of_the_other_seed(ancestral):
    towards = ancestral(seed=5, variation_seed=42, variation_strength=1.0).steps[0].input
    assert torch.equal(towards, ancestral(seed=42).steps[0].input)


def test_an_image_to_begin_with_gets_its_noise(emoji):
    same = {"init_image": picture(), "strength": 0.5, "steps": 4, "dim": 64, "seed": 42}
    same |= {"scheduler": "euler", "save_int": True}
    on_cpu, on_gpu = (emoji.generate("apple", rng=rng, **same).steps[0] for rng in ("cpu", "cuda"))
    cpu = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(42))
    expected = on_cpu.input + on_cpu.sigma * (Philox(42).randn((1, 4, 8, 8)) - cpu)
    assert torch.allclose(on_gpu.input, expected, atol=1e-4)


def test_it_is_cpu_or_cuda():
    assert Settings(prompt="x").rng == "cpu"
    with raises(UsageError, value="rng='mps'", remedy="cpu"):
        Settings(prompt="x", rng="mps")


def test_from_the_command_line_to_files_and_back(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "apple --rng cuda --scheduler euler_a --steps 2 --dim 64 --seed 1 --model emoji"
    assert main(["generate", *words.split(), "--out", "x.png"]) == 0
    text = read("x.png")["parameters"]
    assert "RNG: NV" in text
    record = a1111.read(text)
    assert (record.values["rng"], record.notes) == ("cuda", ())
    assert main(["replay", "x.png", "--verify"]) == 0
    capsys.readouterr()
    assert main(["compare", *words.split(), "--json"]) == 0  # diffusers draws the noise, too
    assert json.loads(capsys.readouterr().out)["settings"]["rng"] == "cuda"


@pytest.mark.parametrize(
    ("key", "rng", "noted"),
    [
        ("RNG: CPU", "cpu", False),
        ("RNG: cpu", "cpu", False),
        ("RNG: NV", "cuda", False),
        ("RNG: GPU", "cuda", False),
        ("Clip skip: 2", "cuda", True),  # the GPU is A1111's default and is not written
        ("RNG: std_default", None, True),  # stable-diffusion.cpp
    ],
)
def test_whose_noise_an_image_of_a1111_began_with(key, rng, noted):
    record = a1111.read(f"cat\nSteps: 20, Sampler: Euler, Seed: 1, Size: 512x512, {key}")
    assert record.values.get("rng") == rng
    assert bool(record.notes) == noted


@pytest.mark.parametrize(("side", "noted"), [(512, False), (768, False), (1024, True)])
def test_noise_whose_order_depends_on_the_gpu_is_noted(side, noted):
    text = f"cat\nSteps: 20, Sampler: Euler, Seed: 1, Size: {side}x{side}, RNG: "
    assert any("numbers" in note for note in a1111.read(f"{text}GPU").notes) == noted
    assert a1111.read(f"{text}NV").notes == ()


def test_an_image_of_a1111_is_drawn_again_from_its_noise(tmp_path, monkeypatch, emoji):
    monkeypatch.chdir(tmp_path)
    small = A1111.replace("512x768", "64x64").replace("Steps: 20", "Steps: 2")
    for source, key in (("cpu", ", RNG: CPU"), ("cuda", ", RNG: NV"), ("cuda", "")):
        foreign_image("x.png", parameters=small.replace(", Version", f"{key}, Version"))
        assert main(f"replay x.png --model emoji --out {source}{len(key)}.png".split()) == 0
        settings = Settings.from_dict(read(f"{source}{len(key)}.png")["sdpipe"]["settings"])
        assert settings.rng == source
