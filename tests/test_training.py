"""Every formula of the training against something that does not share its code."""

import dataclasses
import math
import random

import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import nn
from torch.distributions import Laplace, Normal, kl_divergence

from sdpipe import NotFiniteError, SdpipeError, UsageError
from sdpipe.training import ddpm, text, vae
from sdpipe.training.data import Captioned, Draws, draw_subjects, squares, unit_variance, words
from sdpipe.training.fit import fit
from sdpipe.training.optimizer import FlatMuon, make_optimizers
from sdpipe.training.recipe import EMOJI, IMAGEFOLDER, Words, adjusted, load_recipe
from sdpipe.training.tokenizer import RoughCuts, train_tokenizer
from sdpipe.training.train import make_accelerator


def test_alpha_bar_is_that_of_diffusers():
    ours = ddpm.cumulative_alpha(0.00085, 0.012, 1000)
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert torch.allclose(ours, theirs.alphas_cumprod, rtol=1e-5)
    assert ours[0] == pytest.approx(1 - 0.00085)


def test_divergence_is_that_of_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = (torch.randn((5, 4, 3, 3), generator=generator) for _ in range(2))
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
    assert torch.allclose(vae.kl_divergence(mean, log_variance), expected, atol=1e-6)
    zero = torch.zeros(1)
    assert vae.kl_divergence(zero, zero) == 0


def test_reconstruction_is_a_laplace_likelihood_up_to_a_constant():
    x, y = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    likelihood = Laplace(y, 1.0).log_prob(x).mean()
    constant = torch.tensor(2.0).log()
    plain = vae.reconstruction_error(x, y, edges=0.0, square=0.0)
    assert torch.allclose(plain, -likelihood - constant)
    assert vae.reconstruction_error(x, x, edges=0.5, square=1.0) == 0
    # The square is that of a normal distribution, but for the half.
    gaussian = -2 * Normal(y, 1.0).log_prob(x).mean() - math.log(2 * math.pi)
    both = vae.reconstruction_error(x, y, edges=0.0, square=3.0)
    assert torch.allclose(both, plain + 3 * gaussian, atol=1e-5)
    # A constant offset has no edges, so only the first term sees it.
    offset = vae.reconstruction_error(x, x + 0.25, edges=10.0, square=0.0)
    assert offset == pytest.approx(0.25, abs=1e-4)


def test_the_decoder_learns_alone_what_the_encoder_says():
    recipe = load_recipe().vae
    autoencoder = vae.build_vae(recipe, 16)
    x = torch.rand((2, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    loss = vae.DecodingError(autoencoder, recipe)
    value = loss(x)
    z = autoencoder.encode(x).latent_dist.mean
    y = autoencoder.decode(z).sample
    expected = vae.reconstruction_error(x, y, recipe.edges, recipe.decoder_square)
    assert torch.allclose(value, expected, rtol=1e-5)
    value.backward()
    assert all(p.grad is None for p in autoencoder.encoder.parameters())
    assert all(p.grad is not None for p in autoencoder.decoder.parameters())


class Knows(nn.Module):
    """A U-Net that is told the noise."""

    def __init__(self, eps):
        super().__init__()
        self.eps = eps

    def forward(self, x_t, t, text):
        self.seen = x_t
        return type("Output", (), {"sample": self.eps})


class Mute(nn.Module):
    """A text encoder with nothing to say."""

    def forward(self, tokens):
        return type("Output", (), {"last_hidden_state": torch.zeros(*tokens.shape, 5)})


def test_a_perfect_predictor_has_no_loss():
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn((6, 4, 2, 2), generator=generator) for _ in range(2))
    recipe = dataclasses.replace(load_recipe().unet, prediction_type="epsilon")
    alpha_bar = ddpm.cumulative_alpha(0.00085, 0.012, 1000)
    t, tokens = torch.tensor([0, 10, 200, 500, 900, 999]), torch.zeros(6, 3, dtype=torch.long)
    unet = Knows(eps)
    assert ddpm.DenoisingLoss(unet, Mute(), recipe)(x_0, tokens, t, eps) == 0
    a = alpha_bar[t].view(-1, 1, 1, 1)
    assert torch.allclose(unet.seen, a.sqrt() * x_0 + (1 - a).sqrt() * eps)
    off = ddpm.DenoisingLoss(Knows(eps + 1), Mute(), recipe)(x_0, tokens, t, eps)
    assert off == pytest.approx((1 / alpha_bar[t]).clamp(max=60).mean().item(), rel=1e-4)


def test_v_is_that_of_diffusers():
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn((6, 4, 2, 2), generator=generator) for _ in range(2))
    recipe = dataclasses.replace(load_recipe().unet, prediction_type="v_prediction")
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    t, tokens = torch.tensor([0, 10, 200, 500, 900, 999]), torch.zeros(6, 3, dtype=torch.long)
    v = theirs.get_velocity(x_0, eps, t)
    loss = ddpm.DenoisingLoss(Knows(v), Mute(), recipe)(x_0, tokens, t, eps)
    assert loss == pytest.approx(0, abs=1e-10)
    off = ddpm.DenoisingLoss(Knows(v + 1), Mute(), recipe)(x_0, tokens, t, eps)
    assert off == pytest.approx(1, rel=1e-5)


