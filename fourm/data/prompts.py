"""Prompts from files, streams and tables: text in, one string for each prompt out."""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fourm.errors import UsageError, near_match
from fourm.files.opening import parse_json_lines, read_bytes

COLUMNS = ("caption", "prompt", "text")  # looked for in this order, upper and lower case alike
JSON_LINES, TABLES = (".jsonl", ".ndjson"), (".tsv", ".csv")
OTHER_TEXTS = (".json", ".yaml", ".yml", ".parquet")  # hold no prompt in each line
MAX_BYTES = 1 << 30  # a prompt file of more than 1 GiB is a mistake
Row = tuple[int, Any]  # number of the line; a dict by column, or any other value of a JSON line


@dataclass(frozen=True, slots=True)
class PartOfTable:
    """Where some lines of a file lie in it: lines that are read without those before them."""

    line: int  # number of the first one, from 1
    names: tuple[str, ...]  # of the table's columns
    is_first: bool = False  # they are the first ones that are not blank


def read_file(path: Path) -> bytes:
    """All bytes of a prompt file."""
    try:
        return read_bytes(path, MAX_BYTES)
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error


def read_stream(stream: BinaryIO, where: str) -> bytes:
    """All bytes of a file or stream, which may be one that never ends."""
    data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UsageError(f"{where}: more than {MAX_BYTES >> 20} MiB are too much for prompts")
    return data


def parse_prompts(
    data: bytes, where: str, suffix: str = ".txt", column: str | None = None, part: PartOfTable | None = None
) -> list[str]:
    """Prompts in the bytes of a file; `suffix` tells the format, `where` names the source in errors."""
    text = _text(data, where, part)
    if suffix in (*JSON_LINES, *TABLES):
        names, rows = _rows(text, where, suffix, part)
        name = _column(names, column, where) if names else column or COLUMNS[0]
        records = [(number, row if isinstance(row, dict) else {name: row}) for number, row in rows]
        prompts = [_cell(row, name, COLUMNS[0], f"{where}: line {number}") for number, row in records]
    elif suffix in OTHER_TEXTS:
        raise UsageError(
            f"{where}: prompts are read from .txt, .tsv, .csv and .jsonl, not from {suffix} files"
        )
    elif column is not None:
        raise UsageError(f"{where}: `column` is for .tsv, .csv and .jsonl; this file is read line by line")
    else:
        prompts = text.replace("\r", "\n").split("\n")
        first_lines = enumerate(
            prompts if part is None or part.is_first else (), start=1 if part is None else part.line
        )
        number, first = next(((i, line) for i, line in first_lines if line.strip()), (0, ""))
        with suppress(ValueError, RecursionError):
            record = json.loads(first)
            if isinstance(record, dict) and any(key.lower() in COLUMNS for key in record):
                why = "where each line is a prompt; JSON lines are read from a file whose name ends in .jsonl"
                raise UsageError(f"{where}: line {number} is JSON, {why}")
    if not (kept := [prompt.strip() for prompt in prompts if prompt.strip()]):
        raise UsageError(f"{where}: holds no prompt; one prompt per line is expected")
    return kept


def parse_columns(
    data: bytes, where: str, suffix: str, names: Sequence[str], column: str | None = None,
    part: PartOfTable | None = None,
) -> list[dict[str, str]]:  # fmt: skip
    """Texts of several modalities for each row of a table, by the names of `names`, each a column.

    Captions are found as by `parse_prompts`. A cell of JSON lines that holds data instead of text stays JSON.
    """
    text = _text(data, where, part)
    if suffix not in (*JSON_LINES, *TABLES):
        raise UsageError(f"{where}: {', '.join(names)} are columns of a .tsv, .csv or .jsonl file")
    listed, rows = _rows(text, where, suffix, part)
    if not rows:
        raise UsageError(f"{where}: holds no row")
    if bare := [number for number, row in rows if not isinstance(row, dict)]:
        raise UsageError(f"{where}: line {bare[0]} is no object with a key for each condition")
    columns = {name: _column(listed, column if name == COLUMNS[0] else name, where) for name in names}
    return [
        {name: _cell(row, source, name, f"{where}: line {number}") for name, source in columns.items()}
        for number, row in rows
    ]


def parse_header(data: bytes, where: str, suffix: str) -> tuple[str, ...]:
    """The names of a table's columns, from its first row (of JSON lines: the first object)."""
    return tuple(_rows(_text(data, where, PartOfTable(1, ())), where, suffix)[0])


