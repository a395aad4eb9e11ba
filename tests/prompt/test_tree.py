"""When the changes in a prompt come: ours, and as in A1111, by its own published examples."""

import pytest
from support.errors import raises

from sdpipe import UsageError
from sdpipe.metadata import a1111
from sdpipe.prompt.syntax import parse
from sdpipe.prompt.tree import Timing

# From the docstring of A1111's get_learned_conditioning_prompt_schedules: the texts of 10 steps,
# each with the number of its last one; in HIRES those of a second pass of 10 steps.
FIRST = {
    "a [b:3]": [(3, "a "), (10, "a b")],
    "a [b : c : 1] d": [(1, "a b  d"), (10, "a  c  d")],
    "a[b:[c:d:2]:1]e": [(1, "abe"), (2, "ace"), (10, "ade")],
    "a [b:.5] c": [(5, "a  c"), (10, "a b c")],
    "[fe|]male": [(k, "male" if k % 2 == 0 else "female") for k in range(1, 11)],
    "[fe|||]male": [(k, "female" if k % 4 == 1 else "male") for k in range(1, 11)],
}
HIRES = {
    "a [b:.5] c": [(10, "a b c")],
    "a [b:1.5] c": [(5, "a  c"), (10, "a b c")],
}


def at_call(schedule, call):
    """As its reconstruct_cond_batch: the first text whose last step is not below the call."""
    return next(text for last, text in schedule if call <= last)


def texts(prompt, timing):
    found, schedule = parse(prompt).schedule(timing)
    steps = timing.steps + timing.hires_steps
    words = ["".join(words for part in text for words, _ in part) for text in found]
    return [words[schedule[k % len(schedule)]] for k in range(steps)]


@pytest.mark.parametrize("prompt", FIRST)
def test_changes_come_when_they_come_in_a1111(prompt):
    calls = [at_call(FIRST[prompt], call) for call in range(11)]
    assert texts(prompt, Timing(10, 0, 1)) == calls[:10]
    # PLMS calls the U-Net twice at its first step; our loop gives both the same text.
    late = texts(prompt, Timing(10, 0, 0))
    assert [late[i * 10 // 11] for i in range(11)] == calls


@pytest.mark.parametrize("prompt", HIRES)
def test_and_in_its_second_pass(prompt):
    drawn = texts(prompt, Timing(10, 10, 1))
    assert drawn[10:] == [at_call(HIRES[prompt], call) for call in range(10)]
    assert (drawn[:10] == ["a  c"] * 10) == ("1.5" in prompt)


def test_numbers_of_steps_go_on_in_its_second_pass():
    assert texts("[b:13]", Timing(10, 6, 1)) == [""] * 14 + ["b"] * 2


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("[a:b:0.5]", "aabb" + "abb"),  # the second pass repeats the last steps
        ("[a|b]", "abab" + "bab"),
        ("[a:b:1.0]", "aaaa" + "bbb"),
        ("[a:b:1.5]", "aaaa" + "abb"),
        ("[a:b:2.0]", "aaaa" + "aaa"),
        ("[[a:b:2]:c:1.4]", "aabb" + "acc"),
    ],
)
def test_fractions_above_1_are_of_our_second_pass(prompt, expected):
    assert "".join(texts(prompt, Timing(4, 3))) == expected
    assert "".join(texts(prompt, Timing(4))) == expected[:4]


def test_what_a_run_does_not_reach():
    prompt = parse("[a:9] [a:10] [a:0.99] [a:1.0] [a:1.5] [a:2.0]")
    assert prompt.unreached_edits(Timing(10)) == [10, 1.5]
    assert prompt.unreached_edits(Timing(10, 5)) == [10]
    assert prompt.unreached_edits(Timing(10, 5, 1)) == []
    with raises(UsageError, rule="2.0 in a second pass"):
        parse("[a:b:2.1]")


def test_an_image_of_a1111_follows_its_changes_and_one_of_ours_follows_ours(emoji):
    text = "[red apple:violin:0.5]\nSteps: 4, Sampler: Euler, Seed: 1, Size: 64x64, RNG: CPU"
    theirs, ours = a1111.read(text), a1111.read(f"{text}, Version: sdpipe 0.1")
    assert theirs.settings().prompt_edits == "a1111"
    assert ours.settings().prompt_edits == "steps"
    plain = a1111.read(text.replace("[red apple:violin:0.5]", "[red apple]"))
    assert plain.settings().prompt_edits == "steps"
    same = {"steps": 4, "scheduler": "euler", "seed": 1, "dim": 64}
    later = emoji.generate("[red apple:violin:3]", **same).images[0]
    drawn = emoji.generate("[red apple:violin:0.5]", prompt_edits="a1111", **same).images[0]
    assert drawn == later


def test_a_second_pass_is_drawn_with_its_own_changes(emoji):
    same = {"steps": 4, "seed": 1, "dim": 64, "hires_scale": 1.5, "save_int": True}
    plain, changed = (emoji.generate(p, **same) for p in ("apple", "[apple:violin:1.0]"))
    first, second = plain.steps, changed.steps
    assert all((a.latents == b.latents).all() for a, b in zip(first[:4], second[:4], strict=True))
    assert not (first[4].latents == second[4].latents).all()
