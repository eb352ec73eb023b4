"""Removes metadata from PNG and JPEG files: Pillow refuses valid pixels beside large or damaged metadata."""

import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT_BYTES = 1 << 20  # of a text chunk that is kept
_JPEG, _SCAN = b"\xff\xd8", 0xDA  # the start of a JPEG; the marker before its pixels
_COMMENT, _APPLICATION = 0xFE, range(0xE0, 0xF0)
# Segments that say what the colours are: their marker, how they begin, and their least number of bytes.
_COLOURS = ((0xE0, b"JFIF\0", 18), (0xEE, b"Adobe", 16))
_TEXTS = (b"tEXt", b"iTXt")  # the kinds that this program writes


def strip_metadata(data: bytes, keep_texts: bool = False) -> bytes:
    """A PNG without its ancillary chunks (their names begin with a lower-case letter), or a JPEG without its
    application segments and comments; other data unchanged.

    keep_texts: keep text chunks of a PNG with a valid checksum and at most MAX_TEXT_BYTES.
    """
    if data.startswith(_JPEG):
        return b"".join(_segments(data))
    if not data.startswith(SIGNATURE):
        return data
    kept = [SIGNATURE]
    for chunk in _chunks(data):
        is_critical = not chunk[4] & 0x20
        if is_critical or (keep_texts and _is_good_text(chunk)):
            kept.append(chunk)
    return b"".join(kept)


def _chunks(data: bytes) -> Iterator[bytes]:
    """The chunks, each with its length, name and checksum; the last one may be truncated."""
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at:end]
        at = end


def _segments(data: bytes) -> Iterator[bytes]:
    """The parts of a JPEG that its pixels need; what is malformed is left to the decoder."""
    yield _JPEG
    at = len(_JPEG)
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data) and data[at + 1] != _SCAN:
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xFF:  # bytes may be filled up before a marker
            at += 1
            continue
        segment = data[at:end]
        is_colour = any(
            (marker, segment[4 : 4 + len(start)]) == (which, start) and len(segment) >= least
            for which, start, least in _COLOURS
        )
        if is_colour or (marker not in _APPLICATION and marker != _COMMENT):
            yield segment
        at = end
    yield data[at:]


def _is_good_text(chunk: bytes) -> bool:
    said = int.from_bytes(chunk[-4:], "big")
    return chunk[4:8] in _TEXTS and len(chunk) <= MAX_TEXT_BYTES and zlib.crc32(chunk[4:-4]) == said
