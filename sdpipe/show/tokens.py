"""The tokens of a prompt: words split into tokens, marks and padding, chunk by chunk.

Byte-pair encoding: Sennrich et al. (2016); on bytes, with a mark at the end of a word, as in CLIP
(Radford et al. 2021). Stable Diffusion keeps CLIP's length of 77 tokens, and encodes longer prompts
in chunks. Needs a tokenizer and no torch.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sdpipe.prompt.chunks import make_chunks, split_tokens
from sdpipe.prompt.syntax import MAX_STEP, parse
from sdpipe.prompt.tree import Text
from sdpipe.show import style
from sdpipe.show.style import CROSS, MARGIN, WIDTH, Sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from transformers import CLIPTokenizer

HEIGHT, PAD = 44, 9  # of a box: its height, the room beside its text
JOINT, GAP, LINE = 2, 8, 60  # between tokens of a word, between words, from row to row
ROOM = WIDTH - 2 * MARGIN
BELOW = 72  # the rows of a chunk: the bar of its positions
MOST_CHUNKS = 8  # that are drawn; the rest is counted
WORD_END = "</w>"  # ends the last token of a word in CLIP's vocabulary


@dataclass(frozen=True)
class Word:
    """A word of a prompt as the text encoder reads it.

    text: as in the prompt. weight: the factor of its embedding.
    first: the position of its first token; the start mark has position 0.
    ids, tokens: its ids in the vocabulary, and their spellings there.
    """

    text: str
    weight: float
    first: int
    ids: tuple[int, ...]
    tokens: tuple[str, ...]

    @property
    def positions(self) -> range:
        """The positions of its tokens."""
        return range(self.first, self.first + len(self.ids))


def split_words(tokenizer: "CLIPTokenizer", text: Text) -> list[Word]:
    """The words of a text in all its chunks; a word across two chunks counts as two."""
    words = []
    for number, chunk in enumerate(split_tokens(tokenizer, text)):
        tokens = tokenizer.convert_ids_to_tokens([token.id for token in chunk])
        begun = 0
        for i, token in enumerate(tokens):
            last = i + 1 == len(tokens)
            whole = token.endswith(WORD_END) or chunk[i].id in tokenizer.added_tokens_decoder
            if last or (whole and chunk[i + 1].vector == 0):
                span = chunk[begun : i + 1]
                words.append(
                    Word(
                        span[0].words[span[0].start : span[-1].end],
                        span[0].weight,
                        number * tokenizer.model_max_length + 1 + begun,
                        tuple(token.id for token in span),
                        tuple(tokens[begun : i + 1]),
                    )
                )
                begun = i + 1
    return words


def decode_token(token: str) -> str:
    """The text of a token; its bytes in hexadecimal if they are not whole characters.

    CLIP's vocabulary writes bytes as letters, as GPT-2's does: bytes that are not visible Latin-1
    characters have the code points from 256 on.
    """
    letters = token.removesuffix(WORD_END)
    if letters.startswith("<|") and letters.endswith("|>"):
        return letters
    invisible = [b for b in range(256) if not (33 <= b <= 126 or 161 <= b <= 172 or b >= 174)]
    codes = (ord(c) if ord(c) < 256 else invisible[ord(c) - 256] for c in letters)
    try:
        raw = bytes(codes)
    except (ValueError, IndexError):  # an added token
        return letters
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return " ".join(f"0x{byte:02x}" for byte in raw)


@dataclass(frozen=True)
class Tokens:
    """A prompt as tokens; of a prompt that changes over the steps, the first version.

    length: L, the number of tokens of a chunk. ids: L for each chunk, with marks and padding.
    tokens: the spelling of each id in the vocabulary.
    padding: for each chunk, the number of ids at its end that are padding.
    changes: whether the prompt changes at later steps.
    vocabulary: the size of the vocabulary.
    """

    prompt: str
    length: int
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    words: tuple[Word, ...]
    padding: tuple[int, ...]
    changes: bool
    vocabulary: int

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return asdict(self)

    def words_of(self, chunk: int) -> list[Word]:
        """The words of a chunk, counted from 0."""
        return [word for word in self.words if word.first // self.length == chunk]


def tokens_data(tokenizer: "CLIPTokenizer", prompt: str) -> Tokens:
    """Splits a prompt into the tokens that the text encoder reads.

    Raises:
        UsageError: the prompt breaks a rule of the syntax.
    """
    length, read = tokenizer.model_max_length, parse(prompt)
    text = read.at(0, MAX_STEP)
    ids = [i for chunk in make_chunks(tokenizer, text) for i in chunk.ids]
    words = split_words(tokenizer, text)
    lengths = [0] * (len(ids) // length)
    for word in words:
        lengths[word.first // length] += len(word.ids)
    return Tokens(
        prompt=prompt,
        length=length,
        ids=tuple(ids),
        tokens=tuple(tokenizer.convert_ids_to_tokens(ids)),
        words=tuple(words),
        padding=tuple(length - 2 - tokens for tokens in lengths),
        changes=read.is_scheduled,
        vocabulary=len(tokenizer),
    )


@style.with_style
def tokens_figure(data: Tokens) -> "Figure":
    """Draws each token in a box with its id and weight."""
    drawn = [_rows(data, chunk) for chunk in range(len(data.padding))][:MOST_CHUNKS]
    more = len(data.padding) - len(drawn)
    below = sum(rows.bottom + BELOW for rows in drawn)
    sheet = Sheet(below + (24 if more else 0), style.quote(data.prompt), _about(data))
    canvas, top = sheet.canvas(), float(sheet.top)
    for chunk, rows in enumerate(drawn):
        rows.draw(sheet, canvas, top)
        _draw_positions(sheet, canvas, data, chunk, top + rows.bottom + 22)
        top += rows.bottom + BELOW
    if more:
        sheet.note(MARGIN, top, f"and {more} more chunks of {data.length} tokens")
    return sheet.figure


def _about(data: Tokens) -> str:
    count, padding = len(data.padding), sum(data.padding)
    of_prompt = sum(len(word.ids) for word in data.words)
    parts = (
        f" (vocabulary: {data.vocabulary:,}): start mark, {of_prompt} of the prompt, end mark, "
        f"{padding} of padding"
        if count == 1
        else f" in {count} chunks: {of_prompt} of the prompt, {2 * count} marks, "
        f"{padding} of padding"
    )
    letters = any(decode_token(t).startswith("0x") for word in data.words for t in word.tokens)
    more = "; 0x: bytes of a letter" * letters
    first = "at the first step: " if data.changes else ""
    weights = f"; {CROSS} a weight" if any(word.weight != 1 for word in data.words) else ""
    return f"{first}{len(data.ids)} tokens for the text encoder{parts}{more}{weights}"


@dataclass(frozen=True)
class _Box:
    """A box of a token: its place, its text, and the line below."""

    x: float
    y: float
    width: float
    upper: str
    lower: str
    color: str


class _Rows:
    """Boxes in rows; the tokens of a word stay in one row if they fit."""

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
            if self._x + width > MARGIN + ROOM:  # a word longer than a row
                self._new_row()
            shown = style.shorten(upper, style.TEXT, ROOM - 2 * PAD)
            self.boxes.append(_Box(self._x, self._y, width, shown, lower, color))
            self._x += width + JOINT
        self._x += GAP - JOINT

    def draw(self, sheet: Sheet, canvas: "Axes", top: float) -> None:
        for box in self.boxes:
            y, middle = top + box.y, box.x + box.width / 2
            style.draw_box(
                canvas, box.x, y, box.width, HEIGHT, facecolor=box.color, edgecolor="none"
            )
            sheet.text(middle, y + 19, box.upper, ha="center", plain=True)
            sheet.note(middle, y + 35, box.lower, ha="center")

    def _new_row(self) -> None:
        if self._x > MARGIN:
            self._x, self._y = MARGIN, self._y + LINE


def _rows(data: Tokens, chunk: int) -> _Rows:
    """The boxes of one chunk."""
    ids = data.ids[chunk * data.length : (chunk + 1) * data.length]
    padding = data.padding[chunk]
    rows = _Rows()
    rows.put([("start", str(ids[0]))], style.EDGE)
    for i, word in enumerate(data.words_of(chunk)):
        weight = "" if word.weight == 1 else f" {CROSS} {word.weight:.3g}"
        both = zip(word.tokens, word.ids, strict=True)
        rows.put([(decode_token(t), f"{n}{weight}") for t, n in both], _tint(i))
    rows.put([("end", str(ids[-1 - padding]))], style.EDGE)
    if padding:
        rows.put([(f"padding {CROSS} {padding}", str(ids[-1]))], style.PALE)
    return rows


def _width(upper: str, lower: str) -> float:
    wide = max(style.text_width(upper, style.TEXT), style.text_width(lower, style.SMALL))
    return min(max(wide + 2 * PAD, 34), ROOM)


def _tint(word: int) -> str:
    return style.TINTS[word % len(style.TINTS)]


def _draw_positions(sheet: Sheet, canvas: "Axes", data: Tokens, chunk: int, y: float) -> None:
    """Draws the L positions of a chunk as a bar, coloured by their tokens."""
    length = data.length
    first = chunk * length
    colors = [style.PALE] * length
    for i, word in enumerate(data.words_of(chunk)):
        begin = word.first - first
        colors[begin : begin + len(word.ids)] = [_tint(i)] * len(word.ids)
    colors[0] = colors[length - 1 - data.padding[chunk]] = style.FAINT
    for i, color in enumerate(colors):
        left = MARGIN + ROOM * i / length
        style.draw_bar(canvas, left, y, ROOM / length - 1, 12, color)
    sheet.note(MARGIN, y + 28, f"position {first}")
    sheet.note(MARGIN + ROOM, y + 28, f"position {first + length - 1}", ha="right")
