"""The mark of an image that a model made: XMP with IPTC's Digital Source Type.

IPTC's photo metadata standard keeps it in the property `Iptc4xmpExt:DigitalSourceType`, as a URI of
https://cv.iptc.org/newscodes/digitalsourcetype/. Article 50 of the EU's AI Act asks that machines
can tell such images.
"""

import re

GENERATED = "trainedAlgorithmicMedia"
COMPOSITE = "compositeWithTrainedAlgorithmicMedia"
"""IPTC: modified with generative AI, such as by inpainting or outpainting."""

TERMS = "http://cv.iptc.org/newscodes/digitalsourcetype/"
PNG_XMP = "XML:com.adobe.xmp"
"""The name of the text chunk with XMP in a PNG."""

_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    Iptc4xmpExt:DigitalSourceType="{uri}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""
_TERM = re.compile(re.escape(TERMS).replace("http:", "https?:") + r"(\w{1,60})")


def term_for(init_image: object, wanted: bool = True) -> str | None:
    """The term for an image that was drawn from another one, or from text alone, which is None.

    wanted: None where the file is to say nothing of its source.
    """
    if not wanted:
        return None
    return GENERATED if init_image is None else COMPOSITE


def to_xmp(term: str) -> str:
    """An XMP packet that says the term, in UTF-8 when it is encoded."""
    return _XMP.format(uri=TERMS + term)


def find_term(xmp: str) -> str | None:
    """The term that an XMP packet says, whichever program wrote it; None where it says none."""
    match = _TERM.search(xmp)
    return match and match[1]
