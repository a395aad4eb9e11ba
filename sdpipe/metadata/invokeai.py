"""What InvokeAI writes: JSON, since version 3 as `invokeai_metadata`, before that as `sd-metadata`,
and first a command, `Dream`.
"""

import re
from collections.abc import Mapping
from typing import Any

from sdpipe.metadata.foreign import GPU_NOISE, as_ours, left_out, number, without_none
from sdpipe.metadata.record import MAX_PROMPT, Record, RecordError, Value
from sdpipe.prompt.syntax import escape

_OURS = {
    **{name: name for name in ("lms", "ddim", "pndm", "euler", "euler_a", "heun", "unipc")},
    "plms": "pndm",
    "dpmpp_2": "dpm++",
    "dpmpp_2m": "dpm++",
}

_EDITORS_OWN = ("canvas_v2_metadata", "workflow", "graph", "regions", "model_list", "variations")


def read(told: Mapping[str, Any]) -> Record:
    """Reads what InvokeAI writes since its version 3.

    Raises:
        RecordError: a value has another type, or is too long.
    """
    rest = dict(told)
    model = rest.pop("model", None)
    scheduler, remarks = _scheduler(rest.pop("scheduler", None))
    values = {
        "prompt": rest.pop("positive_prompt", None) or "",
        "negative_prompt": rest.pop("negative_prompt", None) or "",
        "steps": rest.pop("steps", None),
        "g": rest.pop("cfg_scale", None),
        "guidance_rescale": rest.pop("cfg_rescale_multiplier", None),
        "seed": rest.pop("seed", None),
        "width": rest.pop("width", None),
        "height": rest.pop("height", None),
        "clip_skip": _from_one(rest.pop("clip_skip", None)),
        **scheduler,
    }
    digest = model.get("hash", model.get("model_hash")) if isinstance(model, Mapping) else None
    return _record(values, _name(model), digest, rest.pop("app_version", None), rest, remarks)


def read_2(told: Mapping[str, Any]) -> Record:
    """Reads what InvokeAI wrote in its version 2.

    Raises:
        RecordError: a value has another type, or is too long.
    """
    image = told.get("image")
    if not isinstance(image, Mapping):
        raise RecordError("sd-metadata without an image.")
    rest = dict(image)
    prompts = rest.pop("prompt", "")
    if not isinstance(prompts, list):
        prompts = [prompts]
    texts = [p.get("prompt") if isinstance(p, Mapping) else p for p in prompts]
    scheduler, remarks = _scheduler(rest.pop("sampler", None))
    if len(texts) > 1:
        remarks.append("its prompts were blended there; here they are one text.")
    values = {
        **_brackets(" ".join(text for text in texts if isinstance(text, str))),
        "steps": rest.pop("steps", None),
        "g": rest.pop("cfg_scale", None),
        "seed": rest.pop("seed", None),
        "width": rest.pop("width", None),
        "height": rest.pop("height", None),
        **scheduler,
    }
    if rest.get("type") not in (None, "txt2img"):
        remarks.append("it was made from another picture there; here from the text alone.")
    model, digest = told.get("model_weights"), told.get("model_hash")
    return _record(values, model, digest, told.get("app_version"), rest, remarks)


def read_dream(command: str) -> Record:
    """Reads the command that InvokeAI's first versions wrote: "prompt" -s50 -S42 -W512 -H512 ...

    Raises:
        RecordError: it is longer than any that is meant.
    """
    if len(command) > 2 * MAX_PROMPT:
        raise RecordError(f"a command of {len(command)} characters.")
    text, quote, switches = command.strip().rpartition('"')
    if not quote:
        text, _, switches = command.partition(" -")
        switches = f"-{switches}"
    told = dict(re.findall(r"-([sSWHCA]) ?([\w.+-]+)", switches))
    scheduler, remarks = _scheduler(told.get("A"))
    values = {
        **_brackets(text.removeprefix('"')),
        "steps": number(told.get("s"), int),
        "g": number(told.get("C"), float),
        "seed": number(told.get("S"), int),
        "width": number(told.get("W"), int),
        "height": number(told.get("H"), int),
        **scheduler,
    }
    return _record(values, None, None, None, {}, remarks)


def _record(
    values: Mapping[str, Any],
    model: object,
    digest: object,
    version: object,
    rest: Mapping[str, Any],
    remarks: list[str],
) -> Record:
    others = {k: _short(v) for k, v in rest.items() if v not in (None, "", [], {})}
    others = {k: v for k, v in others.items() if k not in _EDITORS_OWN}
    if rest.get("rand_device", "cpu") != "cpu":
        remarks.append(GPU_NOISE)
    if re.search(r"[()]|\w[+-]{1,9}(?!\w)", f"{values['prompt']} {values['negative_prompt']}"):
        remarks.append("signs that weight words there, as in word++, are read as text here.")
    prompts = ((k, values[k]) for k in ("prompt", "negative_prompt"))
    values = {**values, **{k: escape(v) for k, v in prompts if isinstance(v, str)}}
    known = {"name": model, "hash": digest}
    return Record(
        source="InvokeAI",
        values=without_none(values),
        model={key: value for key, value in known.items() if isinstance(value, str) and value},
        versions={"program": version} if isinstance(version, str) else {},
        others=others,
        remarks=(*remarks, *left_out(others)),
    )


def _brackets(text: str) -> dict[str, str]:
    """What stands in [brackets] is the negative prompt."""
    negative = re.findall(r"\[([^\[\]]*)\]", text)
    prompt = re.sub(r"\[[^\[\]]*\]", " ", text) if negative else text
    return {"prompt": " ".join(prompt.split()), "negative_prompt": " ".join(negative)}


def _scheduler(theirs: object) -> tuple[dict[str, Value], list[str]]:
    """Our settings for a scheduler of theirs, and what there is to say about it.

    Before version 3 k_lms was lms; since then lms_k is lms with Karras' steps.
    """
    if not isinstance(theirs, str):
        return {}, []
    name = theirs.lower().removeprefix("k_")
    karras = name.endswith("_k")
    name = name.removesuffix("_k")
    return as_ours(theirs, _OURS.get(name), name, karras, [])


def _name(model: object) -> object:
    """A model's or a part's name in InvokeAI's JSON."""
    if isinstance(model, Mapping):
        return model.get("name", model.get("model_name"))
    return model


def _from_one(skipped: object) -> object:
    """The layer that is listened to, from how many are skipped."""
    whole = isinstance(skipped, int) and not isinstance(skipped, bool)
    return skipped + 1 if whole else skipped  # type: ignore[operator]


def _short(value: object) -> Value:
    """A value of InvokeAI's JSON in a line: of an object its name, of a list how many there are."""
    if isinstance(value, Mapping):
        name = _name(value)
        return name if isinstance(name, str) else "an object"
    if isinstance(value, list):
        return f"{len(value)} of them"
    return value  # type: ignore[return-value]
