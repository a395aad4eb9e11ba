"""What a model has learned words for, and which words of a prompt are none of them.

A model that was trained from nothing knows the words of its training's captions and no others.
`words.json` in its folder has them:

    {"names": ["abacus", ...], "words": ["a", "abacus", "above", ...]}

The names are what it draws, one thing each; the words are all that it was told, those of the names
among them, in lower case. A model without that file, as v1-4, may know any. Nothing here needs
torch.
"""

import difflib
import re
import shlex
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, Self

from sdpipe.errors import ModelError, SdpipeWarning
from sdpipe.loading.locate import BUILT_IN, find_model
from sdpipe.loading.sources import read_json

FILE = "words.json"
ALIKE = 0.85
"""From this ratio of difflib's on two spellings are near, and from one wrong letter."""
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_SIGNS = re.compile(r"[^\w\s'\u2019-]+")
_BREAK = re.compile(r"\bBREAK\b")


@dataclass(frozen=True)
class Learned:
    """The names that a model draws, and all the words that it was told."""

    names: tuple[str, ...]
    words: frozenset[str]

    @classmethod
    def of(cls, names: Iterable[str], texts: Iterable[str]) -> Self:
        """Of a training: the names, and every word in them and in the texts."""
        names = tuple(names)
        return cls(names, frozenset(word for text in (*names, *texts) for word in words(text)))

    def unknown(self, text: str) -> dict[str, str | None]:
        """The words of a text that were never told, and for each the one that may be meant.

        That is the nearest, or of several that are near the one that makes a longer name of what
        stands around it, in "moon cace" not case but cake; then the one of the same letters.
        """
        said = words(text)
        new = dict.fromkeys(word for word in said if word not in self.words)
        return {word: self._meant(word, said) for word in new}

    def mended(self, text: str, taught: Iterable[str] = ()) -> str:
        """A text with its typing errors put right, as far as that is sure.

        A word that was never told, and is one letter off another, may be one that the model just
        does not know: "king" is no wing. It counts as mistyped where it makes a name with others
        around it, "cool buttn", or alone and `_slipped`, "guittar"; and beside no other name, which
        a comma or another sign would part from it.

        taught: as for `tell_unknown`.
        """
        for part in _SIGNS.split(_without(text, taught)):
            said = words(part)
            meant = {word: other for word, other in self.unknown(part).items() if other is not None}
            read = [meant.get(word, word) for word in said]
            here = [i for i, word in enumerate(said) if word in meant]
            text = _replaced(text, {said[i]: read[i] for i in here if self._sure(said, read, i)})
        return text

    def find(self, text: str) -> list[str]:
        """The names that have every word of a text, the shortest first; all as they are if none."""
        asked = set(text.lower().split())
        found = [name for name in self.names if asked <= set(name.split())]
        return sorted(found, key=lambda name: (len(name.split()), name)) if asked else found

    def with_more(self, more: "Learned") -> "Learned":
        """After another training: what it told comes on top."""
        return Learned(tuple(dict.fromkeys(self.names + more.names)), self.words | more.words)

    def nearest(self, text: str) -> str | None:
        """What may be meant by a text that no name has: the same, spelled as in a name."""
        known = {part for name in self.names for part in name.split()}
        near = [next(iter(_near(word, known)), word) for word in text.lower().split()]
        meant = " ".join(near)
        return meant if self.find(meant) else None

    def to_json(self) -> dict[str, Any]:
        """What `words.json` holds."""
        return {"names": list(self.names), "words": sorted(self.words)}

    @cached_property
    def _named(self) -> frozenset[tuple[str, ...]]:
        """The names, each as its words."""
        return frozenset(tuple(words(name)) for name in self.names)

    @cached_property
    def _longest(self) -> int:
        """Words of the longest name."""
        return max(map(len, self._named), default=0)

    def _meant(self, word: str, said: list[str]) -> str | None:
        def likely(candidate: str) -> tuple[int, bool]:
            read = [candidate if other == word else other for other in said]
            first, end = self._name_at(read, said.index(word))
            return end - first, _same_letters(word, candidate)

        return max(_near(word, self.words), key=likely, default=None)

    def _name_at(self, said: list[str], i: int) -> tuple[int, int]:
        """The first and the end of the longest name that word i is part of; i, i where of none."""
        long = self._longest
        places = (
            (a, b) for a in range(max(i - long, 0), i + 1) for b in range(i + 1, a + long + 1)
        )
        made = [(a, b) for a, b in places if b <= len(said) and tuple(said[a:b]) in self._named]
        return max(made, key=lambda place: place[1] - place[0], default=(i, i))

    def _sure(self, said: list[str], read: list[str], i: int) -> bool:
        """Whether word i was said by mistake for the one that is read."""
        first, end = self._name_at(read, i)
        if end - first < (1 if _slipped(said[i], read[i]) else 2):
            return False
        before = (tuple(read[a:first]) for a in range(first))
        after = (tuple(read[end:b]) for b in range(end + 1, len(read) + 1))
        return self._named.isdisjoint((*before, *after))