def test_a_caption_ends_at_its_mark():
    assert text.ended(torch.tensor([[8, 1, 9, 9], [8, 1, 2, 9]])).tolist() == [
        [False, False, True, True],
        [False, False, False, True],
    ]


def test_captions_in_other_words_are_to_be_told_apart():
    meant = torch.tensor([[[0.0]], [[3.0]], [[1.0]]], requires_grad=True)
    said = torch.tensor([[[0.5]], [[3.0]], [[0.0]]], requires_grad=True)
    alike = torch.eye(3, dtype=torch.bool)
    value = text.confusion(meant, said, alike)
    scale = text.TEMPERATURE * (9 + 1 + 4) / 3

    def p(own, *others):
        return 1 / (1 + sum(math.exp((own**2 - other**2) / scale) for other in others))

    chances = p(0.5, 2.5, 0.5), p(0, 3, 2), p(1, 0, 3)
    assert value.item() == pytest.approx(-sum(map(math.log, chances)) / 3, rel=1e-5)
    value.backward()
    assert meant.grad is None
    assert said.grad[2] < 0  # towards what it means, which is more

    alike[0, 2] = alike[2, 0] = True  # one caption twice: which of the two it is does not matter
    scale = text.TEMPERATURE * (9 + 4) / 2
    chances = p(0.5, 2.5), p(0, 3, 2), p(1, 3)
    value = text.confusion(meant, said, alike)
    assert value.item() == pytest.approx(-sum(map(math.log, chances)) / 3, rel=1e-5)
    assert text.confusion(meant[:1], said[:1], alike[:1, :1]) == 0


def test_a_caption_in_other_words_is_not_to_be_taken_for_one_of_another_batch():
    meant = torch.tensor([[[0.0]], [[3.0]], [[2.0]]])  # the last one is not of the batch
    said = torch.tensor([[[1.5]], [[3.0]]])
    alike = torch.tensor([[True, False, False], [False, True, False]])
    scale = text.TEMPERATURE * 9  # of the batch alone
    rows = [[1.5, 1.5, 0.5], [0.0, 3.0, 1.0]]  # how far each is from its own, then from the others
    chances = [
        math.exp(-(row[0] ** 2) / scale) / sum(math.exp(-(far**2) / scale) for far in row)
        for row in rows
    ]
    expected = -sum(map(math.log, chances)) / 2
    assert text.confusion(meant, said, alike).item() == pytest.approx(expected, rel=1e-5)


class Numbers(nn.Module):
    """A text encoder whose outputs are the tokens' own numbers, and more."""

    def __init__(self):
        super().__init__()
        self.more = nn.Parameter(torch.zeros(()))

    def forward(self, tokens):
        return type("Output", (), {"last_hidden_state": tokens.unsqueeze(-1) + self.more})


def other_words(encoder, subjects=((8, 0, 9, 7),), **weights):
    return text.OtherWords(encoder, plain=torch.tensor(subjects), **weights)


