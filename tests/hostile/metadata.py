"""Images as a stranger may send them: mutated by Hypothesis, read, shown, prepared for replay."""

import copy
import dataclasses
import io
import json
import random
import re
import struct
import zlib

from hostile.watch import check_message
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdpipe.errors import SdpipeError
from sdpipe.io import png
from sdpipe.io.mark import PNG_XMP
from sdpipe.io.texts import EXIF_IFD, IMAGE_DESCRIPTION, MARK, USER_COMMENT
from sdpipe.metadata.info import info
from sdpipe.metadata.replay import prepare
from sdpipe.settings import Settings
from sdpipe.sweep.command import sweep_command

FILES = 5  # of a seed

A1111 = (
    "a cat, (sitting:1.2)\non a chair\nNegative prompt: dog, [blurry]\nSteps: 20, Sampler: DPM++ "
    '2M Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, Model hash: 45dee52b, Model: "a, b", '
    'Clip skip: 2, Lora hashes: "detail: 7c0b", RNG: CPU, Version: v1.10.1'
)
INVOKEAI = {
    "generation_mode": "txt2img",
    "positive_prompt": "cabin",
    "negative_prompt": None,
    "width": 512,
    "height": 512,
    "seed": 27,
    "rand_device": "cpu",
    "cfg_scale": 7.5,
    "steps": 30,
    "scheduler": "dpmpp_2m_k",
    "model": {"name": "sd15", "hash": "blake3:ab"},
    "loras": [{"model": {"name": "x"}}],
    "app_version": "5.4.2",
}
SD_METADATA = {
    "model_weights": "stable-diffusion-1.5",
    "model_hash": "cc6c",
    "app_version": "2.3.5",
    "image": {
        "prompt": [{"prompt": "robot [text]", "weight": 1.0}],
        "steps": 50,
        "cfg_scale": 7.5,
        "height": 512,
        "width": 512,
        "seed": 1618,
        "type": "txt2img",
        "sampler": "k_lms",
    },
}
NOVELAI = {"steps": 28, "sampler": "k_euler", "seed": 7, "scale": 11.0, "uc": "text", "prompt": "a"}
GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 28,
            "steps": 20,
            "cfg": 8.0,
            "sampler_name": "euler",
            "denoise": 1.0,
            "model": ["4", 0],
            "positive": ["6", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["4", 1]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}},
}
XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><y:CreatorTool xmlns:y="b">Draw Things</y:CreatorTool>
<exif:UserComment xmlns:exif="http://ns.adobe.com/exif/1.0/">{"c": "a cat", "seed": 3, "size":
"64x64", "v2": {"loras": [1]}}</exif:UserComment></x:xmpmeta>"""
DGENERATE = "#! dgenerate 5.0.0\nmodel\n--seeds 3\n--output-size 64x64\n--prompts 'a; b'"
DREAM = '"a robot [text]" -s50 -S1618 -W512 -H512 -C7.5 -Ak_lms -V 3,0.2 -U 4 0.75 --seamless'


def sample_image():
    return Image.frombytes("RGB", (16, 8), random.Random(0).randbytes(16 * 8 * 3))


def our_metadata():
    drawn = Settings(prompt="red apple", seed=42, g=3, steps=30, width=8, height=4096).resolved({})
    model = {"name": "emoji", "revision": None, "variant": None, "sha256": "a" * 64, "parts": {}}
    machine = {"device": "cpu", "dtype": "float32", "n": 4, "index": 2}
    return png.metadata(drawn, model, image=sample_image(), **machine)


SWEEP = {
    "prompt": "a {cat|dog}",
    "negative_prompt": "red",
    "g": [1, "12:4"],
    "seed": 3,
    "outpaint": [0, 0, 8, 0],
    "init_image": {"name": "in.png", "sha256": "a" * 64},
}
GRID = {k: v for k, v in our_metadata()["sdpipe"].items() if k not in ("settings", "batch")}
GRID["sweep"] = SWEEP
TEXTS = {
    "sdpipe": our_metadata()["sdpipe"],
    "parameters": A1111,
    "invokeai_metadata": INVOKEAI,
    "sd-metadata": SD_METADATA,
    "Dream": DREAM,
    "Comment": NOVELAI,
    "prompt": GRAPH,
    PNG_XMP: XMP,
    "DgenerateConfig": DGENERATE,
}
TOKENS = (
    *("Steps: 20", "Negative prompt:", "Size: 16384x16384", "Seed: -1", "\n", '"', "\\", ",", ": "),
    *("Sampler: Euler a", "Schedule type: Karras", "[", "]", "-s", "-W", "\x1b[31m", "\u202e", "é"),
    *("9" * 400, "x" * 70000, "\ud800", "NaN", "1e999", "../../etc/passwd", "owner/name@main"),
)
NAMES = ("name", "prompt", "seed", "steps", "width", "n", "index", "model", "image", "dim", "\x00")

signs = st.one_of(
    st.characters(), st.sampled_from('\ud800\udfff\x1b\x9b\u202e\n\r\0",:{}[]\\')
)  # among them halves of pairs, which are no text
any_text = st.text(signs, max_size=20)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, -1, 8, 500, 512, 16384, 2**63, 2**64, 10**300]),
    st.floats(),
    st.sampled_from(TOKENS),
    any_text,
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(NAMES), any_text), inner, max_size=4),
    ),
    max_leaves=6,
)


def like(value):
    """Values of the same type, which pass more checks than those of another."""
    if isinstance(value, str):
        return st.one_of(any_text, st.sampled_from(TOKENS))
    if isinstance(value, int) and not isinstance(value, bool):
        return st.one_of(st.integers(), st.sampled_from([0, 1, 2, 512, 16384, 2**32, 2**64 - 1]))
    return st.floats() if isinstance(value, float) else values


def places(value, path=()):
    """The path of everything in a JSON value, itself included."""
    yield path
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    for key, held in inner:
        yield from places(held, (*path, key))


@st.composite
def objects(draw, original):
    """A JSON object in which some values are changed, removed or renamed."""
    value = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(list(places(value))))
        if not path:
            if draw(st.integers(0, 20)) == 0:
                return draw(values)
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        what = draw(st.sampled_from(["change", "change", "drop", "rename"]))
        if what == "change":
            holder[path[-1]] = draw(st.one_of(values, like(holder[path[-1]])))
        elif what == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from(NAMES))] = holder.pop(path[-1])
        else:
            del holder[path[-1]]
    return value


@st.composite
def texts(draw, original):
    """A text in which pieces are removed, doubled or inserted."""
    text = original
    for _ in range(draw(st.integers(1, 5))):
        a = draw(st.integers(0, len(text)))
        b = draw(st.integers(a, min(len(text), a + 40)))
        piece = draw(st.one_of(st.sampled_from(TOKENS), any_text, st.just(text[a:b])))
        text = text[:a] + piece + text[b:]
    return text


@st.composite
def edits(draw, original):
    """Bytes of which some are changed, removed, doubled or added."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 6))):
        a = draw(st.integers(0, len(data)))
        what = draw(st.sampled_from(["byte", "byte", "byte", "number", "cut", "double", "end"]))
        if what == "byte" and a < len(data):
            data[a] = draw(st.integers(0, 255))
        elif what == "number":
            number = draw(st.sampled_from([0, 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]))
            data[a : a + 4] = struct.pack(draw(st.sampled_from("<>")) + "I", number)
        elif what == "cut":
            del data[a : a + draw(st.integers(1, 40))]
        elif what == "double":
            data[a:a] = data[a : a + draw(st.integers(1, 200))]
        elif what == "end":
            del data[a:]
    return bytes(data)


