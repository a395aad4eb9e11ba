"""An image that somebody drops on the page: what it says of itself, and drawing it again."""

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sdpipe.errors import SdpipeError
from sdpipe.metadata.info import Info, info
from sdpipe.metadata.replay import ReplayJob, prepare_for
from sdpipe.metadata.verify import Verdict, verify
from sdpipe.serve.answers import RequestError
from sdpipe.serve.inputs import Limits, as_file
from sdpipe.settings import DEFAULT_OF, RULES

if TYPE_CHECKING:
    from sdpipe.metadata.record import Record
    from sdpipe.pipeline import Pipeline
    from sdpipe.serve.task import Drawn

NOT_LINKED = ("save_int", "init_image", "mask_image", "n")


@contextmanager
def open_dropped(data: bytes) -> Iterator[str]:
    """A file that holds what was dropped, for the readers that have all bounds.

    Errors that name it call it "the image".
    """
    if not data:
        raise RequestError(400, "the image", "is empty")
    with as_file(data) as path:
        try:
            yield path
        except RequestError:
            raise
        except SdpipeError as error:
            value, rule, remedy = (
                text.replace(path, "the image") for text in (error.value, error.rule, error.remedy)
            )
            raise RequestError(400, value, rule, remedy) from None


def describe(path: str, models: "Mapping[str, Pipeline]") -> dict[str, Any]:
    """What an image says of itself, in rows to read, and whether a served model drew it.

    Raises:
        SdpipeError: it says nothing, or cannot be read.
    """
    found: Info = info(path)
    record, refusal = found.record, None
    try:
        name = find_model(record, models)
        prepare_for(models[name], path)
    except SdpipeError as error:
        name, refusal = None, str(error).replace(path, "the image")
    return {
        "rows": found.rows,
        "unchanged": found.unchanged,
        "model": name,
        "refusal": refusal,
        "settings": _fields_of(record),
    }


def _fields_of(record: "Record") -> dict[str, str]:
    try:
        return to_fields(record.settings().to_dict(), {}) if record.values else {}
    except SdpipeError:  # a file may hold anything
        return {}


def find_model(record: "Record", models: "Mapping[str, Pipeline]") -> str:
    """The served model that drew an image, by its weights, else by its name.

    Raises:
        RequestError: none of them did.
    """
    said = {key: record.model.get(key) for key in ("sha256", "revision")}
    for name, pipe in models.items():
        identity = pipe.components.model.identity()
        if any(value and identity.get(key) == value for key, value in said.items()):
            return name
    called = record.model.get("name", "")
    if called in models:
        return called
    rule, remedy = "is not served here", f"the models are: {', '.join(models)}"
    value = f"the model {called[:80]!r} that drew it" if called else "the model that drew it"
    raise RequestError(400, value, rule, remedy, code="model_not_found")


def plan_again(path: str, pipe: "Pipeline", limits: Limits) -> ReplayJob:
    """What to draw for an image, within the bounds of a request.

    Raises:
        SdpipeError: it cannot be drawn again here, or asks for too much.
    """
    job = prepare_for(pipe, path)
    width, height = job.settings.output_size
    own = pipe.components.defaults
    pixels = job.n * (width or own["width"]) * (height or own["height"])
    if pixels > limits.pixels or (job.settings.steps or 0) > limits.steps:
        rule = "asks for more than a request may"
        raise RequestError(400, "the image", rule, "draw it with sdpipe replay")
    return job


def compare(path: str, job: ReplayJob, drawn: "Drawn") -> dict[str, Any]:
    """The image that was drawn again, and whether it is the same."""
    redrawn = drawn.result.images[drawn.k]
    verdict: Verdict = verify(path, job.record, redrawn, drawn.record()["sdpipe"])
    return {
        "verdict": verdict.outcome,
        "text": str(verdict),
        "notes": list(job.notes),
        "b64": base64.b64encode(drawn.encode()).decode(),
        "details": verdict.to_dict(),
    }


def to_fields(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, str]:
    """Settings as somebody would type them on the page; what is anyhow so is left out.

    defaults: the model's own values.
    """
    fields = {}
    for name, value in values.items():
        if name not in RULES or name in NOT_LINKED or value is None:
            continue
        value = tuple(value) if isinstance(value, list) else value
        is_usual = value == defaults.get(name, DEFAULT_OF[name])
        if name in ("prompt", "seed") or not is_usual:
            fields[name] = RULES[name].format(value)
    return fields