def test_other_words_should_say_what_the_plain_ones_said_before():
    loss = other_words(Numbers().requires_grad_(True), kept=2.0, contrast=0.0)
    meant = torch.tensor([[8, 1, 9, 4], [8, 2, 9, 2], [8, 3, 9, 0]])
    said = torch.tensor([[8, 5, 9, 4], [8, 2, 9, 2], [8, 6, 9, 3]])
    about = torch.zeros(3, dtype=torch.long)
    variance = (0 + 8 / 3) / 2  # of 9, 9, 9 and of 4, 2, 0
    # The first is the same behind its end, the second plain, the third 3 off at one of two places.
    value = loss(said, meant, about)
    assert value.item() == pytest.approx(3**2 / 4 / variance)
    value.backward()
    assert loss.before.more.grad is None
    with torch.no_grad():
        loss.encoder.more += 1.0
    kept, learned = 1, (1 + 1 + 1 + 4**2) / 4
    assert loss(said, meant, about).item() == pytest.approx((2 * kept + learned) / variance)
    assert loss(meant, meant, about).item() == pytest.approx(2 * kept / variance)

    apart = other_words(loss.before, kept=1.0, contrast=0.5)(said, meant, about).item()
    before, now = (x[:, 2:, None].float() for x in (meant, said))
    before = torch.cat([before, torch.tensor([[[9.0], [7.0]]])])
    expected = 0.5 * text.confusion(before, now, torch.eye(3, 4, dtype=torch.bool)).item()
    assert apart == pytest.approx(3**2 / 4 / variance + expected)


def test_what_was_said_of_subjects_is_computed_once():
    loss = other_words(Numbers(), [[8, 1, 9, 4], [8, 2, 9, 2]], kept=1.0, contrast=0.3)
    asked, forward = [], loss.before.forward

    def counting(tokens):
        asked.extend(tokens.tolist())
        return forward(tokens)

    loss.before.forward = counting
    meant = torch.tensor([[8, 2, 9, 2], [8, 3, 9, 0], [8, 1, 9, 4]])
    assert torch.equal(loss._before(meant), Numbers()(meant).last_hidden_state)
    assert asked == [[8, 3, 9, 0]]
    loss._before(meant[::2])
    assert len(asked) == 1


def test_what_tells_captions_apart_is_not_lost_in_sixteen_bits():
    """As training has it: outputs that are far from zero, and near each other."""
    generator = torch.Generator().manual_seed(0)
    meant = 30 + torch.randn((40, 8, 16), generator=generator)
    said = meant[:12] + 0.3 * torch.randn((12, 8, 16), generator=generator)
    alike = torch.eye(12, 40, dtype=torch.bool)
    exact = text.confusion(meant.double(), said.double(), alike)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = text.confusion(meant, said, alike)
    distances = torch.cdist(said.double().flatten(1), meant.double().flatten(1)).square()
    own = torch.cdist(*[meant[:12].double().flatten(1)] * 2).square().sum() / (12 * 11)
    expected = torch.log_softmax(-distances / (text.TEMPERATURE * own), 1).diagonal().mean()
    assert exact.item() == pytest.approx(-expected.item(), rel=1e-4)
    assert rounded.item() == pytest.approx(exact.item(), rel=0.05)


def test_it_is_known_which_subjects_are_still_mistaken():
    plain = [[8, 1, 9, 4], [8, 2, 9, 2], [8, 3, 9, 0]]
    loss = other_words(Numbers(), plain, kept=1.0, contrast=0.3)
    assert loss.wrong.tolist() == [1, 1, 1]
    meant = torch.tensor([plain[0], plain[1], plain[2], plain[2]])
    said = torch.tensor([[8, 5, 9, 4], plain[1], [8, 6, 9, 3], [8, 3, 9, 0]])
    variance = torch.tensor([4.0, 2, 0, 0]).var(correction=0).item() / 2
    loss(said, meant, torch.tensor([0, 1, 2, 2]))
    off = 3**2 / 2 / variance  # of the two places behind its end one is 3 off
    expected = [1 - text.NEWS, 1, 1 + text.NEWS * (off - 1)]
    assert loss.wrong.tolist() == pytest.approx(expected)
    assert "wrong" in loss.state_dict()  # a run that goes on knows it too