def words(text: str) -> list[str]:
    """The words of a prompt or a caption, in lower case, without figures and signs."""
    return _WORD.findall(_BREAK.sub(" ", text).lower())


def _same_letters(one: str, other: str) -> bool:
    return sorted(one) == sorted(other)


def _slipped(typed: str, other: str) -> bool:
    """Whether fingers slip so and other words seldom differ so: letters have changed places, one is
    double, in a word of five and more missing, of seven and more wrong. The first one is not.
    """
    doubled = (k for k in range(1, len(typed)) if typed[k] == typed[k - 1])
    missing = range(1, len(other)) if len(typed) > 4 else ()
    return (
        (len(typed) > 3 and _same_letters(typed, other))
        or any(typed[:k] + typed[k + 1 :] == other for k in doubled)
        or any(other[:k] + other[k + 1 :] == typed for k in missing)
        or (len(typed) > 6 and typed[0] == other[0] and one_letter_off(typed, other))
    )


def _without(text: str, taught: Iterable[str]) -> str:
    for word in taught:
        text = text.replace(word, " ")
    return text


def _replaced(text: str, others: Mapping[str, str]) -> str:
    """The text with other words in the place of some of its own."""
    for word, other in others.items():
        here = rf"(?<![\w-]){re.escape(word)}(?![\w-])"
        text = re.sub(here, other, text, flags=re.IGNORECASE)
    return text


def _near(word: str, known: Iterable[str]) -> list[str]:
    """The words that may be meant by one that is none of them, the nearest first."""
    near = difflib.get_close_matches(word, sorted(known), 20, 0.6)
    alike = difflib.get_close_matches(word, near, len(near), ALIKE) if near else []
    return [other for other in near if other in alike or one_letter_off(word, other)]


def one_letter_off(a: str, b: str) -> bool:
    """Whether a letter is missing, too many, another one, or has changed places with the next."""
    for _ in range(2):  # leave out how they begin, then how they end
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
        a, b = a[same:][::-1], b[same:][::-1]
    return max(len(a), len(b)) <= 1 or (len(a) == 2 and a == b[::-1])


def find_learned(model: str) -> Learned | None:
    """As `read_learned`, of a model by its name; its weights need not be here.

    Raises:
        ModelError: there is no such model, or the file is damaged.
    """
    place = find_model(model, parts=())
    return read_learned(place.path, place.label)


def read_learned(folder: Path, label: str) -> Learned | None:
    """What a model's folder tells of its words; None where it tells nothing.

    Raises:
        ModelError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    values = read_json(path, label)
    lists = [values.get(key) for key in ("names", "words")]
    if not all(isinstance(x, list) and all(isinstance(y, str) for y in x) for x in lists):
        raise ModelError(f"{label}: {path} does not hold two lists of text, names and words.")
    return Learned(tuple(values["names"]), frozenset(values["words"]))


def tell_unknown(
    learned: Learned,
    texts: Iterable[str],
    model: str,
    taught: Iterable[str] = (),
    *,
    stacklevel: int = 3,
) -> None:
    """Warns, with an `SdpipeWarning`, of the words in each prompt that the model was never told.

    taught: what is none of them, the words of textual inversions.
    """
    inversions = tuple(taught)
    for text in texts:
        if unknown := learned.unknown(_without(text, inversions)):
            remedy = _remedy(learned, text, unknown, model)
            said = f"{model} has never read {_listed(unknown)}{remedy}"
            warnings.warn(said, SdpipeWarning, stacklevel=stacklevel)


def _listed(words: Iterable[str]) -> str:
    *others, last = (f'"{word}"' for word in words)
    return f"{', '.join(others)} or {last}" if others else last


def _remedy(learned: Learned, text: str, unknown: dict[str, str | None], model: str) -> str:
    meant = {word: other for word, other in unknown.items() if other is not None}
    if len(meant) == len(unknown):
        return f'; did you mean "{_replaced(text, meant)}"?'
    whose = "" if model == BUILT_IN[0] else f" --model {shlex.quote(model)}"
    listed = f"; sdpipe names{whose} lists what it draws" if learned.names else ""
    return f", and draws what the rest says{listed}."
