"""Whether a file is complete and valid by its format."""

import ast
import io
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fourm.files.opening import SIGNATURE, read_bytes

MAX_BYTES = 1 << 28  # of a file that is checked; it is read whole
_MAX_HEADER = 1 << 16  # bytes of the header of a .npy file
_DTYPE = re.compile(r"[<>|=]?[biuf]([0-9]{1,2})")


@dataclass(eq=False)
class Flaw(Exception):
    """What is wrong with a file."""

    is_cut: bool  # its end is missing; else its bytes are not what the format says
    what: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a file of one row of tokens should hold; None: not known."""

    count: int | None = None
    vocab_size: int | None = None


def find_flaw(path: Path, tokens: Tokens | None = None) -> Flaw | None:
    """What is wrong with a file by the format of its name; OSError for one that cannot be read."""
    try:
        data = read_bytes(path, MAX_BYTES)
        if tokens is not None:
            _check_tokens(data, tokens)
        elif check := _CHECKS.get(path.suffix.lower()):
            check(data)
        elif not data:
            return Flaw(True, "is empty")
    except Flaw as flaw:
        return flaw
    except UnicodeDecodeError as error:
        return Flaw(error.reason == "unexpected end of data", "is not text in UTF-8")
    return None


def _check_tokens(data: bytes, tokens: Tokens) -> None:
    """A .npy file of one row of tokens, in the narrowest type that has them."""
    descr, shape, numbers = _read_array(data)
    kind = descr.lstrip("<|=")
    if kind not in ("i2", "i4") or len(shape) != 2 or shape[0] != 1 or tokens.count not in (None, shape[1]):
        has = "one row of tokens" if tokens.count is None else f"one row of {tokens.count:,} tokens"
        raise Flaw(False, f"holds {descr} of shape {shape}, not {has}")
    ids = [number for (number,) in struct.iter_unpack("<h" if kind == "i2" else "<i", numbers)]
    if min(ids, default=0) < 0:
        raise Flaw(False, "holds a token below 0")
    most = max(ids, default=0)
    if tokens.vocab_size is not None and most >= tokens.vocab_size:
        raise Flaw(False, f"holds a token beyond the vocabulary of {tokens.vocab_size:,}")
    if kind == "i4" and most < 1 << 15:
        raise Flaw(False, "holds int32, where tokens fit into int16")


def _read_array(data: bytes) -> tuple[str, tuple[int, ...], bytes]:
    """Type, shape and numbers of a .npy file. Not numpy's reader, which warns of damaged headers."""
    if not data.startswith(b"\x93NUMPY"[: len(data)]):
        raise Flaw(False, "is not a .npy file")
    start = 10 if data[6:7] == b"\x01" else 12
    end = start + int.from_bytes(data[8:start], "little")
    if len(data) < end or end == start:
        raise Flaw(True, "ends within its header")
    try:
        said = ast.literal_eval(data[start : min(end, _MAX_HEADER)].decode("latin-1").strip())
        bits, shape = _DTYPE.fullmatch(said["descr"]), tuple(int(side) for side in said["shape"])
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        raise Flaw(False, "has no header of a .npy file") from None
    if bits is None or min(shape, default=0) < 0:
        raise Flaw(False, "does not hold numbers")
    size, there = math.prod(shape) * int(bits[1]), len(data) - end
    if there != size:
        raise Flaw(there < size, f"has {there:,} bytes of numbers, where its header announces {size:,}")
    return said["descr"], shape, data[end:]


def _check_picture(data: bytes) -> None:
    """A .png file: every chunk against its checksum, up to the last one."""
    if not data.startswith(SIGNATURE):
        raise Flaw(SIGNATURE.startswith(data), "is not a PNG picture")
    start, name = len(SIGNATURE), b""
    while name != b"IEND":
        name, end = data[start + 4 : start + 8], start + 8 + int.from_bytes(data[start : start + 4])
        if len(data) < end + 4:
            raise Flaw(True, "ends before the picture does")
        if zlib.crc32(data[start + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise Flaw(False, "has bytes that do not fit their checksum")
        start = end + 4
    if len(data) > start:
        raise Flaw(False, "has bytes behind the picture")


def _check_json(data: bytes) -> None:
    text = data.decode()
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        raise Flaw(is_cut, "ends before its JSON does" if is_cut else "is not valid JSON") from None
    except (ValueError, RecursionError):
        raise Flaw(False, "is not valid JSON") from None


def _check_arrays(data: bytes) -> None:
    """A .npz file: every member, as they are written without compression, against its checksum."""
    stream = io.BytesIO(data)
    try:
        with zipfile.ZipFile(stream) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise Flaw(False, "holds compressed arrays, which no run writes")
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, struct.error):
        raise Flaw(True, "is not a complete .npz file") from None  # its table stands at the end
    if broken is not None:
        raise Flaw(False, "has bytes that do not fit their checksum")


_CHECKS: dict[str, Callable[[bytes], object]] = {
    ".npy": _read_array, ".png": _check_picture, ".json": _check_json, ".npz": _check_arrays,
    ".txt": bytes.decode,  # a model may say nothing at all
}  # fmt: skip
