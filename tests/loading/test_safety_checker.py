"""The safety checker: tiny, of random weights, in v1-4's folders, and held against diffusers."""

import json
import logging
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from support.errors import raises
from support.hub_server import Hub, Repo
from support.tiny import tiny_model
from transformers import CLIPConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sdpipe import ModelError, Pipeline, UsageError
from sdpipe.io import png
from sdpipe.loading.layout import select_checker
from sdpipe.metadata.read import read_record
from sdpipe.metadata.replay import prepare
from sdpipe.metadata.save import metadata_for

# A model of random weights draws no image, and its latents know no bounds.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew")

OFFICIAL = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}
"""v1-4's preprocessor_config.json."""

FAST = {"seed": 2, "steps": 2, "scheduler": "ddim"}
DRAW = ["--device", "cpu", "--dtype", "float32", "--seed", "2", "--steps", "2"]


def tiny_checker(seed=0):
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 224, "patch_size": 56,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
        for name in ("concept_embeds", "special_care_embeds"):
            torch.nn.init.normal_(getattr(checker, name))
        torch.nn.init.normal_(checker.visual_projection.weight)
    return checker.eval()


def add_checker(folder, *, thresholds, care=2.0, official=OFFICIAL):
    """Puts a safety checker into a model's folder; a threshold of 2 is beyond every cosine."""
    checker = tiny_checker()
    checker.concept_embeds_weights.data = torch.full((17,), 2.0)
    for k, threshold in thresholds.items():
        checker.concept_embeds_weights.data[k] = threshold
    checker.special_care_embeds_weights.data.fill_(care)
    checker.save_pretrained(folder / "safety_checker")
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor/preprocessor_config.json").write_text(json.dumps(official))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model without a checker, one whose checker flags every image, one that flags none."""
    root = tmp_path_factory.mktemp("models")
    bare, flags, passes = (tiny_model(root / name) for name in ("bare", "flags", "passes"))
    add_checker(flags, thresholds={3: -2.0, 11: -2.0})
    add_checker(passes, thresholds={})
    return {"bare": bare, "flags": flags, "passes": passes}


@pytest.fixture(scope="module")
def images():
    """Of all modes of an image's making: square, wide, tall, small, and larger than 224."""
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8))
        for h, w in ((64, 64), (300, 500), (611, 233), (8, 24), (224, 224))
    ]


def of_diffusers(checker, images):
    """What diffusers' own pipeline says of images, as it comes from its VAE: one bool each."""
    pipe = StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=None, scheduler=None,
        safety_checker=checker, feature_extractor=CLIPImageProcessorPil(),
    )  # fmt: skip
    said = []
    for image in images:
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
        said += pipe.run_safety_checker(x, torch.device("cpu"), torch.float32)[1]
    return said


def test_verdicts_are_those_of_diffusers_on_both_sides_of_a_threshold(images, tmp_path):
    """Thresholds between the images' own cosines, so that some are flagged and some are not."""
    from sdpipe.loading.locate import find_checker
    from sdpipe.loading.networks import read_checker
    from sdpipe.loading.safety_checker import SafetyChecker

    checker, prepare = tiny_checker(), CLIPImageProcessorPil()
    pixels = torch.cat([prepare(p, return_tensors="pt").pixel_values for p in images])
    unit = torch.nn.functional.normalize
    with torch.no_grad():
        z = checker.visual_projection(checker.vision_model(pixels).pooler_output)
        cosines = unit(z) @ unit(checker.concept_embeds).T  # (5, 17)
    middle = cosines.sort(0).values[1:3].mean(0)  # two images below, three above
    thresholds = {k: float(middle[k]) for k in (4, 9)}
    flagged = set()
    for care in (2.0, -2.0):
        folder = tmp_path / str(care)
        folder.mkdir()
        add_checker(folder, thresholds=thresholds, care=care)
        place = find_checker("tiny", folder, None, full_precision=True)
        ours = SafetyChecker(
            *read_checker(place, torch.device("cpu"), torch.float32), torch.device("cpu")
        )
        results = [ours.check(image) for image in images]
        theirs = StableDiffusionSafetyChecker.from_pretrained(folder / "safety_checker").eval()
        logging.getLogger("diffusers").setLevel(logging.ERROR)
        assert [result.flagged for result in results] == of_diffusers(theirs, images)
        # The rule by hand, as the paper that found the concepts gives it.
        over = cosines - theirs.concept_embeds_weights.detach() + (0.01 if care < 0 else 0)
        by_hand = [any(round(float(x), 3) > 0 for x in row) for row in over]
        assert [result.flagged for result in results] == by_hand
        flagged |= {result.flagged for result in results}
    assert flagged == {True, False}


