"""The text `parameters` of A1111's web UI, which many other programs write too."""

import json
import re
from collections.abc import Iterable
from typing import Any

from sdpipe.io.png import HIRES_UPSCALER
from sdpipe.metadata.foreign import (
    GPU_NOISE,
    left_out,
    parse_number,
    scheduler_settings,
    without_none,
)
from sdpipe.metadata.record import MAX_PROMPT, Record, RecordError, Value
from sdpipe.settings import RULES, find_scheduler
from sdpipe.values import num_steps_taken

# "name: value" or 'name: "JSON text"'. The bound on the name keeps a search linear in the text.
_PAIR = re.compile(r'(\w[\w /-]{1,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d{1,9})x(\d{1,9})")


def read(text: str) -> Record:
    """Reads a text of A1111's web UI: the prompts, then a last line of names and values.

    Raises:
        RecordError: the last line is too long.
    """
    *lines, last = text.strip().split("\n")
    if len(last) > MAX_PROMPT:
        raise RecordError(f"a line of {len(last)} characters", f"exceeds the {MAX_PROMPT} read")
    found = _PAIR.findall(last)
    if len(found) < 3:  # as A1111 decides it: then the last line belongs to the prompt
        lines, found = [*lines, last], []
    pairs = {key: _unquote(value.strip()) for key, value in found}
    prompt, negative = _split(lines)

    version = pairs.pop("Version", "")
    scheduler, notes = _scheduler(pairs.pop("Sampler", ""), pairs.pop("Schedule type", ""))
    values: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": negative,
        **_settings(pairs),
        "seamless": "xy" if pairs.get("Tiling") == "True" else None,
        **_size(pairs.pop("Size", None)),
        **scheduler,
    }
    values |= _hires(pairs, values.get("steps"), notes)
    model = {"name": pairs.pop("Model", ""), "hash": pairs.pop("Model hash", "")}
    if pairs.get("RNG", "GPU") != "CPU":
        notes.append(GPU_NOISE)
    if values.get("variation_strength") is not None:
        notes.append("its variation was mixed column by column there, and is as a whole here.")
    if re.search(r"<\w+:|\bAND\b", f"{prompt} {negative}"):
        notes.append("<lora:...> and AND have a meaning there, and are read as text here.")
    return Record(
        source="A1111",
        values=without_none(values),
        model={key: value for key, value in model.items() if value},
        versions={"program": version} if version else {},
        extra=pairs,
        notes=(*notes, *left_out(pairs)),
    )


def _settings(pairs: dict[str, str]) -> dict[str, Any]:
    """The settings that A1111 has under a name of its own, taken out of `pairs`."""
    found = {}
    for name, rule in RULES.items():
        if (text := pairs.get(rule.a1111)) is not None and name != "hires_scale":
            value = rule.parse(text) if len(text) <= 60 else text
            found[name] = list(value) if isinstance(value, tuple) else value
            del pairs[rule.a1111]
    return found


def _split(lines: Iterable[str]) -> tuple[str, str]:
    """The prompt and the negative prompt, which begins with a line that says so."""
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in map(str.strip, lines):
        if line.startswith("Negative prompt:"):
            part, line = negative, line.removeprefix("Negative prompt:").strip()
        part.append(line)
    return "\n".join(prompt).strip("\n"), "\n".join(negative).strip("\n")


def _scheduler(sampler: str, schedule: str) -> tuple[dict[str, Value], list[str]]:
    """Our settings for a sampler of A1111, and notes on what differs."""
    scheduler, karras = find_scheduler(sampler)
    karras = karras or schedule == "Karras"
    if schedule == "Automatic":  # Karras for the DPM++ family, uniform for the rest
        karras = sampler.startswith("DPM++")
    known = ("", "Automatic", "Uniform", "Karras")
    notes = []
    if schedule not in known:
        notes.append(f"its schedule {schedule[:60]!r} is not known here; the steps are uniform.")
    if not sampler:
        return {}, notes
    return scheduler_settings(sampler, scheduler, karras, notes)


def _hires(pairs: dict[str, str], steps: Value, notes: list[str]) -> dict[str, Value]:
    """Our settings for a second pass, taken out of `pairs`; {} where there was none.

    A1111 lengthens the schedule until so many steps of it are left; here the second pass takes its
    part of the steps of the first.
    """
    if "Hires upscale" not in pairs:
        return {}
    factor = parse_number(pairs.pop("Hires upscale"), float)
    strength = parse_number(pairs.pop("Denoising strength", None), float)
    recorded = parse_number(pairs.pop("Hires steps", None), int) or steps
    upscaler = pairs.pop("Hires upscaler", HIRES_UPSCALER)
    if upscaler != HIRES_UPSCALER:
        notes.append(f"it was scaled up by {upscaler[:60]!r} there, and by {HIRES_UPSCALER} here.")
    if isinstance(strength, float) and isinstance(steps, int) and 0 < strength <= 1:
        taken = num_steps_taken(steps, strength)
        if taken != recorded:
            notes.append(f"its second pass took {recorded} steps there, and takes {taken} here.")
    return {"hires_scale": factor, "hires_strength": strength}


def _size(text: str | None) -> dict[str, Value]:
    if text is None:
        return {}
    match = _SIZE.fullmatch(text)
    if match is None:
        return {"width": text}  # not a size: `Settings` refuses it with its own message
    return {"width": int(match[1]), "height": int(match[2])}


def _unquote(text: str) -> str:
    """The text that a JSON string holds; any other text as it is."""
    if not (len(text) > 1 and text[0] == text[-1] == '"'):
        return text
    try:
        value = json.loads(text)
        value.encode()
    except (ValueError, AttributeError):
        return text
    return str(value)
