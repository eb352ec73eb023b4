"""Tar shards: which members lie where, and their bytes, read in place; nothing is ever unpacked.

A member has a path as if the shard were a folder: `rgb/shard-00000.tar/000017.png`. A shard's index is made
once per process. The file is opened anew for every read, so that no two processes share a position in it.
"""

import os
import tarfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from fourm.data.opening import open_file
from fourm.errors import SampleError

SUFFIX = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
MAX_SHARDS = 4096  # whose index is kept
MAX_NAME = 1024  # bytes of a member's name, folders included
MAX_PART = 255  # of each part of it, as in a file system
_MAX_HEADER = 1 << 20  # bytes that a header may take, long names included
_BLOCK = 512
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# What tarfile raises for malformed headers; a shard that does so ends there.
_TAR_ERRORS = (
    tarfile.TarError, OSError, ValueError, LookupError, ArithmeticError, RecursionError, MemoryError,
    TypeError, AttributeError,
)  # fmt: skip


@dataclass(slots=True)
class Shard:
    """What is in a tar file, by the members' names without a leading `./`."""

    members: dict[str, tuple[int, int]] = field(default_factory=dict)  # first byte, number of bytes
    spoilt: dict[str, str] = field(default_factory=dict)  # members that cannot be read, and why
    problem: str = ""  # why there may be more members than are listed here


def split_path(path: Path) -> tuple[Path, str] | None:
    """The shard and the name of the member that a path leads to; None for a path without a shard."""
    text, start = str(path), 0
    while (end := text.lower().find(SUFFIX + "/", start) + len(SUFFIX)) >= len(SUFFIX):
        if os.path.isfile(text[:end]):
            return Path(text[:end]), text[end + 1 :]
        start = end
    return None


def read_member(path: Path, name: str, limit: int) -> bytes:
    """The bytes of a member, `limit + 1` of them at most."""
    shard = read_shard(path)
    if name in shard.spoilt or name not in shard.members:
        raise SampleError(f"{path}/{name}: {shard.spoilt.get(name, 'is not in this shard')}")
    first, size = shard.members[name]
    with open_file(path) as file:
        file.seek(first)
        return file.read(min(size, limit + 1))


def read_shard(path: Path) -> Shard:
    """The index of a shard, made anew only if the file has changed."""
    with open_file(path) as file:
        now = os.fstat(file.fileno())
    return _index(path, now.st_size, now.st_mtime_ns)


@lru_cache(maxsize=MAX_SHARDS)
def _index(path: Path, size: int, changed: int) -> Shard:
    """The index of a shard of so many bytes, last changed at that time."""
    shard = Shard()
    with open_file(path) as file:
        end = _read_end(shard, file)
    for name, (first, count) in list(shard.members.items())[-1:]:
        if first + count > size:
            shard.spoilt[name] = "is cut off with the end of its shard"
            del shard.members[name]
    if end:
        known = (
            f"{len(shard.members):,} of its members are known" if shard.members else "nothing in it is known"
        )
        shard.problem = "; ".join(filter(None, (shard.problem, end, known)))
    return shard


def _read_end(shard: Shard, file: BinaryIO) -> str:
    """Fill in the members; what is wrong with the place where they end, or nothing."""
    start = file.read(_BLOCK)
    for magic, form in _MAGIC.items():
        if start.startswith(magic):
            return f"is compressed ({form}), which gives no access to single members; unpack it to .tar"
    try:
        end = _read_headers(shard, file)
    except _TAR_ERRORS as error:
        return f"is cut off or damaged ({str(error)[:100]})"
    file.seek(end)
    block = file.read(_BLOCK)
    if block == bytes(_BLOCK):  # an archive ends with empty blocks
        return ""
    return "is cut off" if len(block) < _BLOCK else f"is damaged at byte {end}"


def _read_headers(shard: Shard, file: BinaryIO) -> int:
    """Fill in the members; the position behind the last one."""
    file.seek(0)
    guarded: Any = _Guarded(file)
    before = -1
    with tarfile.open(fileobj=guarded, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
        while (member := tar.next()) is not None:
            if member.offset <= before or member.size < 0:
                raise tarfile.ReadError("a header leads backwards")
            before = member.offset
            _add(shard, member)
        return int(tar.offset)


def _add(shard: Shard, member: tarfile.TarInfo) -> None:
    """Note one member, under the name that it has without `./` and doubled slashes."""
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    name = "/".join(parts)
    if member.isdir():
        return
    if member.name.startswith("/") or not parts or ".." in parts or "\0" in name:
        shard.problem = shard.problem or f"holds {member.name[:100]!r}, a name that leads out of it"
    elif max(len(os.fsencode(part)) for part in parts) > MAX_PART or len(os.fsencode(name)) > MAX_NAME:
        shard.problem = shard.problem or f"holds the name {name[:100]!r}..., which is too long for a file"
    elif name in shard.members or name in shard.spoilt:
        shard.members.pop(name, None)
        shard.spoilt[name] = "stands in its shard more than once"
    elif not member.isreg() or member.issparse():
        shard.spoilt[name] = "is a link, a device or a file with holes; only plain members are read"
    else:
        shard.members[name] = (member.offset_data, member.size)


class _Guarded:
    """A file as tarfile may see it: no header makes it read more than a header can need."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)
