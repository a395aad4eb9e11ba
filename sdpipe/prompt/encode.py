"""Text to tokens to embeddings: what the U-Net listens to.

Shapes: B pictures, L tokens (77 for CLIP, and a multiple of that for a longer prompt), D the text
encoder's width (768 for v1-4). `syntax.py` reads what the signs in a prompt mean, `chunks.py` cuts
it into tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from sdpipe.errors import warn
from sdpipe.prompt.chunks import Chunk, chunk_count, chunks
from sdpipe.prompt.syntax import NOTHING, Text, parse

HAS_MEAN = 0.02
"""Of its standard deviation: an embedding whose mean is less has none that could be restored."""


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The embedded prompts, and what stands beside them in classifier-free guidance.

    cond: the prompts, (B, L, D), once for the whole run, or for each of its steps where one of
    them changes on the way. uncond: the negative prompts, often the empty one, in the same way.
    """

    cond: list[Tensor]
    uncond: list[Tensor]

    def __len__(self) -> int:
        """For how many pictures it is, B."""
        return len(self.cond[0])

    def last(self, steps: int) -> "Conditioning":
        """What is said in the last so many steps of the run."""
        return Conditioning(self.cond[-steps:], self.uncond[-steps:])

    def split(self, most: int) -> "list[Conditioning]":
        """The same for `most` pictures at a time."""
        parts = [slice(i, i + most) for i in range(0, len(self), most)]
        return [Conditioning([z[i] for z in self.cond], [z[i] for z in self.uncond]) for i in parts]


def condition(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    *,
    steps: int = 1,
    clip_skip: int = 1,
) -> Conditioning:
    """Embeds prompts and negative prompts, one of each for every picture, for so many steps.

    Every chunk goes through the encoder once and alone: its embedding is then the same bits
    whatever else is drawn with it. They lie side by side along L; where one text has fewer than
    another, chunks of the empty prompt fill it up.

    Raises:
        UsageError: a prompt breaks a rule of the syntax.
    """
    count = max(
        chunk_count(tokenizer, text, steps) for text in dict.fromkeys([*prompts, *negative_prompts])
    )

    @cache
    def encoded(chunk: Chunk) -> Tensor:
        return encode(text_encoder, chunk, clip_skip)

    @cache
    def embedding(text: Text) -> Tensor:
        own = chunks(tokenizer, text)
        own += chunks(tokenizer, NOTHING) * (count - len(own))
        return torch.cat([encoded(chunk) for chunk in own], dim=1)  # (1, L, D)

    def embeddings(texts: Sequence[str]) -> list[Tensor]:
        read = [parse(text) for text in texts]
        moments = range(steps if any(prompt.changes for prompt in read) else 1)
        said = [tuple(prompt.at(step, steps) for prompt in read) for step in moments]
        known = {
            batch: torch.cat([embedding(text) for text in batch]) for batch in dict.fromkeys(said)
        }
        return [known[batch] for batch in said]  # (B, L, D) each

    return Conditioning(embeddings(prompts), embeddings(negative_prompts))


def tell_late(texts: Iterable[str], steps: int) -> None:
    """Warns, with an `SdpipeWarning`, of each change that so many steps never come to."""
    for text in texts:
        for step in parse(text).late(steps):
            warn(
                f"a prompt changes after {step} steps, and {steps} are taken, so it never does; "
                "take a lower number, or a share of the steps, as in [cat:dog:0.5].",
            )


@torch.no_grad()
def encode(text_encoder: CLIPTextModel, chunk: Chunk, clip_skip: int = 1) -> Tensor:
    """The embedding of a chunk, (1, L, D): the encoder's last hidden state, after its norm.

    clip_skip: 1 is the last layer, 2 the one before, whose hidden state goes through the same
    norm. Stable Diffusion pads with the end mark and lets the encoder attend to the padding.
    """
    ids = torch.tensor([chunk.ids], device=text_encoder.device)
    if clip_skip == 1:
        z = text_encoder(ids).last_hidden_state
    else:
        hidden = text_encoder(ids, output_hidden_states=True).hidden_states
        z = text_encoder.final_layer_norm(hidden[-clip_skip])
    return z if set(chunk.weights) == {1.0} else weighted(z, chunk.weights)


def weighted(z: Tensor, weights: Sequence[float]) -> Tensor:
    """An embedding (1, L, D) with each token multiplied by its weight, and its mean restored.

        z'_l = w_l z_l * mean(z) / mean(w z)

    As A1111 does it (`sd_emphasis.py`, "Original"), means over L and D. Where an encoder's
    embeddings have next to none, as the built-in model's, the quotient would be that of two
    accidents, and is left out.
    """
    z_32 = z.float()
    scaled = z_32 * torch.tensor(weights, device=z.device)[:, None]
    mean = z_32.mean()
    if mean.abs() > HAS_MEAN * z_32.std():
        scaled = scaled * (mean / scaled.mean())
    return scaled.to(z.dtype)
