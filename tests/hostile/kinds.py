"""What is made from a seed, and how it is handed to sdpipe, by kind."""

import contextlib
import io
import json
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from hostile import metadata
from hostile.hub import hub
from PIL import Image
from safetensors.torch import save
from support.tiny import tiny_model

from sdpipe import Pipeline
from sdpipe.components import inspect_model
from sdpipe.io.pixels import load_pixels, read_image
from sdpipe.loading.parts import load_tokenizer
from sdpipe.loading.schema import SCHEMA
from sdpipe.loading.vocabulary import read_vocabulary
from sdpipe.metadata.info import info
from sdpipe.prompt.chunks import make_chunks
from sdpipe.prompt.syntax import parse
from sdpipe.prompt.vocabulary import warn_unknown_words
from sdpipe.settings import Settings

DEEP = 200_000
FILES = {
    "te": "text_encoder/config.json",
    "tok": "tokenizer/tokenizer_config.json",
    "marks": "tokenizer/special_tokens_map.json",
    "vocab": "tokenizer/vocab.json",
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "sched": "scheduler/scheduler_config.json",
    "index": "model_index.json",
    "own": "sdpipe.json",
    "words": "words.json",
}
SCHEMAS = {
    "te": "text_encoder", "tok": "tokenizer_config.json", "marks": "special_tokens_map.json",
    "unet": "unet", "vae": "vae", "sched": "scheduler", "index": "model_index.json",
    "words": "words.json",
}  # fmt: skip
KERNEL = "kernels-community/flash-attn2@0123456789012345678901234567890123456789"
NAN = float("nan")
FOUND = [  # by an attack of before: file, key, values
    ("te", "num_hidden_layers", [10**9, 0, -1, None, True, "12", 1.5]),
    ("te", "num_attention_heads", [0, -1, 3, 10**9, None]),
    ("te", "hidden_act", ["os.system", "eval", None, 5, []]),
    ("te", "layer_norm_eps", ["x", NAN, -1, None, 1e300]),
    ("te", "eos_token_id", [None, -1, 10**9, [2], "a", True]),
    ("te", "max_position_embeddings", [True, 1.5, 0, 1, 2, 10**9, -77, None]),
    ("te", "vocab_size", ["a", 0, -1, 10**12, 1.5, None]),
    ("te", "hidden_size", [0, 1, -1, 10**9, "x", None, [8]]),
    ("te", "attn_implementation", [KERNEL, "flash_attention_2", 5, {}]),
    ("te", "_attn_implementation", ["evil/kernel"]),
    ("te", "dtype", ["load", "float8", 5]),
    ("te", "text_config", [[], 5, {}, {"num_hidden_layers": 10**9}]),
    ("te", "quantization_config", [{"quant_method": "evil"}]),
    ("te", "model_type", ["llama", 5, "x" * 10**6]),
    ("tok", "model_max_length", [-5, 0, 1, 2, True, 1.5, "77", 10**30, None, NAN]),
    ("tok", "auto_map", [{"AutoTokenizer": "evil.py"}, 5]),
    ("tok", "gguf_file", ["x.gguf"]),
    ("tok", "pad_token", [5, "", {"content": []}, "x" * 10**6, None, "\x1b[2J", "\ud800"]),
    ("tok", "bos_token", ["cat", "", {"content": "a", "lstrip": 5}]),
    ("tok", "added_tokens_decoder", [{"x": {}}, {"-1": {"content": "a"}}, [], {"9" * 99: {}}]),
    ("marks", "eos_token", [5, [], {"content": "a", "evil": 1}, "\x00"]),
    ("vocab", "a", [-1, 10**9, 1.5, None, "1", 536]),
    ("unet", "layers_per_block", [10**9, -1, 0, [1], [1, 10**9], "1", 16]),
    ("unet", "attention_head_dim", [0, -1, 10**9, [], "x", 1.5]),
    ("unet", "norm_num_groups", [0, -1, 7, 10**9, None, "x"]),
    ("unet", "cross_attention_dim", [None, 0, 10**9, [], "768"]),
    ("unet", "sample_size", [0, [16], [16, 16, 16], 1.5, 10**9, True, -8, None, "64", [64, -1]]),
    ("unet", "transformer_layers_per_block", [10**9, 0, [1], "x"]),
    ("unet", "dropout", [NAN, 2, -1, "x"]),
    ("unet", "addition_embed_type_num_heads", [0, -1]),
    ("unet", "down_block_types", [[], ["os.system"], ["DownBlock2D"] * 99, 5, None]),
    ("unet", "block_out_channels", [[], [0, 0], [1, 1], [10**9, 1], [8] * 9, None, 5]),
    ("unet", "act_fn", ["eval", 5, None, "mish"]),
    ("unet", "time_embedding_type", ["fourier", 5, "x"]),
    ("unet", "class_embed_type", ["timestep", "projection", 5]),
    ("unet", "in_channels", [0, 9, 10**9, "4", None]),
    ("vae", "block_out_channels", [None, 7, [], [1] * 3000, [8, 8], [10**9] * 4]),
    ("vae", "scaling_factor", [None, "x", 0, NAN, float("inf"), -1, 1e300]),
    ("vae", "norm_num_groups", [0, 3, 10**9]),
    ("vae", "layers_per_block", [10**9, 0, -1, 16]),
    ("vae", "in_channels", [1, 4]),
    ("vae", "out_channels", [1, 4]),
    ("vae", "latent_channels", [0, 16, 10**9, None]),
    ("vae", "act_fn", ["os.system"]),
    ("sched", "num_train_timesteps", [10**12, 0, 1, 2, "x", None, 1.5]),
    ("sched", "beta_start", [-1, 0, NAN, 1, 0.9, "x", None]),
    ("sched", "beta_end", [2, 0, NAN, "x"]),
    ("sched", "beta_schedule", ["os", None, 5, "squaredcos_cap_v2"]),
    ("sched", "trained_betas", [[0.0] * 1000, "x", [], [0.5] * 10, [NAN] * 10]),
    ("sched", "prediction_type", ["os", None, "sample", 5, "v_prediction"]),
    ("sched", "_class_name", [5, None, "os.system", []]),
    ("sched", "timestep_spacing", ["x", None, "trailing", 5]),
    ("sched", "steps_offset", [-1, 10**9, 999, "x"]),
    ("index", "_class_name", [5, "x" * 10**6, "\x1b]0;x\x07", []]),
    ("index", "unet", [["os", "system"], 5, None]),
    ("index", "text_encoder_2", [["a", "b"], 5]),
    ("own", "width", [8192, 0, -8, 7, "x", 10**12, None, NAN]),
    ("own", "height", [8192]),
    ("own", "steps", [0, -1, 10**9, "x", 1.5]),
    ("own", "g", [NAN, float("inf"), "x", 10**400, -5]),
    ("own", "scheduler", ["os", 5, []]),
    ("own", "evil", [5]),
    ("words", "words", [5, [5], ["\x1b[2J"], [f"w{i}" for i in range(300_000)], ["x" * 10**6]]),
    ("words", "names", [None, {}, [None]]),
    ("words", "glyphs", [[], {"(": 5}, {"(a+)+$": "b"}, {"": "x"}]),
]
RAW = [
    b"", b"[]", b"5", b"\xff\xfe{}", b"{", b'{"a": ' + b"9" * 5000 + b"}", b"[" * DEEP,
    b'{"a":' * DEEP, b"{}" + b" " * 2**24, b'{"a": NaN}', b"\xef\xbb\xbf{}", b"null",
    b"<!doctype html>", b"version https://git-lfs.github.com/spec/v1",
    b'{"a":[' + b"[]," * 10**6 + b"[]]}",
]  # fmt: skip
VALUES = [
    None, True, False, 0, 1, -1, 2, 3, 8, 77, 10**9, 10**12, 1.5, NAN, float("inf"), 1e308, -1e-308,
    "x", "", "os.system", "../../etc/passwd", "\x1b[2J", "a" * 10**5, [], [0], [16, 16, 16], [[]],
    {}, {"content": "x"}, "quick_gelu", "silu", "linear", "epsilon", "DownBlock2D", "leading",
]  # fmt: skip


