"""Textual inversions against diffusers' own loader, and how their words behave in a prompt."""

import json
import re

import pytest
import torch
from diffusers import LMSDiscreteScheduler
from safetensors.torch import load_file, save_file
from support.errors import raises
from support.parity import BETAS, diffusers_pipeline, diffusers_run
from support.tiny import WIDTH, tiny_model

from sdpipe import Pipeline, UsageError
from sdpipe.cli.app import main
from sdpipe.components import inspect_model, load
from sdpipe.errors import ModelError
from sdpipe.loading.convert import convert
from sdpipe.loading.textual_inversion import Embedding
from sdpipe.prompt.chunks import make_chunks, split_tokens
from sdpipe.prompt.encode import encode_prompts
from sdpipe.prompt.syntax import parse

pytestmark = pytest.mark.filterwarnings("ignore:the latents grew")  # the weights are random

PROMPT = "a photo of my-cat, red my-cat on a"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


def vectors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write(path, name, *shape):
    save_file({name: vectors(*shape)}, path)
    return path


def said(tokenizer, prompt):
    """The tokens of a prompt, without marks and padding."""
    return [[t.id for t in chunk] for chunk in split_tokens(tokenizer, parse(prompt).at(0, 1))]


@pytest.mark.parametrize(
    ("name", "shape"),
    [("emb_params", (3, WIDTH)), ("my-cat", (WIDTH,)), ("my-cat", (1, WIDTH))],
)
def test_embeddings_are_those_of_diffusers(tiny, tmp_path, name, shape):
    path = write(tmp_path / "my-cat.safetensors", name, *shape)
    ours = load(tiny, dtype="float32", embeddings=[path])
    pipe = diffusers_pipeline(
        load(tiny, dtype="float32"), LMSDiscreteScheduler(**BETAS, steps_offset=1)
    )
    pipe.load_textual_inversion(path, token="my-cat")
    theirs = pipe.encode_prompt(PROMPT, "cpu", 1, True, negative_prompt="my-cat")
    text = encode_prompts(ours.tokenizer, ours.text_encoder, [PROMPT], ["my-cat"])
    assert torch.equal(text.cond[0], theirs[0])
    assert torch.equal(text.uncond[0], theirs[1])
    plain = load(tiny, dtype="float32")
    without = encode_prompts(plain.tokenizer, plain.text_encoder, [PROMPT], [""])
    assert not torch.allclose(text.cond[0], without.cond[0], atol=0.1)


def test_images_are_those_of_diffusers(tiny, tmp_path):
    path = write(tmp_path / "learned_embeds.safetensors", "<thing>", 2, WIDTH)
    run = {"seed": 7, "g": 3.0, "steps": 2}
    parts = load(tiny, dtype="float32")
    scheduler = LMSDiscreteScheduler(**BETAS, steps_offset=1)
    diffusers_pipeline(parts, scheduler).load_textual_inversion(path)
    theirs, images = diffusers_run(parts, scheduler, ["a <thing>"], **run, width=32, height=32)
    pipe = Pipeline(tiny, device="cpu", dtype="float32", embeddings=[path])
    ours = pipe.generate("a <thing>", **run, save_int=True)
    assert (ours.steps[-1].latents - theirs[-1]).abs().max() < 1e-4 * theirs[-1].abs().max()
    assert ours.images[0].tobytes() == images[0].tobytes()
    # Parts that diffusers taught the word understand it here too.
    handed = {"tokenizer": parts.tokenizer, "text_encoder": parts.text_encoder}
    again = Pipeline(tiny, device="cpu", dtype="float32", **handed).generate("a <thing>", **run)
    assert again.images[0].tobytes() == images[0].tobytes()


