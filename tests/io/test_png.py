import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import stat
import struct
import subprocess
import zlib
from concurrent.futures import ThreadPoolExecutor

import piexif
import piexif.helper
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sd_parsers import ParserManager
from support.errors import raises
from support.profiles import adobe_rgb

import sdpipe
from sdpipe.errors import SdpipeError, SdpipeWarning
from sdpipe.io.png import encode, metadata, parameters, pixels_sha256, read, save
from sdpipe.io.texts import MAX_TEXT
from sdpipe.settings import KARRAS_SCHEDULERS, SCHEDULERS, Settings

IDENTITY = {
    "name": "CompVis/stable-diffusion-v1-4",
    "revision": "a" * 40,
    "sha256": "0123456789abc",
}


def settings(prompt="red apple", **values):
    given = {"seed": 42, "g": 7.5, "steps": 50, "dim": 512, **values}
    return Settings(prompt=prompt, **given).resolved({})


def plain(width=16, height=8):
    data = random.Random(0).randbytes(width * height * 3)
    return Image.frombytes("RGB", (width, height), data)


def notes(image=None, prompt="red apple", **values):
    return metadata(
        settings(prompt, **values),
        IDENTITY,
        image=image or plain(),
        device="cpu",
        dtype="float32",
        n=4,
        index=2,
    )


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_bytes_depend_on_the_pixels_and_the_metadata_alone(tmp_path, suffix):
    bare, annotated = plain(), plain()
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    annotated.info = {
        "comment": b"where I live",
        "icc_profile": adobe_rgb(),
        "exif": exif.tobytes(),
        "xmp": b"<x:xmpmeta/>",
        "dpi": (300, 300),
        "transparency": (0, 0, 0),
        "text": "home",
    }
    for told in (None, notes()):
        first, second = (save(image, tmp_path / f"x.{suffix}", told) for image in (bare, annotated))
        assert first.read_bytes() == second.read_bytes()


# AUTOMATIC1111's format, as its web UI publishes it in modules/infotext_utils.py.
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def a1111(text):
    *lines, last = text.strip().split("\n")
    pairs = PAIR.findall(last)
    if len(pairs) < 3:
        lines, pairs = [*lines, last], []
    prompt, negative, below = [], [], False
    for line in lines:
        line = line.strip()
        if line.startswith("Negative prompt:"):
            below, line = True, line[len("Negative prompt:") :].strip()
        (negative if below else prompt).append(line)
    values = {k: json.loads(v) if v[:1] == '"' == v[-1:] else v for k, v in pairs}
    return "\n".join(prompt), "\n".join(negative), values


def test_parameters_are_what_gallery_tools_expect():
    identity = {**IDENTITY, "name": "emoji"}
    assert parameters(settings(), identity) == (
        "red apple\n"
        "Steps: 50, Sampler: LMS, CFG scale: 7.5, Seed: 42, Size: 512x512, "
        f"Model hash: 0123456789, Model: emoji, RNG: CPU, Version: sdpipe {sdpipe.__version__}, "
        'Hashes: {"model": "0123456789"}'
    )


@pytest.mark.parametrize(
    "prompt",
    [
        "red apple",
        "a, b: c",
        "two\nlines",
        "Steps: 3",
        'é "日本"',
        "",
        'said "no, never": twice \\',
        "Steps: 3, Sampler: Euler, Seed: 1, Size: 8x8",
        "a sign\nSteps: 3, Sampler: Euler, CFG scale: 9, Seed: 1\nhangs there",
        "the words Negative prompt: none, and Steps: 2",
    ],
)
@pytest.mark.parametrize("negative", ["", "blurry, dark", "a\nb", 'no "Negative prompt:" here'])
def test_a1111_reads_what_we_write(prompt, negative):
    given = settings(
        prompt, negative_prompt=negative, g=7, karras=True, width=64, dim=None, height=8
    )
    got_prompt, got_negative, values = a1111(parameters(given, IDENTITY))
    assert (got_prompt, got_negative) == (prompt, negative)
    assert values == {
        "Steps": "50",
        "Sampler": "LMS",
        "Schedule type": "Karras",
        "CFG scale": "7",
        "Seed": "42",
        "Size": "64x8",
        "Model hash": "0123456789",
        "Model": "stable-diffusion-v1-4",
        "RNG": "CPU",
        "Version": f"sdpipe {sdpipe.__version__}",
        "Hashes": '{"model": "0123456789"}',
    }


