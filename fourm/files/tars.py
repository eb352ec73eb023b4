"""Reads members of tar files where they lie: an index that is made once, and nothing but plain members."""

import os
import tarfile
from dataclasses import dataclass, field
from functools import lru_cache
from io import BufferedReader
from pathlib import Path

from fourm.errors import SampleError
from fourm.files.opening import open_file

SHARD_SUFFIX = ".tar"
MAX_NAME, MAX_PART = 1024, 255  # longest name of a member with its folders, and longest part of it, in bytes
NO_ACCESS = f"gives no access to single members; unpack it to {SHARD_SUFFIX}"  # what is compressed
# What the global header of a tar says that this program wrote: names of members are whole keys, whatever the
# tar is called; dots in keys are escaped, as WebDataset ends a key at the first one; or both.
WHOLE, ESCAPED, WHOLE_ESCAPED = "fourm: whole keys", "fourm: escaped keys", "fourm: whole, escaped keys"
_MAX_HEADER = 1 << 20  # largest header of a member, long names included, in bytes
_BLOCK = 512  # bytes; the unit of the tar format
# First bytes of compressed files -> the name of the format.
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(slots=True)
class TarIndex:
    """The index of a tar file."""

    # Name without a leading `./` -> position of the first byte and number of bytes, or why it cannot be read.
    members: dict[str, tuple[int, int] | str] = field(default_factory=dict)
    problem: str = ""  # why there may be more members than are listed here
    comment: str = ""  # of its global header

    @property
    def is_whole(self) -> bool:
        """Whether names of members are whole keys, not those in the folder that the tar stands for."""
        return self.comment in (WHOLE, WHOLE_ESCAPED)

    @property
    def is_escaped(self) -> bool:
        """Whether dots in keys are escaped."""
        return self.comment in (ESCAPED, WHOLE_ESCAPED)


class _Guarded(BufferedReader):
    """A file for tarfile that refuses reads above _MAX_HEADER, whatever size a damaged header gives."""

    def read(self, size: int) -> bytes:  # type: ignore[override]
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return super().read(size)


def read_tar_member(path: Path, name: str, limit: int) -> bytes:
    """The bytes of a member, at most `limit + 1` of them. SampleError if it cannot be read."""
    place = read_tar(path).members.get(name, "is not in this shard")
    if isinstance(place, str):
        raise SampleError(f"{path}/{name}: {place}")
    first, size = place
    with open_file(path) as file:
        file.seek(first)
        return file.read(min(size, limit + 1))


def read_tar(path: Path) -> TarIndex:
    """The index of a shard, which is read again only if the file has changed."""
    with open_file(path) as file:
        now = os.fstat(file.fileno())
    return _index(path, now.st_size, now.st_mtime_ns)


def scan_tar(path: Path) -> TarIndex:
    """As `read_tar`, and nothing is kept: for whoever goes through many shards once."""
    with open_file(path) as file:
        return _scan(path, os.fstat(file.fileno()).st_size)


@lru_cache(maxsize=32)  # more than modalities are read together; an index of 10,000 members has 3 MB
def _index(path: Path, size: int, changed: int) -> TarIndex:
    """The index of a shard, as it was read last; `changed` is only part of the cache's key."""
    return _scan(path, size)


def _scan(path: Path, size: int) -> TarIndex:
    """The index of a shard. size: its bytes."""
    shard = TarIndex()
    before = -1  # position of the last header
    problem = ""
    with _Guarded(open_file(path).detach()) as file:
        start = file.peek(_BLOCK)
        try:
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                while (member := tar.next()) is not None:
                    if member.offset <= before or member.size < 0:
                        raise tarfile.ReadError("a header leads backwards")
                    before = member.offset
                    shard.comment = str(tar.pax_headers.get("comment", ""))[:100]
                    _add_member(shard, member, size)
                    tar.members.clear()  # type: ignore[attr-defined] # of which it keeps all: 1 KB for each
                file.seek(tar.offset)
            end, block = file.tell(), file.read(_BLOCK)
            if len(block) < _BLOCK or any(block):  # an archive ends with empty blocks
                problem = f"is damaged at byte {end}" if len(block) == _BLOCK else "is cut off"
        except Exception as error:  # tarfile raises errors of many kinds for malformed headers
            problem = f"is cut off or damaged ({str(error)[:100]})"
            form = next((form for head, form in _MAGIC.items() if start.startswith(head)), "")
            if form and before < 0:
                problem = f"is compressed ({form}), which {NO_ACCESS}"
    if problem:
        count = sum(isinstance(place, tuple) for place in shard.members.values())
        known = f"{count:,} of its members are" if count else "nothing in it is"
        shard.problem = "; ".join(filter(None, (shard.problem, problem, f"{known} known")))
    return shard


def _add_member(shard: TarIndex, member: tarfile.TarInfo, end: int) -> None:
    """Add one member, under its name without `./` and doubled slashes. end: size of the shard in bytes."""
    if member.isdir():
        return
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    name = "/".join(parts)
    if member.name.startswith("/") or not parts or ".." in parts or "\0" in name:
        shard.problem = shard.problem or f"holds {member.name[:100]!r}, a name that leads out of it"
    elif max(len(os.fsencode(part)) for part in parts) > MAX_PART or len(os.fsencode(name)) > MAX_NAME:
        shard.problem = shard.problem or f"holds the name {name[:100]!r}..., which is too long for a file"
    elif name in shard.members:
        shard.members[name] = "stands in its shard more than once"
    elif not member.isreg() or member.issparse():
        shard.members[name] = "is a link, a device or a file with holes; only plain members are read"
    elif member.offset_data + member.size > end:
        shard.members[name] = "is cut off with the end of its shard"
    else:
        shard.members[name] = (member.offset_data, member.size)
