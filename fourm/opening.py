"""The only place where files are opened for reading: regular files, and never more bytes than were asked for.

A pipe or a device in the place of a file could be waited for without end, or fill the memory. Both functions
raise an OSError whose `strerror` says what is there instead, so that callers name it as they name any other.
"""

import errno
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

# Windows has none of the first three, and needs the last one.
_WANTED = ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY")
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in _WANTED)
_DESCRIPTOR = re.compile(r"/dev/(?:(stdin)|fd/([0-9]{1,9}))|/proc/self/fd/([0-9]{1,9})")


def open_file(path: Path) -> BufferedReader:
    """A regular file, open for reading."""
    descriptor = os.open(path, _FLAGS)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "not a file, but a folder", str(path))
    raise OSError(errno.EINVAL, "not a file, but a pipe, a device or a socket", str(path))


def open_own(path: Path, mode: str) -> BinaryIO:
    """A file of this program's own, opened in a binary mode ("r", "r+", "a", "x"): no link is followed."""
    try:
        file: BinaryIO = open(path, mode + "b", opener=_open_own)  # type: ignore[assignment] # noqa: SIM115
    except OSError as error:
        if path.is_symlink():
            raise OSError(errno.ELOOP, "a link, and none is followed here", str(path)) from error
        raise
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "not a file, but a pipe, a device or a socket", str(path))


def read_bytes(path: Path, limit: int) -> bytes:
    """All bytes of a file, or of a stream that this process was started with; more than `limit` are refused.

    Such streams are `/dev/stdin` and what a shell makes of `<(command)`. They are read to their end.
    """
    with _inherited(path) or open_file(path) as file:
        size = os.fstat(file.fileno()).st_size  # 0 for streams, and for the files of /proc
        data = file.read(size or limit + 1) if size <= limit else b""
    if max(size, len(data)) > limit:
        raise OSError(errno.EFBIG, f"more than {_in_words(limit)}", str(path))
    return data


def _open_own(path: str, flags: int) -> int:
    not_followed = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.open(path, flags | not_followed, 0o666)


def _inherited(path: Path) -> BufferedReader | None:
    """The open stream that a path such as /dev/fd/63 stands for; None for all other paths."""
    match = _DESCRIPTOR.fullmatch(str(path))
    if match is None:
        return None
    number = 0 if match[1] else int(match[2] or match[3])
    # A file behind it is opened anew, so that it can be read twice.
    return None if stat.S_ISREG(os.fstat(number).st_mode) else os.fdopen(os.dup(number), "rb")


def _in_words(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"