def test_a_word_is_all_of_its_vectors_and_only_where_it_stands_alone(tiny, tmp_path):
    path = write(tmp_path / "Style.safetensors", "emb_params", 3, WIDTH)
    tokenizer = load(tiny, embeddings=[path, (path, "<s>")]).tokenizer
    first, second, third = own = tokenizer.convert_tokens_to_ids(["Style", "Style_1", "Style_2"])
    assert len({*own}) == 3
    assert said(tokenizer, "style") == said(tokenizer, "STYLE") == [own]
    assert said(tokenizer, "red style, cat")[0][1:4] == own
    assert not {first, second, third} & {*said(tokenizer, "styles restyle my_style")[0]}
    assert said(tokenizer, "<s>")[0] == tokenizer.convert_tokens_to_ids(["<s>", "<s>_1", "<s>_2"])
    (chunk,) = make_chunks(tokenizer, parse("a (style:1.5) cat").at(0, 1))
    assert chunk.weights[:6] == (1.0, 1.0, 1.5, 1.5, 1.5, 1.0)
    assert said(tokenizer, "[cat:style:0]") == [own]


def test_an_embedding_that_no_prompt_mentions_is_warned_of(tiny, tmp_path, capsys):
    path = write(tmp_path / "my-cat.safetensors", "emb_params", 2, WIDTH)
    tokenizer = load(tiny, embeddings=[path]).tokenizer
    command = ["generate", "--model", str(tiny), "--device", "cpu", "--dtype", "float32"]
    command += ["--steps", "2", "--g", "1", "--embedding", str(path), "--out", str(tmp_path / "o")]
    for prompt in ("cat face", "my-cats", "(MY-CAT:1.2)"):
        assert main([*command, prompt]) == 0
        has_effect = tokenizer.convert_tokens_to_ids("my-cat") in said(tokenizer, prompt)[0]
        assert ("'my-cat' has no effect" in capsys.readouterr().err) == (not has_effect)
    assert main([*command, "cat face", "--negative-prompt", "my-cat"]) == 0
    assert "no effect" not in capsys.readouterr().err
    sweep = ["sweep", "a {my-cat|dog}", *command[1:-1], str(tmp_path / "s")]
    assert main(sweep) == 0
    assert "no effect" not in capsys.readouterr().err
    assert main(["sweep", "a {cat|dog}", *sweep[2:]]) == 0
    assert capsys.readouterr().err.count("no effect") == 1


def test_no_chunk_ends_inside_a_word(tiny, tmp_path):
    path = write(tmp_path / "style.safetensors", "emb_params", 3, WIDTH)
    tokenizer = load(tiny, embeddings=[path]).tokenizer
    own = tokenizer.convert_tokens_to_ids(["style", "style_1", "style_2"])
    for before in (72, 73, 74, 75):
        first, *rest = said(tokenizer, "cat " * before + "style dog")
        assert (len(first), first[-3:] == own) == ((75, True) if before == 72 else (before, False))
        assert rest[0][:3] == (own if before > 72 else rest[0][:3])


def test_vectors_lie_where_the_words_are_and_the_others_stay(tiny, tmp_path):
    path = write(tmp_path / "style.safetensors", "emb_params", 2, WIDTH)
    before = load(tiny, dtype="float32").text_encoder.get_input_embeddings().weight
    found = load(tiny, dtype="float32", embeddings=[path])
    table = found.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[: len(before)], before)
    assert torch.equal(table[len(before) :], vectors(2, WIDTH))
    assert not table.requires_grad
    half = load(tiny, dtype="float16", embeddings=[path]).text_encoder
    assert half.get_input_embeddings().weight.dtype == torch.float16


def test_what_was_handed_over_stays_as_it_was(tiny, tmp_path):
    path = write(tmp_path / "style.safetensors", "emb_params", 2, WIDTH)
    mine = load(tiny, dtype="float32")
    tokens, rows = len(mine.tokenizer), mine.text_encoder.config.vocab_size
    parts = {"tokenizer": mine.tokenizer, "text_encoder": mine.text_encoder}
    found = load(tiny, dtype="float32", embeddings=[path], **parts)
    assert (len(mine.tokenizer), mine.text_encoder.config.vocab_size) == (tokens, rows)
    assert mine.text_encoder.get_input_embeddings().weight.shape[0] == rows
    assert (len(found.tokenizer), found.text_encoder.config.vocab_size) == (tokens + 2, rows + 2)


