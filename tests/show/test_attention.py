import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor
from support.drawn import assert_legible
from support.errors import raises
from support.tiny import tiny_unet

from sdpipe.errors import UsageError
from sdpipe.show.attention import attention_data, attention_figure, classify_tokens
from sdpipe.show.cross_attention import (
    AttentionSums,
    attention_probs,
    layer_shape,
    record_attention,
)
from sdpipe.show.tokens import Word

# Few steps save time; whether a model draws well in them is not looked at here.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew to")

SETTINGS = {"seed": 3, "steps": 2}


@pytest.fixture(scope="module")
def attended(emoji):
    return attention_data(emoji, "owl on a blue background", **SETTINGS)


@pytest.mark.parametrize("g", [1, 3, 7.5])
def test_the_image_is_the_same_with_and_without_recording(emoji, g):
    data = attention_data(emoji, "owl on a blue background", g=g, **SETTINGS)
    plain = emoji.generate("owl on a blue background", g=g, **SETTINGS)
    assert data.image.tobytes() == plain.images[0].tobytes()
    assert data.settings == plain.settings[0]


def test_it_is_softmax_of_queries_and_keys():
    """Against diffusers' own processor without scaled_dot_product_attention."""
    torch.manual_seed(0)
    layer = Attention(12, cross_attention_dim=10, heads=3, dim_head=4)
    x, text = torch.randn(2, 16, 12), torch.randn(2, 7, 10)
    seen = []
    original = layer.get_attention_scores

    def scores(query, key, mask=None):
        seen.append(original(query, key, mask))
        return seen[-1]

    layer.get_attention_scores = scores
    layer.set_processor(AttnProcessor())
    with torch.no_grad():
        layer(x, text)
        found = attention_probs(layer, x, text)
    assert found.shape == (2, 3, 16, 7)
    assert torch.allclose(found.flatten(0, 1), seen[0], atol=1e-6)
    assert torch.allclose(found.sum(-1), torch.ones(2, 3, 16))


