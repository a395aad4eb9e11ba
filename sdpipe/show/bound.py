"""The variational bound of the diffusion: what an image's latents cost, timestep by timestep.

    -log p(x_0) <= L_T + sum of L_{t-1} over t > 1 + L_0        Ho et al. (2020), equation 5

    L_T     = KL(q(x_T | x_0) || N(0, I))                       what noise is left to know
    L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p_theta(x_{t-1} | x_t))   what the U-Net does not know
    L_0     = -log p_theta(x_0 | x_1)                           the last detail

All are divergences and densities of Gaussians, in closed form. Timesteps count from 0 here, as in
diffusers: the paper's t = 1 is timestep 0.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from sdpipe.batches import warn_about
from sdpipe.denoise import predict_x0
from sdpipe.errors import NotFiniteError
from sdpipe.guidance import predict
from sdpipe.latents import add_noise, pil_to_latents, posterior
from sdpipe.prompt.encode import encode_prompts
from sdpipe.schedule import alpha_bars
from sdpipe.show import style
from sdpipe.show.checks import check_points
from sdpipe.show.inputs import crop_to_size, resolve_one
from sdpipe.show.style import MARGIN, WIDTH, Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sdpipe.pipeline import Pipeline

LEFT = 84  # margin of the curves, for their numbers


@dataclass(frozen=True)
class Bound:
    """The bound on -log p(x_0) of an image's latents, in nats, and its terms.

    prior: L_T. last: L_0, of a density: it may be negative, and with it the sum.
    times: timesteps t > 0 at which L_{t-1} was computed, ascending. terms: L_{t-1} at each.
    shares: how many timesteps each stands for; they add up to all but one.
    weights: what the bound weighs the squared error of the noise by at each, equation 12; the
        simple loss, equation 14, weighs all by 1.
    size: how many numbers the latents are.
    """

    prompt: str
    seed: int
    prior: float
    last: float
    times: list[int]
    terms: list[float]
    shares: list[int]
    weights: list[float]
    size: int

    @property
    def middle(self) -> float:
        """The sum of L_{t-1} over all timesteps above 0."""
        return sum(term * share for term, share in zip(self.terms, self.shares, strict=True))

    @property
    def nats(self) -> float:
        """The bound; an unbiased estimate of it where not all timesteps were computed."""
        return self.prior + self.last + self.middle

    @property
    def bits_per_dim(self) -> float:
        """The same in bits for each number of the latents."""
        return self.nats / math.log(2) / self.size

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain JSON types."""
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "nats": self.nats,
            "bits_per_dim": self.bits_per_dim,
            "L_T": self.prior,
            "L_0": self.last,
            "t": self.times,
            "L_t-1": self.terms,
            "timesteps": self.shares,
            "weight": self.weights,
            "size": self.size,
        }


def gaussian_kl(mean: Tensor, variance: float, other: Tensor, other_variance: float) -> float:
    """KL(N(mean, variance I) || N(other, other_variance I)) in nats, summed over all elements."""
    ratio = variance / other_variance
    distance = float((mean - other).double().square().sum()) / other_variance
    return 0.5 * (distance + mean.numel() * (ratio - 1 - math.log(ratio)))


def variational_bound(
    predict_clean: Callable[[Tensor, int], Tensor],
    x_0: Tensor,
    alpha_bar: Sequence[float],
    times: Sequence[int],
    generator: torch.Generator,
) -> tuple[float, float, list[float]]:
    """L_T, L_0, and L_{t-1} at each of `times`, in nats; see `Bound`.

    predict_clean: the x_0 that a model sees in x_t (1, C, h, w) at timestep t.
    x_0: (1, C, h, w). alpha_bar: T of them. times: from 1 to T - 1.

    p_theta has the variance beta_t, the true one where x_0 ~ N(0, I) (section 3.2). Each term is
    its value at one sample x_t ~ q(x_t | x_0).
    """

    def noisy(t: int) -> Tensor:
        eps = torch.randn(x_0.shape, generator=generator).to(x_0.device)
        return add_noise(x_0, eps, torch.tensor([alpha_bar[t]], device=x_0.device))

    zero = torch.zeros_like(x_0)
    prior = gaussian_kl(alpha_bar[-1] ** 0.5 * x_0, 1 - alpha_bar[-1], zero, 1.0)
    beta = 1 - alpha_bar[0]
    error = float((x_0 - predict_clean(noisy(0), 0)).double().square().sum())
    last = 0.5 * (error / beta + x_0.numel() * math.log(2 * math.pi * beta))
    terms = []
    for t in times:
        x_t = noisy(t)
        around = (x_t, alpha_bar[t], alpha_bar[t - 1])
        mean, variance = posterior(x_0, *around)
        predicted, _ = posterior(predict_clean(x_t, t), *around)
        beta = 1 - alpha_bar[t] / alpha_bar[t - 1]
        terms.append(gaussian_kl(mean, variance, predicted, beta))
    return prior, last, terms


