"""Reads cells of Parquet and Arrow files one at a time, by pyarrow alone: pictures, texts, ids, data.

A file is untrusted: no code in it is run, cells above the caller's limit are refused, and whatever is wrong
with it is one sentence.
"""

import json
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, islice
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any, Protocol

from fourm.errors import FourMError, MissingError, SampleError, UsageError, printable, shown
from fourm.files.opening import SIGNATURE, open_file

COLUMN_SUFFIXES = (".parquet", ".arrow")
PICTURE, BYTES, TEXT, IDS, DATA = "pictures", "bytes", "texts", "whole numbers", "data"  # kinds of a column
KEYED = {"fourm": "rows have keys"}  # metadata of a file whose rows are named by columns
_BUFFER = 1 << 20  # bytes of a Parquet file that are read at once
# Of the cells that are decoded together: bytes of all where each is stored, most bytes where a few are
# repeated by number, and most rows.
_BATCH_BYTES, _REPEATED_BYTES, _BATCH_ROWS = 1 << 22, 1 << 30, 1024
_MAX_DEPTH = 20  # of types in types
_MAX_ROWS = 1 << 30  # of a file; one of a few bytes can say that it has more
_STARTS = {
    SIGNATURE: ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"II*\0": ".tif", b"MM\0*": ".tif",
    b"BM": ".bmp", b"\0\0\0\x0cjP  ": ".jp2", b"\x93NUMPY": ".npy", b"PK\3\4": ".npz",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Columns:
    """What a file holds: how many rows, and of which kind each of its columns is."""

    num_rows: int
    kinds: Mapping[str, str]  # PICTURE, BYTES, TEXT, IDS, DATA; "" for what is not read
    is_keyed: bool = False  # a run wrote it: `key`, and `variation` if there are several, name the rows


class _Table(Protocol):
    """A file of columns, in batches of rows."""

    num_rows: int
    schema: Any  # pyarrow.Schema

    def batches(self, column: str, row: int) -> Iterator[tuple[int, Any]]:
        """The first row and the cells of each batch, from one that lies at or before `row` on."""

    def is_ahead(self, first: int, row: int) -> bool:
        """Whether `batches` would begin nearer to `row` than at the row `first`."""


class _Parquet:
    """A Parquet file. Pages are decompressed one at a time, so a row group may be larger than the memory."""

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self.file = parquet.ParquetFile(open_file(path), buffer_size=_BUFFER)
        counts = [self.file.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups)]
        if min(counts, default=0) < 0 or sum(counts) != self.file.metadata.num_rows:
            raise ValueError("its row groups do not have as many rows as it says")
        self.num_rows, self.schema = sum(counts), self.file.schema_arrow
        self.starts = list(accumulate(counts, initial=0))

    def batches(self, column: str, row: int) -> Iterator[tuple[int, Any]]:
        for group in range(bisect_right(self.starts, row) - 1, self.file.num_row_groups):
            first, size = self.starts[group], self._batch_size(column, group)
            for batch in self.file.iter_batches(size, [group], [column], use_threads=False):
                if batch.schema.names != [column]:
                    raise ValueError(f"'{column}' does not name one column")
                yield first, batch.column(0)
                first += batch.num_rows

    def is_ahead(self, first: int, row: int) -> bool:
        return bisect_right(self.starts, row) > bisect_right(self.starts, first)

    def _batch_size(self, column: str, group: int) -> int:
        told = self.file.metadata.row_group(group)
        all_leaves = (told.column(i) for i in range(told.num_columns))
        leaves = [one for one in all_leaves if f"{one.path_in_schema}.".startswith(f"{column}.")]
        size = max(1, sum(one.total_uncompressed_size for one in leaves))
        # A value of a dictionary may be as large as all of it, and stand in each row.
        is_repeated = any(one.has_dictionary_page for one in leaves)
        rows = _REPEATED_BYTES // size if is_repeated else _BATCH_BYTES * told.num_rows // size
        return min(max(1, rows), _BATCH_ROWS)


