"""eta, the noise that a step of DDIM or TCD adds: as diffusers draws it, and from file to file."""

import json
import shlex

import pytest
from support.errors import raises
from support.parity import REFERENCE, assert_equal, diffusers_run

from sdpipe import Settings, UsageError
from sdpipe.cli import main
from sdpipe.io.png import read
from sdpipe.metadata import a1111

PROMPTS = ["red apple", "violin"]


@pytest.mark.parametrize(
    ("scheduler", "eta"),
    [("ddim", None), ("ddim", 0.4), ("tcd", None), ("tcd", 0.0), ("tcd", 1.0)],
)
def test_it_is_the_eta_of_diffusers(emoji, scheduler, eta):
    same = {"seed": 7, "g": 3.0, "steps": 6, "width": 64, "height": 64}
    ours = emoji.generate(PROMPTS, scheduler=scheduler, eta=eta, save_int=True, **same)
    more = {} if eta is None else {"eta": eta}
    assert_equal(
        ours, diffusers_run(emoji.components, REFERENCE[scheduler](), PROMPTS, **more, **same)
    )


def test_an_image_has_the_same_noise_alone_and_in_a_batch(emoji):
    same = {"scheduler": "ddim", "eta": 0.7, "steps": 4, "dim": 64, "batch_invariant": True}
    both = emoji.generate(PROMPTS, seed=7, **same)
    assert emoji.generate(PROMPTS[1], seed=8, **same).images[0] == both.images[1]


@pytest.mark.parametrize("eta", [-0.1, 1.1, "a", True])
def test_it_is_a_number_from_0_to_1(eta):
    with raises(UsageError, value="eta="):
        Settings(prompt="x", scheduler="ddim", eta=eta)


def test_no_other_scheduler_has_it():
    with raises(UsageError, value="eta=0.5", rule="not for euler"):
        Settings(prompt="x", scheduler="euler", eta=0.5)
    own = {"width": 64, "height": 64}
    assert Settings(prompt="x", eta=0.5).resolved({**own, "scheduler": "ddim"}).eta == 0.5
    with raises(UsageError, value="eta=0.5", rule="not for lms"):
        Settings(prompt="x", eta=0.5).resolved(own)


def test_from_the_command_line_to_files_and_back(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "sweep x --eta 0,0.5 --scheduler ddim --steps 2 --dim 64 --seed 1 --model emoji --json"
    assert main(shlex.split(words)) == 0
    told = json.loads(capsys.readouterr().out)
    assert [cell["settings"]["eta"] for cell in told["cells"]] == [0, 0.5]
    path = told["cells"][1]["path"]
    assert path.endswith("eta=0.5.png")
    text = read(path)["parameters"]
    assert "Eta DDIM: 0.5" in text
    assert a1111.read(text).values["eta"] == 0.5
    assert main(["replay", path, "--verify"]) == 0
    assert main(["replay", path, "--set", "eta=0.2", "--out", "x.png"]) == 0
    assert read("x.png")["sdpipe"]["settings"]["eta"] == 0.2
