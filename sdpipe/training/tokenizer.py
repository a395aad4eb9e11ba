"""The tokenizer: byte pair encoding as CLIP's, with merges learned from the captions."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
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
