"""OpenAI's own client, unchanged, against a server on a socket."""

import base64
import io

import openai
import pytest
from PIL import Image
from support.serving import gated, serving, until, web

from sdpipe.io import png
from sdpipe.metadata.read import read_record
from sdpipe.metadata.replay import replay
from sdpipe.metadata.verify import verify
from sdpipe.serve import Server

pytestmark = pytest.mark.filterwarnings("ignore:the latents grew")  # of random weights
DRAWN = {"seed": 7, "steps": 3, "scheduler": "euler"}


@pytest.fixture(scope="module")
def address(tiny):
    with serving(Server(tiny)) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def as_image(data):
    image = Image.open(io.BytesIO(base64.b64decode(data.b64_json)))
    image.load()
    return image


def draw(client, **more):
    extra = {**DRAWN, **more.pop("extra_body", {})}
    return client.images.generate(prompt="a cat", extra_body=extra, **more)


def test_images_are_those_of_the_pipeline_and_prove_themselves(client, tiny, tmp_path):
    answer = draw(client, n=2)
    expected = tiny.generate("a cat", n=2, **DRAWN)
    assert [as_image(one).tobytes() for one in answer.data] == [
        image.tobytes() for image in expected.images
    ]
    path = tmp_path / "second.png"
    path.write_bytes(base64.b64decode(answer.data[1].b64_json))
    again = replay(tiny, path)
    assert verify(path, read_record(path), again.images[0], again.records[0]["sdpipe"]).status == 0
    assert answer.size == "64x64"
    assert answer.usage.total_tokens == 6


@pytest.mark.parametrize(
    "fields",
    [
        {"guidance_scale": 3, "num_inference_steps": 2},
        {"cfg_scale": 3.0, "steps": 2},
        {"g": 3, "steps": 2, "size": "64x64"},
        {"g": 3, "steps": 2, "width": 64, "height": 64, "user": "someone", "quality": "hd"},
    ],
)
def test_settings_have_the_names_of_several_servers(client, tiny, fields):
    answer = client.images.generate(prompt="a cat", extra_body={**DRAWN, "steps": None, **fields})
    (image,) = tiny.generate("a cat", **DRAWN | {"g": 3, "steps": 2}).images
    assert as_image(answer.data[0]).tobytes() == image.tobytes()


def test_every_setting_has_its_own_name(client, tiny):
    fields = {"negative_prompt": "dark", "scheduler": "euler_a", "seamless": "x", "clip_skip": 2}
    answer = draw(client, extra_body={**fields, "guidance_interval": [0.5, 10]})
    settings = {**DRAWN, **fields, "guidance_interval": (0.5, 10)}
    assert as_image(answer.data[0]).tobytes() == (
        tiny.generate("a cat", **settings).images[0].tobytes()
    )


def test_a_list_of_seeds_is_an_image_of_each(client):
    answer = draw(client, extra_body={"seed": [5, 99]})
    assert [one.seed for one in answer.data] == [5, 99]


def test_a_stream_shows_x0_and_then_the_image(client, tiny):
    events = list(draw(client, stream=True, partial_images=2, extra_body={"steps": 6}))
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    kept = tiny.generate("a cat", **DRAWN | {"steps": 6}, save_int=True)
    from sdpipe.latents import latents_to_pil

    x0 = latents_to_pil(tiny.components.vae, kept.steps[2].x0)[0]
    assert as_image(events[0]).tobytes() == x0.tobytes()
    assert as_image(events[2]).tobytes() == kept.images[0].tobytes()
    assert events[2].usage.total_tokens == 6


def test_an_edit_redraws_what_the_mask_has_transparent(client, tmp_path):
    before = Image.effect_noise((64, 64), 90).convert("RGB")
    mask = Image.new("RGBA", (64, 64), "black")
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    files = {"image": to_file(before), "mask": to_file(mask)}
    answer = client.images.edit(prompt="a cat", **files, extra_body={**DRAWN, "steps": 4})
    after = as_image(answer.data[0])
    right, left = (32, 0, 64, 64), (0, 0, 32, 64)
    assert after.crop(right).tobytes() == before.crop(right).tobytes()
    assert after.crop(left).tobytes() != before.crop(left).tobytes()
    path = tmp_path / "edited.png"
    path.write_bytes(base64.b64decode(answer.data[0].b64_json))
    record = png.read(path)["sdpipe"]["settings"]
    assert record["steps"] == 4
    assert record["init_image"]["name"] == ""


