"""Which files make up a model in the diffusers folder layout, by their names alone.

    model_index.json
    sdpipe.json                 the model's own settings, optional
    words.json                  its vocabulary, optional, see `sdpipe.loading.vocabulary`
    tokenizer/                  vocab.json and merges.txt, or tokenizer.json
    text_encoder/               config.json, model[.fp16].safetensors
    unet/, vae/                 config.json, diffusion_pytorch_model[.fp16].safetensors
    scheduler/                  scheduler_config.json

The same rules select from a folder, a cached snapshot and the hub's list of files.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
"""The five parts, in the order in which they are used."""

WEIGHT_NAMES = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
"""By part, the name of its weight file without variant and suffix."""

VARIANT = "fp16"
_TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class Selection:
    """The files of a model among the names of a folder or a repository.

    files: the small files: configurations, the tokenizer's, the indexes of sharded weights.
    roots: by part, the folder that holds it: "", or with a slash at the end.
    weights: by part, the names of its weight files, several if they are sharded.
    variants: by part with weights, "fp16" or None.
    missing: by incomplete part, the first name that is missing.
    """

    files: tuple[str, ...] = ()
    roots: dict[str, str] = field(default_factory=dict)
    weights: dict[str, tuple[str, ...]] = field(default_factory=dict)
    variants: dict[str, str | None] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def all_weights(self) -> list[str]:
        """The names of all weight files, part after part."""
        return [name for names in self.weights.values() for name in names]

    @property
    def names(self) -> list[str]:
        """The names of all files, the small ones first."""
        return [*self.files, *self.all_weights]


def list_files(folder: Path) -> set[str]:
    """Lists the files in a folder and its subfolders, one level deep, with slashes.

    Broken links, which a damaged hub cache has, are left out.
    """
    paths = [*folder.glob("*"), *folder.glob("*/*")]
    return {path.relative_to(folder).as_posix() for path in paths if path.is_file()}


def select_model(
    names: Collection[str],
    parts: Iterable[str] = PARTS,
    *,
    full_precision: bool = False,
    weights: bool = True,
) -> Selection:
    """Selects the files of a model.

    parts: the parts that are wanted; the others may be missing.
    full_precision: prefer the full weights to the fp16 variant.
    weights: False selects the configurations alone.
    """
    roots = {part: f"{part}/" for part in PARTS if part in parts}
    selection = _select(names, roots, full_precision, weights)
    if "model_index.json" not in names:
        missing = {"model": "model_index.json", **selection.missing}
        selection = replace(selection, missing=missing)
    top = tuple(n for n in ("model_index.json", "sdpipe.json", "words.json") if n in names)
    return replace(selection, files=top + selection.files)


def select_part(names: Collection[str], part: str, *, full_precision: bool = False) -> Selection:
    """Selects the files of one part, from a folder of that part alone or of a whole model.

    A text encoder's tokenizer is selected with it if there is one.
    """
    is_model = f"{part}/config.json" in names or "model_index.json" in names
    roots = {part: f"{part}/" if is_model else ""}
    if part == "text_encoder":
        root = "tokenizer/" if is_model else ""
        if "tokenizer" not in _select(names, {"tokenizer": root}, full_precision, False).missing:
            roots["tokenizer"] = root
    elif part == "tokenizer":
        roots[part] = "tokenizer/" if any(n.startswith("tokenizer/") for n in names) else ""
    return _select(names, roots, full_precision, True)


def select_checker(names: Collection[str], *, full_precision: bool = False) -> Selection:
    """Selects the files of a model's safety checker, which is optional and not one of `PARTS`.

    safety_checker/             config.json, model[.fp16].safetensors
    feature_extractor/          preprocessor_config.json
    """
    part = "safety_checker"
    files = (f"{part}/config.json", "feature_extractor/preprocessor_config.json")
    found = _select_weights(names, f"{part}/model", full_precision)
    missing = next((name for name in files if name not in names), found.missing)
    return Selection(
        files=(*(name for name in files if name in names), *found.index),
        roots={part: f"{part}/", "feature_extractor": "feature_extractor/"},
        weights={part: found.files},
        variants={part: found.variant},
        missing={} if missing is None else {part: missing},
    )


def _select(
    names: Collection[str], roots: dict[str, str], full_precision: bool, weights: bool
) -> Selection:
    files: list[str] = []
    chosen: dict[str, tuple[str, ...]] = {}
    variants: dict[str, str | None] = {}
    missing: dict[str, str] = {}
    for part, root in roots.items():
        if part == "tokenizer":
            found, lacking = _select_tokenizer(names, root)
        else:
            config = root + ("scheduler_config.json" if part == "scheduler" else "config.json")
            found, lacking = ([config], None) if config in names else ([], config)
        files += found
        if weights and part in WEIGHT_NAMES:
            shards = _select_weights(names, root + WEIGHT_NAMES[part], full_precision)
            files += shards.index
            chosen[part], variants[part] = shards.files, shards.variant
            lacking = lacking or shards.missing
        if lacking:
            missing[part] = lacking
    return Selection(tuple(files), roots, chosen, variants, missing)


def _select_tokenizer(names: Collection[str], root: str) -> tuple[list[str], str | None]:
    """The files of a tokenizer, and the first that is missing."""
    extras = [root + name for name in _TOKENIZER_EXTRAS if root + name in names]
    pair = [root + "vocab.json", root + "merges.txt"]
    single = root + "tokenizer.json"
    missing = [name for name in pair if name not in names]
    if single in names:
        return [single, *(name for name in pair if name in names), *extras], None
    return [*(name for name in pair if name in names), *extras], missing[0] if missing else None


@dataclass(frozen=True)
class _Weights:
    variant: str | None
    files: tuple[str, ...]
    index: tuple[str, ...] = ()
    missing: str | None = None


def _select_weights(names: Collection[str], stem: str, full_precision: bool) -> _Weights:
    """The first complete set of weights, in the preferred order of the two kinds."""
    incomplete = None
    for variant in (None, VARIANT) if full_precision else (VARIANT, None):
        dot = f".{variant}" if variant else ""
        if f"{stem}{dot}.safetensors" in names:
            return _Weights(variant, (f"{stem}{dot}.safetensors",))
        index = f"{stem}.safetensors.index{dot}.json"
        if index in names:
            shards, missing = _select_shards(names, stem, dot)
            found = _Weights(variant, shards, (index,), missing)
            if missing is None:
                return found
            incomplete = incomplete or found
    return incomplete or _Weights(None, (), missing=f"{stem}.safetensors")


def _select_shards(
    names: Collection[str], stem: str, dot: str
) -> tuple[tuple[str, ...], str | None]:
    """The shards of an index and the first that is missing; their names say how many there are."""
    # diffusers writes the variant at the end, and once wrote it before the number.
    for before, after in (("", dot), (dot, "")):
        pattern = re.compile(
            re.escape(stem + before) + r"-\d{5}-of-(\d{5})" + re.escape(after) + r"\.safetensors"
        )
        matches = [match for n in sorted(names) if (match := pattern.fullmatch(n))]
        if matches:
            count = matches[0][1]
            shards = [
                f"{stem}{before}-{i:05}-of-{count}{after}.safetensors"
                for i in range(1, int(count) + 1)
            ]
            missing = [n for n in shards if n not in names]
            return tuple(n for n in shards if n in names), missing[0] if missing else None
    return (), f"{stem}-00001-of-?{dot}.safetensors"
