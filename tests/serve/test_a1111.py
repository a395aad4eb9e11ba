"""A1111's interface, asked by `webuiapi` as it is, and as SillyTavern and open-webui ask it."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import torch
import webuiapi
from PIL import Image
from safetensors.torch import save_file
from support.a1111 import SMALL, asked, decode
from support.metadata import A1111, foreign_image
from support.serving import gated, serving, until

from sdpipe import Pipeline
from sdpipe.metadata.read import read_record
from sdpipe.metadata.verify import verify
from sdpipe.serve import Server
from sdpipe.serve.a1111_options import list_embeddings, list_loras

# Two steps are enough here, and the model's weights are random.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew")

INFO = {
    *("prompt", "all_prompts", "negative_prompt", "all_negative_prompts", "seed", "all_seeds"),
    *("subseed", "all_subseeds", "subseed_strength", "width", "height", "sampler_name"),
    *("cfg_scale", "steps", "batch_size", "restore_faces", "face_restoration_model"),
    *("sd_model_name", "sd_model_hash", "sd_vae_name", "sd_vae_hash", "seed_resize_from_w"),
    *("seed_resize_from_h", "denoising_strength", "extra_generation_params"),
    *("index_of_first_image", "infotexts", "styles", "job_timestamp", "clip_skip"),
    *("is_using_inpainting_conditioning", "version"),
}
"""The keys of `info` that A1111 1.10 writes."""


@pytest.fixture(scope="module")
def url(tiny):
    with serving(Server(tiny)) as url:
        yield url


@pytest.fixture(scope="module")
def api(url):
    return client_of(url)


@pytest.fixture
def gate(tiny):
    """A server whose U-Net waits for the test: its address, and the gate."""
    pipe, gate = gated(tiny)
    with serving(Server(pipe)) as url, ThreadPoolExecutor(4) as pool:
        gate.ask = lambda name="txt2img", **fields: pool.submit(
            requests.post, f"{url}/sdapi/v1/{name}", json={**SMALL, **fields}
        )
        yield url, gate
        gate.let_through(1000)


def client_of(url, **options):
    return webuiapi.WebUIApi(port=int(url.rpartition(":")[2]), steps=2, **options)


def post(url, name, **values):
    return requests.post(f"{url}/sdapi/v1/{name}", json=values)


def progress(url):
    return requests.get(f"{url}/sdapi/v1/progress").json()


def half_mask(size=64, mode="L", back=0):
    """White on the left half."""
    mask = Image.new(mode, (size, size), back)
    mask.paste("white", (0, 0, size // 2, size))
    return mask


def test_txt2img(api, tiny, tmp_path):
    answer = api.txt2img(**SMALL, seed=7, cfg_scale=3, sampler_name="DPM++ 2M Karras", n_iter=2)
    info, sent = answer.info, [base64.b64decode(text) for text in answer.json["images"]]
    assert info.keys() == INFO
    assert info["all_seeds"] == [7, 8]
    assert info["seed"] == 7
    assert len(sent) == 2
    assert info["sampler_name"] == "DPM++ 2M"
    assert info["all_prompts"] == ["red apple"] * 2
    assert answer.parameters["prompt"] == "red apple"
    for k, file in enumerate(sent):
        path = tmp_path / f"{k}.png"
        path.write_bytes(file)
        assert Image.open(path).text["parameters"] == info["infotexts"][k]
        again = tiny.generate(
            "red apple", seed=7, n=2, dim=64, steps=2, g=3, scheduler="dpm++", karras=True
        )
        now = again.records[k]["sdpipe"]
        assert str(verify(path, read_record(path), again.images[k], now)) == "identical"


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"cfg_scale": "high"}, 422, "cfg_scale"),
        ({"width": 63}, 422, "width=63"),
        ({"steps": 1000}, 422, "steps"),
        ({"n_iter": 65}, 422, "n_iter"),
        ({"enable_hr": True, "denoising_strength": 2}, 422, "denoising_strength"),
        ({"sampler_name": "DDIM", "scheduler": "Karras"}, 422, "sampler_name"),
        ({"new_field": 1}, 422, "'new_field'"),
        ({"init_image": "/etc/hostname"}, 422, "init_image"),
        ({"override_settings": {"sd_model_checkpoint": "v1-5"}}, 404, "model 'v1-5'"),
    ],
)
def test_refusals_over_http(url, fields, status, named):
    answer = post(url, "txt2img", **{**SMALL, **fields})
    assert answer.status_code == status
    assert answer.json()["detail"].startswith(named)


@pytest.mark.parametrize("value", ["NaN", "1e999", r'"\ud800"', "[" * 10_000])
def test_what_no_answer_could_repeat_is_no_json(url, value):
    headers = {"content-type": "application/json"}
    body = f'{{"prompt": "x", "script_args": {value}}}'
    answer = requests.post(f"{url}/sdapi/v1/txt2img", data=body, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["error"] == "invalid_json"


def test_no_interface_takes_the_path_of_an_image(url, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    body = {"prompt": "x", "steps": 2, "init_image": str(tmp_path / "x.png")}
    for path in ("sdapi/v1/txt2img", "v1/images/generations"):
        answer = requests.post(f"{url}/{path}", json=body)
        assert answer.status_code == 422
        assert "Base64" in answer.text


def test_img2img_redraws_what_is_white(api):
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    left, right = (0, 0, 32, 64), (32, 0, 64, 64)
    stay = {"prompt": "x", "width": 64, "height": 64, "seed": 1, "denoising_strength": 1}
    plain = api.img2img(images=[image], mask_image=half_mask(), **stay)
    assert plain.info.keys() == INFO
    assert plain.info["denoising_strength"] == 1
    assert plain.image.crop(right).tobytes() == image.crop(right).tobytes()
    assert plain.image.crop(left).tobytes() != image.crop(left).tobytes()
    inverted = api.img2img(images=[image], mask_image=half_mask(), inpainting_mask_invert=1, **stay)
    assert inverted.image.crop(left).tobytes() == image.crop(left).tobytes()
    painted = half_mask(mode="RGBA", back=(255, 255, 255, 0))  # by its transparency
    same = api.img2img(images=[image], mask_image=painted, **stay)
    assert same.image.tobytes() == plain.image.tobytes()
    assert "init_images" in same.parameters
    assert same.parameters["init_images"] is None


def test_an_image_drawn_from_another_is_identical_again(api, tiny, tmp_path):
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    answer = api.img2img(images=[image], mask_image=half_mask(), **SMALL, seed=5)
    path = tmp_path / "x.png"
    path.write_bytes(base64.b64decode(answer.json["images"][0]))
    again = tiny.replay(path, init_image=image, mask_image=half_mask())
    now = again.records[0]["sdpipe"]
    assert str(verify(path, read_record(path), again.images[0], now)) == "identical"


def test_images_can_stay_away(url):
    answer = post(url, "txt2img", **SMALL, send_images=False).json()
    assert answer["images"] == []
    assert len(json.loads(answer["info"])["infotexts"]) == 1
    bare = post(url, "txt2img", **SMALL, metadata=False).json()
    assert "parameters" not in decode(bare["images"][0]).text


def test_png_info(api, url, tmp_path):
    drawn = api.txt2img(**SMALL, seed=4, negative_prompt="pear").image
    told = api.png_info(drawn)
    assert told.info == drawn.text["parameters"] == told.json["info"]
    assert json.loads(told.json["items"]["sdpipe"])["settings"]["seed"] == 4
    expected = {"Prompt": "red apple", "Negative prompt": "pear", "Seed": "4", "Steps": "2"}
    assert told.parameters.items() >= {**expected, "Size-1": "64", "CFG scale": "7"}.items()
    foreign = Image.open(foreign_image(tmp_path / "f.png", parameters=A1111))
    assert api.png_info(foreign).info == A1111
    bare = api.png_info(Image.new("RGB", (8, 8)))
    assert (bare.json["info"], bare.parameters) == ("", {})
    assert post(url, "png-info", image="AAAA").status_code == 422
    assert post(url, "png-info").status_code == 422


def test_what_there_is(api, url, folder):
    [model] = api.get_sd_models()
    assert model["title"] == f"{folder.name} [{model['hash']}]"
    assert model["sha256"].startswith(model["hash"])
    assert model["filename"] == folder.name
    names = {sampler["name"] for sampler in api.get_samplers()}
    assert {"Euler a", "DPM++ 2M", "DDIM", "LMS", "UniPC"} <= names
    for name in names:
        assert "scheduler" in asked(sampler_name=name)
    for schedule in api.get_schedulers():
        asked(scheduler=schedule["name"], sampler_name="Euler")
        asked(scheduler=schedule["label"], sampler_name="Euler")
    for upscaler in api.get_upscalers():
        asked(enable_hr=True, hr_upscaler=upscaler["name"])
    assert api.get_latent_upscale_modes() == api.get_sd_vae() == api.get_loras() == []
    assert api.get_prompt_styles() == api.get_hypernetworks() == api.get_face_restorers() == []
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.refresh_checkpoints() is None
    for name in ("sd-models", "options", "loras", "script-info", "cmd-flags"):
        assert str(folder.parent) not in requests.get(f"{url}/sdapi/v1/{name}").text


def test_what_a_model_was_loaded_with(tmp_path):
    word = tmp_path / "my-cat.safetensors"
    save_file({"emb_params": torch.zeros(2, 256)}, word)
    pipe = Pipeline("emoji", device="cpu", loras=["emoji-lcm"], embeddings=[word])
    [lora] = list_loras(pipe)
    assert (lora["name"], lora["path"]) == ("emoji-lcm", "emoji-lcm.safetensors")
    told = list_embeddings(pipe)["loaded"]["my-cat"]
    assert (told["vectors"], told["shape"]) == (2, 256)


def test_options(tiny, emoji):
    with serving(Server([tiny, emoji])) as url:
        api = client_of(url)
        options = api.get_options()
        assert api.set_options(options) is None
        first, second = (model["title"] for model in api.get_sd_models())
        assert options["sd_model_checkpoint"] == api.util_get_current_model() == first
        api.util_set_model(second)
        assert api.util_get_current_model() == second
        assert api.txt2img(**SMALL).info["sd_model_name"] == "emoji"
        override = {"sd_model_checkpoint": first.partition(" [")[0]}
        other = api.txt2img(**SMALL, override_settings=override)
        assert other.info["sd_model_name"] != "emoji"
        assert api.util_get_current_model() == second
        assert api.set_options({"CLIP_stop_at_last_layers": 2, "grid_save": True}) is None
        assert api.txt2img(**SMALL).info["clip_skip"] == 2
        wrong = {
            "randn_source": "GPU",
            "CLIP_stop_at_last_layers": 0,
            "sd_vae": "other",
            "unheard_of": 1,
        }
        for name, value in wrong.items():
            answer = post(url, "options", sd_model_checkpoint=first, **{name: value})
            assert answer.status_code == 422
            assert answer.json()["detail"].startswith(name)
        assert post(url, "options", sd_model_checkpoint="v1-5").status_code == 404
        assert api.util_get_current_model() == second  # nothing of what was refused counts


def test_progress_and_interrupt(gate):
    url, gate = gate
    api = client_of(url)
    assert api.get_progress()["state"]["job_count"] == 0
    answer = gate.ask(steps=4, sampler_name="Euler", force_task_id="mine", seed=3)
    until(lambda: gate.calls)
    told = progress(url)
    assert told["state"]["job_count"] == 1
    assert told["current_image"] is None
    assert told["state"]["job"] == "mine"
    assert 0 < told["progress"] < 0.1
    gate.let_through()
    until(lambda: progress(url)["state"]["sampling_step"] == 1)
    told = progress(url)
    assert (told["progress"], told["state"]["sampling_steps"]) == (0.25, 4)
    assert decode(told["current_image"]).size == (64, 64)
    until(lambda: len(gate.calls) == 2)
    assert api.interrupt() == {}
    gate.let_through()
    answer = answer.result().json()
    image, info = decode(answer["images"][0]), json.loads(answer["info"])
    assert info.keys() == INFO
    assert info["all_seeds"] == [3]
    assert json.loads(image.text["sdpipe"])["stopped_after"] == 2
    assert info["infotexts"] == [image.text["parameters"]]
    assert len(gate.calls) == 2
    api.util_wait_for_ready()


def test_an_interrupt_names_its_job(gate):
    url, gate = gate
    two = {"n_iter": 2, "batch_invariant": True}  # one after the other
    first = gate.ask(force_task_id="first", sampler_name="Euler", seed=6, **two)
    until(lambda: gate.calls)
    waits = gate.ask(force_task_id="waits")
    until(lambda: progress(url)["state"]["job_count"] == 2)
    assert post(url, "txt2img", **SMALL, force_task_id="waits").status_code == 422
    assert post(url, "interrupt", task_id="other").status_code == 404
    assert post(url, "skip?task_id=waits").json() == {}
    unseen = waits.result().json()
    assert unseen["images"] == []
    assert json.loads(unseen["info"]).keys() == INFO
    gate.let_through(1)
    until(lambda: len(gate.calls) == 2)
    assert post(url, "interrupt", task_id="first").json() == {}  # at its last step: it is finished
    gate.let_through(1)
    answer = first.result().json()
    [image] = map(decode, answer["images"])
    assert "stopped_after" not in json.loads(image.text["sdpipe"])
    assert json.loads(answer["info"])["all_seeds"] == [6]
    assert len(gate.calls) == 2


def test_an_interrupt_without_a_name_leaves_other_interfaces_alone(gate):
    url, gate = gate
    with ThreadPoolExecutor(1) as pool:
        body = {"prompt": "x", "size": "64x64", "steps": 2}
        other = pool.submit(requests.post, f"{url}/v1/images/generations", json=body)
        until(lambda: gate.calls)
        assert progress(url)["state"]["job_count"] == 0
        assert post(url, "interrupt").json() == {}
        gate.let_through(100)
        assert other.result().status_code == 200


def test_as_sillytavern_asks(tiny):
    """Its server's calls, in their order: src/endpoints/stable-diffusion.js, with Basic auth."""
    with serving(Server(tiny, api_key="secret")) as url:
        session = requests.Session()
        assert session.get(f"{url}/sdapi/v1/options").status_code == 401
        session.auth = ("user", "secret")

        def get(name):
            answer = session.get(f"{url}/sdapi/v1/{name}")
            assert answer.ok
            return answer.json()

        get("options")
        upscalers = [each["name"] for each in [*get("upscalers"), *get("latent-upscale-modes")]]
        assert [each["model_name"] for each in get("sd-vae")] == []
        sampler = next(each["name"] for each in get("samplers") if each["name"] == "Euler a")
        scheduler = get("schedulers")[0]["name"]
        [title] = [each["title"] for each in get("sd-models")]
        chosen = session.post(f"{url}/sdapi/v1/options", json={"sd_model_checkpoint": title})
        assert chosen.ok
        now = get("progress")
        assert now["progress"] == 0.0
        assert now["state"]["job_count"] == 0
        assert "forge_preset" not in get("options")
        body = {
            "prompt": "red apple",
            "negative_prompt": "blurry",
            "sampler_name": sampler,
            "scheduler": scheduler,
            "steps": 2,
            "cfg_scale": 7,
            "width": 64,
            "height": 64,
            "restore_faces": False,
            "enable_hr": True,
            "hr_upscaler": upscalers[-1],
            "hr_scale": 1.5,
            "hr_additional_modules": [],
            "denoising_strength": 0.7,
            "hr_second_pass_steps": 0,
            "override_settings": {"CLIP_stop_at_last_layers": 1},
            "override_settings_restore_afterwards": True,
            "clip_skip": 1,
            "save_images": True,
            "send_images": True,
            "do_not_save_grid": False,
            "do_not_save_samples": False,
        }
        answer = session.post(f"{url}/sdapi/v1/txt2img", json=body)
        assert decode(answer.json()["images"][0]).size == (96, 96)
        assert session.post(f"{url}/sdapi/v1/interrupt").ok


