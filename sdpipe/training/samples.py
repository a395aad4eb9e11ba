"""Sheets of pictures that show how far the U-Net is: a consumer of `fit`'s checkpoints."""

import time
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import nn

from sdpipe.denoise import denoise
from sdpipe.errors import NotFiniteError
from sdpipe.guidance import Guidance
from sdpipe.io.lettering import transliterate
from sdpipe.io.sheet import Table, draw_sheet, split_table
from sdpipe.latents import draw_noise, latents_to_pil, make_generators
from sdpipe.prompt.encode import condition
from sdpipe.prompt.syntax import literal
from sdpipe.schedule import make_scheduler
from sdpipe.settings import DEFAULTS
from sdpipe.training.dataset import Captioned
from sdpipe.training.ddpm import DenoisingLoss
from sdpipe.training.model import Model
from sdpipe.training.recipe import Samples
from sdpipe.training.run_folder import written
from sdpipe.values import check_scale

COLUMNS = 4
SHARE = 20  # of the time of a sheet passes before the next, at least


class Sheets:
    """Draws the same captions from the same noise, now and then, into `folder`.

    It has random generators of its own: training does not notice it.
    """

    def __init__(
        self,
        data: Captioned,
        model: Model,
        recipe: Samples,
        last: int,
        folder: Path,
        stage: str,
    ) -> None:
        """`last` is the step after which there is always a sheet."""
        self.data, self.model, self.recipe, self.folder = data, model, recipe, folder
        self.last, self.stage = last, stage
        count = min(recipe.pictures, len(data.pictures))
        self.chosen = [i * len(data.pictures) // count for i in range(count)] if count else []
        self.captions = [data.pictures.caption(i) for i in self.chosen]
        self.truth: list[Image.Image] = []
        self.next = 0.0

    def __call__(self, step: int, loss: nn.Module) -> None:
        """Writes `STAGE-STEP.png` where the last one is long enough ago, and at the end."""
        started = time.monotonic()
        if not self.chosen or (started < self.next and step < self.last):
            return
        try:
            drawn = self.draw(cast("DenoisingLoss", loss))
        except NotFiniteError:
            return  # training finds that out itself, and can say why
        if not self.truth:
            latents = self.data.latents[self.chosen].float().split(1)
            self.truth = [latents_to_pil(self.model.vae, z)[0] for z in latents]
        self.folder.mkdir(exist_ok=True)
        with written(self.folder / f"{self.stage}-{step:06}.png") as file:
            sheet(self.truth, drawn, self.captions).save(file, "PNG")
        ended = time.monotonic()
        self.next = ended + max(self.recipe.every, SHARE * (ended - started))

    @torch.no_grad()
    def draw(self, loss: DenoisingLoss) -> list[Image.Image]:
        """The captions as the networks inside the loss draw them now."""
        guidance = Guidance(check_scale("g", self.model.sampling.get("g", DEFAULTS["g"])))
        device = loss.alpha_bar.device
        shape = (self.data.latents.shape[1], *self.data.latents.shape[2:])
        drawn = []
        for seed, caption in enumerate(self.captions):
            text = condition(self.data.tokenizer, loss.text_encoder, [literal(caption)], [""])
            generators = make_generators([seed])
            scheduler = make_scheduler(
                "ddim", self.model.scheduler, self.recipe.steps, device=device
            )
            x_t = draw_noise(generators, shape).to(device) * float(scheduler.init_noise_sigma)
            loop = denoise(loss.unet, scheduler, x_t, text.cond, text.uncond, guidance, generators)
            for step in loop:
                x_t = step.latents
            drawn += latents_to_pil(self.model.vae, x_t)
        return drawn


def sheet(truth: list[Image.Image], drawn: list[Image.Image], captions: list[str]) -> Image.Image:
    """Below each caption the image itself, decoded from its latents, and what was drawn."""
    labels = [transliterate(caption) for caption in captions]
    tables = split_table(Table(labels, ["data", "drawn"], [truth, drawn]), COLUMNS)
    return draw_sheet(tables, drawn[0].size, lambda image: image)
