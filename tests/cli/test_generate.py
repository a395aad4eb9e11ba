import io
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from support.command_lines import FAST
from support.forked import forked

import sdpipe
from sdpipe import components
from sdpipe.cli.app import main
from sdpipe.io.png import pixels_sha256, read
from sdpipe.settings import Settings


def test_a_picture_lands_in_outputs_and_its_path_on_stdout(draw, tmp_path):
    status, out, err = draw("--seed", "42")
    assert (status, out) == (0, "outputs/0001-red-apple.png\n")
    assert err.startswith("sdpipe: 1 image, 32 x 32, seed 42, 3 steps of ddim, g 1, ")
    assert err.count("\n") == 1
    notes = read(tmp_path / "outputs/0001-red-apple.png")
    assert notes["parameters"].startswith(
        "red apple\nSteps: 3, Sampler: DDIM, CFG scale: 1, Seed: 42"
    )
    with Image.open(tmp_path / "outputs/0001-red-apple.png") as picture:
        assert notes["sdpipe"]["pixels_sha256"] == pixels_sha256(picture)
    assert notes["sdpipe"]["dtype"] == "float32"
    assert notes["sdpipe"]["device"] == "cpu"


def test_it_is_the_picture_that_the_library_draws(draw, model, tmp_path):
    draw(*["--seed", "7", "--n", "2", "--negative-prompt", "dog", "--width", "64"])
    pipe = sdpipe.Pipeline(model, device="cpu", dtype="float32")
    wanted = {"negative_prompt": "dog", "scheduler": "ddim", "width": 64, "seed": 7, "n": 2}
    result = pipe.generate("red apple", steps=3, g=1, **wanted)
    for k, path in enumerate(sorted((tmp_path / "outputs").iterdir())):
        with Image.open(path) as picture:
            assert picture.tobytes() == result.images[k].tobytes()
        own = read(path)["sdpipe"]
        assert own["settings"] == result.settings[k].to_dict()
        assert own["batch"] == {"n": 2, "index": k}
        assert own["model"] == pipe.components.model.identity()


def test_json_on_stdout(draw, tmp_path):
    status, out, _ = draw("--json", "--n", "2", "--seed", "0", "--save-int", "--out", "a/b")
    assert status == 0
    written = json.loads(out)
    assert [entry["path"] for entry in written] == [
        "a/b/0001-red-apple.png",
        "a/b/0002-red-apple.png",
    ]
    assert [entry["seed"] for entry in written] == [0, 1]
    assert [entry["steps"] for entry in written] == [
        "a/b/0001-red-apple.steps",
        "a/b/0002-red-apple.steps",
    ]
    settings = Settings.from_dict(written[1]["settings"])
    assert (settings.seed, settings.n, settings.steps, settings.save_int) == (1, 1, 3, True)
    names = {path.name for path in (tmp_path / written[0]["steps"]).iterdir()}
    assert {"filmstrip.png", "latents.safetensors", "xt-00.png", "xt-03.png", "x0-03.png"} <= names


def test_a_file_that_exists_is_refused_and_with_overwrite_replaced(draw, tmp_path):
    assert draw("--out", "x.webp", "--save-int")[:2] == (0, "x.webp\n")
    before = (tmp_path / "x.webp").read_bytes()
    status, out, err = draw("--out", "x.webp")
    assert (status, out) == (2, "")
    assert err.startswith("sdpipe: error: x.webp exists already; ")
    assert (tmp_path / "x.webp").read_bytes() == before
    assert draw("--out", "x.webp", "--overwrite", "--save-int", "--seed", "9")[1] == "x.webp\n"
    assert read(tmp_path / "x.webp")["sdpipe"]["settings"]["seed"] == 9
    tensors = tmp_path / "x.steps" / "latents.safetensors"
    with safe_open(tensors, "pt") as file:
        assert json.loads(file.metadata()["settings"])["seed"] == 9
    assert sorted(os.listdir(tmp_path)) == ["x.steps", "x.webp"]
    assert draw("--out", "x.webp", "--n", "2")[1] == "x-1.webp\nx-2.webp\n"
    assert draw("--out", "x.webp", "--n", "3")[0] == 2  # x-1 exists


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_prompts_from_standard_input(draw, give, tmp_path, encoding):
    give("red apple\n\n  blue cat \n".encode(encoding))
    status, out, err = draw("--n", "2", "--seed", "5", prompt="-")
    assert status == 0
    assert out.split() == [
        f"outputs/{name}.png"
        for name in ("0001-red-apple", "0002-red-apple", "0003-blue-cat", "0004-blue-cat")
    ]
    assert "4 images, 32 x 32, seeds 5 to 8" in err
    own = read(tmp_path / "outputs/0004-blue-cat.png")["sdpipe"]
    assert (own["settings"]["prompt"], own["settings"]["seed"]) == ("blue cat", 8)
    assert "apple" not in json.dumps(own)


def test_a_line_of_standard_input_that_is_no_text_is_named(draw, give):
    give(b"red apple\n\xff\n")
    status, _, err = draw(prompt="-")
    assert status == 2
    assert "line 2 of standard input is not UTF-8 text" in err


@pytest.mark.parametrize(
    ("data", "rule"),
    [(b"y" * (2**24 + 1), "more than the 16777216 bytes"), (b"y\n" * 100_001, "100001 prompts")],
)
def test_standard_input_without_end_is_refused(draw, give, data, rule):
    give(data)
    status, _, err = draw(prompt="-")
    assert status == 2
    assert f"standard input has {rule}" in err


