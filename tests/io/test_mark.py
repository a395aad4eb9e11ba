"""The mark of a machine-made image, as other programs read it."""

import json
import shutil
import subprocess
from xml.etree import ElementTree

import pytest
from PIL import Image
from support.metadata import our_metadata, sample_image

from sdpipe.io import png
from sdpipe.io.mark import COMPOSITE, GENERATED, find_term, term_for, to_xmp
from sdpipe.io.pixels import pixels_sha256

SUFFIXES = pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])

# Of IPTC's list of digital source types, https://cv.iptc.org/newscodes/digitalsourcetype/
URI = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def xmp_of(path):
    """The property by its full name, with Pillow and an XML parser alone."""
    with Image.open(path) as image:
        xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    if xmp is None:
        return None
    rdf = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
    (description,) = ElementTree.fromstring(xmp).iter(f"{rdf}Description")
    return description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")


@SUFFIXES
def test_the_mark_stands_beside_the_metadata_and_alone(tmp_path, suffix):
    image, metadata = sample_image(), our_metadata()
    marked = png.save(image, tmp_path / f"a{suffix}", metadata, mark=GENERATED)
    alone = png.save(image, tmp_path / f"b{suffix}", mark=COMPOSITE)
    neither = png.save(image, tmp_path / f"c{suffix}")
    assert xmp_of(marked) == URI
    assert png.read(marked) == metadata
    assert xmp_of(alone) == URI.replace("trained", "compositeWithTrained")
    assert png.read(alone) == {}
    assert (xmp_of(neither), png.read(neither)) == (None, {})
    with Image.open(marked) as a, Image.open(neither) as b:
        assert pixels_sha256(a) == pixels_sha256(b)


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="needs exiftool")
def test_exiftool_reads_it(tmp_path):
    for suffix in (".png", ".jpg", ".webp"):
        png.save(sample_image(), tmp_path / f"x{suffix}", our_metadata("é 日本"), mark=GENERATED)
    tags = ["-XMP-iptcExt:DigitalSourceType", "-Warning", "-Error"]
    found = json.loads(subprocess.check_output(["exiftool", "-j", *tags, tmp_path]))
    assert [set(each) for each in found] == [{"SourceFile", "DigitalSourceType"}] * 3
    assert {each["DigitalSourceType"] for each in found} == {URI}


def test_the_term_of_an_image():
    assert term_for(None) == GENERATED
    assert term_for({"name": "a.png"}) == COMPOSITE


@pytest.mark.parametrize("term", [GENERATED, COMPOSITE])
def test_a_term_is_found_in_any_programs_xmp(term):
    assert find_term(to_xmp(term)) == term
    scheme = f"https://cv.iptc.org/newscodes/digitalsourcetype/{term}"
    assert find_term(f"<Iptc4xmpExt:DigitalSourceType>{scheme}</...>") == term
    assert find_term("<x:xmpmeta/>") is None
