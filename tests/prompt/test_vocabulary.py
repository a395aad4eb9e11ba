"""The words that a model was told: which of a prompt's are none of them, and what may be meant."""

import dataclasses
import json
import random
import shutil
import warnings

import pytest

from sdpipe import ModelError, Pipeline, SdpipeWarning
from sdpipe.io.png import read
from sdpipe.loading.locate import BUILT_IN_FOLDER
from sdpipe.prompt.vocabulary import (
    FILE,
    Learned,
    find_learned,
    one_letter_off,
    read_learned,
    words,
)
from sdpipe.training.emoji.scenes import (
    COLOURS,
    PLACES,
    RELATIONS,
    SIZES,
    Scene,
    caption,
    mistype,
    plural,
)

GARDEN = Learned.of(
    ["oak tree", "moon", "moon cake", "castle", "case", "hot", "guitar"],
    ["on a red background", "small", "at the top"],
)
FAST = ("--model", "emoji", "--device", "cpu", "--dtype", "float32", "--steps", "2", "--g", "1")


@pytest.fixture(scope="module")
def emoji_learned():
    learned = find_learned("emoji")
    assert learned is not None
    return learned


def test_words_are_what_is_between_signs_and_figures():
    assert words("A (red:1.2) [cat:T-Rex:0.5] BREAK four-thirty o'clock, 3 ca\u00f1as!") == [
        *("a", "red", "cat", "t-rex", "four-thirty", "o'clock", "ca\u00f1as")
    ]


def test_a_prompt_of_known_words_has_nothing_unknown():
    assert GARDEN.unknown("") == {}
    assert GARDEN.unknown("Small (OAK tree:1.2) at the top BREAK on a red background") == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("oak teee", {"teee": "tree"}),
        ("a gitar on a read background", {"gitar": "guitar", "read": "red"}),
        ("xylophone", {"xylophone": None}),
        ("casle", {"casle": "castle"}),
        ("moon cace", {"cace": "cake"}),  # castle and case are as near, but no moon goes with them
        ("small cace", {"cace": "case"}),
    ],
)
def test_what_is_unknown_is_told_with_what_may_be_meant(text, found):
    assert GARDEN.unknown(text) == found


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("gutiar", "guitar"),  # two letters have changed places
        ("Guitarr on a red background", "guitar on a red background"),  # one is double
        ("small caste at the top", "small castle at the top"),  # one is missing
        ("quitar", "quitar"),  # of six letters the first is another: a word, for all one knows
        ("caxtles", "caxtles"),  # no name
        ("moon cace", "moon cake"),  # one is another, but the two are a name
        ("oak tre (moon caek:1.2)", "oak tree (moon cake:1.2)"),  # a sign parts them
        ("oak tre moon caek", "oak tre moon caek"),  # names in a row are none
        ("hut", "hut"),
        ("caes", "case"),
        ("a cas", "a cas"),
        ("my-gutiar gutiar", "my-gutiar guitar"),
        ("{gutiar|moon}", "{guitar|moon}"),
        ("", ""),
    ],
)
def test_what_is_surely_mistyped_is_mended(typed, told):
    assert GARDEN.mended(typed) == told


def test_what_embeddings_are_called_is_not_mended():
    assert GARDEN.mended("gutiar", ["gutiar"]) == "gutiar"


def test_hardly_a_typing_error_is_mended_to_another_name(emoji_learned):
    """And most are; what the model was told is left as it is."""
    rng, right, wrong, left = random.Random(2), 0, [], 0
    for name in rng.sample(emoji_learned.names, 300):
        for text in (name, f"large {name} on the left", f"a fox left of a {name}"):
            assert emoji_learned.mended(text) == text
        typed = mistype(name, rng)
        if typed in emoji_learned.names or not emoji_learned.unknown(typed):
            continue
        told = emoji_learned.mended(typed)
        right, left = right + (told == name), left + (told == typed)
        wrong += [] if told in (name, typed) else [(name, typed, told)]
    assert right > 0.8 * (right + left + len(wrong))
    assert len(wrong) <= 3, wrong


@pytest.mark.parametrize(
    "text",
    [
        *("a nice cat", "king", "lake", "good food", "art", "slow", "home"),
        *("a photo of a dog", "cute fox", "a house near a tree", "dark castle", "best friend"),
    ],
)
def test_words_that_the_model_does_not_know_are_no_typing_errors(emoji_learned, text):
    assert emoji_learned.unknown(text)
    assert emoji_learned.mended(text) == text


