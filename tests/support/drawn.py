"""What a figure says and where, as it is drawn: for tests that no two texts meet."""

from itertools import combinations

from matplotlib.text import Text


def drawn_texts(figure):
    """Every text that is drawn, with its box in dots: (text, left, bottom, right, top)."""
    found = []
    original = Text.draw

    def draw(self, renderer):
        if self.get_visible() and self.get_text().strip():
            box = self.get_window_extent(renderer)
            found.append((self.get_text(), box.x0, box.y0, box.x1, box.y1))
        original(self, renderer)

    Text.draw = draw
    try:
        figure.draw_without_rendering()
    finally:
        Text.draw = original
    return found


def assert_legible(figure):
    """Refuses texts that meet, that leave the figure, or that are too small for a README."""
    texts = drawn_texts(figure)
    assert texts
    width, height = figure.bbox.width, figure.bbox.height
    assert width == 900
    for text, left, bottom, right, top in texts:
        assert left >= 8, text
        assert bottom >= 4, text
        assert right <= width - 8, text
        assert top <= height - 8, text
        assert top - bottom >= 6 or text in ",.-_", text
    for a, b in combinations(texts, 2):
        apart = a[3] <= b[1] + 0.5 or b[3] <= a[1] + 0.5 or a[4] <= b[2] + 0.5 or b[4] <= a[2] + 0.5
        assert apart, (a, b)
