"""A text encoder whose outputs are known, and the distillation loss around it."""

import torch
from torch import nn

from sdpipe.training.refinement.distillation import ParaphraseDistillation


class NumbersEncoder(nn.Module):
    """A text encoder whose outputs are the numbers of its tokens plus a weight."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, tokens):
        return type("Output", (), {"last_hidden_state": tokens.unsqueeze(-1) + self.offset})


def distillation(encoder, subjects=((8, 0, 9, 7),), **weights):
    return ParaphraseDistillation(encoder, subjects=torch.tensor(subjects), **weights)