@pytest.mark.parametrize(
    ("typed", "meant", "off"),
    [
        *[(typed, "rocket", True) for typed in ("rcket", "roccket", "rokcet", "rocet", "xocket")],
        *[(typed, "rocket", True) for typed in ("rockets", "rocke", "rocket", "orcket")],
        *[(typed, "rocket", False) for typed in ("rcokte", "socks", "rock", "tekcor", "")],
        ("a", "b", True),
        ("ab", "ba", True),
        ("abc", "cba", False),
    ],
)
def test_one_letter_off(typed, meant, off):
    assert one_letter_off(typed, meant) == one_letter_off(meant, typed) == off


def test_names_are_found_by_their_words():
    assert GARDEN.find("MOON") == ["moon", "moon cake"]
    assert GARDEN.find("cake moon") == ["moon cake"]
    assert GARDEN.find("tree moon") == []
    assert GARDEN.nearest("trees") == "tree"
    assert GARDEN.nearest("xylophone") is None


def test_another_training_adds_its_words():
    more = GARDEN.with_more(Learned.of(["pear", "moon"], ["under a lamp"]))
    assert more.names == (*GARDEN.names, "pear")
    assert more.unknown("small pear under the moon") == {}
    assert GARDEN.unknown("pear")


def test_what_is_written_is_read(tmp_path):
    (tmp_path / FILE).write_text(json.dumps(GARDEN.to_json()))
    assert read_learned(tmp_path, "model") == GARDEN
    assert read_learned(tmp_path / "elsewhere", "model") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"names": []}', '{"names": [], "words": [1]}'])
def test_a_damaged_file_is_told(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ModelError, match=FILE):
        read_learned(tmp_path, "model='x'")


def test_a_damaged_file_is_told_before_weights_are_read(folder, tmp_path, monkeypatch):
    model = shutil.copytree(folder, tmp_path / "model")
    (model / FILE).write_text("{")
    monkeypatch.setattr("sdpipe.components.build", lambda *_, **__: pytest.fail("reads weights"))
    with pytest.raises(ModelError, match=FILE):
        Pipeline(model)


def test_the_built_in_model_was_told_all_that_its_captions_say(emoji_learned):
    rng = random.Random(0)
    some = list(emoji_learned.names)
    assert len(some) == 1612
    for _ in range(3000):
        name, other = rng.sample(some, 2)
        colour, size, place = (rng.choice(list(x)) for x in (COLOURS, SIZES, PLACES))
        scenes = [
            Scene(name, colour),
            Scene(name, colour, size, place),
            Scene(name, relation=rng.choice(list(RELATIONS)), other=other),
        ]
        for text in (*map(caption, scenes), plural(name), f"an emoji of an {name}"):
            assert emoji_learned.unknown(text) == {}, text


def test_most_typing_errors_are_seen_through(emoji_learned):
    """Of two letters that change places in a word; where that makes another word it is none."""
    rng, right, wrong = random.Random(1), 0, 0
    for name in rng.sample(emoji_learned.names, 300):
        word = max(name.split(), key=len)
        k = rng.randrange(len(word) - 1)
        typed = name.replace(word, word[:k] + word[k + 1] + word[k] + word[k + 2 :])
        for unknown, meant in emoji_learned.unknown(typed).items():
            same = typed.replace(unknown, meant or "") == name
            right, wrong = right + same, wrong + (not same)
    assert right + wrong > 200
    assert right > 0.95 * (right + wrong)


def test_a_prompt_with_unknown_words_is_drawn_and_they_are_told(emoji):
    asked = {"steps": 2, "g": 1.0, "seed": 1}
    with pytest.warns(SdpipeWarning, match="never read") as told:
        emoji.generate("umbkella on a purpel background", **asked)
    assert [str(each.message) for each in told if each.category is SdpipeWarning] == [
        'emoji has never read "umbkella" or "purpel"; '
        'did you mean "umbrella on a purple background"?'
    ]
    assert told[0].filename == __file__
    with pytest.warns(SdpipeWarning, match=r"sdpipe names lists what it draws\.$"):
        emoji.generate("astronaut riding a horse", **asked)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SdpipeWarning)
        emoji.generate("Umbrella on a [red:blue:0.5] background", **asked)