def a1111_info(path):
    """The text that A1111's `read_info_from_image` finds; piexif is what it reads EXIF with."""
    with Image.open(path) as image:
        found = image.info.get("parameters", "")
        if "exif" in image.info:
            comment = piexif.load(image.info["exif"])["Exif"][piexif.ExifIFD.UserComment]
            found = piexif.helper.UserComment.load(comment)
    return found


def sd_parsers_info(path):
    """The same values from another library that reads the images of many programs."""
    found = ParserManager().parse(path)
    (sampler,) = found.samplers
    values = {"Sampler": sampler.name, "Model": sampler.model.name, **found.metadata}
    names = {"steps": "Steps", "cfg_scale": "CFG scale", "seed": "Seed"}
    values |= {names[key]: value for key, value in sampler.parameters.items()}
    return found.full_prompt, found.full_negative_prompt, values


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_other_programs_read_our_files(tmp_path, suffix):
    prompt, negative = 'café, "日本" 🍎\n(second line:1.2)', "dark, [grey]"
    path = save(plain(), tmp_path / f"x{suffix}", notes(prompt=prompt, negative_prompt=negative))
    expected = {
        "Steps": "50",
        "Sampler": "LMS",
        "CFG scale": "7.5",
        "Seed": "42",
        "Size": "512x512",
        "Model": "stable-diffusion-v1-4",
        "RNG": "CPU",
        "Version": f"sdpipe {sdpipe.__version__}",
        "Hashes": '{"model": "0123456789"}',
    }
    assert a1111(a1111_info(path)) == (prompt, negative, {**expected, "Model hash": "0123456789"})
    hashes = {"model": "0123456789"}  # which it reads as JSON
    assert sd_parsers_info(path) == (prompt, negative, {**expected, "Hashes": hashes})


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="needs exiftool")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_exiftool_reads_our_files(tmp_path, suffix):
    given = notes(prompt="café 日本 🍎")
    path = save(plain(), tmp_path / f"x{suffix}", given)
    tags = ["-Parameters", "-UserComment", "-Warning", "-Error"]
    (found,) = json.loads(subprocess.check_output(["exiftool", "-j", *tags, path]))
    del found["SourceFile"]
    assert list(found.values()) == [given["parameters"]]


LORAS = [
    {"name": "my-cat.safetensors", "weight": 0.8, "sha256": "ab" * 32},
    {"name": "a: b, {c}.safetensors", "weight": 1.0, "sha256": "cd" * 32},
]


def test_civitai_and_a1111_find_the_loras():
    """Civitai's own expression, and A1111's names of LoRAs, which have no separators."""
    identity, hashes = {**IDENTITY, "loras": LORAS}, {LORAS[0]["name"]: "12" * 32}
    text = parameters(settings(), identity, hashes)
    found = re.search(r", Hashes:\s*({[^}]+})", text)
    assert json.loads(found[1]) == {
        "model": "0123456789",
        "lora:my-cat": "ababababab",
        "lora:a b c": "cdcdcdcdcd",
    }
    _, _, values = a1111(text.replace(found[0], ""))
    assert values["Lora hashes"] == "my-cat: 121212121212"


def test_a_line_that_begins_like_the_negative_prompt_costs_no_settings():
    """A1111 takes what follows it for the negative prompt; our own JSON knows better."""
    given = settings("a sign\nNegative prompt: of wood", negative_prompt="dark")
    prompt, negative, values = a1111(parameters(given, IDENTITY))
    assert (prompt, negative) == ("a sign", "of wood\ndark")
    assert (values["Steps"], values["Seed"], values["Size"]) == ("50", "42", "512x512")


