import subprocess
import sys

import pytest
from huggingface_hub.utils import enable_progress_bars
from support.errors import raises
from support.hub_server import Hub

from sdpipe.errors import ModelError
from sdpipe.loading.hub import fetch, is_hub_id
from sdpipe.loading.layout import select_model

NAME = "someone/model"
SMALL = {
    name: f'{{"of": "{name}"}}'.encode()  # files of the same contents are one in the cache
    for name in (
        "model_index.json",
        "sdpipe.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "vae/config.json",
        "words.json",
    )
}
FULL = {
    "text_encoder/model.safetensors": b"text" * 500,
    "unet/diffusion_pytorch_model.safetensors": b"unet" * 50_000,
    "vae/diffusion_pytorch_model.safetensors": b"vae" * 1000,
}
HALF = {name.replace(".safe", ".fp16.safe"): data[::2] for name, data in FULL.items()}
UNWANTED = {
    ".gitattributes": b"",
    "README.md": b"a model",
    "v1-4.ckpt": b"pickle" * 1000,
    "feature_extractor/preprocessor_config.json": b"{}",
    "safety_checker/config.json": b"{}",
    "safety_checker/model.safetensors": b"safe" * 1000,
    "unet/diffusion_pytorch_model.bin": b"pickle" * 1000,
    "unet/diffusion_pytorch_model.non_ema.safetensors": b"non-ema" * 1000,
}


def half(names):
    return select_model(names)


def full(names):
    return select_model(names, full_precision=True)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with Hub() as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        yield hub


@pytest.fixture
def offline(monkeypatch):
    def go():
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    return go


