"""OpenAI's interface to images, as its clients speak it: generations, edits, models.

Beside OpenAI's fields a request may name every setting, by our names or those of other servers.
"""

import asyncio
import base64
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sdpipe.serve.answers import (
    Event,
    EventStream,
    RequestError,
    error_event,
    images_for,
    read_object,
)
from sdpipe.serve.forms import OTHER_NAMES, read_form
from sdpipe.serve.inputs import plan
from sdpipe.serve.task import Drawn, Task, decode_images

if TYPE_CHECKING:
    from starlette.requests import Request

    from sdpipe.denoise import Step
    from sdpipe.serve.server import Server

IGNORED = ("user", "quality", "style", "background", "moderation", "input_fidelity",
           "output_compression")  # fmt: skip
"""OpenAI's fields that say nothing to this kind of model; clients send them all the time."""

FORMATS = {"png": "PNG", "jpeg": "JPEG", "jpg": "JPEG", "webp": "WEBP"}
MAX_PARTIAL = 50


def routes(server: "Server") -> list[Route]:
    """The addresses of the interface."""

    async def generations(request: "Request") -> Response:
        values = await read_object(request)
        return await _answer(server, request, Wanted.read(values), values, "image_generation")

    async def edits(request: "Request") -> Response:
        values = await read_form(request)
        return await _answer(server, request, Wanted.read(values), values, "image_edit")

    async def models(_: "Request") -> Response:
        return JSONResponse({"object": "list", "data": [_model(name) for name in server.models]})

    async def model(request: "Request") -> Response:
        server.find_model(name := request.path_params["name"])
        return JSONResponse(_model(name))

    async def image(request: "Request") -> Response:
        found = server.gallery.get(request.path_params["name"])
        if found is None:
            rule = "is not here"
            raise RequestError(404, "the image", rule, "the last 64 are kept", code="not_found")
        return Response(found[0], media_type=found[1])

    return [
        Route("/v1/images/generations", generations, methods=["POST"]),
        Route("/v1/images/edits", edits, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/images/{name}", image),
    ]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "sdpipe"}


@dataclass(frozen=True)
class Wanted:
    """In which form a client wants its images.

    partial_images: previews while they are drawn; None where they don't come as a stream.
    """

    format: str
    as_url: bool
    partial_images: int | None
    with_metadata: bool

    @classmethod
    def read(cls, values: dict[str, Any]) -> "Wanted":
        """Takes it out of the fields of a request.

        Raises:
            RequestError: a field has a value that it cannot have.
        """
        kind = _choice(values, "output_format", tuple(FORMATS), "png")
        form = _choice(values, "response_format", ("b64_json", "url"), "b64_json")
        streams = _flag(values, "stream", False)
        partial = values.pop("partial_images", None)
        if partial is None:
            partial = 0
        if not isinstance(partial, int) or isinstance(partial, bool) or partial < 0:
            value, rule = f"partial_images={str(partial)[:40]}", "is no number of images"
            raise RequestError(400, value, rule, f"use 0 to {MAX_PARTIAL}", param="partial_images")
        if partial and not streams:
            rule, remedy = "come in a stream", "add stream: true, or leave them out"
            raise RequestError(400, "partial_images", rule, remedy, param="partial_images")
        count = min(partial, MAX_PARTIAL) if streams else None
        return cls(FORMATS[kind], form == "url", count, _flag(values, "metadata", True))

    @property
    def media_type(self) -> str:
        """That of the files."""
        return f"image/{self.format.lower()}"


async def _answer(
    server: "Server",
    request: "Request",
    wanted: Wanted,
    values: dict[str, Any],
    kind: str,
) -> Response:
    """Draws what a request asks for, and answers with all images or a stream of them."""
    pipe = server.find_model(values.pop("model", None))
    settings = _settings(values)
    images, canvas = await asyncio.to_thread(plan, pipe, settings, server.limits(pipe))
    task = Task(pipe, images, canvas)
    if wanted.partial_images:
        task.on_step = _preview(task, wanted)
    server.drawing.submit(task)
    made = _Answers(server, request, task, wanted, kind)
    if wanted.partial_images is not None:
        return EventStream(made.stream())
    try:
        return JSONResponse(await made.all())
    finally:
        server.drawing.cancel(task)


@dataclass(frozen=True, eq=False)
class _Partial:
    """A preview of an image while it is drawn, in the form of the answer."""

    number: int
    index: int
    data: bytes


