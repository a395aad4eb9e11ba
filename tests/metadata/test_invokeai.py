"""What the versions of InvokeAI wrote."""

import pytest
from support.errors import raises
from support.metadata import INVOKEAI, foreign_image

from sdpipe.metadata import invokeai
from sdpipe.metadata.read import read_record
from sdpipe.metadata.record import RecordError
from sdpipe.prompt.syntax import MAX_PROMPT, parse
from sdpipe.settings import Settings

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


def test_since_version_3():
    record = invokeai.read(INVOKEAI)
    assert record.settings() == Settings(
        prompt="cabin",
        steps=30,
        g=7.5,
        seed=27,
        width=512,
        height=640,
        scheduler="dpm++",
        karras=True,
    )
    assert record.model == {"name": "sd15", "hash": "blake3:ab"}
    assert record.versions == {"program": "5.4.2"}
    assert record.notes == ("left out: loras, vae.",)


def test_weights_in_a_prompt_are_text_and_clip_skip_counts_from_0():
    text = r"a (cat)1.3 [on a mat, :) BREAK \o/"
    written = {**INVOKEAI, "positive_prompt": text, "negative_prompt": "dog)", "clip_skip": 1}
    record = invokeai.read(written)
    settings = record.settings()
    assert parse(settings.prompt).at(0, 1) == (((text, 1.0),),)
    assert parse(settings.negative_prompt).at(0, 1) == ((("dog)", 1.0),),)
    assert settings.clip_skip == 2
    assert any(note.startswith("signs that weight words") for note in record.notes)


@pytest.mark.parametrize("texts", [{"sd_metadata": SD_METADATA}, {"Dream": DREAM}])
def test_versions_1_and_2(tmp_path, texts):
    record = read_record(foreign_image(tmp_path / "x.png", **texts))
    settings = record.settings()
    assert settings.prompt in ("a lonely robot reading", "a lonely robot")
    assert (settings.negative_prompt, settings.seed) == ("blurry, text", 1618033988)
    assert (settings.steps, settings.g, settings.scheduler) == (50, 7.5, "lms")
    assert (settings.width, settings.height, settings.karras) == (512, 512, False)
    assert (record.source, settings.rng) == ("InvokeAI", "cuda")
    [note] = record.notes
    assert note.startswith("its noise is taken to be that of an NVIDIA GPU")


@pytest.mark.parametrize(
    ("device", "rng", "noted"), [("cpu", "cpu", 0), ("cuda", "cuda", 0), ("mps", "cpu", 1)]
)
def test_since_version_3_it_says_who_drew_the_noise(device, rng, noted):
    written = {**INVOKEAI, "rand_device": device, "loras": [], "vae": None}
    record = invokeai.read(written)
    assert (record.settings().rng, len(record.notes)) == (rng, noted)
    record = invokeai.read({**written, "scheduler": "euler_a"})
    assert "seed ^ 0xFFFFFFFF" in record.notes[-1]


def test_variations_and_seamless():
    """`InvokeAI` mixes the noise of the two seeds as a whole, as we do."""
    image = {**SD_METADATA["image"], "variations": [[1614299449, 0.2]], "seamless": True}
    settings = invokeai.read_version_2({**SD_METADATA, "image": image}).settings()
    assert (settings.variation_seed, settings.variation_strength) == (1614299449, 0.2)
    assert settings.seamless == "xy"
    assert invokeai.read_dream(f"{DREAM} -V 1614299449,0.2").settings().variation_seed == 1614299449
    assert invokeai.read_dream(f"{DREAM} -V 3:0.2").settings().variation_seed == 3
    image["variations"] = [{"seed": 3, "weight": 0.2}]
    assert invokeai.read_version_2({"image": image}).settings().variation_seed == 3
    assert invokeai.read({**INVOKEAI, "seamless_x": True}).settings().seamless == "x"
    both = invokeai.read({**INVOKEAI, "seamless_x": True, "seamless_y": True})
    assert (both.settings().seamless, both.notes) == ("xy", ("left out: loras, vae.",))
    assert invokeai.read({**INVOKEAI, "seamless_y": False}).settings().seamless is None


def test_everything_that_is_not_carried_over_is_said():
    switches = "-I in.png -f 0.4 -V 1:0.2,2:0.1 -G 0.9 -U 4 0.75 -n3 -ft codeformer --perlin 0.1"
    record = invokeai.read_dream(f"{DREAM} {switches} --hires_fix")
    assert record.settings() == invokeai.read_dream(DREAM).settings()
    assert record.extra == {
        "init_img": "in.png",
        "strength": 0.4,
        "variations": "2 entries",
        "facetool_strength": 0.9,
        "upscale": "4 0.75",
        "facetool": "codeformer",
        "perlin": 0.1,
        "hires_fix": True,
    }
    assert record.notes[-1] == f"left out: {', '.join(record.extra)}."
    image = {**SD_METADATA["image"], "variations": [[1, 0.2], [2, 0.1]], "perlin": 0.1}
    record = invokeai.read_version_2({**SD_METADATA, "image": image})
    assert record.notes[-1] == "left out: variations, perlin."


@pytest.mark.parametrize(
    ("sampler", "steps", "version", "karras"),
    [
        ("k_euler", 28, "2.2.5", True),
        ("k_euler", 28, "v2.1.3", True),
        ("k_euler", 29, "2.2.5", False),
        ("k_euler", 28, "2.3.5", False),
        ("ddim", 28, "2.2.5", False),
    ],
)
def test_few_steps_had_karras_noise_levels(sampler, steps, version, karras):
    """In 2.1 and 2.2, as ldm/models/diffusion/ksampler.py had it there: `--karras_max` is 29."""
    image = {**SD_METADATA["image"], "sampler": sampler, "steps": steps}
    record = invokeai.read_version_2({**SD_METADATA, "image": image, "app_version": version})
    assert record.settings().karras == karras


def test_a_command_without_quotes():
    quoting = 'a "big" cat - or two -s 50 -S 3 -A ddim'
    assert invokeai.read_dream(quoting).values["prompt"] == 'a "big" cat - or two'
    assert invokeai.read_dream("a cat -s20 -S 3").values == {
        "prompt": "a cat",
        "negative_prompt": "",
        "steps": 20,
        "seed": 3,
        "rng": "cuda",
    }


def test_blended_prompts_and_other_images_are_noted():
    def notes(**changes):
        image = {**SD_METADATA["image"], **changes}
        return " ".join(invokeai.read_version_2({**SD_METADATA, "image": image}).notes)

    assert "blended" in notes(prompt=[{"prompt": "a"}, {"prompt": "b"}])
    assert "blended" not in notes()
    assert "from another image" in notes(type="img2img")
    assert "from another image" not in notes(type=None)


def test_metadata_without_its_image_and_a_command_without_end_are_refused():
    with raises(RecordError, value="sd-metadata"):
        invokeai.read_version_2({"image": 3})
    with raises(RecordError, value="a command of"):
        invokeai.read_dream("-s" * MAX_PROMPT + "x")
