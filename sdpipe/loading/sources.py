"""Where each part of a model comes from, and whether the parts fit, before any is loaded.

It is read from configurations and from the headers of the weights' files, without torch.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from sdpipe.errors import ModelError, UsageError
from sdpipe.loading import single_file
from sdpipe.loading.layout import PARTS, STEMS
from sdpipe.loading.locate import Location, configurations, find_checker, find_model, find_part
from sdpipe.loading.lora import Lora
from sdpipe.loading.single_file import Kind
from sdpipe.loading.textual_inversion import Embedding
from sdpipe.loading.weight_files import header, shapes
from sdpipe.loading.weights import new_name
from sdpipe.settings import MODEL_DEFAULTS, Settings

V1_4_SCHEDULER: Mapping[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
"""What v1-4 was trained with: holds for parts that come without a scheduler."""

CLASS_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "unet": {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 1280},
    "vae": {"latent_channels": 4, "block_out_channels": (64,)},
    "text_encoder": {
        "hidden_size": 512,
        "num_hidden_layers": 12,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
    },
}
"""What the classes take where a configuration does not say; only what is looked at here."""


@dataclass(frozen=True)
class Sources:
    """Where every part comes from.

    model: what was asked for as a whole; None where all parts were handed over.
    modules: parts that were handed over loaded.
    places: where every other part is found.
    swapped: how the parts that are not the model's own are called.
    template: for a single file, a folder with the configurations that it lacks; for a VAE in one
        the model's own does, where it has one.
    kind: what a single file tells of the model in it.
    prediction: what the U-Net predicts, where a person said it.
    """

    model: Location | None
    modules: dict[str, Any]
    places: dict[str, Location]
    swapped: dict[str, str] = field(default_factory=dict)
    template: Location | None = None
    kind: Kind | None = None
    prediction: str | None = None

    @classmethod
    def find(
        cls,
        model: str | os.PathLike[str] | None,
        given: Mapping[str, Any],
        *,
        full: bool,
        prediction: str | None = None,
    ) -> Self:
        """Finds the parts that are not handed over, fetching what has to be fetched.

        Raises:
            ModelError: something is missing, damaged, or cannot be fetched.
        """
        places: dict[str, Location] = {}
        modules: dict[str, Any] = {}
        swapped: dict[str, str] = {}
        for part, value in given.items():
            if not isinstance(value, str | os.PathLike):
                modules[part] = value
                swapped[part] = f"a {type(value).__name__} handed over"
                continue
            found = places[part] = find_part(value, part, full=full)
            hub_id = found.name.partition("@")[0]
            swapped[part] = f"{hub_id}@{found.revision}" if found.revision else found.name
        # A text encoder speaks the language of the tokenizer that it was trained with.
        encoder = places.get("text_encoder")
        if encoder and "tokenizer" in encoder.files.roots and "tokenizer" not in given:
            places["tokenizer"] = encoder
        rest = [part for part in PARTS if part not in places and part not in modules]
        base = template = None
        if model is not None or rest != ["scheduler"]:
            base = find_model(model, parts=rest, full=full)
            places.update(dict.fromkeys(rest, base))
        kind = None
        if base is not None and base.is_file:  # looked at before anything is fetched for it
            kind = file_kind(base, rest, prediction)
        described = base is not None and (base.path / "vae" / "config.json").is_file()
        if base is not None and base.is_file:
            template = configurations(label=base.label)
        elif "vae" in places and places["vae"].is_file and not described:
            template = configurations(label=places["vae"].label)
        sources = cls(base, modules, places, swapped, template, kind, prediction)
        sources._check_headers()
        if "vae" in given and "vae" in places and places["vae"].is_file:
            _, tensors = header(places["vae"].path, places["vae"].label)
            single_file.check_vae(tensors, sources.config("vae"), places["vae"].label)
        return sources

    def shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        """The shapes of a part's tensors as its class names them; {} for a single file's."""
        if part in self.modules:
            tensors = self.modules[part].state_dict()
            return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        place = self.places[part]
        if place.is_file:
            return {}
        found = shapes(self.weights(part), place.label)
        return {new_name(name): shape for name, shape in found.items()}

    def check_loras(self, loras: Sequence[Lora]) -> None:
        """Refuses a LoRA that changes layers that the model does not have.

        A single file names its layers in another way, so there it is seen when they are changed.

        Raises:
            ModelError: the first such layer.
        """
        for part in ("unet", "text_encoder"):
            if loras and (known := self.shapes(part)):
                for lora in loras:
                    lora.find(part, known, self.who(part))

    def check_embeddings(self, embeddings: Sequence[Embedding]) -> None:
        """Refuses an embedding that the text encoder does not take.

        Raises:
            ModelError: why.
        """
        config, whose = self.config("text_encoder"), self.who("text_encoder")
        for each in embeddings:
            each.check_fit(config["hidden_size"], config["max_position_embeddings"], whose)

    def check_checker(self) -> None:
        """Refuses a model that has no safety checker; one of the hub is asked when it is loaded.

        Raises:
            ModelError: it has none.
        """
        if self.model is not None and self.model.revision is None:
            find_checker(self.model.name, self.model.path, None, full=False)

    def _check_headers(self) -> None:
        """Opens every file of weights: a header tells how long its file has to be."""
        from safetensors import SafetensorError, safe_open

        for part, place in self.places.items():
            for path in self.weights(part):
                try:
                    with safe_open(path, framework="np"):
                        pass
                except (OSError, SafetensorError) as error:
                    again = (
                        "Delete it, and the next run fetches it again."
                        if place.revision
                        else "Copy or download it again."
                    )
                    raise ModelError(
                        f"{place.label}: the weights of the {part} in {path} are damaged or cut "
                        f"short ({error}). {again}"
                    ) from error

    def weights(self, part: str) -> tuple[Path, ...]:
        """The files of a part's weights; none where it was handed over."""
        place = self.places.get(part)
        if place is None or part not in STEMS:
            return ()
        return (place.path,) if place.is_file else tuple(place.weights(part))

    def folder(self, part: str) -> Path:
        """The folder with a part's configuration."""
        place = self.places[part]
        if not place.is_file:
            return place.path / place.files.roots[part]
        if (own := self.own(part)) is not None:
            return own
        assert self.template is not None
        return self.template.path / self.template.files.roots[part]

    def own(self, part: str) -> Path | None:
        """The folder that a model has for a part, also where another part stands in."""
        if self.model is None or self.model.is_file:
            return None
        folder = self.model.path / part
        return folder if (folder / "config.json").is_file() else None

    def config(self, part: str) -> dict[str, Any]:
        """What a part says of itself, with its class's defaults.

        Raises:
            ModelError: its configuration is not readable.
        """
        values: dict[str, Any] = {}
        if part in self.modules:
            config = self.modules[part].config
            values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        elif part in self.places:
            name = "scheduler_config.json" if part == "scheduler" else "config.json"
            values = read_json(self.folder(part) / name, self.places[part].label)
            values = values.get("text_config", values)  # of a whole CLIP only the text half counts
            if self.kind is not None and self.places[part] is self.model:
                values = single_file.configured(part, values, self.kind)
        return {**CLASS_DEFAULTS.get(part, {}), **values}

    def scheduler(self) -> dict[str, Any]:
        """The scheduler's configuration: v1-4's where no model comes with one."""
        own = self.config("scheduler") or dict(V1_4_SCHEDULER)
        if self.prediction is not None:
            own["prediction_type"] = single_file.PREDICTIONS[self.prediction]
        return own

    def tokenizer_options(self) -> dict[str, str]:
        """What the tokenizer has other than its files say: Stable Diffusion 2 pads with a "!"."""
        version_2 = self.kind is not None and self.kind.version == 2
        return {"pad_token": "!"} if version_2 and self.places["tokenizer"] is self.model else {}

    def who(self, part: str) -> str:
        """How messages name a part."""
        if part in self.swapped:
            return f"the {part} ({self.swapped[part]})"
        return f"the {part} of {self.places[part].label}"

    def defaults(self) -> dict[str, Any]:
        """The model's own settings, of its sdpipe.json and of its UNet's size; in pixels.

        Raises:
            ModelError: sdpipe.json holds something else than settings that keep their rules.
        """
        values: dict[str, Any] = {}
        if self.model is not None and (path := self.model.path / "sdpipe.json").is_file():
            values = own_settings(path, self.model.label)
        size = self.config("unet").get("sample_size") or 64
        height, width = (size, size) if isinstance(size, int) else size
        return {"width": width * self.factor, "height": height * self.factor, **values}

    @property
    def factor(self) -> int:
        """Pixels of a picture to one of its latents, in each direction."""
        return int(2 ** (len(self.config("vae")["block_out_channels"]) - 1))

    @property
    def layers(self) -> int:
        """Those of the text encoder."""
        return int(self.config("text_encoder")["num_hidden_layers"])


