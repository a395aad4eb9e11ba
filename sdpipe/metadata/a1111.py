"""The text that A1111's web UI writes, `parameters`, and many others with it."""

import json
import re
from collections.abc import Iterable
from typing import Any

from sdpipe.io.png import HIRES_UPSCALER, SAMPLERS
from sdpipe.metadata.foreign import GPU_NOISE, as_ours, left_out, number, without_none
from sdpipe.metadata.record import MAX_PROMPT, Record, RecordError, Value
from sdpipe.settings import RULES
from sdpipe.values import num_steps_taken

# "name: value" or 'name: "JSON text"'. The bound on the name keeps a search linear in the text.
_PAIR = re.compile(r'(\w[\w /-]{1,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d{1,9})x(\d{1,9})")

_OURS = {theirs.lower(): ours for ours, theirs in SAMPLERS.items()}


def read(text: str) -> Record:
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
    scheduler, remarks = _scheduler(pairs.pop("Sampler", ""), pairs.pop("Schedule type", ""))
    values: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": negative,
        **_named_by_a1111(pairs),
        "seamless": "xy" if pairs.get("Tiling") == "True" else None,
        **_size(pairs.pop("Size", None)),
        **scheduler,
    }
    values |= _hires(pairs, values.get("steps"), remarks)
    model = {"name": pairs.pop("Model", ""), "hash": pairs.pop("Model hash", "")}
    if pairs.get("RNG", "GPU") != "CPU":
        remarks.append(GPU_NOISE)
    if values.get("variation_strength") is not None:
        remarks.append("its variation was mixed there column by column; here the noise as a whole.")
    if re.search(r"<\w+:|\bAND\b", f"{prompt} {negative}"):
        remarks.append("<lora:...> and AND, which mean something there, are read as text here.")
    return Record(
        source="A1111",
        values=without_none(values),
        model={key: value for key, value in model.items() if value},
        versions={"program": version} if version else {},
        others=pairs,
        remarks=(*remarks, *left_out(pairs)),
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


def _scheduler(sampler: str, schedule: str) -> tuple[dict[str, Value], list[str]]:
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
    return as_ours(sampler, _OURS.get(name), name, karras, remarks)


def _hires(pairs: dict[str, str], steps: Value, remarks: list[str]) -> dict[str, Value]:
    """Our settings for a second pass, taken out of `pairs`; {} where there was none.

    There the schedule grows until so many steps of it are left; here the second pass has the
    steps of the first.
    """
    if "Hires upscale" not in pairs:
        return {}
    factor = number(pairs.pop("Hires upscale"), float)
    strength = number(pairs.pop("Denoising strength", None), float)
    theirs = number(pairs.pop("Hires steps", None), int) or steps
    upscaler = pairs.pop("Hires upscaler", HIRES_UPSCALER)
    if upscaler != HIRES_UPSCALER:
        remarks.append(
            f"it was scaled up by {upscaler[:60]!r} there, and here by {HIRES_UPSCALER}."
        )
    if isinstance(strength, float) and isinstance(steps, int) and 0 < strength <= 1:
        ours = num_steps_taken(steps, strength)
        if ours != theirs:
            remarks.append(f"its second pass took {theirs} steps there, and takes {ours} here.")
    return {"hires_scale": factor, "hires_strength": strength}


def _size(text: str | None) -> dict[str, Value]:
    if text is None:
        return {}
    match = _SIZE.fullmatch(text)
    if match is None:
        return {"width": text}  # no size at all: refused where it counts
    return {"width": int(match[1]), "height": int(match[2])}


def _named_by_a1111(pairs: dict[str, str]) -> dict[str, Any]:
    """Our settings that A1111 has by a name of its own, taken out of `pairs`."""
    found = {}
    for name, rule in RULES.items():
        if (text := pairs.get(rule.a1111)) is not None and name != "hires_scale":
            value = rule.parse(text) if len(text) <= 60 else text
            found[name] = list(value) if isinstance(value, tuple) else value
            del pairs[rule.a1111]
    return found


def _unquoted(text: str) -> str:
    if not (len(text) > 1 and text[0] == text[-1] == '"'):
        return text
    try:
        value = json.loads(text)
        value.encode()
    except (ValueError, AttributeError):
        return text
    return str(value)
