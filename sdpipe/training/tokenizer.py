"""The tokenizer: CLIP's byte pair encoding, with merges learned from the captions."""

import itertools
import json
import random
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

PRIVATE_USE = 0xE000  # the first character of Unicode's private use area
START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: Iterable[str], vocab_size: int, max_length: int) -> CLIPTokenizer:
    """Learns a CLIPTokenizer. Its vocabulary has the layout of OpenAI's: bytes, bytes at a word's
    end, merges, the two marks.

    vocab_size: the number of tokens, at most.
    max_length: the tokens of a padded caption.

    Sennrich et al. (2016), algorithm 1.
    """
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    splitter = _build(symbols, [], max_length).backend_tokenizer
    words = (word for caption in captions for word in _split_words(splitter, caption))
    # The learner breaks ties by the order of its symbols, and its own marks of a word's end are in
    # another order in every run. So the last letters are marked here.
    learner = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=[*symbols, *map(_mark_last, symbols)],
        show_progress=False,
    )
    learner.train_from_iterator((word[:-1] + _mark_last(word[-1]) for word in words), trainer)
    merges = _merges(learner)[: vocab_size - 2 * len(symbols) - 2]
    return _build(symbols, merges, max_length)


class BPEDropout:
    """Tokenizes captions like a tokenizer, but skips each merge of a word with a probability.

    A word then has many spellings, `tiger</w>`, `ti ger</w>`, `t i ger</w>`. A model that learns
    from them reads plurals and typos, which are split like that too. BPE-dropout, Provilkov et al.
    (2020), algorithm 1. `tokenizers` has it too, without a way to seed it.
    """

    def __init__(self, tokenizer: CLIPTokenizer, dropout: float) -> None:
        self.tokenizer, self.dropout = tokenizer, dropout
        self.backend = tokenizer.backend_tokenizer
        self.rank = {pair: number for number, pair in enumerate(_merges(self.backend))}
        self.vocabulary = tokenizer.get_vocab()

    def tokenize(self, captions: Iterable[str], rng: random.Random) -> Tensor:
        """The tokens of B captions, padded and truncated as by the tokenizer, (B, L)."""
        length = self.tokenizer.model_max_length
        rows = []
        for caption in captions:
            words = _split_words(self.backend, caption)
            ids = [i for word in words for i in self._merge(word, rng)]
            row = [self.tokenizer.bos_token_id, *ids[: length - 2], self.tokenizer.eos_token_id]
            rows.append(row + [self.tokenizer.pad_token_id] * (length - len(row)))
        return torch.tensor(rows)

    def _merge(self, word: str, rng: random.Random) -> list[int]:
        """The tokens of a word."""
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


def _build(symbols: list[str], merges: list[tuple[str, str]], max_length: int) -> CLIPTokenizer:
    """The tokenizer with these merges, two of which may make the same token."""
    tokens = [*symbols, *(s + "</w>" for s in symbols), *map("".join, merges), START, END]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)
    assert len(tokenizer) == len(vocabulary)
    return tokenizer


def _split_words(tokenizer: Tokenizer, caption: str) -> list[str]:
    """The words of a caption, in the byte symbols."""
    text = tokenizer.normalizer.normalize_str(caption)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def _mark_last(symbol: str) -> str:
    """A byte symbol at a word's end, as a single character."""
    return chr(PRIVATE_USE + ord(symbol))


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The merged pairs, in the order in which they were learned."""

    def plain(token: str) -> str:
        end = ord(token[-1]) - PRIVATE_USE
        return token if end < 0 else f"{token[:-1]}{chr(end)}</w>"

    return [(plain(a), plain(b)) for a, b in json.loads(tokenizer.to_str())["model"]["merges"]]
