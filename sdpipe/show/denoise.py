"""One call of the U-Net: an image with noise, the noise predicted, and the image without it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from sdpipe.batches import warn_about
from sdpipe.denoise import Step, predict_x0
from sdpipe.errors import NotFiniteError
from sdpipe.guidance import predict
from sdpipe.latents import add_noise, draw_noise, latents_to_pil, make_generators, pil_to_latents
from sdpipe.prompt.encode import encode_prompts
from sdpipe.schedule import alpha_bars
from sdpipe.show import style
from sdpipe.show.checks import LAST_TIMESTEP, check_times
from sdpipe.show.inputs import crop_to_size, resolve_one
from sdpipe.show.style import MARGIN, WIDTH, Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sdpipe.pipeline import Pipeline


# The formula of the predicted noise, by prediction type; "sample" is the default.
NOISE_SEEN = {
    "epsilon": r"$\epsilon_\theta(x_t, t, c)$",
    "v_prediction": r"$\epsilon_\theta = \sqrt{\bar\alpha_t}\,v_\theta+\sqrt{1-\bar\alpha_t}\,x_t$",
    "sample": r"$\epsilon_\theta = (x_t-\sqrt{\bar\alpha_t}\,x_\theta)/\sqrt{1-\bar\alpha_t}$",
}


@dataclass(frozen=True, eq=False)
class Prediction:
    """One prediction from latents with noise; every tensor is (C, h, w), float32.

    x_0, eps: the clean latents and the noise that x_t consists of.
    predicted: the predicted noise, computed from the U-Net's output.
    x0: the predicted clean latents.
    prediction_type: of the U-Net's output: "epsilon", "v_prediction" or "sample".
    images: x_0, x_t and x0, decoded.
    """

    prompt: str
    t: int
    alpha_bar: float
    seed: int
    prediction_type: str
    x_0: Tensor
    eps: Tensor
    x_t: Tensor
    predicted: Tensor
    x0: Tensor
    images: tuple[Image.Image, Image.Image, Image.Image]

    @property
    def error(self) -> float:
        """The mean squared error of the predicted noise: the loss of training."""
        return float((self.predicted - self.eps).square().mean())

    @property
    def correlation(self) -> float:
        """The cosine similarity of the predicted noise and the true noise."""
        return float(torch.cosine_similarity(self.predicted.flatten(), self.eps.flatten(), dim=0))

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain JSON types."""
        return {
            "prompt": self.prompt,
            "t": self.t,
            "alpha_bar": self.alpha_bar,
            "seed": self.seed,
            "prediction_type": self.prediction_type,
            "noise_error": self.error,
            "noise_cosine": self.correlation,
            "x0_error": float((self.x0 - self.x_0).square().mean()),
        }