@pytest.mark.parametrize(
    ("tensors", "rule"),
    [
        ({"emb_params": (1, 768)}, "has vectors of width 768"),
        ({"emb_params": (76, WIDTH)}, "has 76 vectors"),
        ({"emb_params": (1, 2, WIDTH)}, "its emb_params has the shape [1, 2, 16]"),
        ({"clip_l": (1, 768), "clip_g": (1, 1280)}, "is for Stable Diffusion XL"),
        ({"a": (1, WIDTH), "b": (1, WIDTH)}, "it has 2 tensors (a, b ...)"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_loaded(tiny, tmp_path, tensors, rule):
    save_file({k: torch.zeros(v) for k, v in tensors.items()}, path := tmp_path / "x.safetensors")
    with raises(ModelError, "x.safetensors", rule):
        inspect_model(tiny, embeddings=[path])


@pytest.mark.parametrize(("name", "word"), [("cat", "cat"), ("Red", "Red")])
def test_a_word_that_the_tokenizer_has_is_refused(tiny, tmp_path, name, word):
    path = write(tmp_path / "x.safetensors", name, 1, WIDTH)
    with raises(ModelError, f"the word {word!r}", "is a token already", f":my-{word}"):
        load(tiny, embeddings=[path])


def test_two_of_one_name(tiny, tmp_path):
    path = write(tmp_path / "style.safetensors", "emb_params", 2, WIDTH)
    with raises(ModelError, "the word 'style'", "'style' is a token already"):
        load(tiny, embeddings=[path, path])


@pytest.mark.parametrize("word", ["", " ", "a ", 3, "x" * 81, "a\nb"])
def test_a_word_can_be_written(tmp_path, word):
    with raises(UsageError, "with the word", "to write in prompts", "my-cat"):
        Embedding.read((write(tmp_path / "x.safetensors", "emb_params", 1, WIDTH), word))


@pytest.mark.parametrize("kind", [dict, torch.nn.ParameterDict])  # A1111 and the paper's own code
def test_a_pickle_is_converted(tiny, tmp_path, kind):
    pickle, made = tmp_path / "bad-hands.pt", tmp_path / "bad-hands.safetensors"
    parameters = kind({"*": torch.nn.Parameter(vectors(2, WIDTH))})
    torch.save({"string_to_token": {"*": 265}, "string_to_param": parameters, "step": 9}, pickle)
    command = f"`python -m sdpipe.loading.convert {pickle} {made}`"
    with raises(ModelError, "bad-hands.pt", "is a pickle", command):
        load(tiny, embeddings=[pickle])
    convert(pickle, made)
    found = Embedding.read(made)
    assert (found.word, found.vectors, found.width) == ("bad-hands", 2, WIDTH)
    assert torch.equal(load_file(made)["emb_params"], vectors(2, WIDTH))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_are_named(tiny, tmp_path, value):
    path = tmp_path / "style.safetensors"
    save_file({"emb_params": torch.full((1, WIDTH), value)}, path)
    with raises(ModelError, "style.safetensors", "its tensor emb_params has NaN or infinity"):
        load(tiny, embeddings=[path])


def test_an_image_tells_its_embeddings_and_wants_them_back(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "style.safetensors", "emb_params", 2, WIDTH)

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, " ".join(err.split())

    fast = ["--model", tiny, "--steps", "2", "--seed", "1", "--device", "cpu", "--dtype", "float32"]
    status, out, err = run("generate", "a tom", *fast, "--embedding", "style.safetensors:tom")
    assert status == 0, err
    image = out.strip()
    out = run("info", image)[1]
    assert re.search(r"embedding +tom, of style\.safetensors, sha256 [0-9a-f]{12}\n", out)
    again = ["replay", image, "--model", tiny, "--verify"]
    status, _, err = run(*again)
    assert (status, "drawn with the embedding 'style.safetensors', which" in err) == (2, True)
    assert run(*again, "--embedding", "style.safetensors")[:2] == (0, "identical\n")

    tokens = ["show", "tokens", "a tom, red", "--model", tiny, "--json"]
    status, out, err = run(*tokens, "--embedding", "style.safetensors:tom")
    assert status == 0, err
    words = {word["text"]: word["tokens"] for word in json.loads(out)["words"]}
    assert words["tom"] == ["tom", "tom_1"]
    status, _, err = run(*tokens, "--embedding", "style.safetensors:")
    assert (status, "with the word '' has no word to write in prompts" in err) == (2, True)
