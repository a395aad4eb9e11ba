"""What InvokeAI writes: JSON as `invokeai_metadata` since version 3, as `sd-metadata` in version 2,
and a command as `Dream` before that.
"""

import re
from collections.abc import Mapping
from typing import Any

from sdpipe.metadata.foreign import (
    as_scalar,
    left_out,
    name_of,
    parse_number,
    rng_settings,
    scheduler_settings,
    without_none,
)
from sdpipe.metadata.record import MAX_PROMPT, Record, RecordError, Value
from sdpipe.prompt.syntax import escape

# Of a Dream command: our settings and what makes them of a text, and the other switches by name.
_SWITCHES: Mapping[str, tuple[str, type[int] | type[float]]] = {
    "-s": ("steps", int),
    "-C": ("g", float),
    "-S": ("seed", int),
    "-W": ("width", int),
    "-H": ("height", int),
}
_OTHER_SWITCHES = {
    "-I": "init image",
    "-f": "strength",
    "-M": "mask",
    "-G": "face restoration",
    "-U": "upscale",
    "-v": "variation_amount",
}
_IDLE_SWITCHES = ("-n", "-b", "-g", "-i", "-o", "-d", "-F", "-t")
_SWITCH = re.compile(r"(--[\w-]+|-ft|-tm|-embiggen\w*|-\w)[ =]?(.*)", re.DOTALL)


def read(written: Mapping[str, Any]) -> Record:
    """Reads the JSON of InvokeAI since version 3.

    Raises:
        RecordError: a value has the wrong type, or is too long.
    """
    rest = dict(written)
    model = rest.pop("model", None)
    scheduler, notes = _scheduler(rest.pop("scheduler", None))
    values = {
        "prompt": rest.pop("positive_prompt", None) or "",
        "negative_prompt": rest.pop("negative_prompt", None) or "",
        "steps": rest.pop("steps", None),
        "g": rest.pop("cfg_scale", None),
        "guidance_rescale": rest.pop("cfg_rescale_multiplier", None),
        "seed": rest.pop("seed", None),
        "width": rest.pop("width", None),
        "height": rest.pop("height", None),
        "clip_skip": _clip_skip(rest.pop("clip_skip", None)),
        "seamless": "".join(a for a in "xy" if rest.pop(f"seamless_{a}", None) is True) or None,
        **scheduler,
    }
    digest = model.get("hash", model.get("model_hash")) if isinstance(model, Mapping) else None
    rng = str(rest.get("rand_device") or "cpu")
    return _record(values, name_of(model), digest, rest.pop("app_version", None), rest, notes, rng)


def read_version_2(written: Mapping[str, Any]) -> Record:
    """Reads the JSON of InvokeAI 2.

    Raises:
        RecordError: a value has the wrong type, or is too long.
    """
    image = written.get("image")
    if not isinstance(image, Mapping):
        raise RecordError("sd-metadata", "lacks its object image")
    rest = dict(image)
    prompts = rest.pop("prompt", "")
    if not isinstance(prompts, list):
        prompts = [prompts]
    texts = [p.get("prompt") if isinstance(p, Mapping) else p for p in prompts]
    scheduler, notes = _scheduler(rest.pop("sampler", None))
    if len(texts) > 1:
        notes.append("its prompts were blended there, and are one text here.")
    values = {
        **_split_brackets(" ".join(text for text in texts if isinstance(text, str))),
        "steps": rest.pop("steps", None),
        "g": rest.pop("cfg_scale", None),
        "seed": rest.pop("seed", None),
        "width": rest.pop("width", None),
        "height": rest.pop("height", None),
        "seamless": "xy" if rest.pop("seamless", None) is True else None,
        **_variation(rest),
        **scheduler,
    }
    if rest.get("type") not in (None, "txt2img"):
        notes.append("it was drawn from another image there, and from the text alone here.")
    model, digest = written.get("model_weights"), written.get("model_hash")
    return _record(values, model, digest, written.get("app_version"), rest, notes)


