"""From prompts to the embeddings that the U-Net attends to.

Shapes: B images, L tokens (77 for CLIP, a multiple of it for a longer prompt), D the width of the
text encoder (768 for v1-4). `syntax.py` parses a prompt, `chunks.py` tokenises it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from sdpipe.prompt.chunks import Chunk, TokenizedPrompt, tokenize_prompts
from sdpipe.prompt.tree import Timing

MIN_MEAN = 0.02
"""In standard deviations: the mean of a smaller one is noise, and is not restored."""


@dataclass(frozen=True, eq=False)
class PromptEmbeddings:
    """The embeddings of prompts and of their negative prompts, for classifier-free guidance.

    cond: of the prompts, (B, L, D): one tensor for the whole run, or one for each step if a prompt
        changes from step to step.
    uncond: of the negative prompts, in the same form.
    """

    cond: list[Tensor]
    uncond: list[Tensor]

    def __len__(self) -> int:
        """The number of images, B."""
        return len(self.cond[0])

    def first(self, steps: int) -> "PromptEmbeddings":
        """The embeddings of the first steps of the run."""
        return PromptEmbeddings(self.cond[:steps], self.uncond[:steps])

    def last(self, steps: int) -> "PromptEmbeddings":
        """The embeddings of the last steps of the run."""
        return PromptEmbeddings(self.cond[-steps:], self.uncond[-steps:])


def encode_prompts(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    *,
    steps: int = 1,
    clip_skip: int = 1,
) -> PromptEmbeddings:
    """Encodes prompts and negative prompts, one of each per image, for a run of `steps`.

    Raises:
        UsageError: a prompt breaks a rule of the syntax.
    """
    tokenized = tokenize_prompts(tokenizer, [*prompts, *negative_prompts], Timing(steps))
    return encode_tokenized(
        text_encoder,
        [tokenized[prompt] for prompt in prompts],
        [tokenized[prompt] for prompt in negative_prompts],
        clip_skip=clip_skip,
    )


def encode_tokenized(
    text_encoder: CLIPTextModel,
    prompts: Sequence[TokenizedPrompt],
    negative_prompts: Sequence[TokenizedPrompt],
    *,
    clip_skip: int = 1,
) -> PromptEmbeddings:
    """Encodes tokenised prompts and negative prompts, one of each per image.

    Every distinct chunk is encoded once and alone, so that its embedding is bit-identical in every
    batch. A prompt's chunks are joined along L; chunks of the empty prompt fill shorter prompts up
    to the longest one.
    """
    length = max(map(len, [*prompts, *negative_prompts]))

    @cache
    def embed_chunk(chunk: Chunk) -> Tensor:
        return encode_chunk(text_encoder, chunk, clip_skip)  # (1, L, D)

    def embed_variants(batch: Sequence[TokenizedPrompt], variants: Sequence[int]) -> Tensor:
        rows = [
            torch.cat([embed_chunk(chunk) for chunk in prompt.padded(variant, length)], dim=1)
            for prompt, variant in zip(batch, variants, strict=True)
        ]
        return torch.cat(rows)  # (B, length * L, D)

    def embed(batch: Sequence[TokenizedPrompt]) -> list[Tensor]:
        steps = max(len(prompt.schedule) for prompt in batch)
        schedule = [
            tuple(prompt.schedule[step % len(prompt.schedule)] for prompt in batch)
            for step in range(steps)
        ]
        embeddings = {
            variants: embed_variants(batch, variants) for variants in dict.fromkeys(schedule)
        }
        return [embeddings[variants] for variants in schedule]

    return PromptEmbeddings(embed(prompts), embed(negative_prompts))


@torch.no_grad()
def encode_chunk(text_encoder: CLIPTextModel, chunk: Chunk, clip_skip: int = 1) -> Tensor:
    """The embedding of a chunk, (1, L, D): the text encoder's last hidden state after its norm.

    clip_skip: 1 for the last layer, 2 for the one before it, whose hidden state goes through the
    same norm. As in Stable Diffusion, there is no attention mask: padding is attended to.
    """
    ids = torch.tensor([chunk.ids], device=text_encoder.device)
    if clip_skip == 1:
        z = text_encoder(ids).last_hidden_state
    else:
        hidden = text_encoder(ids, output_hidden_states=True).hidden_states
        z = text_encoder.final_layer_norm(hidden[-clip_skip])
    return z if set(chunk.weights) == {1.0} else apply_weights(z, chunk.weights)


def apply_weights(z: Tensor, weights: Sequence[float]) -> Tensor:
    """Multiplies each token of an embedding (1, L, D) by its weight and restores the mean.

        z'_l = w_l z_l * mean(z) / mean(w z)

    As in A1111 (`sd_emphasis.py`, "Original"); means are over L and D. If the mean is close to 0,
    as in the built-in model, the quotient of two means is noise and is left out.
    """
    z_32 = z.float()
    scaled = z_32 * torch.tensor(weights, device=z.device)[:, None]
    mean = z_32.mean()
    if mean.abs() > MIN_MEAN * z_32.std():
        scaled = scaled * (mean / scaled.mean())
    return scaled.to(z.dtype)
