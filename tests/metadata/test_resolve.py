"""What an image names comes from this machine or from a person, and from nowhere else."""

import pytest
import torch
from safetensors.torch import save_file
from support.errors import raises
from support.hub_server import Hub
from support.metadata import change, our_image, our_metadata
from support.tiny import tiny_model

from sdpipe import Pipeline
from sdpipe.errors import ModelError, SdpipeError, UsageError
from sdpipe.loading.locate import is_cached
from sdpipe.metadata.replay import prepare
from sdpipe.runtime.device import pick_dtype


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def hub(monkeypatch, tmp_path, model):
    """A hub with one model, and an empty cache."""
    with Hub() as hub:
        hub.add("owner/name", model)
        hub.use(monkeypatch, tmp_path / "cache")
        yield hub


def test_a_model_of_the_hub_is_loaded_if_it_is_cached(hub, tmp_path):
    """Nothing is downloaded because an image names it; a person who names it has it downloaded."""
    hub_id = f"owner/name@{hub.repos['owner/name'].commit}"

    def from_hub(written):
        written["model"].update(name="owner/name@main", revision=hub_id[-40:], sha256=None)

    path = our_image(tmp_path / "x.png", from_hub)
    with raises(ModelError, value=path, rule="nothing is downloaded", remedy=f"--model {hub_id}"):
        prepare(path)
    assert hub.requests == []
    assert prepare(path, model="emoji").model == "emoji"
    Pipeline(hub_id, device="cpu", dtype="float32")
    assert prepare(path).model == hub_id


def test_a_vae_of_the_hub_is_loaded_if_it_is_cached(hub, tmp_path):
    name = f"owner/name@{hub.repos['owner/name'].commit}"
    path = our_image(tmp_path / "x.png", change("model", "parts", {"vae": name}))
    with raises(ModelError, value=path, rule="nothing is downloaded", remedy=f"--vae {name}"):
        prepare(path)
    assert hub.requests == []
    Pipeline("emoji", device="cpu", dtype="float32", vae=name)
    job = prepare(path)
    assert (job.vae, job.notes) == (name, ())


def test_a_model_that_is_not_cached_is_not_downloaded():
    assert not is_cached("no-such-owner/no-such-name@" + "c" * 40)


@pytest.mark.parametrize("name", ["/home/x/model", "../../x", "owner/name", "emoji/x@main"])
def test_a_path_is_not_opened(tmp_path, name):
    path = our_image(tmp_path / "x.png", change("model", "name", name))
    with raises(ModelError, value=path, rule=repr(name), remedy="--model"):
        prepare(path)
    vae = {"vae": f"mse.safetensors@sha256:{'c' * 64}"}
    path = our_image(tmp_path / "y.png", change("model", "parts", vae))
    with raises(ModelError, value=path, rule="'mse.safetensors'", remedy="--vae"):
        prepare(path)


def test_a_part_without_a_name_is_noted(tmp_path):
    path = our_image(tmp_path / "x.png", change("model", "parts", {"vae": "owner/vae"}))
    (note,) = prepare(path).notes
    assert "vae ('owner/vae')" in note


def test_a_device_or_type_that_is_not_here_is_noted(tmp_path):
    elsewhere = (change("device", "cuda:97"), change("dtype", "float8"))
    path = our_image(tmp_path / "x.png", *elsewhere)
    job = prepare(path)
    assert (job.device, job.dtype) == ("auto", "auto")
    dtype, device = job.notes
    assert "'float8'" in dtype
    assert "'cuda:97'" in device
    job = prepare(path, device="cpu", dtype="float32")
    assert (job.device, job.dtype, job.notes) == ("cpu", "float32", ())
    absurd = our_image(tmp_path / "y.png", change("device", "cuda:99999999999999999999"))
    assert prepare(absurd).device == "auto"
    job = prepare(our_image(tmp_path / "z.png", change("speed", "warp")))
    assert (job.speed, "'warp'" in job.notes[0]) == ("default", True)


def test_float16_is_not_drawn_on_a_cpu_unless_asked_for(tmp_path):
    path = our_image(tmp_path / "x.png", change("device", "mps"), change("dtype", "float16"))
    job = prepare(path, device="cpu")
    assert (job.device, job.dtype) == ("cpu", "auto")
    assert len(job.notes) == 1
    assert prepare(path, device="cpu", dtype="float16").dtype == "float16"
    on_cpu = our_image(tmp_path / "y.png", change("dtype", "float16"))
    assert prepare(on_cpu).dtype == "float16"


