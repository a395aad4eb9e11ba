"""What sdpipe says is what was reviewed: its messages, its help pages, its table of settings."""

import difflib

import pytest
from support.golden import PAGES


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_what_is_said_was_reviewed(path):
    kept = path.read_text(encoding="utf-8").splitlines()
    made = PAGES[path]().splitlines()
    lines = difflib.unified_diff(kept, made, "reviewed", "now", lineterm="", n=1)
    diff = list(lines)
    shown = "\n".join(diff[:30] + ["..."] * (len(diff) > 30))
    assert not diff, f"{path.name} has changed; run `make golden` and review it:\n{shown}"