def configurations(folder, draw):
    """A model of which one file or two say something else."""
    model = tiny_model(folder / "model")
    own = {"own": {"g": 3.0, "steps": 4}, "words": {"names": ["red apple"], "words": ["red"]}}
    originals = {}
    for key, name in FILES.items():
        if key in own:
            (model / name).write_text(json.dumps(own[key]))
        originals[model / name] = (model / name).read_bytes()
    listed = [(file, key, value) for file, key, values in FOUND for value in values]
    listed += [(file, None, data) for data in RAW for file in FILES]

    def change(seed):
        if seed < len(listed):
            return [listed[seed]]
        rng = random.Random(seed)
        changes = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            file = rng.choice(list(FILES))
            keys = list(json.loads(originals[model / FILES[file]]))[:40]
            keys += SCHEMA.get(SCHEMAS.get(file), ())
            value = rng.choice((*VALUES, rng.randint(-5, 300), rng.random()))
            changes.append((file, rng.choice(keys), value))
        return changes

    def handle(seed):
        for path, data in originals.items():
            path.write_bytes(data)
        for file, key, value in change(seed):
            path = model / FILES[file]
            if key is None:
                path.write_bytes(value)
                continue
            with contextlib.suppress(ValueError):
                path.write_text(json.dumps(json.loads(path.read_bytes()) | {key: value}))
        inspect_model(model)
        vocabulary = read_vocabulary(model, "model")
        if vocabulary is not None:
            vocabulary.read("red 🧮 apple")
            warn_unknown_words(vocabulary, ["reed aple 🧮"], "model", "sdpipe names")
        tokenizer = load_tokenizer(model)
        make_chunks(tokenizer, parse("red (apple:1.2) 日本 " * 9).at(0, 1))
        return draw_with(model) if draw else "accepted"

    return handle


