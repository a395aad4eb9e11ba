import pytest
from PIL import Image

from sdpipe.settings import Settings
from sdpipe.show.inputs import crop_to_size


def settings(width, height):
    return Settings(prompt="", width=width, height=height)


@pytest.mark.parametrize("size", [(1, 1), (3000, 7), (64, 64), (65, 300)])
def test_the_middle_is_brought_to_size(size):
    image = Image.new("RGB", size, "white")
    assert crop_to_size(image, settings(64, 32)).size == (64, 32)
    sides = Image.new("RGB", (300, 100), "red")
    sides.paste((0, 0, 255), (60, 0, 240, 100))
    assert crop_to_size(sides, settings(8, 8)).getcolors() == [(64, (0, 0, 255))]
