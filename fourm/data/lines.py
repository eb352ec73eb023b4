"""Finds where the prompts of a large file lie, in one pass that keeps none of its text."""

import csv
import errno
import hashlib
import io
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

from fourm.data.prompts import JSON_LINES, MAX_BYTES, TABLES, parse_header
from fourm.errors import UsageError
from fourm.files.opening import open_file

_BOM = b"\xef\xbb\xbf"
_MARK = b"[S_"  # how a sentinel in a prompt begins
_BLOCK = 1 << 20  # bytes that are read at once
# A line that may be blank: in no blank of Unicode, in UTF-8, is a byte above e3.
_BLANK = re.compile(rb"\n[^!-~\xe4-\xff\n]*\n")
Row = tuple[int, int, int]  # positions of the first byte and behind the last one, number of the first line

if TYPE_CHECKING:  # numpy takes 0.1 s
    import numpy as np
    from numpy.typing import NDArray

    Rows = NDArray[np.int64]  # (3, N): as in Row, of each


@dataclass(frozen=True, slots=True)
class LineRange:
    """Some lines of a file that hold so many prompts."""

    count: int  # prompts
    begin: int  # position of the first byte
    end: int  # position behind the last byte
    line: int  # number of the first line, from 1

    def read(self, path: Path) -> bytes:
        """The lines; UsageError if the file ends before them."""
        try:
            with open_file(path) as file:
                file.seek(self.begin)
                data = file.read(min(self.end - self.begin, MAX_BYTES + 1))
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
        if len(data) > MAX_BYTES:
            raise UsageError(f"{path}: {self.count} prompts of more than {MAX_BYTES >> 20} MiB are too large")
        if len(data) < self.end - self.begin:
            raise UsageError(f"{path}: has become shorter since its lines were counted")
        return data


@dataclass(frozen=True, slots=True)
class Scan:
    """What the pass over a prompt file has found."""

    total: int  # prompts
    columns: tuple[Sequence[int], ...]  # of each range: `begin`, `end` and `line` of a LineRange
    names: tuple[str, ...]  # of the columns of a table
    sha256: str  # of the file
    has_marks: bool  # some text may have sentinels


def scan_lines(path: Path, suffix: str, size: int, where: str = "") -> Scan:
    """The ranges of `size` prompts of a .txt, .tsv, .csv or .jsonl file; UsageError if it holds none.

    where: what messages call the file, if not by its path.
    """
    where = where or str(path)
    try:
        with open_file(path) as file:
            sha256, has_marks = _digest(file)
            file.seek(0)
            start = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
            file.seek(start)
            groups = _all_groups(file, start, suffix, where)
            names = tuple[str, ...]()
            if suffix in TABLES and (first := next(groups, None)) is not None:
                data = LineRange(1, *first[:, 0].tolist()).read(path)
                names, groups = parse_header(data, where, suffix), chain([first[:, 1:]], groups)
            elif suffix in JSON_LINES:
                names = _keys(path, start, where)
            total, columns = _ranges(groups, size)
    except OSError as error:
        raise UsageError(f"{where}: cannot be read ({error.strerror})") from error
    if not total:
        raise UsageError(f"{where}: holds no prompt; one prompt per line is expected")
    return Scan(total, columns, names, sha256, has_marks)


def split_rows(data: bytes, suffix: str, where: str, line: int) -> Iterator[tuple[int, bytes]]:
    """The number of the first line and the bytes of each row; line: the number of the first line of all."""
    for rows in _all_groups(io.BytesIO(data), 0, suffix, where):
        for begin, end, number in rows.T.tolist():
            yield number + line - 1, data[begin:end]


def _all_groups(file: BinaryIO, begin: int, suffix: str, where: str) -> Iterator["Rows"]:
    """The rows of a file of any kind that are not blank, many at a time."""
    if suffix == ".csv":
        return _csv_groups(file, begin, where)
    return _groups(file, begin, splits=suffix not in (*JSON_LINES, ".tsv"))


