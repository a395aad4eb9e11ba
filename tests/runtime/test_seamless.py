"""Seamless images: shifted around the edge they are drawn the same; constant latents are flat."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image
from support.errors import raises
from torch import nn

from sdpipe import Result, latents_to_pil
from sdpipe.cli.app import main
from sdpipe.errors import UsageError
from sdpipe.io.png import parameters, read
from sdpipe.latents import decode
from sdpipe.metadata import a1111
from sdpipe.metadata.replay import prepare
from sdpipe.metadata.verify import verify
from sdpipe.runtime.seamless import with_circular_padding
from sdpipe.settings import Settings

# The tiny model's weights are random, so its latents grow.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew to")

V1_4 = {"width": 512, "height": 512}
ROLLS = {"x": (0, 4), "y": (2, 0), "xy": (2, 4)}  # by whole places of the coarsest level


def call(unet, x):
    text = torch.randn((1, 77, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return unet(x, torch.tensor(500), text).sample


def noise(seed=0):
    return torch.randn((1, 4, 8, 12), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("axes", ["xy", "x", "y"])
def test_what_is_moved_round_the_corner_is_drawn_the_same(tiny, axes):
    """Along the axes to the digits of float32, along the other one not at all."""
    unet, vae = (
        with_circular_padding(part, axes) for part in (tiny.components.unet, tiny.components.vae)
    )
    for axis, by in ROLLS.items():
        pixels = (8 * by[0], 8 * by[1])
        for calls, moved in (
            (lambda x: call(unet, x), by),
            (lambda x: decode(vae, x).detach(), pixels),
        ):
            expected = calls(noise()).roll(moved, (2, 3))
            error = float((calls(noise().roll(by, (2, 3))) - expected).abs().max())
            scale = float(expected.abs().max())
            assert (error < 1e-4 * scale) == (set(axis) <= set(axes)), (axis, error, scale)


def test_a_whole_run_is_moved_with_its_noise(tiny, monkeypatch):
    same = {"seed": 1, "steps": 3, "width": 96, "height": 64, "seamless": "xy"}
    expected = np.roll(np.asarray(tiny.generate("a cat", **same).images[0]), (16, 32), (0, 1))
    shifted = noise(1).roll((2, 4), (2, 3))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: shifted)
    moved = np.asarray(tiny.generate("a cat", **same).images[0])
    assert np.abs(moved.astype(int) - expected).max() <= 1
    plain = np.asarray(tiny.generate("a cat", **{**same, "seamless": None}).images[0])
    assert np.abs(plain.astype(int) - expected).max() > 1


def step_at_seam(image, axis):
    """The mean step from the last to the first line, by the mean step between neighbours."""
    levels = np.asarray(image, float)
    inside = np.abs(np.diff(levels, axis=axis)).mean()
    return np.abs(levels.take(0, axis) - levels.take(-1, axis)).mean() / inside


def test_the_step_across_the_edge_is_as_small_as_between_any_two_lines(emoji):
    """A trained decoder makes of noise what is smooth inside, and unlike at opposite edges."""
    vae = emoji.components.vae
    [without] = latents_to_pil(vae, noise())
    for axes in ("xy", "x", "y"):
        [drawn] = latents_to_pil(with_circular_padding(vae, axes), noise())
        for axis, name in enumerate("yx"):
            over, plain = step_at_seam(drawn, axis), step_at_seam(without, axis)
            assert plain > 1.5
            assert (over < 1.5) == (name in axes), (axes, name, over, plain)


def test_latents_that_are_the_same_everywhere_decode_to_one_colour(tiny):
    flat = torch.tensor([0.5, -1.0, 0.2, 1.5]).view(1, 4, 1, 1).expand(1, 4, 8, 8)
    for axes, left in (("xy", set()), ("x", {"y"}), ("y", {"x"})):
        x = decode(with_circular_padding(tiny.components.vae, axes), flat).detach()
        spread = {"y": float(x.std(2).max()), "x": float(x.std(3).max())}
        assert {axis for axis, value in spread.items() if value > 1e-5} == left


def test_the_shared_networks_stay_as_they_are_also_when_it_goes_wrong(tiny):
    parts = tiny.components
    same = {"seed": 1, "steps": 2}
    before = tiny.generate("a cat", **same).images[0].tobytes()
    kinds = [type(module) for part in (parts.unet, parts.vae) for module in part.modules()]

    def stop(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.generate("a cat", seamless="xy", on_step=stop, **same)
    now = [type(module) for part in (parts.unet, parts.vae) for module in part.modules()]
    assert now == kinds
    assert tiny.generate("a cat", **same).images[0].tobytes() == before

    # And while another thread is in the middle of it.
    inside, done = threading.Event(), threading.Event()

    def wait(step):
        inside.set()
        done.wait(60)

    other = threading.Thread(
        target=lambda: tiny.generate("a cat", seamless="xy", on_step=wait, **same)
    )
    other.start()
    assert inside.wait(60)
    assert tiny.generate("a cat", **same).images[0].tobytes() == before
    done.set()
    other.join()


def test_weights_are_shared_and_every_padded_convolution_is_replaced(tiny):
    unet = with_circular_padding(tiny.components.unet, "xy")
    ours = {name: p.data_ptr() for name, p in unet.named_parameters()}
    assert ours == {name: p.data_ptr() for name, p in tiny.components.unet.named_parameters()}
    convolutions = [module for module in unet.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) > 10
    assert all(type(module) is not nn.Conv2d for module in convolutions)


def test_with_an_initial_image_a_mask_new_edges_and_two_passes(tiny):
    """Each draws another image than without, and the unmasked region stays."""
    init = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
    mask = Image.new("L", (64, 64), 255)
    mask.paste(0, (16, 16, 48, 48))
    same = {"seed": 1, "steps": 2, "seamless": "xy"}
    for more, size in (
        ({"init_image": init, "strength": 0.5}, (64, 64)),
        ({"init_image": init, "mask_image": mask}, (64, 64)),
        ({"init_image": init, "outpaint": (16, 0, 16, 0)}, (96, 64)),
        ({"hires_scale": 1.5}, (96, 96)),
    ):
        drawn = tiny.generate("a cat", **same, **more).images[0]
        plain = tiny.generate("a cat", **{**same, "seamless": None}, **more).images[0]
        assert drawn.size == size
        assert drawn.tobytes() != plain.tobytes()
        if "mask_image" in more:
            assert drawn.crop((16, 16, 48, 48)).tobytes() == init.crop((16, 16, 48, 48)).tobytes()


def test_refused(tiny, capsys):
    for value in ("z", "yx", True, ""):
        with pytest.raises(UsageError, match="xy, x, y"):
            Settings(prompt="x", seamless=value)
    # The tiny U-Net has two levels: 16 pixels are one place of the coarser.
    with raises(UsageError, value="width=72", rule="multiple of 16", remedy="64 or 80"):
        tiny.generate("x", width=72, height=64, seamless="x", steps=2)
    with raises(UsageError, value="width with hires_scale=104", rule="multiple of 16"):
        tiny.generate("x", width=64, height=64, hires_scale=1.6, seamless="x", steps=2)
    assert tiny.generate("x", width=72, height=64, seamless="y", steps=2).images
    assert main(["generate", "x", "--model", "/no/such/model", "--seamless", "both"]) == 2
    assert "seamless='both'" in capsys.readouterr().err


def test_from_the_command_line_to_a_file_its_steps_and_back(folder, tmp_path):
    words = ["a cat", "--seed", "3", "--steps", "2", "--seamless", "x", "--save-int"]
    words += ["--dtype", "float32", "--model", str(folder), "--out", str(tmp_path / "cat.png")]
    assert main(["generate", *words]) == 0
    path = tmp_path / "cat.png"
    job = prepare(path, model=str(folder))
    result = Result.join(list(job.draw(job.load())))
    assert verify(path, job.record, result.images[0], read(path)["sdpipe"]).status == 0
    with Image.open(tmp_path / "cat.steps" / "xt-02.png") as last, Image.open(path) as picture:
        assert last.tobytes() == picture.convert("RGB").tobytes()


def test_a1111_writes_and_reads_it_by_its_own_name():
    text = parameters(Settings(prompt="x", seed=3, seamless="xy").resolved(V1_4), {"name": "m"})
    assert ", Tiling: True" in text
    record = a1111.read(text)
    assert record.values["seamless"] == "xy"
    assert not record.notes
    text = parameters(Settings(prompt="x", seed=3, seamless="x").resolved(V1_4), {"name": "m"})
    assert "Tiling" not in text
