"""The README's table of settings, written from the field table by `make golden`."""

import re
from pathlib import Path

from sdpipe.settings import DEFAULT_OF, RULES

README = Path(__file__).parents[2] / "README.md"
HEADING = "| setting | means | default |\n|---|---|---|\n"


def settings_table() -> str:
    """A line for each setting: its name, its help, and what counts where it is left out."""
    return HEADING + "".join(
        f"| `{name}` | {rule.help} | {rule.unset or _default(name)} |\n"
        for name, rule in RULES.items()
    )


def write() -> None:
    """Puts the table in the place of the one that is there."""
    text = README.read_text(encoding="utf-8")
    table = re.escape(HEADING) + r"(?:\|.*\n)*"
    text, count = re.subn(table, lambda _: settings_table(), text)
    assert count == 1
    README.write_text(text, encoding="utf-8")


def _default(name: str) -> str:
    default = DEFAULT_OF[name]
    return str(default) if isinstance(default, bool | int) else ""
