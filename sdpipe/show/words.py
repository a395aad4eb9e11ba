"""A prompt's words and the tokens that each of them is cut into. Needs a tokenizer and no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

WORD_END = "</w>"  # ends the last token of a word in CLIP's vocabulary


@dataclass(frozen=True)
class Word:
    """A word of a prompt as the text encoder reads it.

    text: as the prompt has it. start: where in the prompt.
    first: the place of its first token among all, from 0, which is the start mark's.
    ids, tokens: its numbers in the vocabulary, and how that spells them.
    """

    text: str
    start: int
    first: int
    ids: tuple[int, ...]
    tokens: tuple[str, ...]


def split(tokenizer: "CLIPTokenizer", text: str) -> list[Word]:
    """All words of a text, also those for which the text encoder has no room."""
    found = tokenizer(text, return_offsets_mapping=True, verbose=False)
    ids, offsets = found.input_ids[1:-1], found.offset_mapping[1:-1]  # without the two marks
    tokens = tokenizer.convert_ids_to_tokens(ids)
    words, begun = [], 0
    for i, token in enumerate(tokens):
        whole = token.endswith(WORD_END) or ids[i] in tokenizer.added_tokens_decoder
        if whole or i + 1 == len(tokens):
            start, end = offsets[begun][0], offsets[i][1]
            own = slice(begun, i + 1)
            words.append(Word(text[start:end], start, begun + 1, (*ids[own],), (*tokens[own],)))
            begun = i + 1
    return words


def cut(text: str, words: list[Word], length: int) -> str:
    """The end of a text that `length` tokens, two of them marks, have no room for.

    Whole words, between spaces; "" where all fit.
    """
    lost = [word for word in words if word.first + len(word.ids) > length - 1]
    if not lost:
        return ""
    before = text[: lost[0].start + 1]
    return text[max(before.rfind(space) for space in " \t\n") + 1 :].strip()


def spelled(token: str) -> str:
    """A token as a person would write it; the bytes, in hexadecimal, where they are no letter.

    CLIP's vocabulary writes bytes as letters, as GPT-2's does: those that are no visible Latin-1
    sign are numbered on from 256.
    """
    letters = token.removesuffix(WORD_END)
    if letters.startswith("<|") and letters.endswith("|>"):
        return letters
    others = [b for b in range(256) if not (33 <= b <= 126 or 161 <= b <= 172 or b >= 174)]
    codes = (ord(c) if ord(c) < 256 else others[ord(c) - 256] for c in letters)
    try:
        raw = bytes(codes)
    except (ValueError, IndexError):  # a token that somebody added
        return letters
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return " ".join(f"0x{byte:02x}" for byte in raw)
