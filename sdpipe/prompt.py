"""Text to tokens to embeddings: what the U-Net listens to.

Shapes: B pictures, L tokens (77 for CLIP), D the text encoder's width (768 for v1-4).
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from sdpipe.errors import SdpipeWarning


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The embedded prompts, and what stands beside them in classifier-free guidance.

    cond: (B, L, D), the prompts. uncond: (B, L, D), the negative prompts, often the empty one.
    """

    cond: Tensor
    uncond: Tensor


def condition(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
) -> Conditioning:
    """Embeds prompts and negative prompts, one of each for every picture.

    Every text goes through the encoder once and alone: its embedding is then the same bits
    whatever else is drawn with it.
    """
    texts = dict.fromkeys([*prompts, *negative_prompts])
    embedded = {text: embed(tokenizer, text_encoder, text) for text in texts}
    return Conditioning(
        torch.cat([embedded[text] for text in prompts]),
        torch.cat([embedded[text] for text in negative_prompts]),
    )


def tell_cut(tokenizer: CLIPTokenizer, texts: Iterable[str], *, stacklevel: int = 3) -> None:
    """Warns, with an `SdpipeWarning`, of the words of each text that do not fit."""
    for text in dict.fromkeys(texts):
        if cut := cut_off(tokenizer, text):
            warnings.warn(
                f"the text encoder takes {tokenizer.model_max_length - 2} tokens and the "
                f"prompt is longer; what it does not see: {cut!r}.",
                SdpipeWarning,
                stacklevel=stacklevel,
            )


@torch.no_grad()
def embed(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, text: str) -> Tensor:
    """The embedding of one text, (1, L, D): the encoder's last hidden state, after its norm.

    Stable Diffusion pads with the end mark and lets the encoder attend to the padding.
    """
    return text_encoder(tokenize(tokenizer, text).to(text_encoder.device)).last_hidden_state


def tokenize(tokenizer: CLIPTokenizer, text: str) -> Tensor:
    """The token ids of one text, (1, L): start mark, words, end mark, padding; cut to L."""
    tokens = tokenizer(text, padding="max_length", truncation=True, return_tensors="pt")
    return tokens.input_ids


def cut_off(tokenizer: CLIPTokenizer, text: str) -> str:
    """The end of a text that does not fit between the two marks: whole words, "" where all fit."""
    length = tokenizer.model_max_length
    tokens = tokenizer(text, return_offsets_mapping=True, verbose=False)
    if len(tokens.input_ids) <= length:
        return ""
    first_lost, _ = tokens.offset_mapping[length - 1]  # the place of the end mark, once cut
    word = max(text.rfind(space, 0, first_lost) for space in " \t\n") + 1
    return text[word:].strip()
