"""`Server`: the pipeline as an ASGI application.

from sdpipe import Pipeline
from sdpipe.serve import Server

app = Server(Pipeline("emoji"))  # uvicorn module:app
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from sdpipe.errors import SdpipeError, UsageError
from sdpipe.pipeline import Pipeline
from sdpipe.serve import a1111, openai, page
from sdpipe.serve.answers import RequestError, failure, local_path
from sdpipe.serve.drawing import Drawing
from sdpipe.serve.gallery import Gallery
from sdpipe.serve.guard import MAX_BODY, Guard
from sdpipe.serve.inputs import Limits
from sdpipe.show.preview import LatentPreview, fit_preview

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

MAX_STEPS = 150
PIXELS = 16
"""A request may ask for as many images of the model's own size."""


class Server:
    """The pipeline over HTTP: an ASGI application, for uvicorn or to be mounted in another.

    pipelines: what draws, the first by default; or a function that loads them, which `load` calls:
        until then drawing is answered with 503.
    api_key: what every request has to bring; None asks for none.
    queue: requests that may wait. join: draw those that go together as one batch.
    max_pixels: of all images of a request; None is 16 times those of the model's own size.
    max_steps: of an image.
    allowed_hosts: names by which the server may be called, beside its address and localhost.
    cors: origins of pages elsewhere whose scripts may ask.
    grace: seconds that what is being drawn gets when the server ends.
    max_body: bytes of a request.
    """

    def __init__(
        self,
        pipelines: Pipeline | Sequence[Pipeline] | Callable[[], Sequence[Pipeline]],
        *,
        api_key: str | None = None,
        queue: int = 64,
        join: bool = False,
        max_pixels: int | None = None,
        max_steps: int = MAX_STEPS,
        allowed_hosts: Collection[str] = (),
        cors: Collection[str] = (),
        grace: float = 30.0,
        max_body: int = MAX_BODY,
    ) -> None:
        self._load = pipelines if callable(pipelines) else None
        self.models: dict[str, Pipeline] = {}
        self._previews: dict[Pipeline, LatentPreview] = {}
        self._fitting = threading.Lock()
        self.drawing = Drawing(queue, join=join)
        self.gallery = Gallery()
        self.grace = grace
        self._max_pixels, self._max_steps = max_pixels, max_steps
        if not callable(pipelines):
            self._take([pipelines] if isinstance(pipelines, Pipeline) else pipelines)
        app = Starlette(
            routes=[
                Route("/health", _health),
                Route("/ready", self._ready),
                Route("/metrics", self._metrics),
                *openai.routes(self),
                *a1111.routes(self),
                *page.routes(self),
            ],
            exception_handlers={
                HTTPException: _http_error,
                SdpipeError: _error,
                Exception: _error,
            },
            lifespan=self._lifespan,
        )
        self._app = Guard(app, hosts=allowed_hosts, key=api_key, origins=cors, max_body=max_body)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answers a request."""
        await self._app(scope, receive, send)

    def load(self) -> None:
        """Loads the models, where a function for that was given.

        Raises:
            As `Pipeline`.
        """
        if self._load is not None:
            self._take(self._load())

    def preview(self, pipe: Pipeline) -> LatentPreview:
        """The map of a model's latents to colours, fitted to its VAE when first asked for."""
        with self._fitting:
            if pipe not in self._previews:
                self._previews[pipe] = fit_preview(pipe.components)
            return self._previews[pipe]

    def prepare(self) -> None:
        """Fits the previews of all models, so that the page's first image does not wait.

        With low_memory that is left to the drawing thread, which moves the VAE to and fro.
        """
        for pipe in self.models.values():
            if not pipe.components.low_memory:
                self.preview(pipe)

    def _take(self, pipelines: Sequence[Pipeline]) -> None:
        models: dict[str, Pipeline] = {}
        for pipe in pipelines:
            if (name := public_name(pipe)) in models:
                raise UsageError(f"model {name}", "is there twice", "rename one of the two folders")
            models[name] = pipe
        self.models = models  # in one step: another thread looks

    @property
    def is_ready(self) -> bool:
        """Whether the models are loaded."""
        return bool(self.models)

    def find_model(self, name: object = None) -> Pipeline:
        """The pipeline that a request names; None and "" is the first.

        Raises:
            RequestError: no model is loaded yet, or none has that name.
        """
        if not self.is_ready:
            raise RequestError(503, "the model", "is being loaded", "ask again soon", seconds=5)
        if name in (None, ""):
            return next(iter(self.models.values()))
        if isinstance(name, str) and name in self.models:
            return self.models[name]
        others = ", ".join(self.models)
        rule, remedy = "is not served here", f"the models are: {others}"
        value = f"model {str(name)[:80]!r}"
        raise RequestError(404, value, rule, remedy, param="model", code="model_not_found")

    def limits(self, pipe: Pipeline) -> Limits:
        """What one request may ask of a model."""
        own = pipe.components.defaults
        pixels = self._max_pixels or PIXELS * own["width"] * own["height"]
        return Limits(pixels, self._max_steps)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self.drawing.abort)

    async def _ready(self, _: "Request") -> Response:
        self.find_model()
        return PlainTextResponse("ready\n")

    async def _metrics(self, _: "Request") -> Response:
        counts = self.drawing.counts
        rows = [
            ("images_total", "counter", counts.images, "Images drawn."),
            ("steps_total", "counter", counts.steps, "Denoising steps, of each image."),
            ("requests_begun_total", "counter", counts.tasks, "Requests that were drawn."),
            ("refused_total", "counter", counts.refused, "Requests that found the queue full."),
            ("cancelled_total", "counter", counts.cancelled, "Requests that somebody stopped."),
            ("failed_total", "counter", counts.failed, "Requests that came to no image."),
            ("queue_length", "gauge", len(self.drawing), "Requests that wait."),
            ("drawing", "gauge", len(self.drawing.current), "Requests that are being drawn."),
            ("drawing_seconds_total", "counter", counts.seconds, "Seconds spent drawing."),
            ("waiting_seconds_total", "counter", counts.waited, "Seconds that requests waited."),
        ]
        text = "".join(
            f"# HELP sdpipe_{name} {help}\n# TYPE sdpipe_{name} {kind}\nsdpipe_{name} {value:g}\n"
            for name, kind, value, help in rows
        )
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def public_name(pipe: Pipeline) -> str:
    """What clients call a model: its hub id or built-in name; of a file or folder no path."""
    info = pipe.components.model
    if info.revision is not None or info.folder is None:
        return str(info.name)
    return Path(info.name).stem if info.name.endswith(".safetensors") else Path(info.name).name


async def _health(_: "Request") -> Response:
    return PlainTextResponse("alive\n")


async def _http_error(request: "Request", error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "is not here", 405: "does not take this method"}
    refusal = RequestError(
        error.status_code,
        f"{request.method} {request.url.path[:200]}",
        words.get(error.status_code, str(error.detail)),
        code={404: "not_found", 405: "method_not_allowed"}.get(error.status_code),
    )
    return failure(local_path(request.scope), refusal)


async def _error(request: "Request", error: Exception) -> Response:
    return failure(local_path(request.scope), error)
