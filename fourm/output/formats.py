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
from functools import partial
from pathlib import Path
from typing import BinaryIO

from fourm.data.opening import SIGNATURE, open_file
from fourm.errors import SampleError

PIECE = 1 << 20  # bytes that are in memory at a time
MAX_JSON_BYTES = 1 << 28  # JSON is parsed whole
_MAX_HEADER = 1 << 16  # bytes of what an array's file says of it
_DTYPE = re.compile(r"[<>|=]?[biuf]([0-9]{1,2})")


class Flaw(Exception):
    """What is wrong with a file.

    is_cut: its end is missing; else its bytes are not what the format says.
    """

    def __init__(self, is_cut: bool, what: str) -> None:
        super().__init__(what)
        self.is_cut, self.what = is_cut, what


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a file of one row of tokens should hold; None: not known."""

    count: int | None = None
    vocab_size: int | None = None


def find_flaw(path: Path, tokens: Tokens | None = None) -> Flaw | None:
    """What is wrong with a file by the format of its name; SampleError for one that cannot be read."""
    check = _CHECKS.get(path.suffix.lower(), _check_any)
    try:
        with open_file(path) as file:
            check(file) if tokens is None else _check_array(file, tokens)
    except Flaw as flaw:
        return flaw
    except UnicodeDecodeError as error:
        return Flaw(error.reason == "unexpected end of data", "is not text in UTF-8")
    except OSError as error:
        raise SampleError(f"cannot be read ({error.strerror or error})") from error
    return None


def _check_any(file: BinaryIO) -> None:
    if not file.read(1):
        raise Flaw(True, "is empty")


def _check_array(file: BinaryIO, tokens: Tokens | None = None) -> None:
    """A .npy file: its header against its size. Not numpy's reader, which warns of damaged headers."""
    start = file.read(8)
    if not start.startswith(b"\x93NUMPY"[: len(start)]):
        raise Flaw(False, "is not a .npy file")
    width = 2 if start[6:7] == b"\x01" else 4
    length = int.from_bytes(file.read(width), "little")
    header = file.read(min(length, _MAX_HEADER))
    if len(start) < 8 or len(header) < min(length, _MAX_HEADER) or not header:
        raise Flaw(True, "ends within its header")
    try:
        said = ast.literal_eval(header.decode("latin-1").strip())
        dtype, shape = said["descr"], tuple(int(side) for side in said["shape"])
        bits, count = _DTYPE.fullmatch(dtype), math.prod(shape)
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        raise Flaw(False, "has no header of a .npy file") from None
    if bits is None or count < 0:
        raise Flaw(False, "does not hold numbers")
    end, size = 8 + width + length, count * int(bits[1])
    there = file.seek(0, 2) - end
    if there != size:
        what = f"has {there:,} bytes of numbers, where its header announces {size:,}"
        raise Flaw(there < size, what)
    if tokens is not None:
        file.seek(end)
        _check_tokens(file.read(PIECE), dtype.lstrip("<|="), shape, tokens)


def _check_tokens(data: bytes, dtype: str, shape: tuple[int, ...], tokens: Tokens) -> None:
    """One row of tokens, in the narrowest type that has them."""
    if dtype not in ("i2", "i4") or len(shape) != 2 or shape[0] != 1 or tokens.count not in (None, shape[1]):
        has = "one row of tokens" if tokens.count is None else f"one row of {tokens.count:,} tokens"
        raise Flaw(False, f"holds {dtype} of shape {shape}, not {has}")
    ids = [token for (token,) in struct.iter_unpack("<h" if dtype == "i2" else "<i", data)]
    least, most = min(ids, default=0), max(ids, default=0)
    if least < 0:
        raise Flaw(False, "holds a token below 0")
    if tokens.vocab_size is not None and most >= tokens.vocab_size:
        raise Flaw(False, f"holds a token beyond the vocabulary of {tokens.vocab_size:,}")
    if dtype == "i4" and most < 1 << 15:
        raise Flaw(False, "holds int32, where tokens fit into int16")


def _check_picture(file: BinaryIO) -> None:
    """A .png file: every chunk against its checksum, up to the last one."""
    start, name = file.read(len(SIGNATURE)), b""
    if start != SIGNATURE:
        raise Flaw(SIGNATURE.startswith(start), "is not a PNG picture")
    while name != b"IEND":
        head = file.read(8)
        left, name, found = int.from_bytes(head[:4]), head[4:], zlib.crc32(head[4:])
        while left and (piece := file.read(min(left, PIECE))):
            left, found = left - len(piece), zlib.crc32(piece, found)
        said = file.read(4)
        if left or len(said) < 4:
            raise Flaw(True, "ends before the picture does")
        if int.from_bytes(said) != found:
            raise Flaw(False, "has bytes that do not fit their checksum")
    if file.read(1):
        raise Flaw(False, "has bytes behind the picture")


def _check_json(file: BinaryIO) -> None:
    data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise Flaw(False, f"is more than {MAX_JSON_BYTES >> 20} MiB of JSON")
    text = data.decode()
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        raise Flaw(is_cut, "ends before its JSON does" if is_cut else "is not valid JSON") from None
    except (ValueError, RecursionError):
        raise Flaw(False, "is not valid JSON") from None


def _check_text(file: BinaryIO) -> None:
    """Text in UTF-8; a model may say nothing at all."""
    for _ in codecs.iterdecode(iter(partial(file.read, PIECE), b""), "utf-8"):
        pass


def _check_arrays(file: BinaryIO) -> None:
    """A .npz file: every member, as they are written without compression, against its checksum."""
    try:
        with zipfile.ZipFile(file) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise Flaw(False, "holds compressed arrays, which no run writes")
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, struct.error):
        raise Flaw(True, "is not a complete .npz file") from None  # its table stands at the end
    if broken is not None:
        raise Flaw(False, "has bytes that do not fit their checksum")


_CHECKS: dict[str, Callable[[BinaryIO], None]] = {
    ".npy": _check_array, ".png": _check_picture, ".json": _check_json, ".txt": _check_text,
    ".npz": _check_arrays,
}  # fmt: skip
