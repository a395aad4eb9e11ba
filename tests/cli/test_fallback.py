"""The built-in model draws in place of v1-4 on the command line, and says so every time."""

import json

import pytest
from support.hub_server import Hub

from sdpipe.cli.app import main
from sdpipe.loading.locate import DEFAULT

SAYS = f"the default model {DEFAULT}"


@pytest.fixture(autouse=True)
def no_hub(tmp_path, monkeypatch):
    """A hub that no connection reaches, and an empty cache."""
    with Hub() as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        hub.stop()
        monkeypatch.chdir(tmp_path)
        yield


def test_it_draws_at_its_own_size_and_says_so_every_time(capsys):
    for name in ("a", "b"):
        options = ["--steps", "2", "--dim", "512", "--out", f"{name}.png", "--json"]
        assert main(["generate", "red apple", *options]) == 0
        out, err = capsys.readouterr()
        settings = json.loads(out)[0]["settings"]
        assert (settings["width"], settings["height"]) == (128, 128)
        assert SAYS in err
        assert "built-in model, emoji" in err
        assert "--dim 512 is left out" in err


@pytest.mark.parametrize(
    "line",
    [
        "sweep apple --seed 1,2 --steps 2 --width 256 --out s",
        "compare apple --steps 2 --dim 256 --device cpu",
        "show steps apple --steps 2 --dim 256 --json",
    ],
)
def test_so_do_the_other_commands(capsys, line):
    assert main(line.split()) == 0
    err = capsys.readouterr().err
    assert SAYS in err
    assert "256 is left out" in err


def test_a_model_that_was_asked_for_is_not_replaced(capsys, monkeypatch):
    assert main(["generate", "red apple", "--model", DEFAULT]) == 1
    monkeypatch.setenv("SDPIPE_MODEL", DEFAULT)
    assert main(["generate", "red apple"]) == 1
    assert "built-in" not in capsys.readouterr().err
