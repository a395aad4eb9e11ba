"""The queue and its thread: order, bounds, joined batches, and work that nobody wants any more."""

import io
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image
from support.serving import gated, serving, until, web

from sdpipe.io.pixels import compare_pixels
from sdpipe.metadata.info import info
from sdpipe.metadata.read import read_record
from sdpipe.metadata.replay import replay
from sdpipe.metadata.verify import verify
from sdpipe.serve import Server

pytestmark = pytest.mark.filterwarnings("ignore:the latents grew")  # of random weights
DRAWN = {"prompt": "a cat", "steps": 4, "scheduler": "euler", "response_format": "url"}


@pytest.fixture
def gate(tiny):
    """A server with room for two requests in its queue, its gate, and a function that asks it."""
    pipe, gate = gated(tiny)
    server = Server(pipe, queue=2, join=True)
    with serving(server) as address, ThreadPoolExecutor(8) as pool:

        def ask(**more):
            url = f"{address}/v1/images/generations"
            return pool.submit(web.post, url, json={**DRAWN, **more})

        yield server, gate, ask, address
        gate.let_through(1000)


def begin(server, ask, **more):
    """Asks for an image, and waits until it is being drawn."""
    answer = ask(**more)
    until(lambda: server.drawing.current)
    return answer


def wait_for(server, count):
    until(lambda: len(server.drawing) == count)


def read(answer):
    image = Image.open(io.BytesIO(web.get(answer.json()["data"][0]["url"]).content))
    image.load()
    return image


def test_a_full_queue_says_when_to_ask_again(gate):
    server, gate, ask, address = gate
    answers = [begin(server, ask, seed=1), ask(seed=2), ask(seed=3, steps=3)]
    wait_for(server, 2)
    refused = ask(seed=4).result()
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert "has its 2 places taken" in refused.json()["error"]["message"]
    gate.let_through(100)
    assert [answer.result().status_code for answer in answers] == [200] * 3
    metrics = web.get(f"{address}/metrics").text
    assert "\nsdpipe_refused_total 1\n" in metrics
    assert "\nsdpipe_images_total 3\n" in metrics
    assert "\nsdpipe_queue_length 0\n" in metrics


def test_requests_that_go_together_are_one_batch(gate, tiny, tmp_path):
    server, gate, ask, _ = gate
    first = begin(server, ask, seed=1)
    alike = [ask(seed=20), ask(seed=30, prompt="a dog")]
    wait_for(server, 2)
    gate.let_through(100)
    for seed, prompt, answer in zip((20, 30), ("a cat", "a dog"), alike, strict=True):
        joined = web.get(answer.result().json()["data"][0]["url"]).content
        path = tmp_path / f"{seed}.png"
        path.write_bytes(joined)
        settings = {"seed": seed, "steps": 4, "scheduler": "euler"}
        alone = tiny.generate(prompt, **settings).images[0]
        assert compare_pixels(Image.open(path), alone).largest <= 1
        record = read_record(path)
        assert (record.n, record.notes[0].split(";")[0]) == (
            2, "it was drawn in one batch with other requests",
        )  # fmt: skip
        other = {"a cat": "a dog", "a dog": "a cat"}[prompt]
        assert other not in path.read_bytes().decode("latin-1")
        with pytest.warns(match="drawn in one batch with other requests"):
            again = replay(tiny, path)
        now = again.records[0]["sdpipe"]
        assert verify(path, record, again.images[0], now).outcome in ("identical", "close")
        assert "drawn in one batch" in str(info(path))
    assert max(gate.calls) == 4  # two images with guidance
    assert len(gate.calls) == 8
    assert read(first.result()).size == (64, 64)


@pytest.mark.filterwarnings("ignore:.*AND")
def test_what_is_said_of_a_prompt_is_said_to_its_client_alone(gate):
    server, gate, ask, _ = gate
    first = begin(server, ask, seed=1, negative_prompt="")
    alike = [ask(seed=2, prompt="a cat AND a dog"), ask(seed=3, prompt="a fish")]
    wait_for(server, 2)
    gate.let_through(100)
    assert first.result().status_code == 200
    said, silent = (answer.result().json()["warnings"] for answer in alike)
    assert any("AND" in text for text in said)
    assert not any("AND" in text for text in silent)
    assert max(gate.calls) == 4


