"""The cross-attention of each word of a prompt, as maps over the image.

Tang et al. (2023), "What the DAAM: interpreting Stable Diffusion using cross attention".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sdpipe.denoise import Step
from sdpipe.latents import vae_factor
from sdpipe.prompt.syntax import parse
from sdpipe.show import style
from sdpipe.show.checks import check_attention
from sdpipe.show.cross_attention import AttentionSums, record_attention
from sdpipe.show.inputs import describe_sampling, resolve_one
from sdpipe.show.style import MARGIN, WIDTH, Sheet
from sdpipe.show.tokens import Word, split_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sdpipe.pipeline import Pipeline
    from sdpipe.settings import ResolvedSettings


Place = tuple[float, float, float, float]  # x, y, width and height on a sheet

MOST_PADDING = 16  # tokens of it that are drawn one by one
MARKS = ("start mark", "words", "end mark", "padding")
COLORS = dict(zip(MARKS, (style.FAINT, style.BLUE, style.INK, style.GREEN), strict=True))


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """The cross-attention between an image and each token of its prompt.

    attention: the share of each token in the attention at each pixel of the latents, (L, h, w).
        The order is start mark, words, end mark, padding, for each chunk. Over the tokens it sums
        to 1 at each pixel, but for the rounding of `AttentionSums.mean`.
    parts: the positions of the tokens of each kind in `MARKS`.
    """

    settings: "ResolvedSettings"
    image: Image.Image
    words: list[Word]
    attention: np.ndarray[Any, Any]
    parts: Mapping[str, Sequence[int]]

    def map(self, tokens: Sequence[int]) -> np.ndarray[Any, Any]:
        """The share of several tokens together in the attention at each pixel, (h, w)."""
        return np.asarray(self.attention[list(tokens)].sum(0))

    def share(self, tokens: Sequence[int]) -> float:
        """The share of several tokens in all attention."""
        return float(self.map(tokens).mean())

    def among_words(self, word: Word) -> float:
        """The share of a word in the attention to all words."""
        return self.share(word.positions) / (self.share(self.parts["words"]) or 1.0)

    def most_padding(self) -> list[int]:
        """The `MOST_PADDING` tokens of padding with the most attention, in order of position."""
        ranked = sorted(self.parts["padding"], key=lambda token: -self.share([token]))
        return sorted(ranked[:MOST_PADDING])

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain JSON types."""

        def share_and_map(tokens: Sequence[int]) -> dict[str, Any]:
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
                    **share_and_map(word.positions),
                }
                for word in self.words
            ],
            "parts": {
                name: {"positions": list(tokens), **share_and_map(tokens)}
                for name, tokens in self.parts.items()
            },
            "padding": [
                {"position": token, **share_and_map([token])} for token in self.most_padding()
            ],
        }