def test_the_maps_are_the_mean_of_what_the_layers_really_did():
    """Recomputed in hooks on the U-Net itself, over two calls, at two resolutions."""
    torch.manual_seed(0)
    unet = tiny_unet(
        size=64,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()
    maps, large = AttentionSums(), []
    copy = record_attention(unet, maps)

    def hook(module, args, kwargs):
        text = kwargs.get("encoder_hidden_states")
        if text is not None:
            x = args[0] if args else kwargs["hidden_states"]
            q, k = module.to_q(x[1]), module.to_k(text[1])  # (places, D), (L, D)
            heads = [
                F.softmax(a @ b.T / a.shape[1] ** 0.5, -1)
                for a, b in zip(q.chunk(module.heads, 1), k.chunk(module.heads, 1), strict=True)
            ]
            mean = torch.stack(heads).mean(0).T  # (L, places)
            side = int(mean.shape[1] ** 0.5)
            grid = mean.view(1, 5, side, side)
            large.append(F.interpolate(grid, (8, 8), mode="bicubic", align_corners=False)[0])

    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    with torch.no_grad():
        wanted = [unet(x, t, text).sample for t in (900, 300)]
        handles = [
            module.register_forward_pre_hook(hook, with_kwargs=True)
            for module in unet.modules()
            if isinstance(module, Attention)
        ]
        for t in (900, 300):
            unet(x, t, text)
        for handle in handles:
            handle.remove()
        got = [copy(x, t, text).sample for t in (900, 300)]
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert {m.shape[-1] for m in large} == {8}
    found = maps.mean(8, 8)
    assert torch.allclose(found, torch.stack(large).mean(0).clamp(min=0), atol=1e-5)
    assert torch.allclose(found.sum(0), torch.ones(8, 8), atol=1e-2)


def test_attention_that_is_known_ends_up_in_its_place():
    maps = AttentionSums()
    one = torch.zeros(2, 4, 3)  # two heads, 2 x 2 places, three tokens
    one[:, :2, 0] = one[:, 2:, 1] = 1  # the upper half looks at the first, the lower at the second
    maps.add(one)
    maps.add(one.flip(0))
    mean = maps.mean(2, 2)
    assert mean.tolist() == [[[1, 1], [0, 0]], [[0, 0], [1, 1]], [[0, 0], [0, 0]]]


def test_shapes_of_layers_are_found_by_their_number_of_places():
    assert layer_shape(64 * 64, 64, 64) == (64, 64)
    assert layer_shape(8 * 8, 64, 64) == (8, 8)
    assert layer_shape(3 * 5, 5, 9) == (3, 5)
    assert layer_shape(2 * 3, 5, 9) == (2, 3)
    with pytest.raises(ValueError, match="17 pixels"):
        layer_shape(17, 64, 64)


def test_shares_are_of_one_and_parts_are_all_tokens(emoji, attended):
    tokenizer = emoji.components.tokenizer
    report = attended.to_dict()
    assert len(report["shares"]) == tokenizer.model_max_length
    assert sum(report["shares"]) == pytest.approx(1, abs=2e-2)
    assert sum(part["share"] for part in report["parts"].values()) == pytest.approx(
        sum(report["shares"])
    )
    assert [word.text for word in attended.words] == ["owl", "on", "a", "blue", "background"]
    assert sum(word["among_words"] for word in report["words"]) == pytest.approx(1)
    ids = tokenizer("owl on a blue background", padding="max_length").input_ids
    parts = attended.parts
    assert [ids[place] for place in parts["start mark"]] == [tokenizer.bos_token_id]
    assert parts["end mark"] == [ids.index(tokenizer.eos_token_id)]
    assert parts["padding"] == [*range(parts["end mark"][0] + 1, len(ids))]
    factor = 2 ** (len(emoji.components.vae.config.block_out_channels) - 1)
    width, height = attended.image.size
    assert attended.attention.shape == (len(ids), height // factor, width // factor)


def test_the_padding_that_is_drawn_is_that_with_the_most_attention(attended):
    shares = attended.to_dict()["shares"]
    padding = attended.most_padding()
    assert len(padding) == 16
    assert padding == sorted(padding)
    others = set(attended.parts["padding"]) - set(padding)
    assert min(shares[i] for i in padding) >= max(shares[i] for i in others)


def test_every_chunk_has_its_own_marks_and_padding():
    sizes = {1: 2, 3: 1, 9: 6}  # of the words, by the places where they begin
    words = [Word("a", 1.0, first, (5,) * n, ("a",) * n) for first, n in sizes.items()]
    assert classify_tokens(words, 8, 24) == {
        "start mark": [0, 8, 16],
        "words": [1, 2, 3, 9, 10, 11, 12, 13, 14],
        "end mark": [4, 15, 17],
        "padding": [5, 6, 7, 18, 19, 20, 21, 22, 23],
    }


@pytest.mark.filterwarnings("ignore:emoji has never read")
def test_words_of_many_tokens_are_one_map(emoji):
    data = attention_data(emoji, "xylographic café", seed=0, steps=2)
    report = data.to_dict()
    assert [word["text"] for word in report["words"]] == ["xylographic", "café"]
    many = len(data.words[0].ids)
    assert many > 1
    assert report["words"][0]["share"] == pytest.approx(sum(report["shares"][1 : 1 + many]))
    assert np.allclose(report["words"][0]["map"], data.attention[1 : 1 + many].sum(0), atol=1e-6)


def test_the_unet_and_its_processors_are_as_they_were_also_after_an_error(emoji):
    unet = emoji.components.unet
    before = {name: id(p) for name, p in unet.attn_processors.items()}

    def stop(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attention_data(emoji, "owl", on_step=stop, **SETTINGS)
    assert emoji.components.unet is unet
    assert {name: id(p) for name, p in unet.attn_processors.items()} == before


def test_the_recording_unet_has_no_weights_of_its_own(emoji):
    unet = emoji.components.unet
    copy = record_attention(unet, AttentionSums())
    for own, other in zip(copy.parameters(), unet.parameters(), strict=True):
        assert own is other
    assert copy is not unet
    assert copy.conv_in is not unet.conv_in


def test_another_thread_draws_meanwhile_and_is_not_recorded(emoji, attended):
    plain = emoji.generate("red apple", **SETTINGS).images[0].tobytes()
    drawn = []

    def other(step):
        thread = threading.Thread(
            target=lambda: drawn.append(emoji.generate("red apple", **SETTINGS).images[0])
        )
        thread.start()
        thread.join()

    data = attention_data(emoji, "owl on a blue background", on_step=other, **SETTINGS)
    assert [image.tobytes() for image in drawn] == [plain, plain]
    assert data.image.tobytes() == attended.image.tobytes()
    assert np.array_equal(data.attention, attended.attention)


def test_what_has_no_words_is_refused(emoji):
    for prompt in (" ", "( ) BREAK []"):
        with raises(UsageError, value="the prompt", rule="has no words"):
            attention_data(emoji, prompt)
    with raises(UsageError, value="the prompt", rule="changes over the steps"):
        attention_data(emoji, "[owl|cat]")
    with raises(UsageError, value="g=0", rule="without effect"):
        attention_data(emoji, "owl", g=0)


@pytest.mark.parametrize(
    "prompt",
    [
        "owl",
        "woman in manual wheelchair facing right",
        "a $5 xylographic café with 🇫🇷",
        " ".join(["so many words and so little room for them"] * 2),
    ],
)
@pytest.mark.filterwarnings("ignore:emoji has never read")
def test_no_text_meets_another(emoji, prompt):
    room = emoji.components.tokenizer.model_max_length - 2
    words = prompt.split()
    while len(emoji.components.tokenizer(" ".join(words)).input_ids) - 2 > room:
        words.pop()
    data = attention_data(emoji, " ".join(words), seed=1, steps=2, dim=64)
    assert_legible(attention_figure(data))
    even = np.full_like(data.attention, 1 / len(data.attention))
    assert_legible(attention_figure(replace(data, attention=even)))
