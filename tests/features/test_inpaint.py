"""A run into a part of a picture, and beyond its edges."""

import hashlib

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image
from support.errors import raises
from support.images import ID, PROMPTS, LatePipeline, diffusers_run, picture, reference

from sdpipe import UsageError, pil_to_latents
from sdpipe.canvas import SEAM, Canvas, load_images, prepare
from sdpipe.sampling import latent_mask
from sdpipe.settings import SCHEDULERS, Settings

# The weights of the tiny model are random, and what it predicts is no picture's noise.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew", "ignore:lcm is for distilled")


class Inpaint(LatePipeline, StableDiffusionInpaintPipeline):
    pass


def mask_of(box, size=(64, 64), level=255):
    mask = Image.new("L", size)
    mask.paste(level, box)
    return mask


HOLE = (16, 8, 40, 48)


@pytest.mark.parametrize(
    ("scheduler", "strength", "g"),
    [
        # Midway through a step of dpm2 diffusers restores with the noise of the whole step.
        *((s, 0.5, 3.0) for s in SCHEDULERS if s != "dpm2"),
        ("lms", 1.0, 1.0),
        ("pndm", 1.0, 3.0),
        ("heun", 1.0, 1.0),
    ],
)
def test_every_scheduler_redraws_a_part_as_diffusers_does(
    tiny_of_each_type, scheduler, strength, g
):
    init, mask = picture(), mask_of(HOLE)
    same = {"seed": 3, "g": g, "steps": 6}
    ours = tiny_of_each_type.generate(
        PROMPTS,
        init_image=init,
        mask_image=mask,
        strength=strength,
        scheduler=scheduler,
        save_int=True,
        **same,
    )
    x_0 = pil_to_latents(tiny_of_each_type.components.vae, init)
    kind = tiny_of_each_type.components.scheduler_config["prediction_type"]
    latents, images = diffusers_run(
        Inpaint,
        tiny_of_each_type.components,
        reference(scheduler, kind),
        image=x_0,
        mask_image=mask,
        masked_image_latents=torch.zeros_like(x_0),  # for U-Nets of nine channels only
        strength=strength,
        width=64,
        height=64,
        **same,
    )
    assert len(ours.steps) == len(latents)
    for step, expected in zip(ours.steps, latents, strict=True):
        assert (step.latents - expected).abs().max() / expected.abs().max() < 1e-4
    hole = np.asarray(mask) == 255
    for drawn, theirs in zip(ours.images, images, strict=True):
        inside = np.asarray(drawn).astype(int)[hole] - np.asarray(theirs).astype(int)[hole]
        assert np.abs(inside).max() <= 1
        assert (np.asarray(drawn)[~hole] == np.asarray(init)[~hole]).all()


def test_what_is_black_keeps_its_bits_and_what_is_white_is_redrawn(emoji):
    init = emoji.generate("red apple on a blue background", seed=1, steps=6).images[0]
    # No multiples of 8, and no straight edges.
    y, x = np.mgrid[: init.height, : init.width]
    inside = (x - 50) ** 2 + (y - 43) ** 2 < 21**2
    mask = Image.fromarray(np.where(inside, 255, 0).astype(np.uint8))
    result = emoji.generate("panda", init_image=init, mask_image=mask, seed=4, steps=6, n=2)
    for drawn in result.images:
        changed = (np.asarray(drawn) != np.asarray(init)).any(axis=2)
        assert not changed[~inside].any()
        assert changed[inside].mean() > 0.5
    digest = hashlib.sha256(np.asarray(mask.convert("RGB")).tobytes()).hexdigest()
    assert result.settings[1].mask_image.sha256 == digest
    assert result.settings[1].strength == 1.0


def test_a_mask_all_white_is_as_good_as_none(tiny):
    same = {"init_image": picture(), "strength": 0.5, "steps": 4, "seed": 2}
    masked = tiny.generate("a cat", mask_image=mask_of((0, 0, 64, 64)), **same)
    plain = tiny.generate("a cat", **same)
    assert masked.images[0].tobytes() == plain.images[0].tobytes()


def test_greys_of_a_mask_blend():
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (8, 1)))
    old, new = Image.new("RGB", ramp.size, (0, 200, 10)), Image.new("RGB", ramp.size, (250, 0, 10))
    kept = np.asarray(Canvas(old, ramp).composite(new)).astype(float)
    m = np.arange(256)[None, :, None] / 255
    exact = m * np.asarray(new) + (1 - m) * np.asarray(old)
    assert np.abs(kept - exact).max() <= 0.51
    assert (kept[:, 0] == (0, 200, 10)).all()
    assert (kept[:, 255] == (250, 0, 10)).all()


def test_a_latent_is_redrawn_where_one_of_its_pixels_is_at_least_half_white():
    mask = mask_of((8, 0, 9, 1), (24, 16))
    mask.putpixel((16, 15), 127)
    mask.putpixel((23, 15), 128)
    assert latent_mask(mask, 8).tolist() == [[[[0, 1, 0], [0, 0, 1]]]]


