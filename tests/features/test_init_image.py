"""A run from a picture, held against diffusers' own pipeline, closed forms and real files."""

import copy
import hashlib
import struct
import warnings
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
)
from PIL import Image
from support.errors import raises
from support.images import (
    ID,
    PROMPTS,
    Img2Img,
    diffusers_run,
    picture,
    reference,
)
from support.parity import BETAS, TWICE, assert_equal

from sdpipe import Pipeline, SdpipeWarning, UsageError, pil_to_latents
from sdpipe.canvas import load_images, prepare
from sdpipe.cli.app import main
from sdpipe.denoise import denoise
from sdpipe.io.png import read
from sdpipe.latents import add_noise
from sdpipe.metadata.record import Record, RecordError
from sdpipe.plan import size_for
from sdpipe.schedule import Schedule, make_schedule, make_scheduler
from sdpipe.settings import RANDOM_SCHEDULERS, SCHEDULERS, ImageRef, Settings

# The weights of the tiny model are random, and what it predicts is no picture's noise.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew to", "ignore:lcm is for distilled")


@pytest.mark.parametrize(
    ("strength", "scheduler"),
    [
        *((0.5, s) for s in SCHEDULERS),
        *((0.17, s) for s in ("lms", "pndm", "heun", "dpm++", "dpm2_a", "lcm")),
        (1.0, "lms"),
        (1.0, "ddim"),
    ],
)
def test_every_scheduler_draws_from_a_picture_what_diffusers_draws(
    tiny_of_each_type, scheduler, strength
):
    same = {"seed": 7, "g": 3.0, "steps": 6}
    init = picture()
    ours = tiny_of_each_type.generate(
        PROMPTS, init_image=init, strength=strength, scheduler=scheduler, save_int=True, **same
    )
    x_0 = pil_to_latents(tiny_of_each_type.components.vae, init).repeat(2, 1, 1, 1)
    kind = tiny_of_each_type.components.scheduler_config["prediction_type"]
    given = {"image": x_0, "strength": strength, **same}
    theirs = diffusers_run(
        Img2Img, tiny_of_each_type.components, reference(scheduler, kind), **given
    )
    taken = {0.5: 3, 0.17: 1, 1.0: 6}[strength]
    calls = 2 * taken - 1 if scheduler in TWICE else taken + (scheduler == "pndm" and taken > 1)
    assert len(theirs[0]) == calls
    assert_equal(ours, theirs)


def test_lms_of_order_1_from_a_picture_is_eulers_method(tiny_of_each_type):
    same = {"seed": 1, "g": 2.0, "steps": 8}
    ours = tiny_of_each_type.generate(
        PROMPTS, init_image=picture(), strength=0.6, lms_order=1, save_int=True, **same
    )
    x_0 = pil_to_latents(tiny_of_each_type.components.vae, picture()).repeat(2, 1, 1, 1)
    kind = tiny_of_each_type.components.scheduler_config["prediction_type"]
    euler = EulerDiscreteScheduler(**BETAS, steps_offset=1, prediction_type=kind)
    given = {"image": x_0, "strength": 0.6, **same}
    assert_equal(
        ours,
        diffusers_run(StableDiffusionImg2ImgPipeline, tiny_of_each_type.components, euler, **given),
    )


@pytest.mark.parametrize("skip", [1, 4, 9])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_unet_that_knows_the_picture_brings_it_back_from_any_step(name, skip):
    """Whatever the order of the method: the noise that it sees is the same at every step."""
    x_0 = torch.linspace(-2, 2, 16).view(1, 4, 2, 2)
    scheduler = make_scheduler(name, BETAS, 10, skip=skip)
    alpha_bar = scheduler.alphas_cumprod.double().numpy()
    levels = np.sqrt((1 - alpha_bar) / alpha_bar)

    class Knows:
        dtype = torch.float32

        def __call__(self, x_in, t, text):
            sigma = float(np.interp(float(t), np.arange(1000), levels))
            return SimpleNamespace(sample=(x_in * (1 + sigma**2) ** 0.5 - x_0) / sigma)

    schedule = Schedule.of(scheduler)
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(3))
    x_t = schedule.noised(x_0, eps, schedule.sigmas[0])
    text = torch.zeros(1, 3, 5)
    generators = [torch.Generator().manual_seed(4)]
    *_, last = denoise(Knows(), scheduler, x_t, text, text, 1.0, generators)
    left = last.sigma_next  # 0, but for DDIM and PNDM, which end at the first timestep
    assert left < 0.03
    if name in RANDOM_SCHEDULERS:
        assert torch.allclose(last.latents, x_0, atol=1e-4)
    else:
        assert torch.allclose(last.latents, schedule.noised(x_0, eps, left), atol=2e-3)


