"""Where each word acted: cross-attention, averaged over heads, layers and steps.

Tang et al. (2023), "What the DAAM: interpreting Stable Diffusion using cross attention".
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdpipe.denoise import Step
from sdpipe.latents import vae_factor
from sdpipe.show import style
from sdpipe.show.checks import check_attention
from sdpipe.show.listen import with_unet
from sdpipe.show.stages import sampling, settle
from sdpipe.show.style import MARGIN, WIDTH, Sheet
from sdpipe.show.words import Word, split
from sdpipe.syntax import parse

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from matplotlib.figure import Figure

    from sdpipe.pipeline import Pipeline
    from sdpipe.settings import Settings


class Maps:
    """The sum of all attention of one run, by the number of places that looked.

    Nothing is kept for single steps: a layer adds to what is there.
    """

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._added: dict[int, int] = {}

    def add(self, attention: Tensor) -> None:
        """Adds the attention of one layer in one step, (heads, places, L), each row sums to 1."""
        mean = attention.mean(0)  # (places, L)
        places = len(mean)
        self._sums[places] = self._sums.get(places, torch.zeros_like(mean)) + mean
        self._added[places] = self._added.get(places, 0) + 1

    def mean(self, height: int, width: int) -> Tensor:
        """The mean over heads, layers and steps on latents of height x width: (L, h, w).

        Coarser layers are enlarged to that, bicubically, as DAAM does. The L values of a place sum
        to 1, but for the rounding of what the enlarging made negative to 0.
        """
        total = torch.zeros(0)
        for places, summed in self._sums.items():
            h, w = shape_of(places, height, width)
            map_ = summed.T.reshape(1, -1, h, w).cpu()  # (1, L, h', w')
            large = F.interpolate(map_, (height, width), mode="bicubic", align_corners=False)
            total = large if not len(total) else total + large
        return (total[0] / sum(self._added.values())).clamp(min=0)


def shape_of(places: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of a layer with so many places, in a U-Net whose input is height x width."""
    while height * width > places:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != places:
        raise ValueError(f"no layer of such a U-Net has {places} places")
    return height, width


def recording(unet: "UNet2DConditionModel", maps: Maps) -> "UNet2DConditionModel":
    """A U-Net that shares all weights of another and adds its cross-attention to `maps`.

    It computes what the other computes, bit for bit. The other one stays as it is: its own
    attention processors are not touched, whoever else is drawing with it, whatever goes wrong.
    """
    shared = {id(t): t for t in (*unet.parameters(), *unet.buffers())}
    twin = copy.deepcopy(unet, dict(shared))
    processors = {name: _Recorder(p, maps) for name, p in twin.attn_processors.items()}
    twin.set_attn_processor(processors)
    return twin


class _Recorder:
    """An attention processor that looks at the attention beside the one that computes with it."""

    def __init__(self, processor: Any, maps: Maps) -> None:
        self._processor = processor
        self._maps = maps

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **more: Any,
    ) -> Tensor:
        if encoder_hidden_states is not None:  # else it is self-attention
            # The last of the batch is the picture under the prompt: uncond comes first.
            self._maps.add(attention(attn, hidden_states[-1:], encoder_hidden_states[-1:])[0])
        return self._processor(attn, hidden_states, encoder_hidden_states, attention_mask, **more)


