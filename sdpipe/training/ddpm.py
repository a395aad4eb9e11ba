"""The U-Net's training: algorithm 1 of Ho et al. (2020), in latent space.

    repeat
        x_0 ~ q(x_0)                                        a latent, and its caption
        t ~ Uniform({0, ..., T - 1})
        eps ~ N(0, I)
        take a gradient step on
            || eps - eps_theta(sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t) ||^2
    until converged

eps_theta also sees the caption. Some captions are replaced by the empty one, so that one network
makes both predictions of classifier-free guidance (Ho and Salimans 2022). In place of eps it can
predict v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (Salimans and Ho 2022).
"""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from sdpipe.latents import add_noise
from sdpipe.training.recipe import Unet


def cumulative_alpha(beta_start: float, beta_end: float, timesteps: int) -> Tensor:
    """alpha_bar_t for t = 0 ... T - 1: the fraction of the signal's variance that is left.

    beta_t runs from start to end, linear in its square root, as in Stable Diffusion;
    alpha_t = 1 - beta_t, alpha_bar_t = alpha_0 * ... * alpha_t (Ho et al. 2020, section 2).
    """
    beta = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps) ** 2
    return torch.cumprod(1 - beta, dim=0)


def draw_timesteps(
    count: int, timesteps: int, exponent: float, generator: torch.Generator
) -> Tensor:
    """t for each image, (B,) in 0 ... T - 1: T u^exponent of a uniform u.

    An exponent of 1 is the paper's; a smaller one draws more of the noisy steps, which decide the
    subject.
    """
    u = torch.rand(count, generator=generator, dtype=torch.float64)
    return (timesteps * u**exponent).long()


def loss_weight(alpha_bar: Tensor, maximum: float) -> Tensor:
    """The weight of the squared error of eps at each t: 1 / alpha_bar, at most `maximum`.

    1 / alpha_bar = (1 + snr) / snr makes the error of eps that of v (Salimans and Ho 2022,
    section 4): the layout, learned where the noise is strong, counts as much as the detail.
    """
    return (1 / alpha_bar).clamp(max=maximum)


class DenoisingLoss(nn.Module):
    """The mean squared error of a batch's predicted noise, weighted, or of its predicted v.

    It holds the text encoder too, which learns with the U-Net unless it is frozen.
    """

    alpha_bar: Tensor  # (T,)

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, recipe: Unet):
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.predicts_v = recipe.prediction_type == "v_prediction"
        self.max_weight = recipe.max_loss_weight
        alpha_bar = cumulative_alpha(recipe.beta_start, recipe.beta_end, recipe.num_train_timesteps)
        self.register_buffer("alpha_bar", alpha_bar)

    def forward(self, x_0: Tensor, tokens: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """`x_0` and `eps` are (B, C, h, w), `tokens` (B, L), `t` (B,) in 0 ... T - 1."""
        text = self.text_encoder(tokens).last_hidden_state  # (B, L, D)
        _, output = self.predict(x_0, text, t, eps)
        return self.error(output, x_0, t, eps)

    def predict(self, x_0: Tensor, text: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """x_t and the U-Net's output for it, both (B, C, h, w); `text` is (B, L, D)."""
        x_t = add_noise(x_0, eps, self.alpha_bar[t])
        return x_t, self.unet(x_t, t, text).sample.float()

    def error(self, output: Tensor, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The loss of an output of the U-Net, (B, C, h, w)."""
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        if self.predicts_v:
            v = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0
            return (v - output).square().mean()
        return (loss_weight(alpha_bar, self.max_weight) * (eps - output).square()).mean()
