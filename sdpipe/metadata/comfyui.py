"""ComfyUI's graph of nodes, which it writes as `prompt`, and its editor's, `workflow`.

A graph is {id: {"class_type": name, "inputs": {name: value}}}, where a value may be a link to the
output of another node, [id, number of the output]. What drew the image is followed from the node
that saves it back to the sampler, and from there to the prompts, the model and the empty latents.
Nodes on these ways that do anything else are named.

The noise is drawn as here: `torch.randn` on the CPU, from the seed. A batch is drawn as one tensor,
of which the first image alone has the numbers of that seed.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from sdpipe.metadata.foreign import (
    extra_values,
    left_out,
    notes_on_steps,
    scheduler_settings,
    without_none,
)
from sdpipe.metadata.record import Record, Value

Inputs = Mapping[str, Any]
Nodes = Mapping[str, Mapping[str, Any]]

MAX_NODES = 2000  # of a graph that are followed
MAX_ENDS = 16  # of a graph that are looked at
MAX_LINKS = 20  # from an input to the node that has its value

_SAMPLERS = ("KSampler", "KSamplerAdvanced")
_SAVES = ("SaveImage", "PreviewImage")
_FOLLOWED = {
    *(*_SAMPLERS, *_SAVES, "CheckpointLoaderSimple", "CheckpointLoader", "CLIPTextEncode"),
    *("CLIPSetLastLayer", "EmptyLatentImage", "VAEDecode", "VAEDecodeTiled", "Reroute"),
    *("PrimitiveNode", "PrimitiveInt", "PrimitiveString", "PrimitiveStringMultiline"),
}
"""The nodes of which nothing is lost."""

# Inputs by what they hold; the first that a node has counts.
_TEXTS = ("text", "text_g", "t5xxl", "prompt", "value", "string")
_SEEDS = ("seed", "noise_seed", "value", "int")
_MODELS = ("ckpt_name", "unet_name")


def read(graph: Mapping[str, Any]) -> Record:
    """Reads a graph.

    Raises:
        RecordError: a value has the wrong type, or is too long.
    """
    nodes = {key: node for key, node in graph.items() if _is_node(node)}
    end, passes = _find_samplers(nodes)
    if not passes:
        note = "no KSampler of its graph leads to an image, which is why none is drawn."
        return Record(source="ComfyUI", values={}, extra=_values_of(nodes), notes=(note,))
    *later, first = passes
    sampler = nodes[first]["inputs"]
    values, notes = _sampler_settings(nodes, sampler)
    for name, sign in (("prompt", "positive"), ("negative_prompt", "negative")):
        values[name] = _prompt(nodes, sampler, sign, notes)
    if "(" in values["prompt"] + values["negative_prompt"]:
        notes.append("weights of words count from the empty prompt there, and from zero here.")
    values["clip_skip"] = _clip_skip(nodes, sampler)
    reached = list(_upstream(nodes, [end, 0]))
    known = {key for key in reached if nodes[key]["class_type"] in _FOLLOWED} - set(later)
    lost = {_describe(nodes, key): True for key in reached if key not in known and key != end}
    model = _first_input(nodes, _upstream(nodes, sampler.get("model"), _only("model")), _MODELS)
    return Record(
        source="ComfyUI",
        values=without_none(values),
        model={"name": model} if isinstance(model, str) else {},
        extra=_values_of({key: node for key, node in nodes.items() if key not in known}),
        notes=(*notes, *notes_on_steps(values), *left_out(lost)),
    )


def read_workflow(workflow: Mapping[str, Any]) -> Record:
    """Reads ComfyUI's editor, where it wrote no graph: its values have no names."""
    nodes = workflow.get("nodes")
    named = (
        (f"{node.get('type')} {k} ({node.get('id')})", value)
        for node in (nodes if isinstance(nodes, list) else ())
        if isinstance(node, Mapping) and isinstance(node.get("widgets_values"), list)
        for k, value in enumerate(node["widgets_values"])
        if isinstance(value, str | int | float)
    )
    note = "it has the nodes of ComfyUI's editor, but not their graph; values without names remain."
    return Record(source="ComfyUI", values={}, extra=extra_values(named), notes=(note,))


def _is_node(node: object) -> bool:
    return (
        isinstance(node, Mapping)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), Mapping)
    )


def _values_of(nodes: Nodes) -> dict[str, Value]:
    """Every value of every node, without the links between them."""
    return extra_values(
        (f"{node['class_type']} {name} ({key})", value)
        for key, node in nodes.items()
        for name, value in node["inputs"].items()
        if isinstance(value, str | int | float)
    )


def _describe(nodes: Nodes, key: str) -> str:
    node = nodes[key]
    lora = node["inputs"].get("lora_name")
    detail = f" {lora[:60]}" if isinstance(lora, str) else ""
    return f"{node['class_type'][:60]}{detail} ({key[:20]})"


def _find_samplers(nodes: Nodes) -> tuple[str | None, list[str]]:
    """The node at the end of the graph that a sampler leads to, and its samplers, the last first.

    Of several ends, ComfyUI's own nodes that save come first.
    """
    links = (value for node in nodes.values() for value in node["inputs"].values())
    linked = {_source(nodes, link) for link in links}
    ends = [key for key in nodes if key not in linked]
    ends.sort(key=lambda key: nodes[key]["class_type"] not in _SAVES)
    for end in ends[:MAX_ENDS]:
        reached = _upstream(nodes, [end, 0])
        if passes := [key for key in reached if nodes[key]["class_type"] in _SAMPLERS]:
            return end, passes
    return None, []


