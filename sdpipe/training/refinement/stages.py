"""The further stages of the built-in model: paraphrases, typos, adaptation, hard negatives."""

import random
from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from sdpipe.training.dataset import CaptionedLatents, Dataset, draw_captions, tokenize
from sdpipe.training.ddpm import DenoisingLoss, draw_timesteps
from sdpipe.training.recipe import DistillationStage, RefinementStage, Unet
from sdpipe.training.refinement.averaging import average_cycles, interpolate_weights
from sdpipe.training.refinement.distillation import ParaphraseDistillation
from sdpipe.training.refinement.hard_negatives import HardNegatives, sample_subjects
from sdpipe.training.stages import Run, fit_denoiser, train_denoiser

NOISY = 0.85
"""From this fraction of the timesteps on, a guess of x_0 shows how well the caption is known."""

DrawParaphrases = Callable[[int, random.Random, torch.Generator], tuple[Tensor, ...]]


def refine(run: Run, data: CaptionedLatents) -> None:
    """Trains the stages of `refinement` that the recipe has."""
    for name, stage in run.recipe.stages().items():
        if isinstance(stage, DistillationStage) and stage.steps:
            distill(run, data, name, stage)
        if isinstance(stage, RefinementStage) and stage.steps:
            train_in_cycles(run, data, name, stage)


def distill(run: Run, data: CaptionedLatents, name: str, stage: DistillationStage) -> None:
    """Trains the text encoder alone, on paraphrases."""
    loss, draw_paraphrases = make_distillation(run, data.dataset, stage)
    loss.encoder.requires_grad_(True)
    first_step, count = run.recipe.steps_before(name), run.local_batch(stage.batch_size)

    def batch(step: int) -> tuple[Tensor, ...]:
        return draw_paraphrases(count, *run.rng.at(first_step + step))

    run.fit(name, loss, batch, run.recipe.tokenizer.max_length, **stage.options)
    interpolate_weights(loss.encoder, loss.teacher, stage.alpha)


def make_distillation(
    run: Run, dataset: Dataset, stage: DistillationStage
) -> tuple[ParaphraseDistillation, DrawParaphrases]:
    """The distillation loss, and what draws a batch for it: tokens (B, L), canonical tokens (B, L)
    and subjects (B,) of random captions, in which every subject is equally often.
    """
    subjects, tokenizer = dataset.subjects(), run.model.tokenizer
    loss = ParaphraseDistillation(
        run.model.text_encoder,
        stage.canonical_weight,
        stage.contrastive_weight,
        tokenize(subjects, tokenizer),
    )
    balanced = dataset.balanced(stage.shares)

    def draw(count: int, rng: random.Random, generator: torch.Generator) -> tuple[Tensor, ...]:
        chosen = sample_subjects(loss.error, count, stage.hard_fraction, len(balanced), generator)
        tokens = draw_captions(balanced, chosen.tolist(), tokenizer, stage, rng, generator)
        return *tokens, chosen % len(subjects)

    return loss, draw


def train_in_cycles(run: Run, data: CaptionedLatents, name: str, stage: RefinementStage) -> None:
    """Trains the U-Net, and the text encoder unless it is frozen, in the cycles of a stage."""

    def train(cycle: int) -> None:
        first_step = run.recipe.steps_before(name) + cycle * stage.steps
        train_cycle = train_with_paraphrases if stage.paraphrases else train_denoiser
        train_cycle(run, data, f"{name}{cycle + 1}" if cycle else name, stage, first_step)

    networks = nn.ModuleList([run.model.unet, run.model.text_encoder])
    average_cycles(networks, stage.cycles, stage.alpha, train)


