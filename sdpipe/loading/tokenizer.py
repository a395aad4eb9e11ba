"""Reads a tokenizer as data: tokens, merges and marks. CLIPTokenizer is built from these alone.

A tokenizer's files may also bring regular expressions, chat templates and the names of other files,
all of which transformers would follow.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpipe.errors import ModelError
from sdpipe.loading.configs import read_json, read_text
from sdpipe.loading.rules import ID, MARKS, shorten
from sdpipe.loading.schema import check_config
from sdpipe.loading.weights import repair

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_DEFAULTS = dict.fromkeys(MARKS, "<|endoftext|>") | {"bos_token": "<|startoftext|>"}


@dataclass(frozen=True)
class TokenizerFiles:
    """What a tokenizer's files say.

    vocab: the id of each token. merges: pairs of tokens that become one, the first ones first.
    added: by id, tokens that are found in a text before it is split, with their flags.
    marks: the tokens of a text's start and end, of padding and of what is unknown.
    length: tokens of a text, the two marks included; None if the files do not say.
    folder: where they are.
    """

    vocab: Mapping[str, int]
    merges: list[tuple[str, str]]
    added: Mapping[int, Mapping[str, Any]]
    marks: Mapping[str, Any]
    length: int | None
    folder: Path

    @property
    def rows(self) -> int:
        """How many embeddings a text encoder needs for it."""
        contents = {_content(token) for token in (*self.added.values(), *self.marks.values())}
        new = len(contents - self.vocab.keys())
        return max(*self.vocab.values(), len(self.vocab) - 1) + 1 + new

    def build(self, length: int) -> "CLIPTokenizer":
        """The tokenizer; `length` is what the text encoder takes."""
        from transformers import AddedToken, CLIPTokenizer

        added = {id_: AddedToken(**token) for id_, token in sorted(self.added.items())}
        known = {str(token): token for token in added.values()}
        marks = {
            name: known.get(_content(mark), AddedToken(**mark) if isinstance(mark, dict) else mark)
            for name, mark in self.marks.items()
        }
        return CLIPTokenizer(
            vocab=dict(self.vocab),
            merges=self.merges,
            added_tokens_decoder=added,
            name_or_path=str(self.folder),
            model_max_length=min(length, self.length or length),
            **marks,
        )


def read_tokenizer_files(folder: Path, label: str) -> TokenizerFiles:
    """Reads tokenizer.json, else vocab.json and merges.txt, and what is beside them.

    Raises:
        ModelError: a file cannot be read, or a value breaks its rule.
    """
    paths = {path.name: path for path in folder.glob("*.*")}
    path = paths.get("tokenizer.json", folder / "vocab.json")
    whole = read_json(path, label)
    who = f"{label}: {path}"
    added: dict[int, Mapping[str, Any]] = {}
    if path.name == "tokenizer.json":
        model = whole.get("model")
        if not isinstance(model, dict):
            raise ModelError(who, "has no model with a vocabulary", repair(path))
        vocab = _check_vocab(model.get("vocab"), who)
        merges = _check_merges(model.get("merges"), vocab, who)
        tokens = check_config(whole, "tokenizer.json", who).get("added_tokens", ())
        added = {token["id"]: _without(token, "id") for token in tokens}
    else:
        vocab = _check_vocab(whole, who)
        path = folder / "merges.txt"
        lines = read_text(path, label).replace("\r\n", "\n").split("\n")
        lines = [line for line in lines if line and not line.startswith("#version")]
        merges = _check_merges(lines, vocab, f"{label}: {path}")

    config = _read_beside(paths, "tokenizer_config.json", label)
    marks = _DEFAULTS | {name: config[name] for name in MARKS if name in config}
    if "added_tokens_decoder" in config:
        added = {int(id_): token for id_, token in config["added_tokens_decoder"].items()}
    else:  # files of before 2023
        for name, mark in _read_beside(paths, "special_tokens_map.json", label).items():
            marks[name] = {**mark, "special": True} if isinstance(mark, dict) else mark
        special = {_content(mark) for mark in marks.values()}
        if "added_tokens.json" in paths:
            path = paths["added_tokens.json"]
            ids = _check_vocab(read_json(path, label), f"{label}: {path}", least=0)
            plain = {"lstrip": False, "rstrip": False}
            for content, id_ in ids.items():
                flags = {"normalized": content not in special, "special": content in special}
                added.setdefault(id_, {"content": content, **plain, **flags})
    plain_marks = {name: _without(m, "__type") for name, m in marks.items()}
    return _check_marks(
        TokenizerFiles(vocab, merges, added, plain_marks, config.get("model_max_length"), folder),
        who,
    )


def _read_beside(paths: Mapping[str, Path], name: str, label: str) -> dict[str, Any]:
    path = paths.get(name)
    return {} if path is None else check_config(read_json(path, label), name, f"{label}: {path}")


def _content(mark: Any) -> str:
    return str(mark if isinstance(mark, str) else mark["content"])


def _without(token: Any, key: str) -> Any:
    return {k: v for k, v in token.items() if k != key} if isinstance(token, dict) else token


def _check_vocab(values: Any, who: str, least: int = 1) -> dict[str, int]:
    if not isinstance(values, dict) or len(values) < least:
        raise ModelError(who, "has no vocabulary", "take the tokenizer of another copy")
    for token, number in values.items():
        if not ID.accepts(number):
            raise ModelError(
                who,
                f"has the token {shorten(token)} with the id {shorten(number)}, which is not "
                f"{ID.text}",
                "take the tokenizer of another copy",
            )
    _check_text(values, who)
    return values


def _check_merges(values: Any, vocab: Mapping[str, int], who: str) -> list[tuple[str, str]]:
    """The merges as pairs, both of whose halves and whose whole are tokens."""
    merges = []
    if not isinstance(values, list):
        raise ModelError(who, "has no list of merges", "take the tokenizer of another copy")
    for value in values:
        pair = value.split(" ") if isinstance(value, str) else value
        is_pair = isinstance(pair, list) and [type(half) for half in pair] == [str, str]
        if not is_pair or not {pair[0], pair[1], "".join(pair)} <= vocab.keys():
            raise ModelError(
                who,
                f"has the merge {shorten(value)}, which is not a pair of tokens that make a third",
                "take the tokenizer of another copy",
            )
        merges.append((pair[0], pair[1]))
    return merges


def _check_text(tokens: Collection[str], who: str) -> None:
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError as error:
        rule = "has a token that is no text: half a character of two halves"
        raise ModelError(who, rule, "take the tokenizer of another copy") from error


def _check_marks(files: TokenizerFiles, who: str) -> TokenizerFiles:
    """Checks that text can be tokenized: what is unknown has a token to stand for it."""
    unknown = _content(files.marks["unk_token"])
    if unknown not in files.vocab and not all(
        symbol + end in files.vocab for symbol in _byte_symbols() for end in ("", "</w>")
    ):
        raise ModelError(
            who,
            f"has no token for every byte, and its unk_token {shorten(unknown)} is no token either",
            "take the tokenizer of another copy",
        )
    return files


def _byte_symbols() -> list[str]:
    """The characters that stand for bytes in a byte pair encoding, as GPT-2 has them."""
    symbols = [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    return symbols + [chr(256 + c) for c in range(256 - len(symbols))]
