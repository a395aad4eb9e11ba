"""A textual inversion: a word that a model lacked, learned from pictures (Gal et al. 2022).

What was learned are V vectors of the text encoder's width D. The word gets V tokens of its own, and
wherever it stands in a prompt it is all of them. Two layouts are read:

    {"emb_params": (V, D)}       A1111's web UI; the word is the file's name, without the suffix
    {word: (V, D) or (D,)}       diffusers

The tokens are called as diffusers calls them: word, word_1, word_2 and so on.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sdpipe.errors import ModelError, UsageError
from sdpipe.loading.weight_files import find_file, opened, sha256, shapes

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

Given = str | os.PathLike[str] | tuple[str | os.PathLike[str], str]
"""An embedding as a person gives it: its file, or the file and the word for it."""

CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; "
    "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
    "d = d.get('string_to_param', d); "
    "save_file({'emb_params' if k == '*' else k: v.detach().clone().contiguous() "
    "for k, v in d.items() if torch.is_tensor(v)}, sys.argv[2])"
)
_NAMELESS = ("emb_params", "string_to_param", "string_to_param.*", "*")
MAX_WORD = 80  # characters


@dataclass(frozen=True, eq=False)
class Embedding:
    """An embedding's file, read as far as its header.

    word: what stands for it in a prompt.
    tensor: the name of its vectors in the file.
    vectors, width: V and D.
    """

    path: Path
    word: str
    tensor: str
    vectors: int
    width: int
    label: str

    @classmethod
    def read(cls, given: Given) -> Self:
        """Reads the header of an embedding.

        Raises:
            UsageError: the word is none.
            ModelError: there is no such file, it is damaged, or it is something else.
        """
        file, word = given if isinstance(given, tuple) else (given, None)
        label = f"embedding={os.fspath(file)!r}"
        path = find_file(file, label, CONVERT)
        found = shapes([path], label)
        if "clip_l" in found or "clip_g" in found:
            raise ModelError(
                f"{label} is for Stable Diffusion XL, which has two text encoders; take one for "
                "Stable Diffusion 1 or 2."
            )
        if len(found) != 1:
            names = ", ".join(list(found)[:3])
            raise ModelError(
                f"{label} is no textual inversion: it holds {len(found)} tensors"
                f"{f' ({names} ...)' if found else ''}, and not just one with its vectors."
            )
        ((tensor, shape),) = found.items()
        if len(shape) not in (1, 2) or 0 in shape:
            raise ModelError(
                f"{label} is no textual inversion: its {tensor} has the shape {list(shape)}, and "
                "not that of one or more vectors."
            )
        if word is None:
            word = path.stem if tensor in _NAMELESS else tensor
        _check_word(word, label)
        return cls(path, word, tensor, shape[0] if len(shape) == 2 else 1, shape[-1], label)

    @property
    def tokens(self) -> list[str]:
        """What its vectors are called, one after the other."""
        return [self.word, *(f"{self.word}_{i}" for i in range(1, self.vectors))]

    def identity(self) -> dict[str, object]:
        """What tells it from others, for a picture's metadata; plain JSON types."""
        return {"name": self.path.name, "word": self.word, "sha256": sha256(self.path)}

    def check_fit(self, width: int, length: int, whose: str) -> None:
        """Refuses vectors that a text encoder does not take.

        width, length: D, and the tokens that it takes at once, two marks among them.
        whose: how messages name it.

        Raises:
            ModelError: they are of another width, or too many.
        """
        if self.width != width:
            raise ModelError(
                f"{self.label} has vectors of {self.width} numbers, and {whose} takes {width}; "
                "768 is that of Stable Diffusion 1, 1024 that of 2. Take one that was made for "
                "this model, or its like."
            )
        if self.vectors > length - 2:
            raise ModelError(
                f"{self.label} has {self.vectors} vectors, and {whose} hears {length - 2} tokens "
                "at once; take one with fewer."
            )


def check_tokens(tokenizer: "CLIPTokenizer", embeddings: Iterable[Embedding]) -> None:
    """Refuses words that mean something already.

    Raises:
        ModelError: the tokenizer, or another embedding, has the word.
    """
    known = set(tokenizer.get_vocab())
    for each in embeddings:
        for token in each.tokens:
            if {token, token.lower(), f"{token.lower()}</w>"} & known:
                raise ModelError(
                    f"{each.label} is called {each.word!r} in prompts, but {token!r} means "
                    f"something there already; give it another word, as in {each.path.name}:my-"
                    f"{each.word.strip('<>')}."
                )
            known.add(token.lower())


def add_tokens(tokenizer: "CLIPTokenizer", embeddings: Iterable[Embedding]) -> None:
    """Teaches a tokenizer the words; only where they stand alone, not inside of others."""
    from transformers import AddedToken

    for each in embeddings:
        tokenizer.add_tokens(
            [AddedToken(token, single_word=True, normalized=True) for token in each.tokens]
        )


def add_vectors(
    tokenizer: "CLIPTokenizer", text_encoder: "CLIPTextModel", embeddings: Sequence[Embedding]
) -> None:
    """Gives a text encoder the vectors of words that a tokenizer knows.

    Raises:
        ModelError: a file is damaged.
    """
    numbers = {e: tokenizer.convert_tokens_to_ids(e.tokens) for e in embeddings}
    rows = max(max(ids) for ids in numbers.values()) + 1
    if rows > text_encoder.config.vocab_size:
        text_encoder.resize_token_embeddings(rows, mean_resizing=False)
    table = text_encoder.get_input_embeddings().weight.data
    for each, ids in numbers.items():
        with opened(each.path, each.label, "pt") as file:
            vectors = file.get_tensor(each.tensor).reshape(each.vectors, each.width)
        table[ids] = vectors.to(table.device, table.dtype)


def _check_word(word: object, label: str) -> None:
    """Refuses what cannot be written into a prompt. Raises UsageError."""
    if not isinstance(word, str) or not word.strip() or word != word.strip():
        raise UsageError(
            f"{label} has the word {word!r}; give one to write into prompts, without spaces at its "
            "ends, such as my-cat."
        )
    if len(word) > MAX_WORD or not word.isprintable():
        raise UsageError(
            f"{label} has the word {word[:40]!r}...; give one of up to {MAX_WORD} signs, such as "
            "my-cat."
        )
