import itertools
import json
import random

import pytest
import torch
from PIL import Image, ImageChops
from safetensors import safe_open
from support.errors import raises
from support.tiny import tiny_vae

from sdpipe.denoise import Step
from sdpipe.errors import NotFiniteError, SdpipeError, UsageError
from sdpipe.io.lettering import PAPER
from sdpipe.latents import latents_to_pil
from sdpipe.pipeline import Result
from sdpipe.settings import Settings
from sdpipe.show.filmstrip import COLUMNS, Column, filmstrip, spread_states, title_lines
from sdpipe.show.steps import decode_columns, save_steps

SETTINGS = Settings(prompt="red apple", seed=3, n=1).resolved({"width": 32, "height": 32})


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return tiny_vae().eval()


def result(steps=3, *, exploding=True, batch=2):
    """A trajectory of random latents: sigma falls from `steps` to 0, one by one."""
    g = torch.Generator().manual_seed(0)

    def latents():
        return torch.randn((batch, 4, 4, 4), generator=g)

    states = [latents() * (1 + steps - i) for i in range(steps + 1)]
    kept = [
        Step(
            images=range(batch),
            index=i,
            total=steps,
            timestep=900.5 - i,
            sigma=float(steps - i),
            sigma_next=float(steps - i - 1),
            input=states[i],
            latents=states[i + 1],
            x0=latents(),
            variance_exploding=exploding,
        )
        for i in range(steps)
    ]
    return Result([], [SETTINGS] * batch, [], [], kept)


def plain(*size):
    return Image.frombytes("RGB", size, random.Random(0).randbytes(size[0] * size[1] * 3))


@pytest.mark.parametrize("steps", [1, 2, 7, 8, 9, 10, 50, 999])
def test_the_first_and_the_last_state_are_always_shown(steps):
    states = spread_states(steps)
    assert states[0] == 0
    assert states[-1] == steps
    assert len(states) == min(steps + 1, COLUMNS)
    assert states == sorted(set(states))
    gaps = [b - a for a, b in itertools.pairwise(states)]
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (768, 256), (64, 256), (8, 8), (512, 64)])
def test_a_strip_is_as_large_as_its_images_ask_for_and_clear_of_its_edges(size):
    image = plain(*size)
    strip = filmstrip([Column(k, 14.6 - k, image, image) for k in range(9)], "title", "below")
    assert strip.mode == "RGB"
    assert 900 < strip.width < 1600
    assert 250 < strip.height < 560
    paper = Image.new("RGB", strip.size, PAPER)
    left, top, right, bottom = ImageChops.difference(strip, paper).getbbox()
    assert min(left, top, strip.width - right, strip.height - bottom) >= 24


def test_small_images_stay_crisp():
    strip = filmstrip([Column(0, 1.0, plain(64, 64), Image.new("RGB", (64, 64)))])
    enlarged = plain(64, 64).resize((128, 128), Image.Resampling.NEAREST)
    x, y = next(
        (x, y)
        for y in range(strip.height - 128)
        for x in range(150, strip.width - 128)
        if strip.getpixel((x, y)) == enlarged.getpixel((0, 0))
        and strip.crop((x, y, x + 128, y + 128)).tobytes() == enlarged.tobytes()
    )
    assert strip.crop((x, y + 136, x + 128, y + 264)).getextrema() == ((0, 0),) * 3


def test_long_titles_do_not_widen_the_strip():
    settings = Settings(prompt="café 日本\n" + "long " * 300, seed=1, karras=True, g=3)
    title, subtitle = title_lines(settings.resolved({"width": 8, "height": 8}))
    assert title == settings.prompt
    assert subtitle == "seed 1 · 50 steps · lms · karras · g 3"
    strip = filmstrip([Column(0, 1.0, plain(64, 64), plain(64, 64))], title, subtitle)
    assert strip.width < 500


