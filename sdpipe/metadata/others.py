"""What Fooocus, SwarmUI, NovelAI, mflux, Easy Diffusion, Draw Things and dgenerate write.

It is names and values. Those that we have a setting for are read; how most of these programs make
noise from a seed is not known here, so that `replay` draws another image.
"""

import itertools
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree

from sdpipe.io.texts import parse_object
from sdpipe.metadata.foreign import (
    as_scalar,
    extra_values,
    left_out,
    rng_settings,
    scheduler_settings,
    without_none,
)
from sdpipe.metadata.record import Record, RecordError, Value
from sdpipe.prompt.syntax import MAX_PROMPT, escape
from sdpipe.settings import RULES
from sdpipe.values import parse_int

UNKNOWN = "another program"

# An entry that only one program writes, and that program.
_PROGRAMS = {
    "sui_image_params": "SwarmUI",
    "mflux_version": "mflux",
    "metadata_scheme": "Fooocus",
    "num_inference_steps": "Easy Diffusion",
    "uc": "NovelAI",
}

# Our settings, and what these programs call them.
_SETTINGS = {
    "prompt": ("prompt",),
    "negative_prompt": ("negative_prompt", "negativeprompt", "uc"),
    "seed": ("seed",),
    "steps": ("steps", "num_inference_steps"),
    "g": ("cfgscale", "guidance_scale", "guidance", "scale"),
    "width": ("width",),
    "height": ("height",),
    "clip_skip": ("clip_skip",),
}
# The same in JSON of Draw Things, and the options of dgenerate.
_DRAW_THINGS = {"c": "prompt", "uc": "negative_prompt"}
_DGENERATE = {
    "prompts": "prompt",
    "seeds": "seed",
    "inference_steps": "steps",
    "guidance_scales": "guidance",
    "clip_skips": "clip_skip",
    "scheduler": "sampler",
    "schedulers": "sampler",
}
_MODEL = {
    "name": ("model", "base_model", "use_stable_diffusion_model"),
    "hash": ("base_model_hash",),
}
_VERSION = ("version", "swarm_version", "mflux_version")


def read(written: Mapping[str, Any], program: str = "", rng: str | None = None) -> Record:
    """Reads an object of names and values.

    program: which wrote it; "" is told from its names.
    rng: whose numbers its noise is, as another program calls it; None is unknown.

    Raises:
        RecordError: a value has the wrong type, or is too long.
    """
    told = (name for key, name in _PROGRAMS.items() if key in written)
    program = program or next(told, UNKNOWN)
    rest = dict(written)
    if isinstance(nested := rest.get("sui_image_params"), Mapping):
        rest = dict(nested)

    def take(names: Iterable[str]) -> Any:
        return next((rest.pop(name) for name in names if rest.get(name) is not None), None)

    width, _, height = str(take(["resolution"]) or "").strip("()").partition(", ")  # of Fooocus
    rest |= {"width": width, "height": height} if height else {}
    values = {name: _parse(name, take(names)) for name, names in _SETTINGS.items()}
    skipped = str(values["clip_skip"]).lower()  # Easy Diffusion says whether
    values["clip_skip"] = {"true": 2, "false": 1}.get(skipped, values["clip_skip"])
    sampler, schedule = take(["sampler", "sampler_name"]), take(["scheduler"])
    scheduler, notes = scheduler_settings(str(sampler or ""), str(schedule or ""))
    if program == "NovelAI" and isinstance(values["prompt"], str):
        values["prompt"] = escape(values["prompt"])
        notes.append("signs that weight words there, as in {word}, are read as text here.")
    model = {key: take(names) for key, names in _MODEL.items()}
    version = take(_VERSION)
    filled = {key: value for key, value in rest.items() if value not in ("", [])}
    extra = extra_values((key, as_scalar(value)) for key, value in filled.items())
    if program == UNKNOWN and values["prompt"] is None:
        return Record(source=UNKNOWN, values={}, extra=extra)
    if rng is None:
        notes.append(f"the noise that {program} makes from a seed is not known here.")
    else:
        values |= rng_settings(rng, values["width"], values["height"], notes)
    return Record(
        source=program,
        values=without_none({"prompt": "", **values, **scheduler}),
        model={key: str(value) for key, value in model.items() if value is not None},
        versions={} if version is None else {"program": str(version)},
        extra=extra,
        notes=(*notes, *left_out(extra)),
    )


