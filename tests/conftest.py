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
    from support.tiny import tiny_model

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
    from sdpipe.cli.app import main

    monkeypatch.setattr(sdpipe.pipeline, "load", load_once)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with warnings.catch_warnings():
            status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    """A recipe and a folder of images for a small training."""
    from support.training_run import RECIPE, write_images

    place = tmp_path_factory.mktemp("train")
    (place / "recipe.toml").write_text(RECIPE)
    write_images(place / "data")
    return place


@pytest.fixture(scope="session")
def half_way(tmp_path_factory):
    """The checkpoints that `trained` had in the middle of each stage."""
    return tmp_path_factory.mktemp("half_way")


@pytest.fixture(scope="session")
def trained(material, half_way):
    """A model trained from it without a stop."""
    from support.training_run import job, keep_half_way, saving_replaced

    from sdpipe.training.train import train

    with saving_replaced(keep_half_way(half_way)):
        return train(job(material, material / "model"), save_every=0)


@pytest.fixture(scope="session")
def short(tmp_path_factory):
    """The same images, with a recipe that ends with the U-Net's own stage."""
    from support.training_run import recipe_with, write_images

    place = tmp_path_factory.mktemp("short")
    recipe_with(place / "recipe.toml", short=True, samples={"images": 0})
    write_images(place / "data")
    return place


@pytest.fixture(scope="session")
def shortly_trained(short):
    """A model trained from it without a stop."""
    from support.training_run import job

    from sdpipe.training.train import train

    return train(job(short, short / "model"))


@pytest.fixture
def start(tmp_path):
    """A model to go on from, with settings of its own."""
    import torch
    from support.tiny import tiny_model

    folder = tiny_model(tmp_path / "start", dtype=torch.float16)
    (folder / "sdpipe.json").write_text('{"g": 2.5, "steps": 4, "scheduler": "ddim"}')
    return folder


@pytest.fixture
def refused(capsys):
    """Runs a command that fails, and returns the sentence that says why."""
    from sdpipe.cli.app import main

    def run(arguments, status=2):
        assert main(arguments) == status
        out, err = capsys.readouterr()
        assert out == ""
        said = [line for line in err.splitlines() if line.startswith("sdpipe: error: ")]
        assert len(said) == 1, err
        return said[0].removeprefix("sdpipe: error: ")

    return run
