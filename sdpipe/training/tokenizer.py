"""The tokenizer: byte pair encoding as CLIP's, with merges learned from the captions."""

import itertools
import json
import random
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

PRIVATE = 0xE000  # where Unicode leaves its characters to anybody
START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: Iterable[str], vocabulary: int, length: int) -> CLIPTokenizer:
    """A CLIPTokenizer whose vocabulary is laid out as OpenAI's: bytes, bytes at a word's end,
    merges, the two marks.

    `vocabulary` is the most tokens it may have, `length` the tokens of a padded caption.
    Sennrich et al. (2016), algorithm 1.
    """
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    cuts = _tokenizer(symbols, [], length).backend_tokenizer
    words = (word for caption in captions for word in _words(cuts, caption))
    # The learner breaks ties by the order of its symbols, and that of its own marks of a word's end
    # is another in every run. So the last letters are marked here.
    learner = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=[*symbols, *map(_last, symbols)],
        show_progress=False,
    )
    learner.train_from_iterator((word[:-1] + _last(word[-1]) for word in words), trainer)
    return _tokenizer(symbols, _merges(learner)[: vocabulary - 2 * len(symbols) - 2], length)


class RoughCuts:
    """Cuts captions like a tokenizer, but leaves out each merge of a word with a probability.

    One word then comes in many spellings, `tiger</w>`, `ti ger</w>`, `t i ger</w>`, and who learns
    from them reads a plural or a typing error, which is cut like that too. Provilkov et al. (2020),
    BPE-dropout, algorithm 1.
    """

    def __init__(self, tokenizer: CLIPTokenizer, dropout: float) -> None:
        self.tokenizer, self.dropout = tokenizer, dropout
        self.backend = tokenizer.backend_tokenizer
        self.rank = {pair: number for number, pair in enumerate(_merges(self.backend))}
        self.vocabulary = tokenizer.get_vocab()

    def tokens(self, captions: Iterable[str], rng: random.Random) -> Tensor:
        """Captions as the tokenizer pads and truncates them, (B, L)."""
        length = self.tokenizer.model_max_length
        rows = []
        for caption in captions:
            words = _words(self.backend, caption)
            ids = [i for word in words for i in self._cut(word, rng)]
            row = [self.tokenizer.bos_token_id, *ids[: length - 2], self.tokenizer.eos_token_id]
            rows.append(row + [self.tokenizer.pad_token_id] * (length - len(row)))
        return torch.tensor(rows)

    def _cut(self, word: str, rng: random.Random) -> list[int]:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pairs = [
                (self.rank[pair], i)
                for i, pair in enumerate(itertools.pairwise(parts))
                if pair in self.rank and rng.random() >= self.dropout
            ]
            if not pairs:
                break
            _, i = min(pairs)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return [self.vocabulary[part] for part in parts]


def _tokenizer(symbols: list[str], merges: list[tuple[str, str]], length: int) -> CLIPTokenizer:
    """The tokenizer with these merges, two of which may make the same token."""
    made = [*symbols, *(s + "</w>" for s in symbols), *map("".join, merges), START, END]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(made))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)
    if len(tokenizer) != len(vocabulary):
        raise AssertionError(f"{len(vocabulary)} tokens were made and {len(tokenizer)} arrived")
    return tokenizer


def _words(tokenizer: Tokenizer, caption: str) -> list[str]:
    """The words of a caption, in the byte symbols."""
    text = tokenizer.normalizer.normalize_str(caption)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def _last(symbol: str) -> str:
    """A byte symbol at a word's end, as a single character."""
    return chr(PRIVATE + ord(symbol))


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The pairs that are joined, in the order in which they were learned."""

    def plain(token: str) -> str:
        end = ord(token[-1]) - PRIVATE
        return token if end < 0 else f"{token[:-1]}{chr(end)}</w>"

    return [(plain(a), plain(b)) for a, b in json.loads(tokenizer.to_str())["model"]["merges"]]
