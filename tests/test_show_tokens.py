import subprocess
import sys

import pytest
from drawn import assert_legible, drawn_texts
from tiny import write_tokenizer

from sdpipe.prompt import cut_off, tokenize
from sdpipe.show.parts import load_tokenizer
from sdpipe.show.tokens import tokens_data, tokens_figure
from sdpipe.show.words import cut, spelled, split

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
]


@pytest.fixture(scope="module")
def like_v1_4(tmp_path_factory):
    """A tokenizer of 77 places, whose words are bytes but for a few."""
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
    assert list(data.ids) == tokenize(tokenizer, prompt)[0].tolist()
    assert len(data.ids) == tokenizer.model_max_length
    assert list(data.tokens) == tokenizer.convert_ids_to_tokens(list(data.ids))
    assert data.cut == cut_off(tokenizer, prompt)
    end = len(data.ids) - 1 - data.padding
    assert set(data.ids[end:]) == {tokenizer.eos_token_id}
    assert data.ids[end - 1] != tokenizer.eos_token_id


@pytest.mark.parametrize("prompt", PROMPTS)
def test_words_are_pieces_of_the_prompt_and_their_tokens_all_there_are(tokenizer, prompt):
    words = split(tokenizer, prompt)
    ids = tokenizer(prompt, verbose=False).input_ids[1:-1]
    assert [i for word in words for i in word.ids] == ids
    place = 1
    for word in words:
        assert word.first == place
        assert prompt[word.start :].startswith(word.text)
        assert len(word.ids) == len(word.tokens)
        assert " " not in word.text
        place += len(word.ids)
    assert "".join(word.text for word in words) == "".join(prompt.split())


def test_words_end_where_the_tokenizer_says_so(built_in):
    assert [word.text for word in split(built_in, "owl on a blue background")] == [
        "owl",
        "on",
        "a",
        "blue",
        "background",
    ]
    words = split(built_in, "wheelchair, café 🐶")
    assert [word.text for word in words] == ["wheelchair", ",", "café", "🐶"]
    assert "".join(words[0].tokens) == "wheelchair</w>"


def test_what_fits_exactly_is_not_cut(like_v1_4):
    room = like_v1_4.model_max_length - 2
    full, over = " ".join(["cat"] * room), " ".join(["cat"] * (room + 1))
    assert cut(full, split(like_v1_4, full), room + 2) == ""
    assert cut(over, split(like_v1_4, over), room + 2) == "cat"
    assert tokens_data(like_v1_4, full).padding == 0
    assert tokens_data(like_v1_4, "cat").padding == room - 1


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
    assert spelled(token) == text


@pytest.mark.parametrize("prompt", [PROMPTS[i] for i in (0, 2, 3, 6, 7)])
def test_no_text_meets_another(tokenizer, prompt):
    assert_legible(tokens_figure(tokens_data(tokenizer, prompt)))


def test_padding_is_one_box(like_v1_4):
    texts = [text for text, *_ in drawn_texts(tokens_figure(tokens_data(like_v1_4, "red cat")))]
    assert "padding x 73" in texts
    assert {"start", "red", "cat", "end"} <= set(texts)
    assert len(texts) < 16


def test_tokens_need_no_torch():
    code = (
        "import sys; from sdpipe.show.parts import load_tokenizer;"
        "from sdpipe.show.tokens import tokens_data;"
        "tokens_data(load_tokenizer('emoji'), 'red apple').numbers();"
        "print(*{'torch', 'diffusers', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
