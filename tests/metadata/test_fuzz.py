import collections

import pytest


def test_mutated_files_are_refused_shown_or_prepared_and_nothing_else():
    """Always the same few hundred; fuzz_metadata.py makes any number."""
    pytest.importorskip("hypothesis")
    from support.fuzz_metadata import run

    counts = collections.Counter()
    run(300, derandomize=True, counts=counts)
    assert sum(counts.values()) >= 300
    assert set(counts) == {"refused", "shown", "prepared"}