def test_an_image_is_marked_and_nothing_of_it_is_changed(folders):
    plain = Pipeline(folders["bare"], device="cpu", dtype="float32").generate("cat", n=2, **FAST)
    assert plain.safety == []
    for name, flagged in (("flags", True), ("passes", False)):
        pipe = Pipeline(folders[name], device="cpu", dtype="float32")
        result = pipe.generate("cat", n=2, safety="flag", **FAST)
        assert [safety.flagged for safety in result.safety] == [flagged] * 2
        assert [i.tobytes() for i in result.images] == [i.tobytes() for i in plain.images]
        reference = StableDiffusionPipeline.from_pretrained(
            folders[name],
            safety_checker=StableDiffusionSafetyChecker.from_pretrained(
                folders[name] / "safety_checker"
            ),
            feature_extractor=CLIPImageProcessorPil(),
            local_files_only=True,
        )
        reference.set_progress_bar_config(disable=True)
        torch.nn.Module.to(reference.text_encoder, torch.float32)
        theirs = reference("cat", num_inference_steps=2).nsfw_content_detected
        assert theirs == [flagged]


def test_what_prepares_an_image_takes_v1_4s_own_configuration(images, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(OFFICIAL))
    official = CLIPImageProcessorPil.from_pretrained(tmp_path, local_files_only=True)
    mean, std = (torch.tensor(OFFICIAL[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    for image in images:
        # By hand: the shorter side to 224, bicubic, then the middle.
        short = min(image.size)
        width, height = (int(side * 224 / short) for side in image.size)
        large = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - 224) // 2, (height - 224) // 2
        x = np.array(large.crop((left, top, left + 224, top + 224)))
        by_hand = (torch.from_numpy(x).permute(2, 0, 1) / 255 - mean) / std
        (found,) = official(image, return_tensors="pt").pixel_values
        assert found.shape == (3, 224, 224)
        assert torch.allclose(found, by_hand, atol=1e-5)


def test_a_model_without_one_is_refused_before_anything_is_drawn(folders, emoji):
    drawn = []
    pipe = Pipeline(folders["bare"], device="cpu", dtype="float32")
    for without in (pipe, emoji):
        with raises(ModelError, "model=", "no safety checker: there is no safety_checker/config"):
            without.generate("cat", safety="flag", on_step=drawn.append, **FAST)
    assert drawn == []
    with raises(UsageError, "safety='on'", "not known", "off, flag"):
        pipe.generate("cat", safety="on")
    with pytest.raises(UsageError, match="leave it out, or call generate"):
        pipe.stream("cat", safety="flag")


def test_a_damaged_one_is_told(folders, tmp_path):
    for name, spoil, told in (
        ("cut", lambda data: data[:-100], "is damaged or cut short"),
        ("nan", lambda data: data[:-4] + bytes((0, 0, 192, 127)), "has NaN or infinity in it"),
        ("lacking", None, "is incomplete: its weights lack 1 of its tensors, visual_projection.w"),
    ):
        folder = add_checker(tiny_model(tmp_path / name), thresholds={})
        weights = folder / "safety_checker/model.safetensors"
        if spoil is not None:
            weights.write_bytes(spoil(weights.read_bytes()))
        else:
            from safetensors.torch import load_file, save_file

            tensors = load_file(weights)
            del tensors["visual_projection.weight"]
            save_file(tensors, weights, metadata={"format": "pt"})
        pipe = Pipeline(folder, device="cpu", dtype="float32")
        with raises(ModelError, "the safety checker in", told):
            pipe.generate("cat", safety="flag", **FAST)


def test_the_mark_is_told_and_travels(run, folders):
    draw = ["generate", "cat", *DRAW, "--scheduler", "ddim", "--safety", "flag"]
    status, out, err = run(*draw, "--model", folders["flags"], "--out", "x.png")
    assert (status, out) == (0, "x.png\n"), err
    assert "sdpipe: x.png: flagged by the model's safety checker; nothing was changed\n" in err
    told = png.read("x.png")["sdpipe"]
    assert told["safety"] == {"flagged": True}
    assert told["settings"]["safety"] == "flag"
    _, out, _ = run("info", "x.png")
    assert re.search(r"\n  safety +flagged by the model's safety checker; nothing", out)
    _, out, _ = run("info", "x.png", "--json")
    assert json.loads(out)[0]["safety"] == told["safety"]
    status, out, err = run("replay", "x.png", "--model", folders["flags"], "--out", "y.png")
    assert status == 0
    assert "y.png: flagged by" in err
    assert png.read("y.png")["sdpipe"]["safety"] == told["safety"]

    status, out, err = run(*draw, "--model", folders["passes"], "--json")
    assert [entry["safety"] for entry in json.loads(out)] == [{"flagged": False}]
    assert "flagged" not in err
    _, out, _ = run("info", json.loads(out)[0]["path"])
    assert "not flagged by the model's safety checker" in out
    status, out, err = run(*draw[:-2], "--model", folders["passes"], "--json")
    assert "safety" not in json.loads(out)[0]
    assert "safety" not in png.read(json.loads(out)[0]["path"])["sdpipe"]


def test_a_sweep_marks_its_cells_and_knows_the_marks_again(run, folders):
    draw = ["sweep", "cat", *DRAW, "--scheduler", "ddim", "--safety", "flag", "--out", "o"]
    draw += ["--model", folders["flags"], "--json"]
    for there in (False, True):
        status, out, err = run(*draw, "--g", "2,3")
        assert status == 0, err
        cells = json.loads(out)["cells"]
        assert {cell["safety"]["flagged"] for cell in cells} == {True}
        assert {cell["drawn"] for cell in cells} == {not there}
        assert err.count("flagged by the model's safety checker") == (0 if there else 2)
    _, out, _ = run("info", "o/grid.png")
    assert "--safety flag" in out


def test_metadata_from_anybody_is_checked(tmp_path):
    for safety in (
        {"flagged": 1},
        {"concepts": []},
        {"flagged": "yes"},
    ):
        notes = {"parameters": "x", "sdpipe": {"settings": {"prompt": "x"}, "safety": safety}}
        path = png.save(Image.new("RGB", (8, 8)), tmp_path / "x.png", notes)
        record = read_record(path)
        assert record.safety is None
        assert "makes no sense" in record.notes[0]


def test_older_metadata_with_numbers_of_concepts_is_read(tmp_path):
    safety = {"flagged": True, "concepts": [3, 11]}
    notes = {"parameters": "x", "sdpipe": {"settings": {"prompt": "x"}, "safety": safety}}
    path = png.save(Image.new("RGB", (8, 8)), tmp_path / "x.png", notes)
    assert read_record(path).safety == {"flagged": True}


def test_of_the_hub_it_is_fetched_when_asked_for_and_not_before(folders, monkeypatch, tmp_path):
    root = folders["flags"]
    files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    with Hub() as hub:
        hub.repos["someone/tiny"] = Repo(files)
        hub.use(monkeypatch, tmp_path / "cache")
        pipe = Pipeline("someone/tiny", device="cpu", dtype="float32")
        about = ("safety_checker", "feature_extractor")
        assert not [r for r in hub.requests if any(name in r for name in about)]
        plain = pipe.generate("cat", **FAST)
        notes = metadata_for(plain, 0)
        notes["sdpipe"]["settings"]["safety"] = "flag"
        image = png.save(plain.images[0], tmp_path / "x.png", notes)
        job = prepare(image)  # on whose word nothing is fetched
        assert job.settings.safety == "off"
        assert "nothing is downloaded" in job.notes[0]
        assert not [r for r in hub.requests if any(name in r for name in about)]
        assert prepare(image, changes={"safety": "flag"}).settings.safety == "flag"

        assert pipe.generate("cat", safety="flag", **FAST).safety[0].flagged
        fetched = {
            r.partition("/resolve/")[2].partition("/")[2] for r in hub.requests if "/resolve/" in r
        }
        assert {name for name in files if name.startswith(about)} <= fetched
        assert prepare(image).settings.safety == "flag"
        before = len(hub.requests)
        again = Pipeline("someone/tiny", device="cpu", dtype="float32")
        assert again.generate("cat", safety="flag", **FAST).safety[0].flagged
        assert len(hub.requests) == before

        hub.repos["someone/bare"] = Repo({k: v for k, v in files.items() if "safety" not in k})
        bare = Pipeline("someone/bare", device="cpu", dtype="float32")
        with raises(ModelError, "someone/bare", "has no safety_checker/config.json"):
            bare.generate("cat", safety="flag", **FAST)


def test_the_fp16_variant_is_chosen_as_for_other_parts():
    names = {
        "safety_checker/config.json", "feature_extractor/preprocessor_config.json",
        "safety_checker/model.safetensors", "safety_checker/model.fp16.safetensors",
    }  # fmt: skip
    assert select_checker(names).all_weights == ["safety_checker/model.fp16.safetensors"]
    assert select_checker(names, full_precision=True).all_weights == [
        "safety_checker/model.safetensors"
    ]
    assert select_checker(names - {"safety_checker/config.json"}).missing == {
        "safety_checker": "safety_checker/config.json"
    }


@pytest.mark.slow
def test_nobody_sees_a_warning_of_the_libraries(folders, tmp_path):
    """In a process of its own: what is said once is said at an import."""
    arguments = ["generate", "cat", *DRAW, "--scheduler", "ddim", "--safety", "flag"]
    arguments += ["--model", str(folders["passes"]), "--out", "x.png"]
    done = subprocess.run(
        [sys.executable, "-m", "sdpipe", *arguments],
        capture_output=True, text=True, cwd=tmp_path, timeout=900,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "x.png\n"), done.stderr
    lines = [line for line in done.stderr.splitlines() if "the latents grew" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("sdpipe: 1 ")
