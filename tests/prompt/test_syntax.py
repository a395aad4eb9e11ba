"""The prompt syntax, held against the examples and rules of A1111."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.errors import raises

from sdpipe import Settings, UsageError
from sdpipe.prompt.syntax import MAX_DEPTH, MAX_PROMPT, escape, parse
from sdpipe.prompt.tree import Timing


def said(text, step=0, steps=1):
    """The pieces of a prompt without BREAK, as A1111's `parse_prompt_attention` returns them."""
    (part,) = parse(text).at(step, steps)
    return list(part)


def course(text, steps=10):
    """Which plain text it is up to which step, as A1111 writes a schedule down."""
    texts = ["".join(piece for piece, _ in said(text, k, steps)) for k in range(steps)]
    last = [k for k in range(steps) if k + 1 == steps or texts[k + 1] != texts[k]]
    return [(k + 1, texts[k]) for k in last]


# The examples in A1111's prompt_parser.py, with what it says of them; all brackets are closed.
@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).)",
            [
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ],
        ),
    ],
)
def test_weights_are_those_of_a1111(text, pieces):
    assert said(text) == pieces


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3 ]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a b")]),
        ("[(a:2):3]", [(3, ""), (10, "a")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("[b::3]c", [(3, "bc"), (10, "c")]),
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:1.0]", [(10, "a")]),
        ("[a:b:30]", [(10, "a")]),
        ("[a|(b:1.1)]", [(k, "ab"[1 - k % 2]) for k in range(1, 11)]),
        ("[fe|]male", [(k, ("male", "female")[k % 2]) for k in range(1, 11)]),
        ("[a|b|c]", [(k, "abc"[(k - 1) % 3]) for k in range(1, 11)]),
        ("[[a|b]:c:2]", [(1, "a"), (2, "b"), (10, "c")]),
    ],
)
def test_changes_over_the_steps_are_those_of_a1111(text, expected):
    assert course(text) == expected
    assert parse(text).is_scheduled == ("[" in text)


def test_a_share_of_the_steps_is_rounded_down():
    assert course("[a:b:0.25]", 10) == [(2, "a"), (10, "b")]
    assert course("[a:b:0.5]", 3) == [(1, "a"), (3, "b")]


def test_the_fantasy_landscape_of_a1111():
    text = (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75]"
        "[ in foreground::0.6][ in background:0.25] [shoddy:masterful:0.5]"
    )
    assert course(text, 100) == [
        (25, "fantasy landscape with a mountain and an oak in foreground shoddy"),
        (50, "fantasy landscape with a lake and an oak in foreground in background shoddy"),
        (60, "fantasy landscape with a lake and an oak in foreground in background masterful"),
        (75, "fantasy landscape with a lake and an oak in background masterful"),
        (100, "fantasy landscape with a lake and a christmas tree in background masterful"),
    ]


def test_a_weight_holds_whatever_the_words_become():
    text = "a ([cat:(dog:1.5):1]:2) [b|]"
    assert said(text, 0, 4) == [("a ", 1.0), ("cat", 2.0), (" b", 1.0)]
    assert said(text, 1, 4) == [("a ", 1.0), ("dog", 3.0), (" ", 1.0)]


def test_break_parts_the_text_also_in_brackets():
    assert parse("a BREAK b").at(0, 1) == ((("a ", 1.0),), ((" b", 1.0),))
    assert parse("(a BREAK b:1.2)").at(0, 1) == ((("a ", 1.2),), ((" b", 1.2),))
    assert parse("BREAK").at(0, 1) == ((), ())
    assert parse("BREAKFAST, OUTBREAK, break").at(0, 1) == ((("BREAKFAST, OUTBREAK, break", 1.0),),)
    assert said(r"\BREAK") == [("BREAK", 1.0)]


@pytest.mark.parametrize("text", ["", "a | b: c", "o'clock; 16:9 {x|y} <a:b>", ":-D", "日本"])
def test_a_prompt_without_brackets_is_text(text):
    assert said(text) == ([(text, 1.0)] if text else [])
    assert not parse(text).is_scheduled


def test_other_characters_after_a_backslash_and_colons_in_brackets_are_text():
    assert said("a\\") == [("a\\", 1.0)]
    assert said(r"a\:b \\ \x (c\:d) [e\|f] (at 16:9:1.5)") == [
        ("a:b \\ x ", 1.0),
        ("c:d", 1.1),
        (" ", 1.0),
        ("e|f", 1 / 1.1),
        (" ", 1.0),
        ("at 16:9", 1.5),
    ]


