import torch
from torch import nn

from sdpipe.training import text_encoder as text


class Numbers(nn.Module):
    """A text encoder whose outputs are the tokens' own numbers, and more."""

    def __init__(self):
        super().__init__()
        self.more = nn.Parameter(torch.zeros(()))

    def forward(self, tokens):
        return type("Output", (), {"last_hidden_state": tokens.unsqueeze(-1) + self.more})


def other_words(encoder, subjects=((8, 0, 9, 7),), **weights):
    return text.OtherWords(encoder, plain=torch.tensor(subjects), **weights)
