"""A compiled U-Net computes the same, and says what it needs where it cannot be compiled."""

import os
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
from support.tiny import tiny_model, tiny_unet, write_weights
from torch.profiler import profile

from sdpipe import Pipeline
from sdpipe.runtime.attention import TiledAttention
from sdpipe.runtime.compiled import CompiledUNet

pytestmark = pytest.mark.slow


def small_model(folder, down, up):
    """A model whose U-Net has one block of each of these kinds and no others: soon compiled."""
    tiny_model(folder)
    kinds = {"down_block_types": (down,), "up_block_types": (up,), "mid_block_type": None}
    unet = tiny_unet(block_out_channels=(16,), **kinds)
    unet.save_config(folder / "unet")
    write_weights(folder / "unet/diffusion_pytorch_model", unet, None, torch.float32)
    return folder


@pytest.mark.filterwarnings("ignore:the latents grew to")  # random weights
def test_compiled_it_computes_the_same(tmp_path, monkeypatch):
    """Without the last stage, which has a C++ compiler make code of what was traced."""
    folder = small_model(tmp_path / "tiny", "CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
    compile = torch.compile
    whole = partial(compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", lambda unet, **_: whole(unet, dynamic=False))
    plain, compiled = (
        Pipeline(folder, device="cpu", dtype="bfloat16", compile=asked) for asked in (False, True)
    )
    for pipe in (plain, compiled):
        pipe.components.unet.set_attn_processor(TiledAttention(min_scores=0))
    for g in (1, 5):
        same = {"seed": 3, "steps": 3, "g": g, "dim": 64}
        steps = zip(plain.stream("cat", **same), compiled.stream("cat", **same), strict=True)
        assert all(torch.equal(a.latents, b.latents) for a, b in steps)


class OneLayer(torch.nn.Module):
    """Called as a U-Net, it is a convolution."""

    def __init__(self, dtype):
        super().__init__()
        self.layer = torch.nn.Conv2d(4, 16, 3, padding=1, dtype=dtype).requires_grad_(False)
        self.dtype, self.device = dtype, torch.device("cpu")

    def forward(self, x, t, prompt_embeds):
        return torch.nn.functional.silu(self.layer(x) * t + prompt_embeds)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch about itself
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with a C++ compiler")
@pytest.mark.parametrize(("dtype", "frozen"), [(torch.float32, True), (torch.float64, False)])
def test_in_float32_the_code_for_the_first_shape_has_its_own_weights(
    dtype, frozen, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    plain = OneLayer(dtype)
    compiled = CompiledUNet(plain)
    inputs = torch.randn(2, 4, 8, 8, dtype=dtype), torch.tensor(2.0), torch.zeros(1, dtype=dtype)
    with torch.no_grad(), profile() as profiler:
        output = compiled(*inputs)
        assert torch.allclose(output, plain(*inputs), atol=1e-5)
        before = plain.layer.weight.clone()
        plain.layer.weight.zero_()
        stays = torch.equal(compiled(*inputs), output)
        plain.layer.weight.copy_(before)
        fewer = inputs[0][:1], *inputs[1:]
        assert torch.allclose(compiled(*fewer), plain(*fewer), atol=1e-5)
        plain.layer.weight.zero_()  # the code for the other shape has no weights of its own
        assert torch.allclose(compiled(*fewer), plain(*fewer), atol=1e-5)
        assert torch.equal(compiled(*inputs), output) == frozen
    assert stays == frozen
    assert ("mkldnn::_convolution_pointwise" in {e.key for e in profiler.key_averages()}) == frozen


def test_without_a_compiler_the_error_says_what_to_install(tmp_path):
    """In a process of its own: torch looks for its compiler once."""
    code = (
        "import sys; from sdpipe.cli.app import main; import torch._inductor.config as config;"
        "config.force_disable_caches = True; sys.exit(main(sys.argv[1:]))"
    )
    folder = small_model(tmp_path / "tiny", "DownBlock2D", "UpBlock2D")
    words = ["generate", "cat", "--model", str(folder), "--compile"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--device=cpu", "--dtype=float32", "--steps=2"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "CXX": "/no/such/compiler"},
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (1, "")
    [message] = [line for line in done.stderr.splitlines() if line.startswith("sdpipe: error")]
    assert "InvalidCxxCompiler" in message
    assert "g++" in message
