"""The text encoder, first trained alone: from a caption it tells the picture, as far as it can.

Of all pictures with one caption the mean is the best guess under a squared error. It is what a
U-Net has to find out first, at the noisiest step, where x_t says nothing and the caption all; to
learn it here takes a tenth of the arithmetic. The guess is read from the encoder's last outputs,
behind the caption, one for each field of a grid over the latents; the layer that reads it is thrown
away, the encoder stays, and its outputs hold the layout for the U-Net's cross-attention to read.
"""

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


class LatentsFromText(nn.Module):
    """The loss of guessing latents from captions: the mean squared error."""

    def __init__(self, encoder: CLIPTextModel, grid: int, channels: int, size: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.grid = grid
        self.shape = (channels, size // grid, size // grid)
        self.read = nn.Linear(encoder.config.hidden_size, channels * (size // grid) ** 2)

    def guess(self, tokens: Tensor) -> Tensor:
        """The latents (B, C, h, w) that captions (B, L) make one expect."""
        outputs = self.encoder(tokens).last_hidden_state[:, -(self.grid**2) :]
        fields = self.read(outputs).unflatten(2, self.shape)  # (B, grid * grid, C, p, p)
        fields = fields.unflatten(1, (self.grid, self.grid))  # (B, row, column, C, p, p)
        return fields.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    def forward(self, tokens: Tensor, x_0: Tensor) -> Tensor:
        """The loss of B captions (B, L) and the latents (B, C, h, w) of their pictures."""
        return F.mse_loss(self.guess(tokens).float(), x_0)