def test_noised_is_the_forward_process():
    x_0, eps = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    ddim, lms = (make_schedule(name, BETAS, 5) for name in ("ddim", "lms"))
    for sigma in (0.0, 0.03, 1.0, 14.6):
        unit = add_noise(x_0, eps, torch.tensor([1 / (1 + sigma**2)]))
        assert torch.allclose(ddim.noised(x_0, eps, sigma), unit, atol=1e-6)
        assert torch.allclose(lms.noised(x_0, eps, sigma), x_0 + sigma * eps)


def test_a_picture_alone_in_a_batch_and_exact(tiny):
    same = {"init_image": picture(), "strength": 0.5, "steps": 4, "batch_invariant": True}
    batch = tiny.generate("a cat", n=3, seed=5, **same)
    alone = tiny.generate("a cat", seed=6, **same)
    assert batch.images[1].tobytes() == alone.images[0].tobytes()
    steps = list(tiny.stream("a cat", seed=6, **same))
    assert [step.index for step in steps] == [0, 1]
    assert {step.total for step in steps} == {2}


def test_the_less_strength_the_more_stays(emoji):
    init = emoji.generate("red apple", seed=1, steps=8).images[0]
    off = []
    for strength in (0.1, 0.4, 0.9):
        [drawn] = emoji.generate(
            "panda", init_image=init, strength=strength, steps=10, seed=2
        ).images
        off.append(np.abs(np.asarray(drawn, float) - np.asarray(init, float)).mean())
    assert off == sorted(off)
    assert off[0] < off[-1] / 2


def test_settings_know_which_picture_it_was(tiny, tmp_path):
    init = picture(100, 50)
    init.save(tmp_path / "meadow.png")
    [settings] = tiny.generate("a cat", init_image=tmp_path / "meadow.png", steps=4).settings
    digest = hashlib.sha256(np.asarray(init).tobytes()).hexdigest()
    assert settings.init_image == ImageRef("meadow.png", digest)
    assert (settings.strength, settings.fit, settings.mask_image) == (0.8, "crop", None)
    again = type(settings).from_json(settings.to_json())
    assert again == settings
    assert hash(again) == hash(settings)
    assert (settings.width, settings.height) == (96, 48)


@pytest.mark.parametrize(
    ("size", "own", "given", "drawn"),
    [
        ((512, 512), 512, {}, (512, 512)),
        ((768, 512), 512, {}, (768, 512)),  # up to twice the pixels stay
        ((500, 333), 512, {}, (496, 336)),
        ((4000, 3000), 512, {}, (592, 440)),
        ((3000, 4000), 512, {}, (440, 592)),
        ((64, 64), 512, {}, (512, 512)),
        ((10_000, 10), 512, {}, (16192, 16)),
        ((512, 512), 128, {}, (128, 128)),
        ((400, 300), 512, {"width": 256}, (256, 192)),
        ((400, 300), 512, {"height": 600}, (800, 600)),
        ((400, 300), 512, {"width": 64, "height": 64}, (64, 64)),
    ],
)
def test_the_size_follows_from_the_picture(size, own, given, drawn):
    assert size_for(size, (own, own), 8, **given) == drawn


@pytest.mark.parametrize(
    ("fit", "left", "middle"), [("crop", "red", "red"), ("pad", "white", "red")]
)
def test_a_picture_is_brought_to_size(fit, left, middle):
    wide = Image.new("RGB", (200, 100), "red")
    settings = Settings(prompt="", init_image=ID, width=64, height=64, fit=fit)
    canvas = prepare(settings, *load_images(wide)).image
    assert canvas.size == (64, 64)
    assert canvas.getpixel((32, 32)) == canvas.getpixel((2, 32)) == (255, 0, 0)
    top = {"crop": (255, 0, 0), "pad": (255, 255, 255)}[fit]
    assert canvas.getpixel((32, 2)) == top


def test_stretching_keeps_all_of_it_and_a_size_that_fits_keeps_its_bits():
    halves = Image.new("RGB", (100, 50), "red")
    halves.paste("blue", (50, 0, 100, 50))
    settings = Settings(prompt="", init_image=ID, width=32, height=64, fit="stretch")
    canvas = prepare(settings, *load_images(halves)).image
    assert canvas.getpixel((4, 32)) == (255, 0, 0)
    assert canvas.getpixel((28, 32)) == (0, 0, 255)
    for fit in ("crop", "pad", "stretch"):
        settings = Settings(prompt="", init_image=ID, width=64, height=40, fit=fit)
        same = picture(64, 40)
        assert prepare(settings, *load_images(same)).image.tobytes() == same.tobytes()