class _Arrow:
    """An Arrow file or stream, as `datasets` saves one. It is mapped, and batches are read one at a time."""

    def __init__(self, path: Path) -> None:
        open_file(path).close()  # refuses what is no regular file
        self.path = path
        self.schema = self._open().schema
        self.starts = list(accumulate((part.num_rows for part in self._parts()), initial=0))
        self.num_rows = self.starts[-1]

    def batches(self, column: str, row: int) -> Iterator[tuple[int, Any]]:
        number = bisect_right(self.starts, row) - 1
        for first, part in zip(self.starts[number:], self._parts(number), strict=False):
            cells = part.column(self.schema.names.index(column))
            cells.validate(full=True)  # offsets that point anywhere would be followed
            yield first, cells

    def is_ahead(self, first: int, row: int) -> bool:
        return bisect_right(self.starts, row) > bisect_right(self.starts, first) + 1

    def _open(self) -> Any:
        """A reader of pyarrow, of a file or of a stream."""
        import pyarrow as pa

        mapped = pa.memory_map(str(self.path))
        is_file = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        return pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)

    def _parts(self, first: int = 0) -> Iterator[Any]:
        """The batches of the file, from one on. None is kept, as compressed ones take memory of their own."""
        reader = self._open()
        if hasattr(reader, "get_batch"):
            return (reader.get_batch(number) for number in range(first, reader.num_record_batches))
        return islice(reader, first, None)


class _Cursor:
    """Reads cells of one column; rows that are read in order are decoded once."""

    def __init__(self, table: _Table, column: str) -> None:
        self.table, self.column, self.lock = table, column, Lock()
        self.first, self.cells, self.coming = 0, [], iter(())  # type: tuple[int, Any, Iterator[Any]]

    def cell(self, row: int) -> tuple[Any, int]:
        """The cell of a row, a scalar of pyarrow, and its size in bytes."""
        with self.lock:
            if row < self.first or not len(self.cells) or self.table.is_ahead(self.first, row):
                self.cells, self.coming = [], self.table.batches(self.column, row)
                self.first, self.cells = next(self.coming)
            while row >= self.first + len(self.cells):
                self.cells = []  # one that fails is begun anew
                self.first, self.cells = next(self.coming)
            found = self.cells.slice(row - self.first, 1)
            return found[0], found.nbytes


def read_columns(path: Path) -> Columns:
    """The number of rows and the columns of a file, which is read again only if it has changed.

    UsageError: it is no such file; MissingError: pyarrow is not installed.
    """
    try:
        with _reading(path):
            return _columns(path, *_state_of(path))
    except SampleError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error


def read_cell(path: Path, name: str, limit: int) -> tuple[str, bytes]:
    """The ending and the bytes of the cell `ROW.COLUMN`; more than `limit` are cut to `limit + 1`.

    Pictures, bytes and texts are as they are stored, lists of whole numbers become a .npy file, other data
    JSON. The ending of a picture is that of its format. SampleError: the cell is empty or cannot be read.
    """
    row, _, column = name.partition(".")
    with _reading(path):
        kind, cell, size = _find_cell(path, row, column)
        if cell is None:
            raise SampleError(f"{path}: '{column}' of row {row} is empty")
        size = 8 * len(cell.values) if kind == IDS else size  # as they are written: int64
        if kind in (IDS, DATA) and size > limit:
            raise SampleError(f"{path}: '{column}' of row {row} has more than {limit >> 20} MiB")
        ending, data = _contents(cell, kind)
        return ending, bytes(memoryview(data)[: limit + 1])


def has_cell(path: Path, name: str) -> bool:
    """Whether something is in the cell `ROW.COLUMN`. SampleError: there is none, or it cannot be read."""
    row, _, column = name.partition(".")
    with _reading(path):
        return _find_cell(path, row, column)[1] is not None


def _find_cell(path: Path, row: str, column: str) -> tuple[str, Any, int]:
    """The kind of a column; a cell of it, a scalar of pyarrow (None: it is empty); its size in bytes."""
    state = _state_of(path)
    found = _columns(path, *state)
    if not (row.isdecimal() and len(row) < 19) or int(row) >= found.num_rows:
        raise SampleError(f"{path}: has no row {shown(row)}; it has {found.num_rows:,}")
    if not (kind := found.kinds.get(column, "")):
        raise SampleError(f"{path}: has no column '{column}' that is read")
    cell, size = _cursor(path, *state, column).cell(int(row))
    cell = cell.value if hasattr(cell, "dictionary") else cell
    is_empty = cell is None or not cell.is_valid or (kind == PICTURE and not cell["bytes"].is_valid)
    return kind, None if is_empty else cell, size


