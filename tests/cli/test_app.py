import os

import pytest
from support.command_lines import answers, assert_told

import sdpipe
from sdpipe.cli.app import main

WRONG = {
    "generte": "No such command 'generte'. Did you mean 'generate'? See sdpipe --help.",
    "generate": "PROMPT",
    "generate x y": "y",
    "generate x --g abc": "g='abc' is neither a number",
    "generate x --g nan": "g=nan is not finite; leave it out",
    "generate x --g 12:": "g='12:' is neither a number nor a first and a last one",
    "generate x --g :4": "g=':4' is neither a number",
    "generate x --g a:b": "g='a:b' is neither a number",
    "generate x --g 12:4:2": "g='12:4:2' is neither a number",
    "generate x --g inf:1": "g=inf:1 is not finite",
    "generate x --guidance-rescale a": "guidance_rescale='a' is not a number",
    "generate x --guidance-rescale -1": "guidance_rescale=-1 is out of range",
    "generate x --guidance-rescale 2": "guidance_rescale=2 is out of range",
    "generate x --guidance-rescale nan": "guidance_rescale=nan is out of range",
    "generate x --guidance-interval 5,1": "guidance_interval=5,1 is not two noise levels",
    "generate x --guidance-interval 5": "guidance_interval=5 is not two noise levels",
    "generate x --guidance-interval -1,5": "guidance_interval=-1,5 is not two noise levels",
    "generate x --guidance-interval 1,2,3": "guidance_interval=1,2,3 is not two noise levels",
    "generate x --guidance-interval 1,inf": "guidance_interval=1,inf is not two noise levels",
    "generate x --guidance-interval a,b": "guidance_interval='a,b' is not two noise levels",
    "generate x --steps 2.5": "steps='2.5' is not a whole number",
    "generate x --steps 0": "steps=0 is out of range, 1 to 999; leave it out",
    "generate x --steps 51 --scheduler lcm": "1 to 50",
    "generate x --spacing trailing --scheduler tcd": "spacing='trailing'",
    "generate x --dim 500": "496 and 504",
    "generate x --dim 0": "dim=0",
    "generate x --dim 64 --width 64": "either",
    "generate x --width 65": "width=65",
    "generate x --n 0": "n=0",
    "generate x --seed -1": "seed=-1",
    "generate x --seed 18446744073709551615 --n 2": "seed=18446744073709551615",
    "generate x --scheduler k": "lms, ddim, pndm, euler, euler_a, heun, dpm++, unipc",
    "generate x --scheduler ddim --karras": "Karras",
    "generate x --lms-order 5": "lms_order=5",
    "generate x --safety on": "safety='on' is not known; use one of off, flag",
    "generate x --device tpu": "device='tpu'",
    "generate x --dtype int8": "dtype='int8'",
    "generate x --out file/x.png": "file is not a folder",
    "generate x --out file": "file is not a folder",
    "generate x --out x.gif": ".png, .jpg, .jpeg, .webp",
    "generate x --out /proc/x": "cannot be written",
    "generate \udcff": "not UTF-8",
    "generate x --negative-prompt \udcff": "is not UTF-8",
    "generate -": "standard input has no prompt",
    "generate x --nonsense": "--nonsense",
    "generate x --cfg-scale 7": "--cfg-scale is called --guidance-scale here. See sdpipe generate",
    "generate x --num_inference_steps 9": "--num_inference_steps is called --steps here",
    "generate x --sampling-method lms": "--sampling-method is called --scheduler here",
    "generate x --size 512x768": "--size is called --width and --height here",
    "generate x --dim 512x768": "give width=512 and height=768",
    "generate x -W 512": "-W is called --width here",
    "generate -p x": "give the prompt as it is",
    "sweep x --ckpt y": "--ckpt is called --model here",
    "doctor --cfg-scale 7": "No such option: --cfg-scale",
    "generate x --sampler k_lms": "it is called lms here",
    "draw x": "draw",
    "train": "training target is missing",
    "train emoji --device tpu": "device='tpu'",
    "train --data nowhere --out x": "'nowhere' is not a folder",
    "train --data file --out x": "'file' is not a folder",
    "train emoji --out file": "'file' is not a folder",
}


def test_every_wrong_usage_is_told_in_a_paragraph(tmp_path):
    (tmp_path / "file").touch()
    here = os.path.isdir("/proc")
    assert_told({k: told for k, told in WRONG.items() if here or "/proc" not in k}, tmp_path)
    assert os.listdir(tmp_path) == ["file"]


def test_refusals_need_no_torch(tmp_path):
    lines = (
        *("generate x --g abc", "generate x --steps 0", "generate x --init-image none.png"),
        *("sweep x --g 1,a", "train --data nowhere --out x", "generate x --model none/of --vae x"),
        *("generate x --model emoji --clip-skip 99", "show attention x --g 0", "names qqq qqq"),
    )
    statuses = [status for status, _, _ in answers([line.split() for line in lines], tmp_path)]
    assert set(statuses) <= {1, 2}


STATUSES = {
    0: ("names cat", "--version", "show --help"),
    1: (
        *("info damaged.png", "replay damaged.png", "generate x --model damaged.safetensors"),
        *("generate x --model emoji --lora damaged.safetensors", "names --model folder"),
    ),
    2: (
        *("info none.png", "replay none.png", "info none.png damaged.png", "names --model ./none"),
        *("generate x --model ./none", "generate x --model emojy", "generate x --vae ./none"),
        *("generate x --model emoji --lora none.safetensors", "names xylophone", "draw"),
        *("generate x --model emoji --embedding none.safetensors", "sweep x --g 1", "train"),
        *("generate x --model emoji --init-image none.png", "train --data none --out x"),
        # an image to begin with is the value of a setting
        *("show noise none.png --model emoji", "show noise damaged.png --model emoji"),
        *("compare (x:2) --model emoji", "doctor --x"),
    ),
}


def test_the_exit_status_tells_what_was_typed_wrong_from_what_failed(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("damaged.png", "damaged.safetensors"):
        (tmp_path / name).write_bytes(b"no such thing")
    lines = [(line, status) for status, lines in STATUSES.items() for line in lines]
    given = answers([line.split() for line, _ in lines], tmp_path)
    found = {line: status for (line, _), (status, _, _) in zip(lines, given, strict=True)}
    assert found == dict(lines)


def test_help_is_given_without_torch(tmp_path):
    lines = ("--version", "--help", "", "generate --help", "train emoji --help")
    given = answers([line.split() for line in lines], tmp_path)
    version, top, bare, generate, train = [(status, out) for status, out, _ in given]
    assert version == (0, f"sdpipe {sdpipe.__version__}\n")
    assert top[0] == bare[0] == generate[0] == train[0] == 0
    assert "generate" in top[1]
    assert "train" in bare[1]
    for option in (
        "--negative-prompt",
        "--g",
        "--seed",
        "--lms-order",
        "--save-int",
        "--no-metadata",
    ):
        assert option in generate[1]
    assert "--recipe" in train[1]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["generate", "x", "--seed"], "--seed"),
        (["show", "tokens", "x", "--model"], "--model"),
    ],
)
def test_an_option_without_its_value_is_refused(words, told, capsys):
    assert main(words) == 2
    assert told in capsys.readouterr().err
