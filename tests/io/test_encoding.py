import json

import pytest
from support.errors import raises

from sdpipe.errors import UsageError
from sdpipe.io.encoding import decode, escape_control


@pytest.mark.parametrize("text", ["é 日本\n🍎", "👩‍🚀", ""])
def test_what_controls_no_terminal_stays(text):
    assert escape_control(text) == text


@pytest.mark.parametrize("sign", ["\x1b", "\x9b", "\u202e", "\r", "\x7f", "\U000e0041", "\ud800"])
def test_what_could_is_escaped_as_json_does_it(sign):
    shown = escape_control(f"a{sign}b")
    assert shown.isascii()
    assert json.loads(f'"{shown}"') == f"a{sign}b"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_unicode_is_read_whatever_wrote_it(encoding):
    assert decode("é 日本\n".encode(encoding), "x") == "é 日本\n"


def test_the_line_that_is_no_text_is_named():
    with raises(UsageError, value="line 3 of x", rule="not UTF-8 text (byte 0xe9)"):
        decode(b"a\nb\n\xe9\n", "x")
