"""Text of others: read from bytes, and made fit for a terminal."""

import codecs

from sdpipe.errors import UsageError

MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


ZERO_WIDTH_JOINER = "\u200d"  # not printable by itself, but part of many an emoji


def escape_control(text: str) -> str:
    """A text in which every character that could control a terminal is written as JSON escapes it.

    Line ends stay, and JSON stays the same JSON.
    """
    if text.isprintable():
        return text
    stays = ("\n", ZERO_WIDTH_JOINER)
    return "".join(sign if sign.isprintable() or sign in stays else _escape(sign) for sign in text)


def _escape(sign: str) -> str:
    units = sign.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def decode(data: bytes, name: str) -> str:
    """Decodes UTF-8, or UTF-16 with a byte order mark; the mark is dropped.

    The locale has no say: the same bytes are the same text on every machine.
    name: what messages call it, such as "standard input".

    Raises:
        UsageError: it is neither.
    """
    mark = next((mark for mark in MARKS if data.startswith(mark)), b"")
    encoding = MARKS.get(mark, "utf-8")
    try:
        return data.removeprefix(mark).decode(encoding)
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode(encoding)
        raise UsageError(
            f"line {before.count(chr(10)) + 1} of {name}",
            f"is not {encoding.upper()} text (byte {error.object[error.start]:#x})",
            "save it as UTF-8",
        ) from None
