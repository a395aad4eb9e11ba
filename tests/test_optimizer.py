"""Which optimizer takes which parameters, and Muon against its formula."""

import torch
from torch import nn

from sdpipe.training import ddpm
from sdpipe.training.optimizer import FlatMuon, make_optimizers
from sdpipe.training.recipe import load_recipe


def test_muon_takes_a_convolution_for_a_matrix():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn((6, 4, 3, 3), generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.flatten(1).clone())
    flat = FlatMuon([ours], 0.1)
    torchs = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        gradient = torch.randn(start.shape, generator=generator)
        ours.grad = gradient.to(memory_format=torch.channels_last)
        theirs.grad = gradient.flatten(1)
        flat.step()
        torchs.step()
    assert torch.equal(ours.flatten(1), theirs)
    assert not torch.allclose(ours, start, atol=0.01)


def test_muon_takes_the_matrices_inside_and_adamw_all_else():
    unet = ddpm.build_unet(load_recipe().unet, 16, 4, 8)
    optimizers = make_optimizers(unet, 1e-3, 1e-3)
    parts = [[id(p) for p in o.param_groups[0]["params"]] for o in optimizers.values()]
    muon = {id(weight) for weight in optimizers["muon"].weights}
    adamw = set(parts[0])
    names = {id(p): name for name, p in unet.named_parameters()}
    assert muon | adamw == names.keys()
    assert not muon & adamw
    assert {names[i] for i in muon} > {
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
        "down_blocks.0.resnets.0.conv1.weight",
    }
    assert {names[i] for i in adamw} > {
        "conv_in.weight",
        "conv_out.weight",
        "time_embedding.linear_1.weight",
        "down_blocks.0.resnets.0.norm1.weight",
    }
    assert list(make_optimizers(unet, 1e-3, 0.0)) == ["adamw"]
    frozen = unet.mid_block.requires_grad_(False).parameters()
    learning = {id(w) for w in make_optimizers(unet, 1e-3, 1e-3)["muon"].weights}
    assert not learning & {id(p) for p in frozen}
