import copy

import numpy as np
import pytest
import torch
from PIL import Image

from sdpipe import NotFiniteError, SdpipeWarning, latents_to_pil, pil_to_latents
from sdpipe.latents import (
    add_noise,
    angle_between,
    draw_noise,
    make_generators,
    slerp,
    tiled_decode,
    to_pil,
    to_tensor,
    vae_factor,
)

SIZE = (4, 8, 8)


def test_noise_of_a_seed_is_the_same_alone_and_at_any_place_in_a_batch():
    batch = draw_noise(make_generators([5, 6, 7]), SIZE)
    for i, seed in enumerate([5, 6, 7]):
        assert torch.equal(batch[i : i + 1], draw_noise(make_generators([seed]), SIZE))
    expected = torch.randn((1, *SIZE), generator=torch.Generator("cpu").manual_seed(6))
    assert torch.equal(batch[1:2], expected)
    assert batch.dtype == torch.float32


def test_the_generator_goes_on_where_the_noise_ended():
    [generator] = make_generators([9])
    draw_noise([generator], SIZE)
    reference = torch.Generator("cpu").manual_seed(9)
    torch.randn((1, *SIZE), generator=reference)
    assert torch.equal(torch.randn(3, generator=generator), torch.randn(3, generator=reference))


def test_forward_process_has_the_stated_mean_and_variance():
    x_0 = torch.linspace(-1, 1, 4).view(1, 4, 1, 1).expand(200_000, 4, 1, 1)
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    for alpha_bar in (0.9, 0.3, 0.01):
        x_t = add_noise(x_0, eps, torch.full((len(x_0),), alpha_bar))
        mean = x_t.mean(dim=0).flatten()
        assert torch.allclose(mean, alpha_bar**0.5 * x_0[0].flatten(), atol=0.01)
        assert torch.allclose(x_t.var(dim=0), torch.tensor(1 - alpha_bar), rtol=0.02)


def test_a_chain_of_single_steps_is_the_closed_form():
    """q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I), one hundred times over."""
    generator = torch.Generator().manual_seed(1)
    beta = torch.linspace(1e-4, 0.05, 100, dtype=torch.float64)
    x_0 = torch.tensor([-2.0, 0.5, 1.0, 3.0], dtype=torch.float64).view(1, 4, 1, 1)
    x = x_0.expand(100_000, 4, 1, 1)
    weight, noise = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for b in beta:
        eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = (1 - b).sqrt() * x + b.sqrt() * eps
        # The same recursion for the mean's weight and the variance, without sampling.
        weight, noise = weight * (1 - b).sqrt(), noise * (1 - b) + b
    alpha_bar = torch.cumprod(1 - beta, 0)[-1:]
    signal = add_noise(x_0, torch.zeros_like(x_0), alpha_bar)
    spread = add_noise(torch.zeros_like(x_0), torch.ones_like(x_0), alpha_bar)
    assert torch.allclose(signal, weight * x_0)
    assert torch.allclose(spread**2, noise.expand_as(spread))
    assert torch.allclose(x.mean(dim=0), signal[0], atol=0.02)
    assert torch.allclose(x.var(dim=0), spread[0] ** 2, rtol=0.02)


def test_black_is_minus_one_and_white_is_one():
    image = Image.new("RGB", (3, 2), (0, 51, 255))
    image.putpixel((2, 0), (255, 0, 102))
    x = to_tensor(image)
    assert x.shape == (3, 2, 3)
    assert x.dtype == torch.float32
    assert x[:, 0, 0].tolist() == pytest.approx([-1, -0.6, 1], abs=1e-6)
    assert x[:, 0, 2].tolist() == pytest.approx([1, -1, -0.2], abs=1e-6)
    assert x[:, 1, 2].tolist() == x[:, 0, 0].tolist()


