import io
import json
import sys
from xml.etree import ElementTree

import pytest
from PIL import Image
from support.tiny import tiny_model

from sdpipe.cli.app import main
from sdpipe.show.output import to_json

CALM = ["--device", "cpu", "--dtype", "float32", "--steps", "3", "--scheduler", "ddim"]
PROMPT = ["red cat, apple"]
# Everything there is to show, with arguments that a model of random weights is fast with.
ALL = {
    "tokens": PROMPT,
    "schedule": ["--steps", "4", "--scheduler", "lms,ddim"],
    "noise": ["IMAGE", "--t", "0,999", "--seed", "1", "--dtype", "float32"],
    "latents": ["IMAGE", "--device", "cpu"],
    "denoise": [*PROMPT, "--t", "300", "--seed", "1", *CALM],
    "steps": [*PROMPT, "--seed", "1", *CALM],
    "guidance": [*PROMPT, "--at", "0,2", "--seed", "1", "--g", "2", *CALM],
    "attention": [*PROMPT, "--seed", "1", *CALM],
    "interpolate": [*PROMPT, "dog", "--seeds", "1", "2", "--frames", "3", *CALM],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def show(model, tmp_path, monkeypatch, capsys):
    """Runs `sdpipe show` on a small model in an empty folder: status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    Image.radial_gradient("L").save("drawn.png")

    def run(name, *arguments):
        given = ["drawn.png" if a == "IMAGE" else a for a in arguments]
        status = main(["show", name, *given, "--model", model])
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize("name", ALL)
def test_each_writes_one_png_and_prints_where(show, name, tmp_path):
    status, out, err = show(name, *ALL[name])
    assert (status, err) == (0, "")
    (path,) = (tmp_path / "outputs").iterdir()
    assert out == f"outputs/{path.name}\n"
    assert path.name.startswith(f"0001-show-{name}")
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert image.width == (1800 if name != "steps" else image.width) >= 700
        is_marked = "trainedAlgorithmicMedia" in image.info.get("XML:com.adobe.xmp", "")
    assert is_marked == (name in ("denoise", "steps", "guidance", "attention", "interpolate"))


@pytest.mark.parametrize("name", ALL)
def test_json_is_one_object_and_needs_no_matplotlib(show, name, tmp_path, monkeypatch):
    for module in ("matplotlib", "matplotlib.figure", "av"):
        monkeypatch.setitem(sys.modules, module, None)
    status, out, err = show(name, *ALL[name], "--json")
    assert (status, err) == (0, "")
    assert not (tmp_path / "outputs").exists()
    report = json.loads(out)
    assert out.count("\n") == 1
    assert report["show"] == name
    assert "path" not in report
    assert len(report) > 3


@pytest.mark.parametrize("name", [name for name in ALL if name != "steps"])
def test_without_matplotlib_the_command_to_install_it_is_printed(show, name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, err = show(name, *ALL[name])
    assert (status, out) == (1, "")
    assert 'pip install "sdpipe[show]"' in err
    assert err.count("\n") == 1


def test_the_filmstrip_needs_no_matplotlib(show, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert show("steps", *ALL["steps"])[0] == 0


@pytest.mark.parametrize("name", ["tokens", "schedule", "noise", "attention"])
def test_svg_is_a_drawing_and_pdf_too(show, name, tmp_path):
    assert show(name, *ALL[name], "--out", "x.svg")[1] == "x.svg\n"
    root = ElementTree.parse(tmp_path / "x.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(list(root.iter())) > 30
    before = (tmp_path / "x.svg").read_bytes()
    assert show(name, *ALL[name], "--out", "x.svg", "--overwrite", "--json")[0] == 0
    assert (tmp_path / "x.svg").read_bytes() == before
    assert show(name, *ALL[name], "--out", "x.PDF")[1] == "x.PDF\n"
    assert (tmp_path / "x.PDF").read_bytes().startswith(b"%PDF")


def test_numbers_go_on_and_what_exists_is_refused(show, tmp_path):
    assert show("tokens", "a", "--out", "x")[1] == "x/0001-show-tokens-a.png\n"
    assert show("tokens", "b", "--out", "x/")[1] == "x/0002-show-tokens-b.png\n"
    assert show("tokens", "b", "--out", "y.png")[1] == "y.png\n"
    status, _, err = show("tokens", "b", "--out", "y.png")
    assert (status, "y.png exists already" in err) == (2, True)
    report = json.loads(show("tokens", "b", "--out", "y.png", "--json", "--overwrite")[1])
    assert report["path"] == "y.png"
    assert len(report["ids"]) == 77


def test_films(show, tmp_path):
    pytest.importorskip("av")
    status, out, _ = show("steps", *ALL["steps"], "--gif", "x.gif", "--mp4", "x.mp4")
    assert (status, out) == (0, "x.gif\nx.mp4\n")
    assert not (tmp_path / "outputs").exists()
    with Image.open("x.gif") as film:
        assert film.n_frames == 4
    assert (tmp_path / "x.mp4").read_bytes()[4:8] == b"ftyp"
    arguments = ["--gif", "x.gif", "--out", "s.png", "--json"]
    assert show("interpolate", *ALL["interpolate"], *arguments)[0] == 2  # x.gif exists
    report = json.loads(show("interpolate", *ALL["interpolate"], *arguments, "--overwrite")[1])
    assert (report["path"], report["gif"]) == ("s.png", "x.gif")
    with Image.open("x.gif") as film:
        assert film.n_frames == 4
    assert report["fractions"] == [0, 0.5, 1]


def test_a_film_without_its_library(show, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    status, _, err = show("steps", *ALL["steps"], "--mp4", "x.mp4")
    assert status == 1
    assert 'pip install "sdpipe[show]", or use --gif' in err
    assert show("steps", *ALL["steps"], "--gif", "x.gif")[1] == "x.gif\n"


WRONG = {
    "scheduler='foo' is not known; use one of lms": ["schedule", "--scheduler", "lms,foo"],
    "steps=0 is out of range": ["schedule", "--steps", "0"],
    "'ddim' has no Karras noise levels": ["schedule", "--scheduler", "ddim", "--karras"],
    "t=1000 is out of range": ["noise", "IMAGE", "--t", "5,1000"],
    "'5;6' is not a list of integers": ["noise", "IMAGE", "--t", "5;6"],
    "dim=60 is not a multiple of 8": ["latents", "IMAGE", "--dim", "60"],
    "gone.png cannot be read: No such file": ["latents", "gone.png"],
    "model cannot be read": ["noise", "FILE"],
    "t=-1 is out of range": ["denoise", "cat", "--t", "-1"],
    "no.jpg cannot be read": ["denoise", "cat", "--image", "no.jpg"],
    "at=3 is out of range; steps count from 0 to 2": ["guidance", "x", "--at", "3", *CALM],
    "at=-1 is out of range": ["guidance", "x", "--at", "0,-1"],
    "g=1 uses only the prediction with the prompt": ["guidance", "x", "--g", "1"],
    "g=0 leaves the prompt without effect": ["attention", "x", "--g", "0"],
    "the prompt has no words": ["attention", ""],
    "frames=1 is out of range": ["interpolate", "a", "b", "--frames", "1"],
    "'3' is too much; put each": ["interpolate", "a", "b", "--seeds", "1", "2", "3"],
    "'apple' is too much": ["interpolate", "red", "green", "apple"],
    "'1,2' is not an integer; use two": ["interpolate", "a", "b", "--seeds", "1,2"],
    "'--g' is not an integer; use two": ["interpolate", "a", "b", "--seeds", "1", "--g", "2"],
    "'x' is not an integer; use two": ["interpolate", "a", "b", "--seeds", "1", "x"],
    "seed=-1 is out of range": ["interpolate", "a", "b", "--seeds", "1", "-1"],
    "device='tpu' is unknown": ["steps", "x", "--device", "tpu"],
    "dtype='int8' is unknown": ["steps", "x", "--dtype", "int8"],
    "out='x.gif' is a film": ["steps", "x", "--out", "x.gif"],
    "out='x.svg' has the suffix .svg": ["steps", "x", "--out", "x.svg"],
    "out='x.jpg' has the suffix .jpg": ["tokens", "x", "--out", "x.jpg"],
    "out='x.foo' has the suffix .foo": ["tokens", "x", "--out", "x.foo"],
    "--gif x.png is not a .gif file": ["steps", "x", "--gif", "x.png"],
    "--mp4 drawn.png/x.mp4": ["steps", "x", "--mp4", "drawn.png/x.mp4"],
    "No such option: --gif": ["tokens", "x", "--gif", "x.gif"],
    "is not UTF-8 text": ["tokens", "\udc80"],
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_refused_in_a_line_before_anything_is_loaded(
    show, message, monkeypatch, tmp_path
):
    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("sdpipe.pipeline.Pipeline.__init__", load)
    (tmp_path / "model").write_text("not an image")
    status, out, err = show(*("model" if a == "FILE" else a for a in WRONG[message]))
    assert (status, out) == (2, "")
    assert err.startswith("sdpipe: error: ")
    assert err.count("\n") == 1
    if not message.startswith("--mp4"):
        assert message in err
    assert not (tmp_path / "outputs").exists()


def test_an_unknown_model_is_refused(show, capsys):
    assert main(["show", "tokens", "x", "--model", "./nowhere"]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_help_names_every_command(capsys):
    assert main(["show"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ALL)


def test_json_has_no_infinity():
    report = to_json({"a": [float("inf"), {"b": float("nan")}], "c": (1, "ü", None, True)})
    assert json.loads(report) == {"a": [None, {"b": None}], "c": [1, "ü", None, True]}
    assert "ü" in report


def test_the_same_drawing_is_the_same_file(show, tmp_path):
    for name in ("a.png", "b.png"):
        show("tokens", *PROMPT, "--out", name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())) as image:
        assert image.info["Software"].startswith("sdpipe ")
