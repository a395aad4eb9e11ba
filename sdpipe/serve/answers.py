"""Answers: errors in the words of the command line, and streams of server-sent events."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from sdpipe.errors import ModelError, NotFiniteError, SdpipeError, UsageError
from sdpipe.serve.task import Drawn, QueueFullError, StoppedError
from sdpipe.settings import RULES

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from sdpipe.serve.task import Task

BEAT = 15.0
"""Seconds after which a stream that has nothing to say gives a sign of life."""


class RequestError(SdpipeError):
    """An answer that is no image: a status of HTTP, and what to say.

    code: a short name of it for programs. param: the field that it is about.
    """

    def __init__(
        self,
        status: int,
        value: str,
        rule: str = "",
        remedy: str = "",
        *,
        code: str | None = None,
        param: str | None = None,
        seconds: int | None = None,
    ) -> None:
        super().__init__(value, rule, remedy)
        self.status, self.code, self.param, self.seconds = status, code, param, seconds


def to_request_error(error: Exception) -> RequestError:
    """What an error of drawing is to a client; details of what nobody expected stay here."""
    match error:
        case RequestError():
            return error
        case QueueFullError():
            return _wrap(429, error, "queue_full", seconds=error.seconds)
        case StoppedError():
            return _wrap(503, error, "stopped", seconds=5)
        case UsageError():
            return _wrap(400, error, "invalid_value", param=param_of(error))
        case NotFiniteError() | ModelError():
            return _wrap(500, error, "drawing_failed")
        case SdpipeError():
            return _wrap(400, error, "invalid_value", param=param_of(error))
    if type(error).__name__ == "OutOfMemoryError":
        value, rule = "the memory of the device", "is too small for this image"
        return RequestError(500, value, rule, "ask for fewer pixels", code="out_of_memory")
    return RequestError(500, "the server failed", code="internal_error")


def _wrap(status: int, error: SdpipeError, code: str, **more: Any) -> RequestError:
    return RequestError(status, error.value, error.rule, error.remedy, code=code, **more)


def param_of(error: SdpipeError) -> str | None:
    """The setting that an error is about, by how its value begins."""
    match = re.match(r"\w+", error.value)
    return match[0] if match and match[0] in RULES else None


def local_path(scope: "Scope") -> str:
    """The path of a request within this application, which may be mounted in another."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def failure(path: str, error: Exception) -> Response:
    """The answer to a request that failed, in the form of the interface that was asked."""
    answer = to_request_error(error)
    text, status = str(answer), answer.status
    if path.startswith("/sdapi/"):
        status = 422 if status == 400 else status  # as FastAPI has it
        content: dict[str, Any] = {
            "error": answer.code or "refused",
            "detail": text,
            "body": answer.param or "",
            "errors": text,
        }
    else:
        kind = "invalid_request_error" if answer.status < 500 else "server_error"
        content = {"message": text, "type": kind, "param": answer.param, "code": answer.code}
        content = {"error": content}
    headers = {}
    if answer.seconds is not None:
        headers["retry-after"] = str(answer.seconds)
    if answer.status == 401:
        headers["www-authenticate"] = 'Basic realm="sdpipe"'
    if answer.status in (408, 413):
        headers["connection"] = "close"
    return JSONResponse(content, status, headers)


def content_type(request: "Request") -> str:
    """What a request says that its body is, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_object(request: "Request") -> dict[str, Any]:
    """The JSON object that a request brings.

    Raises:
        RequestError: its content type is another, or it is no object.
    """
    kind = content_type(request)
    if kind != "application/json":
        remedy = "send Content-Type: application/json"
        raise RequestError(415, f"Content-Type {kind[:80]!r}", "is not JSON", remedy)
    try:
        values = json.loads(await request.body())
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode()  # an answer may repeat it
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise RequestError(400, "the body", f"is no JSON: {reason}", code="invalid_json") from None
    if not isinstance(values, dict):
        raise RequestError(400, "the body", "is no JSON object", code="invalid_json")
    return values


async def images_for(request: "Request", task: "Task") -> "list[Drawn]":
    """The images of a task; the work ends where the client goes away.

    Raises:
        As `Task.events`; StoppedError too if nobody waits for the answer.
    """
    return [event for event in await events_for(request, task) if isinstance(event, Drawn)]


async def events_for(request: "Request", task: "Task") -> list[object]:
    """All events of a task, as `images_for`."""

    async def collect() -> list[object]:
        return [event async for event in task.events()]

    drawn = asyncio.ensure_future(collect())
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({drawn, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not drawn.done():
            raise StoppedError("the client", "went away")
        return drawn.result()
    finally:
        for future in (drawn, gone):
            future.cancel()


async def _disconnected(request: "Request") -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


Event = tuple[str | None, Mapping[str, Any] | str]
"""The name of a server-sent event, and its data."""


def error_event(request: "Request", error: Exception) -> Event:
    """What `failure` answers, as the last event of a stream that has begun."""
    return "error", bytes(failure(local_path(request.scope), error).body).decode()


class EventStream(Response):
    """Server-sent events as they come; ends the iterator where the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[Event]) -> None:
        super().__init__(headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Sends until the events or the client come to an end."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)

        async def write() -> None:
            async for block in _blocks(self._events):
                await send({"type": "http.response.body", "body": block, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        async def listen() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        jobs = [asyncio.ensure_future(write()), asyncio.ensure_future(listen())]
        try:
            await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for job in jobs:
                job.cancel()
            results = await asyncio.gather(*jobs, return_exceptions=True)
        if isinstance(results[0], Exception) and not isinstance(results[0], OSError):
            raise results[0]


async def _blocks(events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    """The lines of events, and a comment where none came for a while."""
    coming = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({coming}, timeout=BEAT)
            if not done:
                yield b": still here\n\n"
                continue
            try:
                name, data = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            text = data if isinstance(data, str) else json.dumps(data)
            yield (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()
    finally:
        if coming is not None:
            coming.cancel()
        await asyncio.gather(*([coming] if coming else []), return_exceptions=True)
        await events.aclose()  # type: ignore[attr-defined]