def test_of_an_animation_the_first_picture_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(SdpipeWarning, match=r"a\.gif has several frames"):
        init, _ = load_images(tmp_path / "a.gif")
    assert init.image.getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("source", [np.zeros((8, 8, 3), np.uint8), [picture(8, 8)], b"PNG", 3])
def test_what_is_neither_a_file_nor_an_image_is_refused(source):
    for name, sources in (("init_image", (source,)), ("mask_image", (picture(8, 8), source))):
        value = f"{name}, of the type {type(source).__name__},"
        with raises(UsageError, value, "is not an image", "Image.fromarray makes one of an array"):
            load_images(*sources)


def test_an_image_without_pixels_is_refused():
    with raises(UsageError, "init_image of 0 x 8 pixels", "is empty"):
        load_images(Image.new("RGB", (0, 8)))


@pytest.mark.parametrize("steps", [1, 3, 7, 30, 49, 50, 93, 103, 999])
def test_the_smallest_strength_that_is_named_leaves_a_step(steps):
    with pytest.raises(UsageError) as told:
        Settings(prompt="", init_image=ID, strength=0.0001, steps=steps, scheduler="dpm++")
    least = float(told.value.remedy.split()[1])
    assert Settings(
        prompt="", init_image=ID, strength=least, steps=steps, scheduler="dpm++"
    ).strength
    assert least - 0.001 < 1 / steps <= least + 1e-12


