import functools
import os
import warnings

# Before anything imports torch or huggingface_hub: tests use no network and one thread a worker.
for name in [
    n for n in os.environ if n.startswith(("HF_", "HUGGING_FACE_")) or n == "SDPIPE_MODEL"
]:
    del os.environ[name]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def emoji():
    """The built-in model in float32 on the CPU, as everything that is compared bit by bit needs."""
    from sdpipe import Pipeline

    return Pipeline("emoji", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model with random weights that draws 64 x 64 pixels."""
    from tiny import tiny_model

    return tiny_model(tmp_path_factory.mktemp("tiny"), size=64)


@pytest.fixture(scope="session")
def tiny(folder):
    """That model in float32 on the CPU."""
    from sdpipe import Pipeline

    return Pipeline(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def load_once():
    """Loads as `components.load` does, each model once for all tests of a file."""
    import sdpipe.pipeline

    return functools.cache(sdpipe.pipeline.load)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys, load_once):
    """Runs a command in an empty folder: status, stdout, stderr."""
    import sdpipe.pipeline
    from sdpipe.cli import main

    monkeypatch.setattr(sdpipe.pipeline, "load", load_once)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with warnings.catch_warnings():
            status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run
