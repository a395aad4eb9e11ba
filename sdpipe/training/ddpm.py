"""The U-Net and how it learns to denoise: the training algorithm of DDPM, in latent space.

    repeat: x_0 from the pictures, t uniform, eps ~ N(0, I);
            a gradient step on || eps - eps_theta(sqrt(alpha_bar_t) x_0
                                                  + sqrt(1 - alpha_bar_t) eps, t) ||^2

Ho et al. (2020), algorithm 1. eps_theta also sees the caption, and now and then the empty one,
so that one network is both halves of classifier-free guidance (Ho and Salimans 2022).
"""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from sdpipe.latents import add_noise
from sdpipe.training.recipe import Unet


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


def loss_weight(alpha_bar: Tensor, limit: float) -> Tensor:
    """What the squared error of the noise at each t counts: 1 / alpha_bar, at most `limit`.

    1 / alpha_bar = (1 + snr) / snr turns the error of the predicted noise into that of the
    predicted v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans and Ho 2022, section 4):
    what is learned where the noise is strong, the layout, then counts as much as the detail.
    """
    return (1 / alpha_bar).clamp(max=limit)


def denoising_loss(
    unet: UNet2DConditionModel,
    x_0: Tensor,
    text: Tensor,
    t: Tensor,
    eps: Tensor,
    alpha_bar: Tensor,
    limit: float,
) -> Tensor:
    """The weighted loss of one batch, 0 for a perfect prediction of the noise.

    `x_0` and `eps` are (B, C, h, w), `text` the embedded captions (B, L, D), `t` (B,) in
    0 ... T - 1, `alpha_bar` (T,).
    """
    x_t = add_noise(x_0, eps, alpha_bar[t])
    predicted = unet(x_t, t, text).sample.float()
    error = (eps - predicted).square().mean(dim=(1, 2, 3))  # (B,)
    return (loss_weight(alpha_bar[t], limit) * error).mean()
