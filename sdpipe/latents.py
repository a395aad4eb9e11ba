"""Latents: noise from a seed, the forward process, images to latents and back.

Shapes: B images, C latent channels, h w the size of the latents, H W that of the image.
Images are floats in [-1, 1]. Latents are multiplied by the VAE's scaling factor, which brings them
to about unit variance (Rombach et al. 2022, section G.1).
"""

import copy
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from sdpipe.errors import NotFiniteError, warn
from sdpipe.runtime.device import dtype_name
from sdpipe.runtime.philox import Philox

MIN_TILE = 16
"""Smallest side, in latents, of the tiles that a VAE decodes when it runs out of memory."""


def make_generators(seeds: Sequence[int], rng: str = "cpu") -> list[torch.Generator | Philox]:
    """Makes a random generator for each image, on the CPU: the same numbers on every device.

    rng: "cpu", or "cuda" for the numbers of torch's generator on a GPU, see `runtime.philox`.
    """
    if rng == "cuda":
        return [Philox(seed) for seed in seeds]
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def draw_noise(
    generators: Sequence[torch.Generator | Philox], shape: tuple[int, int, int]
) -> Tensor:
    """Draws starting noise x_T ~ N(0, I), each image's from its own generator.

    `shape` is (C, h, w). Returns float32 (B, C, h, w) on the CPU.
    """
    size = (1, *shape)
    return torch.cat(
        [
            g.randn(size) if isinstance(g, Philox) else torch.randn(size, generator=g)
            for g in generators
        ]
    )


def interpolate_noise(eps: Tensor, seeds: Sequence[int], f: float, rng: str = "cpu") -> Tensor:
    """Interpolates starting noise (B, C, h, w) towards that of other seeds, one an image.

    By `slerp`: f = 0 is `eps`, 1 the noise of the other seeds. Noise of later steps stays.
    """
    _, channels, h, w = eps.shape
    other = draw_noise(make_generators(seeds, rng), (channels, h, w))
    return torch.stack([slerp(a, b, f) for a, b in zip(eps, other, strict=True)])


def slerp(a: Tensor, b: Tensor, f: float) -> Tensor:
    """The point at f of the way from a to b: its direction on the great circle, its norm between.

        (sin((1 - f) angle) a / |a| + sin(f angle) b / |b|) / sin(angle) * ((1 - f) |a| + f |b|)

    Shoemake (1985). Halfway on the straight line between two noises the variance is half of
    theirs, and no model has seen such noise. f = 0 is a and f = 1 is b, to the bit. Between vectors
    that are parallel, to a millionth of a radian, the way is straight.

    a and b, of any shape, are one vector each: the noise of a picture. In A1111 each column of each
    channel is a vector, so that its pictures between two seeds are others; and where the mean
    angle is below 1.8 degrees, as that of two noises never is, it goes straight from b to a.
    """
    if f in (0, 1):
        return a if f == 0 else b
    angle = angle_between(a, b)
    if angle < 1e-6:
        return torch.lerp(a, b, f)
    length_a, length_b = a.norm(), b.norm()
    u, v = a / length_a, b / length_b
    between = (math.sin((1 - f) * angle) * u + math.sin(f * angle) * v) / math.sin(angle)
    return between * torch.lerp(length_a, length_b, f)


def angle_between(a: Tensor, b: Tensor) -> float:
    """The angle between two tensors as vectors, in radians."""
    a, b = a.double().flatten(), b.double().flatten()
    u, v = a / a.norm(), b / b.norm()
    return float(2 * torch.atan2((u - v).norm(), (u + v).norm()))  # Kahan's: exact when small


