"""Finds where each part of a model comes from, before any is loaded.

Everything here is read from configurations and from the headers of weight files, without torch.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from sdpipe.errors import ModelError
from sdpipe.loading import single_file
from sdpipe.loading.configs import (
    CLASS_DEFAULTS,
    V1_4_SCHEDULER,
    check_shards,
    own_settings,
    read_config,
    read_model_settings,
)
from sdpipe.loading.layout import PARTS, WEIGHT_NAMES
from sdpipe.loading.locate import Location, find_configs, find_model, find_part
from sdpipe.loading.lora import Lora
from sdpipe.loading.single_file import CheckpointInfo
from sdpipe.loading.tokenizer import TokenizerFiles, read_tokenizer_files
from sdpipe.loading.weights import read_header, read_shapes, rename_legacy_key

LARGEST = 2048
"""Pixels of a side that a model may be made for."""

MOST_TIMES = 4
"""By how much the size in a model's sdpipe.json may exceed that."""


@dataclass(frozen=True)
class Sources:
    """Where every part comes from.

    model: the model as a whole; None if every part was passed on its own.
    modules: the parts that were passed as loaded modules.
    locations: where every other part is.
    replaced: by part, the name of what replaces the model's own part.
    template: v1-4's configurations, if a single file needs them.
    info: what the header of a single-file model says.
    prediction_type: what the UNet predicts, if the caller set it.
    loras: what is added to the model.
    """

    model: Location | None
    modules: dict[str, Any]
    locations: dict[str, Location]
    replaced: dict[str, str] = field(default_factory=dict)
    template: Location | None = None
    info: CheckpointInfo | None = None
    prediction_type: str | None = None
    loras: Sequence[Lora] = ()

    @classmethod
    def find(
        cls,
        model: str | os.PathLike[str] | None,
        given: Mapping[str, Any],
        *,
        full_precision: bool,
        prediction_type: str | None = None,
        loras: Sequence[Lora] = (),
    ) -> Self:
        """Finds all parts, downloads what is on the hub and not cached, and checks every header.

        given: by part, what the caller passed in place of the model's own part.

        Raises:
            ModelError: a part is missing, damaged or cannot be fetched.
        """
        locations: dict[str, Location] = {}
        modules: dict[str, Any] = {}
        replaced: dict[str, str] = {}
        for part, value in given.items():
            if not isinstance(value, str | os.PathLike):
                modules[part] = value
                replaced[part] = f"a {type(value).__name__} that was passed"
                continue
            found = locations[part] = find_part(value, part, full_precision=full_precision)
            hub_id = found.name.partition("@")[0]
            replaced[part] = f"{hub_id}@{found.revision}" if found.revision else found.name
        # A text encoder needs the tokenizer that it was trained with.
        encoder = locations.get("text_encoder")
        if encoder and "tokenizer" in encoder.files.roots and "tokenizer" not in given:
            locations["tokenizer"] = encoder
        rest = [part for part in PARTS if part not in locations and part not in modules]
        base = template = info = None
        if model is not None or rest != ["scheduler"]:
            base = find_model(model, parts=rest, full_precision=full_precision)
            locations.update(dict.fromkeys(rest, base))
        vae = locations.get("vae")
        if base is not None and base.is_file:
            info = read_checkpoint(base, rest, prediction_type)  # before a download for it
            template = find_configs(label=base.label)
        elif vae and vae.is_file and not (base and (base.path / "vae/config.json").is_file()):
            template = find_configs(label=vae.label)
        sources = cls(base, modules, locations, replaced, template, info, prediction_type, loras)
        sources._check_headers()
        if vae and vae.is_file and "vae" in given:
            _, tensors = read_header(vae.path, vae.label)
            single_file.check_vae(tensors, sources.config("vae"), vae.label)
        return sources

    def _check_headers(self) -> None:
        """Opens every weight file: its header says how long the file has to be."""
        for part, location in self.locations.items():
            found: dict[str, str] = {}
            for path in self.weights(part):
                who = f"{location.label}: the {part} in {path}"
                _, tensors = read_header(path, who)
                if twice := found.keys() & tensors.keys():
                    raise ModelError(
                        who,
                        f"has the tensor {min(twice)}, which another file of the {part} has too",
                        "download all of its files again, from one place",
                    )
                found |= dict.fromkeys(tensors, path.name)
            for name in () if location.is_file or not found else location.files.files:
                if name.startswith(location.files.roots[part]) and ".safetensors.index." in name:
                    check_shards(location.path / name, found, location.label)

    def weights(self, part: str) -> tuple[Path, ...]:
        """The files of a part's weights; none if it was passed as a module."""
        location = self.locations.get(part)
        if location is None or part not in WEIGHT_NAMES:
            return ()
        return (location.path,) if location.is_file else tuple(location.weights(part))

    def shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        """The shapes of a part's tensors by its class's names; empty for an LDM checkpoint."""
        if part in self.modules:
            tensors = self.modules[part].state_dict()
            return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if self.is_ldm(part):
            return {}
        found = read_shapes(self.weights(part), self.locations[part].label)
        return {rename_legacy_key(name): shape for name, shape in found.items()}

    def is_ldm(self, part: str) -> bool:
        """Whether a part comes from a single file in the LDM layout."""
        location = self.locations.get(part)
        if location is None or not location.is_file:
            return False
        _, tensors = read_header(location.path, location.label)
        return part != "vae" or single_file.is_ldm_layout(tensors)

    def folder(self, part: str) -> Path:
        """The folder with a part's configuration."""
        location = self.locations[part]
        if location.is_file:
            if (folder := self.model_folder(part)) is not None:
                return folder
            assert self.template is not None
            location = self.template
        return location.path / location.files.roots[part]

    def model_folder(self, part: str) -> Path | None:
        """The folder in which the model has its own part, replaced or not; None without one."""
        if self.model is None or self.model.is_file:
            return None
        folder = self.model.path / part
        return folder if (folder / "config.json").is_file() else None

    def config(self, part: str) -> dict[str, Any]:
        """A part's configuration, with its class's defaults.

        Raises:
            ModelError: it is not readable.
        """
        values: dict[str, Any] = {}
        if part in self.modules:
            config = self.modules[part].config
            values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        elif part in self.locations:
            values = read_config(self.folder(part), part, self.locations[part].label)
            if self.info is not None and self.locations[part] is self.model:
                values = single_file.adapt_config(part, values, self.info)
        return {**CLASS_DEFAULTS.get(part, {}), **values}

    def scheduler(self) -> dict[str, Any]:
        """The scheduler's configuration; v1-4's if the model has none."""
        config = self.config("scheduler") or dict(V1_4_SCHEDULER)
        if self.prediction_type is not None:
            config["prediction_type"] = single_file.PREDICTION_TYPES[self.prediction_type]
        return config

    @cached_property
    def tokenizer_files(self) -> TokenizerFiles:
        """The tokenizer as data; that of a Stable Diffusion 2 checkpoint pads with !.

        Raises:
            ModelError: a file is not readable, or breaks a rule.
        """
        location = self.locations["tokenizer"]
        files = read_tokenizer_files(self.folder("tokenizer"), location.label)
        if self.info is not None and self.info.version == 2 and location is self.model:
            return replace(files, marks={**files.marks, "pad_token": "!"})
        return files

    def describe(self, part: str) -> str:
        """How messages name a part."""
        if part in self.replaced:
            return f"the {part} ({self.replaced[part]})"
        return f"the {part} of {self.locations[part].label}"

    def defaults(self) -> dict[str, Any]:
        """The model's own settings: those of its LoRAs, else in sdpipe.json, its scheduler, and the
        size of its UNet in pixels.

        Raises:
            ModelError: sdpipe.json has an unknown key, or a value that breaks its rule.
        """
        values: dict[str, Any] = {}
        if self.model is not None and (path := self.model.path / "sdpipe.json").is_file():
            values = read_model_settings(path, self.model.label)
        size = self.config("unet").get("sample_size") or 64
        height, width = (size, size) if isinstance(size, int) else size
        made_for = {"width": width * self.factor, "height": height * self.factor}
        for side, pixels in made_for.items():
            own = values.get(side, pixels)
            if pixels > LARGEST or own > MOST_TIMES * pixels:
                most = min(LARGEST, MOST_TIMES * pixels)
                raise ModelError(
                    f"{self.describe('unet')} with a {side} of {max(own, pixels)} pixels",
                    f"draws more by itself than is drawn unasked, here at most {most}",
                    f"set its {side} in sdpipe.json to {most} or less, or its sample_size",
                )
        for lora in self.loras:
            values |= lora.settings
        by_config = {} if "scheduler" in values else own_settings(self.scheduler())
        return {**made_for, **by_config, **values}

    @property
    def constraints(self) -> dict[str, Any]:
        """The keyword arguments of `plan.plan` that depend on the model, read from its files.

        Raises:
            ModelError: as `defaults`.
        """
        return {"defaults": self.defaults(), "factor": self.factor, "layers": self.layers}

    @property
    def factor(self) -> int:
        """Pixels per latent in each direction."""
        return int(2 ** (len(self.config("vae")["block_out_channels"]) - 1))

    @property
    def layers(self) -> int:
        """The number of layers of the text encoder."""
        return int(self.config("text_encoder")["num_hidden_layers"])


def read_checkpoint(
    location: Location, parts: Sequence[str], prediction_type: str | None
) -> CheckpointInfo:
    """Reads the header of a single-file model and checks that it has `parts`.

    Raises:
        ModelError: it is damaged or of another kind, lacks a part, or does not say what its UNet
            predicts.
    """
    notes, tensors = read_header(location.path, location.label)
    info = single_file.read_info(notes, tensors, prediction_type)
    single_file.check_checkpoint(tensors, tuple(parts), info, location.label)
    return info
