"""Other programs' syntax, typographic signs and words that no prompt has: each is warned of."""

import unicodedata
import warnings

import ftfy
import pytest

from sdpipe.errors import SdpipeWarning
from sdpipe.prompt.habits import plain_spelling, warn_habits, warn_unused_words


def warned(warn, *arguments):
    """The warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn(*arguments)
    assert {warning.category for warning in caught} <= {SdpipeWarning}
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("prompt", "found", "remedy"),
    [
        ("a cat <lora:ink:0.8>", "<lora:ink:0.8>", "--lora"),
        ("embedding:my-cat, (cat:1.2)", "embedding:my-cat", "--embedding"),
        ("a photo of <cat-toy>", "<cat-toy>", "--embedding"),
        ("a {cat|dog}", "{cat|dog}", "sdpipe sweep"),
        ("{masterpiece}, cat", "{masterpiece}", "write (cat)"),
        ("a __colour__ cat", "__colour__", "write the words"),
        ("cat AND dog", "AND", "commas"),
        ("(black cat)++ on a mat", ")++", "(cat:1.3)"),
        ("cat+", "cat+", "(cat:1.3)"),
        ("cat:1.3, dog", "cat:1.3", "(cat:1.3)"),
        ("cat::2 dog", "cat::2", "(cat:1.3)"),
        ('("cat", "dog").blend(0.5, 0.5)', ").blend(0.5, 0.5)", "[cat:dog:0.5]"),
        ("red apple --ar 16:9", "--ar 16:9", "options"),
    ],
)
def test_syntax_of_other_programs_is_named_with_what_does_it_here(prompt, found, remedy):
    (message,) = warned(warn_habits, [prompt])
    assert message.startswith(f"{found!r} is drawn as text; ")
    assert remedy in message


@pytest.mark.parametrize(
    "prompt",
    [
        "((cat)), [dog], (cat:1.3) [cat:dog:0.5] [cat|dog] [cat::0.3] BREAK [:dog:10]",
        r"\{cat|dog\} \(cat\)+ \<lora:x:1\>",
        "C++ code, 16:9, at 12:30, black and white - well-known -- a dash, snake_case__x",
        "a photo of <cat-toy>",
        "1 + 1 < 3",
        "",
    ],
)
def test_plain_prompts_are_not_warned_of(prompt):
    assert warned(warn_habits, [prompt], ["<cat-toy>"]) == []


SPELLINGS = [
    *("don\u2019t", "\u201cfine\u201d art", "\u2018a\u2019 \u201eb\u201d", "o\u02bcclock"),
    *("\ufb01sh", "su\ufb03x", "\uff23\uff21\uff34 \uff11\uff12", "a\u3000b", "\u0149 \u01c4"),
    *("cats &amp; dogs", "&lt;cat&gt; &#233;", "caf\u0065\u0301", "a\ufeffb", "a\x07b"),
    *("plain cat, 8k", "\u00e9t\u00e9 \u2014 \u2026 \u2122 \u00bd", "3 < 4 &amp; 5", "AT&T; co"),
]


@pytest.mark.parametrize("text", SPELLINGS)
def test_the_plain_spelling_is_that_of_ftfy(text):
    """CLIP's original tokenizer, and transformers 4's, read `ftfy.fix_text` of a prompt."""
    plain = ftfy.fix_text(text)
    assert plain_spelling(text) == plain
    found = warned(warn_habits, [text])
    if plain == unicodedata.normalize("NFC", text):
        assert found == []
    else:
        assert f"write {plain!r}" in found[-1]
        assert not any("plain text" in message for message in warned(warn_habits, [plain]))


def test_every_sign_is_spelled_as_ftfy_does_it_but_for_a_few():
    """Latin, punctuation, ligatures, full-width letters and special signs, one by one."""
    others = {"\r", "\u2028", "\u2029", *map(chr, range(0x80, 0xA0))}  # line ends; Windows' letters
    for block in (
        (0, 0x250),
        (0x2B0, 0x2D0),
        (0x2000, 0x2080),
        (0xFAF0, 0xFB10),
        (0xFE00, 0x10000),
    ):
        for sign in map(chr, range(*block)):
            text = f"a{sign}b"
            if sign in others or (sign in "\u200c\u200d"):  # joiners are part of many an emoji
                expected = text
            elif unicodedata.category(sign) == "Cf" or sign == "\u2065":
                expected = "ab"  # not seen
            elif sign == "\ufb05":  # a ligature with a long s, in modern letters
                expected = "astb"
            else:
                expected = ftfy.fix_text(text)
            assert plain_spelling(text) == expected, hex(ord(sign))


def test_signs_that_are_not_seen_are_named_by_number():
    (message,) = warned(warn_habits, ["red\u200bapple"])
    assert "U+200B" in message
    assert "'redapple'" in message


def test_a_warning_shows_so_much_of_a_prompt():
    for length, shown in ((60, "'<lora:{}>' is"), (61, "'<lora:{}...' is")):
        (message,) = warned(warn_habits, [f"<lora:{'x' * (length - 7)}>"])
        assert message.startswith(shown.format("x" * (53 if length == 60 else 54)))
    (message,) = warned(warn_habits, ["\u2018a\u2019 \u201ab\u201b \u201cc\u201d \u201ed\u201f"])
    assert "reads \u2018, \u2019, \u201a, \u201b, \u201c, \u201d as such" in message


@pytest.mark.parametrize(
    ("prompts", "unused"),
    [
        (["a my-cat", ""], []),
        (["A MY-CAT, dog"], []),
        (["a cat face"], ["is not in"]),
        (["my-cats", "the tommy-cat"], ["touches"]),
        (["[my-cat:dog:0.5]", "(my-cat:1.2)"], []),
        (["dog", "my-cat"], []),  # the negative prompt, or another one of the run
    ],
)
def test_a_word_that_no_prompt_has_is_named(prompts, unused):
    found = warned(warn_unused_words, ["my-cat"], prompts)
    assert len(found) == len(unused)
    for message, words in zip(found, unused, strict=True):
        assert message.startswith("the embedding 'my-cat' has no effect")
        assert words in message


def test_of_two_words_that_begin_alike_each_counts_alone():
    assert len(warned(warn_unused_words, ["my-cat", "my-cat-2"], ["my-cat-2 on a mat"])) == 1
    assert warned(warn_unused_words, ["my-cat", "my-cat-2"], ["my-cat and my-cat-2"]) == []
    assert warned(warn_unused_words, [], ["cat"]) == []
