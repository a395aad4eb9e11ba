"""What the pages show to type, for `make_images.py` and the tests.

A `console` block has commands behind `$ `, each with what it prints: the tests run them as they
stand, page by page, in an empty folder. An `sh` block has commands alone, which are only parsed:
some need a model or a file of yours. An image below a block is what its first command draws; but
the gallery, which shows each with its command once more, has them the other way round.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"^```(\w*)\n(.*?)^```$(?:\n\n!\[[^]]*\]\([./\w]*?images/(\w+)\.png\))?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Command:
    """A command of a page.

    words: without the leading "sdpipe".
    printed: the lines below it; empty where the page shows none.
    runs: whether it works as it stands, after those before it on the page.
    image: the name of the image that it draws, in docs/images.
    """

    words: list[str]
    printed: list[str]
    runs: bool
    image: str | None


def pages() -> list[Path]:
    """README and all pages, in a fixed order."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page: Path) -> Iterator[Command]:
    """The sdpipe commands of a page, in their order."""
    for kind, text, name in BLOCK.findall(page.read_text(encoding="utf-8")):
        lines = text.splitlines()
        if kind not in ("console", "sh", ""):
            continue
        image = None if page.stem == "gallery" else name or None
        typed = [i for i, line in enumerate(lines) if re.match(r"(\$ )?sdpipe ", line)]
        for i, end in zip(typed, [*typed[1:], len(lines)], strict=False):
            _, *words = shlex.split(lines[i].removeprefix("$ "), comments=True)
            printed = [line for line in lines[i + 1 : end] if line and not line.startswith("$")]
            yield Command(words, printed if kind == "console" else [], kind == "console", image)
            image = None
