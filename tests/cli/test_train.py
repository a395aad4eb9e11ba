"""`sdpipe train`: wrong usage, and how progress is shown."""

import io
import re
import sys

import pytest

from sdpipe.cli.app import main
from sdpipe.cli.train import TrainingProgress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("arguments", [[], ["cats"], ["--data", "x", "--out", "y", "--dim", "72"]])
def test_wrong_usage_is_an_error_of_one_paragraph(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"sdpipe: error: [^\n]*[.?]\n", err), err
    assert not list(tmp_path.iterdir())


def test_of_several_processes_only_the_first_reports(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "cats"]) == 1
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_a_line_ends_each_stage(capsys):
    with TrainingProgress() as progress:
        for done in range(4):
            progress("vae", done, 3, "loss 0.5" if done == 3 else "")
        progress("unet", 1, 2)
    assert capsys.readouterr().err == "sdpipe: vae: 3 of 3, loss 0.5\n"


def test_on_a_terminal_each_stage_has_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with TrainingProgress() as progress:
        progress("vae", 2, 3)
        progress("vae", 3, 3, "loss 0.5")
        progress("unet", 0, 2)
    shown = sys.stderr.getvalue()
    assert "vae:  67%" in shown
    assert "3/3" in shown
    assert "loss 0.5" in shown
    assert "unet:   0%" in shown
