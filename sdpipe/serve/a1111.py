"""A1111's interface under /sdapi/v1, as the clients of its web UI speak it.

What its fields mean is in `a1111_fields`, what is listed and chosen in `a1111_options`.
"""

import asyncio
import base64
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sdpipe.errors import SdpipeError
from sdpipe.serve import a1111_options as lists
from sdpipe.serve.a1111_fields import Asked, read
from sdpipe.serve.a1111_info import read_info, write_info
from sdpipe.serve.answers import (
    RequestError,
    images_for,
    param_of,
    read_object,
    to_request_error,
)
from sdpipe.serve.inputs import decode_base64, plan
from sdpipe.serve.task import Task, decode_images

if TYPE_CHECKING:
    from starlette.requests import Request

    from sdpipe.canvas import Canvas
    from sdpipe.denoise import Step
    from sdpipe.pipeline import Pipeline
    from sdpipe.serve.server import Server
    from sdpipe.settings import ResolvedSettings

PREFIX = "/sdapi/v1"

EMPTY: dict[str, Any] = {
    "prompt-styles": [],
    "latent-upscale-modes": [],
    "scripts": {"txt2img": [], "img2img": []},
    "script-info": [],
    "hypernetworks": [],
    "face-restorers": [],
    "cmd-flags": {},
}
"""What there is none of here."""

REFRESH = ("refresh-checkpoints", "refresh-vae", "refresh-loras")
"""What there is nothing to do for: models are loaded at the start."""


def routes(server: "Server") -> list[Route]:
    """The addresses of the interface."""
    ours = _Interface(server)

    def get(name: str, answer: Callable[[], Any]) -> Route:
        async def listed(_: "Request") -> Response:
            return JSONResponse(await asyncio.to_thread(answer))  # may hash a model's weights

        return Route(f"{PREFIX}/{name}", listed)

    def get_of_model(name: str, answer: "Callable[[Pipeline], Any]") -> Route:
        return get(name, lambda: answer(ours.options.find_model()[1]))

    def post(name: str, answer: "Callable[[Request], Any]") -> Route:
        async def done(request: "Request") -> Response:
            return JSONResponse(await answer(request))

        return Route(f"{PREFIX}/{name}", done, methods=["POST"])

    async def nothing(_: "Request") -> None:
        return None

    def models() -> list[dict[str, Any]]:
        server.find_model()
        return [lists.describe(name, pipe) for name, pipe in server.models.items()]

    return [
        post("txt2img", lambda request: ours.draw(request, has_image=False)),
        post("img2img", lambda request: ours.draw(request, has_image=True)),
        post("png-info", _tell),
        get("options", ours.options.to_dict),
        post("options", ours.set_options),
        get("samplers", lists.list_samplers),
        get("schedulers", lists.list_schedulers),
        get("sd-models", models),
        get_of_model("sd-vae", lists.list_vaes),
        get("upscalers", lists.list_upscalers),
        get_of_model("loras", lists.list_loras),
        get_of_model("embeddings", lists.list_embeddings),
        *(get(name, partial(EMPTY.get, name)) for name in EMPTY),
        *(post(name, nothing) for name in REFRESH),
        Route(f"{PREFIX}/progress", ours.progress),
        post("interrupt", ours.interrupt),
        post("skip", ours.interrupt),
    ]


async def _tell(request: "Request") -> dict[str, Any]:
    """What an uploaded image says of itself."""
    values = await read_object(request)
    return await asyncio.to_thread(lambda: read_info(decode_base64("image", values.get("image"))))


