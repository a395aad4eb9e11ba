"""The three untrained networks, of the classes of Stable Diffusion v1-4 and the recipe's sizes."""

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sdpipe.training.recipe import TextEncoder, Unet, Vae


def build_vae(recipe: Vae, size: int) -> AutoencoderKL:
    """An AutoencoderKL for images of size x size pixels."""
    levels = len(recipe.block_out_channels)
    return AutoencoderKL(
        block_out_channels=tuple(recipe.block_out_channels),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=recipe.layers_per_block,
        latent_channels=recipe.latent_channels,
        norm_num_groups=recipe.norm_num_groups,
        mid_block_add_attention=False,
        sample_size=size,
        scaling_factor=1.0,
    )


def build_text_encoder(recipe: TextEncoder, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIPTextModel for a tokenizer's vocabulary and length."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=tokenizer.model_max_length,
            hidden_size=recipe.hidden_size,
            intermediate_size=4 * recipe.hidden_size,
            num_hidden_layers=recipe.num_hidden_layers,
            num_attention_heads=recipe.num_attention_heads,
            projection_dim=recipe.hidden_size,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(recipe: Unet, size: int, latent_channels: int, width: int) -> UNet2DConditionModel:
    """A UNet2DConditionModel for latents of size x size and prompt embeddings of this width.

    The levels below the first have cross-attention. The pooled prompt embeddings are also added to
    the time embedding (`addition_embed_type`): a small network learns the subject sooner so.
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