@pytest.mark.parametrize("name", ["odd, name: yes", 'a "quoted", one', "two\nlines", "x:1"])
def test_values_with_separators_are_quoted(name):
    _, _, values = a1111(parameters(settings(), {**IDENTITY, "name": name, "sha256": None}))
    assert values["Model"] == name
    assert "Model hash" not in values


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_has_a_name_there(scheduler):
    given = settings(scheduler=scheduler, karras=scheduler in KARRAS_SCHEDULERS)
    _, _, values = a1111(parameters(given, IDENTITY))
    known = {"LMS", "DDIM", "PLMS", "Euler", "Euler a", "Heun", "DPM++ 2M", "UniPC", "LCM"}
    known |= {"DPM++ 2M SDE", "DPM2", "DPM2 a", "TCD", "DDPM", "DEIS"}  # the last three are Forge's
    assert values["Sampler"] in known
    assert ("Schedule type" in values) == given.karras


def test_metadata_is_of_one_image_and_its_place_in_the_batch():
    image = plain()
    own = notes(image, negative_prompt="dark", batch_invariant=True)["sdpipe"]
    assert own["format"] == 2
    assert own["settings"] == settings(negative_prompt="dark", batch_invariant=True).to_dict()
    assert own["model"] == IDENTITY
    assert own["batch"] == {"n": 4, "index": 2}
    assert set(own["versions"]) == {"sdpipe", "torch", "diffusers", "transformers", "python"}
    assert "unknown" not in own["versions"].values()
    assert (own["device"], own["dtype"]) == ("cpu", "float32")
    assert own["pixels_sha256"] == hashlib.sha256(image.tobytes()).hexdigest()


def test_the_hash_is_of_pixels_and_not_of_packing():
    image = plain()
    assert pixels_sha256(image) == pixels_sha256(image.convert("RGBA"))
    image.putpixel((0, 0), (1, 2, 3))
    assert pixels_sha256(image) != pixels_sha256(plain())


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".WebP"])
@pytest.mark.parametrize("prompt", ["red apple", 'café, "日本" 🍎\nsecond: line', "x" * 16000])
def test_metadata_comes_back_as_it_went(tmp_path, suffix, prompt):
    given = notes(prompt=prompt)
    path = save(plain(), tmp_path / f"x{suffix}", given)
    assert path == tmp_path / f"x{suffix}"
    assert read(path) == given
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_pixels_come_back_as_they_went(tmp_path, suffix):
    with Image.open(save(plain(), tmp_path / f"x{suffix}", notes())) as saved:
        assert pixels_sha256(saved) == notes()["sdpipe"]["pixels_sha256"]


def test_a_jpeg_is_close(tmp_path):
    smooth = Image.linear_gradient("L").convert("RGB")
    with Image.open(save(smooth, tmp_path / "x.jpg")) as saved:
        pairs = zip(saved.tobytes(), smooth.tobytes(), strict=True)
        assert max(abs(a - b) for a, b in pairs) <= 4


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_without_metadata_a_file_has_no_texts(tmp_path, suffix):
    path = save(plain(), tmp_path / f"x{suffix}")
    assert read(path) == {}
    with Image.open(path) as image:
        assert not image.getexif()
        assert not {"parameters", "sdpipe", "Software", "exif"} & set(image.info)


def test_metadata_too_large_for_a_jpeg_is_left_out_with_a_warning(tmp_path):
    with pytest.warns(SdpipeWarning, match="a JPEG holds 65533"):
        path = save(plain(), tmp_path / "x.jpg", notes(prompt="é" * 16000))
    assert read(path) == {}


