"""Assertions on an error's fields, so that no test repeats a whole sentence."""

from contextlib import contextmanager

import pytest


@contextmanager
def raises(kind, value="", rule="", remedy=""):
    """Expects an error whose fields contain these words."""
    with pytest.raises(kind) as info:
        yield info
    error = info.value
    for name, words in (("value", value), ("rule", rule), ("remedy", remedy)):
        assert words in getattr(error, name), f"{name}: {getattr(error, name)!r} lacks {words!r}"
    assert str(error).endswith((".", "?"))