def test_levels_are_rounded_and_what_is_beyond_is_clamped():
    levels = torch.arange(256.0)
    x = (levels / 127.5 - 1).expand(3, 1, 256)
    assert np.asarray(to_pil(x))[0, :, 0].tolist() == list(range(256))
    shifted = (levels + 0.4) / 127.5 - 1
    assert np.asarray(to_pil(shifted.expand(3, 1, 256)))[0, :, 1].tolist() == list(range(256))
    beyond = torch.tensor([-7.0, -1.01, 1.01, 7.0]).expand(3, 1, 4)
    assert np.asarray(to_pil(beyond))[0, :, 2].tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("angle", [1e-5, 5e-3, 1.0, 3.0])
def test_slerp_turns_by_the_share_of_the_angle(angle):
    """In the plane of both, from the length of one to that of the other."""
    a = torch.tensor([2.0, 0, 0], dtype=torch.float64)
    b = 4 * torch.tensor([np.cos(angle), np.sin(angle), 0], dtype=torch.float64)
    for f in (0.25, 0.5):
        between = slerp(a, b, f)
        assert angle_between(a, between) == pytest.approx(f * angle, rel=1e-9)
        assert angle_between(between, b) == pytest.approx((1 - f) * angle, rel=1e-9)
        assert float(between.norm()) == pytest.approx(2 + 2 * f)


def test_between_parallel_vectors_slerp_goes_straight():
    a = torch.tensor([3.0, 4.0])
    assert torch.allclose(slerp(a, 2 * a, 0.25), 1.25 * a)


def test_a_picture_becomes_latents_and_comes_back(emoji):
    vae = emoji.components.vae
    picture = emoji.generate("red apple", seed=1, steps=12).images[0]
    z = pil_to_latents(vae, picture)
    factor = vae_factor(vae)
    assert z.shape == (1, 4, picture.height // factor, picture.width // factor)
    assert 3 * picture.width * picture.height / z.numel() == 48
    [back] = latents_to_pil(vae, z)
    assert back.size == picture.size
    error = np.asarray(back).astype(float) - np.asarray(picture).astype(float)
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 22  # dB


def test_several_pictures_of_any_mode(emoji):
    vae = emoji.components.vae
    pictures = [Image.new("L", (64, 32), 90), Image.new("RGBA", (64, 32), (9, 99, 199, 255))]
    z = pil_to_latents(vae, pictures)
    assert z.shape == (2, 4, 32 // vae_factor(vae), 64 // vae_factor(vae))
    one = pil_to_latents(vae, pictures[0].convert("RGB"))
    assert torch.allclose(z[:1], one, atol=1e-5)


def test_a_vae_that_overflows_in_half_precision_decodes_again_in_float32(emoji):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_config(emoji.components.vae.config)
    vae.load_state_dict(emoji.components.vae.state_dict())
    # Two layers that undo each other: what stands between them is beyond float16.
    with torch.no_grad():
        vae.decoder.conv_in.weight *= 1e4
        vae.decoder.conv_in.bias *= 1e4
    z = pil_to_latents(emoji.components.vae, Image.new("RGB", (32, 32), "orange"))
    expected = latents_to_pil(vae, z)
    half = vae.half()
    with pytest.warns(SdpipeWarning, match="float32"):
        [drawn] = latents_to_pil(half, z * 10)
    assert half.dtype == torch.float16  # the shared one is left as it was
    assert drawn.size == expected[0].size


def test_half_precision_that_does_not_overflow_is_left_at_that(tiny):
    vae = copy.deepcopy(tiny.components.vae)
    image = Image.linear_gradient("L").resize((64, 64))
    z = pil_to_latents(vae, image)
    [expected] = latents_to_pil(vae, z)
    half = vae.half()
    assert torch.allclose(pil_to_latents(half, image), z, atol=0.02)  # no warning, or it fails
    [drawn] = latents_to_pil(half, z)
    error = np.asarray(drawn).astype(int) - np.asarray(expected).astype(int)
    assert np.abs(error).max() <= 3


def test_latents_that_are_not_finite_are_refused(emoji):
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        latents_to_pil(emoji.components.vae, torch.full((1, 4, 8, 8), float("nan")))


@pytest.fixture(scope="module")
def large(emoji):
    """The latents of an image without structure that could hide a seam: a slope with grain."""
    x, y = np.meshgrid(np.linspace(0, 255, 256), np.linspace(0, 255, 256))
    grain = np.random.default_rng(0).normal(0, 6, (256, 256, 3))
    levels = np.stack([x, y, 255 - x], axis=2) + grain
    image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    return pil_to_latents(emoji.components.vae, image)


def unscaled(vae, latents):
    return (latents / vae.config.scaling_factor).to(vae.dtype)


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (25, 32), (32, 13)])
def test_tiles_of_an_image_show_no_seam(emoji, large, size):
    """Where a tile begins or ends, neighbouring pixels differ no more than anywhere else."""
    vae = emoji.components.vae
    z = unscaled(vae, large)[..., : size[0], : size[1]]
    whole = vae.decode(z).sample.float()
    tiles = tiled_decode(vae, z, 16)
    assert tiles.shape == whole.shape
    assert float((tiles - whole).abs().mean()) < 0.05  # of a range of 2
    for dim in (2, 3):
        jumps = tiles.diff(dim=dim).abs().mean(dim=(0, 1, 5 - dim))  # one per pair of lines
        seams = torch.arange(63, len(jumps), 64)  # a tile begins every 8 latents
        elsewhere = torch.ones(len(jumps), dtype=torch.bool)
        elsewhere[seams] = False
        assert float(jumps[seams].max()) < float(jumps[elsewhere].quantile(0.98))