def draw_with(model, **options):
    pipe = Pipeline(model, device="cpu", dtype="float32", **options)
    pipe.generate("red (apple:1.2)", steps=2, seed=1, width=32, height=32)
    return "drawn"


def weights(folder, draw):
    """A file of weights, of a LoRA or of an embedding, whose header or numbers are others."""
    model = tiny_model(folder / "weighed")
    unet = model / "unet" / "diffusion_pytorch_model.safetensors"
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    width = 32
    with contextlib.suppress(StopIteration):
        header, _ = split(unet.read_bytes())
        name = next(n for n in header if n.endswith("attn1.to_q.weight"))
        layer, width = name.removesuffix(".weight"), header[name]["shape"][0]
    lora = {f"unet.{layer}.lora_A.weight": torch.zeros(2, width)}
    lora |= {f"unet.{layer}.lora_B.weight": torch.zeros(width, 2)}
    originals = {
        "unet": unet.read_bytes(),
        "lora": save(lora, {"lora_alpha": "4"}),
        "embedding": save({"emb_params": torch.zeros(2, 16)}),
    }
    paths = {"unet": unet, "lora": folder / "a.safetensors", "embedding": folder / "b.safetensors"}

    def handle(seed):
        rng = random.Random(seed)
        for kind, data in originals.items():
            paths[kind].write_bytes(data)
        kind = rng.choice(list(originals))
        paths[kind].write_bytes(change_weights(originals[kind], rng))
        options = {}
        if kind == "lora":
            options["loras"] = [paths[kind]]
        elif kind == "embedding":
            options["embeddings"] = [(paths[kind], "my-cat")]
        inspect_model(model, **options)
        return draw_with(model, **options) if draw else "accepted"

    return handle


def split(data):
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


TYPES = ["F32", "F16", "BF16", "F64", "I8", "U8", "I64", "BOOL", "F8_E4M3", "C64", "X", 5, None]
WORDS = [
    "x", "\x1b]0;evil\x07", "a" * 10**5, "unet.weight_scale", "lora_A", "alpha", "\ud800",
    "unet.conv_in.lora_A.weight", "unet.conv_in.alpha", "lora_unet_conv_in.alpha", "", "\x00",
]  # fmt: skip
NOTES = [
    ("lora_alpha", "x"), ("lora_alpha", "9" * 5000), ("ss_base_model_version", "\x1b[2J"),
    ("alpha_pattern", "{"), ("unet.alpha_pattern", json.dumps({"(((a+)+)+)!": 4})),
    ("unet.alpha_pattern", "[" * 10**5), ("lora_adapter_metadata", json.dumps({"unet.r": [1]})),
    ("lora_adapter_metadata", json.dumps({"unet.alpha_pattern": {"(": 1, "x": "y"}})),
    ("ss_network_args", '{"a": 5}'), ("ss_network_dim", "None"), ("x", "y" * 10**6),
    ("ss_base_model_version", "y" * 10**6), ("modelspec.architecture", "y" * 10**6),
]  # fmt: skip


