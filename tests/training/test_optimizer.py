"""Which optimizer takes which weights, and Muon against torch's and its formula."""

import pytest
import torch
from torch import nn

from sdpipe.training.networks import build_unet
from sdpipe.training.optimizer import Muon, make_optimizers, orthogonalize
from sdpipe.training.recipe_file import load_recipe

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])


@DTYPES
def test_muon_takes_a_convolution_as_a_matrix(dtype):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn((6, 4, 3, 3), generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.flatten(1).clone())
    muon = Muon([ours], 0.1, dtype)
    torchs = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        gradient = torch.randn(start.shape, generator=generator)
        ours.grad = gradient.to(memory_format=torch.channels_last)
        theirs.grad = gradient.flatten(1)
        muon.step()
        torchs.step()
    if dtype == torch.bfloat16:
        assert torch.equal(ours.flatten(1), theirs)
    else:  # torch rounds each number by up to 0.4 %
        off = (ours.flatten(1) - theirs).norm() / (theirs - start.flatten(1)).norm()
        assert 1e-5 < off < 0.02
    assert not torch.allclose(ours, start, atol=0.01)
    buffers = [o.state_dict()["state"][0]["momentum_buffer"] for o in (muon, torchs)]
    torch.testing.assert_close(buffers[0].flatten(1), buffers[1])


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (12, 12)])
def test_singular_values_come_near_to_one_and_nothing_else_changes(shape):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator, dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    assert torch.allclose(orthogonalize(matrix), u @ s.diag() @ v, atol=1e-12)
    single = orthogonalize(matrix.float()).double()
    assert torch.allclose(single, u @ s.diag() @ v, atol=1e-5)
    assert 0.6 < s.min() < s.max() < 1.3


@DTYPES
def test_a_weight_without_a_gradient_stays(dtype):
    weights = [nn.Parameter(torch.ones(3, 2)) for _ in range(2)]
    weights[0].square().sum().backward()
    Muon(weights, 0.1, dtype).step()
    assert (weights[0] < 1).all()
    assert torch.equal(weights[1], torch.ones(3, 2))


def test_muon_takes_the_inner_matrices_and_adamw_all_other_weights():
    unet = build_unet(load_recipe().unet, 16, 4, 8)
    optimizers = make_optimizers(unet, 1e-3, 1e-3)
    parts = [[id(p) for p in o.param_groups[0]["params"]] for o in optimizers.values()]
    muon = set(parts[1])
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
    [group] = make_optimizers(unet, 1e-3, 1e-3)["muon"].param_groups
    learning = {id(weight) for weight in group["params"]}
    assert not learning & {id(p) for p in frozen}