def _upstream(
    nodes: Nodes, link: object, follow: Callable[[Inputs], Iterable[object]] = Mapping.values
) -> Iterator[str]:
    """The nodes from a link backwards, nearest first, each once.

    follow: from a node's inputs to the values that are followed.
    """
    waiting, seen = deque([link]), set[str]()
    while waiting and len(seen) < MAX_NODES:
        key = _source(nodes, waiting.popleft())
        if key is not None and key not in seen:
            seen.add(key)
            yield key
            waiting.extend(follow(nodes[key]["inputs"]))


def _only(name: str) -> Callable[[Inputs], list[object]]:
    """Follows the inputs of one name."""
    return lambda inputs: [inputs.get(name)]


def _source(nodes: Nodes, link: object) -> str | None:
    """The node that an input is linked to; None for any other value."""
    match link:
        case [str() | int() as key, *_] if str(key) in nodes:
            return str(key)
    return None


def _resolve(nodes: Nodes, value: object, names: Iterable[str]) -> Any:
    """An input's own value, or where it is linked that of the other node's first of these names."""
    for _ in range(MAX_LINKS):
        key = _source(nodes, value)
        if key is None:
            return None if isinstance(value, list | Mapping) else value
        inputs = nodes[key]["inputs"]
        value = next((inputs[name] for name in names if name in inputs), None)
    return None


def _first_input(nodes: Nodes, keys: Iterable[str], names: Iterable[str]) -> Any:
    """The first input with one of the names, over several nodes."""
    inputs = (nodes[key]["inputs"] for key in keys)
    return next((found[name] for found in inputs for name in names if name in found), None)


def _sampler_settings(nodes: Nodes, sampler: Inputs) -> tuple[dict[str, Any], list[str]]:
    """The settings of a sampler and of the latents that it begins with, and notes on them."""

    def value(name: str) -> Any:
        return _resolve(nodes, sampler.get(name), (name, "value"))

    scheduler, notes = scheduler_settings(
        str(value("sampler_name") or ""), str(value("scheduler") or "")
    )
    seed = sampler.get("seed", sampler.get("noise_seed"))
    values = {
        "seed": _resolve(nodes, seed, _SEEDS),
        "steps": value("steps"),
        "g": value("cfg"),
        "rng": "cpu",
        **scheduler,
    }
    latents = list(_upstream(nodes, sampler.get("latent_image")))
    inputs = (nodes[key]["inputs"] for key in latents)
    size: Inputs = next((found for found in inputs if "width" in found), {})
    for side in ("width", "height"):
        values[side] = _resolve(nodes, size.get(side), (side, "value"))
    if any("encode" in nodes[key]["class_type"].lower() for key in latents):
        notes.append("it was drawn from another image there, and from the text alone here.")
    elif value("denoise") not in (None, 1) or sampler.get("start_at_step") not in (None, 0):
        notes.append("it took a part of the steps there, and takes them all here.")
    batch = _resolve(nodes, size.get("batch_size"), ("batch_size", "value"))
    if batch not in (None, 1):
        notes.append(f"of its batch of {str(batch)[:20]} the first image alone has this noise.")
    if values.get("scheduler") in ("euler_a", "dpm2_a", "ddpm", "lcm"):
        notes.append("the noise of its later steps came from another generator there.")
    return values, notes


def _prompt(nodes: Nodes, sampler: Inputs, sign: str, notes: list[str]) -> str:
    """The text of a sampler's "positive" or "negative" input; "" where it has none.

    Brackets have no meaning there and are escaped.
    """
    texts = []

    def follow(inputs: Inputs) -> Iterable[object]:
        if any(name in inputs for name in _TEXTS):
            return ()
        if sign in inputs:  # a node for both, such as ControlNetApplyAdvanced
            return [inputs[sign]]
        return (v for name, v in inputs.items() if name not in ("clip", "model", "vae"))

    for key in _upstream(nodes, sampler.get(sign), follow):
        if nodes[key]["class_type"] == "ConditioningZeroOut":
            break
        inputs = nodes[key]["inputs"]
        text = next((inputs[name] for name in _TEXTS if name in inputs), None)
        found = _resolve(nodes, text, _TEXTS)
        texts += [found] if isinstance(found, str) else []
    if len(texts) > 1:
        notes.append(f"its {len(texts)} {sign} prompts were combined there; the first is used.")
    return re.sub(r"[\[\]]", r"\\\g<0>", texts[0]) if texts else ""


def _clip_skip(nodes: Nodes, sampler: Inputs) -> Value:
    """The layer of the text encoder, from 1, the last; ComfyUI counts from -1."""
    encoder = _first_input(nodes, _upstream(nodes, sampler.get("positive")), ("clip",))
    layers = _upstream(nodes, encoder, _only("clip"))
    layer = _first_input(nodes, layers, ("stop_at_clip_layer",))
    return -layer if isinstance(layer, int) else None
