"""The stages of a training: what each learns from, by which loss, for how long.

Each ends where `fit` does, and leaves its checkpoint in the run's folder.
"""

import contextlib
import copy
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel

from sdpipe.latents import vae_factor
from sdpipe.training import ddpm, vae
from sdpipe.training import text_encoder as text
from sdpipe.training.dataset import (
    Captioned,
    Draws,
    Pictures,
    draw_subjects,
    encode,
    padded,
    squares,
    words,
)
from sdpipe.training.emoji.glyphs import Emoji
from sdpipe.training.loop import fit
from sdpipe.training.model import Model
from sdpipe.training.recipe import Joint, OtherWords, Recipe, Text, Unet
from sdpipe.training.refinement.hard_negatives import Rivals
from sdpipe.training.samples import Sheets

STAGES = ("unet", "joint", "other_words", "both", "spelling", "reading", "placing")
"""Those that follow the text encoder's first, in their order."""
SHORT = 1024  # places of the latents, or tokens
Batch = Callable[[int], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Run:
    """What every stage of a training run works with; `folder` holds what it leaves."""

    recipe: Recipe
    model: Model
    folder: Path
    accelerator: Accelerator

    def draws(self) -> Draws:
        """The random numbers of this process."""
        return Draws(self.recipe.seed, self.accelerator.process_index)

    def steps_before(self, stage: str) -> int:
        """How many steps those of `STAGES` take that come before this one: its random numbers are
        its own.
        """
        stages = [getattr(self.recipe, s) for s in STAGES[: STAGES.index(stage)]]
        return sum(s.steps * (s.cycles if isinstance(s, Joint) else 1) for s in stages)

    def share(self, batch: int) -> int:
        """How much of a batch this process draws."""
        return max(batch // self.accelerator.num_processes, 1)


def train_vae(run: Run, pictures: Pictures) -> None:
    """Trains the VAE on squares, and in the end on whole pictures, of which it takes fewer; then
    its decoder alone.
    """
    r, draws, size = run.recipe.vae, run.draws(), run.recipe.size
    factor = vae_factor(run.model.vae)

    def batch(step: int) -> tuple[Tensor, ...]:
        rng, generator = draws.at(step)
        whole = step >= (1 - r.whole) * r.steps
        side = size if whole else r.crop
        x = squares(pictures, side, count(side), rng)
        shape = (len(x), r.latent_channels, side // factor, side // factor)
        return x, torch.randn(shape, generator=generator)

    def whole_pictures(step: int) -> tuple[Tensor]:
        rng, _ = draws.at(-1 - step)
        return (squares(pictures, size, count(size), rng),)

    def count(side: int) -> int:
        """How many squares of a side have the pixels of a batch, in this process."""
        pixels = r.batch * r.crop**2 / run.accelerator.num_processes
        return max(round(pixels / side**2), 1)

    loss = vae.NegativeElbo(run.model.vae, r).to(run.accelerator.device)
    rate = r.learning_rate
    where = (run.folder, run.accelerator)
    fit("vae", loss, batch, *where, steps=r.steps, learning_rate=rate, ema=r.ema)
    decoding = vae.DecodingError(run.model.vae, r)
    run.model.vae.decoder.requires_grad_(True)
    rate = r.decoder_rate
    fit(
        "decoder",
        decoding,
        whole_pictures,
        *where,
        steps=r.decoder_steps,
        learning_rate=rate,
        muon_rate=rate,
        ema=r.ema,
    )


def train_text_encoder(run: Run, data: Captioned) -> None:
    """Trains the text encoder alone, to guess the latents from the caption."""
    r, draws, count = run.recipe.text, run.draws(), run.share(run.recipe.text.batch)

    def batch(step: int) -> tuple[Tensor, ...]:
        x_0, said = data.batch(count, r, *draws.at(step))
        return said, x_0

    channels, size = data.latents.shape[1:3]
    loss = text.LatentsFromText(run.model.text_encoder, r.grid, channels, size)
    _fit(run, "text", loss, batch, r, run.recipe.tokenizer.length)


def train_further(run: Run, data: Captioned) -> None:
    """Trains what follows the U-Net's first training, as far as the recipe has steps for it."""
    for stage in STAGES[1:]:
        r = getattr(run.recipe, stage)
        if r.steps:
            learn = train_other_words if isinstance(r, OtherWords) else train_together
            learn(run, data, stage)


def train_other_words(run: Run, data: Captioned, stage: str) -> None:
    """Trains the text encoder alone, to say of other words what it says of the plain ones."""
    r: OtherWords = getattr(run.recipe, stage)
    draws, before = run.draws(), run.steps_before(stage)
    loss, say = _other_words(run, data.pictures, r, run.share(r.batch))
    loss.encoder.requires_grad_(True)

    def batch(step: int) -> tuple[Tensor, ...]:
        return say(*draws.at(before + step))

    _fit(run, stage, loss, batch, r, run.recipe.tokenizer.length)
    _take_back(loss.encoder, loss.before, r.taken)


@torch.no_grad()
def _take_back(network: nn.Module, start: nn.Module, taken: float) -> None:
    """Of the way that a network's weights have gone since a `start` it keeps a share.

    In between it does more nearly what it did before, and of what is new little less than in the
    end: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models".
    """
    for old, new in zip(start.parameters(), network.parameters(), strict=True):
        new.copy_(torch.lerp(old.to(new.device), new, taken))


def _other_words(
    run: Run, pictures: Pictures, r: OtherWords, count: int
) -> tuple[text.OtherWords, Callable[[random.Random, torch.Generator], tuple[Tensor, ...]]]:
    """The loss of saying the same of other words, and what draws it so many captions."""
    tokenizer, subjects = run.model.tokenizer, pictures.subjects()
    if isinstance(pictures, Emoji):  # each name as often, so that picture i shows subject i % N
        pictures = pictures.with_shares(r.shares or pictures.recipe.shares)
    loss = text.OtherWords(run.model.text_encoder, r.kept, r.contrast, padded(subjects, tokenizer))

    def say(rng: random.Random, generator: torch.Generator) -> tuple[Tensor, ...]:
        chosen = draw_subjects(loss.wrong, count, r.hard, len(pictures), generator)
        said, meant = words(pictures, chosen.tolist(), tokenizer, r, rng, generator)
        return said, meant, chosen % len(subjects)

    return loss, say


def train_together(run: Run, data: Captioned, stage: str) -> None:
    """Trains the U-Net, and the text encoder with it where the stage says so, in its cycles.

    The rates rise and fall in each. It begins with the mean of what those before have ended with,
    and the networks end as the mean of all, stochastic weight averaging, Izmailov et al. (2018), or
    on the way there.
    """
    told = asdict(getattr(run.recipe, stage))
    cycles, taken = told.pop("cycles"), told.pop("taken")
    r = replace(run.recipe.unet, **told)
    networks = nn.ModuleList([run.model.unet, run.model.text_encoder])
    start, mean = copy.deepcopy(networks), AveragedModel(networks)
    for cycle in range(cycles):
        train_unet(run, data, stage, r, cycle)
        mean.update_parameters(networks)
        networks.load_state_dict(mean.module.state_dict())
    _take_back(networks, start, taken)


def train_unet(run: Run, data: Captioned, stage: str, r: Unet, cycle: int = 0) -> None:
    """Trains the U-Net; the text encoder goes on learning with it, or stays as it is."""
    draws, count, model = run.draws(), run.share(r.batch), run.model
    before = run.steps_before(stage) + cycle * r.steps
    if cycle:
        stage = f"{stage}{cycle + 1}"
    loss = ddpm.DenoisingLoss(model.unet, model.text_encoder, r)
    if r.captions:
        other_words, say = _other_words(
            run, data.pictures, run.recipe.other_words, run.share(r.captions)
        )
        loss = ddpm.WithOtherWords(model.unet, other_words, r)
    if r.rivals:
        rivals, show = _rivals(run, data.pictures, r)
        loss = ddpm.ToldApart(model.unet, other_words, rivals, r)

    def batch(step: int) -> tuple[Tensor, ...]:
        rng, generator = draws.at(before + step)
        x_0, said = data.batch(count, r, rng, generator)
        t = ddpm.draw_timesteps(count, r, generator)
        shown: tuple[Tensor, ...] = ()
        if r.rivals:
            *first, numbers = show(generator)
            x_0, said, t = map(torch.cat, zip(first, (x_0, said, t), strict=True))
            shown = (numbers,)
        denoised = x_0, said, t, torch.randn(x_0.shape, generator=generator)
        return denoised + (say(rng, generator) if r.captions else ()) + shown

    loss.unet.requires_grad_(True)
    loss.text_encoder.requires_grad_(r.train_text_encoder)
    sheets = Sheets(data, model, run.recipe.samples, r.steps, run.folder / "samples", stage)
    places = data.latents[0, 0].numel()
    _fit(run, stage, loss, batch, r, places, warmup=r.warmup, ema=r.ema, show=sheets)


def _rivals(
    run: Run, pictures: Pictures, r: Unet
) -> tuple[Rivals, Callable[[torch.Generator], tuple[Tensor, ...]]]:
    """The pictures that are to be told apart, and what draws some of a batch: their latents,
    tokens, timesteps and numbers.
    """
    some, groups = pictures.rivals()
    path = run.folder / "rivals.safetensors"
    latents = encode(some, run.model.vae, path, run.accelerator)
    rivals = Rivals(latents, groups, [some.caption(i) for i in range(len(some))])

    def show(generator: torch.Generator) -> tuple[Tensor, ...]:
        shown = rivals.draw(run.share(r.rivals), r.rivals_hard, generator)
        said = padded([rivals.captions[i] for i in shown], run.model.tokenizer)
        t = ddpm.draw_timesteps(len(shown), r, generator, r.rivals_early)
        return rivals.latents(shown).cpu(), said, t, shown

    return rivals, show


def _fit(
    run: Run,
    stage: str,
    loss: nn.Module,
    batch: Batch,
    r: Text | OtherWords | Unet,
    places: int,
    **more: Any,
) -> None:
    """Fits a loss whose networks attend over so many `places`; `more` goes to `fit` as it is."""
    loss.to(run.accelerator.device)
    with _attention(run.accelerator, places):
        fit(
            stage,
            loss,
            batch,
            run.folder,
            run.accelerator,
            steps=r.steps,
            learning_rate=r.learning_rate,
            muon_rate=r.muon_rate,
            **more,
        )


def _attention(accelerator: Accelerator, places: int) -> contextlib.AbstractContextManager[None]:
    """On short sequences a CPU learns faster without torch's kernel for long ones: the U-Net by a
    sixth, the text encoder by two.
    """
    short = accelerator.device.type == "cpu" and places <= SHORT
    return sdpa_kernel(SDPBackend.MATH) if short else contextlib.nullcontext()