def run(capsys, *arguments):
    with warnings.catch_warnings():
        status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_picture_drawn_from_a_picture_is_drawn_again_from_the_same(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    picture(32, 32).save("in.png")
    picture(32, 32, seed=1).save("other.png")
    model = ["--model", folder, "--device", "cpu", "--dtype", "float32"]
    status, out, _ = run(
        capsys, "generate", "a cat", "--init-image", "in.png", "--strength", "0.5", "--steps", 4,
        *model, "--out", "out.png",
    )  # fmt: skip
    assert (status, out) == (0, "out.png\n")
    told = read("out.png")
    assert "Steps: 4, " in told["parameters"]
    assert "Denoising strength: 0.5, " in told["parameters"]
    digest = hashlib.sha256(np.asarray(picture(32, 32)).tobytes()).hexdigest()
    assert told["sdpipe"]["settings"]["init_image"] == {"name": "in.png", "sha256": digest}

    status, out, _ = run(capsys, "info", "out.png")
    assert f"in.png, SHA-256 {digest[:12]}\n" in out
    # The file of that name lies right here; it still has to be named by a person.
    status, out, err = run(capsys, "replay", "out.png", "--verify", *model)
    assert (status, out) == (2, "")
    assert "drawn from the image 'in.png', which it does not contain" in err
    assert "give that image: --init-image" in err
    status, _, err = run(
        capsys, "replay", "out.png", "--init-image", "other.png", "--verify", *model
    )
    assert status == 2
    assert f"and not {digest[:12]}" in err
    status, _, err = run(
        capsys, "replay", "out.png", "--init-image", "in.png", "--mask-image", "other.png", *model
    )
    assert status == 2
    assert "was drawn without mask_image; leave --mask-image out" in err
    status, out, _ = run(capsys, "replay", "out.png", "--init-image", "in.png", "--verify", *model)
    assert (status, out) == (0, "identical\n")
    status, out, _ = run(
        capsys, "replay", "out.png", "--init-image", "in.png", "--set", "strength=1", "--set",
        "outpaint=0,8,0,0", "--set", "height=40", "--out", "more.png", *model,
    )  # fmt: skip
    assert (status, out) == (0, "more.png\n")
    assert read("more.png")["sdpipe"]["settings"]["outpaint"] == [0, 8, 0, 0]
    status, _, err = run(
        capsys, "replay", "out.png", "--init-image", "in.png", "--set", "init_image=in.png"
    )
    assert status == 2
    assert "--set init_image cannot" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--init-image", "none.png"], "none.png cannot be read: No such file"),
        (["--init-image", "."], ". cannot be read: Is a directory"),
        (["--init-image", "text.png"], "text.png cannot be read"),
        (["--init-image", ""], "init_image='' is not an image; give a file"),
        (["--init-image=~/text.png"], "text.png cannot be read"),
        (["--init-image", "half.png"], "half.png cannot be read: it is damaged or cut short"),
        (["--init-image", "bomb.png"], "bomb.png cannot be read: it has too many pixels"),
        (["--init-image", "in.png", "--mask-image", "text.png"], "text.png cannot be read"),
        (["--init-image", "in.png", "--strength", "0"], "strength=0 is out of range"),
        (["--init-image", "in.png", "--outpaint", "1,2,3"], "outpaint=1,2,3 is not"),
        (["--init-image", "in.png", "--outpaint=a,b"], "outpaint='a,b' is not"),
        (["--mask-image", "in.png"], "needs an image to mask; give init_image"),
        (["--strength", "0.5"], "give init"),
    ],
)
def test_what_is_no_picture_is_told_before_a_model_is_loaded(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sdpipe.pipeline.load", lambda *_, **__: pytest.fail("it was loaded"))
    picture().save("in.png")
    (tmp_path / "text.png").write_text("no picture")
    data = (tmp_path / "in.png").read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "bomb.png").write_bytes(data[:8] + header + data[33:])
    status, out, err = run(capsys, "generate", "a cat", "--model", "emoji", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_vae_that_overflows_in_half_precision_encodes_again_in_float32(tiny):
    vae = copy.deepcopy(tiny.components.vae)
    # What stands behind this layer is beyond float16, until the norm at the end.
    with torch.no_grad():
        vae.encoder.conv_in.weight *= 2e5
        vae.encoder.conv_in.bias *= 2e5
    expected = pil_to_latents(vae, picture())
    with pytest.warns(SdpipeWarning, match="overflowed in float16 and encodes again in float32"):
        z = pil_to_latents(vae.half(), picture())
    assert torch.isfinite(z).all()
    assert (z - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_sweep_over_strengths_begins_with_the_picture_and_goes_on_where_it_was(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    picture(32, 32).save("in.png")
    command = ["sweep", "a cat", "--model", folder, "--dtype", "float32", "--device", "cpu"]
    command += [
        "--init-image",
        "in.png",
        "--strength",
        "0.5,1",
        "--steps",
        2,
        "--seed",
        1,
        "--out",
        "row",
    ]
    status, out, err = run(capsys, *command)
    assert (status, out) == (0, "row/grid.png\n"), err
    pipe = Pipeline(folder, device="cpu", dtype="float32")
    for strength, name in ((0.5, "strength=0.5"), (1.0, "strength=1")):
        told = read(f"row/{name}.png")["sdpipe"]["settings"]
        assert (told["strength"], told["init_image"]["name"]) == (strength, "in.png")
        [drawn] = pipe.generate(
            "a cat", init_image="in.png", strength=strength, steps=2, seed=1
        ).images
        with Image.open(f"row/{name}.png") as image:
            assert image.tobytes() == drawn.tobytes()
    status, _, err = run(capsys, *command)
    assert status == 0
    assert "2 there before" in err
    assert "drawn" not in err.split(": ")[-1]
    status, out, _ = run(capsys, "info", "row/grid.png")
    assert "--init-image in.png" in out
    assert "--strength 0.5,1" in out


@pytest.mark.parametrize(
    "told",
    [
        *({"init_image": value} for value in (5, [], {}, "in.png", {"name": 5})),
        *({"init_image": {"name": 5, "sha256": "0" * 64}},),
        *({"init_image": {"name": "a", "sha256": v}} for v in (None, "0", "0" * 65, ["0" * 64])),
        {"init_image": {"name": "a" * 10_000, "sha256": "0" * 64}},
        {"init_image": {"name": {"name": "a"}, "sha256": "0" * 64}},
        {"mask_image": {"name": "a", "sha256": "0" * 64}},
        {"strength": 2},
        {"strength": float("nan")},
        *({"init_image": {"name": "a", "sha256": "0" * 64}, "outpaint": value} for value in (
            *([8, 8, 8], [8] * 1000, [[8]] * 4, [8.0] * 4, [True] * 4, ["8"] * 4, [2**70] * 4),
            *("8,8,8,8", {"left": 8}, 8, [10**6, 0, 0, 0], [float("nan")] * 4),
        )),
    ],
)  # fmt: skip
def test_what_a_picture_says_of_another_is_checked(told):
    with pytest.raises(RecordError) as refused:
        Record.from_sdpipe({"settings": {"prompt": "", "width": 512, **told}}).settings()
    assert len(str(refused.value)) < 400
