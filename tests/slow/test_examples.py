"""Every example runs in an empty folder, with fewer steps, and leaves its images there."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

import sdpipe

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def emoji_of_3_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "emoji"
    shutil.copytree(Path(sdpipe.__file__).parent / "models" / "emoji", folder)
    defaults = json.loads((folder / "sdpipe.json").read_text())
    (folder / "sdpipe.json").write_text(json.dumps(defaults | {"steps": 3}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, emoji_of_3_steps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.sub(r"\bsteps=\d+", "steps=3", path.read_text(encoding="utf-8"))
    code = code.replace('"emoji"', repr(str(emoji_of_3_steps)))
    exec(compile(code, path, "exec"), {"__name__": "__main__"})
    images = list(tmp_path.glob("*.png"))
    assert images
    for path in images:
        with Image.open(path) as image:
            assert len(image.getcolors(1 << 24)) > 16  # something was drawn
