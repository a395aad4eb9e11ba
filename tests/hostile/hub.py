"""A hub that answers otherwise than it should, and a person who asks it for a model."""

import json
import random
import shutil

import pytest
from support.hub_server import Hub

from sdpipe.loading.hub import fetch
from sdpipe.loading.layout import select_model

PARTS = ("text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model")
FILES = {f"{part}.safetensors": part.encode() * 50 for part in PARTS} | {
    name: f'{{"of": "{name}"}}'.encode()
    for name in (
        "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
        "tokenizer/merges.txt", "tokenizer/vocab.json", "unet/config.json", "vae/config.json",
    )
}  # fmt: skip
PATHS = [
    "../../../evil",
    "..\\evil",
    "/tmp/evil",
    "a/b",
    "..",
    "%2e%2e/evil",
    "",
    "x" * 300,
    "\x01",
]
STATUS = [204, 301, 304, 307, 400, 401, 403, 404, 410, 416, 418, 429, 500, 503]
BODIES = [
    b"", b"[]", b"5", b"null", b"{", b"<html>", b'{"a":' * 10**5, b"[" * 10**5, b"\xff" * 99,
    b'{"siblings": 5}', b'{"siblings": [5]}', b'{"siblings": [{"rfilename": 5}]}', b"9" * 5000,
    b'{"sha": null, "siblings": null}', b'[{"type": "file", "path": 5}]', b'[{"type": 5}]',
]  # fmt: skip


def hub(folder, draw):
    """Answers of which some have another status, other headers or another body."""
    server = Hub()
    server.__enter__()
    server.server.handle_error = lambda *_: None  # of connections that are cut
    cache, outside = folder / "hub" / "cache", folder / "hub"
    server.use(pytest.MonkeyPatch(), cache)
    server.add("someone/model", FILES)

    def handle(seed):
        rng = random.Random(seed)
        shutil.rmtree(outside, ignore_errors=True)
        cache.mkdir(parents=True)
        chance = rng.choice([0.05, 0.2, 1])
        ways = [rng.choice(list(WAYS))]

        def change(path, status, headers, body):
            if rng.random() < chance:
                return WAYS[rng.choice(ways)](rng, path, status, headers, body)
            return status, headers, body

        server.change = change
        try:
            found = fetch("someone/model", select_model)
            for name in PARTS:
                data = (found.folder / f"{name}.safetensors").read_bytes()
                assert data == FILES[f"{name}.safetensors"], name
            return "read"
        finally:
            server.change = None
            others = [p for p in outside.rglob("*") if "evil" in p.name]
            assert not others, others
            assert {p.name for p in outside.iterdir()} <= {"cache"}

    return handle


def other_status(rng, path, status, headers, body):
    where = {"Location": rng.choice([path, "/x", "file:///etc/passwd", "http://127.0.0.1:1/"])}
    status = rng.choice(STATUS)
    if status in (429, 503):
        where["Retry-After"] = rng.choice(["100000", "x", "-1", "0"])
    return status, {**headers, **where}, body


def other_names(rng, path, status, headers, body):
    name = rng.choice(PATHS)
    if "ETag" in headers:
        headers = {**headers, rng.choice(["ETag", "X-Linked-Etag", "X-Repo-Commit"]): repr(name)}
    with_sha = body
    if body.startswith(b"{") and b'"sha"' in body:
        with_sha = json.dumps({**json.loads(body), "sha": name}).encode()
    return status, headers, with_sha


def other_list(rng, path, status, headers, body):
    if "/resolve/" in path:
        return status, headers, body
    if body.startswith(b"{"):
        value = json.loads(body)
        for file in rng.sample(value.get("siblings", []), rng.choice([1, 2])):
            file["rfilename"] = rng.choice([*PATHS, None, 5, "unet/../../x"])
    else:
        value = json.loads(body or b"[]")
        for file in value[: rng.choice([1, 3])]:
            key = rng.choice(["path", "size", "oid", "type", "lfs"])
            file[key] = rng.choice([*PATHS, None, 5, -1, {}, 10**400 if rng.random() < 0.1 else 1])
    return status, headers, json.dumps(value).encode()


def other_body(rng, path, status, headers, body):
    body = rng.choice([*BODIES, body[: len(body) // 2], body + b"more", body[::-1]])
    return status, headers, body


def other_headers(rng, path, status, headers, body):
    name = rng.choice(["ETag", "X-Repo-Commit", "Content-Encoding", "Content-Range", "Link"])
    values = ["x", "gzip", '</x>; rel="next"', f'<{path}>; rel="next"', "9" * 5000, "bytes 0-0/9"]
    return status, {**headers, name: rng.choice(values)}, body


WAYS = {
    "status": other_status, "names": other_names, "list": other_list, "body": other_body,
    "headers": other_headers,
}  # fmt: skip