def vae_factor(vae: AutoencoderKL) -> int:
    """How many pixels a side one latent stands for: H / h, 8 for v1-4."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def add_noise(x_0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """The forward process in closed form: x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps.

    With eps ~ N(0, I) this samples q(x_t | x_0) = N(sqrt(alpha_bar) x_0, (1 - alpha_bar) I), Ho et
    al. (2020), equation 4. `x_0` and `eps` are (B, C, h, w), `alpha_bar` is (B,), in [0, 1].
    """
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps


def posterior(
    x_0: Tensor, x_t: Tensor, alpha_bar: float, alpha_bar_prev: float
) -> tuple[Tensor, float]:
    """Mean and variance of q(x_{t-1} | x_t, x_0), the way back for who knows the image.

    A Gaussian, Ho et al. (2020), equations 6 and 7:

        mean = sqrt(alpha_bar_prev) beta_t / (1 - alpha_bar_t) x_0
             + sqrt(alpha_t) (1 - alpha_bar_prev) / (1 - alpha_bar_t) x_t
        variance = (1 - alpha_bar_prev) / (1 - alpha_bar_t) beta_t

    With a predicted x_0 the mean is that of the model's p_theta(x_{t-1} | x_t).

    x_0, x_t: (B, C, h, w). alpha_bar, alpha_bar_prev: of t and t - 1, with
        1 >= alpha_bar_prev > alpha_bar; alpha_t = alpha_bar / alpha_bar_prev = 1 - beta_t. Where
        alpha_bar_prev is 1, x_{t-1} is x_0: the variance is 0.
    """
    alpha = alpha_bar / alpha_bar_prev
    of_image = alpha_bar_prev**0.5 * (1 - alpha) / (1 - alpha_bar)
    of_noisy = alpha**0.5 * (1 - alpha_bar_prev) / (1 - alpha_bar)
    variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha)
    return of_image * x_0 + of_noisy * x_t, variance


@torch.no_grad()
def pil_to_latents(vae: AutoencoderKL, images: Image.Image | Sequence[Image.Image]) -> Tensor:
    """Encodes images of one size to latents: the mode of the VAE's posterior, scaled.

    v1-4's VAE turns a 512 x 512 image, 786,432 numbers, into (1, 4, 64, 64), 48 times fewer.
    Returns (B, C, h, w) in float32 on the VAE's device. Sides are rounded down to a multiple of
    the VAE's factor. Half precision that overflows is repeated in float32.
    """
    batch = [images] if isinstance(images, Image.Image) else list(images)
    x = torch.stack([to_tensor(image) for image in batch])  # (B, 3, H, W)
    return _retry_in_float32(encode, vae, x, "encodes")


@torch.no_grad()
def latents_to_pil(vae: AutoencoderKL, latents: Tensor) -> list[Image.Image]:
    """Decodes latents (B, C, h, w) to B images, RGB.

    Half precision that overflows inside the VAE is repeated in float32.

    Raises:
        NotFiniteError: the latents are not finite, or the pixels are not, in float32 either.
    """
    if not torch.isfinite(latents).all():
        raise NotFiniteError("the latents to decode", "hold NaN or infinity")
    x = _retry_in_float32(decode, vae, latents, "decodes")
    if not torch.isfinite(x).all():
        raise NotFiniteError(
            "the VAE",
            "decodes these latents to NaN or infinity, in float32 too",
            "its weights may be damaged: fetch the model again or give another VAE",
        )
    return [to_pil(image) for image in x]


def encode(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """Encodes images (B, 3, H, W) to the posterior's mode, scaled, (B, C, h, w), float32."""
    z = vae.encode(x.to(vae.device, vae.dtype)).latent_dist.mode()
    return z.float() * vae.config.scaling_factor


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decodes latents (B, C, h, w) to images (B, 3, H, W), float32, near [-1, 1], not clamped."""
    z = (latents.to(vae.device) / vae.config.scaling_factor).to(vae.dtype)
    try:
        return vae.decode(z).sample.float()
    except torch.OutOfMemoryError:
        if max(z.shape[2:]) < 2 * MIN_TILE:
            raise
    warn(
        f"{vae.device} is out of memory for the VAE at {z.shape[3] * vae_factor(vae)} x "
        f"{z.shape[2] * vae_factor(vae)} pixels; it decodes in tiles, which costs time and the "
        "last digits."
    )
    return tiled_decode(vae, z, max(z.shape[2:]) // 2)


@torch.no_grad()
def tiled_decode(vae: AutoencoderKL, z: Tensor, side: int) -> Tensor:
    """Decodes unscaled latents (B, C, h, w) in tiles of side x side; (B, 3, H, W), float32.

    Where a tile does not fit into memory, half the side is tried, down to `MIN_TILE`.

    Raises:
        torch.OutOfMemoryError: tiles of `MIN_TILE` do not fit either.
    """
    try:
        return _decode_and_blend(vae, z, side)
    except torch.OutOfMemoryError:
        if side < 2 * MIN_TILE:
            raise
    return tiled_decode(vae, z, side // 2)


def _decode_and_blend(vae: AutoencoderKL, z: Tensor, side: int) -> Tensor:
    """The mean of tiles that overlap by half, each weighted less towards its edges.

    diffusers' `tiled_decode` blends neighbours in place, twice where four tiles meet, and with its
    overlap of a quarter leaves visible seams in smooth areas; with half, faint ones.
    """
    factor = vae_factor(vae)
    height, width = (n * factor for n in z.shape[2:])
    total = torch.zeros(len(z), 3, height, width, device=z.device)
    weights = torch.zeros(height, width, device=z.device)
    starts = (
        sorted({*range(0, max(n - side, 1), side // 2), max(n - side, 0)}) for n in z.shape[2:]
    )
    for top, left in itertools.product(*starts):
        tile = vae.decode(z[..., top : top + side, left : left + side]).sample.float()
        down, across = (
            torch.arange(0.5, n, device=z.device).minimum(torch.arange(n - 0.5, 0, -1).to(z.device))
            for n in tile.shape[2:]
        )  # 0.5 at the edges, and rising
        weight = down[:, None] * across
        rows = slice(top * factor, (top + side) * factor)
        columns = slice(left * factor, (left + side) * factor)
        total[..., rows, columns] += weight * tile
        weights[rows, columns] += weight
    return total / weights


def _retry_in_float32(
    code: Callable[[AutoencoderKL, Tensor], Tensor], vae: AutoencoderKL, x: Tensor, verb: str
) -> Tensor:
    """`encode` or `decode` of x, repeated in float32 where half precision overflows."""
    coded = code(vae, x)
    if torch.isfinite(coded).all() or vae.dtype == torch.float32:
        return coded
    warn(
        f"the VAE overflowed in {dtype_name(vae.dtype)} and {verb} again in float32; dtype "
        "float32 avoids this from the start."
    )
    return code(copy.deepcopy(vae).float(), x)  # a copy for this one time: `vae` is shared


def to_tensor(image: Image.Image) -> Tensor:
    """An image as floats in [-1, 1], (3, H, W): 0 becomes -1 and 255 becomes 1."""
    levels = torch.from_numpy(np.asarray(image.convert("RGB")).copy())  # (H, W, 3)
    return levels.permute(2, 0, 1).float() / 127.5 - 1


def to_pil(x: Tensor) -> Image.Image:
    """Floats (3, H, W), clamped to [-1, 1], as an RGB image of 8 bits a channel."""
    levels = (x.clamp(-1, 1) + 1) * 127.5
    return Image.fromarray(levels.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())