def test_a_prompt_that_comes_to_nan_loses_no_other(draw, give, monkeypatch):
    def load_too_large(*arguments, **options):
        parts = components.load(*arguments, **options)
        token = parts.tokenizer("dog").input_ids[1]
        with torch.no_grad():
            # Finite, as the weights of a file are, and too large for a sum.
            parts.text_encoder.get_input_embeddings().weight[token] = torch.finfo(torch.float32).max
        return parts

    monkeypatch.setattr("sdpipe.pipeline.load", load_too_large)
    give(b"red apple\ndog\nblue cat\n")
    status, out, err = draw("--out", "x.png", prompt="-")
    assert (status, out) == (1, "x-1.png\nx-3.png\n")
    assert "error: image 2 of 3, of 'dog': the text encoder produced NaN" in err
    assert "2 images" in err


def test_no_metadata_leaves_everything_out_but_the_mark(draw, tmp_path):
    _, out, _ = draw("--no-metadata", "--save-int", "--seed", "77")
    assert read(out.strip()) == {}
    for path in (tmp_path / "outputs").rglob("*.*"):
        if path.is_file():
            assert b"red apple" not in path.read_bytes()
            assert (b"trainedAlgorithmicMedia" in path.read_bytes()) == (path.suffix == ".png")


def test_no_mark_leaves_out_the_mark_alone(draw, tmp_path):
    draw("--no-mark", "--save-int", "--format", "webp")
    (image,) = (tmp_path / "outputs").glob("*.webp")
    assert read(image)["sdpipe"]["settings"]["prompt"] == "red apple"
    for path in (tmp_path / "outputs").rglob("*.*"):
        assert not path.is_file() or b"AlgorithmicMedia" not in path.read_bytes()
    status, _, err = draw("--format", "jpg", "--out", "x.png")
    assert status == 2
    assert "format=jpg contradicts the name x.png; call the file x.jpg" in err
    status, _, err = draw("--format", "jpg", "--out", "-")
    assert (status, "--out - writes a PNG, and --format says jpg" in err) == (2, True)


def test_an_interrupt_keeps_what_is_finished(draw, tmp_path, monkeypatch):
    from sdpipe.io import png

    save, calls = png.save, []

    def second_time_interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return save(*arguments, **options)

    monkeypatch.setattr(png, "save", second_time_interrupted)
    status, out, err = draw("--n", "3", "--json", "--seed", "5")
    assert status == 130
    assert err == "sdpipe: 1 of 3 images are written.\n"
    assert [entry["path"] for entry in json.loads(out)] == ["outputs/0001-red-apple.png"]
    assert os.listdir(tmp_path / "outputs") == ["0001-red-apple.png"]


def test_a_reader_that_has_gone_away_is_no_error(draw, tmp_path, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        status, _, err = draw("--n", "2")
        monkeypatch.undo()
    assert status == 0
    assert "2 images" in err
    assert len(os.listdir(tmp_path / "outputs")) == 2


def test_a_disk_that_fills_up_is_told(draw, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    status, _, err = draw("--seed", "42")
    assert status == 1
    assert (
        err
        == "sdpipe: error: outputs/0001-red-apple.png cannot be written: No space left on device.\n"
    )
    assert os.listdir(tmp_path / "outputs") == []


def test_a_model_that_cannot_be_had_fails(draw, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, wanted in {"empty": 1, "nothing/here/at/all": 2, "emojy": 2}.items():
        status, out, err = draw("--model", name)
        assert (status, out) == (wanted, "")
        assert re.fullmatch(r"sdpipe: error: model=[^\n]*[.?]\n", err)


def test_an_absent_device_is_wrong_usage(draw):
    status, _, err = draw("--device", "cuda:99")
    assert status == 2
    assert "cuda:99" in err


def test_behind_two_dashes_a_prompt_may_look_like_an_option(model, tmp_path, capsys):
    path = str(tmp_path / "a.png")
    assert main(["generate", "--model", model, *FAST, "--out", path, "--", "--seed"]) == 0
    assert read(path)["sdpipe"]["settings"]["prompt"] == "--seed"


def test_an_image_goes_to_standard_output(draw, monkeypatch, tmp_path):
    draw("--seed", "3", "--out", "a.png")
    stdout = io.TextIOWrapper(io.BytesIO())
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        assert draw("--seed", "3", "--out", "-")[0] == 0
    assert stdout.buffer.getvalue() == (tmp_path / "a.png").read_bytes()


def test_more_than_an_image_does_not(draw, tmp_path):
    for options in (["-n", "2"], ["--json"], ["--save-int"]):
        status, out, err = draw("--out", "-", *options)
        assert (status, out) == (2, "")
        assert "--out - writes" in err
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_an_output_that_cannot_be_printed_costs_no_image(model, tmp_path):
    command = ["generate", "red apple", "--model", model, *FAST, "--n", "3", "--out", str(tmp_path)]
    pipes = {"stderr": subprocess.PIPE, "text": True}
    with open("/dev/full", "w") as full, forked(*command, stdout=full, **pipes) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert len(os.listdir(tmp_path)) == 3
    assert err.count("standard output cannot be written (No space left on device)") == 1
    assert "3 images" in err
