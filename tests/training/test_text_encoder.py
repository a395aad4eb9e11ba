"""The regression of latents from captions: which output is which part of the image."""

import torch
from torch import nn

from sdpipe.training.text_encoder import LatentRegression


def test_each_of_the_last_outputs_is_a_field_of_the_latents():
    class Positions(nn.Module):
        config = type("Config", (), {"hidden_size": 1})

        def forward(self, tokens):
            places = torch.arange(tokens.shape[1]).float()  # each output is its own position
            return type("O", (), {"last_hidden_state": places.expand(len(tokens), -1)[..., None]})

    loss = LatentRegression(Positions(), grid_size=2, channels=3, size=4)
    with torch.no_grad():
        loss.head.weight.fill_(1.0)
        loss.head.bias.zero_()
        guess = loss.predict(torch.zeros(2, 10, dtype=torch.long))
    assert guess.shape == (2, 3, 4, 4)
    fields = torch.tensor([[6.0, 7.0], [8.0, 9.0]])  # the last four of ten, row by row
    expected = fields.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(guess[1, 2], expected)
    assert loss(torch.zeros(2, 10, dtype=torch.long), guess) == 0
