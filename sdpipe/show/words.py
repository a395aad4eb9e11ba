"""A prompt's words and the tokens that each of them is cut into. Needs a tokenizer and no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdpipe.prompt.chunks import split_tokens
from sdpipe.prompt.tree import Text

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

WORD_END = "</w>"  # ends the last token of a word in CLIP's vocabulary


@dataclass(frozen=True)
class Word:
    """A word of a prompt as the text encoder reads it.

    text: as the prompt has it. weight: what its embedding is multiplied by.
    first: the place of its first token among all, from 0, which is the start mark's.
    ids, tokens: its numbers in the vocabulary, and how that spells them.
    """

    text: str
    weight: float
    first: int
    ids: tuple[int, ...]
    tokens: tuple[str, ...]

    @property
    def places(self) -> range:
        """The places of its tokens."""
        return range(self.first, self.first + len(self.ids))


def split(tokenizer: "CLIPTokenizer", text: Text) -> list[Word]:
    """All words of a text, in all of its chunks; one that is parted by an end of a chunk is two."""
    words = []
    for number, chunk in enumerate(split_tokens(tokenizer, text)):
        tokens = tokenizer.convert_ids_to_tokens([token.id for token in chunk])
        begun = 0
        for i, token in enumerate(tokens):
            last = i + 1 == len(tokens)
            whole = token.endswith(WORD_END) or chunk[i].id in tokenizer.added_tokens_decoder
            if last or (whole and chunk[i + 1].vector == 0):
                own = chunk[begun : i + 1]
                words.append(
                    Word(
                        own[0].words[own[0].start : own[-1].end],
                        own[0].weight,
                        number * tokenizer.model_max_length + 1 + begun,
                        tuple(token.id for token in own),
                        tuple(tokens[begun : i + 1]),
                    )
                )
                begun = i + 1
    return words


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
