"""Writes the files of one shard as tars or as a table: equal files become equal bytes.

They are collected in one file of OUT/.partial, written in a fixed order without times or owners, and renamed
into place, the marker last. So two processes that make one shard do no harm.
"""

import io
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fourm.data.layout import Key
from fourm.data.shards import PARQUET, SHARDS, WEBDATASET, Shard
from fourm.errors import UsageError
from fourm.files.columns import KEYED
from fourm.files.opening import open_own
from fourm.files.tars import ESCAPED, WHOLE, WHOLE_ESCAPED
from fourm.files.writing import new_unfinished, remove_unfinished, write_atomic
from fourm.output.markers import NAME, PATH, Keys, Marker, remove_files, withdraw_marker
from fourm.output.members import Member, column_of, joint_file
from fourm.output.processes import sha256_of_file
from fourm.output.record import RUN

ROWS_PER_GROUP = 100  # of a table: so many results are in memory together
_TEXTS = (".txt", ".json")  # files that are texts in a table
_NewFile = tuple[str, Callable[[Path], None]]  # its path below the folder of the run, what writes it


@dataclass(slots=True)
class ShardFiles:
    """Collects the files of one shard, from any thread and in any order."""

    root: Path
    shard: Shard
    format: str  # one of FORMATS, but not FILES
    record: str = RUN
    _members: dict[Member, tuple[int, int]] = field(default_factory=dict)  # -> position and size in the spool
    _path: Path = Path()  # of the spool
    _spool: BinaryIO | None = None
    _lock: Lock = field(default_factory=Lock)

    def add(self, member: Member, data: bytes) -> None:
        """Add a file; it replaces one that was added before. OSError: the disk is full."""
        with self._lock:
            if self._spool is None:
                self._path = new_unfinished(self.root, ".spool")
                self._spool = open_own(self._path, "r+")
            position = self._spool.seek(0, os.SEEK_END)
            self._spool.write(data)
            self._members[member] = position, len(data)

    def __contains__(self, member: Member) -> bool:
        return member in self._members

    def finish(self, marker: Marker) -> Marker:
        """Delete the old marker, write the files, then the marker, which is returned with their names.

        FourMError if a file cannot be written; then there is no new marker.
        """
        name = f"{self.shard.name}/"
        is_below = all(f"{member.key.folder}/".startswith(name) for member in self._members)
        keys: Keys = NAME if is_below and self.format != PARQUET else PATH
        marker = replace(marker, keys=keys)
        written = dict[str, tuple[str, int]]()
        # What is replaced may be of other results and have the same size, so it is not whole from now on.
        before = withdraw_marker(self.root, self.shard.name, self.record)
        for name, write in _LAYOUTS[self.format](self, marker) if self._members else ():
            write_atomic(self.root, self.root / name, partial(_write_noted, write, written, name))
        marker = replace(marker, files=written)
        marker.write(self.root, self.record)
        remove_files(self.root, before - written.keys())
        self.close()
        return marker

    def close(self) -> None:
        """Delete what was collected."""
        spool, self._spool, self._members = self._spool, None, {}
        if spool is not None:
            try:
                spool.close()  # a full disk fails here again
            finally:
                remove_unfinished(self._path)

    def read(self, member: Member) -> bytes:
        """The bytes of a file that was added."""
        assert self._spool is not None
        position, size = self._members[member]
        self._spool.seek(position)
        return self._spool.read(size)

    def by_result(self) -> Iterator[tuple[Key, int | None, list[Member]]]:
        """Each result in order, with its files; what variations share is with each of them."""
        by_key = dict[Key, list[Member]]()
        for member in self._members:
            by_key.setdefault(member.key, []).append(member)
        for key in sorted(by_key):
            members = sorted(by_key[key], key=lambda one: (one.folder, one.suffix))
            numbers = sorted({one.variation for one in members if one.variation is not None})
            for number in (*numbers,) or (None,):
                yield key, number, [m for m in members if m.variation in (None, number)]

    def tars(self, marker: Marker) -> Iterator[_NewFile]:
        """One tar for each folder."""
        folders = dict[str, dict[str, Member]]()
        for member in self._members:
            folders.setdefault(member.folder, {})[member.name(marker.within)] = member
        for folder, members in sorted(folders.items()):
            comment = WHOLE if marker.keys == PATH else ""  # else it is as any tar of a dataset
            yield f"{folder}/{self.shard.name}.tar", partial(self._write_tar, members, comment)

    def one_tar(self, marker: Marker) -> Iterator[_NewFile]:
        """One tar of all files, as WebDataset has them."""
        members = {
            replace(member, variation=number).web_name(marker.within): member
            for _, number, found in self.by_result() for member in found
        }  # fmt: skip
        comment = WHOLE_ESCAPED if marker.keys == PATH else ESCAPED
        yield (
            joint_file(self.shard.name, self.format, self.record),
            partial(self._write_tar, members, comment),
        )

    def table(self, marker: Marker) -> Iterator[_NewFile]:
        """One Parquet file with a row for each result."""
        yield joint_file(self.shard.name, self.format, self.record), self._write_table

    def _write_tar(self, members: Mapping[str, Member], comment: str, path: Path) -> None:
        said = {"comment": comment} if comment else None
        options: dict[str, Any] = {"format": tarfile.PAX_FORMAT, "errors": "surrogateescape"}
        with tarfile.open(path, "w", pax_headers=said, **options) as tar:
            for name in sorted(members, key=os.fsencode):
                data = self.read(members[name])
                info = tarfile.TarInfo(name)  # its time is 0, its owner 0, its mode 0644
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    def _write_table(self, path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        rows = list(self.by_result())
        examples = {column_of(member): member for member in sorted(self._members, key=_order)}  # one of each
        kinds = {column: self._kind_of(member) for column, member in examples.items()}
        columns = [pa.field("key", pa.string())]
        if any(number is not None for _, number, _ in rows):
            columns.append(pa.field("variation", pa.int32()))
        types: dict[type, Any] = {str: pa.string(), bytes: pa.binary(), list: pa.list_(pa.int32())}
        columns += [pa.field(name, types[kinds[name]]) for name in sorted(kinds)]
        schema = pa.schema(columns, metadata=KEYED)
        options = {"compression": "zstd", "compression_level": 1, "use_dictionary": False, "version": "2.6"}
        with parquet.ParquetWriter(path, schema, write_statistics=False, **options) as file:
            for first in range(0, len(rows), ROWS_PER_GROUP):
                group = [self._row(*row, kinds) for row in rows[first : first + ROWS_PER_GROUP]]
                file.write_table(pa.Table.from_pylist(group, schema=schema))

    def _row(
        self, key: Key, number: int | None, members: Sequence[Member], kinds: Mapping[str, type]
    ) -> dict[str, Any]:
        columns = {column_of(one): one for one in members}
        values = {name: _value_of(self.read(one), kinds[name]) for name, one in columns.items()}
        return {"key": key.text, "variation": number, **values}

    def _kind_of(self, member: Member) -> type:
        """What a cell of a column is: text, a list of token ids, or the bytes of a file."""
        if member.suffix in _TEXTS:
            return str
        if member.suffix == ".npy":
            array = _array(self.read(member))
            if array.dtype.kind == "i" and array.ndim == 2 and len(array) == 1:
                return list
        return bytes


def check_format(name: str) -> None:
    """UsageError for a format that cannot be written here."""
    if name == PARQUET:
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise UsageError("`format=parquet`: needs pyarrow; `pip install 'fourm[parquet]'`") from error


def _write_noted(
    write: Callable[[Path], None], written: dict[str, tuple[str, int]], name: str, file: Path
) -> None:
    """Write a file to disk, and note its checksum and size under its name in `written`."""
    write(file)
    with open_own(file, "r+") as stream:
        os.fsync(stream.fileno())  # before it is renamed, so that a power failure leaves no empty file
    written[name] = sha256_of_file(file), file.stat().st_size


def _order(member: Member) -> tuple[Key, str, str, int]:
    return member.key, member.folder, member.suffix, -1 if member.variation is None else member.variation


def _value_of(data: bytes, kind: type) -> object:
    if kind is str:
        return data.decode("utf-8", errors="backslashreplace")
    return _array(data)[0].tolist() if kind is list else data


def _array(data: bytes) -> NDArray[Any]:
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


_LAYOUTS: dict[str, Callable[[ShardFiles, Marker], Iterator[_NewFile]]] = {
    SHARDS: ShardFiles.tars, WEBDATASET: ShardFiles.one_tar, PARQUET: ShardFiles.table,
}  # fmt: skip