@pytest.mark.parametrize(("size", "is_kept"), [(65532, True), (65534, False)])
def test_a_jpeg_holds_one_segment_of_exif_to_the_byte(tmp_path, size, is_kept):
    """A segment counts its own two bytes of length among 65535 (ITU-T T.81, B.1.1.4)."""

    def length(characters):
        told["sdpipe"]["note"] = "x" * characters
        with Image.open(io.BytesIO(encode(plain(), "WEBP", told))) as image:  # holds any number
            return len(image.getexif().tobytes())

    told = notes()
    assert length(60000 + size - length(60000)) == size
    with contextlib.nullcontext() if is_kept else pytest.warns(SdpipeWarning, match="JPEG holds"):
        path = save(plain(), tmp_path / "x.jpg", told)
    assert read(path) == (told if is_kept else {})


def test_a_file_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").touch()
    path = save(plain(), tmp_path / "x.png")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_nothing_is_overwritten(tmp_path):
    assert [save(plain(), tmp_path / "x.png").name for _ in range(3)] == [
        "x.png",
        "x-1.png",
        "x-2.png",
    ]


def test_many_at_once_do_not_clobber_each_other(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        saved = list(pool.map(lambda _: save(plain(), tmp_path / "x.png"), range(24)))
    assert len(set(saved)) == 24
    assert set(tmp_path.iterdir()) == set(saved)


def test_what_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with raises(SdpipeError, value="x.png", rule="cannot be written: File exists"):
        save(plain(), tmp_path / "file" / "x.png")
    with raises(SdpipeError, value="x.gif", rule="suffix", remedy=".png, .jpg"):
        save(plain(), tmp_path / "x.gif")
    with raises(SdpipeError, value="16400 x 1", rule="as WEBP", remedy="PNG"):
        save(Image.new("RGB", (16400, 1)), tmp_path / "x.webp")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, error):
    def fail(file):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    expected = SdpipeError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        save(plain(), tmp_path / "x.png")
    if expected is SdpipeError:
        assert caught.value.rule == "cannot be written: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_images_of_other_programs_have_no_metadata_or_their_own(tmp_path):
    for format in ("PNG", "JPEG", "WEBP"):
        plain().save(tmp_path / "x", format)
        assert read(tmp_path / "x") == {}
    info = PngInfo()
    info.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler a, Seed: 1")
    plain().save(tmp_path / "x.png", pnginfo=info)
    assert a1111(read(tmp_path / "x.png")["parameters"])[2]["Sampler"] == "Euler a"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nonsense", "not valid JSON"),
        ("[1, 2]", "not a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"a": NaN}', "not valid JSON"),
        ('{"a": 1e999}', "not valid JSON"),
        ('{"a": "\\ud800"}', "not valid JSON"),
        ('{"a": "' + "x" * MAX_TEXT + '"}', "longer than"),
    ],
)
def test_our_own_key_with_anything_else_in_it(tmp_path, text, reason):
    info = PngInfo()
    info.add_text("sdpipe", text)
    plain().save(tmp_path / "x.png", pnginfo=info)
    with raises(SdpipeError, value="x.png", rule=reason):
        read(tmp_path / "x.png")


def test_a_compressed_bomb_is_refused(tmp_path):
    data = b"sdpipe\0\0" + zlib.compress(b" " * 2**26, 9)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + data))
    plain().save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(whole[:33] + chunk + whole[33:])
    with raises(SdpipeError, value="x.png", rule="cannot be read"):
        read(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_damaged_files_never_break_the_reader(tmp_path, suffix):
    dice = random.Random(0)
    path = tmp_path / f"x{suffix}"
    whole = save(plain(), path, notes()).read_bytes()
    outcomes = set()
    for _ in range(300):
        data = bytearray(whole[: dice.choice([len(whole), dice.randrange(len(whole))])])
        for _ in range(dice.randrange(8)):
            data[dice.randrange(len(data))] = dice.randrange(256) if data else 0
        path.write_bytes(data)
        try:
            read(path)
            outcomes.add("read")
        except SdpipeError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
    assert os.listdir(tmp_path) == [path.name]
