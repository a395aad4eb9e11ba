"""The parts {a|b} of a prompt, of which a sweep takes each alternative in its turn."""

import re
from collections.abc import Sequence
from typing import Any

from sdpipe.errors import UsageError

_BRACES = re.compile(r"\{([^{}]*)\}")


def split(name: str, text: Any) -> tuple[list[str], list[list[str]]]:
    """A prompt as what is between its parts, one more than them, and their alternatives.

    Raises:
        UsageError: `text`, which messages call `name`, is no text, or a part of it is not closed.
    """
    if not isinstance(text, str):
        raise UsageError(f"{name}={text!r} is not text; give a string.")
    between, parts = [""], []
    for i, piece in enumerate(_BRACES.split(text)):
        if i % 2 and "|" in piece:
            parts.append([alternative.strip() for alternative in piece.split("|")])
            between.append("")
        elif i % 2:
            between[-1] += f"{{{piece}}}"  # braces without alternatives are nothing special
        elif "|" in piece and ("{" in piece or "}" in piece):
            raise UsageError(
                f"{name}={text!r} has a part that is open at one end, or has another inside; a "
                "part is written {cat|dog}."
            )
        else:
            between[-1] += piece
    return between, parts


def joined(between: Sequence[str], chosen: Sequence[str]) -> str:
    """A prompt with one alternative in each place; an empty one leaves no gap."""
    text = between[0]
    for alternative, after in zip(chosen, between[1:], strict=True):
        if not alternative and (not text or text.endswith(" ")):
            after = after.removeprefix(" ")
        text += alternative + after
    return text.strip() if "" in chosen else text
