"""Prompts as embeddings: equal to diffusers' and sd_embed's, and bit-identical in every batch."""

import copy

import pytest
import torch
from diffusers import (
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)
from support.parity import diffusers_pipeline
from support.tiny import tiny_model, tiny_text_encoder, write_tokenizer

from sdpipe import Pipeline, SdpipeWarning, UsageError
from sdpipe.prompt.chunks import make_chunks
from sdpipe.prompt.encode import encode_chunk, encode_prompts
from sdpipe.prompt.syntax import parse

# Random weights diverge; what is compared are their steps.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew")

PLAIN = [
    "",
    "red apple",
    "  Red\tapple,  green   DOG. ",
    "a $5 café with 🐶 and naïve <|endoftext|> o'clock",
    "cat: dog | apple",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tokenizer of 77 places and a text encoder whose embeddings have a mean, as CLIP's have."""
    tokenizer = write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        encoder = tiny_text_encoder(len(tokenizer)).eval()
    with torch.no_grad():
        encoder.final_layer_norm.bias.fill_(-0.1)
    return tokenizer, encoder


@pytest.fixture(scope="module")
def without_mean(tiny):
    """The same, whose embeddings have a mean of 0 but for rounding, as a new text encoder's."""
    encoder = copy.deepcopy(tiny[1])
    with torch.no_grad():
        encoder.final_layer_norm.bias.fill_(0)
    return tiny[0], encoder


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """A complete model with random weights, which draws 32 x 32 pixels at once."""
    return Pipeline(tiny_model(tmp_path_factory.mktemp("model")), device="cpu", dtype="float32")


def embedding(parts, prompt, negative="", **more):
    return encode_prompts(*parts, [prompt], [negative], **more).cond[0]


def ids(tokenizer, text):
    """The tokens of a text without the marks."""
    return tokenizer(text, verbose=False).input_ids[1:-1]


def framed(tokenizer, own):
    """Tokens between the marks, padded, as a batch of one."""
    bos, eos, length = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.model_max_length
    return torch.tensor([[bos, *own, *[eos] * (length - 1 - len(own))]])


def by_hand(parts, pieces):
    """What sd_embed's `get_weighted_text_embeddings_sd15(pad_last_block=True)` computes.

    Groups of 75 tokens between two marks, each token's embedding times its weight; it restores no
    mean. `pieces` are texts with their weights.
    """
    tokenizer, encoder = parts
    own = [(i, weight) for text, weight in pieces for i in ids(tokenizer, text)]
    embedded = []
    while own:
        group, own = own[:75], own[75:]
        weights = torch.tensor([1.0, *[w for _, w in group], *[1.0] * (76 - len(group))])
        with torch.no_grad():
            z = encoder(framed(tokenizer, [i for i, _ in group])).last_hidden_state[0]
        embedded.append(torch.stack([row * w for row, w in zip(z, weights, strict=True)]))
    return torch.cat(embedded)[None]


@pytest.mark.parametrize("text", PLAIN)
def test_a_plain_prompt_is_embedded_as_diffusers_does(tiny, text):
    tokenizer, encoder = tiny
    tokens = tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert tokens.tolist() == [
        list(chunk.ids) for chunk in make_chunks(tokenizer, parse(text).at(0, 1))
    ]
    with torch.no_grad():
        expected = encoder(tokens).last_hidden_state
    assert torch.equal(embedding(tiny, text), expected)


@pytest.mark.parametrize(
    "text", ["(red:1) apple", "((red apple:2):0.5)", "red [apple::1.0]", "red [:apple:0]"]
)
def test_weight_1_everywhere_is_the_plain_prompt_bit_for_bit(tiny, text):
    assert torch.equal(embedding(tiny, text), embedding(tiny, "red apple"))


def test_an_embedding_is_bit_identical_in_every_batch(tiny):
    together = encode_prompts(*tiny, ["cat", "(dog:1.3)", "cat"], ["", "red", ""])
    alone = encode_prompts(*tiny, ["(dog:1.3)"], ["red"])
    assert len(together) == 3
    assert together.cond[0].shape == (3, 77, 16)
    assert torch.equal(together.cond[0][1:2], alone.cond[0])
    assert torch.equal(together.cond[0][0], together.cond[0][2])
    assert torch.equal(together.uncond[0][1:2], alone.uncond[0])


WEIGHTED = "a (red:1.5) cat on a [blue] (photo (of:2) apple:0.5)"
PIECES = [
    ("a", 1.0),
    ("red", 1.5),
    ("cat on a", 1.0),
    ("blue", 1 / 1.1),
    ("photo", 0.5),
    ("of", 1.0),
    ("apple", 0.5),
]


def test_weights_multiply_the_embeddings_as_in_sd_embed(without_mean):
    expected = by_hand(without_mean, PIECES)
    assert torch.allclose(embedding(without_mean, WEIGHTED), expected, atol=1e-6)


def test_the_mean_of_each_chunk_is_restored_as_in_a1111(tiny):
    long = f"{WEIGHTED} {'dog ' * 100}(green:3)"
    pieces = [*PIECES, ("dog " * 100, 1.0), ("green", 3.0)]
    scaled, plain = by_hand(tiny, pieces), by_hand(tiny, [(text, 1.0) for text, _ in pieces])
    both = zip(scaled.split(77, 1), plain.split(77, 1), strict=True)
    expected = torch.cat([z * (own.mean() / z.mean()) for z, own in both], dim=1)
    found = embedding(tiny, long)
    assert found.shape == (1, 154, 16)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, scaled, atol=1e-2)