def _contents(cell: Any, kind: str) -> tuple[str, Any]:
    """The ending and the bytes of a cell that is not empty."""
    if kind == PICTURE:
        return _format(cell["bytes"].as_buffer(), os.path.splitext(str(cell.get("path")))[1].lower())
    if kind == BYTES:
        return _format(cell.as_buffer(), "")
    if kind == TEXT:
        return ".txt", cell.as_buffer()
    if kind == IDS:
        return ".npy", _npy(cell.values.cast("int64").to_numpy())  # which refuses empty ones
    return ".json", json.dumps(cell.as_py()).encode()


def _npy(values: Any) -> bytes:
    import io

    import numpy as np

    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()


def _format(data: Any, otherwise: str) -> tuple[str, Any]:
    start = bytes(memoryview(data)[:12])
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        return ".webp", data
    return next((ending for mark, ending in _STARTS.items() if start.startswith(mark)), otherwise), data


def _kind_of(kind: Any, feature: object) -> str:
    """How cells of a type of pyarrow are read; feature: what `datasets` says of the column."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    said = feature.get("_type") if isinstance(feature, dict) else None
    if types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        if "bytes" in names and _is_bytes(kind.field("bytes").type):
            return PICTURE if said in (None, "Image") and names.count("bytes") == 1 else ""
    if _is_bytes(kind):
        return BYTES
    if types.is_string(kind) or types.is_large_string(kind):
        return TEXT
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return IDS if types.is_integer(kind.value_type) else DATA if _is_json(kind) else ""
    return DATA if _is_json(kind) else ""


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)


def _is_json(kind: Any, depth: int = 0) -> bool:
    """Whether values of a type are texts, numbers, or lists and structs of them."""
    from pyarrow import types

    if types.is_nested(kind):
        is_known = types.is_struct(kind) or types.is_list(kind) or types.is_large_list(kind)
        parts = [kind.field(i).type for i in range(kind.num_fields)] if is_known else []
        return depth < _MAX_DEPTH and bool(parts) and all(_is_json(part, depth + 1) for part in parts)
    is_text = types.is_string(kind) or types.is_large_string(kind)
    return is_text or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def _state_of(path: Path) -> tuple[int, int]:
    """Size and time of a file, by which a changed one is known."""
    with open_file(path) as file:
        now = os.fstat(file.fileno())
    return now.st_size, now.st_mtime_ns


def _open(path: Path) -> _Table:
    return _Parquet(path) if path.name.lower().endswith(".parquet") else _Arrow(path)


@lru_cache(maxsize=256)
def _columns(path: Path, size: int, changed: int) -> Columns:
    """`changed` is only part of the cache's key, here and below."""
    table = _open(path)
    if table.num_rows > _MAX_ROWS:
        raise ValueError(f"it says that it has {table.num_rows:,} rows")
    names, about = table.schema.names, table.schema.metadata or {}
    try:
        features = json.loads(about.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        features = {}
    kinds = {
        name: _kind_of(table.schema.field(i).type, features.get(name) if isinstance(features, dict) else None)
        for i, name in enumerate(names)
    }
    # A name that a path would change, or that stands there twice, leads to no cell.
    unfit = {name for name, count in Counter(names).items() if count > 1 or not _is_name(name)}
    kinds = {name: "" if name in unfit else kind for name, kind in kinds.items()}
    return Columns(table.num_rows, kinds, about.get(b"fourm") == KEYED["fourm"].encode())


def _is_name(column: str) -> bool:
    return "\0" not in column and PurePosixPath(f"0.{column}").as_posix() == f"0.{column}" and column != ""


@lru_cache(maxsize=8)
def _cursor(path: Path, size: int, changed: int, column: str) -> _Cursor:
    return _Cursor(_open(path), column)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises into a SampleError: for malformed bytes, anything.

    MissingError: pyarrow is not installed.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MissingError(f"{path}: reading it needs pyarrow; `pip install 'fourm[parquet]'`") from error
    try:
        yield
    except (FourMError, OSError) as error:
        if isinstance(error, FourMError) or error.strerror:  # pyarrow raises OSError for what it cannot parse
            raise
        raise SampleError(f"{path}: cannot be read ({shown(printable(str(error)), 200)})") from error
    except Exception as error:  # parsers raise errors of any kind for malformed bytes
        why = shown(printable(str(error)), 200) or type(error).__name__
        raise SampleError(f"{path}: is damaged, or no file of columns ({why})") from error
