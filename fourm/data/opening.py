"""Opens files, and refuses pipes, devices and files that are larger than a limit.

Reading a pipe or a device that has the name of a file could wait forever or fill the memory. The functions
raise an OSError whose `strerror` says what was found, so that callers can report it like any other OSError.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from io import BufferedReader, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO, TypeVar

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

T = TypeVar("T")

# Windows has only the last one.
_WANTED = ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY")
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in _WANTED)
_DESCRIPTOR = re.compile(r"/dev/(?:(stdin)|fd/([0-9]{1,9}))|/proc/self/fd/([0-9]{1,9})")


class Ready(FileIO):
    """A file that is read without waiting; some files below /proc would block a reader forever."""

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read into the buffer; OSError if that would block."""
        return _ready(super().readinto(buffer))

    def readall(self) -> bytes:
        """Read to the end; OSError if that would block."""
        return _ready(super().readall())


def real(path: Path) -> Path:
    """The path with all symbolic links resolved. Unlike `Path.resolve`, it accepts links in a circle."""
    return Path(os.path.realpath(path))


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading."""
    descriptor = os.open(path, _FLAGS)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return BufferedReader(Ready(descriptor))
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "not a file, but a folder", str(path))
    raise OSError(errno.EINVAL, "not a file, but a pipe, a device or a socket", str(path))


def open_own(path: Path, mode: str, limit: int | None = None) -> BinaryIO:
    """Open a file that only this program writes, in mode "r", "r+", "a" or "x" (all binary); refuse a link.

    limit: bytes; a larger file is refused.
    """
    try:
        file: BinaryIO = open(path, mode + "b", opener=_open_own)  # type: ignore[assignment] # noqa: SIM115
    except OSError as error:
        if path.is_symlink():
            raise OSError(errno.ELOOP, "a link, and none is followed here", str(path)) from error
        raise
    told = os.fstat(file.fileno())
    if stat.S_ISREG(told.st_mode) and (limit is None or told.st_size <= limit):
        return file
    file.close()
    if stat.S_ISREG(told.st_mode):
        raise _too_large(path, limit or 0)
    raise OSError(errno.EINVAL, "not a file, but a pipe, a device or a socket", str(path))


def open_text(path: Path) -> TextIO:
    """Open a file or pipe to append text to; a pipe without a reader is refused, not waited for."""
    return open(path, "a", encoding="utf-8", opener=_open_at_once)


def read_bytes(path: Path, limit: int) -> bytes:
    """All bytes of a file or of a stream that this process inherited; more than `limit` bytes are refused.

    Inherited streams are `/dev/stdin` and the paths that a shell puts in the place of `<(command)`.
    """
    with _inherited(path) or open_file(path) as file:
        size = os.fstat(file.fileno()).st_size  # 0 for streams, and for the files of /proc
        data = file.read(size or limit + 1) if size <= limit else b""
    if max(size, len(data)) > limit:
        raise _too_large(path, limit)
    return data


def _ready(result: T | None) -> T:
    """The result of a read; None means that no data is available yet."""
    if result is None:
        raise OSError(errno.EAGAIN, "not a file, but something that has to be waited for")
    return result


def _open_own(path: str, flags: int) -> int:
    not_followed = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.open(path, flags | not_followed, 0o666)


def _open_at_once(path: str, flags: int) -> int:
    not_waiting = getattr(os, "O_NONBLOCK", 0)  # Windows has no such pipes
    descriptor = os.open(path, flags | not_waiting, 0o666)
    if not_waiting:
        os.set_blocking(descriptor, True)
    return descriptor


def _inherited(path: Path) -> BufferedReader | None:
    """The open stream that a path such as /dev/fd/63 stands for; None for all other paths."""
    match = _DESCRIPTOR.fullmatch(str(path))
    if match is None:
        return None
    number = 0 if match[1] else int(match[2] or match[3])
    # A regular file is opened again by the caller: a descriptor can be read only once.
    return None if stat.S_ISREG(os.fstat(number).st_mode) else os.fdopen(os.dup(number), "rb")


def _too_large(path: Path, limit: int) -> OSError:
    return OSError(errno.EFBIG, f"more than {_in_words(limit)}", str(path))


def _in_words(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"
