"""Finds where the prompts of a large file lie, in one pass that keeps none of its text."""

import csv
import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fourm.data.opening import open_file
from fourm.data.prompts import JSON_LINES, MAX_BYTES, TABLES, PartOfTable, parse_header
from fourm.errors import UsageError

_BOM = b"\xef\xbb\xbf"
_MARK = b"[S_"  # how a sentinel in a prompt begins
_BLOCK = 1 << 20  # bytes that are read at once
Row = tuple[int, int, int]  # positions of the first byte and behind the last one, number of the first line


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

    def part(self, lines: LineRange) -> PartOfTable:
        """What is known of a range's place in its file."""
        return PartOfTable(lines.line, self.names)


def scan_lines(path: Path, suffix: str, size: int) -> Scan:
    """The ranges of `size` prompts of a .txt, .tsv, .csv or .jsonl file; UsageError if it holds none."""
    try:
        with open_file(path) as file:
            sha256, has_marks = _digest(file)
            file.seek(0)
            start = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
            file.seek(start)
            lines = _lines(file, start, splits=suffix not in (*JSON_LINES, ".tsv"))
            rows = _csv_rows(lines, start, str(path)) if suffix == ".csv" else _rows(lines)
            names = tuple[str, ...]()
            if suffix in TABLES and (header := next(rows, None)):
                data = LineRange(1, *header).read(path)
                names = parse_header(data, str(path), suffix)
            elif suffix in JSON_LINES:
                names = _keys(path, start)
            total, columns = _ranges(rows, size)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    if not total:
        raise UsageError(f"{path}: holds no prompt; one prompt per line is expected")
    return Scan(total, columns, names, sha256, has_marks)


def _digest(file: BinaryIO) -> tuple[str, bool]:
    """sha256 of a file, and whether some text in it may have sentinels."""
    digest, has_marks, before = hashlib.sha256(), False, b""
    while block := file.read(_BLOCK):
        digest.update(block)
        has_marks = has_marks or _MARK in before[-2:] + block
        before = block
    return digest.hexdigest(), has_marks


def _lines(file: BinaryIO, begin: int, splits: bool) -> Iterator[tuple[int, bytes]]:
    """Position and bytes of each line; splits: a carriage return alone ends a line, too."""
    for line in file:
        for part in line.splitlines(keepends=True) if splits and b"\r" in line else (line,):
            yield begin, part
            begin += len(part)


def _rows(lines: Iterator[tuple[int, bytes]]) -> Iterator[Row]:
    """Lines that are not blank."""
    for number, (begin, line) in enumerate(lines, start=1):
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


def _keys(path: Path, start: int) -> tuple[str, ...]:
    """The keys of the first object in a file of JSON lines."""
    with open_file(path) as file:
        file.seek(start)
        for line in file:
            if line.lstrip().startswith(b"{"):
                return parse_header(line, str(path), JSON_LINES[0])
    return ()


def _ranges(rows: Iterator[Row], size: int) -> tuple[int, tuple[Sequence[int], ...]]:
    """The number of rows, and of each range its first byte, the one behind it, and its first line."""
    begins, ends, lines, total = array("q"), array("q"), array("q"), 0
    for begin, end, line in rows:
        if total % size == 0:
            begins.append(begin)
            lines.append(line)
            ends.append(end)
        ends[-1] = end
        total += 1
    return total, (begins, ends, lines)
