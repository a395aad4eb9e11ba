"""A tokenizer is built from what its files say of tokens alone: the one that they describe."""

import json
import random
import shutil

import pytest
from support.errors import raises
from support.tiny import write_tokenizer
from transformers import CLIPTokenizer

from sdpipe import ModelError
from sdpipe.loading.locate import BUILT_IN_FOLDER
from sdpipe.loading.tokenizer import read_tokenizer_files

PLAIN = {"bos_token", "eos_token", "unk_token", "pad_token", "backend"}
PIECES = ["a", "red", "Apple", "!", "<|endoftext|>", "<cat>", " ", "\n", "e\u0301", "日", "12", ","]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """By name, files as different programs and times write them."""
    place = tmp_path_factory.mktemp("tokenizers")
    write_tokenizer(place / "v1-4")
    added = place / "a word added, padded as version 2"
    shutil.copytree(place / "v1-4", added)
    vocab = json.loads((added / "vocab.json").read_text())
    (added / "added_tokens.json").write_text(json.dumps({"<cat>": len(vocab)}))
    marks = json.loads((added / "special_tokens_map.json").read_text())
    mark = {"content": "<|startoftext|>", "normalized": True, "lstrip": False}
    marks |= {"pad_token": "!", "bos_token": mark}
    (added / "special_tokens_map.json").write_text(json.dumps(marks))
    CLIPTokenizer.from_pretrained(added).save_pretrained(place / "written by transformers 5")
    decoder = place / "added_tokens_decoder"
    shutil.copytree(place / "v1-4", decoder)
    end = {"content": "<|endoftext|>", "normalized": False, "special": True}
    config = json.loads((decoder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {str(vocab["<|endoftext|>"]): end}
    (decoder / "tokenizer_config.json").write_text(json.dumps(config))
    shutil.copytree(BUILT_IN_FOLDER / "emoji" / "tokenizer", place / "emoji")
    return list(place.iterdir())


def test_it_is_what_transformers_makes_of_the_files(folders):
    rng = random.Random(0)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(0, 9))) for _ in range(200)]
    for folder in folders:
        theirs, files = CLIPTokenizer.from_pretrained(folder), read_tokenizer_files(folder, "x")
        ours = files.build(1000)
        assert json.loads(ours.backend_tokenizer.to_str()) == json.loads(
            theirs.backend_tokenizer.to_str()
        )
        assert files.rows == len(theirs) == len(ours)
        assert ours.model_max_length == theirs.model_max_length
        assert ours.special_tokens_map == theirs.special_tokens_map
        for text in texts:
            assert ours(text).input_ids == theirs(text).input_ids, text


@pytest.mark.parametrize(
    ("name", "change", "rule"),
    [
        ("vocab.json", {"a": 1.5}, "the token 'a' with the id 1.5"),
        ("vocab.json", {"a": 10**9}, "not a whole number from 0 to 10000000"),
        ("vocab.json", {"a\ud800": 1}, "no text"),
        ("merges.txt", "#version: 0.2\nq zz\n", "the merge 'q zz'"),
        ("merges.txt", "a\n", "not a pair of tokens"),
        ("tokenizer.json", {"model": []}, "no model"),
        ("tokenizer.json", {"model": {"vocab": []}}, "no vocabulary"),
        ("tokenizer.json", {"model": {"vocab": {"a": 0}}}, "no list of merges"),
        ("tokenizer.json", {"model": {"vocab": {"a": 0}, "merges": []}}, "no token for every byte"),
        ("tokenizer_config.json", {"model_max_length": 2}, "model_max_length=2"),
        ("tokenizer_config.json", {"pad_token": ["!"]}, "pad_token=['!']"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"-1": "x"}}, "added_tokens_decoder="),
        ("special_tokens_map.json", {"bos_token": {"content": 5}}, "bos_token={'content': 5}"),
        ("added_tokens.json", {"<cat>": True}, "the token '<cat>' with the id True"),
    ],
)
def test_a_wrong_value_is_refused_by_file_and_key(tmp_path, name, change, rule):
    write_tokenizer(tmp_path)
    path = tmp_path / name
    if isinstance(change, dict):
        before = json.loads(path.read_text()) if path.exists() else {}
        change = json.dumps({**before, **change})
    path.write_text(change)
    with raises(ModelError, value=name, rule=rule):
        read_tokenizer_files(tmp_path, "x")


def test_no_other_file_and_no_expression_is_followed(tmp_path):
    write_tokenizer(tmp_path)
    before = read_tokenizer_files(tmp_path, "x").build(77).backend_tokenizer.to_str()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {
        "gguf_file": "x.gguf", "auto_map": {"AutoTokenizer": "evil.py"}, "init_inputs": [5],
        "chat_template": "{{ 1 }}", "padding_side": "left", "vocab_file": "/dev/zero",
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    built = read_tokenizer_files(tmp_path, "x").build(77)
    assert built.backend_tokenizer.to_str() == before
    assert built.init_kwargs.keys().isdisjoint(config.keys() - {"model_max_length"} - PLAIN)
