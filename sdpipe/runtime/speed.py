"""What makes the networks fast, and leaves alone what they compute.

`Pipeline(speed=False)`, `--no-optimize`, runs them as diffusers loads them: the same images, but
for the last digits of bfloat16 and float16. In float32 on a CPU nothing differs, not a bit.
"""

import math
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from sdpipe.errors import SdpipeError

HALF = (torch.bfloat16, torch.float16)
TILE = 2**21
"""Scores of attention that are held at once: 4 MiB in bfloat16; half as many take longer."""
TILED_FROM = 2**14
"""Scores of one head below which tiles gain nothing."""
SOME = 128
"""Keys whose scores tell about how large those of all are."""
KEPT = 2
WIDE = 8
"""Channels of a group from which a CPU's GroupNorm is as fast with channels last."""


def fast(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    speed: str,
    device: torch.device,
    *,
    stays: bool = True,
) -> UNet2DConditionModel:
    """What the loop is to call in place of `unet`; `speed` is one of `device.SPEEDS`.

    The networks' weights are laid out anew, in place, unless `speed` is "plain". What is recorded
    on a GPU finds its weights where they were, so a U-Net that does not stay there is not.
    """
    if speed == "plain":
        return unet
    lay_out(unet, vae, device)
    if speed == "compiled":
        return cast(UNet2DConditionModel, Compiled(unet))
    graphed = device.type == "cuda" and stays
    return cast(UNet2DConditionModel, Graphed(unet)) if graphed else unet


def lay_out(unet: UNet2DConditionModel, vae: AutoencoderKL, device: torch.device) -> None:
    """Lays out the weights for the device that they will work on, in place.

    In half precision convolutions are fastest where the channels of a pixel lie side by side, on a
    GPU's matrix units as on a CPU's. A CPU attends in tiles, see `tiled_attention`.
    """
    if unet.dtype not in HALF:
        return
    for network in (unet, vae):
        if likes_channels_last(network, device, unet.dtype):
            # The largest first: the place that one leaves then has room for the next.
            kernels = [weight for weight in network.parameters() if weight.dim() == 4]
            for weight in sorted(kernels, key=Tensor.numel, reverse=True):
                weight.data = _channels_last(weight.data)
    if device.type == "cpu":
        for layer in unet.modules():
            if isinstance(layer, Attention) and _is_plain(layer):
                layer.set_processor(TiledAttention())


def likes_channels_last(
    network: UNet2DConditionModel | AutoencoderKL, device: torch.device, dtype: torch.dtype
) -> bool:
    """Whether a network is faster on a device with channels last; on a CPU a narrow one is not."""
    width = network.config.block_out_channels[0] // network.config.norm_num_groups
    return dtype in HALF and (device.type != "cpu" or width >= WIDE)


def _channels_last(kernel: Tensor) -> Tensor:
    """A kernel (O, I, H, W) laid out as (O, H, W, I).

    Of 1 x 1 both are the same memory, but a convolution answers in the layout that the strides say.
    """
    _, inputs, height, width = kernel.shape
    strides = (height * width * inputs, 1, width * inputs, inputs)
    laid_out = kernel.contiguous(memory_format=torch.channels_last)
    return laid_out.as_strided(kernel.shape, strides)


class Compiled:
    """A U-Net that torch compiles at the first call of each shape; it shares the weights of `unet`.

    torch keeps what it made for other processes: in $TORCHINDUCTOR_CACHE_DIR, where that is set,
    and else in the system's folder for temporary files.

    In float32 on a CPU what is compiled for the first shape has weights of its own, laid out for
    its convolutions and products once and not at every call: they take as much memory again, and
    torch keeps no more than the kernels. A change of the U-Net's weights after that is not seen.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        # diffusers remembers its answer to which torch this is, and torch warns of such memories.
        warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
        self.unet = unet
        self._may_freeze = unet.device.type == "cpu" and unet.dtype == torch.float32
        self._first: torch.Size | None = None  # the shape whose code has its own weights
        mode = "max-autotune" if unet.device.type == "cuda" else None
        self._call = torch.compile(unet, mode=mode, dynamic=False)

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return self.unet.dtype

    def __call__(self, x: Tensor, t: Tensor, text: Tensor) -> UNet2DConditionOutput:
        """The U-Net's answer.

        Raises:
            SdpipeError: torch cannot compile it here.
        """
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor import config

        self._first = self._first or x.shape
        try:
            # As an option of torch.compile it comes too late for the tracer.
            with config.patch(freezing=self._may_freeze and x.shape == self._first):
                return self._call(x, t, text)
        except TorchDynamoException as error:
            why, *_ = str(error).strip().splitlines()
            raise SdpipeError(
                f"the U-Net cannot be compiled: {why}. torch needs a C++ compiler and the headers "
                "of Python for it, on Debian apt install g++ python3-dev; or leave compile out."
            ) from error


class Graphed:
    """A U-Net whose call on a GPU is a single launch: a CUDA graph.

    A U-Net is some thousand kernels, which a GPU computes faster than Python can ask for them. The
    first call of a shape records them, every other one replays what was recorded: the same kernels
    on the same numbers, so the same bits. Two shapes are kept, with guidance and without; each
    holds the memory of one call.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet
        self._lock = threading.Lock()  # what is recorded has one place for its input
        self._recorded: dict[object, Recorded] = {}

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return self.unet.dtype

    def __call__(self, x: Tensor, t: Tensor, text: Tensor) -> UNet2DConditionOutput:
        """As the U-Net itself: x (B, C, h, w), a timestep, and the text (B, L, D)."""
        given = (x, t.to(x.device), text)
        key = tuple((y.shape, y.dtype) for y in given)
        with self._lock:
            if key not in self._recorded:
                for old in list(self._recorded)[: 1 - KEPT]:
                    del self._recorded[old]
                self._recorded[key] = record(self.unet, given)
            return UNet2DConditionOutput(sample=self._recorded[key](given))