def test_as_sillytavern_asks_stable_diffusion_cpp(url):
    assert requests.options(f"{url}/v1/images/generations").ok
    [model] = requests.get(f"{url}/v1/models").json()["data"]
    body = {
        **SMALL,
        "model": model["id"],
        "negative_prompt": "blurry",
        "cfg_scale": 3,
        "seed": -1,
        "batch_size": 1,
        "sampler_name": "euler_a",
        "scheduler": "discrete",
    }
    assert decode(post(url, "txt2img", **body).json()["images"][0]).size == (64, 64)


def test_as_open_webui_asks(tiny):
    """Its router's calls, in their order: backend/open_webui/routers/images.py."""
    with serving(Server(tiny, api_key="secret")) as url:
        basic = base64.b64encode(b"user:secret").decode()
        headers = {"authorization": f"Basic {basic}"}

        def get(name):
            return requests.get(f"{url}/sdapi/v1/{name}", headers=headers).json()

        def send(name, body):
            return requests.post(f"{url}/sdapi/v1/{name}", json=body, headers=headers)

        options = get("options")
        model = next(each["title"] for each in get("sd-models") if each["model_name"])
        assert send("options", {**options, "sd_model_checkpoint": model}).ok
        drawn = {"prompt": "red apple", "batch_size": 2, "width": 64, "height": 64, "steps": 2}
        answer = send("txt2img", {**drawn, "negative_prompt": "x", "cfg_scale": 5.0}).json()
        assert len(answer["images"]) == 2
        assert isinstance(answer["info"], str)
        body = {**drawn, "init_images": [answer["images"][0]], "denoising_strength": 0.6}
        edited = send("img2img", body).json()
        assert [decode(text).size for text in edited["images"]] == [(64, 64)] * 2
