"""`Finding`: one thing that was looked at, as a line for a person and as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    about: of what, in a word or two.
    state: "ok"; "note", which a person should know, though pictures are drawn; or "problem", which
        keeps them from being drawn.
    text: what was seen. remedy: what helps, "" where nothing has to.
    facts: the same for a program; plain JSON types.
    """

    about: str
    state: Literal["ok", "note", "problem"]
    text: str
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        text = " ".join(self.text.split())
        remedy = f" -> {self.remedy}" if self.remedy else ""
        return f"{self.state:<7}  {self.about:<15}  {text}{remedy}"


def size(count: float) -> str:
    """A number of bytes as a person reads it, in powers of ten."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
