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
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=symbols,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator((caption.lower() for caption in captions), trainer)
    merges = _merges(learner)[: vocabulary - 2 * len(symbols) - 2]
    tokens = [*symbols, *(s + "</w>" for s in symbols), *map("".join, merges), START, END]
    tokenizer = CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges,
        model_max_length=length,
    )
    if len(tokenizer) != len(tokens):
        raise AssertionError(f"{len(tokens)} tokens were made and {len(tokenizer)} arrived")
    return tokenizer


def _merges(learner: Tokenizer) -> list[tuple[str, str]]:
    """The pairs that were joined, in the order in which they were learned."""
    return [(a, b) for a, b in json.loads(learner.to_str())["model"]["merges"]]
