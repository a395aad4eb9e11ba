"""Which words of a prompt a model was not trained on, and what may be meant by them."""

import json
import random
import shutil
import unicodedata
import warnings

import pytest

from sdpipe import Pipeline, SdpipeWarning
from sdpipe.loading.vocabulary import FILE, find_vocabulary
from sdpipe.prompt.vocabulary import Vocabulary, split_words, warn_unknown_words
from sdpipe.training.emoji.paraphrase import add_typo, pluralize
from sdpipe.training.emoji.scenes import (
    COLOURS,
    PLACES,
    RELATIONS,
    SIZES,
    Scene,
    caption,
)

GARDEN = Vocabulary.from_captions(
    ["oak tree", "moon", "moon cake", "castle", "case", "hot", "guitar", "piñata"],
    ["on a red background", "small", "at the top"],
)


@pytest.fixture(scope="module")
def emoji_vocabulary():
    vocabulary = find_vocabulary("emoji")
    assert vocabulary is not None
    return vocabulary


def test_punctuation_separates_words_and_other_signs_are_words_of_their_own():
    assert split_words("A red, [T-Rex] four-thirty o'clock | 3d cañas! 5 €") == [
        *("a", "red", "t-rex", "four-thirty", "o'clock", "3", "d", "cañas", "5", "€")
    ]


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "Small (OAK tree:1.2) at the top BREAK on a red background",
        "oak_tree, moon!",
        "(moon:1.25) [oak:moon:0.5] [moon|oak] [moon:12]",
        unicodedata.normalize("NFD", "piñata"),
    ],
)
def test_every_word_of_the_training_is_known(prompt):
    assert GARDEN.unknown(prompt) == {}


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("oak teee", {"teee": "tree"}),
        ("a gitar on a read background", {"gitar": "guitar", "read": "red"}),
        ("xylophone", {"xylophone": None}),
        ("casle", {"casle": "castle"}),
        ("moon cace", {"cace": "cake"}),  # "case" is as near, but shares no name with "moon"
        ("small cace", {"cace": "case"}),
        ("caes", {"caes": "case"}),
        ("moon, 4k", {"4": None, "k": None}),
        ("moon ☃ \u20ac", {"☃": None, "€": None}),
        ("guitar\u2019s", {"guitar's": "guitar"}),
    ],
)
def test_an_unknown_word_comes_with_a_similar_one(prompt, unknown):
    assert GARDEN.unknown(prompt) == unknown


def test_added_tokens_are_known():
    assert GARDEN.unknown("<qux> moon my-gutiar", ["<qux>", "my", "my-gutiar"]) == {}
    assert GARDEN.unknown("my-gutiar gutiar", ["my-gutiar"]) == {"gutiar": "guitar"}


@pytest.mark.parametrize("change", ["transposed letters", "as in training"])
def test_most_typing_errors_are_recognised(emoji_vocabulary, change):
    rng, right, wrong = random.Random(1), 0, 0
    for name in rng.sample(emoji_vocabulary.names, 150):
        word = max(name.split(), key=len)
        k = rng.randrange(len(word) - 1)
        typed = name.replace(word, word[:k] + word[k + 1] + word[k] + word[k + 2 :])
        if change == "as in training":
            typed = add_typo(name, rng)
        for word, suggestion in emoji_vocabulary.unknown(typed).items():
            found = typed.replace(word, suggestion or "") == name
            right, wrong = right + found, wrong + (not found)
    assert right + wrong > 100
    assert right > 0.95 * (right + wrong)


def test_the_built_in_model_knows_all_words_of_its_captions(emoji_vocabulary):
    rng, names = random.Random(0), emoji_vocabulary.names
    assert len(names) == 1612
    for _ in range(3000):
        name, other = rng.sample(names, 2)
        colour, size, place = (rng.choice(list(x)) for x in (COLOURS, SIZES, PLACES))
        scenes = [
            Scene(name, colour),
            Scene(name, colour, size, place),
            Scene(name, relation=rng.choice(list(RELATIONS)), other=other),
        ]
        for text in (*map(caption, scenes), pluralize(name), f"an emoji of an {name}"):
            assert emoji_vocabulary.unknown(text) == {}, text


def test_names_are_found_by_their_words():
    assert GARDEN.find_names("") == list(GARDEN.names)
    assert GARDEN.find_names("MOON") == ["moon", "moon cake"]
    assert GARDEN.find_names("cake moon") == ["moon cake"]
    assert GARDEN.find_names("tree moon") == []
    assert GARDEN.suggest_names("trees") == "tree"
    assert GARDEN.suggest_names("xylophone") is None


def test_a_further_training_adds_its_words():
    merged = GARDEN.merge(Vocabulary.from_captions(["pear", "moon"], ["under a lamp"]))
    assert merged.names == (*GARDEN.names, "pear")
    assert merged.unknown("small pear under the moon") == {}
    assert GARDEN.unknown("pear")


