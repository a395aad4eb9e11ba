"""Draws the pictures of the README, with the built-in model: `python docs/make_pictures.py`."""

from pathlib import Path

from PIL import Image

from sdpipe import Pipeline
from sdpipe.show.filmstrip import filmstrip, titles
from sdpipe.show.steps import columns

HERE = Path(__file__).parent
ON_WHITE = [
    "red apple", "panda", "rocket", "octopus", "sunflower", "pizza", "guitar", "tiger face",
    "umbrella", "snail", "strawberry", "cat face", "fire engine", "cactus", "soccer ball", "crab",
    "birthday cake", "penguin", "mushroom", "red heart",
]  # fmt: skip
ON_COLOURS = {
    "balloon": "blue", "avocado": "pink", "ghost": "purple", "sailboat": "orange", "owl": "green",
    "light bulb": "black", "banana": "blue", "rainbow": "gray", "whale": "yellow", "rose": "black",
    "robot": "yellow", "hamburger": "green", "trophy": "purple", "fox": "blue", "castle": "pink",
    "dolphin": "orange", "tomato": "yellow", "unicorn": "blue", "pineapple": "red", "key": "purple",
}  # fmt: skip
ACROSS, GAP = 10, 4


def main() -> None:
    """Writes sheet.png and filmstrip.png beside this file."""
    pipe = Pipeline("emoji")
    prompts = [*ON_WHITE, *(f"{name} on a {c} background" for name, c in ON_COLOURS.items())]
    images = pipe.generate(prompts, seed=0, exact=True).images
    side = images[0].width + GAP
    sheet = Image.new("RGB", (side * ACROSS - GAP, side * (len(images) // ACROSS) - GAP), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % ACROSS * side, i // ACROSS * side))
    sheet.save(HERE / "sheet.png", optimize=True)

    sunflower = "sunflower on a blue background"
    result = pipe.generate(sunflower, seed=3, steps=20, save_int=True)
    strip = filmstrip(columns(pipe.components.vae, result, 0), *titles(result.settings[0]))
    strip.save(HERE / "filmstrip.png", optimize=True)


if __name__ == "__main__":
    main()
