import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time

import pytest
from PIL import Image
from support.command_lines import answers, assert_told
from support.tiny import tiny_model

import sdpipe
from sdpipe.cli.app import main
from sdpipe.cli.console import summary
from sdpipe.io.png import pixels_sha256, read
from sdpipe.settings import Settings

# A model of random weights diverges under lms, and a warning says so; under ddim it cannot.
FAST = ["--device", "cpu", "--dtype", "float32", "--steps", "3", "--g", "1", "--scheduler", "ddim"]


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


def test_a_file_is_not_overwritten_and_the_path_used_is_told(draw, tmp_path):
    assert draw("--out", "x.webp")[1] == "x.webp\n"
    assert draw("--out", "x.webp")[1] == "x-1.webp\n"
    assert draw("--out", "x.webp", "--n", "2")[1] == "x-2.webp\nx-3.webp\n"
    assert sorted(os.listdir(tmp_path)) == ["x-1.webp", "x-2.webp", "x-3.webp", "x.webp"]


def test_prompts_from_standard_input(draw, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("red apple\n\n  blue cat \n"))
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


def test_no_metadata_leaves_everything_out(draw, tmp_path):
    _, out, _ = draw("--no-metadata", "--save-int", "--seed", "77")
    assert read(out.strip()) == {}
    for path in (tmp_path / "outputs").rglob("*.*"):
        if path.is_file():
            assert b"red apple" not in path.read_bytes()


def test_a_warning_is_a_line_on_stderr(draw):
    status, out, err = draw(prompt="[red:green:90] apple")
    assert status == 0
    assert out.count("\n") == 1
    first, _, rest = err.partition("\n")
    assert first.startswith("sdpipe: warning: ")
    assert "changes after step 90" in first
    assert rest.startswith("sdpipe: 1 image")


def test_an_interrupt_keeps_what_is_finished(draw, tmp_path, monkeypatch):
    from sdpipe.io import png

    save, calls = png.save, []

    def second_time_interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return save(*arguments)

    monkeypatch.setattr(png, "save", second_time_interrupted)
    status, out, _ = draw("--n", "3", "--json")
    assert status == 130
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


@pytest.mark.parametrize("by", ["option", "environment", "neither"])
def test_a_traceback_only_for_debugging(draw, monkeypatch, by):
    def fail(*_, **__):
        raise RuntimeError("boom")

    monkeypatch.setattr("sdpipe.pipeline.Pipeline.generate", fail)
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

    monkeypatch.setattr("sdpipe.pipeline.Pipeline.generate", fail)
    status, _, err = draw()
    assert status == 1
    assert "out of memory" in err
    assert "--n" in err


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
    for name in ("empty", "nothing/here/at/all", "emojy"):
        status, out, err = draw("--model", name)
        assert (status, out) == (1, "")
        assert re.fullmatch(r"sdpipe: error: model=[^\n]*[.?]\n", err)


def test_an_absent_device_is_wrong_usage(draw):
    status, _, err = draw("--device", "cuda:99")
    assert status == 2
    assert "cuda:99" in err


def test_a_summary_of_one_and_of_many():
    one = Settings(prompt="x", seed=3, g=2.5).resolved({"width": 8, "height": 16})
    assert summary([one], 1.25) == "1 image, 8 x 16, seed 3, 50 steps of lms, g 2.5, 1.2 s"
    many = one.__class__(**{**one.to_dict(), "n": 3}).per_image()
    assert "3 images, 8 x 16, seeds 3 to 5" in summary(many, 0)


WRONG = {
    "generte": "No such command 'generte'. Did you mean 'generate'? See sdpipe --help.",
    "generate": "PROMPT",
    "generate x y": "y",
    "generate x --g abc": "g='abc' is neither a number",
    "generate x --g nan": "g=nan is not finite; leave it out",
    "generate x --g 12:": "g='12:' is neither a number nor a first and a last one",
    "generate x --g :4": "g=':4' is neither a number",
    "generate x --g a:b": "g='a:b' is neither a number",
    "generate x --g 12:4:2": "g='12:4:2' is neither a number",
    "generate x --g inf:1": "g=inf:1 is not finite",
    "generate x --guidance-rescale a": "guidance_rescale='a' is not a number",
    "generate x --guidance-rescale -1": "guidance_rescale=-1 is out of range",
    "generate x --guidance-rescale 2": "guidance_rescale=2 is out of range",
    "generate x --guidance-rescale nan": "guidance_rescale=nan is out of range",
    "generate x --guidance-interval 5,1": "guidance_interval=5,1 is not two noise levels",
    "generate x --guidance-interval 5": "guidance_interval=5 is not two noise levels",
    "generate x --guidance-interval -1,5": "guidance_interval=-1,5 is not two noise levels",
    "generate x --guidance-interval 1,2,3": "guidance_interval=1,2,3 is not two noise levels",
    "generate x --guidance-interval 1,inf": "guidance_interval=1,inf is not two noise levels",
    "generate x --guidance-interval a,b": "guidance_interval='a,b' is not two noise levels",
    "generate x --steps 2.5": "steps='2.5' is not a whole number",
    "generate x --steps 0": "steps=0 is out of range, 1 to 999; leave it out",
    "generate x --steps 1": "below sigma 0.05",
    "generate x --steps 1 --scheduler ddim": "below sigma 0.05",
    "generate x --dim 500": "496 and 504",
    "generate x --dim 0": "dim=0",
    "generate x --dim 64 --width 64": "either",
    "generate x --width 65": "width=65",
    "generate x --n 0": "n=0",
    "generate x --seed -1": "seed=-1",
    "generate x --seed 18446744073709551615 --n 2": "seed=18446744073709551615",
    "generate x --scheduler k": "lms, ddim, pndm, euler, euler_a, heun, dpm++, unipc",
    "generate x --scheduler ddim --karras": "Karras",
    "generate x --lms-order 5": "lms_order=5",
    "generate x --safety on": "safety='on' is not known; use one of off, flag",
    "generate x --device tpu": "device='tpu'",
    "generate x --dtype int8": "dtype='int8'",
    "generate x --out file/x.png": "file is not a folder",
    "generate x --out file": "file is not a folder",
    "generate x --out x.gif": ".png, .jpg, .jpeg, .webp",
    "generate x --out /proc/x": "cannot be written",
    "generate \udcff": "not UTF-8",
    "generate x --negative-prompt \udcff": "is not UTF-8",
    "generate -": "standard input has no prompt",
    "generate x --nonsense": "--nonsense",
    "draw x": "draw",
    "train": "training target is missing",
    "train emoji --device tpu": "device='tpu'",
    "train --data nowhere --out x": "'nowhere' is not a folder",
    "train --data file --out x": "'file' is not a folder",
    "train emoji --out file": "'file' is not a folder",
}


