"""The data of a run: images, captions, latents, and the random numbers of its batches."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from sdpipe.latents import to_tensor
from sdpipe.prompt.vocabulary import Vocabulary
from sdpipe.training.recipe import Captions
from sdpipe.training.tokenizer import BPEDropout


class Dataset(Protocol):
    """Captioned RGB images of `size` x `size` pixels. i is in 0 ... len - 1."""

    size: int

    def __len__(self) -> int: ...

    def image(self, i: int) -> Image.Image:
        """Image i, the same in every call."""

    def augmented_image(self, rng: random.Random) -> Image.Image:
        """A random image for the VAE, which may be more varied than the others."""

    def caption(self, i: int) -> str:
        """The canonical caption of image i."""

    def paraphrase(self, i: int, rng: random.Random) -> str:
        """The caption in other words, if the dataset knows any."""

    def captions(self) -> list[str]:
        """The captions from which the tokenizer is learned."""

    def vocabulary(self) -> Vocabulary:
        """The words that the model learns, for its folder."""

    def subjects(self) -> list[str]:
        """The N subjects, as captions."""

    def balanced(self, shares: list[float] | None) -> "Dataset":
        """The same dataset with image i of subject i % N, and with these shares of its kinds of
        images, if it has kinds. None keeps the shares.
        """

    def contrast_groups(self) -> tuple["Dataset", list[int]]:
        """Images for the contrastive loss, and the group of each: it compares within a group."""

    def fingerprint(self) -> list[list[str]]:
        """Rows of name, caption and hash that tell the data from other data."""

    def prepare(self, progress: Callable[[int, int], None]) -> None:
        """Reads what has to be read once, and reports how many images of how many are done."""

    def describe(self) -> str:
        """One line for the log: how many images there are."""


@dataclass(frozen=True)
class StepRng:
    """The random generators of each step in each process: a resumed run draws the same numbers."""

    seed: int
    process: int = 0

    def at(self, step: int) -> tuple[random.Random, torch.Generator]:
        """Python's generator and torch's."""
        seed = (self.seed * 1_000_003 + step) * 1_009 + self.process
        return random.Random(seed), torch.Generator().manual_seed(seed % 2**63)


def random_crops(dataset: Dataset, side: int, count: int, rng: random.Random) -> Tensor:
    """Square crops of random images at random places, (count, 3, side, side) in [-1, 1]."""

    def crop() -> Image.Image:
        left, top = (rng.randint(0, dataset.size - side) for _ in range(2))
        image = dataset.augmented_image(rng)
        return image.crop((left, top, left + side, top + side))

    return torch.stack([to_tensor(crop()) for _ in range(count)])


@dataclass(frozen=True)
class CaptionedLatents:
    """What the text encoder and the U-Net learn from: encoded images and their captions."""

    dataset: Dataset
    latents: Tensor  # (N, C, h, w), scaled
    tokenizer: CLIPTokenizer

    def batch(
        self, count: int, captions: Captions, rng: random.Random, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Latents (B, C, h, w) of random images, and the tokens (B, L) of their captions."""
        chosen = torch.randint(len(self.latents), (count,), generator=generator)
        tokens, _ = draw_captions(
            self.dataset, chosen.tolist(), self.tokenizer, captions, rng, generator
        )
        return self.latents[chosen].float(), tokens


def draw_captions(
    dataset: Dataset,
    chosen: list[int],
    tokenizer: CLIPTokenizer,
    captions: Captions,
    rng: random.Random,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Tokens (B, L) of the captions of B images, some of them paraphrased, and tokens (B, L) of
    their canonical captions. A dropped caption is empty in both.
    """
    kept = [None if rng.random() < captions.caption_dropout else i for i in chosen]
    canonical = ["" if i is None else dataset.caption(i) for i in kept]
    paraphrases = ["" if i is None else dataset.paraphrase(i, rng) for i in kept]
    canonical_tokens = tokenize(canonical, tokenizer)
    if captions.bpe_dropout:
        tokens = BPEDropout(tokenizer, captions.bpe_dropout).tokenize(paraphrases, rng)
    else:
        tokens = tokenize(paraphrases, tokenizer)
    paraphrased = torch.rand(len(chosen), generator=generator) < captions.paraphrase_fraction
    return torch.where(paraphrased[:, None], tokens, canonical_tokens), canonical_tokens


def tokenize(captions: list[str], tokenizer: CLIPTokenizer) -> Tensor:
    """The padded tokens of B captions, (B, L)."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def scale_to_unit_variance(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Scales latents (N, C, h, w) to unit variance, and sets the VAE's scaling factor to match."""
    scale = 1 / max(latents.float().std().item(), 1e-3)
    vae.register_to_config(scaling_factor=scale)
    return (latents.float() * scale).half()
