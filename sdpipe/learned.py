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
from collections.abc import Iterable
from dataclasses import dataclass
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
        stands around it: in "moon cace" not case but cake.
        """
        said = words(text)
        new = dict.fromkeys(word for word in said if word not in self.words)
        return {word: self._meant(word, " ".join(said)) for word in new}

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

    def _meant(self, word: str, text: str) -> str | None:
        near = _near(word, self.words)

        def named(candidate: str) -> int:
            """How many words the longest name has that it makes with those around it."""
            corrected = f" {text.replace(word, candidate)} "
            said = (words(name) for name in self.find(candidate))
            made = [len(name) for name in said if f" {' '.join(name)} " in corrected]
            return max(made, default=1)

        return max(near, key=named, default=None)


def words(text: str) -> list[str]:
    """The words of a prompt or a caption, in lower case, without figures and signs."""
    return _WORD.findall(_BREAK.sub(" ", text).lower())


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
        plain = text
        for word in inversions:
            plain = plain.replace(word, " ")
        if unknown := learned.unknown(plain):
            remedy = _remedy(learned, text, unknown, model)
            said = f"{model} has never read {_listed(unknown)}{remedy}"
            warnings.warn(said, SdpipeWarning, stacklevel=stacklevel)


def _listed(words: Iterable[str]) -> str:
    *others, last = (f'"{word}"' for word in words)
    return f"{', '.join(others)} or {last}" if others else last


def _remedy(learned: Learned, text: str, unknown: dict[str, str | None], model: str) -> str:
    corrected = text
    for word, meant in unknown.items():
        if meant is None:
            whose = "" if model == BUILT_IN[0] else f" --model {shlex.quote(model)}"
            listed = f"; sdpipe names{whose} lists what it draws" if learned.names else ""
            return f", and draws what the rest says{listed}."
        corrected = re.sub(rf"\b{re.escape(word)}\b", meant, corrected, flags=re.IGNORECASE)
    return f'; did you mean "{corrected}"?'