def chunks(data):
    """The chunks of a PNG, as (kind, content)."""
    place, found = 8, []
    while place + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        found.append((kind, data[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


def joined(found):
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in found:
        sums = struct.pack(">I", zlib.crc32(kind + content))
        data += struct.pack(">I", len(content)) + kind + content + sums
    return data


@st.composite
def chunk_edits(draw, original):
    """A PNG whose chunks are whole, in another order, of another kind or with other content."""
    found = chunks(original)
    for _ in range(draw(st.integers(1, 3))):
        k = draw(st.integers(0, len(found) - 1))
        kind, content = found[k]
        what = draw(st.sampled_from(["content", "kind", "double", "move", "drop", "bomb"]))
        if what == "content" and content:
            found[k] = (kind, draw(edits(content)))
        elif what == "kind":
            kinds = [b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP", b"acTL", b"fcTL", b"PLTE"]
            found[k] = (draw(st.sampled_from(kinds)), content)
        elif what == "double":
            found[k:k] = [(kind, content)] * draw(st.integers(1, 50))
        elif what == "move":
            found.insert(draw(st.integers(0, len(found) - 1)), found.pop(k))
        elif what == "drop" and len(found) > 1:
            del found[k]
        elif what == "bomb":
            size = 2 ** draw(st.integers(10, 25))
            key = draw(st.sampled_from([*TEXTS, "x"])).encode()
            found.insert(k, (b"zTXt", key + b"\0\0" + zlib.compress(b" " * size, 9)))
    return joined(found)


def packed(key, value, form):
    """An image in that format which carries a value under a key; in EXIF under our own two."""
    text = value if isinstance(value, str) else json.dumps(value)
    buffer, options = io.BytesIO(), {}
    if form == "PNG":
        options["pnginfo"] = PngInfo()
        try:
            options["pnginfo"].add_text(key, text, zip=len(text) % 3 == 0)
        except UnicodeEncodeError:
            options["pnginfo"].add_text(key, text.encode("utf-8", "replace").decode())
    elif key == "sdpipe":
        exif = Image.Exif()
        exif[IMAGE_DESCRIPTION] = MARK + text
        options["exif"] = exif.tobytes()
    else:
        exif = Image.Exif()
        comment = b"UNICODE\0" + text.encode("utf-16-be", "surrogatepass")
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = comment
        options["exif"] = exif.tobytes()
    if len(options.get("exif", b"")) > png.JPEG_LIMIT:
        form = "WEBP"
    sample_image().save(buffer, form, **options)
    return buffer.getvalue()


ORIGINALS = {(key, "PNG"): packed(key, TEXTS[key], "PNG") for key in TEXTS}
for _key in ("sdpipe", "parameters"):
    ORIGINALS |= {(_key, form): packed(_key, TEXTS[_key], form) for form in ("JPEG", "WEBP")}


@st.composite
def files(draw):
    """An image of a stranger."""
    key, form = draw(st.sampled_from(list(ORIGINALS)))
    original = ORIGINALS[key, form]
    ways = ["value", "value", "bytes", *(["chunks"] if form == "PNG" else [])]
    way = draw(st.sampled_from(ways))
    if way == "bytes":
        return draw(edits(original))
    if way == "chunks":
        return draw(chunk_edits(original))
    written = GRID if key == "sdpipe" and draw(st.booleans()) else TEXTS[key]
    value = draw(texts(written) if isinstance(written, str) else objects(written))
    if not isinstance(value, str) and draw(st.integers(0, 9)) == 0:
        value = draw(texts(json.dumps(value)))
    return packed(key, value, form)


def look(path):
    """Everything that is done with an image before a model is loaded; the outcome."""
    found = info(path)
    check_shown(str(found))
    if found.record.sweep is not None:
        command = sweep_command(path, found.record)
        check_shown(str(dataclasses.replace(found, command=command)))
        return "shown"
    json.dumps(found.to_dict(), ensure_ascii=False, allow_nan=False).encode()
    job = prepare(path, device="cpu")
    for note in job.notes:
        check_message(note)
    assert (job.settings.width or 8) * (job.settings.height or 8) * job.n <= 2**24
    assert job.model in (None, "emoji")
    return "prepared"


def check_shown(text):
    assert re.fullmatch(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f]*", text), ascii(text)
    text.encode()


def attack(path, number):
    """Looks at a few files of strangers, always the same for a number; the last outcome."""
    outcomes = ["none"]

    @seed(number)
    @settings(
        max_examples=FILES, database=None, deadline=None, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(files())
    def one(data):
        path.write_bytes(data)
        try:
            outcomes.append(look(path))
        except SdpipeError as error:
            check_message(str(error))
            outcomes.append("refused")

    one()
    return outcomes[-1]