def test_both_losses_are_counted_together():
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn((2, 4, 2, 2), generator=generator) for _ in range(2))
    recipe = dataclasses.replace(load_recipe().unet, captions_weight=0.3)
    t, tokens = torch.tensor([10, 900]), torch.tensor([[8, 1, 9, 4], [8, 2, 9, 2]])
    said, about = tokens.flip(0).clone(), torch.tensor([0, 0])
    said[:, 1] = 5

    class Reads(Knows):
        def forward(self, x_t, t, text):
            assert torch.equal(text, Numbers()(tokens).last_hidden_state)
            return super().forward(x_t, t, text)

    alone = ddpm.DenoisingLoss(Reads(eps), Numbers(), recipe)(x_0, tokens, t, eps)
    words = other_words(Numbers(), kept=1.0, contrast=0.3)
    spoken = words(said, tokens, about)
    both = ddpm.WithOtherWords(Reads(eps), words, recipe)
    value = both(x_0, tokens, t, eps, said, tokens, about)
    assert spoken > 0
    assert value.item() == pytest.approx((alone + 0.3 * spoken).item(), rel=1e-5)
    assert both.text_encoder is words.encoder  # what learns from the one learns from the other


def test_subjects_that_are_still_mistaken_are_drawn_more_often():
    wrong = torch.tensor([0.0, 1.0, 2.0])

    def share(hard, pictures=31):
        generator = torch.Generator().manual_seed(0)
        drawn = draw_subjects(wrong, 20_000, hard, pictures, generator)
        assert set(drawn.tolist()) <= set(range(30))  # 30 is a rest
        assert torch.bincount(drawn // 3).min() > 1700  # of ten pictures of each
        return (torch.bincount(drawn % 3, minlength=3) / len(drawn)).tolist()

    assert share(0.0) == pytest.approx([1 / 3] * 3, abs=0.015)
    assert share(1.0) == pytest.approx([0, 1 / 5, 4 / 5], abs=0.015)
    assert share(0.6) == pytest.approx([2 / 15, 2 / 15 + 0.12, 2 / 15 + 0.48], abs=0.015)
    few = draw_subjects(wrong, 100, 0.0, 2, torch.Generator().manual_seed(0))
    assert set(few.tolist()) == {0, 1, 2}  # one of each, also where there are fewer pictures


def test_noisier_timesteps_are_drawn_more_often():
    def drawn(early):
        recipe = dataclasses.replace(load_recipe().unet, early=early)
        t = ddpm.draw_timesteps(50_000, recipe, torch.Generator().manual_seed(0))
        assert t.dtype == torch.long
        assert t.min() >= 0
        assert t.max() == 999
        return [(t < limit).float().mean().item() for limit in (250, 500, 750)]

    assert drawn(1.0) == pytest.approx([0.25, 0.5, 0.75], abs=0.01)
    # P(T u^e < s T) = P(u < s^(1 / e))
    assert drawn(0.5) == pytest.approx([0.25**2, 0.5**2, 0.75**2], abs=0.01)


def test_the_weight_makes_the_error_of_the_noise_that_of_v():
    generator = torch.Generator().manual_seed(0)
    x_0, eps, wrong = (torch.randn((1, 4, 8, 8), generator=generator) for _ in range(3))
    for a in (0.9, 0.5, 0.05):
        alpha = torch.tensor(a)
        x_t = alpha.sqrt() * x_0 + (1 - alpha).sqrt() * eps
        implied = (x_t - (1 - alpha).sqrt() * wrong) / alpha.sqrt()
        v = alpha.sqrt() * eps - (1 - alpha).sqrt() * x_0
        v_wrong = alpha.sqrt() * wrong - (1 - alpha).sqrt() * implied
        of_v, of_eps = (v - v_wrong).square().mean(), (eps - wrong).square().mean()
        assert torch.allclose(of_v, ddpm.loss_weight(alpha, 1e9) * of_eps, rtol=1e-4)
    assert ddpm.loss_weight(torch.tensor(1e-4), 60.0) == 60


def test_each_output_of_the_text_encoder_is_a_field_of_the_picture():
    class Numbers(nn.Module):
        config = type("Config", (), {"hidden_size": 1})

        def forward(self, tokens):
            places = torch.arange(tokens.shape[1]).float()  # each output says where it stands
            return type("O", (), {"last_hidden_state": places.expand(len(tokens), -1)[..., None]})

    loss = text.LatentsFromText(Numbers(), grid=2, channels=3, size=4)
    with torch.no_grad():
        loss.read.weight.fill_(1.0)
        loss.read.bias.zero_()
        guess = loss.guess(torch.zeros(2, 10, dtype=torch.long))
    assert guess.shape == (2, 3, 4, 4)
    fields = torch.tensor([[6.0, 7.0], [8.0, 9.0]])  # the last four of ten, row by row
    expected = fields.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(guess[1, 2], expected)
    assert loss(torch.zeros(2, 10, dtype=torch.long), guess) == 0


def test_a_tokenizer_is_laid_out_as_clips():
    captions = ["red apple", "red car", "green apple on a red background"] * 3
    tokenizer = train_tokenizer(captions, vocabulary=540, length=10)
    assert len(tokenizer) <= 540
    ids = tokenizer("Red apple", padding="max_length", truncation=True).input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[:4] == [
        "<|startoftext|>",
        "red</w>",
        "apple</w>",
        "<|endoftext|>",
    ]
    assert len(ids) == 10
    assert tokenizer.convert_ids_to_tokens([0, 256]) == ["!", "!</w>"]
    assert tokenizer.decode(tokenizer("zebra ñ").input_ids, skip_special_tokens=True) == "zebra ñ"


def test_a_tokenizer_learns_from_what_it_will_cut():
    captions = [f"A photo of a cat, no. {i}, sitting." for i in range(20)]
    tokenizer = train_tokenizer(captions, vocabulary=4096, length=20)
    words = tokenizer.convert_ids_to_tokens(tokenizer("cat, sitting.").input_ids)[1:-1]
    assert words == ["cat</w>", ",</w>", "sitting</w>", ".</w>"]


def test_a_tokenizer_learns_from_anything_that_people_write():
    rng = random.Random(0)
    letters = (
        "abc",
        "aab",
        "0123456789",
        "äöüß",
        "日本語",
        "👨\u200d👩🎉",
        "'s-.,!\"<|>",
        "\t\x00",
        "é",
    )

    def word():
        return "".join(rng.choice(rng.choice(letters)) for _ in range(rng.randint(1, 8)))

    for vocabulary in (514, 515, 600, 4096):
        captions = [" ".join(word() for _ in range(5)) for _ in range(30)] + ["a <|endoftext|> b"]
        tokenizer = train_tokenizer(captions, vocabulary, length=24)
        assert len(tokenizer) <= vocabulary
        cut = tokenizer(captions, padding="max_length", truncation=True).input_ids
        assert {len(ids) for ids in cut} == {24}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 20240407", "", "seed is missing"),
        ("seed = 20240407", "seed = 1\nsede = 2", "sede is not known"),
        ("seed = 20240407", "seed = 'x'", "seed = 'x' is not of the type int"),
        ("dropped = 0.1", "dropped = true", "unet.dropped = True"),
        ("[vae]", "[vae", "is no TOML"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_by_name(tmp_path, old, new, message):
    path = tmp_path / "recipe.toml"
    path.write_text(EMOJI.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        load_recipe(path)
    with pytest.raises(UsageError, match="cannot be read"):
        load_recipe(tmp_path / "none.toml")


def test_a_recipe_is_changed_as_a_whole():
    recipe = load_recipe(IMAGEFOLDER)
    short = adjusted(recipe, steps=recipe.unet.steps // 10, dim=64, seed=7)
    assert (short.size, short.seed, short.unet.steps) == (64, 7, recipe.unet.steps // 10)
    assert short.vae.steps == recipe.vae.steps // 10
    assert short.text.steps == recipe.text.steps // 10
    assert short.unet.warmup == recipe.unet.warmup // 10
    # As many steps as before weigh as much: an average that outlived the run would not know it.
    assert short.unet.ema**short.unet.steps == pytest.approx(
        recipe.unet.ema**recipe.unet.steps, rel=0.2
    )
    assert adjusted(recipe) == recipe
    emoji = load_recipe(EMOJI)
    assert adjusted(emoji) == emoji
    joint = adjusted(emoji, steps=emoji.unet.steps // 10).joint
    assert joint.steps == round(emoji.joint.steps / 10)
    words = adjusted(emoji, steps=emoji.unet.steps // 10).other_words
    assert words.steps == round(emoji.other_words.steps / 10)
    both = adjusted(emoji, steps=emoji.unet.steps // 10).both
    assert both.steps == round(emoji.both.steps / 10)
    assert adjusted(emoji, dim=32).vae.crop == 32
    tuned = adjusted(recipe, going_on=True).unet
    assert (tuned.steps, tuned.learning_rate) == (recipe.tune.steps, recipe.tune.learning_rate)
    assert tuned.block_out_channels == recipe.unet.block_out_channels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 100}, "dim=100 is not a multiple of 32.*take 96 or 128"),
        ({"dim": 8}, "take 32"),
        ({"tokenizer": {"length": 10}}, "tokenizer.length = 10"),
        ({"vae": {"crop": 20}}, "vae.crop = 20"),
        ({"vae": {"batch": 0}}, "vae.batch = 0"),
        ({"unet": {"learning_rate": 0.0}}, "unet.learning_rate = 0.0"),
        ({"unet": {"ema": 1.0}}, "unet.ema = 1.0"),
        ({"unet": {"muon_rate": -1.0}}, "unet.muon_rate = -1.0"),
        ({"unet": {"reworded": 1.5}}, "unet.reworded = 1.5.*from 0 to 1"),
        ({"other_words": {"contrast": -1.0}}, "other_words.contrast = -1.0.*0 or more"),
        ({"other_words": {"hard": 1.5}}, "other_words.hard = 1.5 .*from 0 to 1"),
        ({"both": {"captions": -1}}, "both.captions = -1 .*0 or more"),
        ({"both": {"captions_weight": -0.5}}, "both.captions_weight = -0.5 .*0 or more"),
        ({"joint": {"early": 0.0}}, "joint.early = 0.0 .*more than 0"),
        ({"other_words": {"shares": [1, 2]}}, r"other_words.shares = \[1, 2\].*4 numbers.*placed"),
        ({"other_words": {"shares": [0, 0, 0, 0]}}, "not all 0"),
        ({"other_words": {"shares": [1, -1, 1, 1]}}, "of 0 or more"),
        ({"unet": {"prediction_type": "x0"}}, "prediction_type = 'x0'.*epsilon or v_prediction"),
    ],
)
def test_numbers_that_cannot_be_trained_with_are_refused(change, message):
    recipe = load_recipe(IMAGEFOLDER)
    dim = change.pop("dim", None)
    tables = {k: dataclasses.replace(getattr(recipe, k), **v) for k, v in change.items()}
    with pytest.raises(UsageError, match=message):
        adjusted(dataclasses.replace(recipe, **tables), dim=dim)


class Flat:
    """Four pictures of one colour each."""

    size = 16

    def __len__(self):
        return 4

    def picture(self, i):
        return Image.new("RGB", (16, 16), (60 * i, 0, 0))

    any_picture = None

    def caption(self, i):
        return f"number {i}"

    def reworded(self, i, rng):
        return f"{rng.choice(['no', 'nr'])} {i}"


def test_a_batch_is_the_same_again_and_another_in_each_process():
    tokenizer = train_tokenizer(["number no nr 0 1 2 3"] * 2, vocabulary=600, length=16)
    latents = torch.arange(4.0).view(4, 1, 1, 1).half()
    data = Captioned(Flat(), latents, tokenizer)

    def recipe(**words):
        return Words(**{"dropped": 0.0, **words})

    def batch(step, process=0, **words):
        return data.batch(64, recipe(**words), *Draws(5, process).at(step))

    def read(ids):
        return tokenizer.decode(ids, skip_special_tokens=True).split()

    x_0, said = batch(3, reworded=0.25)
    assert x_0.dtype == torch.float32
    for one, again in zip((x_0, said), batch(3, reworded=0.25), strict=True):
        assert torch.equal(one, again)
    assert not torch.equal(x_0, batch(4)[0])
    assert not torch.equal(x_0, batch(3, process=1)[0])
    for z, ids in zip(x_0.flatten().tolist(), said, strict=True):
        assert read(ids)[0] in ("number", "no", "nr")
        assert read(ids)[1] == str(int(z))
    whole, cut = batch(3, reworded=1.0), batch(3, reworded=1.0, merge_dropout=0.9)
    assert (cut[1] != tokenizer.pad_token_id).sum() > (whole[1] != tokenizer.pad_token_id).sum()

    chosen = x_0.flatten().int().tolist()
    said, meant = words(Flat(), chosen, tokenizer, recipe(reworded=0.25), *Draws(5).at(4))
    assert [read(ids) for ids in meant] == [["number", str(i)] for i in chosen]
    assert 0.1 < (said != meant).any(1).float().mean() < 0.4
    assert torch.equal(*words(Flat(), chosen, tokenizer, recipe(), *Draws(5).at(4)))
    empty = tokenizer("", padding="max_length").input_ids
    share = sum(ids.tolist() == empty for ids in batch(3, dropped=0.5)[1]) / 64
    assert 0.3 < share < 0.7


def test_squares_are_cut_from_pictures():
    pictures = Flat()
    pictures.any_picture = lambda rng: pictures.picture(rng.randrange(4))
    x = squares(pictures, 8, 12, random.Random(0))
    assert x.shape == (12, 3, 8, 8)
    assert {round((v + 1) * 127.5) for v in x[:, 0].flatten().tolist()} == {0, 60, 120, 180}
    assert (x[:, 1:] == -1).all()


def test_latents_are_scaled_to_unit_variance_and_the_vae_says_so():
    latents = 3 * torch.randn((50, 4, 2, 2), generator=torch.Generator().manual_seed(0)).half()
    autoencoder = vae.build_vae(load_recipe().vae, 128)
    scaled = unit_variance(autoencoder, latents)
    assert scaled.float().std() == pytest.approx(1, abs=1e-3)
    factor = autoencoder.config.scaling_factor
    assert torch.allclose(scaled.float(), latents.float() * factor, rtol=1e-3)
    alone = unit_variance(autoencoder, torch.zeros(1, 4, 2, 2).half())  # nothing varies
    assert torch.isfinite(alone).all()


def test_muon_takes_a_convolution_for_a_matrix():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn((6, 4, 3, 3), generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.flatten(1).clone())
    flat = FlatMuon([ours], 0.1)
    torchs = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        gradient = torch.randn(start.shape, generator=generator)
        ours.grad = gradient.to(memory_format=torch.channels_last)
        theirs.grad = gradient.flatten(1)
        flat.step()
        torchs.step()
    assert torch.equal(ours.flatten(1), theirs)
    assert not torch.allclose(ours, start, atol=0.01)


def test_muon_takes_the_matrices_inside_and_adamw_all_else():
    unet = ddpm.build_unet(load_recipe().unet, 16, 4, 8)
    optimizers = make_optimizers(unet, 1e-3, 1e-3)
    parts = [[id(p) for p in o.param_groups[0]["params"]] for o in optimizers.values()]
    muon = {id(weight) for weight in optimizers["muon"].weights}
    adamw = set(parts[0])
    names = {id(p): name for name, p in unet.named_parameters()}
    assert muon | adamw == names.keys()
    assert not muon & adamw
    assert {names[i] for i in muon} > {
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
        "down_blocks.0.resnets.0.conv1.weight",
    }
    assert {names[i] for i in adamw} > {
        "conv_in.weight",
        "conv_out.weight",
        "time_embedding.linear_1.weight",
        "down_blocks.0.resnets.0.norm1.weight",
    }
    assert list(make_optimizers(unet, 1e-3, 0.0)) == ["adamw"]
    frozen = unet.mid_block.requires_grad_(False).parameters()
    learning = {id(w) for w in make_optimizers(unet, 1e-3, 1e-3)["muon"].weights}
    assert not learning & {id(p) for p in frozen}


class KilledError(Exception):
    pass


class Line(nn.Module):
    """The loss of a line through points that lie on another."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(3, 1)

    def forward(self, x):
        return (self.line(x) - x.sum(dim=1, keepdim=True)).square().mean()


def start(folder, *, kill_at=None, steps=60, show=None):
    def batch(step):
        if step == kill_at:
            raise KilledError
        return (torch.randn((8, 3), generator=torch.Generator().manual_seed(step)),)

    folder.mkdir(exist_ok=True)
    model, alone = Line(), make_accelerator("cpu")
    fit("line", model, batch, folder, alone, steps=steps, learning_rate=0.1, ema=0.9, show=show)
    return model.line


def test_training_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    straight = start(tmp_path / "a")
    monkeypatch.setattr("sdpipe.training.fit.SAVE_EVERY", 0.0)
    monkeypatch.setattr("sdpipe.training.fit.SHARE", 0)
    with pytest.raises(KilledError):
        start(tmp_path / "b", kill_at=31)
    resumed = start(tmp_path / "b")
    assert torch.equal(straight.weight, resumed.weight)
    assert torch.allclose(straight.weight, torch.ones(1, 3), atol=0.1)
    logs = [(tmp_path / k / "loss.csv").read_text().splitlines() for k in "ab"]
    assert logs[0][0] == "stage,step,loss,seconds"
    steps = [[line.split(",")[1] for line in log[1:]] for log in logs]
    assert steps[0] == steps[1] == ["25", "50", "60"]
    assert start(tmp_path / "b", kill_at=0).weight.equal(straight.weight)  # finished: no more steps


def test_what_was_logged_after_the_checkpoint_is_logged_once(tmp_path, monkeypatch):
    with pytest.raises(KilledError):
        start(tmp_path / "a", kill_at=40)  # no checkpoint yet, one line logged
    with (tmp_path / "a" / "loss.csv").open("a") as file:
        file.write("line,5")  # and half of one
    start(tmp_path / "a")
    log = (tmp_path / "a" / "loss.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in log] == ["step", "25", "50", "60"]


def test_checkpoints_are_shown_with_what_the_model_would_be(tmp_path, monkeypatch):
    monkeypatch.setattr("sdpipe.training.fit.SAVE_EVERY", 0.0)
    monkeypatch.setattr("sdpipe.training.fit.SHARE", 0)
    seen = []
    shown = start(
        tmp_path / "a", steps=3, show=lambda step, m: seen.append((step, m.line.weight.clone()))
    )
    assert [step for step, _ in seen] == [1, 2, 3]
    assert torch.equal(seen[-1][1], shown.weight)


def test_a_damaged_checkpoint_is_named(tmp_path):
    start(tmp_path / "a", steps=2)
    path = tmp_path / "a" / "line.checkpoint"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SdpipeError, match=r"line\.checkpoint is damaged .*Delete it"):
        start(tmp_path / "a", steps=2)
    torch.save({"model": {}}, path)
    with pytest.raises(SdpipeError, match=r"line\.checkpoint is damaged"):
        start(tmp_path / "a", steps=2)


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    class Bad(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(1, 1)

        def forward(self, x):
            return self.line(x * float("nan")).sum()

    alone = make_accelerator("cpu")
    batch = lambda step: (torch.ones(1, 1),)  # noqa: E731
    with pytest.raises(NotFiniteError, match="loss of the bad is nan at step 25"):
        fit("bad", Bad(), batch, tmp_path, alone, steps=30, learning_rate=0.1)


def test_rough_cuts_are_the_tokenizers_own_where_no_merge_is_left_out():
    tokenizer = train_tokenizer(["a red apple", "two apples", "the apple's core"] * 3, 600, 16)
    captions = ["red apple", "", "Two  APPLES' cores, \u00e9t\u00e9", "apple " * 40]
    cuts = RoughCuts(tokenizer, 0.0).tokens(captions, random.Random(0))
    expected = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    assert torch.equal(cuts, expected.input_ids)


def test_rough_cuts_spell_the_same_words_in_many_ways():
    tokenizer = train_tokenizer(["a red apple", "two apples"] * 3, 600, 16)
    rough = RoughCuts(tokenizer, 0.5)
    rows = {tuple(rough.tokens(["red apple"], random.Random(i))[0].tolist()) for i in range(50)}
    assert len(rows) > 10
    assert {tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows} == {
        "red apple"
    }
    one, other = (rough.tokens(["red apple"], random.Random(3)) for _ in range(2))
    assert torch.equal(one, other)


def test_a_tokenizer_is_the_same_in_every_run():
    captions = [f"{a}{b}{c} {c}{b}" for a in "abcdef" for b in "ghijk" for c in "lmnop"]  # ties
    learned = [train_tokenizer(captions, 640, 16).get_vocab() for _ in range(4)]
    assert learned[0] == learned[1] == learned[2] == learned[3]
