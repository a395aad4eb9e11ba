"""The U-Net and how it learns to denoise: the training algorithm of DDPM, in latent space.

    repeat: x_0 from the pictures, t uniform, eps ~ N(0, I);
            a gradient step on || eps - eps_theta(sqrt(alpha_bar_t) x_0
                                                  + sqrt(1 - alpha_bar_t) eps, t) ||^2

Ho et al. (2020), algorithm 1. eps_theta also sees the caption, and now and then the empty one,
so that one network is both halves of classifier-free guidance (Ho and Salimans 2022). In place of
eps it can learn to predict v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (Salimans and Ho
2022), which is the noise where there is little, and where there is little else the picture.
"""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from sdpipe.latents import add_noise
from sdpipe.training.recipe import Unet
from sdpipe.training.refinement.hard_negatives import Rivals
from sdpipe.training.text_encoder import OtherWords

NOISY = 0.85
"""From this share of the timesteps on a guess tells how well the caption is known."""


def build_unet(recipe: Unet, size: int, latent_channels: int, width: int) -> UNet2DConditionModel:
    """An untrained UNet2DConditionModel for latents of size x size and text of this width.

    Cross-attention stands in the levels below the first. The text also joins the time embedding,
    pooled (`addition_embed_type`), which tells a small network sooner what to draw.
    """
    below = len(recipe.block_out_channels) - 1
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=tuple(recipe.block_out_channels),
        layers_per_block=recipe.layers_per_block,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * below,
        up_block_types=("CrossAttnUpBlock2D",) * below + ("UpBlock2D",),
        cross_attention_dim=width,
        attention_head_dim=recipe.attention_head_dim,
        norm_num_groups=recipe.norm_num_groups,
        addition_embed_type="text",
        addition_embed_type_num_heads=recipe.attention_head_dim,
    )


def cumulative_alpha(beta_start: float, beta_end: float, timesteps: int) -> Tensor:
    """alpha_bar_t for t = 0 ... timesteps - 1, the share of the signal's variance that is left.

    beta_t goes from start to end, evenly in its square root, as in Stable Diffusion;
    alpha_t = 1 - beta_t, alpha_bar_t = alpha_0 * ... * alpha_t (Ho et al. 2020, section 2).
    """
    beta = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps) ** 2
    return torch.cumprod(1 - beta, dim=0)


def draw_timesteps(
    count: int, recipe: Unet, generator: torch.Generator, early: float | None = None
) -> Tensor:
    """t for each of B pictures, (B,), in 0 ... T - 1: T u^early of a uniform u.

    With an exponent below 1 there are more of the noisy ones, where a picture is given its subject
    and the caption says most. `early` stands in for the recipe's.
    """
    u = torch.rand(count, generator=generator, dtype=torch.float64)
    return (recipe.timesteps * u ** (recipe.early if early is None else early)).long()


def loss_weight(alpha_bar: Tensor, limit: float) -> Tensor:
    """What the squared error of the noise at each t counts: 1 / alpha_bar, at most `limit`.

    1 / alpha_bar = (1 + snr) / snr turns the error of the predicted noise into that of the
    predicted v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans and Ho 2022, section 4):
    what is learned where the noise is strong, the layout, then counts as much as the detail.
    """
    return (1 / alpha_bar).clamp(max=limit)


class DenoisingLoss(nn.Module):
    """The loss of a batch, 0 for a perfect prediction of the noise, or of v.

    Holds the text encoder too, which learns from it with the U-Net unless it is frozen.
    """

    alpha_bar: Tensor  # (T,)

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, recipe: Unet):
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.predicts_v = recipe.prediction_type == "v_prediction"
        self.limit = recipe.weight
        alpha_bar = cumulative_alpha(recipe.beta_start, recipe.beta_end, recipe.timesteps)
        self.register_buffer("alpha_bar", alpha_bar)

    def forward(self, x_0: Tensor, tokens: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """`x_0` and `eps` are (B, C, h, w), `tokens` (B, L), `t` (B,) in 0 ... T - 1."""
        text = self.text_encoder(tokens).last_hidden_state  # (B, L, D)
        return self.loss(x_0, text, t, eps)

    def loss(self, x_0: Tensor, text: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The same of embedded captions, (B, L, D)."""
        _, predicted = self.predict(x_0, text, t, eps)
        return self.error(predicted, x_0, t, eps)

    def predict(self, x_0: Tensor, text: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """x_t, and what the U-Net predicts from it, (B, C, h, w)."""
        x_t = add_noise(x_0, eps, self.alpha_bar[t])
        return x_t, self.unet(x_t, t, text).sample.float()

    def error(self, predicted: Tensor, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The squared error of what the U-Net has predicted, (B, C, h, w): of v, or of the noise
        with its weight.
        """
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        if self.predicts_v:
            v = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0
            return (v - predicted).square().mean()
        return (loss_weight(alpha_bar, self.limit) * (eps - predicted).square()).mean()

    def guess(self, predicted: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The x_0 that what was predicted amounts to, (B, C, h, w)."""
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        if self.predicts_v:
            return alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * predicted
        return (x_t - (1 - alpha_bar).sqrt() * predicted) / alpha_bar.sqrt()


class WithOtherWords(DenoisingLoss):
    """The same loss, and beside it that of a text encoder which learns other words.

    Either alone takes from the other: the one makes of a word in other spelling something new, the
    other moves the plain ones away from what the U-Net has learned to read.
    """

    def __init__(self, unet: UNet2DConditionModel, other_words: OtherWords, recipe: Unet) -> None:
        super().__init__(unet, other_words.encoder, recipe)
        self.other_words, self.weight = other_words, recipe.captions_weight

    def forward(  # type: ignore[override]
        self,
        x_0: Tensor,
        tokens: Tensor,
        t: Tensor,
        eps: Tensor,
        said: Tensor,
        meant: Tensor,
        subjects: Tensor,
        *more: Tensor,
    ) -> Tensor:
        """The first four as in `DenoisingLoss`, the next as in `OtherWords`, `more` for `loss`."""
        outputs = self.text_encoder(torch.cat([tokens, said])).last_hidden_state
        text, spoken = outputs[: len(tokens)], outputs[len(tokens) :]
        words = self.other_words.loss(spoken, said, meant, subjects)
        return self.loss(x_0, text, t, eps, *more) + self.weight * words


class ToldApart(WithOtherWords):
    """Both losses, and that of taking a picture for one of its rivals.

    A squared error over all latents hardly notices what tells a clock at eight from one at five.
    This one is about nothing else, at the noisy steps where the subject is decided.
    """

    def __init__(
        self, unet: UNet2DConditionModel, other_words: OtherWords, rivals: Rivals, recipe: Unet
    ) -> None:
        super().__init__(unet, other_words, recipe)
        self.rivals, self.rivals_weight = rivals, recipe.rivals_weight

    def loss(  # type: ignore[override]
        self, x_0: Tensor, text: Tensor, t: Tensor, eps: Tensor, shown: Tensor
    ) -> Tensor:
        """All but the last as in `DenoisingLoss`; the first P pictures are the rivals `shown`,
        (P,).
        """
        x_t, predicted = self.predict(x_0, text, t, eps)
        first = slice(len(shown))
        guess = self.guess(predicted[first], x_t[first], t[first])
        mistaken = self.rivals.loss(guess, shown, t[first] > NOISY * len(self.alpha_bar))
        return self.error(predicted, x_0, t, eps) + self.rivals_weight * mistaken
