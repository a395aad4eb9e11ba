"""What a model learns from, and how each part of it gets its batches."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import CLIPTokenizer

from sdpipe.cli.progress import bar
from sdpipe.errors import SdpipeError
from sdpipe.latents import pil_to_latents, to_tensor
from sdpipe.prompt.vocabulary import Vocabulary
from sdpipe.training.recipe import Words
from sdpipe.training.refinement import contrastive as mistaken
from sdpipe.training.run_folder import written
from sdpipe.training.tokenizer import RoughCuts

TOGETHER = 8
"""Pictures that are encoded at once: what becomes of more does not fit into a CPU's cache."""


class Pictures(Protocol):
    """Captioned pictures, RGB, all of `size` x `size` pixels. i is in 0 ... len - 1."""

    size: int

    def __len__(self) -> int: ...

    def picture(self, i: int) -> Image.Image:
        """Picture i, the same whenever it is asked for."""

    def caption(self, i: int) -> str:
        """The caption of picture i."""

    def reworded(self, i: int, rng: random.Random) -> str:
        """The same in other words, where any are known."""

    def captions(self) -> list[str]:
        """What the tokenizer learns its words from."""

    def subjects(self) -> list[str]:
        """What the pictures show, each in plain words; picture i shows the subject i % N of N."""

    def rivals(self) -> tuple["Pictures", list[int]]:
        """Pictures that are to be told from each other, and the group of each: rivals share one."""

    def vocabulary(self) -> Vocabulary:
        """The words that the model is trained on, for its folder."""

    def any_picture(self, rng: random.Random) -> Image.Image:
        """What the VAE learns from; it may be more varied than the pictures themselves."""


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step in one process: the same again after a restart."""

    seed: int
    process: int = 0

    def at(self, step: int) -> tuple[random.Random, torch.Generator]:
        """A generator for plain Python and one for torch."""
        seed = (self.seed * 1_000_003 + step) * 1_009 + self.process
        return random.Random(seed), torch.Generator().manual_seed(seed % 2**63)


def squares(pictures: Pictures, side: int, count: int, rng: random.Random) -> Tensor:
    """Squares cut from pictures at random places, (count, 3, side, side) in [-1, 1]."""

    def cut() -> Image.Image:
        left, top = (rng.randint(0, pictures.size - side) for _ in range(2))
        picture = pictures.any_picture(rng)
        return picture.crop((left, top, left + side, top + side))

    return torch.stack([to_tensor(cut()) for _ in range(count)])


@dataclass(frozen=True)
class Captioned:
    """What the text encoder and the U-Net learn from: encoded pictures and their captions."""

    pictures: Pictures
    latents: Tensor  # (N, C, h, w), scaled
    tokenizer: CLIPTokenizer

    def batch(
        self, count: int, recipe: Words, rng: random.Random, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Latents (B, C, h, w) of pictures drawn at random, and tokens (B, L) of what is said of
        them. B is `count`.
        """
        chosen = torch.randint(len(self.latents), (count,), generator=generator)
        said, _ = words(self.pictures, chosen.tolist(), self.tokenizer, recipe, rng, generator)
        return self.latents[chosen].float(), said


def words(
    pictures: Pictures,
    chosen: list[int],
    tokenizer: CLIPTokenizer,
    recipe: Words,
    rng: random.Random,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Tokens (B, L) of what is said of B chosen pictures, in other words where the recipe's lot
    falls so, and of the same in plain words.

    What is dropped is the empty caption, said and meant.
    """
    told = [None if rng.random() < recipe.dropped else i for i in chosen]
    captions = ["" if i is None else pictures.caption(i) for i in told]
    others = ["" if i is None else pictures.reworded(i, rng) for i in told]
    meant, said = padded(captions, tokenizer), padded(others, tokenizer)
    if recipe.merge_dropout:
        said = RoughCuts(tokenizer, recipe.merge_dropout).tokens(others, rng)
    reworded = torch.rand(len(chosen), generator=generator) < recipe.reworded
    return torch.where(reworded[:, None], said, meant), meant


def padded(captions: list[str], tokenizer: CLIPTokenizer) -> Tensor:
    """The tokens of B captions, (B, L)."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def draw_subjects(
    wrong: Tensor, count: int, hard: float, pictures: int, generator: torch.Generator
) -> Tensor:
    """Numbers of so many pictures, (B,): of each the subject is drawn first, then one of its own.

    wrong: how wrong each of N subjects still is, (N,). A share `hard` of the pictures is drawn in
        proportion to its square, the others regardless of it.
    pictures: how many there are; as many of each subject, one at least, and a rest is left out.
    """
    subjects = len(wrong)
    drawn = mistaken.draw(wrong.cpu().double().square(), count, hard, generator)
    of_each = max(pictures // subjects, 1)
    return drawn + subjects * torch.randint(of_each, (count,), generator=generator)


def encode(pictures: Pictures, vae: AutoencoderKL, path: Path, accelerator: Accelerator) -> Tensor:
    """The latents of all pictures as the VAE gives them, (N, C, h, w), in float16.

    They are kept in a file: a run that goes on does not encode again.

    Raises:
        SdpipeError: the file is damaged, or cannot be written.
    """
    if accelerator.is_main_process and not path.exists():
        encoded = []
        with accelerator.autocast(), bar("encode") as move:
            for part in _parts(len(pictures), TOGETHER):
                drawn = [pictures.picture(i) for i in part]
                encoded.append(pil_to_latents(vae, drawn).half().cpu())
                move(part.stop, len(pictures))
        with written(path) as file:
            file.write(save({"latents": torch.cat(encoded).contiguous()}))
    accelerator.wait_for_everyone()
    try:
        return load_file(path)["latents"]
    except (OSError, KeyError, SafetensorError) as error:
        raise SdpipeError(
            f"{path} is damaged ({error}). Delete it, and the same command makes it again."
        ) from error


def unit_variance(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Latents (N, C, h, w) scaled to unit variance, which the VAE's configuration then says too."""
    scale = 1 / max(latents.float().std().item(), 1e-3)
    vae.register_to_config(scaling_factor=scale)
    return (latents.float() * scale).half()


def _parts(length: int, size: int) -> Iterator[range]:
    return (range(i, min(i + size, length)) for i in range(0, length, size))