def bound_data(
    pipe: "Pipeline",
    image: Image.Image,
    prompt: str = "",
    points: int = 100,
    *,
    seed: int | None = None,
    dim: int | None = None,
) -> Bound:
    """Computes the variational bound of an image's latents under a prompt, without guidance.

    The middle of the image is scaled to the model's size, or to `dim`.

    points: timesteps at which the U-Net is called, 1 to T - 1: one drawn from each of so many
        parts, and it stands for all of its part. The parts are shorter where the terms are large,
        at little noise.
    seed: of the noise and of the timesteps; None draws one.

    Raises:
        UsageError: points, the seed or `dim` breaks its rule.
        NotFiniteError: the U-Net produced NaN or infinity.
    """
    check_points(points)
    parts = pipe.components
    run = resolve_one(pipe, prompt, seed=seed, dim=dim)
    if prompt:
        warn_about(parts, [run.prompt])
    x_0 = pil_to_latents(parts.vae, crop_to_size(image, run))  # (1, C, h, w)
    alpha_bar = alpha_bars(parts.scheduler_config).double().tolist()
    kind = parts.scheduler_config.get("prediction_type", "epsilon")
    text = encode_prompts(parts.tokenizer, parts.text_encoder, [run.prompt], [""]).cond[0]
    text = text.to(parts.unet.dtype)

    @torch.no_grad()
    def predict_clean(x_t: Tensor, t: int) -> Tensor:
        output = predict(parts.unet, x_t, torch.tensor(t, device=x_t.device), text)
        if not torch.isfinite(output).all():
            raise NotFiniteError("the U-Net", "produced NaN or infinity", "use dtype float32")
        return predict_x0(x_t, output, math.sqrt((1 - alpha_bar[t]) / alpha_bar[t]), kind)

    generator = torch.Generator().manual_seed(run.seed)
    edges = [1]
    for i in range(1, points + 1):
        edges.append(max(edges[-1] + 1, 1 + round((len(alpha_bar) - 1) * (i / points) ** 2)))
    shares = [end - start for start, end in pairwise(edges)]
    u = torch.rand(points, generator=generator, dtype=torch.float64).tolist()
    times = [start + int(u[i] * shares[i]) for i, start in enumerate(edges[:-1])]
    prior, last, terms = variational_bound(predict_clean, x_0, alpha_bar, times, generator)
    return Bound(
        prompt=run.prompt,
        seed=run.seed,
        prior=prior,
        last=last,
        times=times,
        terms=terms,
        shares=shares,
        weights=[loss_weight(alpha_bar, t) for t in times],
        size=x_0.numel(),
    )


def loss_weight(alpha_bar: Sequence[float], t: int) -> float:
    """What the bound weighs ||eps - eps_theta||^2 by at timestep t > 0: Ho et al., equation 12.

    beta_t^2 / (2 sigma_t^2 alpha_t (1 - alpha_bar_t)) with sigma_t^2 = beta_t
    """
    alpha = alpha_bar[t] / alpha_bar[t - 1]
    return (1 - alpha) / (2 * alpha * (1 - alpha_bar[t]))


@style.with_style
def bound_figure(data: Bound) -> "Figure":
    """Draws L_{t-1} over t, and below it the weight of each timestep in the bound."""
    about = style.quote(data.prompt) if data.prompt else "no prompt"
    sheet = Sheet(
        470,
        f"The variational bound: {data.bits_per_dim:.3g} bits per dimension of the latents",
        f"{about}, noise of seed {data.seed}, {len(data.times)} of {sum(data.shares)} timesteps; "
        f"in nats: L_T {data.prior:.3g}, all L_t-1 {data.middle:.4g}, L_0 {data.last:.4g}",
    )
    width, top = WIDTH - LEFT - MARGIN, sheet.top + 24
    per_dim = [term / data.size for term in data.terms]
    curves = (
        (
            top,
            per_dim,
            style.BLUE,
            r"$L_{t-1} = D_{KL}(q(x_{t-1}|x_t,x_0)\,\|\,p_\theta(x_{t-1}|x_t))$, "
            "in nats per dimension",
        ),
        (
            top + 230,
            data.weights,
            style.ORANGE,
            r"the weight of $\|\epsilon-\epsilon_\theta\|^2$ in the bound; "
            "the simple loss weighs all by 1",
        ),
    )
    for y, values, color, heading in curves:
        axes = sheet.axes(LEFT, y, width, 150)
        axes.plot(data.times, values, color=color)
        style.set_log_scale(axes)
        axes.set(xlim=(-10, 1009), xticks=[0, 200, 400, 600, 800, 999])
        sheet.text(LEFT, y - 12, heading)
    axes.axhline(1, color=style.FAINT, linewidth=0.8, linestyle="--")
    sheet.text(LEFT + width / 2, top + 230 + 150 + 40, "timestep t", ha="center")
    return sheet.figure
