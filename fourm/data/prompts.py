"""Prompts from files, streams and tables: text in, one string for each prompt out."""

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from fourm.data.opening import read_bytes
from fourm.errors import UsageError, near_match

COLUMNS = ("caption", "prompt", "text")  # looked for in this order, upper and lower case alike
JSON_LINES = (".jsonl", ".ndjson")
MAX_BYTES = 1 << 30  # a prompt file of more than 1 GiB is a mistake


def read_prompts(path: Path, column: str | None = None) -> list[str]:
    """Prompts of a .txt (one per line), .tsv, .csv or .jsonl (.ndjson) file; other names are read as .txt."""
    return parse_prompts(read_file(path), str(path), path.suffix.lower(), column)


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


def parse_prompts(data: bytes, where: str, suffix: str = ".txt", column: str | None = None) -> list[str]:
    """Prompts in the bytes of a file; `suffix` tells the format, `where` names the source in errors."""
    text = _text(data, where)
    if suffix in JSON_LINES:
        prompts = _json_lines(text, where, column)
    elif suffix in (".tsv", ".csv"):
        prompts = _table(text, where, suffix, column)
    elif suffix in (".json", ".yaml", ".yml", ".parquet"):
        raise UsageError(
            f"{where}: prompts are read from .txt, .tsv, .csv and .jsonl files, not from {suffix}"
        )
    elif column is not None:
        raise UsageError(
            f"{where}: --column is for .tsv, .csv and .jsonl files; this one is read line by line"
        )
    else:
        prompts = text.replace("\r", "\n").split("\n")
        _check_no_records(prompts, where)
    kept = [prompt.strip() for prompt in prompts if prompt.strip()]
    if not kept:
        raise UsageError(f"{where}: holds no prompt; one prompt per line is expected")
    return kept


def parse_columns(
    data: bytes, where: str, suffix: str, names: Sequence[str], column: str | None = None
) -> list[dict[str, str]]:
    """Texts of several modalities for each row of a table, by the names of `names`, each a column.

    The column of captions is found as `parse_prompts` finds it. A cell of JSON lines may hold data instead of
    text; it stays JSON.
    """
    text = _text(data, where)
    if suffix in JSON_LINES:
        rows = _json_records(text, where)
        listed = list(rows[0][1]) if rows else []
    elif suffix in (".tsv", ".csv"):
        listed, body = _cells(text, where, suffix)
        rows = [(number, dict(zip(listed, row, strict=False))) for number, row in body]
    else:
        raise UsageError(f"{where}: {', '.join(names)} are columns of a .tsv, .csv or .jsonl file")
    if not rows:
        raise UsageError(f"{where}: holds no row")
    found = list[dict[str, str]]()
    columns = {name: _column(listed, column if name == COLUMNS[0] else name, where) for name in names}
    for number, row in rows:
        for name, source in columns.items():
            if source not in row:
                raise UsageError(f"{where}: line {number} has nothing under '{source}'")
            if name == COLUMNS[0]:
                _check_prompt(row[source], number, source, where)
            elif isinstance(row[source], str):
                _check_whole(str(row[source]), number, where)
        cells = {name: row[source] for name, source in columns.items()}
        found.append({n: c if isinstance(c, str) else json.dumps(c) for n, c in cells.items()})
    return found


