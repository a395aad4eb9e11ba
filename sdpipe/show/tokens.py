"""What the text encoder gets of a prompt: words cut into tokens, two marks, padding, and the rest.

Byte-pair encoding: Sennrich et al. (2016); on bytes, with a mark at the end of a word, as in CLIP
(Radford et al. 2021), whose length of 77 tokens Stable Diffusion keeps.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sdpipe.show import style, words
from sdpipe.show.style import MARGIN, WIDTH, Sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from transformers import CLIPTokenizer

HEIGHT, PAD, JOINT, GAP, LINE = 44, 9, 2, 8, 60  # of boxes; between them in a word, words, rows
ROOM = WIDTH - 2 * MARGIN
MOST_LOST = 40  # tokens that are drawn of what was cut off; the rest is counted


@dataclass(frozen=True)
class Tokens:
    """A prompt as tokens.

    ids: all L that the encoder gets, with the padding. tokens: how the vocabulary spells them.
    words: all of the prompt, also those that were cut off; `Word.first` counts as in `ids`.
    padding: how many of the ids, at the end, are padding.
    cut: the end of the prompt that has no room, in whole words; "" where all have.
    vocabulary: how many tokens there are to choose from.
    """

    prompt: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    words: tuple[words.Word, ...]
    padding: int
    cut: str
    vocabulary: int

    def numbers(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return asdict(self)


def tokens_data(tokenizer: "CLIPTokenizer", prompt: str) -> Tokens:
    """Cuts a prompt into tokens, as `prompt.tokenize` does, and keeps what has no room."""
    length = tokenizer.model_max_length
    ids = tokenizer(prompt, padding="max_length", truncation=True).input_ids
    found = words.split(tokenizer, prompt)
    return Tokens(
        prompt=prompt,
        ids=tuple(ids),
        tokens=tuple(tokenizer.convert_ids_to_tokens(ids)),
        words=tuple(found),
        padding=max(0, length - 2 - sum(len(word.ids) for word in found)),
        cut=words.cut(prompt, found, length),
        vocabulary=len(tokenizer),
    )


@style.drawing
def tokens_figure(data: Tokens) -> "Figure":
    """Draws every token in a box with its id, the tokens of a word side by side."""
    length = len(data.ids)
    seen, lost = _rows(data)
    below = seen.bottom + 72
    sheet = Sheet(
        below + (lost.bottom + 54 if lost.boxes else 0),
        style.quoted(data.prompt),
        f"{length} tokens for the text encoder, from a vocabulary of {data.vocabulary:,}: "
        f"start mark, {length - 2 - data.padding} of the prompt, end mark, "
        f"{data.padding} of padding",
    )
    canvas = sheet.canvas()
    seen.draw(sheet, canvas, sheet.top)
    _draw_places(sheet, canvas, data, sheet.top + seen.bottom + 22)
    if lost.boxes:
        heading = "what there is no room for, and the encoder never sees:"
        sheet.note(MARGIN, sheet.top + below + 8, heading)
        lost.draw(sheet, canvas, sheet.top + below + 22)
    return sheet.figure


@dataclass(frozen=True)
class _Box:
    """A token: what is written on it, its id, and where it is."""

    x: float
    y: float
    width: float
    upper: str
    lower: str
    color: str


class _Rows:
    """Boxes that are put one after the other, a word kept together where it fits into a row."""

    def __init__(self) -> None:
        self.boxes: list[_Box] = []
        self._x, self._y = float(MARGIN), 0.0

    @property
    def bottom(self) -> float:
        return self._y + HEIGHT

    def put(self, texts: list[tuple[str, str]], color: str) -> None:
        widths = [_width(*pair) for pair in texts]
        if self._x + sum(widths) + JOINT * len(widths) > MARGIN + ROOM + JOINT:
            self._new_row()
        for (upper, lower), width in zip(texts, widths, strict=True):
            if self._x + width > MARGIN + ROOM:  # a word that is longer than a row
                self._new_row()
            shown = style.fitted(upper, style.TEXT, ROOM - 2 * PAD)
            self.boxes.append(_Box(self._x, self._y, width, shown, lower, color))
            self._x += width + JOINT
        self._x += GAP - JOINT

    def draw(self, sheet: Sheet, canvas: "Axes", top: float) -> None:
        for box in self.boxes:
            y, middle = top + box.y, box.x + box.width / 2
            style.box(canvas, box.x, y, box.width, HEIGHT, facecolor=box.color, edgecolor="none")
            sheet.text(middle, y + 19, box.upper, ha="center", plain=True)
            sheet.note(middle, y + 35, box.lower, ha="center")

    def _new_row(self) -> None:
        if self._x > MARGIN:
            self._x, self._y = MARGIN, self._y + LINE


def _rows(data: Tokens) -> tuple[_Rows, _Rows]:
    """What the encoder gets, and what was cut off."""
    length, last = len(data.ids), len(data.ids) - data.padding - 1
    seen, lost = _Rows(), _Rows()
    seen.put([("start", str(data.ids[0]))], style.EDGE)
    left = MOST_LOST
    for i, word in enumerate(data.words):
        texts = [(words.spelled(t), str(n)) for t, n in zip(word.tokens, word.ids, strict=True)]
        room = max(0, length - 1 - word.first)
        if texts[:room]:
            seen.put(texts[:room], _tint(i))
        if texts[room:][:left]:
            lost.put(texts[room:][:left], style.PALE)
            left -= len(texts[room:][:left])
    seen.put([("end", str(data.ids[last]))], style.EDGE)
    if data.padding:
        seen.put([(f"padding x {data.padding}", str(data.ids[-1]))], style.PALE)
    more = sum(len(word.ids) for word in data.words) - (length - 2) - MOST_LOST
    if more > 0:
        lost.put([("and", f"{more} more")], style.PALE)
    return seen, lost


def _width(upper: str, lower: str) -> float:
    wide = max(style.text_width(upper, style.TEXT), style.text_width(lower, style.SMALL))
    return min(max(wide + 2 * PAD, 34), ROOM)


def _tint(word: int) -> str:
    return style.TINTS[word % len(style.TINTS)]


def _draw_places(sheet: Sheet, canvas: "Axes", data: Tokens, y: float) -> None:
    """All L places in a row, by what fills them."""
    length = len(data.ids)
    colors = [style.PALE] * length
    for i, word in enumerate(data.words):
        for place in range(word.first, min(word.first + len(word.ids), length - 1)):
            colors[place] = _tint(i)
    colors[0] = colors[length - 1 - data.padding] = style.FAINT
    for i, color in enumerate(colors):
        left = MARGIN + ROOM * i / length
        style.bar(canvas, left, y, ROOM / length - 1, 12, color)
    sheet.note(MARGIN, y + 28, "place 0")
    sheet.note(MARGIN + ROOM, y + 28, f"place {length - 1}", ha="right")