@pytest.fixture
def impatient(monkeypatch):
    """The library waits a second before each of its five new attempts."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)


@pytest.mark.parametrize(
    "text",
    ["a/b", "CompVis/stable-diffusion-v1-4", "a/b@main", "a/b@refs/pr/1", "a/b@" + "0" * 40],
)
def test_hub_ids(text):
    assert is_hub_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a b/c",
        "a\\b",
        "a/" + "b" * 97,
        *[
            "a",
            "a/",
            "/b",
            "a/b/c",
            "./a",
            "a/b@",
            "a/b--c",
            "a/b..c",
            "a/b.",
            "~/b",
            "a/b@../c",
            "https://a/b",
        ],
    ],
)
def test_what_is_no_hub_id(text):
    assert not is_hub_id(text)


def test_first_use_downloads_what_is_needed_and_no_more(hub):
    hub.add(NAME, {**SMALL, **FULL, **HALF, **UNWANTED})
    found = fetch(NAME, half)
    assert hub.fetched() == sorted([*SMALL, *HALF])
    assert found.commit == hub.repos[NAME].commit
    assert {name: (found.folder / name).read_bytes() for name in HALF} == HALF
    assert set(found.files.variants.values()) == {"fp16"}


def test_second_use_makes_no_request_at_all(hub):
    hub.add(NAME, {**SMALL, **FULL, **HALF})
    first = fetch(NAME, half)
    hub.requests.clear()
    assert fetch(NAME, half) == first
    assert fetch(f"{NAME}@{first.commit}", half) == first
    assert hub.requests == []


def test_without_a_variant_the_full_weights_come(hub):
    hub.add(NAME, {**SMALL, **FULL})
    assert set(fetch(NAME, half).files.variants.values()) == {None}
    hub.requests.clear()
    fetch(NAME, half)
    fetch(NAME, full)
    assert hub.requests == []


def test_full_weights_come_beside_a_cached_variant(hub):
    hub.add(NAME, {**SMALL, **FULL, **HALF})
    fetch(NAME, half)
    hub.requests.clear()
    found = fetch(NAME, full, full_precision=True)
    assert hub.fetched() == sorted(FULL)
    assert set(found.files.variants.values()) == {None}


def test_a_variant_does_for_full_weights_where_there_are_no_others(hub):
    hub.add(NAME, {**SMALL, **HALF})
    assert set(fetch(NAME, full, full_precision=True).files.variants.values()) == {"fp16"}
    hub.requests.clear()
    fetch(NAME, full, full_precision=True)
    assert hub.requests == []


def test_full_weights_that_are_cached_do_for_a_variant(hub):
    hub.add(NAME, {**SMALL, **FULL, **HALF})
    fetch(NAME, full, full_precision=True)
    hub.requests.clear()
    assert set(fetch(NAME, half).files.variants.values()) == {None}
    assert hub.requests == []


def test_a_broken_download_keeps_finished_files_and_starts_the_broken_one_again(hub, impatient):
    unet = "unet/diffusion_pytorch_model.safetensors"
    repo = hub.add(NAME, {**SMALL, **FULL})
    repo.cut[unet] = (70_000, 100)
    with raises(ModelError, NAME, "connection to http", "finished files are kept"):
        fetch(NAME, half)
    assert "text_encoder/model.safetensors" in hub.fetched()
    hub.requests.clear()
    repo.cut.clear()
    found = fetch(NAME, half)
    assert hub.fetched() == [unet, "vae/diffusion_pytorch_model.safetensors"]
    assert (found.folder / unet).read_bytes() == FULL[unet]


def test_a_connection_lost_once_is_taken_up_again(hub, impatient):
    unet = "unet/diffusion_pytorch_model.safetensors"
    repo = hub.add(NAME, {**SMALL, **FULL})
    repo.cut[unet] = (70_000, 1)
    assert (fetch(NAME, half).folder / unet).read_bytes() == FULL[unet]


def test_weights_that_are_not_what_the_hub_names_are_not_kept(hub, tmp_path):
    hub.add(NAME, {**SMALL, **FULL})
    damage = [True]

    def change(path, status, headers, body):
        is_weight = path.endswith("/unet/diffusion_pytorch_model.safetensors") and len(body)
        return status, headers, body[::-1] if damage and is_weight else body

    hub.change = change
    with raises(ModelError, "diffusion_pytorch_model.safetensors", "its SHA-256 is another"):
        fetch(NAME, half)
    damage.clear()
    assert (fetch(NAME, half).folder / "unet/diffusion_pytorch_model.safetensors").read_bytes() == (
        FULL["unet/diffusion_pytorch_model.safetensors"]
    )


@pytest.mark.parametrize("header", ["ETag", "X-Repo-Commit", "sha"])
def test_a_hub_that_names_files_by_paths_writes_nowhere_else(hub, tmp_path, header):
    hub.add(NAME, {**SMALL, **FULL})

    def change(path, status, headers, body):
        if header == "sha":
            body = body.replace(hub.repos[NAME].commit.encode(), b"../../../evil")
        elif header in headers:
            headers[header] = '"../../../evil"'
        return status, headers, body

    hub.change = change
    with raises(ModelError, NAME, "names a file or a commit by a path"):
        fetch(NAME, half)
    assert not [path for path in tmp_path.rglob("*evil*") if path.exists()]


def test_a_hub_that_asks_to_wait_for_long(hub):
    hub.add(NAME, {**SMALL, **FULL})
    hub.change = lambda path, status, headers, body: (429, {"Retry-After": "100000"}, b"")
    with raises(ModelError, NAME, "asks to wait 100000 seconds"):
        fetch(NAME, half)


def test_offline_with_nothing_cached(hub, offline):
    hub.add(NAME, {**SMALL, **FULL})
    offline()
    with raises(ModelError, "model='someone/model'", "is not cached, and HF_HUB_OFFLINE"):
        fetch(NAME, half)
    assert hub.requests == []


def test_offline_with_a_full_cache(hub, offline):
    hub.add(NAME, {**SMALL, **FULL})
    found = fetch(NAME, half)
    offline()
    assert fetch(NAME, half) == found


@pytest.mark.parametrize("lost", ["vae/diffusion_pytorch_model.safetensors", "sdpipe.json"])
def test_offline_with_an_incomplete_cache_names_the_file(hub, offline, lost):
    hub.add(NAME, {**SMALL, **FULL})
    (fetch(NAME, half).folder / lost).unlink()
    offline()
    with raises(ModelError, NAME, f"partly cached: {lost} is missing or incomplete", "unset"):
        fetch(NAME, half)


def test_what_is_lost_from_the_cache_is_fetched_again(hub):
    lost = "vae/diffusion_pytorch_model.safetensors"
    hub.add(NAME, {**SMALL, **FULL})
    (fetch(NAME, half).folder / lost).resolve().unlink()
    hub.requests.clear()
    assert fetch(NAME, half).files.weights["vae"] == (lost,)
    assert hub.fetched() == [lost]


@pytest.mark.parametrize("name", ["sdpipe.json", "unet/diffusion_pytorch_model.safetensors"])
def test_a_file_of_another_size_is_fetched_again(hub, offline, name):
    hub.add(NAME, {**SMALL, **FULL})
    path = fetch(NAME, half).folder / name
    whole = path.read_bytes()
    for data in (whole[:7], whole + b"more", b""):
        path.write_bytes(data)
        hub.requests.clear()
        assert (fetch(NAME, half).folder / name).read_bytes() == whole
        assert hub.fetched() == [name]
    path.write_bytes(whole[:7])
    offline()
    with raises(ModelError, NAME, f"partly cached: {name} is missing or incomplete"):
        fetch(NAME, half)


def test_offline_full_weights_beside_a_cached_variant_are_missed(hub, offline):
    hub.add(NAME, {**SMALL, **FULL, **HALF})
    fetch(NAME, half)
    offline()
    with raises(ModelError, NAME, "are missing or incomplete"):
        fetch(NAME, full, full_precision=True)


def test_gated(hub):
    hub.add(NAME, {**SMALL, **FULL}, gated=True)
    with raises(
        ModelError, NAME, "is gated", f"{hub.url}/someone/model, then log in with `hf auth login`"
    ):
        fetch(NAME, half)


def test_an_unknown_repository(hub):
    with raises(ModelError, "model='no/body'", "nor a repository", "spelling"):
        fetch("no/body", half)


def test_an_unknown_revision(hub):
    hub.add(NAME, {**SMALL, **FULL})
    with raises(ModelError, "@v9", "no revision 'v9'"):
        fetch(f"{NAME}@v9", half)


def test_another_failure_of_the_hub(hub):
    hub.status = 503
    with raises(ModelError, NAME, "status 503", "try again later"):
        fetch(NAME, half)


def test_unreachable_with_nothing_cached_fails_at_once(hub, monkeypatch):
    naps = []
    monkeypatch.setattr("time.sleep", naps.append)  # the library waits between attempts
    hub.stop()
    with raises(ModelError, NAME, "is not cached, and the connection to"):
        fetch(NAME, half)
    assert naps == []


def test_unreachable_with_an_incomplete_cache_names_the_file(hub):
    lost = "vae/diffusion_pytorch_model.safetensors"
    hub.add(NAME, {**SMALL, **FULL})
    (fetch(NAME, half).folder / lost).unlink()
    hub.stop()
    with raises(ModelError, NAME, f"{lost} is missing or incomplete, and the connection"):
        fetch(NAME, half)


def test_the_message_names_what_was_asked_for(hub):
    with raises(ModelError, "vae='no/body'"):
        fetch("no/body", half, label="vae='no/body'")


@pytest.mark.parametrize(
    ("without", "rule", "remedy"),
    [
        ("model_index.json", "not a model in the diffusers layout", ""),
        ("vae/config.json", "has no vae/config.json: its part vae is missing", "vae="),
        ("unet/diffusion_pytorch_model.safetensors", "only there as a pickle", ".safetensors"),
    ],
)
def test_a_repository_that_is_no_model_is_refused_before_a_download(hub, without, rule, remedy):
    files = {**SMALL, **FULL, **UNWANTED}
    hub.add(NAME, {name: data for name, data in files.items() if name != without})
    with raises(ModelError, NAME, rule, remedy):
        fetch(NAME, half)
    assert set(hub.fetched()) <= {"model_index.json"}


def test_no_bar_where_stderr_is_no_terminal(hub, capfd):
    hub.add(NAME, {**SMALL, **FULL})
    fetch(NAME, half)
    assert capfd.readouterr() == ("", "")


def test_one_bar_on_a_terminal(hub, monkeypatch, capsys):
    hub.add(NAME, {**SMALL, **FULL})
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    enable_progress_bars()  # another test of this process may have wanted none
    fetch(NAME, half)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert {line.partition(":")[0] for line in told.strip().split("\r")} == {f"Fetching {NAME}"}
    assert "100%" in told


@pytest.fixture
def run(hub, tmp_path):
    """Fetches in a process of its own, which prints the commit and fails if it imports torch."""
    code = (
        "import sys; from sdpipe.loading.hub import fetch\n"
        "from sdpipe.loading.layout import select_model\n"
        "print(fetch('someone/model', select_model).commit)\n"
        "sys.exit(3 * ('torch' in sys.modules))"
    )

    def run(**more):
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env=hub.environment(tmp_path / "another", **more),
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_cache_that_an_older_library_filled_is_used(hub, run, tmp_path):
    hub.add(NAME, {**SMALL, **FULL})
    first = run()
    (listing,) = tmp_path.glob("another/*/trees/*")
    listing.unlink()
    hub.requests.clear()
    assert run().stdout == first.stdout == hub.repos[NAME].commit + "\n"
    assert hub.requests == []


def test_in_a_process_of_its_own_that_reads_the_environment(hub, run):
    hub.add(NAME, {**SMALL, **FULL})
    first = run()
    assert (first.returncode, first.stdout, first.stderr) == (0, hub.repos[NAME].commit + "\n", "")
    hub.requests.clear()
    second = run()
    assert (second.returncode, second.stdout, second.stderr) == (0, first.stdout, "")
    assert hub.requests == []
    assert run(HF_HUB_OFFLINE="1").returncode == 0
