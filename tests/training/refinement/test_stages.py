"""The combined loss of the refinement stages, against its parts."""

import dataclasses

import pytest
import torch
from diffusers import DDPMScheduler
from support.captions import NumbersEncoder, distillation
from torch import nn

from sdpipe.training.ddpm import DenoisingLoss
from sdpipe.training.recipe import RefinementStage
from sdpipe.training.recipe_file import load_recipe
from sdpipe.training.refinement.hard_negatives import HardNegatives
from sdpipe.training.refinement.stages import RefinementLoss

TOKENS = torch.tensor([[8, 1, 9, 4], [8, 2, 9, 2], [8, 3, 9, 3]])
SUBJECTS = torch.zeros(3, dtype=torch.long)


def recipe(prediction_type="v_prediction"):
    return dataclasses.replace(load_recipe().unet, prediction_type=prediction_type)


def stage(**weights):
    return RefinementStage(
        steps=1, batch_size=3, learning_rate=1, warmup_steps=0, ema_decay=0, **weights
    )


def latents():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn((3, 4, 2, 2), generator=generator) for _ in range(2)]


class KnownOutput(nn.Module):
    """A U-Net that always returns the same output, and remembers the prompt embeddings."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x_t, t, text):
        self.text = text
        return type("Output", (), {"sample": self.output})


def paraphrases():
    tokens = TOKENS.flip(0).clone()
    tokens[:, 1] = 5
    return tokens


def test_denoising_and_distillation_add_up_with_their_weight():
    x_0, eps = latents()
    t = torch.tensor([10, 500, 900])
    unet = KnownOutput(eps)
    denoising = DenoisingLoss(unet, NumbersEncoder(), recipe())(x_0, TOKENS, t, eps)
    distill = distillation(NumbersEncoder(), canonical_weight=1.0, contrastive_weight=0.3)
    alone = distill(paraphrases(), TOKENS, SUBJECTS)
    both = RefinementLoss(unet, distill, None, stage(distillation_weight=0.3), recipe())
    value = both(x_0, TOKENS, t, eps, paraphrases(), TOKENS, SUBJECTS)
    assert alone > 0
    assert value.item() == pytest.approx((denoising + 0.3 * alone).item(), rel=1e-5)
    assert torch.equal(unet.text, NumbersEncoder()(TOKENS).last_hidden_state)
    assert both.text_encoder is distill.encoder  # it learns from both losses


def test_the_contrastive_loss_of_the_first_images_is_added():
    x_0, eps = latents()
    t, indices = torch.tensor([900, 10, 500]), torch.tensor([1, 0])
    weights = stage(distillation_weight=0.3, contrastive_weight=0.5)

    def negatives():
        return HardNegatives(x_0[[1, 0]], [0, 0], ["one", "two"])

    def loss(negatives):
        distill = distillation(NumbersEncoder(), canonical_weight=1.0, contrastive_weight=0.3)
        return RefinementLoss(KnownOutput(eps), distill, negatives, weights, recipe())

    first = x_0, TOKENS, t, eps, paraphrases(), TOKENS, SUBJECTS
    without, ours, again = loss(None)(*first), loss(negatives()), negatives()
    value = ours(*first, indices)
    a = ours.alpha_bar[t].view(-1, 1, 1, 1)
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * eps
    x0 = a.sqrt() * x_t - (1 - a).sqrt() * eps  # of v, where the U-Net returns eps
    contrast = again.loss(x0[:2], indices, torch.tensor([True, False]))
    assert contrast > 0
    assert value.item() == pytest.approx((without + 0.5 * contrast).item(), rel=1e-5)
    assert torch.equal(ours.negatives.error_rate, again.error_rate)  # updated by noisy steps only
    assert ours.negatives.error_rate[0] == 1


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_guess_of_x_0_is_that_of_diffusers(prediction_type):
    x_t, output = latents()
    t = torch.tensor([0, 500, 999])
    theirs = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        clip_sample=False,
    )
    distill = distillation(NumbersEncoder(), canonical_weight=1.0, contrastive_weight=0.0)
    ours = RefinementLoss(KnownOutput(x_t), distill, None, stage(), recipe(prediction_type))
    x0 = ours.predict_x0(output, x_t, t)
    for i in range(3):
        expected = theirs.step(output[i], int(t[i]), x_t[i]).pred_original_sample
        assert torch.allclose(x0[i], expected, rtol=1e-3, atol=1e-4)
