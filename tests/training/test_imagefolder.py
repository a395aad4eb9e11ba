"""Folders of captioned pictures: what is read, how pictures are cut, and every way to be wrong."""

import json
import random
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sdpipe import UsageError
from sdpipe.cli.app import main
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


def test_a_picture_may_have_several_captions_and_what_has_none_is_left_out(tmp_path):
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
    picture = Image.new(mode, (40, 40), first, **options)
    picture.paste(second, (0, 20, 40, 40))
    return picture


def rgba(folder):
    halves("RGBA", (255, 0, 0, 255), (0, 0, 255, 0)).save(folder / "x.png")
    return (255, 0, 0), (255, 255, 255)


def half_transparent(folder):
    halves("LA", (0, 255), (0, 128)).save(folder / "x.png")
    return (0, 0, 0), (127, 127, 127)


def palette(folder):
    picture = halves("P", 1, 0)
    picture.putpalette([9, 9, 9, 0, 128, 0])
    picture.save(folder / "x.png", transparency=0)
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
def test_every_kind_of_picture_is_upright_rgb_on_white(tmp_path, kind):
    upper, lower = kind(tmp_path)
    (entry,) = read_entries(write(tmp_path, line("x.png")))
    picture = imagefolder.read_picture(entry, 16)
    assert (picture.mode, picture.size) == ("RGB", (16, 16))
    for y, expected in ((3, upper), (12, lower)):
        assert np.abs(np.subtract(picture.getpixel((8, y)), expected)).max() <= 1


def test_a_picture_that_is_turned_by_a_quarter_is_cut_where_one_sees_it(tmp_path):
    picture = Image.new("RGB", (72, 24), "blue")
    picture.paste("red", (24, 0, 48, 24))
    picture.save(tmp_path / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "tall.jpg", exif=exif, quality=95, subsampling=0)
    for entry in read_entries(write(tmp_path, line("wide.png"), line("tall.jpg"))):
        square = np.asarray(imagefolder.read_picture(entry, 8)).astype(int)
        assert (abs(square[1:-1, 1:-1] - [255, 0, 0]) < 6).all(), entry.name  # the middle third


def test_prepared_pictures_are_those_of_the_folder(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(3):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"{k}.png")
    entries = read_entries(write(tmp_path, *(line(f"{k}.png", f"no. {k}") for k in range(3))))
    pictures, heard = ImageFolder(entries, 16, tmp_path / "pictures.rgb"), []
    pictures.prepare(lambda done, total: heard.append((done, total)))
    assert heard == [(1, 3), (2, 3), (3, 3)]
    assert (len(pictures), pictures.size) == (3, 16)
    for k in range(3):
        with Image.open(tmp_path / f"{k}.png") as original:
            assert pictures.picture(k).tobytes() == original.tobytes()
        assert pictures.caption(k) == pictures.reworded(k, random.Random(0)) == f"no. {k}"
    assert pictures.captions() == ["no. 0", "no. 1", "no. 2"]
    seen = [pictures.any_picture(random.Random(seed)) for seed in (1, 2, 1)]
    assert {p.size for p in seen} == {(16, 16)}
    assert seen[0].tobytes() == seen[2].tobytes() != seen[1].tobytes()

    pictures.prepare(lambda done, total: pytest.fail("it was read again"))
    before = pictures.fingerprint()
    assert pictures.fingerprint() == before
    png(tmp_path / "1.png", (16, 16))
    after = pictures.fingerprint()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]


def no_folder(folder):
    return "is not a folder"


def no_metadata(folder):
    png(folder / "1.png")
    return "has no metadata.jsonl"


def both_metadata(folder):
    write(folder, line("1.png"))
    write(folder, "file_name,text", name="metadata.csv")
    return "has both metadata.jsonl and metadata.csv"


def no_lines(folder):
    write(folder, "")
    return "metadata.jsonl names no picture"


def no_rows(folder):
    write(folder, "file_name,text", name="metadata.csv")
    return "metadata.csv names no picture"


def no_json(folder):
    write(folder, line("1.png"), "{'file_name'}")
    return "metadata.jsonl, line 2 is not JSON"


def no_object(folder):
    write(folder, "[]")
    return "line 1 is no object"


def no_utf_8(folder):
    write(folder, "")
    (folder / "metadata.jsonl").write_bytes(b'{"file_name": "\xff"}')
    return "metadata.jsonl is not UTF-8"


def no_name(folder):
    write(folder, line("1.png"), "", {"image": "1.png", "text": "x"})
    return "line 3 has no file_name, only image, text"


def no_caption(folder):
    write(folder, {"file_name": "1.png", "caption": "x"})
    return "line 1 has no text, only file_name, caption"


def empty_caption(folder):
    write(folder, line("1.png", "  "))
    return "line 1 has text=' '"


def a_number_for_a_caption(folder):
    write(folder, line("1.png", 7))
    return "line 1 has text=7"


def half_a_letter(folder):
    write(folder, '{"file_name": "1.png", "text": "\\ud800"}')
    return "not UTF-8"


def short_row(folder):
    write(folder, "file_name,text", "1.png", name="metadata.csv")
    return "metadata.csv, line 2 has text=None"


def missing_pictures(folder):
    png(folder / "1.png")
    write(folder, line("1.png"), line("2.png"), line("3.png"), line("4.png"))
    return "line 2: the picture 2.png is not in .*, nor are 2 more"


def outside(folder):
    png(folder.parent / "1.png")
    write(folder, line("../1.png"))
    return r"line 1: the picture \.\./1\.png is outside"


def absolute(folder):
    path = png(folder.parent / "1.png")
    write(folder, line(str(path)))
    return "is outside"


@pytest.mark.parametrize(
    "wrong",
    [
        *(no_folder, no_metadata, both_metadata, no_lines, no_rows, no_json, no_object, no_utf_8),
        *(no_name, no_caption, empty_caption, a_number_for_a_caption, half_a_letter, short_row),
        *(missing_pictures, outside, absolute),
    ],
)
def test_what_is_wrong_with_a_folder_is_told_in_a_sentence(tmp_path, capsys, wrong):
    folder = tmp_path / "data"
    message = wrong(folder)
    assert main(["train", "--data", str(folder), "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"sdpipe: error: [^\n]*[.?]\n", err), err
    assert re.search(message, err), err
    assert not (tmp_path / "out").exists()


def truncated(path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:900])
    return "cannot be read: image file is truncated"


def no_picture(path):
    path.write_text("not a picture")
    return "cannot be read: it is damaged, or of none of the formats PNG, JPEG"


def bomb(path):
    """A PNG of a few bytes that says it has 40,000 x 40,000 pixels."""
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
    return "has more than 150,000,000 pixels"


def large(path):
    png(path, (13_000, 12_000), 0, "1")
    return "has more than 150,000,000 pixels"


def floats(path):
    Image.new("F", (8, 8)).save(path, "TIFF")
    return "cannot be read: its numbers have no agreed range"


@pytest.mark.parametrize("wrong", [truncated, no_picture, bomb, large, floats])
def test_a_picture_that_cannot_be_read_is_named(tmp_path, wrong):
    message = wrong(tmp_path / "2.png")
    png(tmp_path / "1.png")
    entries = read_entries(write(tmp_path, line("1.png"), line("2.png")))
    with pytest.raises(UsageError, match=rf"line 2: the picture 2\.png {message}"):
        ImageFolder(entries, 8, tmp_path / "pictures.rgb").prepare()
    assert not list(tmp_path.glob("pictures*"))
