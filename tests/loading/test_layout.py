import pytest

from sdpipe.loading.layout import list_files, select_model, select_part

SMALL = [
    "model_index.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
]
FULL = [
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]
HALF = [name.replace(".safetensors", ".fp16.safetensors") for name in FULL]


def test_a_complete_model():
    found = select_model([*SMALL, *FULL, "unet/diffusion_pytorch_model.bin", "README.md"])
    assert found.missing == {}
    assert set(found.files) == set(SMALL)
    assert found.all_weights == FULL
    assert found.roots["unet"] == "unet/"


@pytest.mark.parametrize(("full", "expected"), [(False, HALF), (True, FULL)])
def test_the_variant_is_taken_unless_full_weights_are_asked_for(full, expected):
    assert select_model([*SMALL, *FULL, *HALF], full_precision=full).all_weights == expected


@pytest.mark.parametrize("there", [FULL, HALF])
@pytest.mark.parametrize("full", [False, True])
def test_the_only_weights_are_taken(there, full):
    assert select_model([*SMALL, *there], full_precision=full).all_weights == there


def test_a_variant_of_one_part_alone():
    found = select_model([*SMALL, *FULL, HALF[1]])
    assert found.variants == {"text_encoder": None, "unet": "fp16", "vae": None}


@pytest.mark.parametrize("lost", [*SMALL[1:], *FULL], ids=lambda name: name.replace("/", "-"))
def test_what_is_missing_is_named(lost):
    names = [name for name in [*SMALL, *FULL] if name != lost]
    assert select_model(names).missing == {lost.partition("/")[0]: lost}


def test_without_an_index_it_is_no_model():
    assert select_model([*SMALL[1:], *FULL]).missing == {"model": "model_index.json"}


def test_parts_that_are_not_wanted_may_be_missing():
    names = [name for name in [*SMALL, *FULL] if not name.startswith("vae/")]
    wanted = ["tokenizer", "text_encoder", "unet", "scheduler"]
    assert select_model(names, wanted).missing == {}


def test_a_tokenizer_of_one_file():
    names = [name for name in SMALL if not name.startswith("tokenizer/")]
    assert select_model([*names, "tokenizer/tokenizer.json", *FULL]).missing == {}


@pytest.mark.parametrize(
    ("index", "shard"),
    [
        ("safetensors.index", "-{}-of-00002"),
        ("safetensors.index.fp16", "-{}-of-00002.fp16"),
        ("safetensors.index.fp16", ".fp16-{}-of-00002"),
    ],
)
def test_sharded_weights(index, shard):
    stem = "unet/diffusion_pytorch_model"
    shards = [f"{stem}{shard.format(number)}.safetensors" for number in ("00001", "00002")]
    names = [*SMALL, FULL[0], f"{stem}.{index}.json", FULL[2]]
    found = select_model([*names, *shards])
    assert found.weights["unet"] == tuple(shards)
    assert f"{stem}.{index}.json" in found.files
    assert select_model([*names, shards[0]]).missing == {"unet": shards[1]}
    assert select_model([*names, shards[0], FULL[1]]).missing == {}


def test_a_part_in_a_folder_of_its_own_and_in_a_model():
    own = select_part(["config.json", "diffusion_pytorch_model.safetensors"], "vae")
    assert (own.roots, own.missing) == ({"vae": ""}, {})
    whole = select_part([*SMALL, *FULL], "vae")
    assert (whole.roots, whole.weights) == ({"vae": "vae/"}, {"vae": (FULL[2],)})


def test_a_tokenizer_comes_along_with_a_text_encoder():
    clip = ["config.json", "model.safetensors", "vocab.json", "merges.txt"]
    assert select_part(clip, "text_encoder").roots == {"text_encoder": "", "tokenizer": ""}
    assert select_part(clip[:2], "text_encoder").roots == {"text_encoder": ""}
    whole = select_part([*SMALL, *FULL], "text_encoder").roots
    assert whole == {"text_encoder": "text_encoder/", "tokenizer": "tokenizer/"}


def test_listing_leaves_broken_links_out(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").touch()
    (tmp_path / "model_index.json").touch()
    (tmp_path / "vae.json").symlink_to(tmp_path / "gone")
    assert list_files(tmp_path) == {"unet/config.json", "model_index.json"}