def test_an_edit_streams_too(client):
    image = to_file(Image.new("RGB", (64, 64), "red"))
    extra = {**DRAWN, "strength": 1}
    stream = client.images.edit(
        prompt="a cat", image=image, stream=True, partial_images=1, extra_body=extra
    )
    assert [event.type for event in stream] == ["image_edit.partial_image", "image_edit.completed"]


def test_the_images_own_transparency_is_its_mask(client):
    image = Image.effect_noise((64, 64), 90).convert("RGBA")
    image.putalpha(255)
    image.paste((0, 0, 0, 0), (0, 0, 64, 40))
    answer = client.images.edit(prompt="a cat", image=to_file(image), extra_body=DRAWN)
    lower = (0, 40, 64, 64)
    assert as_image(answer.data[0]).crop(lower).tobytes() == (
        image.convert("RGB").crop(lower).tobytes()
    )


@pytest.mark.parametrize(("format", "name"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_output_format_is_that_of_the_file(client, tmp_path, format, name):
    answer = draw(client, output_format=format)
    assert as_image(answer.data[0]).format == name
    path = tmp_path / f"x.{format}"
    path.write_bytes(base64.b64decode(answer.data[0].b64_json))
    assert read_record(path).values["seed"] == 7


def test_metadata_false_leaves_the_mark_alone(client, tmp_path):
    path = tmp_path / "bare.png"
    answer = draw(client, extra_body={"metadata": False})
    path.write_bytes(base64.b64decode(answer.data[0].b64_json))
    assert png.read(path) == {}
    assert b"trainedAlgorithmicMedia" in path.read_bytes()


def test_an_address_gives_the_image_for_a_while(client, address, tiny):
    answer = draw(client, response_format="url")
    url = answer.data[0].url
    file = web.get(url)
    assert file.headers["content-type"] == "image/png"
    (image,) = tiny.generate("a cat", **DRAWN).images
    assert Image.open(io.BytesIO(file.content)).tobytes() == image.tobytes()
    assert web.get(f"{url}x").status_code == 404


def test_models_are_those_that_were_named_at_the_start(client, folder):
    assert [model.id for model in client.models.list()] == [folder.name]
    assert client.models.retrieve(folder.name).owned_by == "sdpipe"
    with pytest.raises(openai.NotFoundError, match="the models are") as error:
        draw(client, model="dall-e-3")
    assert error.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"height": 500.5}, "height", "is not a whole number"),
        ({"steps": 10_000}, "steps", "is more than the 150 that this server takes"),
        ({"scheduler": "Euler a"}, "scheduler", "it is called euler_a here"),
        ({"g": 3, "cfg_scale": 4}, "g", "both set g"),
        ({"stepz": 3}, "stepz", "is no setting"),
        ({"sampler_name": "Euler"}, "sampler_name", "here it is called scheduler"),
    ],
)
def test_an_error_names_the_setting_in_the_words_of_the_command_line(
    client, fields, param, message
):
    with pytest.raises(openai.BadRequestError, match=message) as error:
        client.images.generate(prompt="a cat", extra_body=fields)
    assert error.value.param == param
    assert error.value.type == "invalid_request_error"


def test_a_client_whose_time_is_over_ends_the_work(tiny):
    pipe, gate = gated(tiny)
    server = Server(pipe)
    with serving(server) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        gate.let_through()
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.5).images.generate(
                prompt="a cat", extra_body={**DRAWN, "steps": 100}
            )
        assert server.drawing.current
        until(lambda: server.drawing.current == [] or gate.let_through())
        assert len(gate.calls) <= 4
        assert server.drawing.counts.cancelled == 1


def to_file(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return ("image.png", buffer.getvalue(), "image/png")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"guidance_scale": 3, "cfg_scale": 3}, "guidance_scale and cfg_scale both set g;"),
        ({"width": 64, "size": "64x64"}, "width and size both set width;"),
    ],
)
def test_what_is_said_twice_is_named_as_it_was_sent(address, values, message):
    answer = web.post(f"{address}/v1/images/generations", json={"prompt": "a cat", **values})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(message)