def attention(attn: Any, x: Tensor, text: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) of a cross-attention layer, (B, heads, places, L), float32.

    `x` is (B, places, D of the layer), `text` (B, L, D). Vaswani et al. (2017), equation 1.
    """
    if attn.norm_cross:
        text = attn.norm_encoder_hidden_states(text)
    q, k = (
        t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (attn.to_q(x), attn.to_k(text))
    )
    q, k = (
        (q if attn.norm_q is None else attn.norm_q(q)),
        (k if attn.norm_k is None else attn.norm_k(k)),
    )
    scores = q.float() @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.softmax(-1)


@dataclass(frozen=True, eq=False)
class Attended:
    """Where each word of a prompt acted on a picture.

    maps: for each word the share of a place's attention that its tokens got, (words, h, w).
    shares: the same averaged over places, one for each of the L tokens: start mark, words, end
        mark, padding, and the same again for every further chunk. They sum to 1.
    """

    settings: "Settings"
    picture: Image.Image
    words: list[Word]
    maps: np.ndarray[Any, Any]
    shares: list[float]

    def share(self, word: Word) -> float:
        """How much of all attention a word got."""
        return sum(self.shares[word.first : word.first + len(word.ids)])

    def numbers(self) -> dict[str, Any]:
        """What can be said in JSON."""
        return {
            "settings": self.settings.to_dict(),
            "shares": self.shares,
            "words": [
                {
                    "text": word.text,
                    "first": word.first,
                    "tokens": list(word.tokens),
                    "share": self.share(word),
                    "map": [[round(float(v), 6) for v in row] for row in map_],
                }
                for word, map_ in zip(self.words, self.maps, strict=True)
            ],
        }


def attention_data(
    pipe: "Pipeline",
    prompt: str,
    *,
    on_step: Callable[[Step], object] | None = None,
    **settings: Any,
) -> Attended:
    """Draws a picture as `Pipeline.generate` does, the same bits, and records its attention.

    Raises:
        UsageError: a value breaks its rule, g is 0, which listens to no prompt, or the prompt has
            no words, or not the same at every step.
    """
    own = settle(pipe, prompt, **settings)
    check_attention(prompt, own.g)
    maps, parts = Maps(), pipe.components
    listening = with_unet(pipe, recording(parts.unet, maps))
    result = listening.generate(prompt, on_step=on_step, **{**settings, "seed": own.seed})
    picture, factor = result.images[0], vae_factor(parts.vae)
    mean = maps.mean(picture.height // factor, picture.width // factor)  # (L, h, w)
    words = split(parts.tokenizer, parse(prompt).at(0, 1))
    of_words = [mean[w.first : w.first + len(w.ids)].sum(0).numpy() for w in words]
    return Attended(
        result.settings[0], picture, words, np.stack(of_words), mean.mean((1, 2)).tolist()
    )


@style.drawing
def attention_figure(data: Attended) -> "Figure":
    """Draws the picture, then once for every word where it acted, and how much of all that was."""
    aspect = data.picture.height / data.picture.width
    places, end = style.cells(len(data.words) + 1, aspect, 68)
    own = data.settings
    sheet = Sheet(
        end + 160,
        style.quoted(own.prompt),
        f"where each word acted: cross-attention, averaged over heads, layers and steps; "
        f"seed {own.seed}, {sampling(own)}",
    )
    (x, y, w, h), *places = [(x, y + sheet.top, w, h) for x, y, w, h in places]
    sheet.picture(x, y, w, h, data.picture)
    sheet.text(x, y + h + 20, "the picture")
    lines = _outlines(data.picture)
    for (x, y, w, h), word, map_ in zip(places, data.words, data.maps, strict=True):
        # A scale for each: a word that hardly acted has a shape too, and how little is said.
        most = float(map_.max())
        looks = {"interpolation": "bicubic", "extent": (0, 1, 0, 1)}
        axes = sheet.picture(x, y, w, h, map_ / (most or 1.0), **style.heat(1.0), **looks)
        axes.imshow(lines, extent=(0, 1, 0, 1), aspect="auto")
        sheet.text(x, y + h + 20, style.fitted(word.text, style.TEXT, w), plain=True)
        sheet.note(x, y + h + 37, f"mean {_percent(data.share(word))}")
        sheet.note(x, y + h + 53, f"most {_percent(most)}")
    y = sheet.top + end + 14
    sheet.note(MARGIN, y, "the word's share of a place's attention: from none to its most")
    bar = sheet.scale(MARGIN, y + 10, WIDTH - 2 * MARGIN, axes)
    bar.set_xticks([0, 0.5, 1], ["0", "half", "most"])
    first, _, last = bar.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    _draw_shares(sheet, y + 76, data)
    return sheet.figure


def _draw_shares(sheet: Sheet, y: float, data: Attended) -> None:
    """All attention in a bar: of the start mark, every word, and the rest, marks and padding."""
    sheet.note(MARGIN, y, "all attention")
    others = sum(data.shares[1:]) - sum(map(data.share, data.words))
    parts = [("start mark", data.shares[0], style.EDGE)]
    for i, word in enumerate(data.words):
        parts.append((word.text, data.share(word), style.TINTS[i % len(style.TINTS)]))
    parts.append(("end and padding", others, style.PALE))
    canvas, x = sheet.canvas(), float(MARGIN)
    for text, share, color in parts:
        width = share / sum(data.shares) * (WIDTH - 2 * MARGIN)
        style.bar(canvas, x, y + 10, width - 1, 24, color)
        label = f"{text} {_percent(share)}"
        label = next((t for t in (label, text) if style.text_width(t, style.SMALL) < width - 8), "")
        sheet.text(x + width / 2, y + 26, label, ha="center", size=style.SMALL, plain=True)
        x += width


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def _outlines(picture: Image.Image) -> np.ndarray[Any, Any]:
    """The edges in a picture as dark lines to lay over colours, which stay as they are between."""
    slopes = np.gradient(np.asarray(picture.convert("L"), dtype=np.float64))
    steep = np.hypot(*slopes)  # (H, W)
    black = np.zeros((*steep.shape, 4))
    black[..., 3] = 0.7 * np.clip(steep / (np.quantile(steep, 0.98) or 1.0), 0, 1)
    return black
