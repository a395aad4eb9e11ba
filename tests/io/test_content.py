"""What a file is instead of what its name says."""

import pytest

from sdpipe.io.content import LOG_IN, describe_content


@pytest.mark.parametrize(
    ("start", "rule"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of git-lfs"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"\xef\xbb\xbf \r\n<HTML lang='en'>", "is a web page"),
        (b"<?xml version='1.0'?>", "is a web page"),
        (b"", "is empty"),
    ],
)
def test_pointers_and_web_pages_are_known_in_place_of_texts_too(tmp_path, start, rule):
    (tmp_path / "x").write_bytes(start)
    found = describe_content(tmp_path / "x")
    assert found == describe_content(tmp_path / "x", is_binary=False)
    assert found[0].startswith(rule)
    assert found[1]


def test_a_text_is_quoted_in_place_of_what_is_none(tmp_path):
    path = tmp_path / "x"
    path.write_text("\n Access denied.\nLog in first, " + "x" * 600)
    begins = r"'Access denied.\nLog in first, xxxxxxxxxxx'"
    rule = f"is a text that begins with {begins}, not the file itself"
    assert describe_content(path) == (rule, LOG_IN)
    assert describe_content(path, is_binary=False) is None


@pytest.mark.parametrize("data", [b"\x80\x02}q\x00", b"cat\0", "é".encode(), b"a\x1b"])
def test_other_bytes_tell_nothing(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    assert describe_content(tmp_path / "x") is None


def test_what_cannot_be_read_tells_nothing(tmp_path):
    assert describe_content(tmp_path) is describe_content(tmp_path / "missing") is None
