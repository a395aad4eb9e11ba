"""What sdpipe says is what was reviewed: tests/golden/ holds all messages and help pages."""

import difflib

import pytest
from support.golden import FOLDER, help_pages, messages


@pytest.mark.parametrize(("name", "made"), [("messages", messages), ("help", help_pages)])
def test_what_is_said_was_reviewed(name, made):
    path = FOLDER / f"{name}.txt"
    if not path.exists():
        pytest.skip(f"{path.name} is not there yet: `make golden` writes it")
    kept = path.read_text(encoding="utf-8").splitlines()
    lines = difflib.unified_diff(kept, made().splitlines(), "reviewed", "now", lineterm="", n=1)
    diff = list(lines)
    shown = "\n".join(diff[:30] + ["..."] * (len(diff) > 30))
    assert not diff, f"{path.name} has changed; run `make golden` and review it:\n{shown}"
