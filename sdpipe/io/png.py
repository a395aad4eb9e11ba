"""Saves images with metadata, and reads the metadata back.

An image carries two texts: `parameters`, which every gallery tool reads, in the format of
AUTOMATIC1111's web UI, and `sdpipe`, a JSON object with everything that is needed to draw the
image again. In a PNG they are text chunks with these names. In JPEG and WebP they are EXIF:
UserComment holds `parameters`, as that web UI writes it, and ImageDescription "sdpipe: {...}".
Beside them stands the mark of an image that a model made, see `io.mark`.
"""

import importlib.metadata
import io
import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

import sdpipe
from sdpipe.errors import SdpipeError, warn
from sdpipe.io.files import write
from sdpipe.io.mark import PNG_XMP, to_xmp
from sdpipe.io.names import FORMATS
from sdpipe.io.pixels import pixels_sha256
from sdpipe.io.texts import (
    EXIF_IFD,
    IMAGE_DESCRIPTION,
    MARK,
    USER_COMMENT,
    parse_object,
    read_texts,
)
from sdpipe.settings import DEFAULT_OF, RULES, SAMPLERS, Settings
from sdpipe.values import num_steps_taken

SAVE_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}
LIBRARIES = ("torch", "diffusers", "transformers")

RNGS = {"cpu": "CPU", "cuda": "NV"}  # A1111's names of the generators

HIRES_UPSCALER = "Lanczos"  # as A1111 calls what `latents.enlarged` does
ZERO_SNR = "Zero Terminal SNR"

JPEG_LIMIT = 65533  # bytes of EXIF in a JPEG: one segment
FORMAT = 2  # of the metadata that is written