def test_what_does_not_go_together_is_drawn_alone(gate):
    server, gate, ask, _ = gate
    answers = [begin(server, ask, seed=1), ask(seed=2, steps=3), ask(seed=3, scheduler="ddim")]
    wait_for(server, 2)
    gate.let_through(100)
    assert all(answer.result().status_code == 200 for answer in answers)
    assert set(gate.calls) == {2}


def test_without_join_each_request_is_drawn_alone(tiny):
    pipe, gate = gated(tiny)
    server = Server(pipe)
    with serving(server) as address, ThreadPoolExecutor(2) as pool:
        url = f"{address}/v1/images/generations"
        answers = [pool.submit(web.post, url, json=DRAWN) for _ in range(2)]
        until(lambda: server.drawing.current and len(server.drawing) == 1)
        gate.let_through(100)
        assert [answer.result().status_code for answer in answers] == [200, 200]
    assert set(gate.calls) == {2}


def test_the_work_ends_with_its_client_and_the_next_request_is_drawn(gate):
    server, gate, ask, address = gate
    url = f"{address}/v1/images/generations"
    asked = {**DRAWN, "steps": 100, "stream": True, "partial_images": 3}
    with web.stream("POST", url, json=asked) as stream:
        gate.let_through(2)
        until(lambda: len(gate.calls) == 3)
        assert stream.status_code == 200
    other = ask(seed=5)
    wait_for(server, 1)
    until(lambda: server.drawing.current[0].is_stopped)
    gate.let_through(1)
    until(lambda: server.drawing.counts.cancelled == 1)
    assert len(gate.calls) <= 4
    gate.let_through(100)
    assert other.result().status_code == 200


def test_others_of_a_batch_go_on_where_one_is_stopped(gate):
    server, gate, ask, address = gate
    first = begin(server, ask, seed=1)
    url = f"{address}/v1/images/generations"
    with web.stream("POST", url, json={**DRAWN, "stream": True, "seed": 9}):
        other = ask(seed=5)
        wait_for(server, 2)
        gate.let_through(5)
        until(lambda: len(server.drawing.current) == 2 and len(gate.calls) == 6)
        stopped = server.drawing.current[0]
    until(lambda: stopped.is_stopped)
    gate.let_through(100)
    assert first.result().status_code == other.result().status_code == 200
    assert server.drawing.counts.cancelled == 1


def test_a_request_that_waits_leaves_the_queue_with_its_client(gate):
    server, gate, ask, address = gate
    first = begin(server, ask, seed=1)
    url = f"{address}/v1/images/generations"
    with web.stream("POST", url, json={**DRAWN, "stream": True}):
        wait_for(server, 1)
    wait_for(server, 0)
    gate.let_through(100)
    assert first.result().status_code == 200
    assert len(gate.calls) == 4


def test_a_stage_that_comes_to_nan_fails_its_request_alone(gate):
    server, gate, ask, _ = gate
    spoilt, ask_again = begin(server, ask, seed=1, g=1e30), ask(seed=2)
    gate.let_through(100)
    assert spoilt.result().status_code == 500
    assert "NaN" in spoilt.result().json()["error"]["message"]
    assert ask_again.result().status_code == 200


def test_the_end_of_the_server_answers_what_waits(gate):
    server, gate, ask, _ = gate
    first, waiting = begin(server, ask, seed=1), ask(seed=2, steps=3)
    wait_for(server, 1)
    server.drawing.close()
    assert waiting.result().status_code == 503
    assert ask(seed=3).result().status_code == 503
    gate.let_through(100)
    assert first.result().status_code == 200


def test_what_outlasts_its_grace_is_answered_too(gate):
    server, gate, ask, _ = gate
    answers = [begin(server, ask, seed=1), ask(seed=2)]
    wait_for(server, 1)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(server.drawing.drain, 0.01)
        for answer in answers:
            assert answer.result().status_code == 503
            assert "is being stopped" in answer.result().json()["error"]["message"]
        gate.let_through(1000)
        ended.result()
    assert server.drawing.current == []
