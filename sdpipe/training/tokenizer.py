"""The tokenizer: byte pair encoding as CLIP's, with merges learned from the captions."""

import json
import random
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: Iterable[str], vocabulary: int, length: int) -> CLIPTokenizer:
    """A CLIPTokenizer whose vocabulary is laid out as OpenAI's: bytes, bytes at a word's end,
    merges, the two marks.

    `vocabulary` is the most tokens it may have, `length` the tokens of a padded caption.
    Sennrich et al. (2016), algorithm 1.
    """
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    cuts = _tokenizer(symbols, [], length).backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = cuts.normalizer, cuts.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=symbols,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
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
            ids = [i for word in self._words(caption) for i in self._cut(word, rng)]
            row = [self.tokenizer.bos_token_id, *ids[: length - 2], self.tokenizer.eos_token_id]
            rows.append(row + [self.tokenizer.pad_token_id] * (length - len(row)))
        return torch.tensor(rows)

    def _words(self, caption: str) -> list[str]:
        text = self.backend.normalizer.normalize_str(caption)
        return [word for word, _ in self.backend.pre_tokenizer.pre_tokenize_str(text)]

    def _cut(self, word: str, rng: random.Random) -> list[int]:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pairs = [
                (self.rank[pair], i)
                for i, pair in enumerate(zip(parts, parts[1:], strict=False))
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


def _merges(learner: Tokenizer) -> list[tuple[str, str]]:
    """The pairs that were joined, in the order in which they were learned."""
    return [(a, b) for a, b in json.loads(learner.to_str())["model"]["merges"]]