def train_with_paraphrases(
    run: Run, data: CaptionedLatents, name: str, stage: RefinementStage, first_step: int
) -> None:
    """Trains by DDPM's algorithm, with distillation and, if the stage has them, hard negatives."""
    model, timesteps = run.model, run.recipe.unet.num_train_timesteps
    assert run.recipe.refinement.paraphrases is not None
    distillation, draw_paraphrases = make_distillation(
        run, data.dataset, run.recipe.refinement.paraphrases
    )
    negatives = load_negatives(run, data.dataset) if stage.negatives else None

    def batch(step: int) -> tuple[Tensor, ...]:
        rng, generator = run.rng.at(first_step + step)
        x_0, tokens = data.batch(run.local_batch(stage.batch_size), stage, rng, generator)
        t = draw_timesteps(len(x_0), timesteps, stage.timestep_exponent, generator)
        shown: tuple[Tensor, ...] = ()
        if negatives is not None:
            count = run.local_batch(stage.negatives)
            indices = negatives.sample(count, stage.hard_fraction, generator)
            captions = [negatives.captions[i] for i in indices]
            exponent = stage.negative_timestep_exponent
            x_0 = torch.cat([negatives.latents(indices).cpu(), x_0])
            tokens = torch.cat([tokenize(captions, model.tokenizer), tokens])
            t = torch.cat([draw_timesteps(count, timesteps, exponent, generator), t])
            shown = (indices,)
        eps = torch.randn(x_0.shape, generator=generator)
        paraphrases = draw_paraphrases(run.local_batch(stage.paraphrases), rng, generator)
        return x_0, tokens, t, eps, *paraphrases, *shown

    loss = RefinementLoss(model.unet, distillation, negatives, stage, run.recipe.unet)
    fit_denoiser(run, data, name, stage, loss, batch)


def load_negatives(run: Run, dataset: Dataset) -> HardNegatives:
    """The images of the contrastive loss, encoded."""
    images, groups = dataset.contrast_groups()
    latents = run.encode(images, "hard_negatives")
    return HardNegatives(latents, groups, [images.caption(i) for i in range(len(images))])


class RefinementLoss(DenoisingLoss):
    """The denoising loss plus the distillation of paraphrases, plus a contrastive loss on x_0.

    One step takes all of them: alone, the denoising loss makes the text encoder forget paraphrases,
    and distillation moves canonical captions away from what the U-Net has learned to read.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        distillation: ParaphraseDistillation,
        negatives: HardNegatives | None,
        stage: RefinementStage,
        recipe: Unet,
    ) -> None:
        super().__init__(unet, distillation.encoder, recipe)
        self.distillation, self.distillation_weight = distillation, stage.distillation_weight
        self.negatives, self.contrastive_weight = negatives, stage.contrastive_weight

    def forward(  # type: ignore[override]
        self,
        x_0: Tensor,
        tokens: Tensor,
        t: Tensor,
        eps: Tensor,
        paraphrases: Tensor,
        canonical: Tensor,
        subjects: Tensor,
        indices: Tensor | None = None,
    ) -> Tensor:
        """The first four as in `DenoisingLoss`, the next three as in `ParaphraseDistillation`.

        indices: the first P images are these of the hard negatives, (P,).
        """
        outputs = self.text_encoder(torch.cat([tokens, paraphrases])).last_hidden_state
        text, paraphrased = outputs[: len(tokens)], outputs[len(tokens) :]
        distillation = self.distillation.loss(paraphrased, paraphrases, canonical, subjects)
        x_t, output = self.predict(x_0, text, t, eps)
        contrast = x_0.new_zeros(())
        if self.negatives is not None and indices is not None:
            first = slice(len(indices))
            x0 = self.predict_x0(output[first], x_t[first], t[first])
            is_noisy = t[first] > NOISY * len(self.alpha_bar)
            contrast = self.negatives.loss(x0, indices, is_noisy)
        denoising = self.error(output, x_0, t, eps) + self.contrastive_weight * contrast
        return denoising + self.distillation_weight * distillation

    def predict_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The x_0 that an output of the U-Net implies, (B, C, h, w)."""
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        if self.predicts_v:
            return alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * output
        return (x_t - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt()