@dataclass(frozen=True, eq=False)
class Recorded:
    """The kernels of one call, with the places where they find their input and leave the output."""

    graph: torch.cuda.CUDAGraph
    given: tuple[Tensor, ...]
    output: Tensor

    def __call__(self, given: tuple[Tensor, ...]) -> Tensor:
        """The U-Net's output for another input of the same shapes."""
        with torch.cuda.device(self.output.device):
            for place, y in zip(self.given, given, strict=True):
                place.copy_(y)
            self.graph.replay()
            return self.output.clone()


def record(unet: UNet2DConditionModel, given: tuple[Tensor, ...]) -> Recorded:
    """Records a call of a U-Net, (x, t, text)."""
    given, graph = tuple(y.clone() for y in given), torch.cuda.CUDAGraph()
    with torch.cuda.device(given[0].device):
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # the libraries set themselves up at the first call
            unet(*given)
        torch.cuda.current_stream().wait_stream(beside)
        with torch.cuda.graph(graph):
            output = unet(*given).sample
    return Recorded(graph, given, output)


def _is_plain(layer: Attention) -> bool:
    """Whether a layer is attention and nothing else, as all of a Stable Diffusion U-Net are."""
    extras = ("spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k", "residual_connection")
    return (
        type(layer.processor) is AttnProcessor2_0
        and not any(getattr(layer, name) for name in extras)
        and layer.rescale_output_factor == 1
    )


class TiledAttention:
    """diffusers' AttnProcessor2_0 for plain layers, with `tiled_attention` in its middle."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, D) and, for cross-attention, the text (B, L, D'); returns (B, T, D)."""
        if attention_mask is not None:
            return AttnProcessor2_0()(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb
            )
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            y.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, heads, T or L, d)
            for y in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text))
        )
        y = tiled_attention_op(q, k, v).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](y))


def tiled_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, Vaswani et al. (2017), equation 1, for half types on a CPU.

    q is (B, heads, T, d), k and v (B, heads, L, d). Tiles of the T x L scores, so many as a core's
    cache holds, go through two matrix products and what is between them. torch's own kernel for a
    CPU keeps to the same plan but not to the CPU's fastest product: of 4,096 places with heads of
    size 40 it takes twice the time.
    """
    batch, heads, length, size = q.shape
    if length * k.shape[2] < TILED_FROM:
        return F.scaled_dot_product_attention(q, k, v).contiguous()
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    many = length * k.shape[1] > TILE and q.dtype != torch.float16  # whose range is short
    y = _by_powers(q * (size**-0.5 * math.log2(math.e)), k, v) if many else None
    if y is None:
        y = _in_tiles(q * size**-0.5, k, v, lambda scores: scores.softmax(-1))
    return y.unflatten(0, (batch, heads))


def _by_powers(q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """The same without a softmax, of q (N, T, d), k and v (N, L, d); None if a power is infinite.

    y = 2^(q k^T - m) v / 2^(q k^T - m) 1 for any number m of a row. Two columns of ones have the
    products do the rest: beside v it sums the weights, beside k it takes m. One pass over the
    scores is left, of three. m is the row's largest score of some of the keys, near that of all.
    """
    some = k[:, :: max(k.shape[1] // SOME, 1)].transpose(1, 2)
    m = torch.bmm(q, some).amax(-1, keepdim=True)
    y = _in_tiles(torch.cat([q, -m], -1), _with_ones(k), _with_ones(v), Tensor.exp2_)
    total = y[..., -1:]
    return y[..., :-1] / total if total.isfinite().all() else None


def _with_ones(x: Tensor) -> Tensor:
    """A column of ones beside x (N, L, d): (N, L, d + 1)."""
    return torch.cat([x, x.new_ones(1).expand(*x.shape[:-1], 1)], -1)


def _in_tiles(q: Tensor, k: Tensor, v: Tensor, weigh: Callable[[Tensor], Tensor]) -> Tensor:
    """weigh(q k^T) v, of so many rows and heads at a time as `TILE` allows."""
    (heads, length, _), k_t = q.shape, k.transpose(1, 2)
    rows = min(length, TILE // k.shape[1])
    together = min(heads, max(TILE // (length * k.shape[1]), 1))
    y = q.new_empty(heads, length, v.shape[-1])
    scores = q.new_empty(together, rows, k.shape[1])
    for head in range(0, heads, together):
        h = slice(head, head + together)
        for row in range(0, length, rows):
            r = slice(row, row + rows)
            tile = scores[: heads - head, : length - row]
            torch.bmm(q[h, r], k_t[h], out=tile)
            torch.bmm(weigh(tile), v[h], out=y[h, r])
    return y


# A compiler takes it whole: what it would make of thousands of tiles is no faster, and takes it
# minutes.
tiled_attention_op = torch.library.custom_op(
    "sdpipe::tiled_attention", tiled_attention, mutates_args=()
)


@tiled_attention_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(q.shape)
