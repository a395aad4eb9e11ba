import json
import os
import subprocess
import sys

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from support.metadata import A1111, INVOKEAI, change, foreign_picture, mine, own, picture

from sdpipe.cli.app import main
from sdpipe.errors import SdpipeError
from sdpipe.io import png
from sdpipe.metadata import a1111, invokeai
from sdpipe.metadata.info import info, plain
from sdpipe.metadata.read import read_record
from sdpipe.metadata.record import MAX_PROMPT, Record, RecordError, brief
from sdpipe.prompt.syntax import parse
from sdpipe.settings import SCHEDULERS, Settings

SD_METADATA = {
    "model": "stable diffusion",
    "model_weights": "stable-diffusion-1.5",
    "model_hash": "cc6c",
    "app_id": "invoke-ai/InvokeAI",
    "app_version": "2.3.5",
    "image": {
        "prompt": [{"prompt": "a lonely robot [blurry, text] reading", "weight": 1.0}],
        "steps": 50,
        "cfg_scale": 7.5,
        "height": 512,
        "width": 512,
        "seed": 1618033988,
        "type": "txt2img",
        "postprocessing": None,
        "sampler": "k_lms",
        "variations": [],
    },
}
DREAM = '"a lonely robot [blurry, text]" -s 50 -S 1618033988 -W 512 -H512 -C7.5 -A k_lms'


@pytest.fixture
def tell(capsys):
    def run(*arguments):
        status = main(["info", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def test_it_reads_as_a_person_reads(tell, tmp_path):
    path = png.save(
        picture(), tmp_path / "x.png", own("red apple\non a table", batch_invariant=True)
    )
    status, out, err = tell(path)
    assert (status, err) == (0, "")
    versions = ", ".join(f"{k} {v}" for k, v in own()["sdpipe"]["versions"].items())
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
        "  batch            number 3 of 4 that were drawn at once\n"
        "  written by       sdpipe\n"
        f"  versions         {versions}\n"
        "  drawn            on cpu in float32\n"
        "  pixels           as they were drawn\n"
    )


def test_it_reads_as_json(tell, tmp_path):
    path = png.save(picture(), tmp_path / "x.webp", own("é 日本"))
    status, out, _ = tell(path, "--json")
    (told,) = json.loads(out)
    assert status == 0
    assert told["path"] == str(path)
    assert Settings.from_dict(told["settings"]).prompt == "é 日本"
    assert told["model"] == {
        "name": "emoji",
        "sha256": "ab" * 32,
        "parts": {},
        "loras": [],
        "embeddings": [],
    }
    assert told["batch"] == {"n": 4, "index": 2}
    assert (told["source"], told["device"], told["dtype"]) == ("sdpipe", "cpu", "float32")
    assert told["pixels"]["same"] is True
    assert told["pixels"]["sha256"] == told["pixels"]["recorded_sha256"]


def test_an_edited_picture_is_known(tell, tmp_path):
    notes, changed = own(), picture()
    changed.putpixel((3, 3), (255, 0, 0))
    out = tell(png.save(changed, tmp_path / "x.png", notes))[1]
    assert "pixels      not those that were drawn: edited, or saved again with losses\n" in out
    out = tell(png.save(picture(), tmp_path / "x.jpg", notes))[1]
    assert "pixels      close to those that were drawn at best: a JPEG loses some\n" in out


def test_several_pictures_and_those_that_tell_nothing(tell, tmp_path):
    good = png.save(picture(), tmp_path / "good.png", own())
    bare = png.save(picture(), tmp_path / "bare.png")
    status, out, err = tell(good, bare, tmp_path / "none.png", good)
    assert status == 1
    assert out.count("red apple") == 2
    assert err == (
        f"sdpipe: error: {bare} does not tell how it was drawn: it carries nothing of sdpipe, "
        "A1111 or InvokeAI.\n"
        f"sdpipe: error: {tmp_path}/none.png cannot be read: No such file or directory.\n"
    )
    status, out, _ = tell(good, bare, "--json")
    assert status == 1
    assert [told["path"] for told in json.loads(out)] == [str(good)]


def test_a1111(tmp_path):
    found = info(foreign_picture(tmp_path / "x.png", parameters=A1111))
    assert found.record.settings() == Settings(
        prompt="girl with an artist's beret, (sitting:1.2)\non a chair",
        negative_prompt="ugly, [blurry]",
        steps=20,
        g=7,
        seed=965400086,
        width=512,
        height=768,
        scheduler="euler_a",
        clip_skip=2,
    )
    assert found.record.model == {"name": "realistic", "hash": "45dee52b"}
    assert found.record.others["Lora hashes"] == "detail: 7c0b, x: y"
    assert found.record.remarks == (
        "its noise was drawn by a GPU; from the same seed a CPU draws another.",
        "left out: Lora hashes.",
    )
    assert "written by       A1111's web UI, or a program that writes like it\n" in str(found)
    assert "clip_skip        2\n" in str(found)


def test_what_a1111_reads_otherwise_is_told(tmp_path):
    text = A1111.replace("girl", "<lora:detail:0.8> girl AND (boy")
    record = info(foreign_picture(tmp_path / "x.png", parameters=text)).record
    assert record.remarks[1] == (
        "<lora:...> and AND, which mean something there, are read as text here."
    )
    with pytest.raises(RecordError, match=r"^prompt: the bracket \( in line 1, column 28 is never"):
        record.settings()


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ("Sampler: DPM++ 2M Karras", ("dpm++", True, None)),
        ("Sampler: DPM++ 2M, Schedule type: Karras", ("dpm++", True, None)),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", ("dpm++", True, None)),
        ("Sampler: DPM++ 2M, Schedule type: Uniform", ("dpm++", False, None)),
        ("Sampler: LMS, Schedule type: Karras", ("lms", True, 4)),
        ("Sampler: LMS, Schedule type: Automatic", ("lms", False, 4)),
        ("Sampler: PLMS", ("pndm", False, None)),
        ("Sampler: Euler a, Schedule type: Karras", ("euler_a", False, None)),
        ("Sampler: DPM++ SDE Karras", ("dpm++", True, None)),
        ("Sampler: Restart", (None, False, None)),
        ("User: x", (None, False, None)),
    ],
)
def test_samplers_of_a1111(sampler, expected):
    record = a1111.read(f"cat\nSteps: 20, Seed: 1, Size: 64x64, RNG: CPU, {sampler}")
    settings = record.settings()
    assert (settings.scheduler, settings.karras, settings.lms_order) == expected
    told = {"DPM++ SDE", "Restart", "Euler a, Schedule type: Karras"}
    assert bool(record.remarks) == any(name in sampler for name in told)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_our_own_text_is_read_back_where_our_json_was_lost(scheduler):
    given = {"seed": 7, "steps": 30, "dim": 64, "g": 7.5, "negative_prompt": "dark, grey"}
    order = {"lms_order": 4} if scheduler == "lms" else {}
    settings = Settings(prompt='a "b", c: d\ne', scheduler=scheduler, **given, **order)
    record = a1111.read(png.parameters(settings, {"name": "emoji", "sha256": "ab" * 32}))
    assert record.settings() == settings
    assert record.remarks == ()
    assert record.versions["program"].startswith("sdpipe ")


