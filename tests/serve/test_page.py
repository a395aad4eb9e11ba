"""What the page asks of the server."""

import base64
import io
import json

import httpx
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from support.serving import gated, serving, until

from sdpipe.denoise import predict_x0
from sdpipe.io import png
from sdpipe.metadata.read import read_record
from sdpipe.metadata.replay import replay
from sdpipe.metadata.verify import verify
from sdpipe.serve import Server
from sdpipe.serve.watch import Watch
from sdpipe.settings import RULES

pytestmark = pytest.mark.filterwarnings("ignore:the latents grew")  # of random weights
TYPED = {"prompt": "a cat", "seed": "7", "steps": "3", "scheduler": "euler"}


@pytest.fixture(scope="module")
def server(tiny):
    return Server(tiny)


@pytest.fixture(scope="module")
def client(server):
    with serving(server) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


def ask(client, **more):
    """The events of a drawing: names and data."""
    return read(client.post("/page/draw", json={"settings": {**TYPED, **more}}))


def read(response):
    assert response.status_code == 200, response.text
    blocks = [block.split("\n") for block in response.text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data[6:])) for name, data in blocks]


def of(events, name):
    return [data for kind, data in events if kind == name]


def as_image(url):
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2] or url)))


@pytest.fixture(scope="module")
def events(client):
    return ask(client)


@pytest.fixture(scope="module")
def file(events):
    (image,) = of(events, "image")
    return base64.b64decode(image["b64"])


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")],
)
def test_the_files_of_the_page(client, path, kind):
    response = client.get(path)
    assert response.headers["content-type"].startswith(kind)
    assert "script-src 'self'" in response.headers["content-security-policy"]
    assert "innerHTML" not in response.text
    assert "style=" not in response.text
    assert 'src="/' not in response.text  # it may be mounted under a path
    assert 'fetch("/' not in response.text


def test_the_fields_are_those_of_the_table_the_common_ones_first(client, server):
    told = client.get("/page/settings").json()
    names = [field["name"] for field in told["fields"]]
    assert set(names) == set(RULES) - {"prompt", "save_int"}
    assert [field["common"] for field in told["fields"]] == [True] * 8 + [False] * (len(names) - 8)
    fields = {field["name"]: field for field in told["fields"]}
    assert fields["fit"]["choices"] == ["crop", "pad", "stretch"]
    assert fields["karras"]["kind"] == "flag"
    assert [model["name"] for model in told["models"]] == list(server.models)
    assert told["models"][0]["defaults"]["width"] == "64"