def metadata(
    settings: Settings,
    identity: Mapping[str, Any],
    *,
    image: Image.Image,
    device: str,
    dtype: str,
    speed: str = "default",
    n: int = 1,
    index: int = 0,
    safety: Mapping[str, Any] | None = None,
    lora_hashes: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """The metadata of an image: {"parameters": text, "sdpipe": object}, as `read` returns it.

    settings: resolved, of this image alone.
    identity: of the model, from `ModelInfo.identity()`.
    device, dtype, speed: what the image was drawn with; `speed` is one of `device.SPEEDS`.
    n, index: the image was number `index`, from 0, in a batch of `n`. Seeds, or variation seeds,
        count up by one through a batch, and the content of an image does not depend on the others:
        so these two numbers are enough to draw it in a batch of the same shape, and no image
        reveals the prompts of its neighbours.
    safety: the result of the safety checker, if it ran.
    lora_hashes: as for `parameters`.
    """
    own = {
        "format": FORMAT,
        "settings": settings.to_dict(),
        "model": dict(identity),
        "batch": {"n": n, "index": index},
        "versions": {
            "sdpipe": sdpipe.__version__,
            **{name: _version(name) for name in LIBRARIES},
            "python": platform.python_version(),
        },
        "device": device,
        "dtype": dtype,
        "speed": speed,
        "pixels_sha256": pixels_sha256(image),
    }
    if safety is not None:
        own["safety"] = dict(safety)
    return {"parameters": parameters(settings, identity, lora_hashes), "sdpipe": own}


def parameters(
    settings: Settings,
    identity: Mapping[str, Any],
    lora_hashes: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The prompts and settings of an image, in A1111's format.

    lora_hashes: of the tensors of each LoRA, by its name in `identity`. A1111's "Lora hashes" has
        their first 12 digits; "Hashes", which civitai reads, the first 10 of the files' hashes.
    """
    digest = identity.get("sha256")
    loras = {_lora_name(lora["name"]): lora for lora in identity.get("loras", ())}
    values = {
        "Steps": settings.steps,
        "Sampler": SAMPLERS[settings.scheduler or "lms"][0],
        "Schedule type": _schedule_type(settings),
        **dict.fromkeys(("CFG scale", "Seed", "Variation seed")),  # their usual order
        "Denoising strength": settings.strength or settings.hires_strength,
        **_named_by_a1111(settings),
        "Hires steps": _hires_steps(settings),
        "Hires upscaler": None if settings.hires_scale is None else HIRES_UPSCALER,
        "Size": f"{settings.width}x{settings.height}",
        "Model hash": digest[:10] if isinstance(digest, str) else None,
        # A1111 names a checkpoint by its file: no owner, no folder, no suffix.
        "Model": str(identity["name"]).rpartition("/")[2].removesuffix(".safetensors"),
        "Lora hashes": ", ".join(
            f"{name}: {lora_hashes[lora['name']][:12]}"
            for name, lora in loras.items()
            if lora["name"] in lora_hashes
        )
        or None,
        "RNG": RNGS[settings.rng],
        "Noise Schedule": ZERO_SNR if settings.zero_snr else None,
        "Tiling": "True" if settings.seamless == "xy" else None,
        "Version": f"sdpipe {sdpipe.__version__}",
    }
    lines = [settings.prompt]
    if settings.negative_prompt:
        lines.append(f"Negative prompt: {settings.negative_prompt}")
    pairs = [f"{key}: {_quoted(str(v))}" for key, v in values.items() if v is not None]
    hashes = {"model": digest} if isinstance(digest, str) else {}
    hashes |= {f"lora:{name}": lora["sha256"] for name, lora in loras.items()}
    if hashes:  # last and not quoted, for which civitai looks
        pairs.append(f"Hashes: {json.dumps({key: v[:10] for key, v in hashes.items()})}")
    lines.append(", ".join(pairs))
    return "\n".join(lines)


def _schedule_type(settings: Settings) -> str | None:
    """A1111's name for where the steps are; its SGM Uniform is trailing, to one timestep."""
    if settings.karras:
        return "Karras"
    return "SGM Uniform" if settings.spacing == "trailing" else None


def save(
    image: Image.Image,
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None = None,
    *,
    mark: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Saves an image as a new file, at `path` or under the next free number; returns its path.

    The file appears whole or not at all.
    metadata: from the function of that name; None saves none.
    mark: what the file says of its source, a term of `io.mark`; None says nothing.
    overwrite: replace a file at `path`.

    Raises:
        SdpipeError: the file cannot be written, or its suffix is not one of `FORMATS`.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise SdpipeError(f"{path}", "has an unknown suffix", f"use {', '.join(FORMATS)}")
    data = encode(image, FORMATS[path.suffix.lower()], metadata, mark)
    return write(path, data, overwrite=overwrite)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what `save` wrote, {"parameters": text, "sdpipe": object}; each only if it is there.

    The values are not checked: `sdpipe.metadata.record` does that.

    Raises:
        SdpipeError: the image is missing or damaged, or our text is too long or not JSON.
    """
    texts = read_texts(path, ("parameters", "sdpipe"))
    found: dict[str, Any] = {k: texts[k] for k in ("parameters",) if k in texts}
    if "sdpipe" in texts:
        try:
            found["sdpipe"] = parse_object(texts["sdpipe"])
        except ValueError as error:
            raise SdpipeError(f"{path}", f"has metadata that {error}") from error
    return found


def encode(
    image: Image.Image,
    format: str,
    metadata: Mapping[str, Any] | None = None,
    mark: str | None = None,
) -> bytes:
    """An image as the bytes of a file; `metadata` and `mark` as in `save`.

    format: one of `SAVE_OPTIONS`.

    Raises:
        SdpipeError: the image is too large for the format.
    """
    options = dict(SAVE_OPTIONS[format])
    if format == "PNG":
        options["pnginfo"] = _png_info(metadata, mark)
    elif mark is not None:
        options["xmp"] = to_xmp(mark).encode()
    if metadata is not None and format != "PNG":
        exif = _exif(metadata)
        if format == "JPEG" and len(exif) > JPEG_LIMIT:
            warn(
                f"the metadata has {len(exif)} bytes, and a JPEG holds {JPEG_LIMIT}: the image is "
                "saved without; save it as PNG to keep it."
            )
        else:
            options["exif"] = exif
    buffer = io.BytesIO()
    bare = image.copy()
    bare.info = {}  # Pillow would write the comment and the profile of an image that was read
    try:
        bare.save(buffer, format, **options)
    except (OSError, ValueError) as error:  # the image is too large for the format
        width, height = image.size
        raise SdpipeError(
            f"an image of {width} x {height} pixels",
            f"cannot be written as {format}: {error}",
            "PNG holds every size",
        ) from error
    return buffer.getvalue()


def _png_info(metadata: Mapping[str, Any] | None, mark: str | None) -> PngInfo:
    info = PngInfo()
    if metadata is not None:
        info.add_text("parameters", metadata["parameters"])
        info.add_text("sdpipe", json.dumps(metadata["sdpipe"], ensure_ascii=False))
    if mark is not None:
        info.add_itxt(PNG_XMP, to_xmp(mark))
    return info


def _exif(metadata: Mapping[str, Any]) -> bytes:
    exif = Image.Exif()
    exif.endian = ">"  # the byte order of the comment below
    exif[IMAGE_DESCRIPTION] = MARK + json.dumps(metadata["sdpipe"])  # EXIF wants ASCII here
    comment = b"UNICODE\0" + metadata["parameters"].encode("utf-16-be")
    # Pillow writes bytes as BYTE, and what it does not know as UNDEFINED, which EXIF wants here.
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = [bytearray(comment)]
    return exif.tobytes()


def _named_by_a1111(settings: Settings) -> dict[str, str]:
    """The settings that A1111 has too, by its names, where they are not at their default."""
    found = {}
    for name, rule in RULES.items():
        value = getattr(settings, name)
        if rule.a1111 and value not in (None, DEFAULT_OF[name]):
            found[rule.a1111] = rule.format(value)
    return found


def _hires_steps(settings: Settings) -> int | None:
    """The number of steps that the second pass takes, which is what A1111 counts."""
    if settings.steps is None or settings.hires_strength is None:
        return None
    return num_steps_taken(settings.steps, settings.hires_strength)


def _lora_name(file: str) -> str:
    """What A1111 calls a LoRA: its file without the suffix and without the signs of its format."""
    return re.sub(r"[:,{}]", "", file.removesuffix(".safetensors"))


def _quoted(value: str) -> str:
    special = any(sign in value for sign in ",:\n")
    return json.dumps(value, ensure_ascii=False) if special else value


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
