import errno
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest
from support.errors import raises

from sdpipe.errors import UsageError
from sdpipe.io import files
from sdpipe.io.files import Destination, free_names, put_in_place, slug, temporary_path


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("red apple", "red-apple"),
        ("  A Café, in PARIS!  ", "a-cafe-in-paris"),
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\con\0nul", "c-con-nul"),
        ("日本", "image"),
        ("", "image"),
        ("...", "image"),
        ("a photograph of an astronaut riding a horse on the moon", None),
        ("x" * 5000, "x" * 40),
    ],
)
def test_a_slug_is_short_plain_and_never_a_path(prompt, name):
    got = slug(prompt)
    assert got == (name or "a-photograph-of-an-astronaut-riding-a")
    assert len(got) <= files.SLUG_LENGTH


def test_a_folder_numbers_on_from_the_highest(tmp_path):
    folder = tmp_path / "a" / "b"
    assert Destination(folder, 3).path(0, "red apple") == folder / "0001-red-apple.png"
    assert not folder.exists()  # only looked at
    folder.mkdir(parents=True)
    for name in ("0007-x.png", "0009-gone.steps", "notes-12.txt", "12-short.png"):
        (folder / name).touch()
    destination = Destination(folder, 3)
    assert destination.path(0, "x") == folder / "0010-x.png"
    assert destination.path(1, "y") == folder / "0011-y.png"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
def test_an_image_suffix_is_a_file(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    assert Destination(path, 1).path(0, "red apple") == path
    several = Destination(path, 3)
    assert [several.path(k, "").name for k in range(3)] == [f"x-{k}{suffix}" for k in (1, 2, 3)]


def test_everything_else_is_a_folder(tmp_path):
    (tmp_path / "there.png").mkdir()
    for out in ("there.png", "new.png/", "v1.5", "plain"):
        assert Destination(f"{tmp_path}/{out}", 1).folder == tmp_path / out


def test_relative_paths_stay_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Destination("outputs", 1).path(0, "x") == Path("outputs/0001-x.png")
    assert Destination("x.png", 1).path(0, "x") == Path("x.png")


@pytest.mark.parametrize("suffix", [".gif", ".tiff", ".BMP", ".avif"])
def test_a_format_that_cannot_be_written_is_refused_with_those_that_can(tmp_path, suffix):
    with raises(UsageError, value=f"x{suffix}", rule="suffix", remedy=".png, .jpg, .jpeg, .webp"):
        Destination(tmp_path / f"x{suffix}", 1)


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in ("file", "file/x.png", "file/sub/folder", "link"):
        with raises(UsageError, rule="is not a folder", remedy="choose another"):
            Destination(tmp_path / out, 1)


@pytest.mark.parametrize("out", ["/proc/x.png", "/proc/self/x/y", "/dev/null", "/sys/x"])
def test_a_folder_that_cannot_be_written_is_refused_even_for_root(out):
    if Path(out).parts[1] not in os.listdir("/"):
        pytest.skip("not on this system")
    with raises(UsageError, rule="cannot be written"):
        Destination(out, 1)


def test_a_read_only_folder_is_refused(tmp_path, monkeypatch):
    def refuse(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with raises(UsageError, value="new", rule="Read-only file system"):
        Destination(tmp_path / "new", 1)


@pytest.mark.parametrize("out", ["x" * 300 + ".png", "x" * 300, "a\0b", "x" * 249 + ".png"])
def test_names_that_the_file_system_refuses_are_refused(tmp_path, out):
    with raises(UsageError, value="out=", rule="not a valid file name"):
        Destination(f"{tmp_path}/{out}", 1)


@pytest.mark.parametrize(
    ("name", "taken", "free"),
    [
        ("x.png", [], ["x.png", "x-1.png"]),
        ("x.png", ["x.png", "x-1.png"], ["x-2.png"]),
        ("x.png", ["x.steps", "x-2.steps"], ["x-1.png", "x-3.png"]),
        ("x-1.png", ["x-1.png"], ["x-2.png"]),
        ("x-09.jpg", ["x-09.jpg"], ["x-10.jpg"]),
        ("0001-red.png", ["0001-red.png"], ["0001-red-1.png"]),
        ("-5.png", ["-5.png"], ["-5-1.png"]),
    ],
)
def test_the_next_free_number_is_taken(tmp_path, name, taken, free):
    for other in taken:
        (tmp_path / other).touch()
    assert [p.name for p in islice(free_names(tmp_path / name), len(free))] == free


def test_a_dangling_link_is_not_written_through(tmp_path):
    (tmp_path / "x.png").symlink_to(tmp_path / "nowhere")
    assert next(free_names(tmp_path / "x.png")).name == "x-1.png"


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_is_not_put_in_place_is_removed(tmp_path, make, error):
    with pytest.raises(error), temporary_path(tmp_path / "new") as temporary:  # noqa: PT012
        make(temporary)
        raise error
    assert list((tmp_path / "new").iterdir()) == []


def test_a_process_that_ends_at_once_can_remove_it_all(tmp_path):
    with (
        temporary_path(tmp_path) as file,
        temporary_path(tmp_path) as folder,
        temporary_path(tmp_path),
    ):
        file.touch()
        folder.mkdir()
        (folder / "x").touch()
        files.remove_temporary_files()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_a_name_is_taken_once(tmp_path, monkeypatch, links):
    if not links:

        def refuse(*_):
            raise OSError(errno.EPERM, "no hard links on FAT")

        monkeypatch.setattr("os.link", refuse)

    def put(k):
        with temporary_path(tmp_path) as temporary:
            temporary.write_text(str(k))
            try:
                put_in_place(temporary, tmp_path / "x")
            except FileExistsError:
                return None
            return k

    with ThreadPoolExecutor(8) as pool:
        winners = [k for k in pool.map(put, range(32)) if k is not None]
    assert len(winners) == 1
    assert (tmp_path / "x").read_text() == str(winners[0])
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_claim_is_given_up_when_the_file_does_not_follow(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOTSUP, "no")

    monkeypatch.setattr("os.link", refuse)
    monkeypatch.setattr("os.replace", refuse)
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="no"), temporary_path(tmp_path) as temporary:  # noqa: PT012
        temporary.touch()
        put_in_place(temporary, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_linking_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "nothing", tmp_path / "x")
