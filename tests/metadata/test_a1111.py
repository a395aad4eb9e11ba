"""The text of A1111's web UI, and ours in its format, read back."""

import pytest
from support.errors import raises
from support.metadata import A1111, our_metadata

from sdpipe.io import png
from sdpipe.metadata import a1111
from sdpipe.metadata.record import RecordError
from sdpipe.prompt.syntax import MAX_PROMPT
from sdpipe.settings import SCHEDULERS, Settings


def test_a_text_of_the_web_ui():
    record = a1111.read(A1111)
    assert record.settings() == Settings(
        prompt="girl with an artist's beret, (sitting:1.2)\non a chair",
        negative_prompt="ugly, [blurry]",
        steps=20,
        g=7,
        seed=965400086,
        width=512,
        height=768,
        scheduler="euler_a",
        clip_skip=2,
        rng="cuda",
    )
    assert record.model == {"name": "realistic", "hash": "45dee52b"}
    assert record.versions == {"program": "v1.10.1"}
    assert record.extra == {"Lora hashes": "detail: 7c0b, x: y"}
    noise, lost = record.notes
    assert noise.startswith("its noise is taken to be that of an NVIDIA GPU")
    assert lost == "left out: Lora hashes."


def test_what_the_web_ui_reads_otherwise_is_noted():
    record = a1111.read(A1111.replace("girl", "<lora:detail:0.8> girl AND (boy"))
    assert any(note.startswith("<lora:...> and AND") for note in record.notes)
    with raises(RecordError):  # the bracket is never closed
        record.settings()


@pytest.mark.parametrize(
    ("sampler", "expected", "noted"),
    [
        ("Sampler: DPM++ 2M Karras", ("dpm++", True, None), False),
        ("Sampler: DPM++ 2M, Schedule type: Karras", ("dpm++", True, None), False),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", ("dpm++", True, None), False),
        ("Sampler: DPM++ 2M, Schedule type: Uniform", ("dpm++", False, None), True),
        ("Sampler: DPM++ 2M, Schedule type: Polyexponential", ("dpm++", False, None), True),
        ("Sampler: LMS, Schedule type: Karras", ("lms", True, 4), False),
        ("Sampler: LMS, Schedule type: Automatic", ("lms", False, 4), False),
        ("Sampler: PLMS", ("pndm", False, None), False),
        ("Sampler: Euler a, Schedule type: Karras", ("euler_a", False, None), True),
        ("Sampler: DPM++ SDE Karras", ("dpm++", True, None), True),
        ("Sampler: Restart", (None, False, None), True),
        ("Sampler: euler_a", ("euler_a", False, None), False),  # stable-diffusion.cpp
        ("Sampler: dpm++2m karras", ("dpm++", True, None), False),
        ("Sampler: k_euler_a", ("euler_a", False, None), False),
        ("Sampler: Euler A, Schedule type: Automatic", ("euler_a", False, None), False),
        ("User: x", (None, False, None), False),
    ],
)
def test_samplers(sampler, expected, noted):
    record = a1111.read(f"cat\nSteps: 20, Seed: 1, Size: 64x64, RNG: CPU, {sampler}")
    settings = record.settings()
    assert (settings.scheduler, settings.karras, settings.lms_order) == expected
    assert bool(record.notes) == noted


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_our_own_text_is_read_back_where_our_json_was_lost(scheduler):
    given = {"seed": 7, "steps": 30, "dim": 64, "g": 7.5, "negative_prompt": "dark, grey"}
    order = {"lms_order": 4} if scheduler == "lms" else {}
    settings = Settings(prompt='a "b", c: d\ne', scheduler=scheduler, **given, **order)
    record = a1111.read(png.parameters(settings, {"name": "emoji", "sha256": "ab" * 32}))
    assert record.settings() == settings
    assert record.notes == ()
    assert record.versions["program"].startswith("sdpipe ")


@pytest.mark.parametrize("text", ["", "just a prompt", "a cat\nSteps: 20, Seed: 3"])
def test_a_text_with_fewer_than_three_values_is_a_prompt(text):
    assert a1111.read(text).values["prompt"] == text
    three = a1111.read("a cat\nSteps: 20, Seed: 3, Size: 64x32").values
    assert (three["prompt"], three["steps"], three["height"]) == ("a cat", 20, 32)


def test_a_second_pass_over_all_steps_is_held_against_theirs():
    text = f"a cat\n{SETTINGS}, Hires upscale: 2, Denoising strength: 1"
    assert not any("second pass" in note for note in a1111.read(text).notes)
    notes = a1111.read(f"{text}, Hires steps: 12").notes
    assert "its second pass took 12 steps there, and takes 20 here." in notes


