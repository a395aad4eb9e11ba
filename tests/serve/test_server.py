"""`Server` as an application: mounted in another, and before its model is loaded."""

import threading

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from support.errors import raises
from support.serving import serving, until, web

from sdpipe import UsageError
from sdpipe.serve import Server


def test_it_is_mounted_in_another_application(tiny):
    app = Starlette(routes=[Mount("/draw", app=Server(tiny, api_key="secret"))])
    client = TestClient(app, base_url="http://localhost")
    assert client.get("/draw/health").text == "alive\n"
    assert client.get("/draw/v1/models").status_code == 401
    key = {"authorization": "Bearer secret"}
    assert client.get("/draw/v1/models", headers=key).json()["object"] == "list"
    wrong = client.post("/draw/sdapi/v1/txt2img", json={"steps": "x"}, headers=key)
    assert (wrong.status_code, "detail" in wrong.json()) == (422, True)
    asked = {"prompt": "a cat", "steps": 2, "g": 1, "scheduler": "ddim", "response_format": "url"}
    answer = client.post("/draw/v1/images/generations", json=asked, headers=key)
    url = answer.json()["data"][0]["url"]
    assert client.get(url).headers["content-type"] == "image/png"


def test_two_models_of_one_name_are_refused(tiny):
    with raises(UsageError, rule="is there twice"):
        Server([tiny, tiny])


def test_until_the_model_is_loaded_it_is_alive_and_not_ready(tiny):
    loads = threading.Event()

    def load():
        assert loads.wait(60)
        return [tiny]

    server = Server(load)
    threading.Thread(target=server.load, daemon=True).start()
    with serving(server) as address:
        assert web.get(f"{address}/health").status_code == 200
        for answer in (
            web.get(f"{address}/ready"),
            web.post(f"{address}/v1/images/generations", json={"prompt": "a cat"}),
            web.get(f"{address}/sdapi/v1/sd-models"),
        ):
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "5"
        loads.set()
        until(lambda: web.get(f"{address}/ready").status_code == 200)
