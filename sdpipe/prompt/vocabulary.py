"""The words that a model was trained on, and a warning about the other words of a prompt.

A model that was trained from nothing knows the words of its training captions and no others. One
without a list of them, such as v1-4, may know any word. `sdpipe.loading.vocabulary` reads the list.

Words are runs of letters, digits and other signs that the tokenizer makes a token of each.
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from typing import Any, Self

from sdpipe.errors import warn
from sdpipe.prompt.habits import plain_spelling
from sdpipe.prompt.syntax import parse

_CANDIDATES = 5  # similar words, of which names decide
MAX_SUGGESTED = 6  # unknown words of a prompt for which similar ones are looked up, and listed
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*|\S")
_LOOKS = re.compile("[\ufe0e\ufe0f]|(?<=[^\x00-\x7f])[\U0001f3fb-\U0001f3ff]")
"""What chooses among the looks of a glyph: in black or colour, the tone of the skin."""
_ZERO_WIDTH = re.compile("[\xad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")


@dataclass(frozen=True)
class Vocabulary:
    """What a model was trained on.

    names: the things that it draws.
    words: all words of its captions, those of the names among them, in lower case.
    glyphs: the names in another script, "red apple" of its emoji.
    """

    names: tuple[str, ...]
    words: frozenset[str]
    glyphs: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_captions(
        cls, names: Iterable[str], captions: Iterable[str], glyphs: Mapping[str, str] | None = None
    ) -> Self:
        """Collects the words of the names and of the captions."""
        names = tuple(names)
        words = frozenset(w for text in (*names, *captions) for w in split_words(text))
        return cls(names, words, {_LOOKS.sub("", k): name for k, name in (glyphs or {}).items()})

    def merge(self, other: "Vocabulary") -> "Vocabulary":
        """Adds the names, words and glyphs of a further training."""
        names = tuple(dict.fromkeys(self.names + other.names))
        return Vocabulary(names, self.words | other.words, {**self.glyphs, **other.glyphs})

    def read(self, prompt: str) -> str:
        """The prompt that the model is told: names in place of glyphs, nothing of zero width.

        Warns, with an `SdpipeWarning`, of what is read as a name.
        """
        if prompt.isascii():
            return prompt
        text = _LOOKS.sub("", prompt)
        marked = self._any_glyph.sub(lambda found: f"\0{self.glyphs[found[0]]}\0", text)
        read = re.sub(r"(?<=\w)\0+(?=\w)", " ", marked).replace("\0", "")
        if read != text:
            warn(f"{prompt!r} is read as {read!r}.")
        return _ZERO_WIDTH.sub("", read)

    def unknown(self, prompt: str, added_tokens: Iterable[str] = ()) -> dict[str, str | None]:
        """The words of a prompt that are not in the vocabulary, each with a similar word that is.

        A similar one is looked up for the first `MAX_SUGGESTED` of them.

        added_tokens: the words of textual inversions, which count as known.
        """
        texts = parse(plain_spelling(prompt)).words()
        words = dict.fromkeys(word for text in texts for word in split_words(text, added_tokens))
        unknown = [word for word in words if word not in self.words]
        suggested = [self._suggest(word, words) for word in unknown[:MAX_SUGGESTED]]
        return dict(zip_longest(unknown, suggested))

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
        lists = {"names": list(self.names), "words": self._sorted_words}
        return {**lists, "glyphs": self.glyphs} if self.glyphs else lists

    @cached_property
    def _sorted_words(self) -> list[str]:
        return sorted(self.words)

    @cached_property
    def _any_glyph(self) -> re.Pattern[str]:
        longest_first = sorted(map(re.escape, self.glyphs), key=len, reverse=True)
        return re.compile("|".join(longest_first) or "(?!)")

    @cached_property
    def _words_of_names(self) -> list[set[str]]:
        return [set(split_words(name)) for name in self.names]

    def _suggest(self, word: str, words: Iterable[str]) -> str | None:
        """The similar word that shares a name with most of the others: "moon cace", moon cake."""
        if len(word) == 1:
            return None

        def rank(candidate: str) -> tuple[int, bool]:
            together = {candidate, *words}
            names = (name for name in self._words_of_names if candidate in name)
            shared = max((len(together & name) for name in names), default=0)
            return shared, sorted(candidate) == sorted(word)  # transposed letters

        return max(_similar(word, self._sorted_words), key=rank, default=None)


def split_words(text: str, added_tokens: Iterable[str] = ()) -> list[str]:
    """The words of a text in lower case, without punctuation and added tokens."""
    words = (word for part in _split(text, added_tokens)[::2] for word in _WORD.findall(part))
    return [
        word.lower() for word in words if word != "|" and unicodedata.category(word[0])[0] != "P"
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
        plain = plain_spelling(prompt)
        meant = _replace_words(plain, unknown, added_tokens)
        if None not in unknown.values() and meant != plain:
            remedy = f'; did you mean "{meant}"?'
        elif vocabulary.names:
            remedy = f" and draws the rest of the prompt; `{names_command}` lists what it draws."
        else:
            remedy = " and draws the rest of the prompt."
        *words, last = (f'"{word}"' for word in unknown)
        if len(unknown) > MAX_SUGGESTED:
            words, last = words[:MAX_SUGGESTED], f"{len(unknown) - MAX_SUGGESTED} other words"
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
