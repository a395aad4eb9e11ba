import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor2_0
from support.tiny import tiny_model, tiny_unet, write_weights
from torch.profiler import profile

from sdpipe import Pipeline, UsageError
from sdpipe.io.png import read
from sdpipe.metadata.replay import prepare
from sdpipe.metadata.save import carried
from sdpipe.runtime import attention, cuda_graph, speed
from sdpipe.runtime.compiled import Compiled
from sdpipe.runtime.device import check_speed


@pytest.fixture(scope="module")
def pipes():
    return {
        "float32": Pipeline("emoji", device="cpu", dtype="float32"),
        "plain": Pipeline("emoji", device="cpu", dtype="bfloat16", speed=False),
        "default": Pipeline("emoji", device="cpu", dtype="bfloat16"),
    }


@pytest.mark.parametrize(
    ("places", "texts", "size"),
    [(128, 128, 8), (130, 130, 16), (256, 77, 24), (1000, 131, 40), (70, 300, 5)],
)
@pytest.mark.parametrize("tile", [1, 2**10, 2**13, 2**20])
def test_attention_in_tiles_is_attention(monkeypatch, places, texts, size, tile):
    monkeypatch.setattr(attention, "TILE", max(tile, texts))
    monkeypatch.setattr(attention, "TILED_FROM", 0)
    q = torch.randn(2, places, 3, size, dtype=torch.float64).transpose(1, 2)
    k, v = (torch.randn(2, texts, 3, size, dtype=torch.float64).transpose(1, 2) for _ in range(2))
    weights = ((q @ k.transpose(2, 3)) / size**0.5).exp()
    expected = weights @ v / weights.sum(-1, keepdim=True)
    assert torch.allclose(attention.tiled_attention(q, k, v), expected, atol=1e-12)


@pytest.mark.parametrize(("scale", "off"), [(0, 0.005), (1, 0.01), (5, 0.02), (1000, 0.2)])
def test_attention_of_scores_of_any_size(monkeypatch, scale, off):
    """2 to the largest would be infinite: at 1000 they are beyond a million."""
    monkeypatch.setattr(attention, "TILE", 2**16)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 1000, 40, dtype=torch.float64)
    scores = (q * scale) @ (k * scale).transpose(2, 3) / 40**0.5
    y = attention.tiled_attention(q * scale, k * scale, v)
    assert torch.allclose(y, scores.softmax(-1) @ v, atol=1e-9)

    q, k, v = ((q * scale).bfloat16(), (k * scale).bfloat16(), v.bfloat16())
    exact = (q.double() @ k.double().transpose(2, 3) / 40**0.5).softmax(-1) @ v.double()
    y = attention.tiled_attention(q, k, v).double()
    assert (y - exact).norm() < off * exact.norm()


