"""What other programs write into their pictures, read as a `Record` as far as it is ours to draw.

A1111's web UI writes a text, `parameters`; many others write the same. InvokeAI writes JSON, since
version 3 as `invokeai_metadata`, before that as `sd-metadata`, and first a command, `Dream`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sdpipe.guidance import scale
from sdpipe.init import steps_taken
from sdpipe.png import HIRES_UPSCALER, SAMPLERS
from sdpipe.record import MAX_PROMPT, Record, RecordError, Value
from sdpipe.settings import KARRAS_SCHEDULERS
from sdpipe.syntax import literal

# "name: value" or 'name: "JSON text"'. The bound on the name keeps a search linear in the text.
_PAIR = re.compile(r'(\w[\w /-]{1,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d{1,9})x(\d{1,9})")

_FROM_A1111 = {theirs.lower(): ours for ours, theirs in SAMPLERS.items()}
_FROM_INVOKEAI = {
    **{name: name for name in ("lms", "ddim", "pndm", "euler", "euler_a", "heun", "unipc")},
    "plms": "pndm",
    "dpmpp_2": "dpm++",
    "dpmpp_2m": "dpm++",
}

# What else is told but leaves the picture as it is; or, with this one value, does.
_HARMLESS = {"RNG", "Tiling", "User", "Hashes", "rand_device", "type", "id"}
_DEFAULTS: Mapping[str, Value] = {
    "generation_mode": "txt2img",
    "is_intermediate": True,
    "use_cache": True,
}
_EDITORS_OWN = ("canvas_v2_metadata", "workflow", "graph", "regions", "model_list", "variations")


def a1111(text: str) -> Record:
    """Reads the text that A1111's web UI writes: prompts, then a last line of names and values.

    Raises:
        RecordError: it is longer than any that is meant.
    """
    *lines, last = text.strip().split("\n")
    if len(last) > MAX_PROMPT:
        raise RecordError(f"a line of {len(last)} characters; up to {MAX_PROMPT} are read.")
    found = _PAIR.findall(last)
    if len(found) < 3:  # as A1111 decides it: then the last line belongs to the prompt
        lines, found = [*lines, last], []
    pairs = {key: _unquoted(value.strip()) for key, value in found}
    prompt, negative = _split(lines)

    version = pairs.pop("Version", "")
    scheduler, remarks = _a1111_scheduler(pairs.pop("Sampler", ""), pairs.pop("Schedule type", ""))
    values: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": negative,
        "steps": _number(pairs.pop("Steps", None), int),
        "g": _scale(pairs.pop("CFG scale", None)),
        "seed": _number(pairs.pop("Seed", None), int),
        "variation": _number(pairs.pop("Variation seed strength", None), float),
        "variation_seed": _number(pairs.pop("Variation seed", None), int),
        "clip_skip": _number(pairs.pop("Clip skip", None), int),
        "seamless": "xy" if pairs.get("Tiling") == "True" else None,
        **_size(pairs.pop("Size", None)),
        **scheduler,
    }
    values |= _a1111_hires(pairs, values["steps"], remarks)
    model = {"name": pairs.pop("Model", ""), "hash": pairs.pop("Model hash", "")}
    if pairs.get("RNG", "GPU") != "CPU":
        remarks.append("its noise was drawn by a GPU; from the same seed a CPU draws another.")
    if values["variation"] is not None:
        remarks.append("its variation was mixed there column by column; here the noise as a whole.")
    if re.search(r"<\w+:|\bAND\b", f"{prompt} {negative}"):
        remarks.append("<lora:...> and AND, which mean something there, are read as text here.")
    return Record(
        source="A1111",
        values=_told(values),
        model={key: value for key, value in model.items() if value},
        versions={"program": version} if version else {},
        others=pairs,
        remarks=(*remarks, *_left_out(pairs)),
    )


def invokeai(told: Mapping[str, Any]) -> Record:
    """Reads what InvokeAI writes since its version 3.

    Raises:
        RecordError: a value has another type, or is too long.
    """
    rest = dict(told)
    model = rest.pop("model", None)
    scheduler, remarks = _invokeai_scheduler(rest.pop("scheduler", None))
    values = {
        "prompt": rest.pop("positive_prompt", None) or "",
        "negative_prompt": rest.pop("negative_prompt", None) or "",
        "steps": rest.pop("steps", None),
        "g": rest.pop("cfg_scale", None),
        "rescale": rest.pop("cfg_rescale_multiplier", None),
        "seed": rest.pop("seed", None),
        "width": rest.pop("width", None),
        "height": rest.pop("height", None),
        "clip_skip": _from_one(rest.pop("clip_skip", None)),
        **scheduler,
    }
    digest = model.get("hash", model.get("model_hash")) if isinstance(model, Mapping) else None
    return _of_invokeai(values, _name(model), digest, rest.pop("app_version", None), rest, remarks)


def invokeai_2(told: Mapping[str, Any]) -> Record:
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
    scheduler, remarks = _invokeai_scheduler(rest.pop("sampler", None))
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
    return _of_invokeai(values, model, digest, told.get("app_version"), rest, remarks)


def dream(command: str) -> Record:
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
    scheduler, remarks = _invokeai_scheduler(told.get("A"))
    values = {
        **_brackets(text.removeprefix('"')),
        "steps": _number(told.get("s"), int),
        "g": _number(told.get("C"), float),
        "seed": _number(told.get("S"), int),
        "width": _number(told.get("W"), int),
        "height": _number(told.get("H"), int),
        **scheduler,
    }
    return _of_invokeai(values, None, None, None, {}, remarks)


def _of_invokeai(
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
        remarks.append("its noise was drawn by a GPU; from the same seed a CPU draws another.")
    if re.search(r"[()]|\w[+-]{1,9}(?!\w)", f"{values['prompt']} {values['negative_prompt']}"):
        remarks.append("signs that weight words there, as in word++, are read as text here.")
    prompts = ((k, values[k]) for k in ("prompt", "negative_prompt"))
    values = {**values, **{k: literal(v) for k, v in prompts if isinstance(v, str)}}
    known = {"name": model, "hash": digest}
    return Record(
        source="InvokeAI",
        values=_told(values),
        model={key: value for key, value in known.items() if isinstance(value, str) and value},
        versions={"program": version} if isinstance(version, str) else {},
        others=others,
        remarks=(*remarks, *_left_out(others)),
    )


def _split(lines: Iterable[str]) -> tuple[str, str]:
    """Prompt and negative prompt, which begins with the line that says so."""
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in map(str.strip, lines):
        if line.startswith("Negative prompt:"):
            part, line = negative, line.removeprefix("Negative prompt:").strip()
        part.append(line)
    return "\n".join(prompt).strip("\n"), "\n".join(negative).strip("\n")


def _brackets(text: str) -> dict[str, str]:
    """What stands in [brackets] is the negative prompt."""
    negative = re.findall(r"\[([^\[\]]*)\]", text)
    prompt = re.sub(r"\[[^\[\]]*\]", " ", text) if negative else text
    return {"prompt": " ".join(prompt.split()), "negative_prompt": " ".join(negative)}


def _a1111_scheduler(sampler: str, schedule: str) -> tuple[dict[str, Value], list[str]]:
    """Our settings for a sampler of A1111, and what there is to say about it."""
    name = sampler.lower()
    karras = schedule == "Karras" or name.endswith(" karras")
    name = name.removesuffix(" karras")
    if schedule == "Automatic":  # which is Karras for this family, and even for the others
        karras = name.startswith("dpm++")
    others = ("", "Automatic", "Uniform", "Karras")
    remarks = (
        [f"its schedule {schedule!r} is none of ours; the steps are spaced evenly."]
        if schedule not in others
        else []
    )
    if not sampler:
        return {}, remarks
    return _as_ours(sampler, _FROM_A1111.get(name), name, karras, remarks)


def _a1111_hires(pairs: dict[str, str], steps: Value, remarks: list[str]) -> dict[str, Value]:
    """Our settings for a second pass, taken out of `pairs`; {} where there was none.

    There the schedule grows until so many steps of it are left; here the second pass has the
    steps of the first.
    """
    if "Hires upscale" not in pairs:
        return {}
    factor = _number(pairs.pop("Hires upscale"), float)
    strength = _number(pairs.pop("Denoising strength", None), float)
    theirs = _number(pairs.pop("Hires steps", None), int) or steps
    upscaler = pairs.pop("Hires upscaler", HIRES_UPSCALER)
    if upscaler != HIRES_UPSCALER:
        remarks.append(
            f"it was scaled up by {upscaler[:60]!r} there, and here by {HIRES_UPSCALER}."
        )
    if isinstance(strength, float) and isinstance(steps, int) and 0 < strength <= 1:
        ours = steps_taken(steps, strength)
        if ours != theirs:
            remarks.append(f"its second pass took {theirs} steps there, and takes {ours} here.")
    return {"hires": factor, "hires_strength": strength}


def _invokeai_scheduler(theirs: object) -> tuple[dict[str, Value], list[str]]:
    """The same for a scheduler of InvokeAI; before version 3 k_lms was lms, since then lms_k is
    lms with Karras' steps.
    """
    if not isinstance(theirs, str):
        return {}, []
    name = theirs.lower().removeprefix("k_")
    karras = name.endswith("_k")
    name = name.removesuffix("_k")
    return _as_ours(theirs, _FROM_INVOKEAI.get(name), name, karras, [])


def _as_ours(
    theirs: str, ours: str | None, name: str, karras: bool, remarks: list[str]
) -> tuple[dict[str, Value], list[str]]:
    if ours is None:
        ours = "dpm++" if name.startswith(("dpm", "k_dpm")) else None
        instead = f"{ours} draws" if ours else "the model's own draws"
        remarks = [*remarks, f"its sampler {theirs[:60]!r} is none of ours; {instead} instead."]
    if karras and ours not in KARRAS_SCHEDULERS:
        remarks = [*remarks, "its Karras noise levels are left out: no such scheduler has them."]
        karras = False
    order = {"lms_order": 4} if ours == "lms" else {}  # theirs have no other
    return {"scheduler": ours, "karras": karras, **order}, remarks


def _left_out(others: Mapping[str, Value]) -> list[str]:
    """A remark on what had its part in the picture and is not drawn here."""
    names = [
        key
        for key, value in others.items()
        if key not in _HARMLESS and value not in (_DEFAULTS.get(key), False, 0, "0", "False")
    ]
    return [f"left out: {', '.join(names[:12])}."] if names else []


def _size(text: str | None) -> dict[str, Value]:
    if text is None:
        return {}
    match = _SIZE.fullmatch(text)
    if match is None:
        return {"width": text}  # no size at all: refused where it counts
    return {"width": int(match[1]), "height": int(match[2])}


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _number(text: str | None, kind: type[int] | type[float]) -> Value:
    """The number that a text stands for; the text itself where it stands for none."""
    try:
        return text if text is None or len(text) > 60 else kind(text)
    except ValueError:
        return text


def _scale(text: str | None) -> Value | list[float]:
    """A guidance scale; "12:4" is what `png.parameters` writes of one that changes."""
    found = text if text is None or len(text) > 60 else scale(text)
    return list(found) if isinstance(found, tuple) else found


def _unquoted(text: str) -> str:
    if not (len(text) > 1 and text[0] == text[-1] == '"'):
        return text
    try:
        value = json.loads(text)
        value.encode()
    except (ValueError, AttributeError):
        return text
    return str(value)


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
