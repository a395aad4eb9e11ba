"""Folders of captioned images: what is read, how images are cut, and every error."""

import json
import random
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support.errors import raises

from sdpipe import UsageError
from sdpipe.training import imagefolder
from sdpipe.training.imagefolder import ImageFolder, read_entries


def write(folder, *lines, name="metadata.jsonl"):
    """A folder whose metadata has these lines: objects, or text as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
    return folder


def line(name, text="a thing"):
    return {"file_name": name, "text": text}


def png(path, size=(8, 8), colour="red", mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def test_metadata_of_every_layout(tmp_path):
    for place in (".", "train"):
        for name, lines in {
            "metadata.jsonl": ["\ufeff" + json.dumps(line("a/1.png", " red\u2028 ")), "", ""],
            "metadata.csv": ["id,text,file_name", '7," red\u2028 ",a/1.png', ",,"][:2],
        }.items():
            folder = tmp_path / place.strip(".") / name.partition(".")[2] / "data"
            png(folder / place / "a/1.png")
            write(folder / place, *lines, name=name)
            (entry,) = read_entries(folder)
            assert (entry.name, entry.text) == ("a/1.png", "red")
            assert entry.path.read_bytes()[1:4] == b"PNG"
            assert re.fullmatch(rf".*{name}, line [12]", entry.line)


def test_an_image_may_have_several_captions_or_none(tmp_path):
    for k in (1, 2, 3):
        png(tmp_path / f"{k}.png")
    write(tmp_path, line("2.png", "two"), {**line("1.png", "one"), "more": [1]}, line("2.png", "2"))
    entries = read_entries(tmp_path)
    assert [(e.name, e.text) for e in entries] == [
        ("2.png", "two"),
        ("1.png", "one"),
        ("2.png", "2"),
    ]


def halves(mode, first, second, **options):
    """Upper and lower half of a square."""
    image = Image.new(mode, (40, 40), first, **options)
    image.paste(second, (0, 20, 40, 40))
    return image


def rgba(folder):
    halves("RGBA", (255, 0, 0, 255), (0, 0, 255, 0)).save(folder / "x.png")
    return (255, 0, 0), (255, 255, 255)


def half_transparent(folder):
    halves("LA", (0, 255), (0, 128)).save(folder / "x.png")
    return (0, 0, 0), (127, 127, 127)


def palette(folder):
    image = halves("P", 1, 0)
    image.putpalette([9, 9, 9, 0, 128, 0])
    image.save(folder / "x.png", transparency=0)
    return (0, 128, 0), (255, 255, 255)


def one_colour_transparent(folder):
    halves("RGB", (9, 9, 9), (0, 0, 255)).save(folder / "x.png", transparency=(9, 9, 9))
    return (255, 255, 255), (0, 0, 255)


def grey_of_16_bits(folder):
    levels = np.full((40, 40), 300, np.uint16)
    levels[20:] = 40000
    Image.fromarray(levels).save(folder / "x.png")
    return (1, 1, 1), (156, 156, 156)


def turned_by_exif(folder):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    halves("RGB", (0, 0, 255), (255, 0, 0)).save(folder / "x.png", exif=exif)
    return (255, 0, 0), (0, 0, 255)


def cmyk(folder):
    halves("CMYK", (0, 255, 255, 0), (0, 0, 0, 0)).save(folder / "x.png", "TIFF")
    return (255, 0, 0), (255, 255, 255)


def black_and_white(folder):
    halves("1", 0, 1).save(folder / "x.png", "BMP")
    return (0, 0, 0), (255, 255, 255)


KINDS = (
    *(rgba, half_transparent, palette, one_colour_transparent),
    *(grey_of_16_bits, turned_by_exif, cmyk, black_and_white),
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_is_upright_rgb_on_white(tmp_path, kind):
    upper, lower = kind(tmp_path)
    (entry,) = read_entries(write(tmp_path, line("x.png")))
    image = imagefolder.read_image(entry, 16)
    assert (image.mode, image.size) == ("RGB", (16, 16))
    for y, expected in ((3, upper), (12, lower)):
        assert np.abs(np.subtract(image.getpixel((8, y)), expected)).max() <= 1


def test_an_image_is_cut_after_it_is_turned_upright(tmp_path):
    image = Image.new("RGB", (72, 24), "blue")
    image.paste("red", (24, 0, 48, 24))
    image.save(tmp_path / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "tall.jpg", exif=exif, quality=95, subsampling=0)
    for entry in read_entries(write(tmp_path, line("wide.png"), line("tall.jpg"))):
        square = np.asarray(imagefolder.read_image(entry, 8)).astype(int)
        assert (abs(square[1:-1, 1:-1] - [255, 0, 0]) < 6).all(), entry.name  # the middle third


def test_prepared_images_are_those_of_the_folder(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(3):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"{k}.png")
    entries = read_entries(write(tmp_path, *(line(f"{k}.png", f"no. {k}") for k in range(3))))
    images, reports = ImageFolder(entries, 16, tmp_path / "images.rgb"), []
    images.prepare(lambda done, total: reports.append((done, total)))
    assert reports == [(1, 3), (2, 3), (3, 3)]
    assert (len(images), images.size) == (3, 16)
    for k in range(3):
        with Image.open(tmp_path / f"{k}.png") as original:
            assert images.image(k).tobytes() == original.tobytes()
        assert images.caption(k) == images.paraphrase(k, random.Random(0)) == f"no. {k}"
    assert images.captions() == ["no. 0", "no. 1", "no. 2"]
    seen = [images.augmented_image(random.Random(seed)) for seed in (1, 2, 1)]
    assert {image.size for image in seen} == {(16, 16)}
    assert seen[0].tobytes() == seen[2].tobytes() != seen[1].tobytes()

    images.prepare(lambda done, total: pytest.fail("read again"))
    before = images.fingerprint()
    assert images.fingerprint() == before
    png(tmp_path / "1.png", (16, 16))
    after = images.fingerprint()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]


def no_folder(folder):
    return "data=", "is not a folder"


def no_metadata(folder):
    png(folder / "1.png")
    return "data", "has no metadata.jsonl"


def both_metadata(folder):
    write(folder, line("1.png"))
    write(folder, "file_name,text", name="metadata.csv")
    return "data", "has both metadata.jsonl and metadata.csv"


def no_lines(folder):
    write(folder, "")
    return "metadata.jsonl", "names no image"


def no_rows(folder):
    write(folder, "file_name,text", name="metadata.csv")
    return "metadata.csv", "names no image"


def no_json(folder):
    write(folder, line("1.png"), "{'file_name'}")
    return "metadata.jsonl, line 2,", "is not JSON"


def no_object(folder):
    write(folder, "[]")
    return "line 1,", "is not an object"


def no_utf_8(folder):
    write(folder, "")
    (folder / "metadata.jsonl").write_bytes(b'{"file_name": "\xff"}')
    return "metadata.jsonl", "is not UTF-8"


def no_name(folder):
    write(folder, line("1.png"), "", {"image": "1.png", "text": "x"})
    return "line 3,", "has image, text, but no file_name"


def no_caption(folder):
    write(folder, {"file_name": "1.png", "caption": "x"})
    return "line 1,", "has file_name, caption, but no text"


def empty_caption(folder):
    write(folder, line("1.png", "  "))
    return "line 1: text='  '", "is empty"


def a_number_for_a_caption(folder):
    write(folder, line("1.png", 7))
    return "line 1: text=7", "is not a text"


def half_a_letter(folder):
    write(folder, '{"file_name": "1.png", "text": "\\ud800"}')
    return "line 1: text=", "is not UTF-8"


def short_row(folder):
    write(folder, "file_name,text", "1.png", name="metadata.csv")
    return "metadata.csv, line 2: text=None", "is not a text"


def missing_images(folder):
    png(folder / "1.png")
    write(folder, line("1.png"), line("2.png"), line("3.png"), line("4.png"))
    return "line 2: the image 2.png", "nor are 2 others"


def outside(folder):
    png(folder.parent / "1.png")
    write(folder, line("../1.png"))
    return "line 1: the image ../1.png", "is outside"


def absolute(folder):
    path = png(folder.parent / "1.png")
    write(folder, line(str(path)))
    return "line 1: the image", "is outside"


@pytest.mark.parametrize(
    "wrong",
    [
        *(no_folder, no_metadata, both_metadata, no_lines, no_rows, no_json, no_object, no_utf_8),
        *(no_name, no_caption, empty_caption, a_number_for_a_caption, half_a_letter, short_row),
        *(missing_images, outside, absolute),
    ],
)
def test_errors_of_a_folder_name_the_line(tmp_path, wrong):
    value, rule = wrong(tmp_path / "data")
    with raises(UsageError, value=value, rule=rule):
        read_entries(tmp_path / "data")


def truncated(path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:900])
    return "truncated|damaged|cut short"


def no_image(path):
    path.write_text("not an image")
    return "unknown format"


def bomb(path):
    """A PNG of a few bytes that claims 40,000 x 40,000 pixels."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(99)))
        + chunk(b"IEND", b"")
    )
    return "pixels"