def missing_file(path: Path) -> UsageError:
    """The error for a path that is not there, with a near name for the first part of it that is missing.

    `os.path.lexists` is False, too, for what lies in a folder without permission.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        first = next((one for one in (*reversed(path.parents), path) if not os.path.lexists(one)), path)
        near = ""
        with suppress(OSError):  # the folder may be searched, but not listed; or it is none
            near = near_match(first.name, os.listdir(first.parent))
        return UsageError(f"{path}: there is no such file or folder{near}")
    except OSError as error:
        return UsageError(f"{path}: cannot be read ({error.strerror})")
    return UsageError(f"{path}: there is no such file or folder")  # a link to nowhere


def _text(data: bytes, where: str, part: PartOfTable | None = None) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UsageError(f"{where}: is UTF-16 or UTF-32 text; save it as UTF-8")
    if (zero := data.find(b"\0")) >= 0:
        raise UsageError(f"{where}: is a binary file (a zero byte at position {zero}), not text with prompts")
    try:
        return data.decode("utf-8-sig" if part is None else "utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + (1 if part is None else part.line)
        raise UsageError(f"{where}: line {line} is not UTF-8 text; save the file as UTF-8") from error


def _cell(row: Mapping[str, object], column: str, name: str, where: str) -> str:
    """The text under a column; UsageError where there is none, so that no row is lost or misread."""
    cell, is_caption = row.get(column), name == COLUMNS[0]
    if is_caption and not isinstance(cell, str):
        raise UsageError(f"{where} has no text under '{column}'")
    text = cell if isinstance(cell, str) else json.dumps(cell)
    if column not in row or (is_caption and not text.strip()):
        raise UsageError(f"{where} has nothing under '{column}'")
    if re.search(r"[\ud800-\udfff]", text):
        raise UsageError(f"{where} holds half a character, which is no text")
    return text


def _rows(text: str, where: str, suffix: str, part: PartOfTable | None = None) -> tuple[list[str], list[Row]]:
    """The names of a table's columns, and its rows that are not blank."""
    start = 1 if part is None else part.line
    if suffix in JSON_LINES:
        values = list(parse_json_lines(text, where, start=start))
        first = next((value for _, value in values if isinstance(value, dict)), ())
        return list(first if part is None else part.names), values
    if suffix == ".tsv":  # quotation marks in it are text, as in the Parti table
        split = (line.rstrip("\r").split("\t") for line in text.split("\n"))
        lines: Iterable[tuple[int, list[str]]] = enumerate(split, start=start)
    else:
        lines = _csv_lines(text, where, start)
    filled = [(number, cells) for number, cells in lines if any(cell.strip() for cell in cells)]
    if part is not None:
        filled.insert(0, (0, list(part.names)))
    if not filled:
        return [], []
    names = [cell.strip() for cell in filled[0][1]]
    while not names[-1]:  # as spreadsheets leave them
        names.pop()
    advice = "; a comma in a text needs quotation marks around a cell" if suffix == ".csv" else ""
    for number, cells in filled[1:]:
        if len(cells) < len(names) or any(cell.strip() for cell in cells[len(names) :]):
            count = f"{len(cells)} cell{'' if len(cells) == 1 else 's'}"
            raise UsageError(f"{where}: line {number} has {count}, where the header has {len(names)}{advice}")
    return names, [(number, dict(zip(names, cells, strict=False))) for number, cells in filled[1:]]


def _csv_lines(text: str, where: str, start: int) -> Iterable[tuple[int, list[str]]]:
    """Cells with the numbers of the lines in which their rows begin; start: that of the first line."""
    reader, line = csv.reader(io.StringIO(text, newline=""), strict=True), start
    try:
        for cells in reader:
            if any(cell.lstrip().startswith('"') and not cell.startswith('"') for cell in cells):
                why = "which makes the mark a part of the text; a quoted cell begins right behind the comma"
                raise UsageError(f"{where}: line {line} has a blank before a quotation mark, {why}")
            yield line, cells
            line = reader.line_num + start
    except csv.Error as error:
        raise UsageError(f"{where}: is not a .csv table from line {line} on ({error})") from error


def _column(names: Sequence[str], wanted: str | None, where: str) -> str:
    """The column to read: the wanted one, or the first of the usual names, in any case."""
    by_case = {name.lower(): name for name in reversed(names)}
    for candidate in COLUMNS if wanted is None else (wanted,):
        found = candidate if candidate in names else by_case.get(candidate.lower())
        if found is not None and names.count(found) > 1:
            raise UsageError(f"{where}: has {names.count(found)} columns '{found}'")
        if found is not None:
            return found
    sought = ", ".join(COLUMNS) if wanted is None else f"'{wanted}'"
    advice = "; name it with `column`" if wanted is None else near_match(wanted, names)
    raise UsageError(f"{where}: no column {sought} among {', '.join(names)}{advice}")