def run_out_of_memory_above(pixels, vae, monkeypatch):
    """Lets a VAE decode at most so many latents at once; returns the sizes that it tries."""
    tried, decode = [], vae.decoder.forward

    def forward(z, *args):
        tried.append(tuple(z.shape[2:]))
        if z.shape[2] * z.shape[3] > pixels:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(z, *args)

    monkeypatch.setattr(vae.decoder, "forward", forward)
    return tried


def test_out_of_memory_the_vae_decodes_in_tiles(emoji, large, monkeypatch):
    vae = emoji.components.vae
    expected = latents_to_pil(vae, large)[0]
    tried = run_out_of_memory_above(16 * 16, vae, monkeypatch)
    with pytest.warns(SdpipeWarning, match="out of memory for the VAE at 256 x 256 pixels"):
        image = latents_to_pil(vae, large)[0]
    assert tried[0] == (32, 32)
    assert (16, 16) in tried
    difference = np.abs(np.asarray(image).astype(int) - np.asarray(expected).astype(int))
    assert difference.mean() < 6


def test_tiles_are_halved_until_they_fit(tiny, monkeypatch):
    vae = tiny.components.vae
    z = torch.randn((1, 4, 70, 70), generator=torch.Generator().manual_seed(0))
    tried = run_out_of_memory_above(20 * 20, vae, monkeypatch)
    assert tiled_decode(vae, z, 70).shape == (1, 3, 560, 560)
    assert tried[:3] == [(70, 70), (35, 35), (17, 17)]


@pytest.mark.filterwarnings("ignore:cpu is out of memory for the VAE")
@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((8, 8), [(8, 8)]),
        ((31, 31), [(31, 31)]),
        ((40, 40), [(40, 40), (20, 20)]),
        ((12, 40), [(12, 40), (12, 20)]),
        ((40, 12), [(40, 12), (20, 12)]),
    ],
)
def test_where_the_smallest_tiles_do_not_fit_either_it_is_out_of_memory(
    tiny, monkeypatch, size, sizes
):
    vae = tiny.components.vae
    tried = run_out_of_memory_above(0, vae, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        latents_to_pil(vae, torch.zeros(1, 4, *size))
    assert tried == sizes
