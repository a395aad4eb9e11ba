"""Text that comes as bytes: from standard input, or from a file of another program."""

import codecs

from sdpipe.errors import UsageError

MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


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
