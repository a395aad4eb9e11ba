"""What programs write as JSON: Fooocus, SwarmUI, NovelAI, mflux, Easy Diffusion, and ComfyUI.

All but ComfyUI write an object of names and values. The values that we have a setting for are read;
how these programs make noise from a seed is not known here, so that `replay` draws another image.
ComfyUI writes a graph, of which every value is shown and nothing is drawn.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from sdpipe.metadata.foreign import as_scalar, left_out, scheduler_settings, without_none
from sdpipe.metadata.record import MAX_ENTRIES, Record, Value
from sdpipe.prompt.syntax import escape
from sdpipe.settings import RULES

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
_MODEL = {
    "name": ("model", "base_model", "use_stable_diffusion_model"),
    "hash": ("base_model_hash",),
}
_NOT_PLAIN = re.compile(r"[^\w /().:+-]|^$")
_VERSION = ("version", "swarm_version", "mflux_version")


def read(written: Mapping[str, Any]) -> Record:
    """Reads an object of names and values.

    Raises:
        RecordError: a value has the wrong type, or is too long.
    """
    program = next((name for key, name in _PROGRAMS.items() if key in written), UNKNOWN)
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
    extra = _extra((key, as_scalar(value)) for key, value in rest.items() if value not in ("", []))
    if program == UNKNOWN and values["prompt"] is None:
        return Record(source=UNKNOWN, values={}, extra=extra)
    notes.append(f"the noise that {program} makes from a seed is not known here.")
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


def read_graph(nodes: Mapping[str, Any]) -> Record:
    """Reads the graph of ComfyUI that drew an image: every value of every node."""
    return _graph(
        (f"{node.get('class_type')} {name} ({key})", value)
        for key, node in nodes.items()
        if isinstance(node, Mapping) and isinstance(node.get("inputs"), Mapping)
        for name, value in node["inputs"].items()
    )


def read_workflow(workflow: Mapping[str, Any]) -> Record:
    """Reads ComfyUI's editor, where it wrote no graph: its values have no names."""
    nodes = workflow.get("nodes")
    return _graph(
        (f"{node.get('type')} {k} ({node.get('id')})", value)
        for node in (nodes if isinstance(nodes, list) else ())
        if isinstance(node, Mapping) and isinstance(node.get("widgets_values"), list)
        for k, value in enumerate(node["widgets_values"])
    )


def _graph(named: Iterable[tuple[str, Any]]) -> Record:
    """The record of a graph: its values by name, without the links between nodes."""
    extra = _extra(pair for pair in named if isinstance(pair[1], str | int | float))
    note = "it was drawn by a graph of ComfyUI, which is not followed here."
    return Record(source="ComfyUI", values={}, extra=extra, notes=(note,))


def _extra(named: Iterable[tuple[str, Value]]) -> dict[str, Value]:
    """Values by name, as many as a record holds, under plain names."""
    there = ((name, value) for name, value in named if value is not None)
    return {_NOT_PLAIN.sub("_", name)[:80]: value for name, value in islice(there, MAX_ENTRIES)}


def _parse(name: str, value: Any) -> Value:
    """A setting's value, out of a text where the program writes all values as texts."""
    if not isinstance(value, str) or "prompt" in name or len(value) > 60:
        return value
    return RULES[name].parse(value)
