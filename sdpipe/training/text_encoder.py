"""The text encoder's own training: it regresses the latents of an image from its caption.

The best guess under a squared error is the mean of the latents of all images with that caption. A
U-Net has to learn the same first, for the noisiest steps, where x_t says nothing and the caption
everything; here it takes a tenth of the arithmetic. A linear layer reads the guess from the
encoder's last outputs, behind the caption: each holds one field of a grid over the latents. The
layer is dropped afterwards, and the U-Net's cross-attention reads the layout from these outputs.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel


class LatentRegression(nn.Module):
    """The loss of guessing latents from captions: the mean squared error."""

    def __init__(self, encoder: CLIPTextModel, grid_size: int, channels: int, size: int) -> None:
        """`channels` and `size` are those of the latents."""
        super().__init__()
        self.encoder = encoder
        self.grid_size = grid_size
        self.shape = (channels, size // grid_size, size // grid_size)
        self.head = nn.Linear(encoder.config.hidden_size, channels * (size // grid_size) ** 2)

    def predict(self, tokens: Tensor) -> Tensor:
        """The latents (B, C, h, w) to expect of captions (B, L)."""
        outputs = self.encoder(tokens).last_hidden_state[:, -(self.grid_size**2) :]
        fields = self.head(outputs).unflatten(2, self.shape)  # (B, grid * grid, C, p, p)
        fields = fields.unflatten(1, (self.grid_size, self.grid_size))  # (B, row, column, C, p, p)
        return fields.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    def forward(self, tokens: Tensor, x_0: Tensor) -> Tensor:
        """The loss of captions (B, L) and the latents (B, C, h, w) of their images."""
        return F.mse_loss(self.predict(tokens).float(), x_0)