# What A1111 takes for text, or ignores.
@pytest.mark.parametrize(
    ("text", "value", "rule"),
    [
        ("a cat (on", "bracket ( in column 7", "never closed"),
        ("a [cat", "bracket [ in column 3", "never closed"),
        ("(a (b)", "bracket ( in column 1", "never closed"),
        (":)", "bracket ) in column 2", "closes nothing"),
        ("a] [b]", "bracket ] in column 2", "closes nothing"),
        ("(a [b)]", "bracket [ in column 4", "meets ) in column 6"),
        ("\n(three", "bracket ( in line 2, column 1", "never closed"),
        ("one\ntwo (three", "bracket ( in line 2, column 5", "never closed"),
        ("(cat:high)", "'high' after the colon in column 5", "not a weight from 0 to 10"),
        (f"(cat:{'x' * 41})", f"'{'x' * 40}' after the colon in column 5", "not a weight"),
        ("(cat:)", "nothing after the colon in column 5", "not a weight"),
        ("(cat:nan)", "'nan' after", "not a weight"),
        ("(cat:1e3)", "'1e3' after", "not a weight"),
        ("(cat:1,3)", "'1,3' after", "not a weight"),
        ("(cat:(dog:1.2))", "'(dog:1.2)' after the colon in column 5", "not a weight"),
        ("(cat:-0.5)", "'-0.5' after the colon in column 5", "not a weight"),
        ("(cat:10.5)", "'10.5' after the colon in column 5", "not a weight"),
        (f"(cat:{'0' * 5000}1)", "'0000", "not a weight"),
        ("((cat:5) dog:5)", "bracket ( in column 1", "a weight of 25"),
        ("(" * 25 + "x" + ")" * 25, "bracket ( in column 1", "a weight of 10.83"),
        ("[cat:2.3]", "'2.3' after the colon in column 5", "neither a number of steps"),
        ("[cat:dog]", "'dog' after the colon in column 5", "neither a number of steps"),
        ("[cat:dog:-1]", "'-1' after the colon in column 9", "from 0 to 999"),
        ("[cat:dog:1000]", "'1000' after the colon in column 9", "from 0 to 999"),
        ("[cat:dog:2.5]", "'2.5' after the colon in column 9", "from 0.0 to 1.0"),
        (f"[a:b:{'0' * 5000}1]", "'0000", "neither a number of steps"),
        ("[a:b:c:0.5]", "bracket [ in column 1", "has 3 colons"),
        ("[a|b:0.5]", "bracket [ in column 1", "both | and :"),
        ("[" * (MAX_DEPTH + 1), "bracket [ in column 51", "deeper than 50"),
    ],
)
def test_a_malformed_prompt_is_refused_with_its_column(text, value, rule):
    with raises(UsageError, value, rule, remedy=" ") as info:
        Settings(prompt=text)
    assert info.value.value.startswith("prompt: ")
    with raises(UsageError, value, rule) as info:
        Settings(prompt="x", negative_prompt=text)
    assert info.value.value.startswith("negative_prompt: ")


def test_a_malformed_prompt_is_refused_before_any_model_is_loaded(refused, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"red apple\n(apple:11)\n")))
    for arguments in (["a (cat"], ["cat", "--negative-prompt", ":)"], ["-"]):
        assert "in column" in refused(["generate", *arguments, "--model", "no-such-model"])


def test_weights_up_to_the_bounds_are_accepted():
    assert said("(a:0)(b:10)([c]:10)((d:4):2.5)") == [
        ("a", 0.0),
        ("b", 10.0),
        ("c", 1 / 1.1 * 10),
        ("d", 10.0),
    ]
    assert said("[" * MAX_DEPTH + "x" + "]" * MAX_DEPTH)[0][0] == "x"
    assert said("(x)" * (MAX_DEPTH + 1)) == [("x" * (MAX_DEPTH + 1), 1.1)]  # beside one another


def nested(inside):
    """Lists of a prompt's text and of its letters with their weights, in all kinds of brackets."""

    def wrapped(kind, content):
        before, after, weight = kind
        text = before + "".join(text for text, _ in content) + after
        return text, [(c, w * weight) for _, letters in content for c, w in letters]

    kinds = [("(", ")", 1.1), ("[", "]", 1 / 1.1), ("(", ":1.5)", 1.5), ("(", " : .5 )", 0.5)]
    return st.builds(wrapped, st.sampled_from(kinds), st.lists(inside, max_size=3))