def test_a_row_whose_largest_score_stands_out_is_weighed_by_softmax(monkeypatch):
    """One key of many is far nearer than those that were looked at: 2 to its score is infinite."""
    monkeypatch.setattr(attention, "TILE", 2**16)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 1000, 16, dtype=torch.float64)
    k[..., 101, :] = 1000 * q[..., 5, :]
    scores = q @ k.transpose(2, 3) / 4
    flat = [x.flatten(0, 1) for x in (q / 4, k, v)]
    assert attention._by_powers(*flat) is None
    assert torch.allclose(attention.tiled_attention(q, k, v), scores.softmax(-1) @ v, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("places", [70, 300])
def test_a_compiler_may_take_attention_whole(places, dtype):
    q = torch.randn(2, places, 3, 16, dtype=dtype).transpose(1, 2)
    k, v = (torch.randn(2, 77, 3, 16, dtype=dtype).transpose(1, 2) for _ in range(2))
    torch.library.opcheck(attention.tiled_attention_op, (q, k, v), test_utils="test_schema")
    torch.library.opcheck(attention.tiled_attention_op, (q, k, v), test_utils="test_faketensor")
    assert torch.equal(attention.tiled_attention_op(q, k, v), attention.tiled_attention(q, k, v))


def soon_compiled(folder, down, up):
    """A model whose U-Net has one block of each of these kinds and no others."""
    tiny_model(folder)
    kinds = {"down_block_types": (down,), "up_block_types": (up,), "mid_block_type": None}
    unet = tiny_unet(block_out_channels=(16,), **kinds)
    unet.save_config(folder / "unet")
    write_weights(folder / "unet/diffusion_pytorch_model", unet, None, torch.float32)
    return folder


def test_compiled_it_computes_the_same(tmp_path, monkeypatch):
    """Without the last stage, which has a C++ compiler make code of what was traced."""
    folder = soon_compiled(tmp_path / "tiny", "CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
    compile = torch.compile
    whole = partial(compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", lambda unet, **_: whole(unet, dynamic=False))
    plain, compiled = (
        Pipeline(folder, device="cpu", dtype="bfloat16", compile=asked) for asked in (False, True)
    )
    monkeypatch.setattr(attention, "TILED_FROM", 0)
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

    def forward(self, x, t, text):
        return torch.nn.functional.silu(self.layer(x) * t + text)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch about itself
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with a C++ compiler")
@pytest.mark.parametrize(("dtype", "laid_out"), [(torch.float32, True), (torch.float64, False)])
def test_compiled_in_float32_the_weights_are_laid_out_once(dtype, laid_out, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    plain = OneLayer(dtype)
    compiled = Compiled(plain)
    given = torch.randn(2, 4, 8, 8, dtype=dtype), torch.tensor(2.0), torch.zeros(1, dtype=dtype)
    with torch.no_grad(), profile() as seen:
        found = compiled(*given)
        assert torch.allclose(found, plain(*given), atol=1e-5)
        before = plain.layer.weight.clone()
        plain.layer.weight.zero_()
        stays = torch.equal(compiled(*given), found)
        plain.layer.weight.copy_(before)
        fewer = given[0][:1], *given[1:]
        assert torch.allclose(compiled(*fewer), plain(*fewer), atol=1e-5)
        plain.layer.weight.zero_()  # seen where another shape came later
        assert torch.allclose(compiled(*fewer), plain(*fewer), atol=1e-5)
        assert torch.equal(compiled(*given), found) == laid_out
    assert stays == laid_out
    assert ("mkldnn::_convolution_pointwise" in {e.key for e in seen.key_averages()}) == laid_out


def test_where_nothing_compiles_it_is_told_how_something_would(tmp_path):
    """In a process of its own, for torch looks for its compiler once."""
    code = (
        "import sys; from sdpipe.cli.app import main; import torch._inductor.config as config;"
        "config.force_disable_caches = True; sys.exit(main(sys.argv[1:]))"
    )
    folder = soon_compiled(tmp_path / "tiny", "DownBlock2D", "UpBlock2D")
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
    [said] = [line for line in done.stderr.splitlines() if line.startswith("sdpipe: error")]
    assert said.startswith("sdpipe: error: the U-Net cannot be compiled: InvalidCxxCompiler: ")
    assert said.endswith("apt install g++ python3-dev; or leave compile out.")


def test_few_scores_go_the_usual_way(monkeypatch):
    called = []
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v: called.append(q.shape) or v
    )
    few, many = torch.zeros(1, 1, 64, 8), torch.zeros(1, 1, 256, 8)
    attention.tiled_attention(few, few, few)
    attention.tiled_attention(many, many, many)
    assert called == [few.shape]


def test_bfloat16_comes_as_near_to_float32_as_without(pipes, monkeypatch):
    """One call of the U-Net: both round in other places, and neither worse."""
    monkeypatch.setattr(attention, "TILED_FROM", 0)
    torch.manual_seed(0)
    x, t = torch.randn(2, 4, 16, 16), torch.tensor(500.0)
    text = torch.randn(2, 48, pipes["float32"].components.unet.config.cross_attention_dim)
    outputs = {}
    for name, pipe in pipes.items():
        unet = pipe._unet()
        with torch.no_grad():
            outputs[name] = unet(x.to(unet.dtype), t, text.to(unet.dtype)).sample.float()
    exact = outputs.pop("float32")
    off = {name: float((y - exact).norm() / exact.norm()) for name, y in outputs.items()}
    assert 0 < off["default"] < 1.3 * off["plain"]
    assert off["plain"] < 0.3
    assert not torch.equal(outputs["default"], outputs["plain"])


def test_tiles_are_where_half_precision_on_a_cpu_is(pipes):
    kinds = {
        name: {type(p) for p in pipe.components.unet.attn_processors.values()}
        for name, pipe in pipes.items()
    }
    assert kinds == {
        "float32": {AttnProcessor2_0},
        "plain": {AttnProcessor2_0},
        "default": {attention.TiledAttention},
    }


def test_in_float32_nothing_is_another_bit(pipes):
    plain = Pipeline("emoji", device="cpu", dtype="float32", speed=False)
    ours = pipes["float32"].generate("red apple", seed=3, steps=3).images[0]
    assert ours.tobytes() == plain.generate("red apple", seed=3, steps=3).images[0].tobytes()


def test_pictures_of_both_are_hardly_different(pipes, monkeypatch):
    monkeypatch.setattr(attention, "TILED_FROM", 0)
    one, other = (
        np.asarray(pipes[name].generate("cat", seed=3, steps=3, dim=64).images[0]).astype(float)
        for name in ("plain", "default")
    )
    assert 0 < np.abs(one - other).mean() < 4


def test_channels_last_where_groups_are_wide(pipes):
    def network(width, groups):
        layer = torch.nn.Conv2d(4, width, 3).bfloat16()
        layer.config = SimpleNamespace(block_out_channels=(width,), norm_num_groups=groups)
        layer.dtype, layer.device = torch.bfloat16, torch.device("cpu")
        return layer

    wide, narrow = network(64, 8), network(64, 16)
    speed.lay_out(wide, narrow, torch.device("cpu"))
    assert wide.weight.is_contiguous(memory_format=torch.channels_last)
    assert narrow.weight.is_contiguous()


def test_channels_last_stays_from_layer_to_layer(pipes, monkeypatch):
    """A kernel of 1 x 1 is laid out either way, and what it answers goes by its strides."""
    monkeypatch.setattr(speed, "WIDE", 1)
    plain, read = (
        Pipeline("emoji", device="cpu", dtype="bfloat16", speed=fast).components
        for fast in (False, True)
    )
    speed.lay_out(plain.unet, plain.vae, torch.device("cpu"))
    other = []

    def look(layer, given, output):
        if not output.is_contiguous(memory_format=torch.channels_last):
            other.append(layer)

    for unet in (plain.unet, read.unet):
        for layer in unet.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(look)
        text = torch.randn(1, 48, unet.config.cross_attention_dim).bfloat16()
        unet(torch.randn(1, 4, 16, 16).bfloat16(), torch.tensor(500.0), text)
    assert not other


def test_weights_are_read_into_their_layout(pipes, monkeypatch):
    """What `lay_out` would do is done by then, so the memory for two layouts is never needed."""
    monkeypatch.setattr(speed, "WIDE", 1)
    monkeypatch.setattr(speed, "lay_out", lambda *_: None)
    fast = Pipeline("emoji", device="cpu", dtype="bfloat16").components
    for part in ("unet", "vae"):
        known = getattr(pipes["plain"].components, part).state_dict()
        for name, weight in getattr(fast, part).state_dict().items():
            assert torch.equal(weight, known[name])
            if weight.dim() == 4:
                assert speed._channels_last(weight).stride() == weight.stride()
                assert known[name].is_contiguous()


def test_the_metadata_tells_and_replay_follows(pipes, tmp_path):
    from sdpipe.io import png

    for name in ("plain", "default"):
        result = pipes[name].generate("cat", seed=1, steps=2, dim=64)
        path = png.save(result.images[0], tmp_path / f"{name}.png", carried(pipes[name], result, 0))
        assert read(path)["sdpipe"]["speed"] == name
        job = prepare(path)
        assert job.speed == name
        assert job.load().speed == name


class Listed:
    """Stands in for a recorded graph: computes with the U-Net itself."""

    made = 0

    def __init__(self, unet, given):
        Listed.made += 1
        self.unet, self.shapes = unet, [y.shape for y in given]

    def __call__(self, given):
        assert [y.shape for y in given] == self.shapes
        return self.unet(*given).sample


def test_two_shapes_are_kept_recorded(monkeypatch, pipes):
    monkeypatch.setattr(cuda_graph, "record", Listed)
    Listed.made = 0
    unet = pipes["float32"].components.unet
    graphed = cuda_graph.Graphed(unet)
    assert graphed.dtype == torch.float32
    width, t = unet.config.cross_attention_dim, torch.tensor(7.0)

    def call(batch):
        x, text = torch.randn(batch, 4, 16, 16), torch.randn(batch, 48, width)
        with torch.no_grad():
            assert torch.equal(graphed(x, t, text).sample, unet(x, t, text).sample)

    for batch in (2, 1, 2, 1, 2):
        call(batch)
    assert Listed.made == 2
    for batch in (3, 1, 3):  # 2 goes, the one that was recorded first
        call(batch)
    assert Listed.made == 3
    call(2)
    assert Listed.made == 4


def test_a_recording_is_one_thread_at_a_time(monkeypatch, pipes):
    inside, most = [], []

    class Slow(Listed):
        def __call__(self, given):
            inside.append(1)
            most.append(len(inside))
            try:
                return super().__call__(given)
            finally:
                inside.pop()

    monkeypatch.setattr(cuda_graph, "record", Slow)
    unet = pipes["float32"].components.unet
    graphed = cuda_graph.Graphed(unet)
    width, t = unet.config.cross_attention_dim, torch.tensor(7.0)

    @torch.no_grad()
    def call():
        for _ in range(3):
            graphed(torch.randn(1, 4, 16, 16), t, torch.randn(1, 48, width))

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 9
    assert set(most) == {1}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_draws_the_same_bits_and_never_waits():
    plain = Pipeline("emoji", device="cuda", speed=False)
    graphed = Pipeline("emoji", device="cuda")
    for g in (1, 5):
        expected = list(plain.stream("red apple", seed=3, steps=8, g=g))
        steps = graphed.stream("red apple", seed=3, steps=8, g=g)
        found = [next(steps)]
        torch.cuda.set_sync_debug_mode("error")
        try:
            found += steps
        finally:
            torch.cuda.set_sync_debug_mode("default")
        layouts = zip(expected, found, strict=True)
        assert all(torch.allclose(a.latents, b.latents, atol=2e-2) for a, b in layouts)
        again = [step.latents for step in graphed.stream("red apple", seed=3, steps=8, g=g)]
        assert all(torch.equal(a.latents, b) for a, b in zip(found, again, strict=True))


def test_compiling_plainly_is_a_contradiction():
    assert check_speed(True, False) == "default"
    assert check_speed(True, True) == "compiled"
    assert check_speed(False, False) == "plain"
    with pytest.raises(UsageError, match="compile=True is for speed, and speed=False is without"):
        Pipeline("emoji", speed=False, compile=True)
