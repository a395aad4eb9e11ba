"""The notes of a file of weights, as Stability AI's ModelSpec names them (version 1.0.0).

Programs show them to choose a model by, and check the hash. See
https://github.com/Stability-AI/ModelSpec.
"""

import datetime
import json
import shutil
from pathlib import Path

import sdpipe
from sdpipe.components import Components
from sdpipe.io.files import atomic_write
from sdpipe.loading.weights import sha256_of_tensors


def modelspec(model: Components, title: str, kind: str = "") -> dict[str, str]:
    """The notes of every file of a model, or of a file that changes it, but the hash.

    title: how a person calls the model.
    kind: "/lora" of a LoRA for the model.
    """
    config = model.unet.config
    is_v = model.scheduler_config.get("prediction_type") == "v_prediction"
    version = ("v2-768-v" if is_v else "v2-512") if config.cross_attention_dim == 1024 else "v1"
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"stable-diffusion-{version}{kind}",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.description": f"Trained by sdpipe {sdpipe.__version__}.",
        "modelspec.date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "modelspec.resolution": "{width}x{height}".format(**model.defaults),
        "modelspec.prediction_type": "v" if is_v else "epsilon",
    }


def add_notes(path: Path, notes: dict[str, str]) -> None:
    """Adds notes to the header of a .safetensors file, and the hash of its tensors.

    The tensors stay as they are: behind the header, of which the first 8 bytes are the length.
    """
    notes = {**notes, "modelspec.hash_sha256": f"0x{sha256_of_tensors(path)}"}
    with path.open("rb") as old, atomic_write(path) as new:
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        header["__metadata__"] = {**header.get("__metadata__", {}), **notes}
        data = json.dumps(header, separators=(",", ":")).encode()
        data += b" " * (-len(data) % 8)  # tensors begin at multiples of 8 bytes
        new.write(len(data).to_bytes(8, "little") + data)
        shutil.copyfileobj(old, new)
