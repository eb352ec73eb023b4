"""Whether a file is complete and valid by its format. It is read once, a piece at a time."""

import ast
import codecs
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fourm.data.opening import open_file
from fourm.errors import SampleError

PIECE = 1 << 20  # bytes that are in memory at a time
MAX_JSON_BYTES = 1 << 28  # JSON is parsed whole
_MAX_HEADER = 1 << 16  # bytes of what an array's file says of it
_PNG = b"\x89PNG\r\n\x1a\n"
_DTYPE = re.compile(r"[<>|=]?[biuf]([0-9]{1,2})")


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong with a file."""

    is_cut: bool  # its end is missing; else its bytes are not what the format says
    what: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a file of one row of tokens should hold; None: not known."""

    count: int | None = None
    vocab_size: int | None = None


def find_flaw(path: Path, tokens: Tokens | None = None) -> Flaw | None:
    """What is wrong with a file by the format of its name; SampleError for one that cannot be read."""
    try:
        with open_file(path) as file:
            flaw = _CHECKS.get(path.suffix.lower(), _check_any)(file)
            return _check_tokens(file, tokens) if tokens is not None and flaw is None else flaw
    except OSError as error:
        raise SampleError(f"cannot be read ({error.strerror or error})") from error


def _check_any(file: BinaryIO) -> Flaw | None:
    return None if file.read(1) else Flaw(True, "is empty")


def _check_tokens(file: BinaryIO, tokens: Tokens) -> Flaw | None:
    """A complete .npy file of one row of tokens, in the narrowest type that has them."""
    file.seek(0)
    header = _read_header(file)
    if isinstance(header, Flaw):
        return header
    kind, shape = header.descr.lstrip("<|="), header.shape
    if kind not in ("i2", "i4") or len(shape) != 2 or shape[0] != 1 or tokens.count not in (None, shape[1]):
        has = "one row of tokens" if tokens.count is None else f"one row of {tokens.count:,} tokens"
        return Flaw(False, f"holds {header.descr} of shape {shape}, not {has}")
    data = file.read(PIECE)
    ids = struct.unpack(f"<{len(data) // int(kind[1])}{'h' if kind == 'i2' else 'i'}", data)
    if min(ids, default=0) < 0:
        return Flaw(False, "holds a token below 0")
    if tokens.vocab_size is not None and max(ids, default=0) >= tokens.vocab_size:
        return Flaw(False, f"holds a token beyond the vocabulary of {tokens.vocab_size:,}")
    is_narrow = kind == "i2" or max(ids, default=0) >= 1 << 15
    return None if is_narrow else Flaw(False, "holds int32, where tokens fit into int16")


class _Header(NamedTuple):
    descr: str
    shape: tuple[int, ...]
    num_bytes: int  # of all numbers
    end: int  # where they begin


def _check_array(file: BinaryIO) -> Flaw | None:
    """A .npy file: its header against its size."""
    header = _read_header(file)
    if isinstance(header, Flaw):
        return header
    size, there = header.num_bytes, file.seek(0, 2) - header.end
    what = f"has {there:,} bytes of numbers, where its header announces {size:,}"
    return None if there == size else Flaw(there < size, what)


def _read_header(file: BinaryIO) -> _Header | Flaw:
    """Not numpy's reader, which warns of damaged headers, or raises other errors than a ValueError."""
    start = file.read(8)
    if not start.startswith(b"\x93NUMPY"[: len(start)]):
        return Flaw(False, "is not a .npy file")
    width = 2 if start[6:7] == b"\x01" else 4
    length = int.from_bytes(file.read(width), "little")
    header = file.read(min(length, _MAX_HEADER))
    if len(start) < 8 or len(header) < min(length, _MAX_HEADER) or not header:
        return Flaw(True, "ends within its header")
    try:
        said = ast.literal_eval(header.decode("latin-1").strip())
        bits, shape = _DTYPE.fullmatch(said["descr"]), tuple(int(side) for side in said["shape"])
        size = math.prod(shape) * int(bits[1] if bits else -1)
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        return Flaw(False, "has no header of a .npy file")
    if bits is None or size < 0:
        return Flaw(False, "does not hold numbers")
    return _Header(said["descr"], shape, size, 8 + width + length)


def _check_picture(file: BinaryIO) -> Flaw | None:
    """A .png file: every chunk against its checksum, up to the last one."""
    start, name = file.read(len(_PNG)), b""
    if start != _PNG:
        return Flaw(_PNG.startswith(start), "is not a PNG picture")
    while name != b"IEND":
        head = file.read(8)
        if len(head) < 8:
            return Flaw(True, "ends before the picture does")
        (left, name), found = struct.unpack(">I4s", head), zlib.crc32(head[4:])
        while left and (piece := file.read(min(left, PIECE))):
            left, found = left - len(piece), zlib.crc32(piece, found)
        said = file.read(4)
        if left or len(said) < 4:
            return Flaw(True, "ends before the picture does")
        if said != found.to_bytes(4, "big"):
            return Flaw(False, "has bytes that do not fit their checksum")
    return Flaw(False, "has bytes behind the picture") if file.read(1) else None


def _check_json(file: BinaryIO) -> Flaw | None:
    data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        return Flaw(False, f"is more than {MAX_JSON_BYTES >> 20} MiB of JSON")
    try:
        json.loads(data)
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated")
        return Flaw(is_cut, "ends before its JSON does" if is_cut else "is not valid JSON")
    except UnicodeDecodeError as error:
        return Flaw(error.reason == "unexpected end of data", "is not valid JSON")
    except (ValueError, RecursionError):
        return Flaw(False, "is not valid JSON")
    return None


def _check_text(file: BinaryIO) -> Flaw | None:
    """Text in UTF-8; a model may say nothing at all."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while piece := file.read(PIECE):
            decoder.decode(piece)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        return Flaw(error.reason == "unexpected end of data", "is not text in UTF-8")
    return None


def _check_arrays(file: BinaryIO) -> Flaw | None:
    """A .npz file: every member, as they are written without compression, against its checksum."""
    try:
        with zipfile.ZipFile(file) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                return Flaw(False, "holds compressed arrays, which no run writes")
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, struct.error):
        return Flaw(True, "is not a complete .npz file")  # its table stands at the end
    return Flaw(False, "has bytes that do not fit their checksum") if broken is not None else None


_CHECKS: dict[str, Callable[[BinaryIO], Flaw | None]] = {
    ".npy": _check_array, ".png": _check_picture, ".json": _check_json, ".txt": _check_text,
    ".npz": _check_arrays,
}  # fmt: skip
