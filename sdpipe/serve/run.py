"""Runs a `Server` with uvicorn until a signal comes."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from sdpipe.errors import UsageError

if TYPE_CHECKING:
    from sdpipe.serve.server import Server

ANSWER_SECONDS = 10
"""How long the answers to what was stopped may take to be read when the server ends."""

CONNECTIONS = 1000
"""At once; more are answered with 503."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections.

    Raises:
        UsageError: the address is not this machine's, or taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OverflowError:
        raise UsageError(f"--port {port}", "is no port", "use 1 to 65535, or 0 for any") from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise UsageError(
            f"{host}:{port}", f"cannot be listened at: {reason}", "choose another --port or --host"
        ) from error


def serve(server: "Server", sock: socket.socket, on_ready: Callable[[], object]) -> int | None:
    """Answers requests until a signal comes, and loads the models meanwhile.

    SIGTERM lets what is being drawn come to its end, for `grace` seconds at most, and answers the
    others with 503; SIGINT, which is Ctrl-C, ends it all at the next step.

    on_ready: called when the models are loaded.

    Returns the number of the signal.

    Raises:
        As `Server.load`.
    """
    config = uvicorn.Config(
        server,
        log_level="warning",
        access_log=False,
        lifespan="on",
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=round(server.grace) + ANSWER_SECONDS,
    )
    runner = _Runner(config, server)
    failed: list[BaseException] = []

    def load() -> None:
        try:
            server.load()
            on_ready()
            server.prepare()
        except BaseException as error:  # which the main thread raises
            failed.append(error)
            runner.should_exit = True

    threading.Thread(target=load, name="load", daemon=True).start()
    runner.run(sockets=[sock])
    if failed:
        raise failed[0]
    return runner.signal


class _Runner(uvicorn.Server):
    """uvicorn, but for what signals do."""

    def __init__(self, config: uvicorn.Config, server: "Server") -> None:
        super().__init__(config)
        self._ours = server
        self.signal: int | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles SIGINT and SIGTERM while it is open, and raises neither again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        old = {number: signal.signal(number, self._stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
        self.signal = self.signal or number
        # Not here: what the signal interrupted may hold the queue's lock.
        drawing = self._ours.drawing
        is_patient = number == signal.SIGTERM and not self.force_exit
        end = partial(drawing.drain, self._ours.grace) if is_patient else drawing.abort
        threading.Thread(target=end, name="stop", daemon=True).start()