def read_novelai(texts: Mapping[str, str], comment: Mapping[str, Any]) -> Record:
    """Reads what NovelAI writes: the prompt and the model beside the other settings."""
    beside = {"prompt": texts.get("Description"), "model": texts.get("Source")}
    return read({**without_none(beside), **comment})


def read_draw_things(xmp: str) -> Record:
    """Reads what Draw Things writes: JSON as the property `exif:UserComment` of XMP.

    Raises:
        RecordError: it is no XML, or a value has the wrong type or is too long.
    """
    if "<!DOCTYPE" in xmp:  # which could define a text of any length
        raise RecordError("its XMP", "declares a document type, which is not read")
    try:
        comment = ElementTree.fromstring(xmp).find(".//{http://ns.adobe.com/exif/1.0/}UserComment")
        written = parse_object("" if comment is None else "".join(comment.itertext()))
    except (ElementTree.ParseError, ValueError) as error:
        raise RecordError("its XMP", f"cannot be read: {error}") from error
    named = {_DRAW_THINGS.get(key, key): value for key, value in written.items()}
    more, size = named.pop("v2", None), str(named.pop("size", ""))
    if isinstance(more, Mapping):
        named["loras"] = more.get("loras")
    if match := re.fullmatch(r"(\d{1,9})x(\d{1,9})", size):
        named |= {"width": int(match[1]), "height": int(match[2])}
    if named.get("strength") == 1:
        del named["strength"]
    mode = str(named.pop("seed_mode", "")).partition(" ")[0].lower()  # Torch CPU, NVIDIA GPU, ...
    return read(named, "Draw Things", {"torch": "cpu", "nvidia": "nv"}.get(mode))


def read_dgenerate(text: str) -> Record:
    """Reads what dgenerate writes: its own command line, over several lines.

    Raises:
        RecordError: it is too long or no command, or a value is too long.
    """
    if len(text) > 2 * MAX_PROMPT:
        rule = f"exceeds the {2 * MAX_PROMPT} read"
        raise RecordError(f"a command of {len(text)} characters", rule)
    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise RecordError("its command", f"cannot be read: {error}") from error
    named: dict[str, Any] = {"model": words[0]} if words else {}
    for word, value in itertools.pairwise([*words[1:], "--"]):
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
            named[_DGENERATE.get(name, name)] = True if value.startswith("--") else value
    prompt, _, negative = str(named.get("prompt", "")).partition(";")
    named |= {"prompt": escape(prompt.strip()), "negative_prompt": escape(negative.strip())}
    width, _, height = str(named.pop("output_size", "")).partition("x")
    named |= {"width": width, "height": height or width} if width else {}
    skipped = parse_int(str(named.get("clip_skip", "")))
    named["clip_skip"] = skipped + 1 if isinstance(skipped, int) else None  # it counts from 0
    sampler, _, options = str(named.get("sampler", "")).partition(";")
    schedule = "karras" if "use-karras-sigmas=true" in options.lower() else None
    named |= {"sampler": sampler, "scheduler": schedule}
    device = str(named.pop("device", "cuda"))
    version = re.match(r"(?:#!.*\n)*?#! dgenerate (\S{1,20})", text)
    named["version"] = version and f"dgenerate {version[1]}"
    return read(named, "dgenerate", device.partition(":")[0])


def _parse(name: str, value: Any) -> Value:
    """A setting's value, out of a text where the program writes all values as texts."""
    if not isinstance(value, str) or "prompt" in name or len(value) > 60:
        return value
    return RULES[name].parse(value)
