"""Requests that nobody should send: each gets its status and a sentence, and leaves nothing."""

import base64
import io
import json
import socket
import struct
import zlib

import pytest
from PIL import Image
from support.serving import serving, web

from sdpipe.serve import Server
from sdpipe.serve.guard import Guard

pytestmark = pytest.mark.filterwarnings("ignore:the latents grew")  # of random weights
KEY = "correct-horse"
GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"
DRAWN = {"prompt": "a cat", "steps": 2, "scheduler": "euler", "g": 1}


@pytest.fixture(scope="module")
def server(tiny):
    return Server(tiny, max_body=200_000, max_steps=20)


@pytest.fixture(scope="module")
def address(server):
    with serving(server) as address:
        yield address


@pytest.fixture(scope="module")
def locked(tiny):
    server = Server(tiny, api_key=KEY, allowed_hosts=["box.example"], cors=["https://a.example"])
    with serving(server) as address:
        yield address


@pytest.fixture(autouse=True)
def nothing_is_left(server):
    yield
    assert len(server.drawing) == 0
    assert server.drawing.current == []
    assert server.drawing.counts.failed == 0


def png(width, height, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def bomb():
    """A PNG of 1 kB that has 400 million pixels."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b""))
        + (chunk(b"IEND", b""))
    )


VALUES = [
    ({}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": ["a", "b"]}, "prompt"),
    ({"prompt": {"text": "a"}}, "prompt"),
    ({"prompt": "(" * 100_000}, "prompt"),
    ({"prompt": "\ud800"}, None),
    ({"steps": "ten"}, "steps"),
    ({"steps": 0}, "steps"),
    ({"steps": -3}, "steps"),
    ({"steps": 10_000}, "steps"),
    ({"steps": 21}, "steps"),
    ({"steps": 1e300}, "steps"),
    ({"steps": 4.5}, "steps"),
    ({"steps": True}, "steps"),
    ({"steps": [4]}, "steps"),
    ({"g": "high"}, "g"),
    ({"g": [1, 2, 3]}, "g"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**64}, "seed"),
    ({"seed": "7"}, "seed"),
    ({"seed": []}, "seed"),
    ({"seed": [1, "x"]}, "seed"),
    ({"seed": [1, 2], "n": 3}, "n"),
    ({"n": 0}, "n"),
    ({"n": 65}, "n"),
    ({"n": 10**9}, "n"),
    ({"n": "2"}, "n"),
    ({"n": 17}, "n"),
    ({"size": "big"}, "size"),
    ({"size": "64*64"}, "size"),
    ({"size": 64}, "size"),
    ({"size": "65x64"}, "width"),
    ({"size": "99999x8"}, "width"),
    ({"size": "2048x2048"}, "width"),
    ({"width": 64, "hires_scale": 4, "height": 512}, "width"),
    ({"dim": 64, "width": 64}, "dim"),
    ({"scheduler": "best"}, "scheduler"),
    ({"scheduler": 3}, "scheduler"),
    ({"karras": "yes"}, "karras"),
    ({"eta": 2}, "eta"),
    ({"guidance_interval": "1,2"}, "guidance_interval"),
    ({"outpaint": [8, 8, 8, 8]}, "outpaint"),
    ({"init_image": "/etc/passwd"}, "init_image"),
    ({"init_image": "https://example.org/cat.png"}, "init_image"),
    ({"mask_image": "mask.png"}, "mask_image"),
    ({"save_int": True}, "save_int"),
    ({"safety": "maybe"}, "safety"),
    ({"out": "/tmp/x.png"}, "out"),
    ({"lora": "x.safetensors"}, "lora"),
    ({"__class__": "Settings"}, "__class__"),
    ({"response_format": "path"}, "response_format"),
    ({"output_format": "gif"}, "output_format"),
    ({"stream": "yes"}, "stream"),
    ({"partial_images": 2}, "partial_images"),
    ({"stream": True, "partial_images": -1}, "partial_images"),
    ({"metadata": "no"}, "metadata"),
]


@pytest.mark.parametrize(("values", "param"), VALUES, ids=lambda v: str(v)[:40])
def test_a_bad_value_names_its_setting(address, values, param):
    base = {} if not values else {k: v for k, v in DRAWN.items() if k != "prompt"}
    base |= {} if "prompt" in values or not values else {"prompt": "a cat"}
    body, kind = json.dumps({**base, **values}), {"content-type": "application/json"}
    answer = web.post(f"{address}{GENERATE}", content=body, headers=kind)
    error = answer.json()["error"]
    assert answer.status_code in (400, 422)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["message"].endswith((".", "?"))


BODIES = [
    (b"", 400),
    (b"{", 400),
    (b"[]", 400),
    (b'"text"', 400),
    (b"null", 400),
    (b"\xff\xfe", 400),
    (b'{"prompt": NaN' + b"}", 400),
    (b"[" * 50_000, 400),
    (b'{"a":' * 20_000, 400),
    (b'{"prompt": "a", "steps": 1' + b"0" * 5000 + b"}", 400),
    (b" " * 200_001, 413),
]


@pytest.mark.parametrize(("body", "status"), BODIES, ids=lambda v: str(v)[:20])
def test_a_body_that_is_no_object_is_refused(address, body, status):
    kind = {"content-type": "application/json"}
    answer = web.post(f"{address}{GENERATE}", content=body, headers=kind)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_json_has_to_say_that_it_is(address, kind):
    content = json.dumps(DRAWN).encode()
    answer = web.post(f"{address}{GENERATE}", content=content, headers={"content-type": kind})
    assert answer.status_code == 415


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/images/../../etc/passwd", 404),
        ("GET", "/v1/images/%2e%2e%2fetc%2fpasswd", 404),
        ("GET", "/v1/models/gpt-4", 404),
        ("POST", "/v1/images/variations", 405),
        ("DELETE", GENERATE, 405),
        ("PUT", GENERATE, 405),
        ("TRACE", GENERATE, 405),
        ("OPTIONS", GENERATE, 204),
    ],
)
def test_what_is_not_there_is_said_so(address, method, path, status):
    assert web.request(method, f"{address}{path}").status_code == status


@pytest.mark.parametrize(
    ("files", "data", "status", "param"),
    [
        ({}, {"prompt": "a cat"}, 415, None),
        ({"image": b"no image"}, {"prompt": "a cat"}, 422, "image"),
        ({"image": b""}, {"prompt": "a cat"}, 422, "image"),
        ({"image": bomb()}, {"prompt": "a cat"}, 422, "image"),
        ({"image": b"<svg/>"}, {"prompt": "a cat"}, 422, "image"),
        ({"image": png(64, 64)}, {}, 400, "prompt"),
        ({"image": png(64, 64)[:60]}, {"prompt": "a cat"}, 422, "image"),
        ({"image": png(64, 64), "mask": png(64, 64)}, {"prompt": "a cat"}, 400, "mask"),
        ({"image": png(64, 64), "mask": png(32, 32, "RGBA")}, {"prompt": "a cat"}, 400, None),
        ({"image": png(64, 64), "other": png(8, 8)}, {"prompt": "a cat"}, 400, None),
        ({"mask": png(64, 64, "RGBA")}, {"prompt": "a cat"}, 400, "image"),
        ({"image": png(64, 64)}, {"prompt": "a cat", "steps": "many"}, 400, "steps"),
        ({"image": png(64, 64)}, {"prompt": "a cat", "strength": "7"}, 400, "strength"),
        ({"image": png(64, 64)}, {"prompt": "a cat", "model": "other"}, 404, "model"),
        ({"image": png(64, 64)}, {f"field{k}": "" for k in range(101)}, 400, None),
    ],
)
def test_a_bad_form_is_refused(address, files, data, status, param):
    answer = web.post(f"{address}{EDIT}", files=files, data=data)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert "/tmp" not in error["message"]


# Starlette leaves the file of half a form to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in.*SpooledTemporaryFile")
def test_an_image_twice_and_half_a_form_are_refused(address):
    files = [("image[]", png(8, 8)), ("image[]", png(8, 8))]
    twice = web.post(f"{address}{EDIT}", files=files, data={"prompt": "a"})
    assert (twice.status_code, twice.json()["error"]["param"]) == (400, "image")
    kind = {"content-type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nPNG'
    assert web.post(f"{address}{EDIT}", content=part, headers=kind).status_code == 400
    none = {"content-type": "multipart/form-data"}
    assert web.post(f"{address}{EDIT}", content=part, headers=none).status_code == 400


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example",
                                  "0.0.0.0", "[::2]", "localhost.evil", "", "a b"])  # fmt: skip
def test_another_host_is_refused(address, host):
    answer = web.get(f"{address}/v1/models", headers={"host": host})
    assert answer.status_code in (421, 400)  # 400 where h11 refuses the letters
    assert web.get(f"{address}/health", headers={"host": "evil.example"}).status_code == 421


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
def test_a_page_elsewhere_may_not_ask(address, origin):
    answer = web.post(f"{address}{GENERATE}", json=DRAWN, headers={"origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    own = web.post(f"{address}{GENERATE}", json=DRAWN, headers={"origin": address})
    assert own.status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "Bearer",
        "Bearer wrong",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Token {KEY}",
        KEY,
        "Basic ????",
        "Basic " + base64.b64encode(b"user:wrong").decode(),
        "Basic " + base64.b64encode(KEY.encode()).decode(),
        "Basic " + base64.b64encode(f"{KEY}:".encode()).decode(),
    ],
)
def test_without_the_key_nothing_is_drawn(locked, authorization):
    headers = {} if authorization is None else {"authorization": authorization}
    for method, path in (("GET", "/v1/models"), ("POST", GENERATE), ("GET", "/metrics")):
        answer = web.request(method, f"{locked}{path}", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic")
        assert KEY not in answer.text
    assert web.get(f"{locked}/health").status_code == 200


def test_the_key_opens_as_bearer_and_as_password(locked):
    for headers in (
        {"authorization": f"Bearer {KEY}"},
        {"authorization": "Basic " + base64.b64encode(f"me:{KEY}".encode()).decode()},
    ):
        answer = web.post(f"{locked}{GENERATE}", json=DRAWN, headers=headers)
        assert answer.status_code == 200


def test_origins_that_were_named_may_ask_and_hosts_may_be_called(locked):
    headers = {"authorization": f"Bearer {KEY}", "origin": "https://a.example"}
    answer = web.post(f"{locked}{GENERATE}", json=DRAWN, headers=headers)
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
    before = web.options(f"{locked}{GENERATE}", headers=asked)
    assert before.status_code == 204
    assert "authorization" in before.headers["access-control-allow-headers"]
    other = web.options(f"{locked}{GENERATE}", headers={"origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers
    named = {**headers, "host": "Box.Example:7860"}
    assert web.get(f"{locked}/v1/models", headers=named).status_code == 200


def test_every_answer_protects_itself(address):
    for path in ("/health", "/v1/models", "/nothing", "/v1/images/none"):
        headers = web.get(f"{address}{path}").headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "'unsafe" not in headers["content-security-policy"]
        assert "server" not in headers


async def _hello(scope, receive, send):
    assert scope["type"] == "http"
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def talk(address, head):
    """A connection that has sent a beginning."""
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(head.encode().replace(b"\n", b"\r\n"))
    return connection


def test_a_body_without_a_length_is_counted_while_it_comes(address):
    head = "POST /v1/images/generations HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked\n"
    with talk(address, f"{head}Content-Type: application/json\n\n") as connection:
        for _ in range(4):
            connection.sendall(b"c350\r\n" + b" " * 50_000 + b"\r\n")
        connection.sendall(b"1\r\n \r\n")  # one more than may come, and no end
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


def test_a_body_that_comes_too_slowly_is_given_up():
    with serving(Guard(_hello, body_seconds=0.2)) as address:
        head = "POST / HTTP/1.1\nHost: localhost\nContent-Length: 1000\n\n{"
        with talk(address, head) as connection:
            assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_client_that_reads_slowly_holds_up_nobody(address):
    body = json.dumps({**DRAWN, "n": 8})
    head = (
        "POST /v1/images/generations HTTP/1.1\nHost: localhost\nContent-Type: application/json\n"
        f"Content-Length: {len(body)}\n\n{body}"
    )
    with talk(address, head) as slow:
        assert slow.recv(1) == b"H"
        assert web.post(f"{address}{GENERATE}", json=DRAWN).status_code == 200
        assert slow.recv(1) == b"T"


@pytest.mark.parametrize(
    "head",
    [
        "nonsense\n\n",
        "POST /v1/images/generations HTTP/1.1\nHost: localhost\nContent-Length: -5\n\n",
        "POST /v1/images/generations HTTP/1.1\nHost: localhost\nContent-Length: 5\n"
        "Content-Length: 6\n\n12345",
        "GET / HTTP/1.1\nHost: localhost\nX: " + "x" * 200_000 + "\n\n",
        "GET /ws HTTP/1.1\nHost: a\nHost: b\n\n",
        "GET /v1/models HTTP/1.1\n\n",
    ],
    ids=lambda head: head[:40],
)
def test_what_is_no_http_is_refused(address, head):
    with talk(address, head) as connection:
        assert connection.recv(1000).split(b" ")[1][:1] == b"4"
