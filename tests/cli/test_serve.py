"""`sdpipe serve` as people and their supervisors run it."""

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from support.serving import until


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "0.0.0.0"), "set a key with --api-key"),
        (("--port", "70000"), "is no port"),
        (("--api-key", ""), "is empty"),
        (("--api-key", "clé"), "no header can hold"),
        (("--cors", "example.org"), "is no origin"),
        (("--cors", "https://example.org/page"), "is no origin"),
        (("--model", "nothing-like-it"), "nothing-like-it"),
        (("--model", "emoji", "--lora", "none.safetensors"), "none.safetensors"),
        (("--queue", "0"), "--queue"),
        (("--model", "emoji", "--host", "192.0.2.1", "--api-key", "k"), "cannot be listened at"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_is_loaded(run, options, message):
    status, out, err = run("serve", *options)
    assert (status, out) == (2, "")
    assert message in err


def test_a_port_that_is_taken_is_said(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, err = run("serve", "--model", "emoji", "--port", port)
    assert status == 2
    assert "choose another --port" in err


@pytest.fixture
def process(tmp_path):
    """`sdpipe serve` with a key from the environment; ended by its test."""
    command = [sys.executable, "-m", "sdpipe", "serve", "--model", "emoji", "--port", "0"]
    environment = {**os.environ, "SDPIPE_API_KEY": "secret"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes) as process:
        yield process
        process.kill()


def test_sigterm_finishes_what_is_drawn_and_answers_what_waits(process):
    address = process.stdout.readline().strip()
    client = httpx.Client(base_url=address, headers={"authorization": "Bearer secret"}, timeout=60)
    assert httpx.get(f"{address}/ready").text == "ready\n"
    assert httpx.get(f"{address}/v1/models").status_code == 401

    def ask(steps):
        asked = {"prompt": "red apple", "steps": steps}
        return client.post("/v1/images/generations", json=asked)

    with client, ThreadPoolExecutor(2) as pool:
        drawn = pool.submit(ask, 30)
        until(lambda: "\nsdpipe_drawing 1\n" in client.get("/metrics").text)
        waiting = pool.submit(ask, 2)
        until(lambda: "\nsdpipe_queue_length 1\n" in client.get("/metrics").text)
        process.send_signal(signal.SIGTERM)
        assert waiting.result().status_code == 503
        assert drawn.result().status_code == 200
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert err.count("\n") == 1
    assert f"emoji at {address}" in err


@pytest.mark.slow
def test_ctrl_c_ends_it_at_once(process):
    address = process.stdout.readline().strip()
    asked = {"prompt": "red apple", "steps": 150, "n": 16}
    key = {"authorization": "Bearer secret"}
    with ThreadPoolExecutor(1) as pool:
        url = f"{address}/v1/images/generations"
        answer = pool.submit(httpx.post, url, json=asked, headers=key, timeout=60)
        until(lambda: "\nsdpipe_drawing 1\n" in httpx.get(f"{address}/metrics", headers=key).text)
        process.send_signal(signal.SIGINT)
        assert answer.result().status_code == 503
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err


def test_ctrl_c_while_the_previews_are_fitted_ends_it_in_order(process):
    process.stdout.readline()  # the server is ready, and a thread is in the middle of torch
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.count("\n")) == (130, 1)