def attention_data(
    pipe: "Pipeline",
    prompt: str,
    *,
    on_step: Callable[[Step], object] | None = None,
    **settings: Any,
) -> AttentionMaps:
    """Draws an image as `Pipeline.generate` does, bit for bit, and records its attention.

    Raises:
        UsageError: a value breaks its rule, g is 0, or the prompt has no words or changes over the
            steps.
    """
    run = resolve_one(pipe, prompt, **settings)
    prompt = run.prompt
    check_attention(prompt, run.g)
    sums, parts = AttentionSums(), pipe.components
    recording = pipe.with_parts(unet=record_attention(parts.unet, sums))
    result = recording.generate(prompt, on_step=on_step, **{**settings, "seed": run.seed})
    image, factor = result.images[0], vae_factor(parts.vae)
    mean = sums.mean(image.height // factor, image.width // factor)  # (L, h, w)
    words = split_words(parts.tokenizer, parse(prompt).at(0, 1))
    kinds = classify_tokens(words, parts.tokenizer.model_max_length, len(mean))
    return AttentionMaps(result.settings[0], image, words, mean.numpy(), kinds)


def classify_tokens(words: Sequence[Word], length: int, count: int) -> dict[str, list[int]]:
    """The positions of each kind in `MARKS`, of `count` tokens in chunks of `length`."""
    of_words = [token for word in words for token in word.positions]
    starts = list(range(0, count, length))
    ends = [
        start + 1 + sum(start < token < start + length for token in of_words) for start in starts
    ]
    marks = {*starts, *of_words, *ends}
    padding = [token for token in range(count) if token not in marks]
    return dict(zip(MARKS, (starts, of_words, ends, padding), strict=True))


@style.with_style
def attention_figure(data: AttentionMaps) -> "Figure":
    """Draws the image, the map of each word, and the share of words in all attention."""
    aspect = data.image.height / data.image.width
    of_words, words_end = style.grid_cells(len(data.words) + 1, aspect, 68)
    of_parts, parts_end = style.grid_cells(6, aspect, 46)
    padding = data.most_padding()
    of_padding, padding_end = style.grid_cells(8 if len(padding) <= 8 else 16, aspect, 28, across=8)
    run = data.settings
    height = words_end + 74 + 48 + parts_end + (32 + padding_end if padding else 0)
    sheet = Sheet(
        height,
        style.quote(run.prompt),
        f"where each word acted: cross-attention, averaged over heads, layers and steps; "
        f"seed {run.seed}, {describe_sampling(run)}",
    )
    drawn = _Maps(sheet, _outlines(data.image))
    top = float(sheet.top)
    _draw_words(drawn, _lower(of_words, top), data)
    top += words_end + 74
    _draw_parts(drawn, top, _lower(of_parts, top + 48), data)
    top += 48 + parts_end + 18
    if padding:
        _draw_padding(drawn, top, _lower(of_padding, top + 14), data, padding)
    return sheet.figure


class _Maps:
    """Draws maps on a sheet, each below the outlines of the image."""

    def __init__(self, sheet: Sheet, lines: np.ndarray[Any, Any]) -> None:
        self.sheet, self._lines = sheet, lines

    def draw(self, place: Place, shares: np.ndarray[Any, Any], most: float) -> "Axes":
        looks = {"interpolation": "bicubic", "extent": (0, 1, 0, 1), **style.heat_colors(most)}
        axes = self.sheet.image(*place, shares, **looks)
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


def _draw_words(drawn: _Maps, places: Sequence[Place], data: AttentionMaps) -> None:
    """Draws the image and the map of each word, all on one scale."""
    sheet, maps = drawn.sheet, [data.map(word.positions) for word in data.words]
    most = max(float(map_.max()) for map_ in maps) or 1.0
    (x, y, w, h), *places = places
    sheet.image(x, y, w, h, data.image)
    sheet.text(x, y + h + 20, "the image")
    for place, word, map_ in zip(places, data.words, maps, strict=True):
        axes = drawn.draw(place, map_, most)
        x, y, w, h = place
        sheet.text(x, y + h + 20, style.shorten(word.text, style.TEXT, w), plain=True)
        sheet.note(x, y + h + 37, f"{_percent(data.among_words(word))} among words")
        sheet.note(x, y + h + 53, f"at most {_percent(float(map_.max()))}")
    y += h + 68 + 12
    sheet.note(MARGIN, y, "the share of a word in the attention at each pixel, on one scale")
    drawn.scale(MARGIN, y + 8, WIDTH - 2 * MARGIN, axes, most)


def _draw_parts(drawn: _Maps, y: float, places: Sequence[Place], data: AttentionMaps) -> None:
    """Draws the shares of words, marks and padding in all attention: a bar, and maps."""
    sheet, canvas, x = drawn.sheet, drawn.sheet.canvas(), float(MARGIN)
    sheet.text(MARGIN, y + 4, "all attention")
    parts = {name: tokens for name, tokens in data.parts.items() if tokens}
    whole = sum(map(data.share, parts.values()))
    for name, tokens in parts.items():
        width = data.share(tokens) / whole * (WIDTH - 2 * MARGIN)
        style.draw_bar(canvas, x, y + 14, max(width - 1, 0.5), 20, COLORS[name])
        x += width
    for (name, tokens), place in zip(parts.items(), places, strict=False):
        axes = drawn.draw(place, data.map(tokens), 1.0)
        x, top, _, h = place
        style.draw_bar(canvas, x, top + h + 11, 9, 9, COLORS[name])
        sheet.text(x + 15, top + h + 20, name)
        sheet.note(x + 15, top + h + 37, _percent(data.share(tokens)))
    x, top, *_ = places[4]
    sheet.note(x, top + 10, "of the attention at a pixel")
    drawn.scale(x, top + 18, WIDTH - MARGIN - x, axes, 1.0)


def _draw_padding(
    drawn: _Maps, y: float, places: Sequence[Place], data: AttentionMaps, padding: Sequence[int]
) -> None:
    """Draws the maps of the padding with the most attention, which carries meaning as well."""
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


def _outlines(image: Image.Image) -> np.ndarray[Any, Any]:
    """The edges of an image as dark lines on a transparent layer, (H, W, 4)."""
    slopes = np.gradient(np.asarray(image.convert("L"), dtype=np.float64))
    steep = np.hypot(*slopes)  # (H, W)
    black = np.zeros((*steep.shape, 4))
    black[..., 3] = 0.7 * np.clip(steep / (np.quantile(steep, 0.98) or 1.0), 0, 1)
    return black
