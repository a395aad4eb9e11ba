"""What a file really holds, where its name promises something else."""

import re
from pathlib import Path

LOG_IN = "download the file again; its site may want you to log in first"
_KINDS = {  # by how a file begins: what it is, and what to do
    rb"version https://git-lfs": (
        "is a pointer of git-lfs, not the file itself",
        "run `git lfs pull` in its folder, or download the file on its own",
    ),
    rb"(?:\xef\xbb\xbf)?\s*<(?i:!doctype|html|head|body|\?xml|!--)": (
        "is a web page, not the file itself",
        LOG_IN,
    ),
}


def describe_content(path: Path, *, is_binary: bool = True) -> tuple[str, str] | None:
    """What a damaged file is instead, and the remedy; None if that cannot be seen.

    is_binary: it should not be text, so that every text is worth a message.
    """
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError:
        return None
    if not start:
        return "is empty", "copy or download it again"
    for pattern, found in _KINDS.items():
        if re.match(pattern, start):
            return found
    text = start.decode("ascii", "replace").strip()
    if is_binary and text.replace("\n", " ").isprintable() and "\ufffd" not in text:
        return f"is a text that begins with {text[:40]!r}, not the file itself", LOG_IN
    return None