def _digest(file: BinaryIO) -> tuple[str, bool]:
    """sha256 of a file, and whether some text in it may have sentinels."""
    digest, has_marks, before = hashlib.sha256(), False, b""
    while block := file.read(_BLOCK):
        digest.update(block)
        has_marks = has_marks or _MARK in before[-2:] + block
        before = block
    return digest.hexdigest(), has_marks


def _next_line(file: IO[bytes]) -> bytes:
    """The next line, or the rest of one; empty at the end. OSError: it is too large for the memory."""
    line = file.readline(MAX_BYTES + 1)
    if len(line) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"a line of more than {MAX_BYTES >> 20} MiB")
    return line


def _lines(file: IO[bytes], begin: int, splits: bool) -> Iterator[tuple[int, bytes]]:
    """Position and bytes of each line; splits: a carriage return alone ends a line, too."""
    while line := _next_line(file):
        for part in line.splitlines(keepends=True) if splits and b"\r" in line else (line,):
            yield begin, part
            begin += len(part)


def _groups(file: BinaryIO, begin: int, splits: bool) -> Iterator["Rows"]:
    """Lines that are not blank, of a large block after the other."""
    import numpy as np

    number = 1
    while block := file.read(_BLOCK) + _next_line(file):
        if block.endswith(b"\n") and not (splits and b"\r" in block) and not _BLANK.search(b"\n" + block):
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1 + begin
            count = len(ends)
            yield np.stack([np.append(begin, ends[:-1]), ends, np.arange(number, number + count)])
        else:
            lines = list(_lines(io.BytesIO(block), begin, splits))
            count = len(lines)
            if rows := list(_rows(lines, number)):
                yield np.array(rows, dtype=np.int64).T
        begin, number = begin + len(block), number + count


def _csv_groups(file: BinaryIO, begin: int, where: str) -> Iterator["Rows"]:
    """The rows of a .csv table that are not blank, many at a time."""
    import numpy as np

    rows = _csv_rows(_lines(file, begin, splits=True), begin, where)
    while group := list(islice(rows, 1 << 14)):
        yield np.array(group, dtype=np.int64).T


def _rows(lines: Iterable[tuple[int, bytes]], first: int) -> Iterator[Row]:
    """Lines that are not blank; first: number of the first one."""
    for number, (begin, line) in enumerate(lines, start=first):
        text = line.strip()
        # Python's blanks of texts are more than those of bytes; none of them is printable ASCII.
        if text and (0x20 < text[0] < 0x7F or text.decode("utf-8", errors="replace").strip()):
            yield begin, begin + len(line), number


def _csv_rows(lines: Iterator[tuple[int, bytes]], begin: int, where: str) -> Iterator[Row]:
    """Rows that are not blank; one whose cell has a line end between quotation marks is several lines."""
    end, number = begin, 1

    def texts() -> Iterator[str]:
        nonlocal end
        for position, line in lines:
            end = position + len(line)
            yield line.decode("utf-8", errors="replace")

    reader = csv.reader(texts(), strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield begin, end, number
            begin, number = end, reader.line_num + 1
    except csv.Error as error:
        raise UsageError(f"{where}: is not a .csv table from line {number} on ({error})") from error


def _keys(path: Path, start: int, where: str) -> tuple[str, ...]:
    """The keys of the first object in a file of JSON lines."""
    with open_file(path) as file:
        file.seek(start)
        while line := _next_line(file):
            if line.lstrip().startswith(b"{"):
                return parse_header(line, where, JSON_LINES[0])
    return ()


def _ranges(groups: Iterator["Rows"], size: int) -> tuple[int, tuple[Sequence[int], ...]]:
    """The number of rows, and of each range its first byte, the one behind it, and its first line."""
    begins, ends, lines, total, end = array("q"), array("q"), array("q"), 0, 0
    for rows in groups:
        begins.extend(rows[0, -total % size :: size].tolist())
        lines.extend(rows[2, -total % size :: size].tolist())
        ends.extend(rows[1, (-total - 1) % size :: size].tolist())
        total, end = total + rows.shape[1], int(rows[1, -1]) if rows.shape[1] else end
    if total % size:
        ends.append(end)
    return total, (begins, ends, lines)