def _preview(task: Task, wanted: Wanted) -> "Callable[[Step], None]":
    """What decodes x_0 at some steps, evenly spread, and makes events of it.

    Runs in the drawing thread.
    """
    from io import BytesIO

    count = wanted.partial_images or 0

    def show(step: "Step") -> None:
        due = [(k + 1) * step.total // (count + 1) for k in range(count)]
        if step.index not in due or step.is_last:
            return
        images = decode_images(task.pipe.components, step.x0)
        for number, image in zip(step.images, images, strict=True):
            buffer = BytesIO()
            image.save(buffer, wanted.format)
            task.put(_Partial(number, due.index(step.index), buffer.getvalue()))

    return show


@dataclass(frozen=True, eq=False)
class _Answers:
    """The images of a task in OpenAI's words."""

    server: "Server"
    request: "Request"
    task: Task
    wanted: Wanted
    kind: str

    async def all(self) -> dict[str, Any]:
        """The answer that has all images."""
        drawn = await images_for(self.request, self.task)
        data = []
        for one in sorted(drawn, key=lambda one: one.number):
            file = await self._encode(one)
            more = {"seed": one.settings.seed, "revised_prompt": one.settings.prompt}
            if self.wanted.as_url:
                name = self.server.gallery.add(file, self.wanted.media_type)
                root = self.request.scope.get("root_path", "")
                url = self.request.url.replace(path=f"{root}/v1/images/{name}", query="")
                data.append({"url": str(url), **more})
            else:
                data.append({"b64_json": base64.b64encode(file).decode(), **more})
        return {"created": int(time.time()), "data": data, **self._form(), **self._told()}

    async def stream(self) -> AsyncIterator[Event]:
        """The events of a stream."""
        try:
            async for event in self.task.events():
                if isinstance(event, _Partial):
                    data = {"partial_image_index": event.index, "image_index": event.number}
                    yield self._event("partial_image", event.data, data)
                elif isinstance(event, Drawn):
                    file = await self._encode(event)
                    data = {"image_index": event.number, "seed": event.settings.seed}
                    yield self._event("completed", file, {**data, **self._told()})
        except Exception as error:
            yield error_event(self.request, error)
        finally:
            self.server.drawing.cancel(self.task)

    def _event(self, name: str, file: bytes, more: Mapping[str, Any]) -> Event:
        data = {
            "type": f"{self.kind}.{name}",
            "b64_json": base64.b64encode(file).decode(),
            "created_at": int(time.time()),
            **self._form(),
            **more,
        }
        return data["type"], data

    def _form(self) -> dict[str, Any]:
        width, height = self.task.images[0].output_size
        form = self.wanted.format.lower()
        size = {"size": f"{width}x{height}", "quality": "auto", "background": "opaque"}
        return {**size, "output_format": form}

    def _told(self) -> dict[str, Any]:
        """What was warned of, and steps in place of tokens: there are no others."""
        steps = self.task.num_steps
        usage: dict[str, Any] = {"total_tokens": steps, "input_tokens": 0, "output_tokens": steps}
        usage["input_tokens_details"] = {"text_tokens": 0, "image_tokens": 0}
        return {"usage": usage, "warnings": self.task.warnings}

    async def _encode(self, drawn: Drawn) -> bytes:
        with_metadata = self.wanted.with_metadata
        return await asyncio.to_thread(
            drawn.encode, self.wanted.format, with_metadata=with_metadata
        )


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among a request's fields, by our names; null is unset.

    Raises:
        RequestError: a field is there twice under two names, or a size is none.
    """
    settings: dict[str, Any] = {}
    said: dict[str, str] = {}
    for name, value in values.items():
        if value is None or name in IGNORED or (name == "size" and value == "auto"):
            continue
        meant = {OTHER_NAMES.get(name, name): value}
        if name == "size":
            meant = dict(zip(("width", "height"), _size(value), strict=True))
        for ours in meant:
            if ours in said:
                rule = f"and {name} both set {ours}"
                raise RequestError(400, said[ours], rule, "leave one out", param=ours)
            said[ours] = name
        settings |= meant
    return settings


def _size(text: object) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", str(text))
    if match is None:
        value = f"size={str(text)[:40]!r}"
        raise RequestError(400, value, "is no size", 'use "WIDTHxHEIGHT", or "auto"', param="size")
    return int(match[1]), int(match[2])


def _choice(values: dict[str, Any], name: str, choices: tuple[str, ...], default: str) -> str:
    value = values.pop(name, None)
    if value is None:
        return default
    if value not in choices:
        remedy = f"use {', '.join(choices)}"
        raise RequestError(400, f"{name}={str(value)[:40]!r}", "is not known", remedy, param=name)
    return str(value)


def _flag(values: dict[str, Any], name: str, default: bool) -> bool:
    value = values.pop(name, None)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise RequestError(400, f"{name}={str(value)[:40]!r}", "is not true or false", param=name)
    return value