def change_weights(data, rng):
    way = rng.choice(["bytes", "length", "cut", "more", *["header"] * 8, "numbers", "deep"])
    if way == "bytes":
        changed = bytearray(data)
        for _ in range(rng.randint(1, 5)):
            changed[rng.randrange(min(len(data), 3000))] = rng.randrange(256)
        return bytes(changed)
    if way == "length":
        number = rng.choice([0, 1, 2**24, 2**25, 2**63, 2**64 - 1, rng.randrange(2**20)])
        return struct.pack("<Q", number) + data[8:]
    if way == "cut":
        return data[: rng.randrange(len(data))]
    if way == "more":
        return data + bytes(rng.randint(1, 100))
    header, body = split(data)
    if way == "deep":
        text = b'{"a":' * DEEP
        return struct.pack("<Q", len(text)) + text + body
    if way == "numbers":
        strange = np.frombuffer(rng.randbytes(len(body) // 4 * 4), np.float32)
        fill = rng.choice([np.nan, np.inf, 1e30, 0.0, None])
        body = (strange if fill is None else np.full_like(strange, fill)).tobytes()
    for _ in range(rng.randint(1, 3)):
        name = rng.choice([n for n in header if n != "__metadata__"] or [""])
        tensor = header.get(name)
        tensor = tensor if isinstance(tensor, dict) else {}
        what = rng.choice(["dtype", "shape", "offsets", "rename", "drop", "notes", "add", "value"])
        if what == "dtype":
            tensor["dtype"] = rng.choice(TYPES)
        elif what == "shape":
            tensor["shape"] = rng.choice([[], [0], [-1], [2**40, 2**40], [1] * 99, 5, [2, 2]])
        elif what == "offsets":
            tensor["data_offsets"] = rng.choice([[0, 0], [4, 0], [0, 2**63], [], [0, 8], "x"])
        elif what == "rename" and name:
            header[rng.choice(WORDS)] = header.pop(name)
        elif what == "drop":
            header.pop(name, None)
        elif what == "notes":
            header["__metadata__"] = dict(rng.sample(NOTES, 2))
        elif what == "add":
            new = {"dtype": rng.choice(TYPES), "shape": [0], "data_offsets": [0, 0]}
            header[rng.choice(WORDS)] = new
        elif what == "value":
            header[name] = rng.choice(VALUES)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


FORMATS = ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "ICO", "PPM", "TGA", "PCX", "JPEG2000"]
MODES = {"JPEG": "L", "PPM": "RGB", "PCX": "P", "GIF": "P", "TIFF": "I;16", "TGA": "RGBA"}


def images(folder, draw):
    """An image in any format with bytes changed, lies about its size, and parts without end."""
    Image.init()
    rng = random.Random(0)
    originals = []
    for form in [f for f in FORMATS if f in Image.SAVE]:
        for mode in ("RGB", MODES.get(form, "RGB")):
            image = Image.frombytes("RGB", (24, 16), rng.randbytes(24 * 16 * 3)).convert(
                "L" if mode == "I;16" else mode
            )
            options = {"save_all": True, "append_images": [image] * 3} if form == "GIF" else {}
            with contextlib.suppress(OSError):
                image.save(buffer := io.BytesIO(), form, **options)
                originals.append(buffer.getvalue())
    path = folder / "image.png"

    def handle(seed):
        rng = random.Random(seed)
        path.write_bytes(change_image(rng.choice(originals), rng))
        read = rng.choice([read_image, load_pixels, info])
        read(path)
        return "read"

    return handle


def change_image(data, rng):
    way = rng.choice(["bytes", "bytes", "bytes", "number", "cut", "double", "png", "tiff", "jpeg"])
    if way == "png":
        return bomb_png(rng)
    if way == "tiff":
        return bomb_tiff(rng)
    if way == "jpeg":
        marker = rng.choice([b"\xff\xe1", b"\xff\xe2", b"\xff\xed", b"\xff\xfe", b"\xff\xc4"])
        body = rng.choice([b"Exif\0\0", b"ICC_PROFILE\0\1\1", b"http://ns.adobe.com/xap/1.0/\0"])
        body += rng.randbytes(rng.randint(0, 40))
        return (
            b"\xff\xd8"
            + (marker + struct.pack(">H", len(body) + 2) + body) * rng.choice([1, 100, 300])
            + data[2:]
        )
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(changed)) if changed else 0
        if way == "bytes":
            at = min(at, rng.choice([len(changed) - 1, 60]))
            changed[at] = rng.choice([0, 255, 128, rng.randrange(256)])
        elif way == "number":
            number = rng.choice([0, 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 10**5])
            changed[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)
        elif way == "cut":
            del changed[at : at + rng.randint(1, 400)]
        elif way == "double":
            changed[at:at] = changed[at : at + rng.randint(1, 200)] * rng.choice([1, 50, 2000])
    return bytes(changed)


