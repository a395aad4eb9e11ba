"""What `sdpipe info` shows of an image."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from support.metadata import A1111, change, foreign_image, our_image, our_metadata, sample_image

from sdpipe.cli.app import main
from sdpipe.io import png
from sdpipe.metadata.info import describe_safety, info
from sdpipe.settings import Settings


@pytest.fixture
def show(capsys):
    """Runs the command: status, stdout, stderr."""

    def run(*arguments):
        status = main(["info", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def test_as_a_person_reads_it(show, tmp_path):
    metadata = our_metadata("red apple\non a table", batch_invariant=True)
    path = png.save(sample_image(), tmp_path / "x.png", metadata)
    status, out, err = show(path)
    assert (status, err) == (0, "")
    versions = ", ".join(f"{k} {v}" for k, v in metadata["sdpipe"]["versions"].items())
    assert out == (
        f"{path}\n"
        "  prompt           red apple\n"
        "                   on a table\n"
        "  size             128 x 128\n"
        "  seed             7\n"
        "  steps            30\n"
        "  g                3.25\n"
        "  scheduler        lms\n"
        "  lms_order        2\n"
        "  batch_invariant  yes\n"
        "  model            emoji, sha256 abababababab\n"
        "  batch            image 3 of a batch of 4\n"
        "  written by       sdpipe\n"
        f"  versions         {versions}\n"
        "  drawn            on cpu in float32\n"
        "  pixels           as they were drawn\n"
    )


def test_as_json(show, tmp_path):
    path = png.save(sample_image(), tmp_path / "x.webp", our_metadata("é 日本"))
    status, out, _ = show(path, "--json")
    (found,) = json.loads(out)
    assert status == 0
    assert found["path"] == str(path)
    assert Settings.from_dict(found["settings"]).prompt == "é 日本"
    assert found["model"] == {
        "name": "emoji",
        "sha256": "ab" * 32,
        "parts": {},
        "loras": [],
        "embeddings": [],
    }
    assert found["batch"] == {"n": 4, "index": 2}
    assert (found["source"], found["device"], found["dtype"]) == ("sdpipe", "cpu", "float32")
    assert found["pixels"]["unchanged"] is True
    assert found["pixels"]["sha256"] == found["pixels"]["recorded_sha256"]


def test_what_is_not_the_default_is_shown(tmp_path):
    given = {
        "g": (12, 4),
        "guidance_interval": (0.5, 9),
        "hires_scale": 1.5,
        "clip_skip": 2,
        "seamless": "xy",
    }
    shown = str(info(png.save(sample_image(), tmp_path / "x.png", our_metadata(**given))))
    lines = dict(line.strip().split("  ", 1) for line in shown.splitlines()[1:])
    lines = {name: value.strip() for name, value in lines.items()}
    assert lines["size"] == "192 x 192 from 128 x 128"
    assert (lines["g"], lines["guidance_interval"], lines["hires_scale"]) == (
        "12:4",
        "0.5,9",
        "1.5",
    )
    assert (lines["clip_skip"], lines["seamless"]) == ("2", "xy")
    assert not {"karras", "save_int", "guidance_rescale", "safety", "n", "init_image"} & set(lines)


def test_what_was_added_and_replaced_is_shown_with_the_beginnings_of_hashes(tmp_path):
    path = our_image(
        tmp_path / "x.png",
        change("model", "parts", {"vae": "owner/vae@" + "c" * 40, "unet": f"u@sha256:{'d' * 64}"}),
        change("model", "loras", [{"name": "ink", "sha256": "1" * 64, "weight": 0.5}]),
        change("model", "embeddings", [{"name": "c", "sha256": "2" * 64, "word": "<cat>"}]),
        change("settings", "init_image", {"name": "a.png", "sha256": "3" * 64}),
        change("settings", "outpaint", [1.0, 22, 3, "x" * 295]),
        change("settings", "eta", "x" * 300),
        change("settings", "negative_prompt", "blurry\ndark"),
        change("speed", "fast"),
        change("safety", {"flagged": True}),
    )
    lines = str(info(path)).splitlines()
    width = len("negative prompt")
    for name, value in (
        ("vae", f"owner/vae, {'c' * 19}, in place of the model's own"),
        ("unet", f"u, sha256 {'d' * 12}, in place of the model's own"),
        ("lora", f"0.5 of ink, sha256 {'1' * 12}"),
        ("embedding", f"<cat>, of c, sha256 {'2' * 12}"),
        ("init_image", f"a.png, SHA-256 {'3' * 12}"),
        ("outpaint", f"1,22,3,{'x' * 290}..."),
        ("eta", "x" * 300),
        ("negative prompt", "blurry"),
        ("", "dark"),
        ("drawn", "on cpu in float32, fast"),
        ("safety", "flagged by the model's safety checker; nothing was changed"),
        ("batch", "image 3 of a batch of 4"),
        ("pixels", "as they were drawn"),
    ):
        assert f"  {name:<{width}}  {value}" in lines, name
    plain = our_image(tmp_path / "y.png", change("speed", None))
    assert "  drawn       on cpu in float32" in str(info(plain)).splitlines()


def test_an_edited_image_is_recognised(tmp_path):
    metadata, edited = our_metadata(), sample_image()
    edited.putpixel((3, 3), (255, 0, 0))
    assert info(png.save(edited, tmp_path / "x.png", metadata)).unchanged is False
    assert info(png.save(sample_image(), tmp_path / "x.jpg", metadata)).unchanged is None
    assert info(png.save(sample_image(), tmp_path / "y.png", metadata)).unchanged is True
    assert info(foreign_image(tmp_path / "z.png", parameters=A1111)).unchanged is None


def test_an_image_that_cannot_be_read_does_not_stop_the_others(show, tmp_path):
    good = png.save(sample_image(), tmp_path / "good.png", our_metadata())
    bare = png.save(sample_image(), tmp_path / "bare.png")
    status, out, err = show(good, bare, tmp_path / "none.png", good)
    assert status == 2
    assert out.count("red apple") == 2
    first, second = err.splitlines()
    assert str(bare) in first
    assert "none.png" in second
    status, out, _ = show(good, bare, "--json")
    assert status == 1
    assert [found["path"] for found in json.loads(out)] == [str(good)]


def test_an_image_of_another_program(tmp_path):
    shown = str(info(foreign_image(tmp_path / "x.png", parameters=A1111)))
    assert "\n  written by       A1111's web UI" in shown
    assert "\n  clip_skip        2\n" in shown
    assert "\n  Lora hashes      detail: 7c0b, x: y\n" in shown


def test_invalid_metadata_is_refused_in_one_line(show, tmp_path):
    path = our_image(tmp_path / "x.png", change("settings", "a\x1b[31m", 1))
    status, out, err = show(path)
    assert (status, out) == (1, "")
    assert err.startswith(f"sdpipe: error: {path} ")
    assert err.count("\n") == 1
    assert "\x1b" not in err


def test_control_characters_are_escaped(show, tmp_path):
    path = our_image(
        tmp_path / "x.png",
        change("settings", "prompt", "a\x1b[31m\u202eb\rc\n👨‍👩‍👧"),
        change("model", "name", "\x9b2J\nemoji"),
    )
    _, out, _ = show(path)
    assert "prompt      a\\u001b[31m\\u202eb\\u000dc\n              👨‍👩‍👧\n" in out
    assert "model       \\u009b2J emoji, sha256" in out


def test_a_setting_of_a_later_version_is_shown(tmp_path):
    found = info(our_image(tmp_path / "x.png", change("settings", "hologram", "yes")))
    assert "hologram    yes\n" in str(found)


def test_the_grid_of_a_sweep(tmp_path):
    sweep = {"prompt": "a {cat|dog}", "negative_prompt": "red", "g": [1, 3, 7.5], "width": [64, 72]}
    found = info(our_image(tmp_path / "x.png", change("sweep", sweep), change("settings", {})))
    assert found.to_dict()["sweep"] == sweep
    shown = str(found)
    assert "\n  grid of          a sweep\n  prompt           a {cat|dog}\n" in shown
    assert "\n  g                1,3,7.5\n" in shown
    assert "\n  width            64,72\n" in shown


def test_what_the_safety_checker_said(tmp_path):
    safety = {"flagged": True, "concepts": [3]}
    found = info(our_image(tmp_path / "x.png", change("safety", safety)))
    assert f"\n  safety      {describe_safety(safety)}\n" in str(found)
    assert describe_safety(safety) != describe_safety({"flagged": False, "concepts": []})


def test_an_image_too_large_to_be_decoded(tmp_path):
    text = PngInfo()
    text.add_text("sdpipe", json.dumps(our_metadata()["sdpipe"]))
    Image.new("L", (9500, 9500)).save(path := tmp_path / "x.png", pnginfo=text)
    found = info(path)
    assert (found.sha256, found.unchanged) == (None, None)
    assert "9500 x 9500" in found.pixels


def test_no_torch_is_loaded(tmp_path):
    image = png.save(sample_image(), tmp_path / "x.png", our_metadata())
    sweep = {"prompt": "a {cat|dog}", "g": [1, 3]}
    grid = our_image(tmp_path / "grid.png", change("sweep", sweep), change("settings", {}))
    code = (
        "import sys; from sdpipe.cli import main; status = main(['info', *sys.argv[1:]]);"
        "print(status, {'torch', 'diffusers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, image, grid], capture_output=True, text=True, env=os.environ
    )
    assert done.stdout.endswith("0 set()\n"), done
    assert "sdpipe sweep 'a {cat|dog}' --g 1,3 --model emoji" in done.stdout


def test_wrong_usage(show):
    assert show()[0] == 2
    status, _, err = show("--nonsense", "x.png")
    assert status == 2
    assert "--nonsense" in err
