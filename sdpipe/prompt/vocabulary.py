"""The words that a model was trained on, and a warning about the other words of a prompt.

A model that was trained from nothing knows the words of its training captions and no others. One
without a list of them, such as v1-4, may know any word. `sdpipe.loading.vocabulary` reads the list.
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from sdpipe.errors import warn

_CANDIDATES = 5  # similar words, of which names decide
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")


@dataclass(frozen=True)
class Vocabulary:
    """What a model was trained on.

    names: the things that it draws.
    words: all words of its captions, those of the names among them, in lower case.
    """

    names: tuple[str, ...]
    words: frozenset[str]

    @classmethod
    def from_captions(cls, names: Iterable[str], captions: Iterable[str]) -> Self:
        """Collects the words of the names and of the captions."""
        names = tuple(names)
        return cls(names, frozenset(w for text in (*names, *captions) for w in split_words(text)))

    def merge(self, other: "Vocabulary") -> "Vocabulary":
        """Adds the names and words of a further training."""
        names = tuple(dict.fromkeys(self.names + other.names))
        return Vocabulary(names, self.words | other.words)

    def unknown(self, prompt: str, added_tokens: Iterable[str] = ()) -> dict[str, str | None]:
        """The words of a prompt that are not in the vocabulary, each with a similar word that is.

        added_tokens: the words of textual inversions, which count as known.
        """
        words = split_words(prompt, added_tokens)
        return {w: self._suggest(w, words) for w in dict.fromkeys(words) if w not in self.words}

    def find_names(self, words: str) -> list[str]:
        """The names that have all of these words, the shortest first; without words, all names."""
        wanted = set(words.lower().split())
        found = [name for name in self.names if wanted <= set(name.split())]
        return sorted(found, key=lambda name: (len(name.split()), name)) if wanted else found

    def suggest_names(self, words: str) -> str | None:
        """The nearest spelling of these words for which there are names; None if there is none."""
        known = sorted({word for name in self.names for word in name.split()})
        nearest = " ".join(next(iter(_similar(w, known)), w) for w in words.lower().split())
        return nearest if self.find_names(nearest) else None

    def to_json(self) -> dict[str, Any]:
        """The content of a model's `words.json`."""
        return {"names": list(self.names), "words": self._sorted_words}

    @cached_property
    def _sorted_words(self) -> list[str]:
        return sorted(self.words)

    @cached_property
    def _words_of_names(self) -> list[set[str]]:
        return [set(split_words(name)) for name in self.names]

    def _suggest(self, word: str, words: Iterable[str]) -> str | None:
        """The similar word that shares a name with most of the others: "moon cace", moon cake."""

        def rank(candidate: str) -> tuple[int, bool]:
            together = {candidate, *words}
            names = (name for name in self._words_of_names if candidate in name)
            shared = max((len(together & name) for name in names), default=0)
            return shared, sorted(candidate) == sorted(word)  # transposed letters

        return max(_similar(word, self._sorted_words), key=rank, default=None)


def split_words(text: str, added_tokens: Iterable[str] = ()) -> list[str]:
    """The words of a prompt or caption in lower case, without digits, signs and added tokens."""
    return [
        word.lower() for part in _split(text, added_tokens)[::2] for word in _WORD.findall(part)
    ]


def warn_unknown_words(
    vocabulary: Vocabulary,
    prompts: Iterable[str],
    model: str,
    names_command: str,
    added_tokens: Iterable[str] = (),
) -> None:
    """Warns, with an `SdpipeWarning` for each prompt, of words that the model was not trained on.

    names_command: the command that lists the names in the vocabulary.
    added_tokens: the words of textual inversions, which count as known.
    """
    added_tokens = tuple(added_tokens)
    for prompt in prompts:
        unknown = vocabulary.unknown(prompt, added_tokens)
        if not unknown:
            continue
        if None not in unknown.values():
            remedy = f'; did you mean "{_replace_words(prompt, unknown, added_tokens)}"?'
        elif vocabulary.names:
            remedy = f" and draws the rest of the prompt; `{names_command}` lists what it draws."
        else:
            remedy = " and draws the rest of the prompt."
        *words, last = (f'"{word}"' for word in unknown)
        listed = f"{', '.join(words)} or {last}" if words else last
        warn(f"{model} has never read {listed}{remedy}")


def _similar(word: str, known: list[str]) -> list[str]:
    """Known words that differ in about one letter, the most similar first."""
    ratio = min(max(0.6, 0.99 - 1 / len(word)), 0.85)  # of difflib; 1 - 1/n: one of n letters
    return difflib.get_close_matches(word, known, _CANDIDATES, ratio)


def _split(text: str, added_tokens: Iterable[str]) -> list[str]:
    """Plain text at even places, BREAK and added tokens at odd places."""
    longest_first = sorted(map(re.escape, added_tokens), key=len, reverse=True)
    separator = "|".join([*longest_first, r"\bBREAK\b"])
    return re.split(f"({separator})", unicodedata.normalize("NFC", text))


def _replace_words(
    text: str, replacements: dict[str, str | None], added_tokens: Iterable[str]
) -> str:
    def replace(found: re.Match[str]) -> str:
        return replacements.get(found[0].lower()) or found[0]

    parts = _split(text, added_tokens)
    parts[::2] = [_WORD.sub(replace, part) for part in parts[::2]]
    return "".join(parts)