def test_a_long_prompt_is_encoded_chunk_by_chunk(tiny):
    text = "cat dog " * 80
    assert torch.allclose(embedding(tiny, text), by_hand(tiny, [(text, 1.0)]), atol=1e-6)


def test_break_separates_what_is_encoded_together(tiny):
    alone = [embedding(tiny, text) for text in ("cat", "red dog")]
    assert torch.equal(embedding(tiny, "cat BREAK red dog"), torch.cat(alone, dim=1))


def test_the_shorter_prompt_is_filled_up_with_the_empty_one(tiny):
    text = encode_prompts(*tiny, ["cat " * 80], ["dog"])
    assert text.cond[0].shape == text.uncond[0].shape == (1, 154, 16)
    expected = torch.cat([embedding(tiny, "dog"), embedding(tiny, "")], dim=1)
    assert torch.equal(text.uncond[0], expected)


def test_a_changing_prompt_has_an_embedding_for_each_step(tiny):
    text = encode_prompts(*tiny, ["[cat:dog:0.5]", "apple"], ["[|red]", ""], steps=4)
    assert len(text.cond) == len(text.uncond) == 4
    for step, word in enumerate(["cat", "cat", "dog", "dog"]):
        assert torch.equal(
            text.cond[step], encode_prompts(*tiny, [word, "apple"], ["", ""]).cond[0]
        )
    assert torch.equal(text.uncond[3][:1], embedding(tiny, "red"))
    assert text.cond[0] is text.cond[1]  # and not held twice
    assert len(encode_prompts(*tiny, ["apple"], [""], steps=50).cond) == 1


@pytest.mark.parametrize(("skip", "layers"), [(1, 2), (2, 1)])
def test_clip_skip_is_an_encoder_of_fewer_layers(tiny, skip, layers):
    tokenizer, encoder = tiny
    shorter = copy.deepcopy(encoder)
    shorter.encoder.layers = shorter.encoder.layers[:layers]
    (chunk,) = make_chunks(tokenizer, parse("red cat").at(0, 1))
    with torch.no_grad():
        expected = shorter(torch.tensor([chunk.ids])).last_hidden_state
    assert torch.equal(encode_chunk(encoder, chunk, skip), expected)
    assert torch.equal(embedding(tiny, "red cat", clip_skip=skip), expected)


def test_clip_skip_beyond_the_models_layers_is_refused(pipe):
    with pytest.raises(UsageError, match="clip_skip=3"):
        pipe.generate("cat", clip_skip=3)
    first, other = (list(pipe.stream("cat", seed=1, steps=2, clip_skip=k)) for k in (1, 2))
    assert not torch.equal(first[-1].latents, other[-1].latents)


def diffusers_run(pipe, embeds, scheduler, calls_of=lambda call: call, *, steps, seed, g):
    """Latents after every call of the U-Net, as diffusers' pipeline draws from given embeddings.

    embeds: cond and uncond for a step; a callback hands them over. calls_of: the step of a call.
    """
    parts = pipe.components
    theirs = diffusers_pipeline(parts, scheduler)
    latents = []

    def change(_pipe, call, _t, values):
        latents.append(values["latents"].clone())
        cond, uncond = embeds(theirs, min(calls_of(call + 1), steps - 1))
        return {"prompt_embeds": torch.cat([uncond, cond])}

    cond, uncond = embeds(theirs, 0)
    theirs(
        prompt_embeds=cond,
        negative_prompt_embeds=uncond,
        latents=torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(seed)),
        guidance_scale=g,
        num_inference_steps=steps,
        width=32,
        height=32,
        output_type="latent",
        callback_on_step_end=change,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )
    return latents


def assert_same_steps(ours, expected):
    for step, latents in zip(ours, expected, strict=True):
        error = (step.latents - latents).abs().max() / latents.abs().max()
        assert error < 1e-4, f"step {step.index}: {error:.1e}"


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CALLS_OF = {  # the step that a call of the U-Net belongs to
    "lms": lambda call: call,
    "heun": lambda call: call // 2,  # two calls a step, but for the last one
    "pndm": lambda call: max(call - 1, 0),  # two calls for the first step
}
REFERENCE = {
    "lms": lambda: LMSDiscreteScheduler(**BETAS, steps_offset=1),
    "heun": lambda: HeunDiscreteScheduler(**BETAS, steps_offset=1),
    "pndm": lambda: PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1),
}


