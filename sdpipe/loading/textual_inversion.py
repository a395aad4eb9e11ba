"""Textual inversions: words that a model lacked, learned from images (Gal et al. 2022).

A file holds V vectors of the text encoder's width D. Its word gets V tokens, and stands for all of
them in a prompt. Two layouts are read:

    {"emb_params": (V, D)}       A1111's web UI; the word is the file's name without the suffix
    {word: (V, D) or (D,)}       diffusers

The tokens have diffusers' names: word, word_1, word_2 and so on. diffusers'
`load_textual_inversion` needs a whole pipeline, and finds the word inside of other words, too.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sdpipe.errors import ModelError, UsageError
from sdpipe.loading.weights import find_file, open_weights, read_shapes, read_tensor, sha256

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

EmbeddingSpec = str | os.PathLike[str] | tuple[str | os.PathLike[str], str]
"""An embedding as a caller gives it: its file, or the file and the word."""

_NAMELESS = ("emb_params", "string_to_param", "string_to_param.*", "*")
MAX_WORD = 80  # characters


@dataclass(frozen=True, eq=False)
class Embedding:
    """The header of a textual inversion file.

    word: its word in a prompt.
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
    def read(cls, spec: EmbeddingSpec) -> Self:
        """Reads the header of a textual inversion file.

        Raises:
            UsageError: the word cannot be written in a prompt.
            ModelError: there is no such file, it is damaged or of another kind.
        """
        file, word = spec if isinstance(spec, tuple) else (spec, None)
        label = f"embedding={os.fspath(file)!r}"
        path = find_file(file, label)
        found = read_shapes([path], label)
        if "clip_l" in found or "clip_g" in found:
            raise ModelError(
                label,
                "is for Stable Diffusion XL, which has two text encoders",
                "take one for Stable Diffusion 1 or 2",
            )
        if len(found) != 1:
            names = f" ({', '.join(list(found)[:3])} ...)" if found else ""
            rule = f"is not a textual inversion: it has {len(found)} tensors{names}, not one"
            raise ModelError(label, rule, "take another file")
        ((tensor, shape),) = found.items()
        if len(shape) not in (1, 2) or 0 in shape:
            rule = f"is not a textual inversion: its {tensor} has the shape {list(shape)}"
            raise ModelError(label, rule, "take a file with one or more vectors")
        if word is None:
            word = path.stem if tensor in _NAMELESS else tensor
        _check_word(word, label)
        return cls(path, word, tensor, shape[0] if len(shape) == 2 else 1, shape[-1], label)

    @property
    def tokens(self) -> list[str]:
        """The names of its vectors, in order."""
        return [self.word, *(f"{self.word}_{i}" for i in range(1, self.vectors))]

    def identity(self) -> dict[str, object]:
        """Identifies it in the metadata of an image; plain JSON types."""
        return {"name": self.path.name, "word": self.word, "sha256": sha256(self.path)}

    def check_fit(self, width: int, length: int, who: str) -> None:
        """Checks that a text encoder takes its vectors.

        width, length: D, and the number of tokens that it takes, the two marks included.
        who: how messages name it.

        Raises:
            ModelError: they have another width, or there are too many.
        """
        if self.width != width:
            raise ModelError(
                self.label,
                f"has vectors of width {self.width}, and {who} takes {width}",
                "take one for this model; Stable Diffusion 1 has 768, 2 has 1024",
            )
        if self.vectors > length - 2:
            raise ModelError(
                self.label,
                f"has {self.vectors} vectors, and {who} takes {length - 2} tokens at once",
                "take one with fewer vectors",
            )


def check_tokens(tokenizer: "CLIPTokenizer", embeddings: Iterable[Embedding]) -> None:
    """Checks that the words are new.

    Raises:
        ModelError: the tokenizer, or another embedding, has the word.
    """
    known = set(tokenizer.get_vocab())
    for embedding in embeddings:
        for token in embedding.tokens:
            if {token, token.lower(), f"{token.lower()}</w>"} & known:
                word = embedding.word.strip("<>")
                raise ModelError(
                    f"{embedding.label} with the word {embedding.word!r}",
                    f"cannot be added: {token!r} is a token already",
                    f"give it another word, as in {embedding.path.name}:my-{word}",
                )
            known.add(token.lower())


def add_tokens(tokenizer: "CLIPTokenizer", embeddings: Iterable[Embedding]) -> None:
    """Adds the words to a tokenizer, which finds them only as whole words."""
    from transformers import AddedToken

    for embedding in embeddings:
        tokenizer.add_tokens(
            [AddedToken(token, single_word=True, normalized=True) for token in embedding.tokens]
        )


def add_vectors(
    tokenizer: "CLIPTokenizer", text_encoder: "CLIPTextModel", embeddings: Sequence[Embedding]
) -> None:
    """Adds the vectors of the words to a text encoder; the tokenizer has the words.

    Raises:
        ModelError: a file is damaged.
    """
    numbers = {e: tokenizer.convert_tokens_to_ids(e.tokens) for e in embeddings}
    rows = max(max(ids) for ids in numbers.values()) + 1
    if rows > text_encoder.config.vocab_size:
        text_encoder.resize_token_embeddings(rows, mean_resizing=False)
    table = text_encoder.get_input_embeddings().weight.data
    for embedding, ids in numbers.items():
        with open_weights(embedding.path, embedding.label, "pt") as file:
            vectors = read_tensor(file, embedding.tensor, embedding.path, embedding.label)
        vectors = vectors.reshape(embedding.vectors, embedding.width)
        table[ids] = vectors.to(table.device, table.dtype)


def _check_word(word: object, label: str) -> None:
    """Checks that a word can be written in a prompt. Raises UsageError otherwise."""
    if not isinstance(word, str) or not word.strip() or word != word.strip():
        raise UsageError(
            f"{label} with the word {word!r}",
            "has no word to write in prompts",
            "give one without spaces at its ends, such as my-cat",
        )
    if len(word) > MAX_WORD or not word.isprintable():
        raise UsageError(
            f"{label} with the word {word[:40]!r}...",
            "has no word to write in prompts",
            f"give one of up to {MAX_WORD} printable characters, such as my-cat",
        )
    if word == "BREAK" or re.search(r"[()\[\]\\]", word):
        raise UsageError(
            f"{label} with the word {word!r}",
            "has no word to write in prompts, where it has another meaning",
            "give one of letters, digits and hyphens, such as my-cat",
        )
