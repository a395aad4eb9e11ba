"""Glyphs that are drawn here: discs of one colour, in place of those of the font."""

from PIL import Image, ImageDraw

from sdpipe.training.emoji.glyphs import SIDE


def disc(colour):
    sheet = Image.new("RGBA", (SIDE, SIDE))
    ImageDraw.Draw(sheet).ellipse((4, 4, 132, 132), fill=colour)
    return sheet.convert("RGBa")


def discs():
    return {"red disc": disc((255, 0, 0)), "blue disc": disc((0, 0, 255)), "eye": disc((9, 9, 9))}
