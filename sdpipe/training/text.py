"""The text encoder, first trained as CLIP is: a caption and its picture end up close together.

Radford et al. (2021), figure 3. The picture's half is a small network over its latents, thrown
away afterwards; what stays is a text encoder that tells the captions apart, which the U-Net then
learns to listen to much sooner.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sdpipe.training.recipe import Text


def build_text_encoder(recipe: Text, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIPTextModel for a tokenizer's vocabulary and length."""
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


class ContrastiveHead(nn.Module):
    """What training needs beside the text encoder: a picture's half and the temperature."""

    def __init__(self, latent_values: int, hidden_size: int) -> None:
        super().__init__()
        self.picture = nn.Sequential(
            nn.Linear(latent_values, 512), nn.GELU(), nn.LayerNorm(512), nn.Linear(512, hidden_size)
        )
        self.text = nn.Linear(hidden_size, hidden_size)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, latents: Tensor, pooled: Tensor) -> Tensor:
        """The similarity of every picture to every caption, (B, B).

        `latents` is (B, C, h, w), `pooled` (B, D): the encoder's output at the end mark.
        """
        pictures = F.normalize(self.picture(latents.flatten(1)).float(), dim=1)
        captions = F.normalize(self.text(pooled).float(), dim=1)
        return self.log_scale.exp().clamp(max=100) * pictures @ captions.T


def contrastive_loss(similarity: Tensor, same: Tensor) -> Tensor:
    """Cross-entropy both ways: picture i belongs to caption i and caption i to picture i.

    `same` (B, B) is true where two captions are equal, so that neither counts as wrong.
    """
    target = same.float() / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2