def file_kind(place: Location, parts: Sequence[str], prediction: str | None) -> Kind:
    """What a single file tells of the model in it, where it can be read and has `parts`.

    Raises:
        ModelError: it is damaged, or as `single_file.check`.
    """
    notes, tensors = header(place.path, place.label)
    kind = single_file.look(notes, tensors, prediction)
    single_file.check(tensors, tuple(parts), kind, place.label)
    return kind


def own_settings(path: Path, label: str) -> dict[str, Any]:
    """The settings in a model's sdpipe.json: any of `settings.MODEL_DEFAULTS`.

    Raises:
        ModelError: an unknown key, or a value that breaks its rule.
    """
    values = read_json(path, label)
    if unknown := sorted(set(values) - set(MODEL_DEFAULTS)):
        raise ModelError(
            f"{label}: {path} has the unknown key {unknown[0]!r}; a model's own settings are "
            f"{', '.join(MODEL_DEFAULTS)}."
        )
    values = {name: value for name, value in values.items() if value is not None}
    try:
        checked = Settings(prompt="", **values)
    except UsageError as error:
        raise ModelError(f"{label}: {path} breaks a rule: {error}") from error
    return {name: getattr(checked, name) for name in values}


def read_json(path: Path, label: str) -> dict[str, Any]:
    """A JSON object from a model's folder. Raises ModelError where it is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{label}: {path} is not readable as JSON ({error}).") from error
    if not isinstance(values, dict):
        raise ModelError(f"{label}: {path} does not hold an object of names and values.")
    return values