def test_every_step_is_told_then_the_image(events, tiny):
    steps = of(events, "step")
    assert [step["index"] for step in steps] == [0, 1, 2]
    assert [kind for kind, _ in events][-1] == "image"
    assert [step["sigma"] for step in steps] == [
        step.sigma for step in tiny.stream("a cat", seed=7, steps=3, scheduler="euler")
    ]
    latent_size = (64 // tiny.components.constraints["factor"],) * 2
    for name in ("x_t", "x0", "uncond", "cond"):
        assert as_image(steps[0][name]).size == latent_size
    assert any("exact" in step for step in steps)
    assert all(0 < step["angle"] < 180 for step in steps)
    assert "exact" not in steps[-1]


def test_watching_changes_no_bit(events, tiny):
    (image,) = of(events, "image")
    alone = tiny.generate("a cat", seed=7, steps=3, scheduler="euler").images[0]
    assert as_image(image["b64"]).convert("RGB").tobytes() == alone.tobytes()


def test_the_watched_predictions_are_those_of_the_loop(tiny):
    """uncond + g (cond - uncond), turned into x_0, is what the loop says it predicted."""
    calls = []

    class Keep:
        def __init__(self, unet):
            self.unet = unet

        def __call__(self, x, *args):
            output = self.unet(x, *args)
            calls.append((x, output.sample))
            return output

        def __getattr__(self, name):
            return getattr(self.unet, name)

    watched = tiny.with_wrapped_unet(Keep)
    for step in watched.stream("a cat", seed=7, steps=2, scheduler="heun", g=3):
        x, output = calls[-1]
        uncond, cond = output.chunk(2)
        guided = predict_x0(x[:1], uncond + 3 * (cond - uncond), step.sigma, "epsilon")
        assert torch.allclose(guided, step.x0, rtol=1e-4, atol=1e-4)


def test_one_prediction_is_told_as_one(client):
    (first, *_) = of(ask(client, g="1"), "step")
    assert (first["only"], "uncond" in first) == ("cond", False)
    (first, *_) = of(ask(client, g="0"), "step")
    assert first["only"] == "uncond"


def test_a_drawing_links_to_its_settings(client, events):
    (image,) = of(events, "image")
    assert image["settings"] == TYPED | {"scheduler": "euler"}
    (again,) = of(ask(client, **image["settings"]), "image")
    assert again["b64"] == image["b64"]


def test_variations_have_one_seed(client):
    images = of(ask(client, n="2", variation_strength="0.2"), "image")
    assert [(image["seed"], image["variation_seed"]) for image in images] == [(7, 8), (7, 9)]


def test_an_image_to_begin_with_comes_as_the_bytes_of_its_file(client, file, tiny):
    first = Image.open(io.BytesIO(file)).convert("RGB")
    typed = {"init_image": base64.b64encode(file).decode(), "strength": "0.7"}
    (image,) = of(ask(client, **typed), "image")
    alone = tiny.generate(
        "a cat", seed=7, steps=3, scheduler="euler", init_image=first, strength=0.7
    )
    assert as_image(image["b64"]).convert("RGB").tobytes() == alone.images[0].tobytes()
    assert "init_image" not in image["settings"]


def test_the_image_proves_itself(file, tiny, tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes(file)
    result = replay(tiny, path)
    now = png.read(path)["sdpipe"]
    assert verify(path, read_record(path), result.images[0], now).outcome == "identical"


@pytest.mark.parametrize(
    ("typed", "param", "words"),
    [
        ({"width": "100"}, "width", "not a multiple of 8"),
        ({"steps": "many"}, "steps", "many"),
        ({"steps": "151"}, "steps", "150"),
        ({"scheduler": "magic"}, "scheduler", "magic"),
        ({"init_image": "http://example.org"}, "init_image", "is an address"),
        ({"colour": "red"}, "colour", "is no setting"),
        ({"n": 2}, "n", "is no text"),
    ],
)
def test_an_error_names_its_field(client, typed, param, words):
    response = client.post("/page/draw", json={"settings": {**TYPED, **typed}})
    assert response.status_code in (400, 422)
    error = response.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


def test_who_goes_away_stops_the_drawing(tiny):
    pipe, gate = gated(tiny)
    server = Server(pipe)
    with serving(server) as address, httpx.Client(base_url=address) as client:
        body = {"settings": {**TYPED, "steps": "50"}}
        with client.stream("POST", "/page/draw", json=body) as response:
            gate.let_through()
            for line in response.iter_lines():
                if line == "event: step":
                    break
        until(lambda: any(task.is_stopped for task in server.drawing.current))
        gate.let_through(2)
        until(lambda: not server.drawing.current)
        assert server.drawing.counts.cancelled == 1
        assert len(gate.calls) <= 3


def test_where_the_words_act(client):
    told = client.post("/page/attention", json={"settings": TYPED}).json()
    assert [word["text"] for word in told["words"]] == ["a", "cat"]
    assert len(told["words"][0]["map"]) == told["width"] * told["height"]
    assert 0 < sum(word["share"] for word in told["words"]) + told["padding"]["share"] < 1
    refused = client.post("/page/attention", json={"settings": {**TYPED, "g": "0"}})
    assert refused.json()["error"]["param"] == "g"


def test_a_dropped_image_tells_what_it_is_and_is_drawn_again(client, file, server):
    told = client.post("/page/read", content=file).json()
    assert dict(told["rows"])["prompt"] == "a cat"
    assert (told["unchanged"], told["refusal"]) == (True, None)
    assert told["model"] in server.models
    assert told["settings"]["seed"] == "7"
    found = client.post("/page/replay", content=file).json()
    assert (found["verdict"], found["notes"]) == ("identical", [])


def test_an_image_of_a_batch_is_drawn_in_one_of_that_size(client):
    files = [base64.b64decode(image["b64"]) for image in of(ask(client, n="3"), "image")]
    assert client.post("/page/replay", content=files[2]).json()["verdict"] == "identical"


def test_an_edited_image_is_told_apart(client, file):
    image = Image.open(io.BytesIO(file))
    image.load()
    image.paste((0, 0, 0), (0, 0, 9, 9))
    buffer = io.BytesIO()
    info = PngInfo()
    for name, text in image.text.items():
        info.add_itxt(name, text)
    image.save(buffer, "PNG", pnginfo=info)
    told = client.post("/page/read", content=buffer.getvalue()).json()
    assert told["unchanged"] is False
    assert client.post("/page/replay", content=buffer.getvalue()).json()["verdict"] == "edited"


def test_an_image_of_another_model_is_read_but_not_drawn(client, emoji, tmp_path):
    path = emoji.generate("red apple", steps=2, seed=1).save(tmp_path / "apple.png")[0]
    told = client.post("/page/read", content=path.read_bytes()).json()
    assert dict(told["rows"])["prompt"] == "red apple"
    assert (told["model"], "is not served here" in told["refusal"]) == (None, True)
    refused = client.post("/page/replay", content=path.read_bytes())
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "model_not_found")


@pytest.mark.parametrize("path", ["/page/read", "/page/replay"])
@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused_without_a_path_of_the_server(client, path, data):
    response = client.post(path, content=data)
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message.startswith("the image")
    assert "/tmp" not in message


def test_previews_are_fitted_at_the_start_and_once(tiny):
    server = Server(tiny)
    server.prepare()
    watch = Watch(tiny, lambda: server.preview(tiny))
    assert watch.preview is server.preview(tiny)
    assert watch.pipe.components is tiny.components
