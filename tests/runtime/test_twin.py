"""A twin computes what the other computes, with the same memory, and changes alone."""

import torch
from support.tiny import tiny_unet
from torch import nn

from sdpipe.runtime.twin import twin


def answer(unet):
    x = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return unet(x, torch.tensor(500), torch.ones(1, 77, 16)).sample


def test_a_twin_has_the_same_weights_in_the_same_memory():
    unet = tiny_unet()
    unet.register_buffer("steps", torch.arange(3))
    other = twin(unet)
    assert other is not unet
    theirs = other.state_dict(keep_vars=True)
    assert all(theirs[name] is tensor for name, tensor in unet.state_dict(keep_vars=True).items())
    assert torch.equal(answer(other), answer(unet))


def test_what_is_exchanged_in_a_twin_stays_there():
    unet = tiny_unet()
    expected, processors = answer(unet), unet.attn_processors
    other = twin(unet)
    other.set_default_attn_processor()
    other.conv_out = nn.Identity()
    assert unet.attn_processors == processors
    assert torch.equal(answer(unet), expected)
    assert not torch.equal(answer(other)[:, :1], expected[:, :1])
