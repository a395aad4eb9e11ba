"""Text to tokens, in chunks of the length that a text encoder takes. Needs no torch.

L is that length, 77 for CLIP, two marks among them.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdpipe.prompt.syntax import Text, parse

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

NEAR = 20
"""Tokens: where a comma is this near to the end of a chunk, what follows it goes to the next."""


@dataclass(frozen=True)
class Token:
    """A number of the vocabulary, its weight, and the letters of `words` that it stands for.

    part: which of the tokens it is that a textual inversion has for a word; 0 for any other.
    """

    id: int
    weight: float
    words: str
    start: int
    end: int
    part: int = 0


@dataclass(frozen=True)
class Chunk:
    """What goes through the text encoder at once: L token ids, and the weight of each."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


def chunk_count(tokenizer: "CLIPTokenizer", text: str, steps: int = 1) -> int:
    """How many chunks a prompt has, at the step at which it is longest."""
    prompt = parse(text)
    moments = range(steps if prompt.changes else 1)
    said = dict.fromkeys(prompt.at(step, steps) for step in moments)
    return max(len(chunks(tokenizer, text)) for text in said)


def chunks(tokenizer: "CLIPTokenizer", text: Text) -> list[Chunk]:
    """A text as the encoder gets it: start mark, up to L - 2 tokens, end mark, padding; and again.

    As A1111 does it (`sd_hijack_clip.py`): pieces of different weight are cut into tokens apart,
    every part begins a chunk, and a chunk rather ends at a comma than soon after one.
    """
    return [_chunk(tokenizer, tokens) for tokens in tokens_of(tokenizer, text)]


def tokens_of(tokenizer: "CLIPTokenizer", text: Text) -> list[list[Token]]:
    """The tokens of each chunk, without marks and padding; at least one chunk."""
    room = tokenizer.model_max_length - 2
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    found: list[list[Token]] = []
    for number, part in enumerate(text, 1):
        tokens = [token for words, weight in part for token in _tokens(tokenizer, words, weight)]
        if not tokens and found and number == len(text):
            break  # nothing comes after the last BREAK
        start = 0
        while True:
            end = _end(tokens, start, room, comma)
            found.append(tokens[start:end])
            if end == len(tokens):
                break
            start = end
    return found


def _tokens(tokenizer: "CLIPTokenizer", words: str, weight: float) -> list[Token]:
    cut = tokenizer(words, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    places = zip(cut.input_ids, cut.offset_mapping, strict=True)
    several = _several(tokenizer)
    return [
        Token(own, weight, words, start, end, part)
        for i, (start, end) in places
        for part, own in enumerate(several.get(i, (i,)))
    ]


def _several(tokenizer: "CLIPTokenizer") -> dict[int, tuple[int, ...]]:
    """The tokens for which the first one of a textual inversion stands, by their names.

    Those are word, word_1, word_2 and so on, as diffusers names them too.
    """
    added = tokenizer.added_tokens_encoder
    found = {}
    for word, first in added.items():
        more = itertools.takewhile(
            lambda i: i is not None, (added.get(f"{word}_{n}") for n in itertools.count(1))
        )
        found[first] = (first, *more)
    return found


def _end(tokens: Sequence[Token], start: int, room: int, comma: int) -> int:
    """Where a chunk ends that begins at `start`; never among the tokens of a textual inversion."""
    end = start + room
    if end >= len(tokens):
        return len(tokens)
    near = range(max(start, end - NEAR), end)
    commas = [i for i in near if tokens[i].id == comma]
    if commas and tokens[end].id != comma:
        return commas[-1] + 1
    whole = end - tokens[end].part
    return whole if whole > start else end


def _chunk(tokenizer: "CLIPTokenizer", tokens: Sequence[Token]) -> Chunk:
    padding = tokenizer.model_max_length - 2 - len(tokens)
    ids = (tokenizer.bos_token_id, *(token.id for token in tokens), tokenizer.eos_token_id)
    weights = (1.0, *(token.weight for token in tokens), 1.0)
    return Chunk(
        (*ids, *[tokenizer.pad_token_id] * padding),
        (*weights, *[1.0] * padding),
    )
