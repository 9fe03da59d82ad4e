"""The mark that says a picture or video was made by a network, written into files and read back. Torch-free.

A sentence for people, and for programs the IPTC's digital source type, which photo services and browsers look for: in
XMP where the format has a place for it (PNG, MP4), else as a tag (Matroska). The mark is a statement, no protection:
whoever re-encodes a file can lose it or take it out.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Final
from xml.sax.saxutils import escape

SYNTHETIC_COMMENT: Final = "Synthesised by fastv2v: these pictures were made by a network and show no real event."
"""What the mark says where nothing is known of the model."""
SOURCE_TYPE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's term for media made by a trained model."""

_PNG_START: Final = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT, _PNG_XMP = b"Comment", b"XML:com.adobe.xmp"
_XMP_BOX: Final = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
"""The identifier of XMP in a ``uuid`` box of MP4 files."""
_XMP: Final = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    "<Iptc4xmpExt:DigitalSourceType>{source}</Iptc4xmpExt:DigitalSourceType><dc:description><rdf:Alt>"
    '<rdf:li xml:lang="x-default">{text}</rdf:li></rdf:Alt></dc:description></rdf:Description></rdf:RDF></x:xmpmeta>'
    '<?xpacket end="r"?>'
)


def mark_text(made_by: str = "") -> str:
    """The sentence of the mark.

    Args:
        made_by: the model, as its bundle or run is called; empty where it is not known.

    Returns:
        One line; control characters of the name become spaces.
    """
    name = " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", made_by).split())
    return SYNTHETIC_COMMENT.replace("fastv2v:", f"fastv2v ({name}):") if name else SYNTHETIC_COMMENT


def is_mark(text: str) -> bool:
    """Whether a comment is one of ours."""
    return text.startswith("Synthesised by fastv2v")


def mp4_box(text: str) -> bytes:
    """An XMP box, to follow the last box of an MP4 file; no offset in the file changes.

    Args:
        text: what ``mark_text`` gave.
    """
    body = _XMP_BOX + _xmp(text)
    return struct.pack(">I4s", 8 + len(body), b"uuid") + body


def mark_png(png: bytes, text: str) -> bytes:
    """A PNG file with the mark behind its header: a comment and XMP, both as ``iTXt`` in UTF-8.

    Args:
        png: the file as an encoder gave it.
        text: what ``mark_text`` gave.
    """
    header = len(_PNG_START) + 8 + 13 + 4  # IHDR is the first chunk and always of this length
    chunks = b"".join(_text_chunk(key, value) for key, value in ((_PNG_TEXT, text.encode()), (_PNG_XMP, _xmp(text))))
    return png[:header] + chunks + png[header:]


def png_mark(png: bytes) -> str | None:
    """The mark of a PNG file; None where it has none."""
    for kind, data in _png_chunks(png):
        key, _, rest = data.partition(b"\x00")
        if kind == b"iTXt" and key == _PNG_TEXT and rest[:4] == bytes(4):
            text = rest[4:].decode(errors="replace")
            if is_mark(text):
                return text
    return None


def _xmp(text: str) -> bytes:
    return _XMP.format(source=SOURCE_TYPE, text=escape(text)).encode()


def _text_chunk(key: bytes, value: bytes) -> bytes:
    """An uncompressed ``iTXt`` chunk without language: key, four zero bytes, text."""
    body = b"iTXt" + key + bytes(5) + value
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def _png_chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of every whole chunk."""
    at = len(_PNG_START) if png.startswith(_PNG_START) else len(png)
    while at + 12 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        yield kind, png[at + 8 : at + 8 + length]
        at += 12 + length
