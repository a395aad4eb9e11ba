import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.errors import raises

from sdpipe.errors import UsageError
from sdpipe.sweep.axes import format_values, join_prompt, parse_values, split_prompt

# As the X/Y/Z plot of A1111's web UI expands them.
EXPANDED = {
    "1-5": [1, 2, 3, 4, 5],
    "1-5 (+2)": [1, 3, 5],
    "10-5 (-3)": [10, 7],
    "1-3 (+0.5)": [1, 1.5, 2, 2.5, 3],
    "1-10 [5]": [1, 3, 5, 7, 10],
    "0.0-1.0 [6]": [0, 0.2, 0.4, 0.6, 0.8, 1],
}


@pytest.mark.parametrize("text", EXPANDED)
def test_the_examples_of_the_x_y_z_plot(text):
    assert parse_values("g" if "." in text else "seed", text) == EXPANDED[text]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("7", [7]),
        (" 20 , 30 ", [20, 30]),
        ("1-3,7,10-50[5]", [1, 2, 3, 7, 10, 20, 30, 40, 50]),
        ("5-1", [5, 4, 3, 2, 1]),
        ("10-5(-1)", [10, 9, 8, 7, 6, 5]),
        ("-1-2", [-1, 0, 1, 2]),
        ("-5--1 (+2)", [-5, -3, -1]),
        ("+1 - +3", [1, 2, 3]),
        ("4-4", [4]),
        ("9-2 [1]", [9]),
        ("1-3 [5]", [1, 1, 2, 2, 3]),
        ("18446744073709551613-18446744073709551615", [2**64 - 3, 2**64 - 2, 2**64 - 1]),
    ],
)
def test_whole_numbers(text, values):
    found = parse_values("seed", text)
    assert found == values
    assert {type(value) for value in found} == {int}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,3,7.5", [1, 3, 7.5]),
        ("1e-3", [0.001]),
        ("-2.5", [-2.5]),
        ("0.1-0.5 (+0.1)", [0.1, 0.2, 0.3, 0.4, 0.5]),
        ("1-2 (+0.3)", [1, 1.3, 1.6, 1.9]),
        ("7.5-6 (-.5)", [7.5, 7, 6.5, 6]),
        ("1.5-3", [1.5, 2.5]),
        ("1-2 [4]", [1, 4 / 3, 5 / 3, 2]),
    ],
)
def test_numbers(text, values):
    found = parse_values("g", text)
    assert found == values
    assert {type(value) for value in found} == {float}


@given(st.integers(-500, 500), st.integers(0, 500), st.integers(1, 40))
def test_what_counts_up_is_python_s_range(first, length, step):
    text = f"{first}-{first + length} (+{step})"
    assert parse_values("seed", text) == list(range(first, first + length + 1, step))


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 60))
def test_a_count_is_numpy_s_linspace(first, last, count):
    """But for what rounding leaves a hair below a whole number, which is cut off there."""
    wanted = np.linspace(first, last, count)
    assert parse_values("g", f"{first}-{last} [{count}]") == pytest.approx(wanted.tolist())
    found = parse_values("seed", f"{first}-{last} [{count}]")
    assert found == np.floor(wanted + 1e-9).tolist()


@given(st.lists(st.integers(0, 12) | st.integers(0, 2**64 - 1), min_size=1, max_size=30))
def test_values_survive_their_own_text(values):
    assert parse_values("seed", format_values(values)) == values


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_fractions_do_too(values):
    assert parse_values("g", format_values(values)) == values


def test_the_text_is_short():
    assert format_values(range(1, 101)) == "1-100"
    assert format_values([1, 2, 5, 6, 7]) == "1,2,5-7"
    assert format_values([1.0, 2.0, 3.0, 7.5]) == "1,2,3,7.5"
    assert format_values([True, False]) == "yes,no"
    assert format_values(["lms", "dpm++"]) == "lms,dpm++"


def test_values_that_are_not_numbers():
    assert parse_values("scheduler", "lms, euler") == ["lms", "euler"]
    assert parse_values("karras", "yes,no") == [True, False]
    assert parse_values("guidance_interval", "0,15; 0.3,5") == [(0, 15), (0.3, 5)]
    assert parse_values("g", "1,12:4,2-3") == [1, (12, 4), 2, 3]


WRONG = {
    "": "empty place",
    "1,": "empty place",
    "1,,2": "empty place",
    "a": "neither a whole number nor a range",
    "7.5": "neither a whole number nor a range",
    "1-": "neither a whole number nor a range",
    "1-5 (+2": "neither a whole number nor a range",
    "1.5-3": "has fractions",
    "1-5 (+0.5)": "has fractions",
    "1-5 (2)": "with its sign",
    "1-5 (+0)": "with its sign",
    "1-5 (x)": "with its sign",
    "1-5 (-1)": "goes away from its end",
    "5-1 (+2)": "goes away from its end",
    "1-5 [0]": "whole number from 1",
    "1-5 [2.5]": "whole number from 1",
    "1-5 [-2]": "whole number from 1",
    "1-1001": "1001 values",
    "1-1000,1-2": "1002 values",
    "1-5 [1001]": "1001 values",
    "1-999999999999999999999": "values",
    "9" * 40 + "-1": "neither a whole number nor a range",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_lists_are_refused(text):
    with raises(UsageError, value="steps=", rule=WRONG[text]):
        parse_values("steps", text)


@given(st.text("0123456789-+.,()[] e", max_size=40))
def test_any_text_is_values_or_a_usage_error(text):
    for name in ("g", "steps"):
        try:
            assert 1 <= len(parse_values(name, text)) <= 1000
        except UsageError as error:
            assert f"{name}=" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("text", "between", "parts"),
    [
        ("a cat", ["a cat"], []),
        ("a {cat|dog} here", ["a ", " here"], [["cat", "dog"]]),
        ("{a|b} {c|}", ["", " ", ""], [["a", "b"], ["c", ""]]),
        ("a {cat}", ["a {cat}"], []),
    ],
)
def test_parts_of_a_prompt(text, between, parts):
    assert split_prompt("prompt", text) == (between, parts)


def test_an_empty_alternative_leaves_no_gap():
    assert join_prompt(["a ", " cat"], [""]) == "a cat"
    assert join_prompt(["a ", " cat"], ["big"]) == "a big cat"


@pytest.mark.parametrize("text", ["{a|b", "a|b}", "{a|{b|c}}", 7])
def test_broken_parts_are_refused(text):
    with raises(UsageError, value="prompt="):
        split_prompt("prompt", text)
