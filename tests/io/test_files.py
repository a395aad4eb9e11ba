import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.errors import raises

from sdpipe.errors import SdpipeError
from sdpipe.io import files
from sdpipe.io.files import atomic_write, put_in_place, temporary_path, write, write_once


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


@pytest.mark.parametrize("way", ["link", "rename", "claim"])
def test_a_name_is_taken_once(tmp_path, monkeypatch, way):
    """By a hard link; without those by renameat2; where neither is possible by a claim."""
    if way == "claim":
        monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: None)
    if way != "link":

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
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: None)
    monkeypatch.setattr("os.replace", refuse)
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="no"), temporary_path(tmp_path) as temporary:  # noqa: PT012
        temporary.touch()
        put_in_place(temporary, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_linking_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "nothing", tmp_path / "x")


def test_what_a_killed_process_left_is_removed_and_what_others_write_is_not(tmp_path):
    code = "import os, sys; from pathlib import Path; from sdpipe.io.files import temporary_path\n"
    code += "with temporary_path(Path(sys.argv[1])) as path:\n"
    code += "    path.touch(); print(path, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as dead, subprocess.Popen(command, **pipes) as living:
        left, written = (Path(p.stdout.readline().strip()) for p in (dead, living))
        dead.kill()
        dead.wait()
        theirs = tmp_path / ".sdpipe-01234567-1-01234567.part"  # of another machine
        old = tmp_path / ".sdpipe-01234567-1-76543210.part"
        for path in (theirs, old):
            path.touch()
        os.utime(old, (0, 0))
        assert left.exists()
        with temporary_path(tmp_path):
            assert set(tmp_path.iterdir()) == {written, theirs}
        living.communicate("")


def test_a_file_is_written_beside_the_one_that_is_there_over_it_or_once(tmp_path):
    path = tmp_path / "a" / "x"
    assert write(path, b"1") == path
    assert write(path, b"2") == tmp_path / "a" / "x-1"
    assert (write_once(path, b"3"), path.read_bytes()) == (False, b"1")
    assert write(path, b"4", overwrite=True) == path
    assert (write_once(path.with_name("y"), b"5"), path.read_bytes()) == (True, b"4")
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == {
        "x": b"4",
        "x-1": b"2",
        "y": b"5",
    }
    for way in (write, write_once):
        with raises(SdpipeError, value=str(path / "z"), rule="cannot be written"):
            way(path / "z", b"6")


def test_what_is_not_written_whole_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "x"
    for data in (b"1", b"2"):
        with atomic_write(path) as file:
            file.write(data)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    wrapped = RuntimeError("torch's own, which says little")
    wrapped.__cause__ = full
    for error, reason in (
        (full, "cannot be written (No space left on device)"),
        (wrapped, "cannot be written (No space left on device)"),
        (OSError("half."), "cannot be written (half)"),
    ):
        with raises(SdpipeError, str(path), reason, "free some"), atomic_write(path, "free some"):
            raise error
    for error in (ValueError("x"), KeyboardInterrupt(), SdpipeError("x", "is its own")):
        with pytest.raises(type(error)) as raised, atomic_write(path) as file:  # noqa: PT012
            file.write(b"half")
            raise error
        assert raised.value is error
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert path.read_bytes() == b"2"
