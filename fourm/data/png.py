"""Removes metadata from PNG files: Pillow refuses valid pixels if a text chunk is large or damaged."""

import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT_BYTES = 1 << 20  # of a text chunk that is kept
_TEXTS = (b"tEXt", b"iTXt")  # the kinds that this program writes


def strip_metadata(data: bytes, keep_texts: bool = False) -> bytes:
    """A PNG without its ancillary chunks (their names begin with a lower-case letter); other data unchanged.

    keep_texts: keep text chunks with a valid checksum and at most MAX_TEXT_BYTES.
    """
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


def _is_good_text(chunk: bytes) -> bool:
    said = int.from_bytes(chunk[-4:], "big")
    return chunk[4:8] in _TEXTS and len(chunk) <= MAX_TEXT_BYTES and zlib.crc32(chunk[4:-4]) == said
