"""A small model, and `sdpipe generate` with it."""

import io
import sys

import pytest
from support.command_lines import FAST
from support.tiny import tiny_model

from sdpipe.cli.app import main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def draw(model, tmp_path, monkeypatch, capsys):
    """Runs `sdpipe generate` on a small model in an empty folder: status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, prompt="red apple"):
        status = main(["generate", prompt, "--model", model, *FAST, *arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def give(monkeypatch):
    """Puts bytes on standard input."""

    def give(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give
