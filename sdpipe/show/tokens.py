"""What the text encoder gets of a prompt: words cut into tokens, marks, padding, chunk by chunk.

Byte-pair encoding: Sennrich et al. (2016); on bytes, with a mark at the end of a word, as in CLIP
(Radford et al. 2021), whose length of 77 tokens Stable Diffusion keeps: what is longer is encoded
in chunks.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sdpipe.prompt.chunks import make_chunks
from sdpipe.prompt.syntax import MAX_STEP, parse
from sdpipe.show import style
from sdpipe.show.style import CROSS, MARGIN, WIDTH, Sheet
from sdpipe.show.words import Word, spelled, split

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from transformers import CLIPTokenizer

HEIGHT, PAD, JOINT, GAP, LINE = 44, 9, 2, 8, 60  # of boxes; between them in a word, words, rows
ROOM = WIDTH - 2 * MARGIN
BELOW = 72  # the rows of a chunk are its places
MOST_CHUNKS = 8  # that are drawn; the rest is counted


@dataclass(frozen=True)
class Tokens:
    """A prompt as tokens; one that changes over the steps, as it is at the first.

    length: L, what the encoder takes at once. ids: all of them, L for each chunk, with the padding.
    tokens: how the vocabulary spells them. words: `Word.first` counts as in `ids`.
    padding: how many of the ids, at the end of each chunk, are padding.
    changes: whether the prompt is another one at later steps.
    vocabulary: how many tokens there are to choose from.
    """

    prompt: str
    length: int
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    words: tuple[Word, ...]
    padding: tuple[int, ...]
    changes: bool
    vocabulary: int

    def numbers(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return asdict(self)

    def words_of(self, chunk: int) -> list[Word]:
        """The words of a chunk, counted from 0."""
        return [word for word in self.words if word.first // self.length == chunk]


def tokens_data(tokenizer: "CLIPTokenizer", prompt: str) -> Tokens:
    """Cuts a prompt into tokens, as they go through the text encoder.

    Raises:
        UsageError: the prompt breaks a rule of the syntax.
    """
    length, read = tokenizer.model_max_length, parse(prompt)
    text = read.at(0, MAX_STEP)
    ids = [i for chunk in make_chunks(tokenizer, text) for i in chunk.ids]
    found = split(tokenizer, text)
    used = [0] * (len(ids) // length)
    for word in found:
        used[word.first // length] += len(word.ids)
    return Tokens(
        prompt=prompt,
        length=length,
        ids=tuple(ids),
        tokens=tuple(tokenizer.convert_ids_to_tokens(ids)),
        words=tuple(found),
        padding=tuple(length - 2 - tokens for tokens in used),
        changes=read.is_scheduled,
        vocabulary=len(tokenizer),
    )


@style.drawing
def tokens_figure(data: Tokens) -> "Figure":
    """Draws every token in a box with its id and weight, the tokens of a word side by side."""
    drawn = [_rows(data, chunk) for chunk in range(len(data.padding))][:MOST_CHUNKS]
    more = len(data.padding) - len(drawn)
    below = sum(rows.bottom + BELOW for rows in drawn)
    sheet = Sheet(below + (24 if more else 0), style.quoted(data.prompt), _about(data))
    canvas, top = sheet.canvas(), float(sheet.top)
    for chunk, rows in enumerate(drawn):
        rows.draw(sheet, canvas, top)
        _draw_places(sheet, canvas, data, chunk, top + rows.bottom + 22)
        top += rows.bottom + BELOW
    if more:
        sheet.note(MARGIN, top, f"and {more} more chunks of {data.length} tokens")
    return sheet.figure


def _about(data: Tokens) -> str:
    count, padding = len(data.padding), sum(data.padding)
    own = sum(len(word.ids) for word in data.words)
    parts = (
        f", of {data.vocabulary:,} it knows: start mark, {own} of the prompt, end mark, "
        f"{padding} of padding"
        if count == 1
        else f" in {count} chunks: {own} of the prompt, {2 * count} marks, {padding} of padding"
    )
    letters = any(spelled(t).startswith("0x") for word in data.words for t in word.tokens)
    more = "; 0x: bytes of a letter" * letters
    first = "at the first step: " if data.changes else ""
    weights = f"; {CROSS} a weight" if any(word.weight != 1 for word in data.words) else ""
    return f"{first}{len(data.ids)} tokens for the text encoder{parts}{more}{weights}"


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


def _rows(data: Tokens, chunk: int) -> _Rows:
    """What the encoder gets in one go."""
    ids = data.ids[chunk * data.length : (chunk + 1) * data.length]
    padding = data.padding[chunk]
    rows = _Rows()
    rows.put([("start", str(ids[0]))], style.EDGE)
    for i, word in enumerate(data.words_of(chunk)):
        weight = "" if word.weight == 1 else f" {CROSS} {word.weight:.3g}"
        both = zip(word.tokens, word.ids, strict=True)
        rows.put([(spelled(t), f"{n}{weight}") for t, n in both], _tint(i))
    rows.put([("end", str(ids[-1 - padding]))], style.EDGE)
    if padding:
        rows.put([(f"padding {CROSS} {padding}", str(ids[-1]))], style.PALE)
    return rows


def _width(upper: str, lower: str) -> float:
    wide = max(style.text_width(upper, style.TEXT), style.text_width(lower, style.SMALL))
    return min(max(wide + 2 * PAD, 34), ROOM)


def _tint(word: int) -> str:
    return style.TINTS[word % len(style.TINTS)]


def _draw_places(sheet: Sheet, canvas: "Axes", data: Tokens, chunk: int, y: float) -> None:
    """All L places of a chunk in a row, by what fills them."""
    length = data.length
    first = chunk * length
    colors = [style.PALE] * length
    for i, word in enumerate(data.words_of(chunk)):
        begin = word.first - first
        colors[begin : begin + len(word.ids)] = [_tint(i)] * len(word.ids)
    colors[0] = colors[length - 1 - data.padding[chunk]] = style.FAINT
    for i, color in enumerate(colors):
        left = MARGIN + ROOM * i / length
        style.bar(canvas, left, y, ROOM / length - 1, 12, color)
    sheet.note(MARGIN, y + 28, f"place {first}")
    sheet.note(MARGIN + ROOM, y + 28, f"place {first + length - 1}", ha="right")