class _Interface:
    """The requests that are drawn for this interface, and what is chosen for the next."""

    def __init__(self, server: "Server") -> None:
        self.options = lists.Options(server)
        self._server = server
        self._watched: dict[str, _Watch] = {}

    async def draw(self, request: "Request", *, has_image: bool) -> dict[str, Any]:
        """Draws what a request asks for; one that is interrupted has the images so far."""
        values = await read_object(request)
        asked, name, pipe, images, canvas = await asyncio.to_thread(self._plan, values, has_image)
        if asked.task_id in self._watched:
            rule, remedy = "is the name of a request that is drawn now", "use another"
            raise RequestError(422, "force_task_id", rule, remedy, param="force_task_id")
        task = Task(pipe, images, canvas)
        task.id = asked.task_id or task.id
        watch = self._watched[task.id] = _Watch(task)
        task.on_step = watch.see
        try:
            self._server.drawing.submit(task)
            drawn = sorted(await images_for(request, task), key=lambda one: one.number)
        finally:
            del self._watched[task.id]
            self._server.drawing.cancel(task)

        def answer() -> dict[str, Any]:
            files = [one.encode(with_metadata=asked.with_metadata) for one in drawn]
            texts = [one.record()["parameters"] for one in drawn]
            shown = [one.settings for one in drawn] or images
            size = values.get("batch_size") or 1
            sent = [base64.b64encode(file).decode() for file in files]
            return {
                "images": sent if asked.sends_images else [],
                "parameters": _echo(values, asked),
                "info": write_info(name, pipe, shown, texts, size),
            }

        return await asyncio.to_thread(answer)

    def _plan(
        self, values: dict[str, Any], has_image: bool
    ) -> "tuple[Asked, str, Pipeline, list[ResolvedSettings], Canvas | None]":
        """Everything that is known of a request before it is drawn.

        Raises:
            RequestError: a field has a value that it cannot have; it is named as the client did.
        """
        asked = read(values, self.options, has_image=has_image)
        name, pipe = self.options.find_model(asked.checkpoint)
        try:
            images, canvas = plan(pipe, asked.settings, self._server.limits(pipe))
        except SdpipeError as error:
            told = to_request_error(error)
            setting = told.param or param_of(error) or ""
            if (field := asked.fields.get(setting)) is None:
                raise
            raise RequestError(
                422, f"{field}: {told.value}", told.rule, told.remedy, param=field
            ) from error
        return asked, name, pipe, images, canvas

    async def set_options(self, request: "Request") -> None:
        """Takes the options that a client sends back, changed or not."""
        values = await read_object(request)
        await asyncio.to_thread(self.options.change, values)

    async def interrupt(self, request: "Request") -> dict[str, Any]:
        """Ends the request that `task_id` names, or what is drawn now for this interface.

        `skip` does the same: a request is one job here, whatever its n_iter.
        """
        values = await read_object(request) if await request.body() else {}
        name = values.get("task_id", request.query_params.get("task_id"))
        if name is None:
            tasks = [watch.task for watch in self._drawn()]
        elif str(name) in self._watched:
            tasks = [self._watched[str(name)].task]
        else:
            rule = "is not being drawn, and does not wait"
            raise RequestError(404, f"task_id={str(name)[:80]!r}", rule, param="task_id")
        for task in tasks:
            self._server.drawing.cancel(task, keep=True)
        return {}

    def _drawn(self) -> "list[_Watch]":
        """What is drawn at this moment for this interface."""
        return [watch for watch in self._watched.values() if watch.task.state == "drawing"]

    async def progress(self, request: "Request") -> Response:
        """How far the request is that is drawn now, else the first that waits."""
        watches = self._drawn() or list(self._watched.values())
        watch = watches[0] if watches else None
        state = {
            "skipped": False,
            "interrupted": watch is not None and watch.task.is_stopped,
            "stopping_generation": False,
            "job": "" if watch is None else watch.task.id,
            "job_count": len(self._watched),
            "job_timestamp": "0" if watch is None else watch.timestamp,
            "job_no": 0,
            "sampling_step": 0 if watch is None else watch.index,
            "sampling_steps": 0 if watch is None else watch.total,
        }
        answer = {
            "progress": 0.0 if watch is None else max(watch.fraction, 0.01),
            "eta_relative": 0.0 if watch is None else watch.seconds_left(),
            "state": state,
            "current_image": None,
            "textinfo": None,
        }
        if watch is not None and watch.task.state == "waiting":
            answer["textinfo"] = "in the queue"
        if watch is not None and request.query_params.get("skip_current_image") != "true":
            answer["current_image"] = watch.image
            watch.is_wanted = True
        return JSONResponse(answer)


class _Watch:
    """How far a task is, and the image so far for those who ask.

    An image is decoded in the drawing thread at the step after somebody asked, so that nothing
    else uses the VAE: who asks for the first time gets none.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.timestamp = time.strftime("%Y%m%d%H%M%S")
        self.fraction, self.index, self.total = 0.0, 0, task.images[0].steps
        self.image: str | None = None
        self.is_wanted = False
        self._begun: tuple[float, float] | None = None

    def see(self, step: "Step") -> None:
        """Takes note of a step."""
        if self.is_wanted and not step.is_last:
            (image,) = decode_images(self.task.pipe.components, step.x0[:1])
            image.save(buffer := BytesIO(), "PNG")
            self.image = base64.b64encode(buffer.getvalue()).decode()
            self.is_wanted = False
        done = step.images.start + len(step.images) * (step.index + 1) / step.total
        self.fraction = done / len(self.task.images)
        self.index, self.total = step.index + 1, step.total
        self._begun = self._begun or (time.monotonic(), self.fraction)

    def seconds_left(self) -> float:
        """An estimate, from the pace so far; 0 where there is none yet."""
        if self._begun is None or self.fraction <= self._begun[1]:
            return 0.0
        since, first = self._begun
        return (time.monotonic() - since) / (self.fraction - first) * (1 - self.fraction)


def _echo(values: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """The fields of a request as the answer repeats them: without the images."""
    heavy = () if asked.sends_init_images else ("init_images", "mask", "init_image", "mask_image")
    return {name: None if name in heavy else value for name, value in values.items()}
