"""Which files make up a model in the diffusers folder layout. Knows names only, opens nothing.

    model_index.json
    sdpipe.json                 the model's own settings, optional
    words.json                  its vocabulary, optional, see `sdpipe.loading.vocabulary`
    tokenizer/                  vocab.json and merges.txt, or tokenizer.json
    text_encoder/               config.json, model[.fp16].safetensors
    unet/, vae/                 config.json, diffusion_pytorch_model[.fp16].safetensors
    scheduler/                  scheduler_config.json

The same choice is made on a folder, on a cached snapshot and on the hub's list of files.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
"""The five parts, in the order in which a picture needs them."""

STEMS = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
"""What the file of a part's weights is called, without its variant and suffix."""

VARIANT = "fp16"
_TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class Selection:
    """What a list of names offers of a model.

    files: the small files: configurations, the tokenizer's, indexes of sharded weights.
    roots: for each part the folder that holds it, "" or with a slash at the end.
    weights: for each part with weights their names, several where they are sharded.
    variants: for each part with weights "fp16" or None.
    missing: for each part that is incomplete the first name that it lacks.
    """

    files: tuple[str, ...] = ()
    roots: dict[str, str] = field(default_factory=dict)
    weights: dict[str, tuple[str, ...]] = field(default_factory=dict)
    variants: dict[str, str | None] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def all_weights(self) -> list[str]:
        """The names of all weights, part after part."""
        return [name for names in self.weights.values() for name in names]


def listing(folder: Path) -> set[str]:
    """The names of the files in a folder and in the folders directly in it, with slashes.

    A link that leads nowhere, which is what a damaged hub cache leaves, is no file.
    """
    paths = [*folder.glob("*"), *folder.glob("*/*")]
    return {path.relative_to(folder).as_posix() for path in paths if path.is_file()}


def select_model(
    names: Collection[str],
    parts: Iterable[str] = PARTS,
    *,
    full: bool = False,
    weights: bool = True,
) -> Selection:
    """The files that a model needs, from the names of those that are there.

    parts: those wanted; the rest comes from elsewhere and may be missing.
    full: take the full weights where there are both, not the fp16 variant.
    weights: False selects the configurations alone.
    """
    roots = {part: f"{part}/" for part in PARTS if part in parts}
    selection = _select(names, roots, full, weights)
    if "model_index.json" not in names:
        missing = {"model": "model_index.json", **selection.missing}
        selection = replace(selection, missing=missing)
    beside = tuple(n for n in ("model_index.json", "sdpipe.json", "words.json") if n in names)
    return replace(selection, files=beside + selection.files)


def select_part(names: Collection[str], part: str, *, full: bool = False) -> Selection:
    """The files of one part: from a folder of that part alone, or from one of a whole model.

    A tokenizer that lies beside a text encoder comes along.
    """
    whole = f"{part}/config.json" in names or "model_index.json" in names
    roots = {part: f"{part}/" if whole else ""}
    if part == "text_encoder":
        root = "tokenizer/" if whole else ""
        if "tokenizer" not in _select(names, {"tokenizer": root}, full, False).missing:
            roots["tokenizer"] = root
    elif part == "tokenizer":
        roots[part] = "tokenizer/" if any(n.startswith("tokenizer/") for n in names) else ""
    return _select(names, roots, full, True)


def select_checker(names: Collection[str], *, full: bool = False) -> Selection:
    """The files of a model's safety checker, which is none of its parts and only asked for by name.

    safety_checker/             config.json, model[.fp16].safetensors
    feature_extractor/          preprocessor_config.json
    """
    part = "safety_checker"
    files = (f"{part}/config.json", "feature_extractor/preprocessor_config.json")
    found = _weights(names, f"{part}/model", full)
    lacking = next((name for name in files if name not in names), found.lacking)
    return Selection(
        files=(*(name for name in files if name in names), *found.index),
        roots={part: f"{part}/", "feature_extractor": "feature_extractor/"},
        weights={part: found.files},
        variants={part: found.variant},
        missing={} if lacking is None else {part: lacking},
    )


def _select(names: Collection[str], roots: dict[str, str], full: bool, weights: bool) -> Selection:
    files: list[str] = []
    chosen: dict[str, tuple[str, ...]] = {}
    variants: dict[str, str | None] = {}
    missing: dict[str, str] = {}
    for part, root in roots.items():
        if part == "tokenizer":
            own, lacking = _tokenizer(names, root)
        else:
            config = root + ("scheduler_config.json" if part == "scheduler" else "config.json")
            own, lacking = ([config], None) if config in names else ([], config)
        files += own
        if weights and part in STEMS:
            found = _weights(names, root + STEMS[part], full)
            files += found.index
            chosen[part], variants[part] = found.files, found.variant
            lacking = lacking or found.lacking
        if lacking:
            missing[part] = lacking
    return Selection(tuple(files), roots, chosen, variants, missing)


def _tokenizer(names: Collection[str], root: str) -> tuple[list[str], str | None]:
    extras = [root + name for name in _TOKENIZER_EXTRAS if root + name in names]
    slow = [root + "vocab.json", root + "merges.txt"]
    fast = root + "tokenizer.json"
    lacking = [name for name in slow if name not in names]
    if fast in names:
        return [fast, *(name for name in slow if name in names), *extras], None
    return [*(name for name in slow if name in names), *extras], lacking[0] if lacking else None


@dataclass(frozen=True)
class _Weights:
    variant: str | None
    files: tuple[str, ...]
    index: tuple[str, ...] = ()
    lacking: str | None = None


def _weights(names: Collection[str], stem: str, full: bool) -> _Weights:
    """The first complete set of weights: fp16 before full ones, or the other way round."""
    broken = None
    for variant in (None, VARIANT) if full else (VARIANT, None):
        dot = f".{variant}" if variant else ""
        if f"{stem}{dot}.safetensors" in names:
            return _Weights(variant, (f"{stem}{dot}.safetensors",))
        index = f"{stem}.safetensors.index{dot}.json"
        if index in names:
            shards, lacking = _shards(names, stem, dot)
            found = _Weights(variant, shards, (index,), lacking)
            if lacking is None:
                return found
            broken = broken or found
    return broken or _Weights(None, (), lacking=f"{stem}.safetensors")


def _shards(names: Collection[str], stem: str, dot: str) -> tuple[tuple[str, ...], str | None]:
    """The shards that belong to an index; a shard's own name says how many there are."""
    # diffusers writes the variant at the end, and once wrote it before the number.
    for before, after in (("", dot), (dot, "")):
        name = re.compile(
            re.escape(stem + before) + r"-\d{5}-of-(\d{5})" + re.escape(after) + r"\.safetensors"
        )
        found = [match for n in sorted(names) if (match := name.fullmatch(n))]
        if found:
            count = found[0][1]
            every = [
                f"{stem}{before}-{i:05}-of-{count}{after}.safetensors"
                for i in range(1, int(count) + 1)
            ]
            lacking = [n for n in every if n not in names]
            return tuple(n for n in every if n in names), lacking[0] if lacking else None
    return (), f"{stem}-00001-of-?{dot}.safetensors"
