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
    rng_settings,
    scheduler_settings,
    without_none,
)
from sdpipe.metadata.record import Record, RecordError, Value
from sdpipe.prompt.syntax import MAX_PROMPT, escape
from sdpipe.settings import RANDOM_SCHEDULERS
from sdpipe.values import parse_int, parse_number

_SETTINGS = {
    "steps": "steps",
    "g": "cfg_scale",
    "guidance_rescale": "cfg_rescale_multiplier",
    "seed": "seed",
    "width": "width",
    "height": "height",
}

# The switches of a Dream command, by the names that version 2 gives to the same; None is idle.
_SWITCHES = {
    "-s": "steps",
    "-C": "cfg_scale",
    "-S": "seed",
    "-W": "width",
    "-H": "height",
    "-A": "sampler",
    "-m": "sampler",
    "-V": "variations",
    "-v": "variation_amount",
    "-I": "init_img",
    "-M": "init_mask",
    "-f": "strength",
    "-tm": "text_mask",
    "-G": "facetool_strength",
    "-ft": "facetool",
    "-cf": "codeformer_fidelity",
    "-U": "upscale",
    "-c": "outcrop",
    "-D": "out_direction",
    **dict.fromkeys(("-n", "-b", "-g", "-i", "-o", "-F", "-t", "--grid", "--fit")),
}
_SWITCH = re.compile(r"(--[\w-]+|-ft|-tm|-cf|-\w)[ =]?(.*)", re.DOTALL)


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
        "clip_skip": _clip_skip(rest.pop("clip_skip", None)),
        **_settings(rest),
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
    settings, version = _settings(rest), written.get("app_version")
    scheduler, notes = _scheduler(rest.pop("sampler", None), version, settings["steps"])
    if len(texts) > 1:
        notes.append("its prompts were blended there, and are one text here.")
    if rest.get("type") not in (None, "txt2img"):
        notes.append("it was drawn from another image there, and from the text alone here.")
    values = {
        **_split_brackets(" ".join(text for text in texts if isinstance(text, str))),
        **settings,
        **scheduler,
    }
    model, digest = written.get("model_weights"), written.get("model_hash")
    return _record(values, model, digest, version, rest, notes)


def read_dream(command: str) -> Record:
    """Reads a command of InvokeAI before version 2: "prompt" -s50 -S42 -W512 -H512 ...

    Some versions leave the quotes out.

    Raises:
        RecordError: the command is too long.
    """
    if len(command) > 2 * MAX_PROMPT:
        raise RecordError(
            f"a command of {len(command)} characters", f"exceeds the {2 * MAX_PROMPT} read"
        )
    quoted = re.fullmatch(r'\s*"(.*)"(.*)', command, re.DOTALL)
    text, switches = quoted.groups() if quoted else _split_switches(command)
    image: dict[str, Any] = {"prompt": text}
    for part in re.split(r"\s+(?=--?[A-Za-z])", f" {switches.strip()}")[1:]:
        name, value = _SWITCH.fullmatch(part).groups()  # type: ignore[union-attr]
        name = _SWITCHES.get(name, name.removeprefix("--"))
        if name == "variations":  # seed:weight,seed:weight
            pairs = re.findall(r"(\d{1,19})[:,](\d?\.?\d+)", value)
            value = [[int(seed), float(weight)] for seed, weight in pairs] or value
        if name is not None:
            image[name] = _parse_number(value) if isinstance(value, str) else value
    return read_version_2({"image": image})


def _split_switches(command: str) -> tuple[str, str]:
    """The prompt of a command without quotes, and its switches, of which -s comes first."""
    match = re.search(r"\s-s ?\d", command) or re.search(r"\s-", command)
    at = match.start() if match else len(command)
    return command[:at], command[at:]


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
    if rng is not None and values.get("scheduler") in RANDOM_SCHEDULERS:
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


def _settings(rest: dict[str, Any]) -> dict[str, Any]:
    """Our settings, taken out of `rest`; of several variations none is."""
    values = {ours: rest.pop(theirs, None) for ours, theirs in _SETTINGS.items()}
    axes = "".join(axis for axis in "xy" if rest.pop(f"seamless_{axis}", None) is True)
    values["seamless"] = "xy" if rest.pop("seamless", None) is True else axes or None
    match rest.get("variations"):
        case [[seed, weight]] | [{"seed": seed, "weight": weight}]:
            del rest["variations"]
            values |= {"variation_seed": seed, "variation_strength": weight}
    return values


def _scheduler(
    sampler: object, version: object = None, steps: object = None
) -> tuple[dict[str, Value], list[str]]:
    """Our settings for a scheduler of InvokeAI, and notes on what differs.

    Before version 3 k_lms was lms; since then lms_k is lms with Karras' noise levels. Versions 2.1
    and 2.2 took those, too, for fewer than 29 steps of the samplers of k-diffusion.
    """
    if not isinstance(sampler, str):
        return {}, []
    few = isinstance(steps, int) and steps < 29 and re.match(r"v?2\.[12]\b", str(version))
    is_karras = sampler.endswith("_k") or (few and sampler.startswith("k_"))
    return scheduler_settings(sampler.removesuffix("_k"), "karras" if is_karras else "")


def _parse_number(text: str) -> object:
    """The number that a switch has; True where it has none, the text where it has another value."""
    number = parse_int(text)
    return (parse_number(text) if isinstance(number, str) else number) if text else True


def _clip_skip(skipped: object) -> object:
    """Clip skip counted from 1, the last layer; InvokeAI counts the skipped layers from 0."""
    if isinstance(skipped, int) and not isinstance(skipped, bool):
        return skipped + 1
    return skipped
