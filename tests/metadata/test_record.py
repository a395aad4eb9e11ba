"""A record is checked for types and lengths, whoever wrote it."""

import pytest
from support.errors import raises
from support.metadata import change, our_metadata

from sdpipe.metadata.record import (
    MAX_ENTRIES,
    MAX_LIST,
    MAX_VALUE,
    Record,
    RecordError,
    truncate,
)
from sdpipe.prompt.syntax import MAX_PROMPT
from sdpipe.settings import MAX_IMAGES, Settings


def read(*changes):
    written = our_metadata()["sdpipe"]
    for apply in changes:
        apply(written)
    return Record.from_sdpipe(written)


def test_our_own_metadata_is_read_back():
    record = Record.from_sdpipe(
        our_metadata("é 日本", guidance_interval=(0.5, 9), g=(12, 4))["sdpipe"]
    )
    given = {"seed": 7, "steps": 30, "dim": 128, "lms_order": 2, "scheduler": "lms"}
    expected = Settings(prompt="é 日本", guidance_interval=(0.5, 9), g=(12, 4), **given)
    assert record.settings() == expected
    assert record.model == {"name": "emoji", "sha256": "ab" * 32}
    assert (record.source, record.n, record.index) == ("sdpipe", 4, 2)
    assert (record.device, record.dtype, record.speed) == ("cpu", "float32", "default")
    assert record.parts == {}
    assert record.loras == record.embeddings == record.notes == ()


FILE = {"name": "a", "sha256": "ab" * 32}

INVALID = {
    "settings is a list": change("settings", []),
    "model is 'x'": change("model", "x"),
    "loras is 3": change("model", "loras", 3),
    "steps is a list": change("settings", "steps", [[1]]),
    "steps has 1001 values": change("settings", "steps", [1] * 1001),
    "name of init_image is 3": change("settings", "init_image", {"name": 3}),
    "seed=10000000": change("settings", "seed", 10**300),
    "g=nan": change("settings", "g", float("nan")),
    "scheduler has 5000 characters": change("settings", "scheduler", "x" * 5000),
    "prompt has 1000000 characters": change("settings", "prompt", "x" * 10**6),
    "n=0 of its batch": change("batch", "n", 0),
    "n=100001 of its batch": change("batch", "n", 100_001),
    "n=True of its batch": change("batch", "n", True),
    "index=4 of its batch": change("batch", "index", 4),
    "name of model is 3": change("model", "name", 3),
    "torch of versions is an object": change("versions", "torch", {}),
    "an entry 'a\\x1b[31m'": change("settings", "a\x1b[31m", 1),
    "settings has 1000 entries": change("settings", {f"a{i}": 1 for i in range(1000)}),
    "sweep is 'x'": change("sweep", "x"),
    "seed has 5000 values": change("sweep", {"prompt": "x", "seed": list(range(5000))}),
    "g is a list": change("sweep", {"prompt": "x", "g": [[1], 2]}),
    "device is a list": change("device", []),
    "dtype is 3": change("dtype", 3),
    "loras has an entry": change("model", "loras", [{"name": "a", "sha256": "b"}]),
    "weight of loras is 'x'": change(
        "model", "loras", [{"name": "a", "sha256": "ab" * 32, "weight": "x"}]
    ),
    "embeddings has an entry": change(
        "model", "embeddings", [{"name": "a", "sha256": "ab", "word": "x"}]
    ),
    "safety": change("safety", {"flagged": 1}),
    "weight of loras is True": change("model", "loras", [{**FILE, "weight": True}]),
    "loras has an": change("model", "loras", [{**FILE, "weight": 1, "word": "x"}]),
    "word of embeddings is 3": change("model", "embeddings", [{**FILE, "word": 3}]),
    "embeddings has an": change("model", "embeddings", [{**FILE, "sha256": "ab" * 31}]),
    "seed=18446744073709551617": change("settings", "seed", 2**64 + 1),
    "seed=-18446744073709551617": change("settings", "seed", -(2**64) - 1),
}