def test_what_no_unet_predicts_is_refused(tmp_path):
    path = our_image(tmp_path / "x.png", change("model", "prediction", "the weather"))
    with raises(SdpipeError, value=path, rule="'the weather'"):
        prepare(path)


def test_files_that_were_added_come_from_a_person(tmp_path):
    import hashlib

    import torch

    save_file({"x": torch.ones(1)}, mine := tmp_path / "mine.safetensors")
    save_file({"x": torch.ones(2)}, other := tmp_path / "other.safetensors")
    sha256 = hashlib.sha256(mine.read_bytes()).hexdigest()
    lora = {"name": "pencil.safetensors", "sha256": sha256, "weight": 0.5}
    path = our_image(tmp_path / "x.png", change("model", "loras", [lora]))
    assert prepare(path, loras=[str(mine)]).loras == ((str(mine), 0.5),)
    for given in ([], [str(other)]):
        with raises(UsageError, value=path, rule="'pencil.safetensors'", remedy=sha256[:12]):
            prepare(path, loras=given)
    with raises(UsageError, value=path, rule="without", remedy=f"leave --lora {other} out"):
        prepare(path, loras=[str(mine), str(other)])


def test_images_that_it_was_drawn_from_come_from_a_person(tmp_path):
    from PIL import Image

    from sdpipe.io import png
    from sdpipe.io.pixels import pixels_sha256

    first, other = Image.new("RGB", (128, 128), "red"), Image.new("RGB", (128, 128), "blue")
    identity = {"name": "in.png", "sha256": pixels_sha256(first)}
    path = png.save(other, tmp_path / "x.png", our_metadata(init_image=identity))
    assert prepare(path, init_image=first).init_image.sha256 == identity["sha256"]
    with raises(UsageError, value=str(path), rule="'in.png'", remedy="--init-image FILE"):
        prepare(path)
    with raises(UsageError, rule=identity["sha256"][:12]):
        prepare(path, init_image=other)
    with raises(UsageError, value=str(path), remedy="leave --mask-image out"):
        prepare(path, init_image=first, mask_image=first)


def test_no_compiler_and_no_imitated_type_on_an_image_s_word(tmp_path):
    job = prepare(our_image(tmp_path / "x.png", change("speed", "compiled")))
    assert (job.speed, "none is compiled" in job.notes[0]) == ("default", True)
    path = our_image(tmp_path / "y.png", change("dtype", "bfloat16"))
    is_native = pick_dtype("auto", torch.device("cpu")) == torch.bfloat16
    job = prepare(path, device="cpu")
    assert job.dtype == ("bfloat16" if is_native else "auto")
    assert len(job.notes) == (not is_native)
    assert prepare(path, device="cpu", dtype="bfloat16").notes == ()


@pytest.mark.parametrize(
    ("values", "rule", "remedy"),
    [
        ({"width": 1032, "height": 1024}, "1048576 pixels", "--set width=1032"),
        ({"width": 256, "height": 256, "steps": 801}, "52428800 pixels times", "--set steps=801"),
        (
            {"width": 256, "height": 256, "steps": 401, "scheduler": "heun", "lms_order": None},
            "52428800",
            "--set steps=401",
        ),
    ],
)
def test_so_much_is_drawn_on_an_image_s_word_as_fits_its_model(tmp_path, values, rule, remedy):
    path = our_image(tmp_path / "x.png", *(change("settings", *item) for item in values.items()))
    with raises(SdpipeError, value=path, rule=rule, remedy=remedy):
        prepare(path)
    name, value = remedy.removeprefix("--set ").split("=")
    changes = {name: int(value)}
    assert prepare(path, changes=changes).settings.steps
    fewer = {name: value - 8 if name == "width" else value for name, value in values.items()}
    if "steps" in fewer:
        fewer["steps"] -= 1
    path = our_image(tmp_path / "y.png", *(change("settings", *item) for item in fewer.items()))
    assert prepare(path).changed is False


def test_a_large_batch_is_not_drawn_on_an_image_s_word(tmp_path):
    job = prepare(our_image(tmp_path / "x.png", change("batch", "n", 1000)))
    assert (job.n, job.index, "in a batch of 1000" in job.notes[0]) == (1, 0, True)