@pytest.mark.parametrize("text", ["", "just a prompt", "a cat\nSteps: 20, Seed: 3"])
def test_a_text_with_fewer_than_three_values_is_a_prompt(text):
    assert a1111.read(text).values["prompt"] == text


def test_invokeai(tmp_path):
    found = info(foreign_picture(tmp_path / "x.png", invokeai_metadata=INVOKEAI))
    assert found.record.settings() == Settings(
        prompt="cabin",
        steps=30,
        g=7.5,
        seed=27,
        width=512,
        height=640,
        scheduler="dpm++",
        karras=True,
    )
    assert found.record.model == {"name": "sd15", "hash": "blake3:ab"}
    assert found.record.versions == {"program": "5.4.2"}
    assert found.record.remarks == ("left out: loras, vae.",)
    assert "written by       InvokeAI\n" in str(found)


def test_the_weights_of_invokeai_are_text_and_its_clip_skip_counts_from_0(tmp_path):
    text = r"a (cat)1.3 [on a mat, :) BREAK \o/"
    told = {**INVOKEAI, "positive_prompt": text, "negative_prompt": "dog)", "clip_skip": 1}
    record = info(foreign_picture(tmp_path / "x.png", invokeai_metadata=told)).record
    settings = record.settings()
    assert parse(settings.prompt).at(0, 1) == (((text, 1.0),),)
    assert parse(settings.negative_prompt).at(0, 1) == ((("dog)", 1.0),),)
    assert settings.clip_skip == 2
    assert "signs that weight words there, as in word++, are read as text here." in record.remarks


def test_clip_skip_is_told_as_a1111_tells_it():
    told = own(clip_skip=2)["parameters"]
    assert "Model: emoji, Clip skip: 2, RNG: CPU" in told
    assert a1111.read(told).settings().clip_skip == 2
    assert "Clip skip" not in own()["parameters"]
    refused = a1111.read(told.replace("skip: 2", "skip: two"))
    with pytest.raises(RecordError, match="clip_skip='two' is not a whole number"):
        refused.settings()


@pytest.mark.parametrize("told", [{"sd_metadata": SD_METADATA}, {"Dream": DREAM}])
def test_invokeai_in_its_youth(tmp_path, told):
    record = read_record(foreign_picture(tmp_path / "x.png", **told))
    settings = record.settings()
    assert settings.prompt in ("a lonely robot reading", "a lonely robot")
    assert (settings.negative_prompt, settings.seed) == ("blurry, text", 1618033988)
    assert (settings.steps, settings.g, settings.scheduler) == (50, 7.5, "lms")
    assert (settings.width, settings.height, settings.karras) == (512, 512, False)
    assert (record.source, record.remarks) == ("InvokeAI", ())


