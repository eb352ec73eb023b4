"""Opens files of unknown origin: refuses pipes, devices, URLs, and what is larger than a limit.

Reading a pipe or a device that has the name of a file could wait forever or fill the memory. The functions
raise an OSError whose `strerror` says what was found, so that callers can report it like any other OSError.
"""

import errno
import json
import os
import re
import stat
import sys
import unicodedata
import zlib
from collections.abc import Iterator
from functools import partial
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeVar

from fourm.errors import UsageError, printable, shown
from fourm.files.copies import ensure_fetched

T = TypeVar("T")
_SPECIAL = "not a file, but a pipe, a device or a socket"
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # Windows has neither the flag nor such pipes
_FLAGS = _NONBLOCK | sum(getattr(os, name, 0) for name in ("O_NOCTTY", "O_CLOEXEC", "O_BINARY"))
_DESCRIPTOR = re.compile(r"/dev/(?:stdin|fd/([0-9]{1,9}))|/proc/self/fd/([0-9]{1,9})")
# Matches `s3://bucket/x`, but not a drive (`C:/x`), nor the file names `./s3://x` and `a:b`.
_SCHEME = re.compile(r"\s*([\w+.-]{2,}:)//")
_ENDS_LINES = ("Cc", "Zl", "Zp")  # Unicode categories of control characters and line separators
SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT_BYTES = 1 << 20  # of a text chunk that is kept
_JPEG, _SCAN = b"\xff\xd8", b"\xda"  # the start of a JPEG; the marker before its pixels
_SEGMENT = re.compile(rb"\xff+([^\xff])(..)", re.DOTALL)  # of a JPEG: its marker and its number of bytes
_DROPPED = (b"\xfe", *(bytes([marker]) for marker in range(0xE0, 0xF0)))  # comments, application segments
# Of these, segments that say what the colours are: how they begin, and their least number of bytes.
_COLOURS = {b"\xe0": (b"JFIF\0", 18), b"\xee": (b"Adobe", 16)}
_EXIF = b"Exif\0\0"  # how its segment of a JPEG begins
_TEXTS = (b"tEXt", b"iTXt")  # the kinds that this program writes


class Ready(FileIO):
    """A file whose reads raise OSError where they would block: some files below /proc block forever."""

    def readinto(self, buffer: Any, /) -> int:
        return _ready(super().readinto(buffer))

    def readall(self) -> bytes:
        return _ready(super().readall())


def real(path: Path) -> Path:
    """The path with all symbolic links resolved. Unlike `Path.resolve`, it accepts links in a circle."""
    return Path(os.path.realpath(path))


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading; one that is only listed so far is fetched first."""
    ensure_fetched(path)
    descriptor = os.open(path, _FLAGS)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return BufferedReader(Ready(descriptor))
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "not a file, but a folder", str(path))
    raise OSError(errno.EINVAL, _SPECIAL, str(path))


def no_folder(path: Path, advice: str = "") -> UsageError:
    """The error for a path that is no folder, with the end of its sentence."""
    what = "is a file, not a folder" if path.exists() else "no such folder"
    return UsageError(f"{printable(str(path))}: {what}{advice}")


def open_own(path: Path, mode: str, limit: int = sys.maxsize) -> BinaryIO:
    """Open a file of this program, binary, in mode "r", "r+", "a" or "x"; refuse links and larger files."""
    try:
        ensure_fetched(path)
        opener = partial(_open_at_once, more_flags=getattr(os, "O_NOFOLLOW", 0))
        file: BinaryIO = open(path, mode + "b", opener=opener)  # type: ignore[assignment] # noqa: SIM115
    except OSError as error:
        if path.is_symlink():
            raise OSError(errno.ELOOP, "a link, and none is followed here", str(path)) from error
        raise
    told = os.fstat(file.fileno())
    is_file = stat.S_ISREG(told.st_mode)
    if is_file and told.st_size <= limit:
        return file
    file.close()
    raise _too_large(path, limit) if is_file else OSError(errno.EINVAL, _SPECIAL, str(path))


def open_text(path: Path) -> TextIO:
    """Open a file or pipe to append text to; a pipe without a reader is refused, not waited for."""
    return open(path, "a", encoding="utf-8", opener=_open_at_once)


def read_bytes(path: Path, limit: int) -> bytes:
    """All bytes of a file or of a stream that this process inherited; more than `limit` bytes are refused.

    Inherited streams are `/dev/stdin` and the paths that a shell puts in the place of `<(command)`.
    """
    match = _DESCRIPTOR.fullmatch(str(path))
    number = int(match[1] or match[2] or 0) if match else -1
    # A regular file is opened again: a descriptor can be read only once.
    is_stream = match is not None and not stat.S_ISREG(os.fstat(number).st_mode)
    with os.fdopen(os.dup(number), "rb") if is_stream else open_file(path) as file:
        size = os.fstat(file.fileno()).st_size  # 0 for streams, and for the files of /proc
        data = file.read(size or limit + 1) if size <= limit else b""
    if max(size, len(data)) > limit:
        raise _too_large(path, limit)
    return data


def parse_json_lines(
    text: str, where: str, skip_damaged: bool = False, start: int = 1
) -> Iterator[tuple[int, Any]]:
    """The number and the value of each line that is not blank.

    UsageError names a line that is not JSON. skip_damaged: leave it out; a killed process may have begun it.
    start: number of the first line.
    """
    for number, line in enumerate(text.split("\n"), start=start):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=with_single_keys)
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits
            if skip_damaged:
                continue
            reason = error.msg if isinstance(error, json.JSONDecodeError) else shown(error)
            raise UsageError(f"{where}: line {number} is not JSON ({reason})") from error
        yield number, value


def with_single_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON. ValueError for a key that is given twice, whose value is not known."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key in found if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"{twice[:50]!r} stands in one object twice")
    return found


def local_path(text: str | os.PathLike[str]) -> Path:
    """The path in an option or argument. UsageError for a URL, and for an empty text.

    An empty text is often an unset variable of a script, and must not stand for the working folder.
    """
    if not (name := path_text(text)):
        raise UsageError("the name of a file or folder is empty")
    path = Path(local_name(name))
    try:
        os.lstat(path)
    except ValueError:  # a character that no name has: nothing is there
        pass
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # which pathlib would raise wherever the path is looked at
            raise UsageError(f"{shown(path, 200)}: cannot be read ({error.strerror})") from error
    return path


def path_text(given: object) -> str:
    """The text of a path. UsageError for what is neither text nor a path."""
    text = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(text, str):
        raise UsageError(f"{shown(repr(given))} is given where the name of a file or folder belongs")
    return text


def output_path(text: str | os.PathLike[str]) -> Path:
    """The path of an output folder; it must fit on one line, because commands print it for a pipe."""
    path = local_path(text)
    if str(path).isspace():
        raise UsageError("the name of an output folder is blank")
    if any(unicodedata.category(character) in _ENDS_LINES for character in str(path)):
        what = "holds no line ends or control characters"
        raise UsageError(f"{printable(str(path))}: the name of an output folder {what}")
    if not is_encodable(str(path)):
        raise UsageError(f"{printable(str(path))}: no folder can have this name")
    return path


def local_name(text: str) -> str:
    """The text of an option or argument that may be a path. UsageError for a URL."""
    if problem := scheme_problem(text):
        raise UsageError(f"{text.strip()}: {problem}")
    return text


def is_encodable(name: str) -> bool:
    """Whether a text can be the name of a file: some that programs make cannot, as half of a character."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def scheme_problem(text: str) -> str:
    """An error message for a path that is a URL (`s3://bucket/x`); "" for other text."""
    scheme = _SCHEME.match(text)
    return f"{scheme[1]}// is not supported; give a path on this machine" if scheme else ""


