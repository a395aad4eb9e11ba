"""What a stranger's configuration may say: it is checked before anything is built from it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from support.errors import raises

from sdpipe import ModelError, Pipeline
from sdpipe.components import inspect_model
from sdpipe.loading.locate import BUILT_IN_FOLDER
from sdpipe.loading.parts import load_tokenizer
from sdpipe.loading.schema import check_config
from sdpipe.loading.vocabulary import read_vocabulary

FILES = {
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
V1_4 = Path(__file__).parents[1] / "support" / "v1_4"

WRONG = {
    "text_encoder": {
        "num_hidden_layers": [0, 10**9, None, True],
        "num_attention_heads": [0],
        "hidden_act": ["os.system", 5],
        "layer_norm_eps": ["x", float("nan")],
        "eos_token_id": [-1, [2]],
        "max_position_embeddings": [True, 1.5, 2],
        "vocab_size": ["a"],
    },
    "unet": {
        "layers_per_block": [10**9, -1, [1, 0, 1, 1]],
        "transformer_layers_per_block": [10**9],
        "attention_head_dim": [0],
        "norm_num_groups": [0],
        "cross_attention_dim": [[], "768"],
        "sample_size": [0, [16], [16, 16, 16], 1.5, True, 1000],
        "dropout": [float("nan"), 2],
        "addition_embed_type_num_heads": [0],
        "down_block_types": [["os.system"], []],
        "act_fn": ["eval"],
    },
    "vae": {
        "block_out_channels": [7, [1] * 3000],
        "scaling_factor": ["x", 0, float("inf")],
        "norm_num_groups": [0],
        "layers_per_block": [10**9],
        "in_channels": [1],
        "out_channels": [1],
    },
    "scheduler": {
        "num_train_timesteps": [10**12, 0, 1, "x"],
        "beta_start": [-1, float("nan")],
        "beta_end": [2],
        "beta_schedule": ["os"],
        "trained_betas": ["x", [0.0] * 1000],
        "prediction_type": ["os"],
        "_class_name": [5],
        "timestep_spacing": ["x"],
    },
}
CASES = [
    (part, key, value)
    for part, keys in WRONG.items()
    for key, values in keys.items()
    for value in values
    if value is not None
]


@pytest.fixture
def model(tmp_path):
    """A copy of the built-in model, with links for its weights; changes one of its files."""

    def change(part, **values):
        folder = tmp_path / "stranger"
        shutil.copytree(BUILT_IN_FOLDER / "emoji", folder, copy_function=link)
        path = folder / FILES[part]
        config = json.loads(path.read_text()) | values
        path.unlink()
        path.write_text(json.dumps(config))
        return folder

    return change


def link(source, target):
    Path(target).symlink_to(Path(source).resolve())


@pytest.mark.parametrize(("part", "key", "value"), CASES)
def test_a_wrong_value_is_refused_by_file_and_key(part, key, value):
    with raises(ModelError, value="config.json", rule=f"has {key}="):
        check_config({key: value}, part, "x/config.json")


@pytest.mark.parametrize("folder", [V1_4, BUILT_IN_FOLDER / "emoji"])
@pytest.mark.parametrize("part", FILES)
def test_real_configurations_are_kept_but_for_what_builds_nothing(folder, part):
    values = json.loads((folder / FILES[part]).read_text())
    given = {key: value for key, value in values.items() if value is not None}
    lost = given.keys() - check_config(values, part, "x").keys()
    words = {"architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path"}
    # of no effect in the classes of v1-4: "dropout" of the text encoder is an old name
    assert lost <= words | {"dropout", "reverse_transformer_layers_per_block"} | {
        "class_embeddings_concat"
    }


@pytest.mark.parametrize("part", FILES)
def test_it_is_refused_before_torch(model, part):
    key, values = next(iter(WRONG[part].items()))
    folder = model(part, **{key: values[0]})
    code = "import sys; from sdpipe.cli.app import main; status = main(sys.argv[1:])\n"
    code += "print(status, sorted({'torch', 'transformers', 'diffusers'} & set(sys.modules)))"
    command = [sys.executable, "-c", code, "generate", "x", "--model", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "1 []\n", done.stderr
    assert f"has {key}={values[0]!r}, which is not a" in done.stderr


def test_a_configuration_names_no_code(model, monkeypatch):
    """transformers would fetch and load what this key names, from whatever repository."""
    asked = []
    fake = type(sys)("kernels")
    fake.__version__ = "0.18.2"
    fake.get_kernel = lambda *arguments, **_: asked.append(arguments)
    monkeypatch.setitem(sys.modules, "kernels", fake)
    shared = "kernels-community/flash-attn2@0123456789012345678901234567890123456789"
    folder = model(
        "text_encoder",
        attn_implementation=shared,
        _attn_implementation="evil/kernel",
        experts_implementation=shared,
        auto_map={"AutoModel": "evil.py"},
        quantization_config={"quant_method": "evil"},
    )
    pipe = Pipeline(folder, device="cpu", dtype="float32")
    assert pipe.components.text_encoder.config._attn_implementation == "sdpa"
    assert asked == []
    config = vars(pipe.components.text_encoder.config)
    assert not {"auto_map", "quantization_config"} & {k for k, v in config.items() if v}


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"width": 520}, "at most 512"),
        ({"height": 8192}, "at most 512"),
        ({"g": "x"}, "g="),
        ({"g": 10**400}, "g="),
    ],
)
def test_a_model_does_not_ask_for_a_huge_image_by_itself(model, values, rule):
    folder = model("unet")
    (folder / "sdpipe.json").unlink()
    (folder / "sdpipe.json").write_text(json.dumps(values))
    with raises(ModelError, rule=rule):
        inspect_model(folder)


def test_two_files_with_the_same_tensor_are_refused(model):
    folder = model("unet")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    for number in (1, 2):
        link(weights, weights.with_stem(f"{weights.stem}-{number:05}-of-00002"))
    weights.unlink()
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    with raises(ModelError, value="00002-of-00002", rule="which another file of the unet has too"):
        inspect_model(folder)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda files: {**files, "conv_in.bias": "x.safetensors"}, "is in 'x.safetensors'"),
        (lambda files: {**files, "gone": files["conv_in.bias"]}, "'gone' is in"),
        (lambda files: [], "has no weight_map"),
    ],
)
def test_an_index_that_contradicts_its_files_is_refused(model, change, rule):
    folder = model("unet")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shard = weights.with_stem(f"{weights.stem}-00001-of-00001")
    with safe_open(weights, "np") as file:
        files = dict.fromkeys(file.keys(), shard.name)
    weights.rename(shard)
    index = weights.with_name(f"{weights.name}.index.json")
    index.write_text(json.dumps({"weight_map": files}))
    assert inspect_model(folder)
    index.write_text(json.dumps({"weight_map": change(files)}))
    with raises(ModelError, value=index.name, rule=rule):
        inspect_model(folder)


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"names": ["a"] * 20_001, "words": []}, "names="),
        ({"names": [], "words": ["x" * 101]}, "words="),
        ({"names": [], "words": [], "glyphs": {"a": 5}}, "glyphs="),
        ({"names": []}, "the list of words"),
    ],
)
def test_a_vocabulary_is_bounded(tmp_path, values, rule):
    (tmp_path / "words.json").write_text(json.dumps(values))
    with raises(ModelError, value="words.json", rule=rule):
        read_vocabulary(tmp_path, "x")


def test_a_file_of_a_model_is_short_text(tmp_path):
    (tmp_path / "words.json").write_bytes(b"{}" + b" " * 2**24)
    with raises(ModelError, value="words.json", rule="longer than the 16777216 bytes"):
        read_vocabulary(tmp_path, "x")
    (tmp_path / "words.json").write_bytes(b'{"a":' * 10**5)
    with raises(ModelError, value="words.json", rule="JSON"):
        read_vocabulary(tmp_path, "x")


def test_a_model_is_read_as_before(emoji):
    parts, sources = emoji.components, inspect_model("emoji")
    assert sources is not None
    for part in ("unet", "vae"):
        loaded = type(getattr(parts, part)).load_config(BUILT_IN_FOLDER / "emoji" / part)
        network = type(getattr(parts, part)).from_config(loaded)
        built = {k: v for k, v in getattr(parts, part).config.items() if not k.startswith("_")}
        assert built == {k: v for k, v in network.config.items() if not k.startswith("_")}


@pytest.mark.parametrize("length", [2, 0, -5])
def test_a_tokenizer_that_leaves_no_room_for_a_word_is_refused(model, length):
    folder = model("unet")
    path = folder / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"model_max_length": length}
    path.unlink()
    path.write_text(json.dumps(config))
    with raises(ModelError, value="tokenizer", rule=f"model_max_length={length}"):
        load_tokenizer(folder)
