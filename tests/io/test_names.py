import errno
import os
from itertools import islice
from pathlib import Path

import pytest
from support.errors import raises

from sdpipe.errors import UsageError
from sdpipe.io import names
from sdpipe.io.names import Destination, free_names, slug


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
        (f"{'a' * 20} {'b' * 19}", f"{'a' * 20}-{'b' * 19}"),
        (f"{'a' * 20} {'b' * 19} c", f"{'a' * 20}-{'b' * 19}"),
        (f"{'a' * 20} {'b' * 20}", "a" * 20),
    ],
)
def test_a_slug_is_short_plain_and_never_a_path(prompt, name):
    got = slug(prompt)
    assert got == (name or "a-photograph-of-an-astronaut-riding-a")
    assert len(got) <= names.SLUG_LENGTH


def test_a_folder_numbers_on_from_the_highest(tmp_path):
    folder = tmp_path / "a" / "b"
    assert Destination(folder, 3).path(0, "red apple") == folder / "0001-red-apple.png"
    assert not folder.exists()  # only looked at
    folder.mkdir(parents=True)
    assert Destination(folder, 1).path(0, "red apple") == folder / "0001-red-apple.png"
    others = [
        "notes-12.txt",
        "12-short.png",
        "20230409-holiday.jpg",
        "0800-A.png",
    ]
    for name in ("0007-x.png", "0009-gone.steps", *others):
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
    ("there", "refused"),
    [("x.png", [1]), ("x.steps", [1]), ("x-1.png", [2, 3]), ("x-3.steps", [3]), ("x-4.png", [])],
)
def test_a_file_that_is_named_and_exists_is_refused_unless_it_is_replaced(tmp_path, there, refused):
    (tmp_path / there).touch()
    for count in (1, 2, 3):
        assert Destination(tmp_path / "x.png", count, overwrite=True).is_file
        if count in refused:
            with raises(UsageError, value=there, rule="exists already", remedy="--overwrite"):
                Destination(tmp_path / "x.png", count)
        else:
            Destination(tmp_path / "x.png", count)


def test_a_hyphen_names_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in ("-", "-/"):
        with raises(UsageError, value="out='-'", remedy="./- is a file of that name"):
            Destination(out, 1)
    assert Destination("./-", 1).folder == Path("-")


@pytest.mark.parametrize(
    ("name", "taken", "free"),
    [
        ("x.png", [], ["x.png", "x-1.png"]),
        ("x.png", ["x.png", "x-1.png"], ["x-2.png"]),
        ("x.png", ["x.steps", "x-2.steps"], ["x-1.png", "x-3.png"]),
        ("x-1.png", ["x-1.png"], ["x-2.png"]),
        ("x-09.jpg", ["x-09.jpg"], ["x-10.jpg"]),
        ("x-007.jpg", ["x-007.jpg"], ["x-008.jpg"]),
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


def test_the_format_of_a_folder(tmp_path):
    (tmp_path / "0004-x.webp").touch()
    assert Destination(tmp_path, 1, format="jpg").path(0, "red apple").name == "0005-red-apple.jpg"
    with raises(UsageError, value="format='gif'", remedy="png, jpg, jpeg, webp"):
        Destination(tmp_path, 1, format="gif")


def test_a_format_that_contradicts_the_name_is_refused(tmp_path):
    for name, format in (("x.jpeg", "jpg"), ("x.PNG", "png")):
        assert Destination(tmp_path / name, 1, format=format).path(0, "").name == name
    with raises(
        UsageError, value="format=webp", rule="contradicts the name x.png", remedy="x.webp"
    ):
        Destination(tmp_path / "x.png", 1, format="webp")
