"""Every example runs in an empty folder as it stands, asserts its claim, and leaves its images."""

from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = path.read_text(encoding="utf-8")
    assert "\nassert " in code
    exec(compile(code, path, "exec"), {"__name__": "__main__"})
    images = list(tmp_path.glob("*.png"))
    assert images
    for path in images:
        with Image.open(path) as image:
            assert len(image.getcolors(1 << 24)) > 16  # something was drawn