SIGNS = {"\\(": "(", "\\]": "]", "\\\\": "\\", "x": "x", " ": " ", "|": "|", ",": ","}
WORD = st.sampled_from(list(SIGNS)).map(lambda sign: (sign, [(SIGNS[sign], 1.0)]))
FEW_OPEN = st.recursive(WORD, nested, max_leaves=8)


@settings(derandomize=True, max_examples=200, deadline=None, database=None)
@given(st.lists(FEW_OPEN, max_size=5))
def test_every_letter_has_the_product_of_the_brackets_around_it(content):
    text = "".join(text for text, _ in content)
    expected = [pair for _, letters in content for pair in letters]
    if "|" in text:
        text = text.replace("|", "\\|")
    found = [(letter, weight) for words, weight in said(text) for letter in words]
    # Between a number's colon and the words before it there may be spaces; A1111 keeps them.
    assert [pair for pair in found if pair[0] != " "] == [p for p in expected if p[0] != " "]


@settings(derandomize=True, max_examples=300, deadline=None, database=None)
@given(st.text(alphabet="()[]:|\\ ab1.BREAK\n", max_size=60))
def test_any_text_is_parsed_or_refused_and_can_be_escaped(text):
    try:
        prompt, refusal = parse(text), "prompt: ."
    except UsageError as error:
        prompt, refusal = parse(""), str(error)
    assert (refusal[:8], refusal[-1]) == ("prompt: ", ".")
    for step in range(3):
        assert all(weight <= 10 for part in prompt.at(step, 3) for _, weight in part)
    assert parse(escape(text)).at(0, 1) == (((text, 1.0),) if text else (),)


LONG = """
import resource
resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
from sdpipe.prompt.syntax import parse
from sdpipe.prompt.tree import Timing
texts = [' ' * 65536, '\\\\(' * 32768, '[a|b]' * 13000, '(' * 49 + ':' * 60000, '(a)\\n' * 16000,
    '(' + ':' * 64000 + '1)', '(a:' + '1' * 60000 + 'x)', '[x|y]' + '(a)(b:1.2)' * 6000]
for text in texts:
    try: prompt = parse(text)
    except Exception as error: print(len(str(error)))
    else: prompt.schedule(Timing(999))
"""


def test_a_text_of_64_kb_is_parsed_in_linear_time():
    done = subprocess.run([sys.executable, "-c", LONG], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(int(length) < 300 for length in done.stdout.split())


def test_the_schedule_has_the_text_of_every_step():
    prompt = parse("[a:b:3] [c|d|] [e:f:0.5] g")
    texts, schedule = prompt.schedule(Timing(8))
    assert [texts[i] for i in schedule] == [prompt.at(step, 8) for step in range(8)]
    assert len(texts) == len(set(texts))
    assert parse("a (b)").schedule(Timing(8)) == ([parse("a (b)").at(0, 8)], (0,))


@pytest.mark.parametrize(("length", "refused"), [(MAX_PROMPT, False), (100_000, True)])
def test_no_prompt_takes_for_ever(length, refused):
    """In a process of its own, for one that takes for ever cannot be stopped in this one."""
    support = Path(__file__).parents[1] / "support" / "long_prompts.py"
    command = [sys.executable, str(support), str(length)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    told = json.loads(done.stdout)
    if refused:
        assert {"characters, and at most" in said for name, said in told.items()} == {True}
        return
    for name in ("edits", "empty brackets", "periods"):
        assert "changes too often for its length; shorten it" in told.pop(name)
    assert "after the colon in column 5 is neither a number" in told.pop("digits")
    assert "other words and draws the rest" in told.pop("unknown words")
    assert 'never read "appel"; did you mean' in told.pop("one unknown word")
    assert not any("shorten" in said for said in told.values())


def test_a_text_is_parsed_once_under_whatever_name():
    """Two parses of one text would be two trees."""
    text = "a (cat:1.2) [and|or] a dog"
    assert parse(text) is parse(text, "negative_prompt") is parse(text, "prompt")
    for name in ("prompt", "negative_prompt"):
        with raises(UsageError, value=f"{name}: the bracket (", rule="never closed"):
            parse("(a", name)


def test_the_longest_prompt():
    assert parse("a" * MAX_PROMPT).words() == ["a" * MAX_PROMPT]
    with raises(UsageError, value="negative_prompt", rule=f"at most {MAX_PROMPT}"):
        Settings(prompt="x", negative_prompt="a" * (MAX_PROMPT + 1))