def denoise_data(
    pipe: "Pipeline",
    prompt: str,
    t: int = 500,
    *,
    image: Image.Image | None = None,
    seed: int | None = None,
    dim: int | None = None,
    on_step: Callable[[Step], object] | None = None,
    **settings: Any,
) -> Prediction:
    """Adds the noise of timestep t to an image, and predicts it with one call of the U-Net.

    image: its middle is used. None draws one from the prompt and `settings`, which are those of
        `Pipeline.generate`. The prediction is conditional, without guidance. The noise is the
        second that the seed draws; the first is the starting noise of an image.

    Raises:
        UsageError: t or a setting breaks its rule.
    """
    check_times([t])
    parts = pipe.components
    run = resolve_one(pipe, prompt, seed=seed, dim=dim, **settings)
    if image is None:
        result = pipe.generate(prompt, seed=run.seed, dim=dim, on_step=on_step, **settings)
        image = result.images[0]
    else:
        warn_about(parts, [run.prompt])
    x_0 = pil_to_latents(parts.vae, crop_to_size(image, run))  # (1, C, h, w)
    generators = make_generators([run.seed], run.rng)
    channels, h, w = x_0.shape[1:]
    _, eps = (draw_noise(generators, (channels, h, w)).to(x_0.device) for _ in range(2))
    alpha_bar = alpha_bars(pipe.components.scheduler_config)[t].to(x_0.device)
    x_t = add_noise(x_0, eps, alpha_bar[None])

    clip = (parts.tokenizer, parts.text_encoder)
    embeds = encode_prompts(
        *clip, [run.prompt], [""], steps=run.steps, clip_skip=run.clip_skip
    ).cond
    text = embeds[(LAST_TIMESTEP - t) * len(embeds) // (LAST_TIMESTEP + 1)].to(parts.unet.dtype)
    with torch.no_grad():
        output = predict(parts.unet, x_t, torch.tensor(t, device=x_t.device), text)
    if not torch.isfinite(output).all():
        raise NotFiniteError("the U-Net", "produced NaN or infinity", "use dtype float32")
    kind = parts.scheduler_config.get("prediction_type", "epsilon")
    sigma = float(((1 - alpha_bar) / alpha_bar).sqrt())
    x0 = predict_x0(x_t, output, sigma, kind)
    decoded = [latents_to_pil(parts.vae, z)[0] for z in (x_0, x_t, x0)]
    return Prediction(
        prompt=run.prompt,
        t=t,
        alpha_bar=float(alpha_bar),
        seed=run.seed,
        prediction_type=kind,
        x_0=x_0[0].cpu(),
        eps=eps[0].cpu(),
        x_t=x_t[0].cpu(),
        predicted=predict_noise(x_t, output, sigma, kind)[0].cpu(),
        x0=x0[0].cpu(),
        images=(decoded[0], decoded[1], decoded[2]),
    )


def predict_noise(x_t: Tensor, output: Tensor, sigma: float, prediction_type: str) -> Tensor:
    """The noise that an output of the U-Net predicts; the counterpart of `denoise.predict_x0`.

    v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans and Ho 2022, appendix D) and the
    forward process give eps = sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x_t.
    """
    alpha_bar = 1 / (1 + sigma**2)
    signal, noise = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    match prediction_type:
        case "epsilon":
            return output
        case "v_prediction":
            return signal * output + noise * x_t
        case _:  # "sample": the output is the clean latents
            return (x_t - signal * output) / noise


@style.with_style
def denoise_figure(data: Prediction) -> "Figure":
    """Draws the image and its predictions above, the noise below, each with its formula."""
    width, height = data.images[0].size
    across = 3
    gap = 70
    w = (WIDTH - 2 * MARGIN - (across - 1) * gap) / across
    h = w * height / width
    row = h + 70
    sheet = Sheet(
        2 * row + 70,
        style.quote(data.prompt),
        f"one call of the U-Net at t = {data.t}, where the image's share of the variance is "
        f"{data.alpha_bar:.3g}; noise of seed {data.seed}",
    )
    xs = [MARGIN + i * (w + gap) for i in range(across)]
    above = (
        ("$x_0$", "the image"),
        (r"$x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon$", "with noise"),
        (
            r"$\hat x_0 = (x_t - \sqrt{1-\bar\alpha_t}\,\epsilon_\theta)\,/\,\sqrt{\bar\alpha_t}$",
            "without the predicted noise",
        ),
    )
    below = (
        (r"$\epsilon$", "the added noise"),
        (NOISE_SEEN.get(data.prediction_type, NOISE_SEEN["sample"]), "the predicted noise"),
        (r"$\epsilon_\theta - \epsilon$", f"its error, mean square {data.error:.3g}"),
    )
    for x, image, (formula, meaning) in zip(xs, data.images, above, strict=True):
        sheet.image(x, sheet.top, w, h, image)
        sheet.text(x, sheet.top + h + 24, formula)
        sheet.note(x, sheet.top + h + 43, meaning)
    noises = [n[0].float().numpy() for n in (data.eps, data.predicted, data.predicted - data.eps)]
    limit = max(float(abs(n).max()) for n in noises) or 1.0
    for x, noise, (formula, meaning) in zip(xs, noises, below, strict=True):
        y = sheet.top + row
        axes = sheet.image(x, y, w, h, noise, cmap=style.DIVERGING, vmin=-limit, vmax=limit)
        sheet.text(x, y + h + 24, formula)
        sheet.note(x, y + h + 43, meaning)
    end = sheet.top + 2 * row
    sheet.note(MARGIN, end + 6, f"value of each latent, in the first channel of {len(data.eps)}")
    sheet.scale(MARGIN, end + 16, WIDTH - 2 * MARGIN, axes)
    return sheet.figure
