import pytest
from support.errors import raises

from sdpipe.metadata.record import Record, RecordError

OLD = {
    "prompt": "x",
    "seed": 3,
    "rescale": 0.7,
    "interval": [0.3, 5],
    "variation": 0.2,
    "variation_seed": 8,
    "n": 1,
    "hires": None,
    "exact": True,
    "init": {"name": "a.png", "sha256": "0" * 64},
    "mask": None,
}


def test_settings_of_format_1_are_read_by_the_names_of_today():
    settings = Record.of_sdpipe({"settings": {**OLD, "vary": None}}).settings()
    assert (settings.guidance_rescale, settings.guidance_interval) == (0.7, (0.3, 5))
    assert (settings.variation_strength, settings.variation_seed, settings.n) == (0.2, 8, 1)
    assert settings.batch_invariant
    assert settings.init_image.name == "a.png"
    assert Record.of_sdpipe({"settings": {**OLD, "vary": 4}}).settings().n == 4


def test_sweeps_of_format_1_are_read_by_the_names_of_today():
    record = Record.of_sdpipe({"sweep": {"prompt": "x", "seed": [1, 2], "rescale": 0.5}})
    assert {cell.settings.guidance_rescale for cell in record.sweep.cells} == {0.5}


def test_format_2_has_no_old_names():
    with raises(RecordError):
        Record.of_sdpipe({"format": 2, "settings": OLD}).settings()


@pytest.mark.parametrize("format", [3, 0, "2", None, [2]])
def test_a_newer_format_is_refused(format):
    with raises(RecordError, value="format", rule="not known", remedy="newer sdpipe"):
        Record.of_sdpipe({"format": format, "settings": {"prompt": "x"}})