@pytest.mark.parametrize("text", ['"', '"a" b', '"a', '"\\x"', "[1", "null", "5"])
def test_a_value_that_is_no_json_text_is_taken_as_it_is(text):
    assert a1111.read(f"a cat\n{SETTINGS}, Extension: {text}").extra["Extension"] == text


def test_clip_skip_is_counted_as_here():
    text = our_metadata(clip_skip=2)["parameters"]
    assert ", Clip skip: 2, " in text
    assert a1111.read(text).settings().clip_skip == 2
    assert "Clip skip" not in our_metadata()["parameters"]
    invalid = a1111.read(text.replace("skip: 2", "skip: two"))
    with raises(RecordError, value="clip_skip='two'"):
        invalid.settings()


def test_a_line_without_end_is_refused_and_a_long_prompt_is_not():
    with raises(RecordError, value="a line of 1000000 characters"):
        a1111.read("x" * 1_000_000)
    assert a1111.read("x" * MAX_PROMPT).values["prompt"] == "x" * MAX_PROMPT


def test_civitais_hashes_are_kept_apart():
    """They are JSON without quotes, commas and all."""
    resources = '[{"type":"lora","weight":0.7,"modelName":"b, Steps: 3"}]'
    hashes = '{"model": "ab12", "lora:my-cat": "cd34"}'
    more = f"Hashes: {hashes}, Civitai resources: {resources}, Civitai metadata: {{}}"
    record = a1111.read(f"a cat\n{SETTINGS}, {more}")
    assert (record.settings().steps, record.settings().seed) == (20, 5)
    assert record.extra["Hashes"] == hashes
    assert record.notes == ("left out: Civitai resources.",)


@pytest.mark.parametrize(
    ("program", "rng", "said"),
    [
        ("Fooocus v2.5.5", "cpu", "the noise that Fooocus makes"),
        ("ComfyUI", "cpu", None),
        ("v1.10.1", "cuda", "taken to be that of an NVIDIA GPU"),
    ],
)
def test_whose_noise_it_was_where_only_the_program_is_named(program, rng, said):
    record = a1111.read(f"a cat\n{SETTINGS.removesuffix(', RNG: cpu')}, Version: {program}")
    assert record.settings().rng == rng
    assert [said in note for note in record.notes] == ([] if said is None else [True])


SETTINGS = "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 64x64, RNG: cpu"


def test_the_settings_are_found_wherever_they_are():
    """Dynamic Prompts and others write around them."""
    text = (
        f"a cat\nNegative prompt: dog\n{SETTINGS}\n"
        "Template: a {cat|dog}, Steps: 1, b: c\nof wood\nNegative Template: dog"
    )
    record = a1111.read(text)
    settings = record.settings()
    assert (settings.prompt, settings.negative_prompt, settings.seed) == ("a cat", "dog", 5)
    assert record.extra["Template"] == "a {cat|dog}, Steps: 1, b: c\nof wood"
    assert record.extra["Negative Template"] == "dog"
    assert record.notes == ()


def test_templates_above_the_settings_are_no_part_of_the_prompt():
    record = a1111.read(f"a cat\nTemplate: a {{cat|dog}}\nNegative prompt: dog\n{SETTINGS}")
    assert (record.values["prompt"], record.values["negative_prompt"]) == ("a cat", "dog")
    assert record.extra["Template"] == "a {cat|dog}"


def test_a_prompt_like_the_settings_is_a_prompt():
    text = f"Steps: 1, a: b, c: d\n{SETTINGS.replace('5', '6')}\nis a line\n{SETTINGS}"
    record = a1111.read(text)
    assert record.values["prompt"].endswith("is a line")
    assert record.settings().seed == 5


def test_everything_that_is_not_carried_over_is_said():
    more = ", ".join(f"Extension {k}: on" for k in range(20))
    record = a1111.read(f"a cat\n{SETTINGS}, ENSD: 31337, {more}, Batch size: 4, Tiling: False")
    assert record.notes[-1].startswith("left out: ENSD, Extension 0, ")
    assert record.notes[-1].endswith("Extension 10 and 9 more.")
    for count, end in ((11, "Extension 10."), (12, "Extension 10 and 1 more.")):
        more = ", ".join(f"Extension {k}: on" for k in range(count))
        assert a1111.read(f"a cat\n{SETTINGS}, ENSD: 31337, {more}").notes[-1].endswith(end)