def test_every_wrong_usage_is_told_in_a_paragraph(tmp_path):
    (tmp_path / "file").touch()
    here = os.path.isdir("/proc")
    assert_told({k: told for k, told in WRONG.items() if here or "/proc" not in k}, tmp_path)
    assert os.listdir(tmp_path) == ["file"]


def test_refusals_need_no_torch(tmp_path):
    lines = (
        *("generate x --g abc", "generate x --steps 1", "generate x --init-image none.png"),
        *("sweep x --g 1,a", "train --data nowhere --out x", "generate x --model none/of --vae x"),
        *("generate x --model emoji --clip-skip 99", "show attention x --g 0", "names qqq qqq"),
    )
    statuses = [status for status, _, _ in answers([line.split() for line in lines], tmp_path)]
    assert set(statuses) <= {1, 2}


def test_help_is_given_without_torch(tmp_path):
    lines = ("--version", "--help", "", "generate --help", "train emoji --help")
    given = answers([line.split() for line in lines], tmp_path)
    version, top, bare, generate, train = [(status, out) for status, out, _ in given]
    assert version == (0, f"sdpipe {sdpipe.__version__}\n")
    assert top[0] == bare[0] == generate[0] == train[0] == 0
    assert "generate" in top[1]
    assert "train" in bare[1]
    for option in (
        "--negative-prompt",
        "--g",
        "--seed",
        "--lms-order",
        "--save-int",
        "--no-metadata",
    ):
        assert option in generate[1]
    assert "--recipe" in train[1]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["generate", "x", "--seed"], "--seed"),
        (["show", "tokens", "x", "--model"], "--model"),
    ],
)
def test_an_option_without_its_value_is_refused(words, told, capsys):
    assert main(words) == 2
    assert told in capsys.readouterr().err


def test_behind_two_dashes_a_prompt_may_look_like_an_option(model, tmp_path, capsys):
    path = str(tmp_path / "a.png")
    assert main(["generate", "--model", model, *FAST, "--out", path, "--", "--seed"]) == 0
    assert read(path)["sdpipe"]["settings"]["prompt"] == "--seed"


class OnTerminal:
    """`sdpipe` in a process of its own, with a terminal as its standard error."""

    def __init__(self, folder, *arguments):
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 100))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sdpipe", *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(sdpipe.__file__))},
        )
        os.close(theirs)
        self.shown = ""
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    def _read(self, ours):
        with open(ours, "rb", buffering=0) as terminal:
            try:
                while data := terminal.read(4096):
                    self.shown += data.decode()
            except OSError:  # how Linux says that the other end is closed
                pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.end()

    def wait_for(self, text):
        until = time.monotonic() + 300
        while text not in self.shown:
            assert self.process.poll() is None, self.shown
            assert time.monotonic() < until, self.shown
            time.sleep(0.02)

    def end(self):
        if not self.process.stdout.closed:
            self.printed = self.process.communicate(timeout=60)[0].decode()
            self._reader.join(10)
        return self.printed


@pytest.mark.parametrize(
    ("moment", "number", "status"),
    [
        ("loading", signal.SIGINT, 130),
        ("drawing", signal.SIGINT, 130),
        ("writing", signal.SIGTERM, 143),
    ],
)
def test_on_a_terminal_an_interrupt_ends_the_command(model, tmp_path, moment, number, status):
    steps = "900" if moment == "drawing" else "300"
    options = ["--model", model, *FAST, "--steps", steps, "--save-int"]
    arguments = ["generate", "red apple", "--out", "x.png", *options]
    with OnTerminal(tmp_path, *arguments) as run:
        if moment == "writing":
            run.wait_for("writing x.steps:")  # with its bar
        else:
            run.wait_for(moment)
            time.sleep(0.3)
        run.process.send_signal(number)
        out = run.end()
        assert run.process.returncode == status
    assert "Traceback" not in run.shown
    assert run.shown.endswith("sdpipe: interrupted\r\n")
    finished = ["x.png"] if moment == "writing" else []
    assert os.listdir(tmp_path) == finished
    assert out.split() == finished
    assert run.shown.startswith("loading the model")
    if moment == "writing":
        assert re.search(r"drawing: 100%\S* 300/300 \[.*it/s\]", run.shown)
        assert re.search(r"writing x.steps: ", run.shown)
