"""The page at `/`: its files, and what its script asks of the server.

It sends settings as they were typed; errors come back in the words of the command line, with the
field that they are about.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from sdpipe.metadata.read import read_record
from sdpipe.serve.answers import (
    Event,
    EventStream,
    RequestError,
    error_event,
    events_for,
    images_for,
    read_object,
)
from sdpipe.serve.dropped import compare, describe, find_model, open_dropped, plan_again, to_fields
from sdpipe.serve.inputs import NOT_OURS, plan
from sdpipe.serve.task import Drawn, Task, Waiting
from sdpipe.serve.watch import Shown, Watch
from sdpipe.settings import DEFAULTS, RULES, SCHEDULERS, Rule
from sdpipe.show.attention import AttentionMaps, attention_data
from sdpipe.values import parse_bool

if TYPE_CHECKING:
    from starlette.requests import Request

    from sdpipe.metadata.replay import ReplayJob
    from sdpipe.pipeline import Pipeline
    from sdpipe.serve.server import Server
    from sdpipe.settings import ResolvedSettings

FILES = Path(__file__).with_name("static")
TYPES = {"": "text/html", "page.js": "text/javascript", "page.css": "text/css"}

COMMON = ("negative_prompt", "seed", "n", "steps", "g", "scheduler", "width", "height")
"""The settings that the page shows first; the rest is folded."""

LEFT_OUT = (*NOT_OURS, "prompt")
IMAGES = ("init_image", "mask_image")


def routes(server: "Server") -> list[Route]:
    """The addresses of the page."""
    page = _Page(server)
    return [
        *(Route(f"/{name}", page.file) for name in TYPES),
        Route("/page/settings", page.settings),
        Route("/page/draw", page.draw, methods=["POST"]),
        Route("/page/attention", page.attention, methods=["POST"]),
        Route("/page/read", page.read, methods=["POST"]),
        Route("/page/replay", page.replay, methods=["POST"]),
    ]


def describe_field(name: str, rule: Rule) -> dict[str, Any]:
    """What the page needs to know of a setting, from its rule."""
    choices = list(getattr(rule.check, "keywords", {}).get("choices", ()))
    kind = "choice" if choices else "text"
    if name == "scheduler":
        kind, choices = "choice", list(SCHEDULERS)
    elif rule.parse is parse_bool:
        kind = "flag"
    elif name in IMAGES:
        kind = "image"
    elif rule.ranges is not None and name != "g":
        kind = "whole" if rule.ranges is int else "number"
    return {
        "name": name,
        "kind": kind,
        "choices": choices,
        "help": rule.help,
        "unset": rule.unset,
        "panel": rule.panel,
        "metavar": rule.metavar,
        "common": name in COMMON,
    }


class _Page:
    """Answers the script of the page."""

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._watches: dict[int, Watch] = {}

    async def file(self, request: "Request") -> Response:
        """A file of the page."""
        name = request.url.path.rpartition("/")[2]
        return FileResponse(FILES / (name or "index.html"), media_type=TYPES[name])

    async def settings(self, _: "Request") -> Response:
        """The fields, the models with their own values, and the bounds of a request."""
        self._server.find_model()
        names = [*COMMON, *(name for name in RULES if name not in (*COMMON, *LEFT_OUT))]
        models = [
            {
                "name": name,
                "defaults": {k: RULES[k].format(v) for k, v in _defaults(pipe).items()},
                "max_pixels": self._server.limits(pipe).pixels,
                "max_steps": self._server.limits(pipe).steps,
            }
            for name, pipe in self._server.models.items()
        ]
        fields = [describe_field(name, RULES[name]) for name in names]
        return JSONResponse({"models": models, "fields": fields})

    async def draw(self, request: "Request") -> Response:
        """Draws, and streams what happens; who closes the stream stops the work."""
        values = await read_object(request)
        pipe = self._server.find_model(values.get("model"))
        fit = partial(self._server.preview, pipe)
        watch = self._watches.setdefault(id(pipe), Watch(pipe, fit))
        limits = self._server.limits(pipe)
        images, canvas = await asyncio.to_thread(
            lambda: plan(pipe, _typed(values.get("settings")), limits)
        )
        task = Task(watch.pipe, images, canvas, may_join=False)
        task.on_step = watch.show(task)
        self._server.drawing.submit(task)
        return EventStream(self._events(request, task, _defaults(pipe)))

    async def _events(
        self, request: "Request", task: Task, defaults: Mapping[str, Any]
    ) -> AsyncIterator[Event]:
        try:
            yield "begun", {"images": [s.seed for s in task.images]}
            async for event in task.events():
                match event:
                    case Waiting():
                        yield "waiting", {"position": event.position}
                    case Shown():
                        yield "step", event.data
                    case Drawn():
                        told = {"warnings": task.warnings}
                        shown = await asyncio.to_thread(_finished, event, defaults)
                        yield "image", {**shown, **told}
        except Exception as error:
            yield error_event(request, error)
        finally:
            self._server.drawing.cancel(task)

    async def attention(self, request: "Request") -> Response:
        """Draws an image again and answers where each word of its prompt acted."""
        values = await read_object(request)
        pipe = self._server.find_model(values.get("model"))
        typed = _typed(values.get("settings"))
        if any(name in typed for name in IMAGES):
            rule = "is not shown for images that begin with another"
            raise RequestError(400, "the attention", rule, "leave init_image out")
        limits = self._server.limits(pipe)
        images, _ = await asyncio.to_thread(lambda: plan(pipe, typed, limits))
        task = Task(pipe, images[:1])
        chosen = {name: value for name, value in images[0].to_dict().items() if name in typed}
        prompt = chosen.pop("prompt")
        chosen |= {"seed": images[0].seed, "n": 1}
        task.work = lambda see: _Maps(attention_data(pipe, prompt, on_step=see, **chosen))
        self._server.drawing.submit(task)
        try:
            found = await events_for(request, task)
        finally:
            self._server.drawing.cancel(task)
        maps = next(event.maps for event in found if isinstance(event, _Maps))
        return JSONResponse(describe_maps(maps))

    async def read(self, request: "Request") -> Response:
        """What a dropped image says of itself."""
        self._server.find_model()
        data = await request.body()

        def look() -> dict[str, Any]:
            with open_dropped(data) as path:
                return describe(path, self._server.models)

        return JSONResponse(await asyncio.to_thread(look))

    async def replay(self, request: "Request") -> Response:
        """Draws a dropped image again, and says whether it came out the same."""
        self._server.find_model()
        data = await request.body()
        with open_dropped(data) as path:
            pipe, job, images = await asyncio.to_thread(self._plan_again, path)
            task = Task(pipe, images, may_join=False)
            self._server.drawing.submit(task)
            try:
                drawn = await images_for(request, task)
            finally:
                self._server.drawing.cancel(task)
            wanted = next(one for one in drawn if one.number == job.index)
            return JSONResponse(await asyncio.to_thread(compare, path, job, wanted))

    def _plan_again(self, path: str) -> "tuple[Pipeline, ReplayJob, Sequence[ResolvedSettings]]":
        pipe = self._server.models[find_model(read_record(path), self._server.models)]
        job = plan_again(path, pipe, self._server.limits(pipe))
        return pipe, job, job.plan(pipe)[0]


@dataclass(frozen=True, eq=False)
class _Maps:
    """What the attention of a drawing came to."""

    maps: AttentionMaps


def describe_maps(maps: AttentionMaps) -> dict[str, Any]:
    """The maps of each word and of the padding, as shares of all attention at each pixel.

    Words share one scale with the padding: that of the built-in model has nearly all attention,
    and maps of words that were stretched each for itself would hide it.
    """

    def shares(tokens: Sequence[int]) -> dict[str, Any]:
        rows = maps.map(tokens)
        return {"share": maps.share(tokens), "map": [round(float(v), 4) for v in rows.flat]}

    height, width = maps.attention.shape[1:]
    return {
        "width": width,
        "height": height,
        "words": [{"text": word.text, **shares(word.positions)} for word in maps.words],
        "padding": shares(maps.parts["padding"]),
    }


def _defaults(pipe: "Pipeline") -> dict[str, Any]:
    """What a model takes where a setting is left out."""
    return {**DEFAULTS, **pipe.components.defaults}


def _typed(fields: object) -> dict[str, Any]:
    """Settings from what was typed; an image is the Base64 of its file.

    Raises:
        RequestError: they are no object of texts, or an image cannot be read.
    """
    if not isinstance(fields, dict):
        raise RequestError(400, "settings", "are no object", code="invalid_json")
    values: dict[str, Any] = {}
    for name, text in fields.items():
        if not isinstance(text, str):
            raise RequestError(400, f"{name[:80]}", "is no text", param=name[:80])
        if name in IMAGES:
            values[name] = text  # Base64, which `plan` reads
        else:
            values[name] = RULES[name].parse(text) if name in RULES else text
    return values


def _finished(drawn: Drawn, defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "image": drawn.number,
        "b64": base64.b64encode(drawn.encode()).decode(),
        "seed": drawn.settings.seed,
        "variation_seed": drawn.settings.variation_seed,
        "settings": to_fields(drawn.settings.to_dict(), defaults),
    }