def _text(data: bytes, where: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UsageError(f"{where}: is UTF-16 or UTF-32 text; save it as UTF-8")
    if (zero := data.find(b"\0")) >= 0:
        raise UsageError(f"{where}: is a binary file (a zero byte at position {zero}), not text with prompts")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{where}: line {line} is not UTF-8 text; save the file as UTF-8") from error


def _json_records(text: str, where: str) -> list[tuple[int, dict[str, object]]]:
    """Objects of JSON lines, with the numbers of their lines."""
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            record = _json_line(line, number, where)
            if not isinstance(record, dict):
                raise UsageError(f"{where}: line {number} is no object with a key for each condition")
            records.append((number, record))
    return records


def _json_line(line: str, number: int, where: str) -> object:
    try:
        return json.loads(line, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: line {number} is not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, endless brackets
        raise UsageError(f"{where}: line {number} is not JSON that holds a prompt") from error
    except KeyError as error:
        raise UsageError(f"{where}: line {number} has {error} twice") from error


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON. KeyError for a key that is given twice."""
    found = dict[str, object]()
    for key, value in pairs:
        if key in found:
            raise KeyError(key)
        found[key] = value
    return found


def _json_lines(text: str, where: str, column: str | None) -> list[str]:
    prompts: list[str] = []
    name = column
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        record = _json_line(line, number, where)
        if isinstance(record, dict):
            name = name or _column(list(record), None, where)
            record = record.get(name)
        prompts.append(_check_prompt(record, number, name or COLUMNS[0], where))
    return prompts


def _check_prompt(value: object, number: int, name: str, where: str) -> str:
    """The text of a record's prompt. UsageError for what is none, so that no row is lost or misread."""
    if not isinstance(value, str):
        raise UsageError(f"{where}: line {number} has no text under '{name}'")
    if _is_blank(value):
        raise UsageError(f"{where}: line {number} has nothing under '{name}'")
    _check_whole(value, number, where)
    return value


def _check_whole(text: str, number: int, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{where}: line {number} holds half a character, which is no text") from error


def _check_no_records(lines: Sequence[str], where: str) -> None:
    """Refuse JSON lines that come under another name: each would become a prompt as it stands."""
    number, line = next(((i, line) for i, line in enumerate(lines, start=1) if line.strip()), (0, ""))
    if not line.lstrip().startswith("{"):
        return
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return
    if isinstance(record, dict) and any(str(key).lower() in COLUMNS for key in record):
        raise UsageError(
            f"{where}: line {number} is JSON, where each line is a prompt; JSON lines are read from a "
            "file whose name ends in .jsonl"
        )


def _table(text: str, where: str, suffix: str, column: str | None) -> list[str]:
    names, body = _cells(text, where, suffix)
    if not names:
        return []
    name = _column(names, column, where)
    index = names.index(name)
    for number, row in body:
        if _is_blank(row[index]):
            raise UsageError(f"{where}: line {number} has nothing under '{name}'")
    return [row[index] for _, row in body]


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def _cells(text: str, where: str, suffix: str) -> tuple[list[str], list[tuple[int, Sequence[str]]]]:
    """The names of a table's columns, and its rows that are not blank with the numbers of their lines.

    A .tsv is split at tabs and line ends only, so quotation marks are text (as in the Parti table).
    """
    rows: Iterable[tuple[int, Sequence[str]]]
    if suffix == ".tsv":
        rows = enumerate((line.rstrip("\r").split("\t") for line in text.split("\n")), start=1)
    else:
        rows = _csv_rows(text, where)
    filled = [(number, row) for number, row in rows if not all(map(_is_blank, row))]
    if not filled:
        return [], []
    names = [cell.strip() for cell in filled[0][1]]
    while not names[-1]:  # as spreadsheets leave them
        names.pop()
    advice = "; a comma in a text needs quotation marks around a cell" if suffix == ".csv" else ""
    for number, row in filled[1:]:
        if len(row) < len(names) or not all(map(_is_blank, row[len(names) :])):
            cells = f"{len(row)} cell{'' if len(row) == 1 else 's'}"
            raise UsageError(f"{where}: line {number} has {cells}, where the header has {len(names)}{advice}")
    return names, filled[1:]


def _csv_rows(text: str, where: str) -> Iterable[tuple[int, Sequence[str]]]:
    """Rows with the numbers of the lines in which they begin."""
    reader, line = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    try:
        for row in reader:
            if any(cell.lstrip().startswith('"') and not cell.startswith('"') for cell in row):
                raise UsageError(
                    f"{where}: line {line} has a blank before a quotation mark, which makes the mark a part "
                    "of the text; a quoted cell begins right behind the comma"
                )
            yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(f"{where}: is not a .csv table from line {line} on ({error})") from error


def _column(names: Sequence[str], wanted: str | None, where: str) -> str:
    """The column to read: the wanted one, or the first of the usual names, in any case."""
    by_case = {name.lower(): name for name in reversed(names)}
    for candidate in COLUMNS if wanted is None else (wanted,):
        found = candidate if candidate in names else by_case.get(candidate.lower())
        if found is not None:
            if names.count(found) > 1:
                raise UsageError(f"{where}: has {names.count(found)} columns '{found}'")
            return found
    listed = ", ".join(names)
    if wanted is None:
        raise UsageError(f"{where}: no column {', '.join(COLUMNS)} among {listed}; name it with --column")
    raise UsageError(f"{where}: no column '{wanted}' among {listed}{near_match(wanted, names)}")


def missing_file(path: Path) -> UsageError:
    """The error for a file or folder that is not there, with a near name."""
    near = ""
    if os.path.isdir(path.parent):
        near = near_match(path.name, os.listdir(path.parent))
    return UsageError(f"{path}: there is no such file or folder{near}")