def test_values_up_to_their_bounds_are_read():
    values = {f"a{i}": 1 for i in range(MAX_ENTRIES - 4)}
    values |= {"seed": -(2**64), "scheduler": "x" * MAX_VALUE, "prompt": "x" * MAX_PROMPT}
    values["a" * 80] = [2**64] * MAX_LIST
    loras = [{**FILE, "weight": 1}] * MAX_ENTRIES
    record = read(
        change("settings", values),
        change("model", "loras", loras),
        change("batch", {"n": MAX_IMAGES, "index": MAX_IMAGES - 1}),
    )
    assert record.values == values
    assert list(record.loras) == loras
    assert (record.n, record.index) == (MAX_IMAGES, MAX_IMAGES - 1)
    for name in ("a" * 81, "b"):
        with raises(RecordError, value="settings has"):
            read(change("settings", {**values, name: 1}))
    with raises(RecordError, value=f"loras has {MAX_ENTRIES + 1} entries"):
        read(change("model", "loras", [*loras, loras[0]]))
    with raises(RecordError, value=f"prompt has {MAX_PROMPT + 1} characters"):
        read(change("settings", "prompt", "x" * (MAX_PROMPT + 1)))
    with raises(RecordError, value=f"scheduler has {MAX_VALUE + 1} characters"):
        read(change("settings", "scheduler", "x" * (MAX_VALUE + 1)))


@pytest.mark.parametrize("value", INVALID)
def test_a_value_of_the_wrong_type_or_length_is_refused(value):
    with raises(RecordError, value=value) as refused:
        read(INVALID[value])
    assert len(str(refused.value)) < 200


def test_a_record_is_checked_whoever_makes_it():
    with raises(RecordError, value="settings has an entry 'a\\nb'"):
        Record(source="sdpipe", values={"a\nb": 1})
    with raises(RecordError, value="extra has 201 entries"):
        Record(source="A1111", values={}, extra={f"a{i}": i for i in range(201)})


@pytest.mark.parametrize(
    ("apply", "value"),
    [
        (change("settings", "steps", -3), "steps=-3"),
        (change("settings", "steps", [1]), "steps=[1]"),
        (change("settings", "hologram", "yes"), "hologram"),
        (change("settings", "height", 500), "height=500"),
    ],
)
def test_settings_keep_the_rules_of_settings(apply, value):
    record = read(apply)
    with raises(RecordError, value=value):
        record.settings()


def test_a_refused_value_is_cut():
    """It stands in a message, and a stranger may write as much as the file holds."""
    for name in ("steps", "g", "scheduler", "outpaint", "safety"):
        record = read(change("settings", name, ["\x1b" * 300] * 1000))
        with raises(RecordError, value=name) as refused:
            record.settings()
        assert len(str(refused.value)) < 500


def test_a_long_prompt_is_read():
    prompt = "ab " * (MAX_PROMPT // 3)
    assert read(change("settings", "prompt", prompt)).settings().prompt == prompt


def test_truncate():
    assert truncate("x" * 10_000) == f"'{'x' * 56}..."
    assert truncate("x" * 58) == f"'{'x' * 58}'"
    assert truncate("x" * 59) == f"'{'x' * 56}..."
    assert truncate({}) == "an object"
    assert truncate([1]) == "a list"
    assert truncate(1.5) == "1.5"


FORMAT_1 = {
    "prompt": "x",
    "seed": 3,
    "rescale": 0.7,
    "interval": [0.3, 5],
    "variation": 0.2,
    "variation_seed": 8,
    "n": 1,
    "vary": None,
    "hires": None,
    "exact": True,
    "init": {"name": "a.png", "sha256": "0" * 64},
    "mask": None,
}


def test_settings_of_format_1_get_the_names_of_today():
    settings = Record.from_sdpipe({"settings": FORMAT_1}).settings()
    assert settings == Settings(
        prompt="x",
        seed=3,
        guidance_rescale=0.7,
        guidance_interval=(0.3, 5),
        variation_strength=0.2,
        variation_seed=8,
        batch_invariant=True,
        init_image={"name": "a.png", "sha256": "0" * 64},
    )
    several = Record.from_sdpipe({"settings": {**FORMAT_1, "vary": 4}}).settings()
    assert (several.n, several.variation_strength, several.variation_seed) == (4, 0.2, 8)


def test_a_sweep_of_format_1_gets_the_names_of_today():
    record = Record.from_sdpipe({"sweep": {"prompt": "x", "seed": [1, 2], "rescale": [0.5, 1]}})
    assert record.sweep == {"prompt": "x", "seed": [1, 2], "guidance_rescale": [0.5, 1]}


def test_format_2_has_no_old_names():
    record = Record.from_sdpipe({"format": 2, "settings": FORMAT_1})
    with raises(RecordError, value="setting 'exact'"):
        record.settings()


@pytest.mark.parametrize("format", [3, 0, "2", None, [2]])
def test_a_newer_format_is_refused(format):
    with raises(RecordError, value="format", rule="not known", remedy="newer sdpipe"):
        Record.from_sdpipe({"format": format, "settings": {"prompt": "x"}})