def warning(prompt, vocabulary=GARDEN, added_tokens=()):
    """The one warning for a prompt, None if there is none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_unknown_words(vocabulary, [prompt], "m", "list-names", added_tokens)
    assert all((w.category, w.filename) == (SdpipeWarning, __file__) for w in caught)
    messages = [str(w.message) for w in caught]
    return messages[0] if messages else None


def test_the_warning_suggests_a_prompt_of_known_words():
    message = warning("Casle, rockcase5 on a (read:1.2) case")
    assert '"casle"' in message
    assert "list-names" in message
    assert 'did you mean "castle (case:1.5), a red castle"?' in warning(
        "casle (case:1.5), a read Casle"
    )
    assert 'mean "<casle> BREAK castle"?' in warning(
        "<casle> BREAK casle", added_tokens=["<casle>"]
    )
    assert warning("oak tree on a <qux> background", added_tokens=["<qux>"]) is None


def test_the_warning_names_the_command_only_if_there_are_names_to_list():
    unnamed = Vocabulary.from_captions([], ["a moon"])
    assert "list-names" not in warning("xylophone", unnamed)


@pytest.mark.parametrize("prompt", ["teee_", "TEEE", "tre\u0301e", "teee BREAK-teee"])
def test_the_warning_never_suggests_the_prompt_itself(prompt):
    _, suggestion = warning(prompt).split("did you mean")
    assert "tre" in suggestion
    assert unicodedata.normalize("NFC", prompt) not in suggestion


@pytest.mark.parametrize("prompt", ["moon, 4k", r"te\ee", "k", "x moon"])
def test_where_no_word_is_similar_there_is_no_suggestion(prompt):
    assert "did you mean" not in warning(prompt)


def test_the_warning_lists_six_words_and_counts_the_others():
    assert '"4", "5", "6", "7", "8" or "9" and' in warning("4 5 6 7 8 9")
    assert '"4", "5", "6", "7", "8", "9" or 2 other words and' in warning("4 5 6 7 8 9 1 2")


def test_single_letters_are_like_no_word():
    assert Vocabulary.from_captions(["cat", "ox"], []).unknown("ca o") == {"ca": "cat", "o": None}


GLYPHS = {
    "\U0001f319": "moon",
    "\U0001f3f0": "castle",
    "\U0001f333": "oak tree",
    "\u2668\ufe0f": "hot",
}


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("🌙", "moon"),
        ("a 🌳 on a red background", "a oak tree on a red background"),
        ("🌙🏰, small", "moon castle, small"),
        ("red🌙at the top", "red moon at the top"),
        ("(🌙:1.2) [🌳:🏰:0.5]", "(moon:1.2) [oak tree:castle:0.5]"),
        ("♨️ ♨", "hot hot"),
    ],
)
def test_a_glyph_is_read_as_its_name_and_said(prompt, read):
    vocabulary = Vocabulary.from_captions(GARDEN.names, ["on a red background"], GLYPHS)
    with pytest.warns(SdpipeWarning) as caught:
        assert vocabulary.read(prompt) == read
    assert [str(w.message) for w in caught] == [f"{prompt!r} is read as {read!r}."]
    assert vocabulary.read(read) == read


@pytest.mark.parametrize("prompt", ["moon", "piñata", "яблоко", "🦄"])
def test_what_is_no_glyph_of_the_model_stays(prompt):
    assert GARDEN.read(prompt) == prompt
    assert Vocabulary((), frozenset(), GLYPHS).read(prompt) == prompt


def test_signs_of_zero_width_are_dropped():
    assert GARDEN.read("oak\u200b tree\u200d \ufeffmoon\ufe0f") == "oak tree moon"


def test_every_glyph_of_the_built_in_model_is_read(emoji_vocabulary):
    """Against Unicode's own names, which most glyphs of one character have."""
    same = 0
    assert set(emoji_vocabulary.glyphs.values()) == set(emoji_vocabulary.names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SdpipeWarning)
        for glyph, name in emoji_vocabulary.glyphs.items():
            assert emoji_vocabulary.read(f"{glyph}\ufe0f") == name
            same += len(glyph) == 1 and unicodedata.name(glyph, "").lower() == name
        assert emoji_vocabulary.read("👩🏽\u200d🚀") == "woman astronaut"
    assert same > 850


def test_a_glyph_draws_what_its_name_draws(emoji):
    settings = {"steps": 2, "g": 1.0, "seed": 1}
    wanted = emoji.generate("red apple on a red background", negative_prompt="dog face", **settings)
    with pytest.warns(SdpipeWarning, match="is read as"):
        result = emoji.generate("🍎 on a red background", negative_prompt="🐶", **settings)
    assert result.settings == wanted.settings
    assert result.images[0].tobytes() == wanted.images[0].tobytes()


def test_a_prompt_with_unknown_words_is_drawn_as_it_is(emoji):
    settings = {"steps": 2, "g": 1.0, "seed": 1}
    with pytest.warns(SdpipeWarning, match="never read") as caught:
        result = emoji.generate("umbkella on a purpel background", **settings)
    assert result.settings[0].prompt == "umbkella on a purpel background"
    (message,) = [w for w in caught if w.category is SdpipeWarning]
    assert 'mean "umbrella on a purple background"?' in str(message.message)
    assert message.filename == __file__
    with pytest.warns(SdpipeWarning, match="`sdpipe names --model emoji`"):
        emoji.generate("astronaut riding a horse", **settings)


def test_only_the_parts_that_read_the_vocabulary_are_held_to_it(emoji):
    encoder = emoji.components.text_encoder
    pipe = Pipeline("emoji", text_encoder=encoder, device="cpu", dtype="float32")
    assert pipe.components.vocabulary is None
    with warnings.catch_warnings():
        warnings.simplefilter("error", SdpipeWarning)
        assert pipe.generate("umbkella", steps=2, g=1.0, seed=1).images


def test_a_model_of_ones_own_has_its_vocabulary(run, folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "my model")
    (model / FILE).write_text(json.dumps(GARDEN.to_json()))
    options = ("--model", model, "--device", "cpu", "--dtype", "float32", "--steps", "2")
    status, _, err = run("generate", "a gitar", *options)
    assert status == 0
    assert 'did you mean "a guitar"?' in err
    _, _, err = run("generate", "xylophone", *options)
    assert f"`sdpipe names --model '{model}'`" in err
    assert run("names", "oak", "--model", model)[1] == "oak tree\n"
