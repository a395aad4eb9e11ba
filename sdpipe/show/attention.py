"""Where each word acted: cross-attention, averaged over heads, layers and steps.

Tang et al. (2023), "What the DAAM: interpreting Stable Diffusion using cross attention".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdpipe.denoise import Step
from sdpipe.latents import vae_factor
from sdpipe.prompt.syntax import parse
from sdpipe.runtime.modules import copy_sharing_weights
from sdpipe.show import style
from sdpipe.show.checks import check_attention
from sdpipe.show.stages import sampling, settle
from sdpipe.show.style import MARGIN, WIDTH, Sheet
from sdpipe.show.words import Word, split

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from matplotlib.axes import Axes
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
    """Copies a U-Net, sharing its weights; the copy adds its cross-attention to `maps`."""
    own = copy_sharing_weights(unet)
    own.set_attn_processor({name: _Recorder(p, maps) for name, p in own.attn_processors.items()})
    return own


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


Place = tuple[float, float, float, float]  # x, y, width and height on a sheet

MOST_PADDING = 16  # tokens of it that are drawn one by one
MARKS = ("start mark", "words", "end mark", "padding")
COLORS = dict(zip(MARKS, (style.FAINT, style.BLUE, style.INK, style.GREEN), strict=True))


@dataclass(frozen=True, eq=False)
class Attended:
    """Where each word of a prompt acted on a picture.

    attention: which share of a place's attention each of the L tokens got, (L, h, w): start mark,
        words, end mark, padding, and the same again for every further chunk. Over the tokens it
        sums to 1 in every place, but for what `Maps.mean` rounds.
    parts: which of the L tokens are what, by the names in `MARKS`.
    """

    settings: "Settings"
    picture: Image.Image
    words: list[Word]
    attention: np.ndarray[Any, Any]
    parts: Mapping[str, Sequence[int]]

    def map(self, tokens: Sequence[int]) -> np.ndarray[Any, Any]:
        """Which share of each place's attention some tokens got together, (h, w)."""
        return np.asarray(self.attention[list(tokens)].sum(0))

    def share(self, tokens: Sequence[int]) -> float:
        """Which share of all attention they got."""
        return float(self.map(tokens).mean())

    def among_words(self, word: Word) -> float:
        """Which share a word has of the attention that all words got."""
        return self.share(word.places) / (self.share(self.parts["words"]) or 1.0)

    def most_padding(self) -> list[int]:
        """The tokens of padding that got the most, `MOST_PADDING` of them, in their order."""
        ranked = sorted(self.parts["padding"], key=lambda token: -self.share([token]))
        return sorted(ranked[:MOST_PADDING])

    def numbers(self) -> dict[str, Any]:
        """What can be said in JSON."""

        def told(tokens: Sequence[int]) -> dict[str, Any]:
            rows = [[round(float(v), 6) for v in row] for row in self.map(tokens)]
            return {"share": self.share(tokens), "map": rows}

        return {
            "settings": self.settings.to_dict(),
            "shares": self.attention.mean((1, 2)).tolist(),
            "words": [
                {
                    "text": word.text,
                    "first": word.first,
                    "tokens": list(word.tokens),
                    "among_words": self.among_words(word),
                    **told(word.places),
                }
                for word in self.words
            ],
            "parts": {
                name: {"places": list(tokens), **told(tokens)}
                for name, tokens in self.parts.items()
            },
            "padding": [{"place": token, **told([token])} for token in self.most_padding()],
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
    listening = pipe.with_parts(unet=recording(parts.unet, maps))
    result = listening.generate(prompt, on_step=on_step, **{**settings, "seed": own.seed})
    picture, factor = result.images[0], vae_factor(parts.vae)
    mean = maps.mean(picture.height // factor, picture.width // factor)  # (L, h, w)
    words = split(parts.tokenizer, parse(prompt).at(0, 1))
    places = parts_of(words, parts.tokenizer.model_max_length, len(mean))
    return Attended(result.settings[0], picture, words, mean.numpy(), places)


def parts_of(words: Sequence[Word], length: int, count: int) -> dict[str, list[int]]:
    """Which of `count` tokens, in chunks of `length`, are what, by the names in `MARKS`."""
    said = [token for word in words for token in word.places]
    starts = list(range(0, count, length))
    ends = [start + 1 + sum(start < token < start + length for token in said) for start in starts]
    marks = {*starts, *said, *ends}
    padding = [token for token in range(count) if token not in marks]
    return dict(zip(MARKS, (starts, said, ends, padding), strict=True))


@style.drawing
def attention_figure(data: Attended) -> "Figure":
    """Draws the picture, where each word acted, and how much of all attention was for words."""
    aspect = data.picture.height / data.picture.width
    of_words, words_end = style.cells(len(data.words) + 1, aspect, 68)
    of_parts, parts_end = style.cells(6, aspect, 46)
    padding = data.most_padding()
    of_padding, padding_end = style.cells(8 if len(padding) <= 8 else 16, aspect, 28, across=8)
    own = data.settings
    height = words_end + 74 + 48 + parts_end + (32 + padding_end if padding else 0)
    sheet = Sheet(
        height,
        style.quoted(own.prompt),
        f"where each word acted: cross-attention, averaged over heads, layers and steps; "
        f"seed {own.seed}, {sampling(own)}",
    )
    drawn = _Maps(sheet, _outlines(data.picture))
    top = float(sheet.top)
    _draw_words(drawn, _lower(of_words, top), data)
    top += words_end + 74
    _draw_parts(drawn, top, _lower(of_parts, top + 48), data)
    top += 48 + parts_end + 18
    if padding:
        _draw_padding(drawn, top, _lower(of_padding, top + 14), data, padding)
    return sheet.figure


class _Maps:
    """Maps on a sheet, each below the outlines of the picture."""

    def __init__(self, sheet: Sheet, lines: np.ndarray[Any, Any]) -> None:
        self.sheet, self._lines = sheet, lines

    def draw(self, place: Place, shares: np.ndarray[Any, Any], most: float) -> "Axes":
        looks = {"interpolation": "bicubic", "extent": (0, 1, 0, 1), **style.heat(most)}
        axes = self.sheet.picture(*place, shares, **looks)
        axes.imshow(self._lines, extent=(0, 1, 0, 1), aspect="auto")
        return axes

    def scale(self, x: float, y: float, width: float, of: "Axes", most: float) -> None:
        bar = self.sheet.scale(x, y, width, of)
        bar.set_xticks([0, most / 2, most], ["0", _percent(most / 2), _percent(most)])
        first, _, last = bar.get_xticklabels()
        first.set_horizontalalignment("left")
        last.set_horizontalalignment("right")


def _lower(places: Sequence[Place], by: float) -> list[Place]:
    return [(x, y + by, width, height) for x, y, width, height in places]


def _draw_words(drawn: _Maps, places: Sequence[Place], data: Attended) -> None:
    """The picture, and every word's map: on one scale, so that they can be held together."""
    sheet, maps = drawn.sheet, [data.map(word.places) for word in data.words]
    most = max(float(map_.max()) for map_ in maps) or 1.0
    (x, y, w, h), *places = places
    sheet.picture(x, y, w, h, data.picture)
    sheet.text(x, y + h + 20, "the picture")
    for place, word, map_ in zip(places, data.words, maps, strict=True):
        axes = drawn.draw(place, map_, most)
        x, y, w, h = place
        sheet.text(x, y + h + 20, style.fitted(word.text, style.TEXT, w), plain=True)
        sheet.note(x, y + h + 37, f"{_percent(data.among_words(word))} among words")
        sheet.note(x, y + h + 53, f"at most {_percent(float(map_.max()))}")
    y += h + 68 + 12
    sheet.note(MARGIN, y, "the word's share of a place's attention, on one scale for all words")
    drawn.scale(MARGIN, y + 8, WIDTH - 2 * MARGIN, axes, most)


def _draw_parts(drawn: _Maps, y: float, places: Sequence[Place], data: Attended) -> None:
    """What of all attention was for words, and what for marks and padding: a bar, and maps."""
    sheet, canvas, x = drawn.sheet, drawn.sheet.canvas(), float(MARGIN)
    sheet.text(MARGIN, y + 4, "all attention")
    parts = {name: tokens for name, tokens in data.parts.items() if tokens}
    whole = sum(map(data.share, parts.values()))
    for name, tokens in parts.items():
        width = data.share(tokens) / whole * (WIDTH - 2 * MARGIN)
        style.bar(canvas, x, y + 14, max(width - 1, 0.5), 20, COLORS[name])
        x += width
    for (name, tokens), place in zip(parts.items(), places, strict=False):
        axes = drawn.draw(place, data.map(tokens), 1.0)
        x, top, _, h = place
        style.bar(canvas, x, top + h + 11, 9, 9, COLORS[name])
        sheet.text(x + 15, top + h + 20, name)
        sheet.note(x + 15, top + h + 37, _percent(data.share(tokens)))
    x, top, *_ = places[4]
    sheet.note(x, top + 10, "of a place's attention")
    drawn.scale(x, top + 18, WIDTH - MARGIN - x, axes, 1.0)


def _draw_padding(
    drawn: _Maps, y: float, places: Sequence[Place], data: Attended, padding: Sequence[int]
) -> None:
    """The padding that was looked at: behind the prompt, and yet not without meaning."""
    most = max(float(data.map([token]).max()) for token in padding) or 1.0
    few = f"the {len(padding)} tokens of padding with the most attention"
    whole = few if len(padding) < len(data.parts["padding"]) else "the padding, token by token"
    drawn.sheet.text(MARGIN, y + 4, f"{whole}, on one scale to {_percent(most)}")
    for token, place in zip(padding, places, strict=False):
        drawn.draw(place, data.map([token]), most)
        x, top, _, h = place
        share = _percent(data.share([token]))
        drawn.sheet.note(x, top + h + 17, f"{token}: {share}")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def _outlines(picture: Image.Image) -> np.ndarray[Any, Any]:
    """The edges in a picture as dark lines to lay over colours, which stay as they are between."""
    slopes = np.gradient(np.asarray(picture.convert("L"), dtype=np.float64))
    steep = np.hypot(*slopes)  # (H, W)
    black = np.zeros((*steep.shape, 4))
    black[..., 3] = 0.7 * np.clip(steep / (np.quantile(steep, 0.98) or 1.0), 0, 1)
    return black
