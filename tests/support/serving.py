"""A server on a real socket, and a U-Net that waits for its test."""

import contextlib
import socket
import threading
import time

import httpx
import uvicorn

TIME = 60  # seconds after which a test gives up

web = httpx.Client(verify=False, timeout=TIME)
"""Asks over HTTP: one client, since each of them reads all certificates."""


@contextlib.contextmanager
def serving(server):
    """Answers requests in another thread; yields the address."""
    sock = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(server, log_level="critical", server_header=False)
    runner = uvicorn.Server(config)
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [sock]})
    thread.start()
    until(lambda: runner.started)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        runner.should_exit = True
        thread.join(TIME)


def until(is_so):
    """Waits until something is so."""
    end = time.monotonic() + TIME
    while not is_so():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)


class Gate:
    """Stands before a U-Net: a call waits until the test lets it through.

    calls: the sizes of the batches that came.
    """

    def __init__(self, unet):
        self._unet, self._free = unet, threading.Semaphore(0)
        self.calls = []

    def __call__(self, x, *args, **kwargs):
        self.calls.append(len(x))
        assert self._free.acquire(timeout=TIME), "nobody opened"
        return self._unet(x, *args, **kwargs)

    def __getattr__(self, name):
        return getattr(self._unet, name)

    def let_through(self, calls=1):
        self._free.release(calls)


def gated(pipe):
    """A pipeline whose U-Net stands behind a gate, and the gate."""
    gate = Gate(pipe.components.unet)
    return pipe.with_parts(unet=gate), gate
