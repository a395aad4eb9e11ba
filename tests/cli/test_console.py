import io
import os
import subprocess
import sys

import pytest

import sdpipe
from sdpipe.cli.console import image_bar, print_result, print_status, summary
from sdpipe.settings import Settings


def test_a_warning_is_a_line_on_stderr(draw):
    status, out, err = draw(prompt="[red:green:90] apple")
    assert status == 0
    assert out.count("\n") == 1
    first, _, rest = err.partition("\n")
    assert first.startswith("sdpipe: warning: ")
    assert "changes after step 90" in first
    assert rest.startswith("sdpipe: 1 image")


@pytest.mark.parametrize("by", ["option", "environment", "neither"])
def test_a_traceback_only_for_debugging(draw, monkeypatch, by):
    def fail(*_, **__):
        raise RuntimeError("boom")

    monkeypatch.setattr("sdpipe.pipeline.Pipeline.plan", fail)
    if by == "environment":
        monkeypatch.setenv("SDPIPE_DEBUG", "1")
    status, out, err = draw(*(["--debug"] if by == "option" else []))
    assert (status, out) == (1, "")
    assert ("Traceback" in err) == (by != "neither")
    if by == "neither":
        bug = "This is a bug, or a broken installation: --debug shows where."
        assert err == f"sdpipe: error: RuntimeError: boom. {bug}\n"


def test_out_of_memory_has_a_remedy(draw, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("sdpipe.pipeline.Pipeline.plan", fail)
    status, _, err = draw()
    assert status == 1
    assert "out of memory" in err
    assert "--n" in err


def test_a_summary_of_one_and_of_many():
    one = Settings(prompt="x", seed=3, g=2.5).resolved({"width": 8, "height": 16})
    assert summary([one], 1.25) == "1 image, 8 x 16, seed 3, 50 steps of lms, g 2.5, 1.2 s"
    many = one.__class__(**{**one.to_dict(), "n": 3}).per_image()
    once = one.__class__(**{**one.to_dict(), "steps": 1})
    assert ", 1 step of lms" in summary([once], 0)
    assert "3 images, 8 x 16, seeds 3 to 5" in summary(many, 0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_result_has_a_line_of_its_own_above_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    with image_bar(4, 0) as move:
        move(1, 0)
        print_result("o/cat.png")
    lines = [line.rpartition("\r")[2] for line in terminal.getvalue().split("\n")]
    assert "o/cat.png" in lines
    assert any("1/4" in line for line in lines)


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_stream_is_nowhere_and_not_the_next_file(closed, tmp_path):
    """What would be printed there goes neither to another stream nor into a file."""
    wrong = "generate --steps 0 x" if closed == 2 else "--version"
    command = [sys.executable, "-m", "sdpipe", *wrong.split()]
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}>&-', "sh", *command], capture_output=True, cwd=tmp_path
    )
    assert done.returncode == (2 if closed == 2 else 0)
    assert done.stderr == b""
    assert done.stdout == (f"sdpipe {sdpipe.__version__}\n".encode() if closed == 0 else b"")


def test_help_in_an_encoding_without_its_signs(tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "sdpipe", "generate", "--help"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"--guidance-rescale" in done.stdout


def test_what_a_stranger_wrote_does_not_reach_the_terminal(capsys):
    print_status("made for \x1b]0;title\x07 and more\nlines " + "x" * 200_000)
    print_result("a\x9b1m.png")
    out, err = capsys.readouterr()
    assert out == "a\\u009b1m.png\n"
    assert err.startswith("sdpipe: made for \\u001b]0;title\\u0007 and more lines xxx")
    assert len(err) < 5000
