"""Cuts a prompt into tokens, in chunks as long as the text encoder takes. Imports no torch.

A chunk has L tokens, 77 for CLIP: a start mark, up to L - 2 tokens of the prompt, an end mark and
padding. The cuts are those of A1111 (`sd_hijack_clip.py`): text of different weights is tokenised
apart, every part begins a chunk, and a chunk ends at a comma if one is near its end.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from sdpipe.prompt.syntax import parse
from sdpipe.prompt.tree import EMPTY, Text, Timing

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

COMMA_BACKTRACK = 20
"""A chunk ends at its last comma if that is among its last 20 tokens (A1111's default)."""


@dataclass(frozen=True)
class Token:
    """A token of a prompt.

    id: its number in the tokenizer's vocabulary.
    words, start, end: the text that was tokenised, and the token's place in it.
    vector: of a textual inversion with several vectors, which of them; 0 for other tokens.
    """

    id: int
    weight: float
    words: str
    start: int
    end: int
    vector: int = 0


@dataclass(frozen=True)
class Chunk:
    """The text encoder's input: L token ids, and a weight for each."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as chunks.

    variants: the chunks of each distinct text that the prompt has in the course of a run.
    schedule: the variant at each step; a single entry if the prompt never changes.
    empty: the chunk of the empty prompt.
    """

    variants: tuple[tuple[Chunk, ...], ...]
    schedule: tuple[int, ...]
    empty: Chunk

    def __len__(self) -> int:
        """The number of chunks of the longest variant."""
        return max(map(len, self.variants))

    def padded(self, variant: int, length: int) -> list[Chunk]:
        """The chunks of a variant, filled up to `length` with the empty prompt."""
        chunks = self.variants[variant]
        return [*chunks, *[self.empty] * (length - len(chunks))]


def tokenize_prompts(
    tokenizer: "CLIPTokenizer", prompts: Iterable[str], timing: Timing
) -> dict[str, TokenizedPrompt]:
    """Tokenises each distinct prompt once, for each step of a run.

    Raises:
        UsageError: a prompt breaks a rule of the syntax.
    """
    (empty,) = make_chunks(tokenizer, EMPTY)
    tokenized = {}
    for prompt in dict.fromkeys(prompts):
        texts, schedule = parse(prompt).schedule(timing)
        variants = tuple(tuple(make_chunks(tokenizer, text)) for text in texts)
        tokenized[prompt] = TokenizedPrompt(variants, schedule, empty)
    return tokenized


def make_chunks(tokenizer: "CLIPTokenizer", text: Text) -> list[Chunk]:
    """The chunks of a text; at least one."""
    return [_make_chunk(tokenizer, tokens) for tokens in split_tokens(tokenizer, text)]


def split_tokens(tokenizer: "CLIPTokenizer", text: Text) -> list[list[Token]]:
    """The tokens of each chunk of a text, without marks and padding; at least one chunk."""
    capacity = tokenizer.model_max_length - 2
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    tokenize = cache(partial(_tokenize, tokenizer, _multi_vector_tokens(tokenizer)))
    chunks: list[list[Token]] = []
    for number, part in enumerate(text, 1):
        tokens = [token for words, weight in part for token in tokenize(words, weight)]
        if not tokens and chunks and number == len(text):
            break  # nothing follows the last BREAK
        start = 0
        while True:
            end = _find_end(tokens, start, capacity, comma)
            chunks.append(tokens[start:end])
            if end == len(tokens):
                break
            start = end
    return chunks


def _tokenize(
    tokenizer: "CLIPTokenizer",
    multi_vector: Mapping[int, tuple[int, ...]],
    words: str,
    weight: float,
) -> list[Token]:
    found = tokenizer(words, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        Token(vector_id, weight, words, start, end, vector)
        for id_, (start, end) in zip(found.input_ids, found.offset_mapping, strict=True)
        for vector, vector_id in enumerate(multi_vector.get(id_, (id_,)))
    ]


def _multi_vector_tokens(tokenizer: "CLIPTokenizer") -> dict[int, tuple[int, ...]]:
    """Maps the first token id of each textual inversion to all its ids.

    The tokens are called word, word_1, word_2 and so on, as in diffusers.
    """
    added = tokenizer.added_tokens_encoder
    vectors = {}
    for word, first in added.items():
        others = itertools.takewhile(
            lambda id_: id_ is not None, (added.get(f"{word}_{n}") for n in itertools.count(1))
        )
        vectors[first] = (first, *others)
    return vectors


def _find_end(tokens: Sequence[Token], start: int, capacity: int, comma: int) -> int:
    """The end of the chunk that begins at `start`; never between vectors of one word."""
    end = start + capacity
    if end >= len(tokens):
        return len(tokens)
    last_tokens = range(max(start, end - COMMA_BACKTRACK), end)
    commas = [i for i in last_tokens if tokens[i].id == comma]
    if commas and tokens[end].id != comma:
        return commas[-1] + 1
    before_word = end - tokens[end].vector
    return before_word if before_word > start else end


def _make_chunk(tokenizer: "CLIPTokenizer", tokens: Sequence[Token]) -> Chunk:
    padding = tokenizer.model_max_length - 2 - len(tokens)
    ids = (tokenizer.bos_token_id, *(token.id for token in tokens), tokenizer.eos_token_id)
    weights = (1.0, *(token.weight for token in tokens), 1.0)
    return Chunk(
        (*ids, *[tokenizer.pad_token_id] * padding),
        (*weights, *[1.0] * padding),
    )