def test_a_mask_in_any_mode_means_the_same():
    grey = mask_of(HOLE)
    clear = Image.new("RGBA", grey.size, (255, 255, 255, 0))  # painted over nothing
    clear.paste((255, 255, 255, 255), HOLE)
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    for mask in (grey.convert("1"), grey.convert("RGB"), clear, sixteen):
        _, taken = load_images(picture(), mask)
        assert taken.image.mode == "L"
        assert taken.image.tobytes() == grey.tobytes()


def test_picture_and_mask_that_lie_on_their_side_are_put_up_and_cut_together(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    left = mask_of((0, 0, 40, 60), (120, 60))
    Image.merge("RGB", [left] * 3).save(tmp_path / "in.png", exif=exif)
    left.save(tmp_path / "mask.png", exif=exif)
    init, mask = load_images(tmp_path / "in.png", tmp_path / "mask.png")
    assert init.image.size == (60, 120)
    for fit in ("crop", "pad", "stretch"):
        settings = Settings(prompt="", init_image=ID, mask_image=ID, width=64, height=96, fit=fit)
        canvas = prepare(settings, init, mask)
        white = np.asarray(canvas.mask) > 128
        inner = np.s_[:, 16:-16]  # pad has white paper beside the picture, and keeps it
        shown = np.asarray(canvas.image)[..., 0] > 128
        assert (white[inner] == shown[inner])[[*range(20), *range(60, 90)]].all()


def test_each_image_of_several_batches_has_its_own_noise_where_it_is_kept(tiny):
    same = {"init_image": picture(), "mask_image": mask_of(HOLE), "steps": 3, "strength": 0.7}
    both = tiny.generate("a cat", n=2, seed=5, batch_invariant=True, **same)
    alone = tiny.generate("a cat", seed=6, batch_invariant=True, **same)
    assert both.images[1].tobytes() == alone.images[0].tobytes()


@pytest.mark.parametrize(
    ("mask", "value", "rule"),
    [
        (mask_of(HOLE, (64, 32), 0), "64 x 32 pixels", "the image of 64 x 64"),
        (mask_of(HOLE, level=0), "at most 0 of 255", "no white"),
        (mask_of(HOLE, level=99), "at most 99 of 255", "no white"),
        (7, "mask_image", "not an image"),
    ],
)
def test_a_mask_that_says_nothing_is_refused(mask, value, rule):
    with raises(UsageError, value, rule):
        load_images(picture(), mask)


def test_a_mask_whose_white_is_cut_off_is_refused():
    init, mask = load_images(picture(128, 64), mask_of((0, 0, 20, 64), (128, 64)))
    settings = Settings(prompt="", init_image=ID, mask_image=ID, width=64, height=64, fit="crop")
    with raises(UsageError, "fit=crop to 64 x 64 pixels", "nothing white"):
        prepare(settings, init, mask)


def test_beyond_the_edges_the_outermost_pixels_go_on_and_the_mask_fades_in():
    settings = Settings(prompt="", init_image=ID, width=96, height=80, outpaint=(24, 0, 8, 16))
    init = picture()
    canvas = prepare(settings, *load_images(init))
    edged = np.pad(np.asarray(init), ((0, 16), (24, 8), (0, 0)), mode="edge")
    assert (np.asarray(canvas.image) == edged).all()
    mask = np.asarray(canvas.mask).astype(int)
    assert (mask[:, :24] == 255).all()
    assert (mask[:, 88:] == 255).all()
    assert (mask[64:] == 255).all()
    assert (mask[: 64 - SEAM, 24 + SEAM : 88 - SEAM] == 0).all()  # above, nothing grew
    for line in (
        mask[0, 23 : 25 + SEAM],
        mask[0, 88 : 86 - SEAM : -1],
        mask[64 : 62 - SEAM : -1, 50],
    ):
        assert line[0] == 255
        assert (np.diff(line) < 0).all()
        assert line[-1] == 0


def test_a_picture_grows_and_its_middle_stays(tiny):
    init = picture()
    result = tiny.generate("a cat", init_image=init, outpaint=(16, 0, 16, 32), steps=4, seed=1)
    [drawn], [settings] = result.images, result.settings
    assert drawn.size == (settings.width, settings.height) == (96, 96)
    inner = drawn.crop((16 + SEAM, 0, 80 - SEAM, 64 - SEAM))
    assert inner.tobytes() == init.crop((SEAM, 0, 64 - SEAM, 64 - SEAM)).tobytes()
    fill = prepare(settings, *load_images(init)).image
    assert (np.asarray(drawn)[64:] != np.asarray(fill)[64:]).any(axis=2).mean() > 0.9


def test_a_mask_and_new_edges_go_together(tiny):
    hole = mask_of((20, 20, 40, 40))
    same = {"init_image": picture(), "outpaint": (0, 0, 8, 0), "steps": 4, "seed": 1, "width": 72}
    [drawn] = tiny.generate("a cat", mask_image=hole, height=64, **same).images
    changed = (np.asarray(drawn)[:, :64] != np.asarray(picture())).any(axis=2)
    assert changed[20:40, 20:40].mean() > 0.9
    assert not changed[:, :20].any()
    assert changed[:, 62:].mean() > 0.5
