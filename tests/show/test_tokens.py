import subprocess
import sys

import pytest
from support.drawn import assert_legible, drawn_texts
from support.tiny import write_tokenizer

from sdpipe.loading.parts import load_tokenizer
from sdpipe.prompt.chunks import make_chunks
from sdpipe.prompt.syntax import parse
from sdpipe.show.tokens import decode_token, split_words, tokens_data, tokens_figure

PROMPTS = [
    "",
    "red apple",
    "  Red\tapple,  green   DOG. ",
    "a $5 café with 🐶 and 日本 and naïve <|endoftext|> o'clock",
    "woman in manual wheelchair facing right",
    "xylographic " * 7 + "cat",
    "cat " * 200,
    "supercalifragilisticexpialidocious" * 8,
    "dog,cat," * 40,
    "a (red:1.3) dog [on] ((a xylographic:0.5) cat) BREAK [cat:dog:0.5], [green|blue]",
    "BREAK" + " dog" * 30 + " BREAK (of:2)" + " xylographic" * 30,
]


@pytest.fixture(scope="module")
def like_v1_4(tmp_path_factory):
    """A tokenizer of 77 positions, whose words are bytes but for a few."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def built_in():
    return load_tokenizer("emoji")


@pytest.fixture(params=["like_v1_4", "built_in"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def test_the_tokenizer_alone_is_that_of_the_pipeline(built_in, emoji):
    own = emoji.components.tokenizer
    assert built_in.model_max_length == own.model_max_length
    for prompt in PROMPTS:
        assert built_in(prompt, verbose=False).input_ids == own(prompt, verbose=False).input_ids


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_ids_are_those_that_the_encoder_gets(tokenizer, prompt):
    data = tokens_data(tokenizer, prompt)
    found = make_chunks(tokenizer, parse(prompt).at(0, 999))
    assert data.ids == sum((chunk.ids for chunk in found), ())
    assert data.length == tokenizer.model_max_length
    assert list(data.tokens) == tokenizer.convert_ids_to_tokens(list(data.ids))
    weights = sum((chunk.weights for chunk in found), ())
    for word in data.words:
        own = slice(word.first, word.first + len(word.ids))
        assert data.ids[own] == word.ids
        assert set(weights[own]) == {word.weight}
    for chunk, padding in enumerate(data.padding):
        ids = found[chunk].ids
        end = len(ids) - 1 - padding
        assert set(ids[end:]) == {tokenizer.eos_token_id}
        assert ids[end - 1] != tokenizer.eos_token_id
        assert sum(len(word.ids) for word in data.words_of(chunk)) == end - 1


@pytest.mark.parametrize("prompt", PROMPTS[:-2])
def test_words_are_pieces_of_the_prompt_and_their_tokens_all_there_are(tokenizer, prompt):
    words = split_words(tokenizer, parse(prompt).at(0, 1))
    ids = tokenizer(prompt, verbose=False).input_ids[1:-1]
    assert [i for word in words for i in word.ids] == ids
    for word in words:
        assert len(word.ids) == len(word.tokens)
        assert " " not in word.text
    assert "".join(word.text for word in words) == "".join(prompt.split())


def test_words_have_their_weights_and_positions(like_v1_4):
    data = tokens_data(like_v1_4, "a (red:1.3) [cat:dog:0.5] BREAK apple")
    found = [(word.text, word.weight, word.first) for word in data.words]
    assert found == [("a", 1, 1), ("red", 1.3, 2), ("cat", 1, 3), ("apple", 1, 78)]
    assert data.changes
    assert data.padding == (72, 74)
    texts = [text for text, *_ in drawn_texts(tokens_figure(data))]
    assert f"{data.ids[2]} \u00d7 1.3" in texts
    assert {"padding \u00d7 72", "position 76", "position 77", "position 153"} <= set(texts)
    assert any(
        text.startswith("at the first step: 154 tokens for the text encoder in 2 chunks: 4 of the")
        and text.endswith("4 marks, 146 of padding; \u00d7 a weight")
        for text in texts
    )


def test_a_word_at_the_end_of_a_chunk_goes_on_in_the_next(built_in):
    room = built_in.model_max_length - 2
    assert len(built_in("xylographic").input_ids) > 4
    words = split_words(built_in, parse("cat " * (room - 1) + "xylographic").at(0, 1))[-2:]
    assert "".join(word.text for word in words) == "xylographic"
    assert [word.first for word in words] == [room, room + 3]


def test_words_end_where_the_tokenizer_says_so(built_in):
    owl = parse("owl on a blue background").at(0, 1)
    assert [word.text for word in split_words(built_in, owl)] == [
        "owl",
        "on",
        "a",
        "blue",
        "background",
    ]
    words = split_words(built_in, parse("wheelchair, café 🐶").at(0, 1))
    assert [word.text for word in words] == ["wheelchair", ",", "café", "🐶"]
    assert "".join(words[0].tokens) == "wheelchair</w>"


def test_a_chunk_more_begins_where_one_is_full(like_v1_4):
    room = like_v1_4.model_max_length - 2
    assert tokens_data(like_v1_4, "cat " * room).padding == (0,)
    assert tokens_data(like_v1_4, "cat " * (room + 1)).padding == (0, room - 1)
    assert tokens_data(like_v1_4, "cat").padding == (room - 1,)


@pytest.mark.parametrize(
    ("token", "text"),
    [
        ("apple</w>", "apple"),
        ("wear", "wear"),
        ("Ã©</w>", "é"),
        ("Ã", "0xc3"),
        ("ðŁĲ", "0xf0 0x9f 0x90"),
        ("ðŁĲ¶</w>", "🐶"),
        ("<|startoftext|>", "<|startoftext|>"),
        ("<my 日 token>", "<my 日 token>"),
    ],
)
def test_tokens_are_spelled_as_a_person_would(token, text):
    assert decode_token(token) == text


@pytest.mark.parametrize("prompt", [PROMPTS[i] for i in (0, 2, 3, 6, 7, 9)])
def test_no_text_meets_another(tokenizer, prompt):
    assert_legible(tokens_figure(tokens_data(tokenizer, prompt)))


def test_padding_is_one_box(like_v1_4):
    texts = [text for text, *_ in drawn_texts(tokens_figure(tokens_data(like_v1_4, "red cat")))]
    assert "padding \u00d7 73" in texts
    assert {"start", "red", "cat", "end"} <= set(texts)
    assert len(texts) < 16


def test_tokens_need_no_torch():
    code = (
        "import sys; from sdpipe.loading.parts import load_tokenizer;"
        "from sdpipe.show.tokens import tokens_data;"
        "tokens_data(load_tokenizer('emoji'), 'red apple').to_dict();"
        "print(*{'torch', 'diffusers', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