def bomb_png(rng):
    """A PNG of any size and type whose pixels are packed zeros, or fewer, or more."""
    sides = [1, 2, 100, 4000, 7000, 60_000, 2**16, 2**31 - 1]
    width, height = rng.choice(sides), rng.choice(sides)
    depth, colour, channels = rng.choice([(8, 0, 1), (8, 2, 3), (8, 6, 4), (16, 0, 2), (16, 6, 8)])
    size = min((width * channels + 1) * height, 2**26)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    extra = rng.choice([b"zTXt", b"iTXt", b"iCCP", b"tEXt", b"eXIf", b"acTL", b"PLTE", b"tRNS"])
    body = rng.choice([b"a\0\0" + zlib.compress(bytes(2**24)), rng.randbytes(50), b"a\0" * 300])
    chunks += [(extra, body)] * rng.choice([0, 1, 50])
    chunks += [(b"IDAT", zlib.compress(bytes(rng.choice([size, size // 2, size + 9])), 1))]
    chunks += [(b"IEND", b"")] * rng.choice([0, 1])
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        data += struct.pack(">I", len(content)) + kind + content + checksum
    return data


def bomb_tiff(rng):
    """A TIFF whose directories follow each other, or themselves, with tags that lie."""
    order = rng.choice("<>")
    data = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    for _ in range(rng.choice([1, 1, 2, 500])):
        sides = [rng.choice([1, 16, 4000, 60_000, 2**32 - 1]) for _ in "wh"]
        tags = [(256, 4, 1, sides[0]), (257, 4, 1, sides[1]), (258, 3, 1, rng.choice([1, 8, 32]))]
        tags += [(259, 3, 1, rng.choice([1, 5, 7, 8, 32773, 50000])), (262, 3, 1, rng.randrange(7))]
        tags += [(273, 4, rng.choice([1, 2**20, 2**31]), 8), (277, 3, 1, rng.choice([1, 3, 4, 99]))]
        tags += [(278, 4, 1, sides[1]), (279, 4, 1, rng.choice([1, 100, 2**31]))]
        tags += [(34665, 4, 1, rng.choice([8, 9, 2**31])), (330, 4, rng.choice([1, 9]), 8)]
        tags = rng.sample(tags, rng.randint(6, len(tags)))
        data += struct.pack(order + "H", len(tags))
        for tag, kind, count, value in tags:
            data += struct.pack(order + "HHII", tag, kind, count, value)
        following = len(data) + 4
        data += struct.pack(order + "I", rng.choice([0, 8, following, following, 2**31]))
    return data + rng.randbytes(200)


def images_metadata(folder, draw):
    """A few images whose texts are others."""
    return lambda seed: metadata.attack(folder / "x", seed)


PIECES = [
    "(", ")", "[", "]", ":", "|", "\\", "(a)", "(a:1.2)", "[a|b]", "[a:b:3]", "\n", "BREAK", " ",
    "red apple", "reed aple", "[[", "((", "1", "0" * 50, "e\u0301", "\u202e", "\0", "\x1b[2J",
    "\ud800", "日", "🧮", "<|endoftext|>", ",", "a" * 60, "{a|b}", "[x:", "::", "AND",
]  # fmt: skip


def texts(folder, draw):
    """A prompt of up to 100,000 characters from few pieces."""
    vocabulary = read_vocabulary(emoji := Path(inspect_model("emoji").model.path), "emoji")
    tokenizer = load_tokenizer(emoji)

    def handle(seed):
        rng = random.Random(seed)
        pieces = rng.choices(PIECES, k=rng.randint(1, 6))
        text = "".join(pieces) * rng.choice([1, 10, 10**4])
        if rng.random() < 0.3:
            text = "".join(rng.choices(pieces, k=10**4))
        text = text[:100_000]
        steps = rng.choice([1, 30, 999])
        Settings(prompt=text, steps=steps, width=128, height=128)
        prompt = vocabulary.read(text)
        parsed = parse(prompt)
        warn_unknown_words(vocabulary, [prompt], "emoji", "sdpipe names")
        for step in {0, steps // 2, steps - 1}:
            make_chunks(tokenizer, parsed.at(step, steps))
        return "read"

    return handle


KINDS = {
    "configurations": configurations, "weights": weights, "images": images,
    "metadata": images_metadata, "texts": texts, "hub": hub,
}  # fmt: skip
