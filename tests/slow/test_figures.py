"""What is published about speed and the built-in model is what was measured, of this model."""

from figures import stale_figures


def test_no_published_figure_is_stale(tmp_path):
    assert stale_figures(tmp_path) == []
