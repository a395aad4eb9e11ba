"""The text `parameters` of A1111's web UI, which many other programs write too."""

import json
import re
from collections.abc import Iterable
from typing import Any

from sdpipe.errors import UsageError
from sdpipe.io.png import HIRES_UPSCALER, ZERO_SNR
from sdpipe.metadata.foreign import (
    left_out,
    notes_on_steps,
    rng_settings,
    scheduler_settings,
    without_none,
)
from sdpipe.metadata.record import Record, RecordError, Value
from sdpipe.prompt.syntax import MAX_PROMPT, parse
from sdpipe.settings import RULES, TWO_CALL_SCHEDULERS, ZERO_SNR_SCHEDULERS
from sdpipe.values import num_steps_taken, parse_int, parse_number

# "name: value" or 'name: "JSON text"'. The bound on the name keeps a search linear in the text.
_PAIR = re.compile(r'(\w[\w /-]{1,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_OBJECT = re.compile(r",\s*(Hashes|Civitai \w{1,20}):\s*(\{[^}]*\}|\[[^\]]*\])")  # JSON of civitai
_NOTE = re.compile(r"(\w[\w /-]{1,60}):\s*")
_TEMPLATES = ("Template", "Negative Template")  # of the extension Dynamic Prompts
_RNG_OF = {"ComfyUI": "cpu"}  # by the program that a text names, where it does not say
_UNKNOWN_NOISE = ("Fooocus",)
_SIZE = re.compile(r"(\d{1,9})x(\d{1,9})")


_KNOWN = {
    name.lower(): name
    for name in (
        *(rule.a1111 for rule in RULES.values() if rule.a1111),
        *("Sampler", "Schedule type", "Size", "Model", "Model hash", "RNG", "Version"),
    )
}
"""The names that are read, by their lower case: some programs write "model"."""


def read(text: str) -> Record:
    """Reads a text of A1111's web UI: the prompts, a line of names and values, and others' notes.

    Raises:
        RecordError: a line of values is too long.
    """
    lines = text.strip().split("\n")
    line, settings, below = _find_settings(lines)
    pairs = {_KNOWN.get(key.lower(), key): _unquote(value.strip()) for key, value in settings}
    prompt, negative, notes_above = _split(lines[:line])
    pairs = {**below, **notes_above, **pairs}

    version = pairs.pop("Version", "")
    scheduler, notes = scheduler_settings(pairs.pop("Sampler", ""), pairs.pop("Schedule type", ""))
    values: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": negative,
        **_settings(pairs),
        "seamless": "xy" if pairs.get("Tiling") == "True" else None,
        **_size(pairs.pop("Size", None)),
        **scheduler,
    }
    if (
        pairs.get("Noise Schedule") == ZERO_SNR
        and scheduler.get("scheduler") in ZERO_SNR_SCHEDULERS
    ):
        values["zero_snr"] = bool(pairs.pop("Noise Schedule"))
    values |= _hires(pairs, values.get("steps"), notes)
    model = {"name": pairs.pop("Model", ""), "hash": pairs.pop("Model hash", "")}
    program = version.partition(" ")[0]
    if program in _UNKNOWN_NOISE:
        notes.append(f"the noise that {program} makes from a seed is not known here.")
    elif "seed" in values:
        rng = pairs.get("RNG", _RNG_OF.get(program))
        values |= rng_settings(rng, values.get("width"), values.get("height"), notes)
    if values.get("variation_strength") is not None:
        notes.append("its variation was mixed column by column there, and is as a whole here.")
    if not version.startswith("sdpipe "):
        _follow_a1111(values, notes)
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


def _follow_a1111(values: dict[str, Any], notes: list[str]) -> None:
    """Adds what A1111 does otherwise than we do: prompts' changes, and some samplers' steps."""
    if values.get("scheduler") == "lcm":
        notes.append(
            "its steps go down to timestep 19 there, and here as in diffusers' LCMScheduler."
        )
    notes += notes_on_steps(values)
    if any(_is_scheduled(values[name]) for name in ("prompt", "negative_prompt")):
        values["prompt_edits"] = "a1111"
        if values.get("scheduler") in TWO_CALL_SCHEDULERS:
            notes.append("its prompts' changes counted the calls of the U-Net there, two a step.")


def _is_scheduled(prompt: str) -> bool:
    """Whether a prompt that can be read changes over the steps."""
    try:
        return parse(prompt).is_scheduled
    except UsageError:  # `Settings` says so
        return False


def _settings(pairs: dict[str, str]) -> dict[str, Any]:
    """The settings that A1111 has under a name of its own, taken out of `pairs`."""
    found = {}
    for name, rule in RULES.items():
        if (text := pairs.get(rule.a1111)) is not None and name != "hires_scale":
            value = rule.parse(text) if len(text) <= 60 else text
            found[name] = list(value) if isinstance(value, tuple) else value
            del pairs[rule.a1111]
    return found


def _find_settings(lines: list[str]) -> tuple[int, list[tuple[str, str]], dict[str, str]]:
    """The number of the line of settings, its names and values, and the notes in the lines below.

    It is the last line that begins with "Steps:", else the last line of all, with three values or
    more; A1111 looks at the last line alone. Without one all lines are the prompt's.
    """
    steps = [k for k, line in enumerate(lines) if line.lstrip().startswith("Steps:")]
    for k in dict.fromkeys([*reversed(steps), len(lines) - 1]):
        if len(lines[k]) > MAX_PROMPT:
            raise RecordError(
                f"a line of {len(lines[k])} characters", f"exceeds the {MAX_PROMPT} read"
            )
        objects = _OBJECT.findall(lines[k])
        found = _PAIR.findall(_OBJECT.sub("", lines[k]))
        if len(found) >= 3:
            return k, found + objects, _notes(lines[k + 1 :])
    return len(lines), [], {}


def _notes(lines: Iterable[str]) -> dict[str, str]:
    """What extensions write below the settings: "Name: text", over several lines."""
    notes: dict[str, str] = {}
    name = "Note"
    for line in lines:
        if match := _NOTE.match(line):
            name, line = match[1], line[match.end() :]
        notes[name] = f"{notes[name]}\n{line}" if name in notes else line.strip()
    return notes


def _split(lines: Iterable[str]) -> tuple[str, str, dict[str, str]]:
    """The prompt, the negative prompt, which begins with a line that says so, and templates."""
    parts: dict[str, list[str]] = {"": [], "Negative prompt": []}
    part = parts[""]
    for line in map(str.strip, lines):
        name, colon, rest = line.partition(":")
        if colon and name in ("Negative prompt", *_TEMPLATES):
            part, line = parts.setdefault(name, []), rest.strip()
        part.append(line)
    prompt, negative, *_ = texts = ["\n".join(part).strip("\n") for part in parts.values()]
    return prompt, negative, dict(zip(list(parts)[2:], texts[2:], strict=True))


def _hires(pairs: dict[str, str], steps: Value, notes: list[str]) -> dict[str, Value]:
    """Our settings for a second pass, taken out of `pairs`; {} where there was none.

    A1111 lengthens the schedule until so many steps of it are left; here the second pass takes its
    part of the steps of the first.
    """
    if "Hires upscale" not in pairs:
        return {}
    factor = parse_number(pairs.pop("Hires upscale"))
    strength = parse_number(pairs.pop("Denoising strength", "")) or None
    recorded = parse_int(pairs.pop("Hires steps", "")) or steps
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
    if not text.startswith('"'):
        return text
    try:
        value = json.loads(text)
        value.encode()
    except (ValueError, AttributeError):
        return text
    return str(value)
