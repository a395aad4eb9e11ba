"""Sample sheets: images that the model draws now and then while it learns."""

import time
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import nn

from sdpipe.components import Components
from sdpipe.denoise import denoise
from sdpipe.errors import NotFiniteError
from sdpipe.guidance import Guidance
from sdpipe.io import png
from sdpipe.io.files import atomic_write
from sdpipe.io.lettering import distinguish, transliterate
from sdpipe.io.mark import GENERATED
from sdpipe.io.sheet import Table, draw_sheet, split_table
from sdpipe.latents import draw_noise, latents_to_pil, make_generators
from sdpipe.prompt.encode import encode_prompts
from sdpipe.prompt.syntax import escape
from sdpipe.schedule import make_scheduler
from sdpipe.settings import DEFAULTS
from sdpipe.training.dataset import CaptionedLatents
from sdpipe.training.ddpm import DenoisingLoss
from sdpipe.training.loop import Interval
from sdpipe.training.recipe import Samples
from sdpipe.training.run_folder import RESUME
from sdpipe.values import check_scale

COLUMNS = 4


class SampleSheets:
    """Draws the same captions from the same noise into `folder`, as `fit`'s `on_checkpoint`.

    It has its own random generators, so training is the same with and without it.
    """

    def __init__(
        self,
        data: CaptionedLatents,
        model: Components,
        recipe: Samples,
        last_step: int,
        folder: Path,
        stage: str,
    ) -> None:
        """A sheet is always drawn after `last_step`."""
        self.data, self.model, self.recipe, self.folder = data, model, recipe, folder
        self.last_step, self.stage = last_step, stage
        size = len(data.dataset)
        count = min(recipe.images, size)
        self.chosen = [i * size // count for i in range(count)]
        self.captions = [data.dataset.caption(i) for i in self.chosen]
        self.originals: list[Image.Image] = []
        self.interval = Interval(recipe.seconds, now=True)

    def __call__(self, step: int, loss: nn.Module) -> None:
        """Writes `STAGE-STEP.png` if the last sheet is old enough, and after the last step."""
        started = time.monotonic()
        if not self.chosen or not (self.interval.is_due() or step == self.last_step):
            return
        try:
            drawn = self.draw(cast("DenoisingLoss", loss))
        except NotFiniteError:
            return  # the loop finds that too, and says what to do
        if not self.originals:
            latents = self.data.latents[self.chosen].float().split(1)
            self.originals = [latents_to_pil(self.model.vae, z)[0] for z in latents]
        self.folder.mkdir(exist_ok=True)
        with atomic_write(self.folder / f"{self.stage}-{step:06}.png", RESUME) as file:
            drawing = sheet(self.originals, drawn, self.captions)
            file.write(png.encode(drawing, "PNG", mark=GENERATED))
        self.interval.restart(time.monotonic() - started)

    @torch.no_grad()
    def draw(self, loss: DenoisingLoss) -> list[Image.Image]:
        """Draws the captions with the networks of a loss."""
        guidance = Guidance(check_scale("g", self.model.defaults.get("g", DEFAULTS["g"])))
        _, c, h, w = self.data.latents.shape
        device = loss.alpha_bar.device
        images = []
        for seed, caption in enumerate(self.captions):
            text = encode_prompts(self.data.tokenizer, loss.text_encoder, [escape(caption)], [""])
            generators = make_generators([seed])
            scheduler = make_scheduler(
                "ddim", self.model.scheduler_config, self.recipe.steps, device=device
            )
            x_t = draw_noise(generators, (c, h, w)).to(device) * float(scheduler.init_noise_sigma)
            loop = denoise(loss.unet, scheduler, x_t, text.cond, text.uncond, guidance, generators)
            for step in loop:
                x_t = step.latents
            images += latents_to_pil(self.model.vae, x_t)
        return images


def sheet(
    originals: list[Image.Image], drawn: list[Image.Image], captions: list[str]
) -> Image.Image:
    """Lays out below each caption the image decoded from its latents, and what was drawn."""
    numbered = distinguish(captions, transliterate)
    labels = [transliterate(numbered[caption]) for caption in captions]
    tables = split_table(Table(labels, ["data", "drawn"], [originals, drawn]), COLUMNS)
    return draw_sheet(tables, drawn[0].size, lambda image: image)