def read_dream(command: str) -> Record:
    """Reads a command of InvokeAI before version 2: "prompt" -s50 -S42 -W512 -H512 ...

    Raises:
        RecordError: the command is too long.
    """
    if len(command) > 2 * MAX_PROMPT:
        raise RecordError(
            f"a command of {len(command)} characters", f"exceeds the {2 * MAX_PROMPT} read"
        )
    text, quote, switches = command.strip().rpartition('"')
    if not quote:
        text, _, switches = command.partition(" -")
        switches = f"-{switches}"
    rest: dict[str, Any] = {}
    values: dict[str, Any] = {}
    scheduler, notes = _scheduler(None)
    for part in re.split(r"\s+(?=--?[A-Za-z])", f" {switches.strip()}")[1:]:
        name, value = _SWITCH.fullmatch(part).groups()  # type: ignore[union-attr]
        if name in _SWITCHES:
            setting, kind = _SWITCHES[name]
            values[setting] = parse_number(value, kind)
        elif name == "-A":
            scheduler, notes = _scheduler(value)
        elif name == "-V":
            pairs = [pair.partition(",") for pair in value.split(":")]
            rest["variations"] = [
                [parse_number(seed, int), parse_number(weight, float)] for seed, _, weight in pairs
            ]
        elif name == "--seamless":
            values["seamless"] = "xy"
        elif name not in _IDLE_SWITCHES:
            rest[_OTHER_SWITCHES.get(name, name.strip("-"))] = value or True
    values |= {**_split_brackets(text.removeprefix('"')), **_variation(rest), **scheduler}
    return _record(values, None, None, None, rest, notes)


def _record(
    values: Mapping[str, Any],
    model: object,
    digest: object,
    version: object,
    rest: Mapping[str, Any],
    notes: list[str],
    rng: str | None = None,
) -> Record:
    """The record of an image; rng: who drew its noise, None where it was always the GPU."""
    extra = {
        key: as_scalar(value) for key, value in rest.items() if value not in (None, "", [], {})
    }
    width, height = values.get("width"), values.get("height")
    values = {**values, **rng_settings(rng, width, height, notes)}
    if rng is not None and values.get("scheduler") == "euler_a":
        notes.append(
            "the noise of its later steps came from another seed there: seed ^ 0xFFFFFFFF."
        )
    if re.search(r"[()]|\w[+-]{1,9}(?!\w)", f"{values['prompt']} {values['negative_prompt']}"):
        notes.append("signs that weight words there, as in word++, are read as text here.")
    prompts = ((k, values[k]) for k in ("prompt", "negative_prompt"))
    values = {**values, **{k: escape(v) for k, v in prompts if isinstance(v, str)}}
    known = {"name": model, "hash": digest}
    return Record(
        source="InvokeAI",
        values=without_none(values),
        model={key: value for key, value in known.items() if isinstance(value, str) and value},
        versions={"program": version} if isinstance(version, str) else {},
        extra=extra,
        notes=(*notes, *left_out(extra)),
    )


def _split_brackets(text: str) -> dict[str, str]:
    """A prompt and its negative prompt, which is written in [brackets]."""
    negative = re.findall(r"\[([^\[\]]*)\]", text)
    prompt = re.sub(r"\[[^\[\]]*\]", " ", text) if negative else text
    return {"prompt": " ".join(prompt.split()), "negative_prompt": " ".join(negative)}


def _variation(rest: dict[str, Any]) -> dict[str, Value]:
    """Our settings for one variation, [seed, weight], taken out of `rest`; several stay there."""
    match rest.get("variations"):
        case [[int(seed), int(weight) | float(weight)]]:
            del rest["variations"]
            return {"variation_seed": seed, "variation_strength": weight}
    return {}


def _scheduler(sampler: object) -> tuple[dict[str, Value], list[str]]:
    """Our settings for a scheduler of InvokeAI, and notes on what differs.

    Before version 3 k_lms was lms; since then lms_k is lms with Karras' noise levels.
    """
    if not isinstance(sampler, str):
        return {}, []
    name = sampler.removesuffix("_k")
    return scheduler_settings(name, "karras" if name != sampler else "")


def _clip_skip(skipped: object) -> object:
    """Clip skip counted from 1, the last layer; InvokeAI counts the skipped layers from 0."""
    if isinstance(skipped, int) and not isinstance(skipped, bool):
        return skipped + 1
    return skipped