def test_a_dream_without_quotes():
    assert invokeai.read_dream("a cat -s20 -S 3").values == {
        "prompt": "a cat",
        "negative_prompt": "",
        "steps": 20,
        "seed": 3,
    }


def test_our_own_goes_before_what_others_read(tmp_path):
    path = foreign_picture(tmp_path / "x.png", parameters=A1111, sdpipe=own()["sdpipe"])
    assert read_record(path).source == "sdpipe"


NONSENSE = {
    "settings is a list, not an object": change("settings", []),
    "model is 'x', not an object": change("model", "x"),
    "steps is a list, not a number or a text": change("settings", "steps", [1]),
    "seed=10000000": change("settings", "seed", 10**300),
    "scheduler has 5000 characters": change("settings", "scheduler", "x" * 5000),
    f"prompt has 1000000 characters; up to {MAX_PROMPT}": change("settings", "prompt", "x" * 10**6),
    "n=0 of its batch is not from 1 to 100000": change("batch", "n", 0),
    "n=100001 of its batch": change("batch", "n", 100_001),
    "n=True of its batch": change("batch", "n", True),
    "index=4 of its batch is not from 0 to 3": change("batch", "index", 4),
    "name of model is 3, not a text": change("model", "name", 3),
    "torch of versions is an object, not a text": change("versions", "torch", {}),
    "an entry that is called 'a\\x1b[31m'": change("settings", "a\x1b[31m", 1),
    "settings has 1000 entries": change("settings", {f"a{i}": 1 for i in range(1000)}),
    "device is a list": change("device", []),
}


@pytest.mark.parametrize("message", NONSENSE)
def test_nonsense_is_told_in_a_sentence(tell, tmp_path, message):
    status, out, err = tell(mine(tmp_path / "x.png", NONSENSE[message]))
    assert (status, out) == (1, "")
    assert err.startswith(f"sdpipe: error: {tmp_path}/x.png has metadata that makes no sense: ")
    assert message in err
    assert len(err) < 300
    assert err.count("\n") == 1


def test_what_steers_a_terminal_is_shown_as_it_is_written(tell, tmp_path):
    def colour(told):
        told["settings"]["prompt"] = "a\x1b[31m\u202eb\rc\n👨‍👩‍👧"
        told["model"]["name"] = "\x9b2J\nemoji"

    _, out, _ = tell(mine(tmp_path / "x.png", colour))
    assert "prompt      a\\x1b[31m\\u202eb\\rc\n              👨‍👩‍👧\n" in out
    assert "model       \\x9b2J emoji, sha256" in out
    assert plain("tab\there") == "tab\\there"


def test_settings_of_a_version_to_come_are_shown_and_not_drawn(tmp_path):
    found = info(mine(tmp_path / "x.png", change("settings", "hologram", "yes")))
    assert "hologram    yes\n" in str(found)
    with pytest.raises(RecordError, match="unknown setting 'hologram'"):
        found.record.settings()


def test_a_line_without_end_is_refused_and_a_long_one_costs_no_time():
    with pytest.raises(RecordError, match="a line of 1000000 characters"):
        a1111.read("x" * 1_000_000)
    assert a1111.read("ab " * (MAX_PROMPT // 3)).values["prompt"].startswith("ab ab")
    with pytest.raises(RecordError, match="a command of"):
        invokeai.read_dream("-s" * MAX_PROMPT + "x")


def test_values_are_brief_in_messages():
    assert brief("x" * 10_000) == f"'{'x' * 56}..."
    assert brief({}) == "an object"
    assert brief([1]) == "a list"
    assert brief(1.5) == "1.5"


def test_a_picture_may_be_too_large_to_be_decoded(tmp_path):
    Image.new("L", (9500, 9500)).save(path := tmp_path / "x.png", pnginfo=text_of(own()))
    assert "has 9500 x 9500 pixels" in str(info(path))


def text_of(notes):
    told = PngInfo()
    told.add_text("sdpipe", json.dumps(notes["sdpipe"]))
    return told


def test_no_torch_is_loaded(tmp_path):
    path = png.save(picture(), tmp_path / "x.png", own())
    code = (
        "import sys; from sdpipe.cli import main; status = main(['info', sys.argv[1]]);"
        "print(status, {'torch', 'diffusers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, env=os.environ
    )
    assert done.stdout.endswith("0 set()\n"), done


def test_wrong_usage(tell):
    assert tell()[0] == 2
    status, _, err = tell("--nonsense", "x.png")
    assert status == 2
    assert "--nonsense" in err


def test_a_record_is_checked_whoever_makes_it():
    with pytest.raises(SdpipeError, match="settings has an entry that is called"):
        Record(source="sdpipe", values={"a\nb": 1})