def large(path):
    png(path, (13_000, 12_000), 0, "1")
    return "150 million"


@pytest.mark.parametrize("wrong", [truncated, no_image, bomb, large])
def test_an_image_that_cannot_be_read_is_named(tmp_path, wrong):
    rule = wrong(tmp_path / "2.png")
    png(tmp_path / "1.png")
    entries = read_entries(write(tmp_path, line("1.png"), line("2.png")))
    with raises(UsageError, value="line 2: the image 2.png", remedy="remove its line") as info:
        ImageFolder(entries, 8, tmp_path / "images.rgb").prepare()
    assert re.search(rule, info.value.rule)
    assert not list(tmp_path.glob("images*"))


@pytest.mark.parametrize(
    ("place", "named", "there"),
    [
        ("train", "train/a.png", "a.png"),
        (".", "data/b/a.png", "b/a.png"),
        (".", "a.png", "b/a.png"),
    ],
)
def test_an_image_under_another_path_is_found(tmp_path, place, named, there):
    png(tmp_path / place / there)
    write(tmp_path / place, line(named))
    with raises(UsageError, f"the image {named}", "is not in", f"{there} is there: file_name is"):
        read_entries(tmp_path)
    write(tmp_path / place, line(there))  # what the message says
    assert len(read_entries(tmp_path)) == 1
