"""What A1111's clients read and choose: the options, the models and everything else in lists."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdpipe.serve.a1111_idle import refuse, shorten
from sdpipe.settings import RULES, SAMPLERS

if TYPE_CHECKING:
    from sdpipe.pipeline import Pipeline
    from sdpipe.serve.server import Server

FIXED: Mapping[str, Any] = {
    "samples_format": "png",
    "randn_source": "CPU",
    "sd_vae": "Automatic",
    "eta_ddim": 0.0,
    "eta_ancestral": 1.0,
    "eta_noise_seed_delta": 0,
    "initial_noise_multiplier": 1.0,
    "inpainting_mask_weight": 1.0,
    "img2img_color_correction": False,
    "img2img_fix_steps": False,
    "token_merging_ratio": 0.0,
    "use_old_hires_fix_width_height": False,
    "face_restoration": False,
    "samples_save": False,
    "grid_save": False,
    "return_grid": False,
    "live_previews_enable": True,
    "show_progress_every_n_steps": 1,
}
"""Options as they are here; nobody can change them."""

IDLE: Mapping[str, tuple[Any, ...]] = {"sd_vae": ("Automatic", "None", "")}
"""Values of an option that mean the same."""

HARMLESS = (
    *("samples_save", "samples_filename", "grid_", "save_", "return_", "show_", "live_preview"),
    *("do_not_", "ui_", "outdir_", "directories_", "quicksettings", "notification", "jpeg_"),
    *("webp_", "n_rows", "hidden_tabs", "localization", "gallery_", "js_", "sd_checkpoint_hash"),
)
"""How the names of options begin that change no image: they may be set, and nothing follows."""

UPSCALERS = ("None", "Lanczos")
SCHEDULES = {"automatic": "Automatic", "karras": "Karras", "uniform": "Uniform",
             "sgm_uniform": "SGM Uniform"}  # fmt: skip


class Options:
    """The model and the layer of its text encoder that count where a request names none.

    Setting them is for every client of A1111's interface, as there; OpenAI's has its own default.
    """

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._model: str | None = None
        self.clip_skip = 1

    def find_model(self, name: object = None) -> tuple[str, "Pipeline"]:
        """A served model and its name, by its title, name, file or hash; None is the chosen one.

        Raises:
            RequestError: none is loaded yet, or none has that name.
        """
        if name in (None, ""):
            pipe = self._server.find_model(self._model)
            return self._model or next(iter(self._server.models)), pipe
        if name in list(self._server.models):
            return str(name), self._server.find_model(name)
        for ours, pipe in self._server.models.items():
            entry = describe(ours, pipe)
            if name in entry.values() or name == f"{ours}.safetensors":
                return ours, pipe
        return str(name), self._server.find_model(name)

    def to_dict(self) -> dict[str, Any]:
        """All options by their names."""
        entry = describe(*self.find_model())
        return {
            "sd_model_checkpoint": entry["title"],
            "sd_checkpoint_hash": entry["sha256"] or "",
            "CLIP_stop_at_last_layers": self.clip_skip,
            **FIXED,
        }

    def change(self, values: Mapping[str, Any]) -> None:
        """Sets the model and the layer, all or nothing; other options may only be as they are.

        Raises:
            RequestError: one is not.
        """
        values = {name: value for name, value in values.items() if value is not None}
        model, clip_skip = self._model, self.clip_skip
        if (name := values.pop("sd_model_checkpoint", None)) is not None:
            model, _ = self.find_model(name)
        if "CLIP_stop_at_last_layers" in values:
            value = values.pop("CLIP_stop_at_last_layers")
            clip_skip = RULES["clip_skip"].check("CLIP_stop_at_last_layers", value)
        for name, value in values.items():
            self.check(name, value, name)
        self._model, self.clip_skip = model, clip_skip

    def check(self, name: str, value: object, where: str) -> None:
        """Raises RequestError for an option that would change an image and is not so here."""
        if value in IDLE.get(name, (FIXED[name],) if name in FIXED else ()):
            return
        if name.startswith(HARMLESS):
            return
        rule, remedy = "is no option here", "leave it out"
        if name in FIXED:
            rule, remedy = "cannot be set", f"here it is {shorten(FIXED[name])}"
        raise refuse(where[:80], value, rule, remedy)


def describe(name: str, pipe: "Pipeline") -> dict[str, Any]:
    """A model as A1111 lists it; no path of this machine.

    The first call may compute the hash of its weights. A model of the hub has none.
    """
    digest = pipe.components.model.identity()["sha256"]
    return {
        "title": name if digest is None else f"{name} [{digest[:10]}]",
        "model_name": name,
        "hash": None if digest is None else digest[:10],
        "sha256": digest,
        "filename": name,
        "config": None,
    }


def list_samplers() -> list[dict[str, Any]]:
    """The samplers by A1111's names, with ours among their aliases."""
    return [
        {"name": names[0], "aliases": [ours, *names[1:]], "options": {}}
        for ours, names in SAMPLERS.items()
    ]


def list_schedulers() -> list[dict[str, Any]]:
    """The schedules."""
    more = {"aliases": None, "default_rho": -1.0, "need_inner_model": False}
    return [{"name": name, "label": label, **more} for name, label in SCHEDULES.items()]


def list_upscalers() -> list[dict[str, Any]]:
    """The ways to enlarge an image for a second pass, which are one."""
    more = {"model_name": None, "model_path": None, "model_url": None, "scale": 4}
    return [{"name": name, **more} for name in UPSCALERS]


def list_vaes(pipe: "Pipeline") -> list[dict[str, Any]]:
    """The VAE that replaced the model's own, if one did."""
    name = pipe.components.model.identity()["parts"].get("vae")
    return [] if name is None else [dict.fromkeys(("model_name", "filename"), name.split("@")[0])]


def list_loras(pipe: "Pipeline") -> list[dict[str, Any]]:
    """The LoRAs that the model was loaded with; their weight is fixed."""
    return [
        {
            "name": lora.path.stem,
            "alias": lora.path.stem,
            "path": lora.path.name,
            "metadata": {"weight": lora.weight},
        }
        for lora in pipe.components.model.loras
    ]


def list_embeddings(pipe: "Pipeline") -> dict[str, Any]:
    """The textual inversions that the model was loaded with, by their words."""
    loaded = {
        embedding.word: {
            "step": None,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
            "shape": embedding.width,
            "vectors": embedding.vectors,
        }
        for embedding in pipe.components.model.embeddings
    }
    return {"loaded": loaded, "skipped": {}}