@pytest.mark.parametrize(
    ("prompt", "negative", "texts"),
    [
        ("a [cat:dog:0.5]", "", [("a cat", "")] * 3 + [("a dog", "")] * 3),
        ("a cat", "[dog::0.9]", [("a cat", "dog")] * 5 + [("a cat", "")]),
        (
            "[red|blue|] cat",
            "[dog:2]",
            [
                ("red cat", ""),
                ("blue cat", ""),
                ("cat", "dog"),
                ("red cat", "dog"),
                ("blue cat", "dog"),
                ("cat", "dog"),
            ],
        ),
    ],
)
@pytest.mark.parametrize("name", REFERENCE)
def test_a_changing_prompt_is_diffusers_with_embeddings_exchanged_at_that_step(
    pipe, name, prompt, negative, texts
):
    def embeds(theirs, step):
        said, not_said = texts[step]
        return theirs.encode_prompt(said, "cpu", 1, True, not_said)

    same = {"steps": 6, "seed": 5, "g": 3.0}
    expected = diffusers_run(pipe, embeds, REFERENCE[name](), CALLS_OF[name], **same)
    ours = pipe.stream(prompt, negative_prompt=negative, scheduler=name, **same)
    assert_same_steps(ours, expected)


def test_weights_and_long_prompts_reach_the_unet(pipe):
    parts = pipe.components.tokenizer, pipe.components.text_encoder
    cond = by_hand(parts, [*PIECES, ("dog " * 80, 1.0)])
    uncond = torch.cat([by_hand(parts, [("blue", 1.4)]), embedding(parts, "")], dim=1)
    same = {"steps": 4, "seed": 3, "g": 4.0}
    expected = diffusers_run(pipe, lambda *_: (cond, uncond), REFERENCE["lms"](), **same)
    prompt = f"{WEIGHTED} {'dog ' * 80}"
    assert_same_steps(pipe.stream(prompt, negative_prompt="(blue:1.4)", **same), expected)


MIXED = ["cat", "(red:1.3) dog", "cat " * 80, "[cat:dog:0.5] BREAK apple", "dog"]


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_the_length_of_a_prompt_does_not_change_its_neighbours(pipe, batch_invariant):
    settings = {"steps": 4, "g": 3, "negative_prompt": "[blue|(red:1.2)]"}
    settings["batch_invariant"] = batch_invariant
    together = list(pipe.stream(MIXED, seed=20, **settings))
    for k, prompt in enumerate(MIXED):
        alone = [step.latents[0] for step in pipe.stream(prompt, seed=20 + k, **settings)]
        batched = [s.latents[s.images.index(k)] for s in together if k in s.images]
        for a, b in zip(alone, batched, strict=True):
            if batch_invariant:
                assert torch.equal(a, b)
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_neighbours_with_equally_many_chunks_are_a_batch(emoji):
    """Which the metadata of an image records, so that it is drawn again in such a batch."""
    prompts = ["cat", "dog", "cat " * 80, "owl", "[cat:dog:0.5]", "crab"]
    same = {"steps": 2, "g": 1, "dim": 32, "seed": 1}
    result = emoji.generate(prompts, **same)
    assert result.batch_positions == [(0, 2), (1, 2), (0, 1), (0, 3), (1, 3), (2, 3)]
    again = emoji.generate("crab", **{**same, "n": 3, "seed": 4})
    assert again.images[2].tobytes() == result.images[5].tobytes()
    assert emoji.generate(prompts[:2], **same, batch_invariant=True).batch_positions == [
        (0, 1),
        (0, 1),
    ]


def test_an_edit_that_the_run_does_not_reach_is_warned_of(pipe):
    with pytest.warns(SdpipeWarning, match="after step 4, which a run of 4 does not reach"):
        late = list(pipe.stream("[cat:dog:4]", seed=1, steps=4))
    assert torch.equal(late[-1].latents, list(pipe.stream("cat", seed=1, steps=4))[-1].latents)
    in_time = list(pipe.stream("[cat:dog:3]", seed=1, steps=4))
    assert torch.equal(in_time[2].latents, late[2].latents)
    assert not torch.equal(in_time[3].latents, late[3].latents)


def test_the_built_in_model_draws_all_syntax(emoji):
    plain = emoji.generate("red apple", seed=4, steps=3)
    for prompt in ("(red:1.3) apple", "[red apple|crab]", "red apple, " * 40):
        drawn = emoji.generate(prompt, seed=4, steps=3)
        assert drawn.images[0].tobytes() != plain.images[0].tobytes()
    again = emoji.generate("(red:1.2) [apple]", seed=4, steps=3).settings[0]
    assert emoji.generate(**again.to_dict()).images[0].size == (128, 128)