def test_typing_errors_are_mended_and_that_is_said(run, tmp_path):
    asked = ("generate", "rokcet on a red background", *FAST, "--seed", "1", "--out", tmp_path)
    status, out, err = run(*asked)
    assert (status, out) == (0, f"{tmp_path}/0001-rocket-on-a-red-background.png\n")
    assert (
        'sdpipe: "rokcet on a red background" is drawn as "rocket on a red background", words that '
        "emoji has read; --as-typed draws it as it is\n"
    ) in err
    assert "never read" not in err
    mended = read(out.strip())
    assert mended["parameters"].startswith("rocket on a red background\n")

    status, out, err = run(*asked, "--as-typed")
    assert (status, out) == (0, f"{tmp_path}/0002-rokcet-on-a-red-background.png\n")
    assert 'emoji has never read "rokcet"; did you mean "rocket on a red background"?' in err
    assert read(out.strip())["parameters"].startswith("rokcet on a red background\n")

    _, out, err = run("generate", "rocket on a red background", *asked[2:])
    assert "drawn as" not in err
    drawn = read(out.strip())["sdpipe"]["pixels_sha256"]
    assert drawn == mended["sdpipe"]["pixels_sha256"]


def test_a_sweep_is_mended_too(run, tmp_path):
    asked = ("sweep", "{gutiar|rokcet}", *FAST, "--seed", "1", "--out", tmp_path)
    status, _, err = run(*asked)
    assert status == 0
    assert '"{gutiar|rokcet}" is drawn as "{guitar|rocket}"' in err
    names = {path.name for path in tmp_path.glob("prompt*.png")}
    assert names == {"prompt=guitar.png", "prompt=rocket.png"}
    assert "2 pictures: 2 there before" in run(*asked)[2]
    run(*asked, "--as-typed")
    assert (tmp_path / "prompt=gutiar.png").is_file()


def test_a_pipeline_draws_what_it_is_given(emoji):
    assert emoji.mended("rokcet") == "rocket"
    with pytest.warns(SdpipeWarning, match='did you mean "rocket"'):
        result = emoji.generate("rokcet", steps=2, g=1.0, seed=1)
    assert result.settings[0].prompt == "rokcet"


def test_who_may_know_more_is_not_told(emoji):
    parts = emoji.components
    asked = {"steps": 2, "g": 1.0, "seed": 1}
    knowing = Pipeline("emoji", text_encoder=parts.text_encoder, device="cpu", dtype="float32")
    assert knowing.components.vocabulary is None
    assert knowing.generate("umbkella", **asked).images


def test_the_words_of_an_embedding_are_known(emoji):
    from sdpipe.prompt.vocabulary import tell_unknown

    with warnings.catch_warnings():
        warnings.simplefilter("error", SdpipeWarning)
        tell_unknown(GARDEN, ["oak tree on a <qux> background"], "m", ["<qux>"])


def test_names_are_listed(run, emoji_learned):
    status, out, err = run("names")
    assert (status, out.splitlines(), err) == (0, list(emoji_learned.names), "")
    status, out, err = run("names", "cat", "face")
    assert (status, out, err) == (0, "cat face\n", "")
    status, out, _ = run("names", "black cat", "--json")
    assert (status, json.loads(out)) == (0, ["black cat"])


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [
        (["unicron"], "has 'unicron'; did you mean unicorn?"),
        (["cats"], "did you mean cat?"),
        (["tree", "cat"], "has 'tree cat'; ask for fewer words, or for none."),
        (["xylophone"], "ask for fewer words"),
    ],
)
def test_names_that_are_not_there_are_told(run, asked, remedy):
    status, out, err = run("names", *asked)
    assert (status, out) == (2, "")
    assert remedy in err


def test_a_model_without_a_list_is_told(run, folder, monkeypatch):
    status, out, err = run("names", "--model", folder)
    assert (status, out) == (1, "")
    assert "keeps no list of what it draws" in err
    monkeypatch.setenv("SDPIPE_MODEL", str(folder))
    assert run("names")[0] == 1


def test_a_folder_of_ones_own_tells_its_words(run, folder, tmp_path):
    model = tmp_path / "my model"
    shutil.copytree(folder, model)
    learned = dataclasses.replace(GARDEN, names=())
    (model / FILE).write_text(json.dumps(learned.to_json()))
    status, _, err = run("generate", "qqq", *FAST, "--model", model)
    assert status == 0
    assert f'{model} has never read "qqq", and draws what the rest says.\n' in err
    (model / FILE).write_text(json.dumps(GARDEN.to_json()))
    _, _, err = run("generate", "a gitar", *FAST, "--model", model, "--seed", "2")
    assert 'did you mean "a guitar"?' in err
    assert run("names", "oak", "--model", model)[1] == "oak tree\n"


def test_the_shipped_list_is_where_it_is_looked_for():
    assert (BUILT_IN_FOLDER / "emoji" / FILE).is_file()