def test_a_folder_holds_every_step(vae, tmp_path):
    drawn, counted = result(), []
    folder = save_steps(
        vae, drawn, 1, tmp_path / "x.steps", on_decoded=lambda *count: counted.append(count)
    )
    assert folder == tmp_path / "x.steps"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.steps"]
    names = [f"x0-{i:02}.png" for i in (1, 2, 3)] + [f"xt-{i:02}.png" for i in (0, 1, 2, 3)]
    assert sorted(path.name for path in folder.iterdir()) == [
        "filmstrip.png",
        "latents.safetensors",
        *names,
    ]
    assert counted == [(i, 7) for i in range(1, 8)]

    def shown(latents):
        return latents_to_pil(vae, latents[1:2])[0].tobytes()

    def saved(name):
        return Image.open(folder / name).tobytes()

    # sigma of x_t after steps 0, 1, 2, 3 is 3, 2, 1, 0.
    assert saved("xt-00.png") == shown(drawn.steps[0].input / 10**0.5)
    assert saved("xt-02.png") == shown(drawn.steps[1].latents / 2**0.5)
    assert saved("xt-03.png") == shown(drawn.steps[2].latents)
    assert saved("x0-01.png") == shown(drawn.steps[0].x0)
    assert saved("x0-03.png") == shown(drawn.steps[2].x0)


def test_latents_that_keep_their_variance_are_shown_as_they_are(vae, tmp_path):
    drawn = result(exploding=False)
    folder = save_steps(vae, drawn, 0, tmp_path / "x.steps")
    image = latents_to_pil(vae, drawn.steps[0].latents[:1])[0]
    assert Image.open(folder / "xt-01.png").tobytes() == image.tobytes()


@pytest.mark.parametrize("describe", [True, False])
def test_the_latents_are_those_of_the_loop(vae, tmp_path, describe):
    drawn = result()
    folder = save_steps(vae, drawn, 1, tmp_path / "x.steps", describe=describe)
    with safe_open(folder / "latents.safetensors", "pt") as file:
        assert set(file.keys()) == {"x_t", "x0", "sigma", "timestep"}
        x_t, x0 = file.get_tensor("x_t"), file.get_tensor("x0")  # (S + 1, C, h, w), (S, C, h, w)
        assert file.get_tensor("sigma").tolist() == [3, 2, 1, 0]
        assert file.get_tensor("timestep").tolist() == [900.5, 899.5, 898.5]
        notes = file.metadata()
    assert torch.equal(x_t[0], drawn.steps[0].input[1])
    assert torch.equal(x_t[3], drawn.steps[2].latents[1])
    assert torch.equal(x0[1], drawn.steps[1].x0[1])
    assert json.loads(notes["variance_exploding"]) is True
    assert notes.get("settings") == (SETTINGS.to_json() if describe else None)


def test_names_sort_when_there_are_many_steps(vae, tmp_path):
    folder = save_steps(vae, result(100, batch=1), 0, tmp_path / "x.steps")
    assert (folder / "xt-000.png").exists()
    assert (folder / "x0-100.png").exists()


def test_the_columns_by_themselves_are_those_of_the_folder(vae, tmp_path):
    drawn = result(12)
    shown = decode_columns(vae, drawn, 0)
    assert [column.step for column in shown] == spread_states(12)
    assert [column.sigma for column in shown] == [12.0 - k for k in spread_states(12)]
    assert shown[-1].x0 == shown[-1].x_t
    save_steps(vae, drawn, 0, tmp_path / "x.steps")
    strip = filmstrip(shown, *title_lines(SETTINGS))
    assert strip.tobytes() == Image.open(tmp_path / "x.steps/filmstrip.png").tobytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_folder_is_not_there(vae, tmp_path, error):
    def stop(done, total):
        if done == 4:
            raise error

    with pytest.raises(error):
        save_steps(vae, result(), 0, tmp_path / "x.steps", on_decoded=stop)
    assert list(tmp_path.iterdir()) == []


def test_latents_that_cannot_be_decoded_leave_no_folder(vae, tmp_path):
    drawn = result()
    drawn.steps[1].x0[0] = torch.nan
    with pytest.raises(NotFiniteError):
        save_steps(vae, drawn, 0, tmp_path / "x.steps")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_saved_is_refused(vae, tmp_path):
    with raises(UsageError, rule="no steps", remedy="save_int=True"):
        save_steps(vae, Result([], [SETTINGS], [], []), 0, tmp_path / "x.steps")
    with raises(UsageError, rule="no steps", remedy="save_int=True"):
        decode_columns(vae, Result([], [SETTINGS], [], []), 0)
    (tmp_path / "x.steps").mkdir()
    with raises(SdpipeError, value="x.steps", rule="cannot be written (File exists)"):
        save_steps(vae, result(), 0, tmp_path / "x.steps")
    (tmp_path / "file").touch()
    with raises(SdpipeError, value="x.steps", rule="cannot be written ("):
        save_steps(vae, result(), 0, tmp_path / "file" / "x.steps")
