"""Claims on names, held by two owners as by two processes: a lock is of an open file."""

from support.errors import raises

from sdpipe.errors import SdpipeError
from sdpipe.io.claims import Claims, claim


def test_a_name_is_claimed_once_until_it_is_given_back(tmp_path):
    folder = tmp_path / "new"
    with Claims(folder) as one, Claims(folder) as other:
        assert one.take(["a", "b"]) == ["a", "b"]
        assert other.take(["c", "b", "d"]) == ["c", "d"]
        one.release(["b", "never claimed"])
        assert other.take(["a", "b"]) == ["b"]
        other.release(["a"])  # not theirs to give back
        with claim(folder, ["a", "e"]) as taken:
            assert taken == ["e"]
            assert one.take(["e"]) == []
        assert one.take(["e"]) == ["e"]
    assert list(folder.iterdir()) == []


def test_a_folder_in_which_nothing_can_be_claimed_is_told(tmp_path):
    folder = tmp_path / "claims"
    with Claims(folder) as claims:
        folder.rmdir()
        folder.touch()
        with raises(SdpipeError, value=str(folder), rule="cannot be written"):
            claims.take(["a"])


def test_a_claim_has_a_sign_of_life(tmp_path):
    with Claims(tmp_path) as claims:
        assert claims.sign("a") is None
        claims.take(["a"])
        first = claims.sign("a")
        claims.beat()  # not due yet
        assert claims.sign("a") == first is not None
        assert claims.sign("b") is None
    assert claims.sign("a") is None