def strip_metadata(data: bytes, keep_texts: bool = False) -> bytes:
    """A PNG without its ancillary chunks (their names begin with a lower-case letter), or a JPEG without its
    application segments and comments; other data unchanged.

    keep_texts: keep text chunks of a PNG with a valid checksum and at most MAX_TEXT_BYTES.
    """
    if data.startswith(SIGNATURE):
        return b"".join(_png_parts(data, keep_texts))
    return b"".join(_jpeg_parts(data)) if data.startswith(_JPEG) else data


def find_exif(data: bytes) -> bytes:
    """The EXIF tags of a JPEG, PNG or WebP, as a TIFF header and its directories; b"" if there are none."""
    if data.startswith(SIGNATURE):
        found = (chunk[8:-4] for chunk in _png_chunks(data) if chunk[4:8] == b"eXIf")
    elif data.startswith(_JPEG):
        found = (part[4:] for part, _ in _jpeg_segments(data) if part.startswith(_EXIF, 4))
    else:
        found = (chunk for name, chunk in _riff_chunks(data) if name == b"EXIF")
    return next(found, b"").removeprefix(_EXIF)


def _ready(result: T | None) -> T:
    if result is None:
        raise OSError(errno.EAGAIN, "not a file, but something that has to be waited for")
    return result


def _open_at_once(path: str, flags: int, more_flags: int = 0) -> int:
    descriptor = os.open(path, flags | more_flags | _NONBLOCK, 0o666)
    if _NONBLOCK:
        os.set_blocking(descriptor, True)
    return descriptor


def _too_large(path: Path, limit: int) -> OSError:
    size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit >> 10} KiB"
    return OSError(errno.EFBIG, f"more than {size}", str(path))


def _png_chunks(data: bytes) -> Iterator[bytes]:
    """The chunks of a PNG: length, name, contents and checksum; the last one may be truncated."""
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at:end]
        at = end


def _png_parts(data: bytes, keep_texts: bool) -> Iterator[bytes]:
    """The signature and the chunks that are kept."""
    yield SIGNATURE
    for chunk in _png_chunks(data):
        is_critical = not chunk[4] & 0x20
        is_text = chunk[4:8] in _TEXTS and len(chunk) <= MAX_TEXT_BYTES
        if is_critical or (keep_texts and is_text and zlib.crc32(chunk[4:-4]).to_bytes(4) == chunk[-4:]):
            yield chunk


def _jpeg_segments(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Each segment of a JPEG before its pixels (mark, length and contents), and where it ends."""
    at = len(_JPEG)
    while (match := _SEGMENT.match(data, at)) and match[1] != _SCAN:
        at = match.start(2) + int.from_bytes(match[2], "big")
        yield data[match.start(1) - 1 : at], at


def _jpeg_parts(data: bytes) -> Iterator[bytes]:
    """The parts of a JPEG that its pixels need; what is malformed is left to the decoder."""
    yield _JPEG
    at = len(_JPEG)
    for segment, end in _jpeg_segments(data):
        marker, at = segment[1:2], end
        start, least = _COLOURS.get(marker, (b"", sys.maxsize))
        if marker not in _DROPPED or (segment.startswith(start, 4) and len(segment) >= least):
            yield segment
    yield data[at:]


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and contents of each chunk of a WebP; nothing of other data."""
    at = 12
    while data.startswith(b"RIFF") and data[8:12] == b"WEBP" and at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
