"""The results as JSON and as Markdown; both files are rewritten after every row."""

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

Value = float | int | str | None


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one case, or why there is none."""

    part: str
    name: str
    status: str  # ok, failed, left out
    values: Mapping[str, Value] = field(default_factory=dict)
    note: str = ""
    seconds: float = 0.0  # since the previous row


@dataclass(slots=True)
class Spent:
    """The time and status of a part."""

    part: str
    limit: float
    seconds: float = 0.0
    status: str = "running"


@dataclass(slots=True)
class Report:
    """All rows so far, and the two files that they are written to."""

    folder: Path
    title: str
    started: float = field(default_factory=time.monotonic)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    rows: list[Row] = field(default_factory=list)
    parts: list[Spent] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Add a row and write the files."""
        self.rows.append(row)
        self.write()

    def names(self, part: str) -> set[str]:
        """The names of a part's rows."""
        return {row.name for row in self.rows if row.part == part}

    def peaks(self) -> dict[str, float]:
        """Measured operations per second of matrix products, by dtype."""
        found = dict[str, float]()
        for row in self.rows:
            rate = row.values.get("TFLOP/s")
            if row.name.startswith("matmul ") and isinstance(rate, float):
                found[row.name.removeprefix("matmul ")] = rate * 1e12
        return found

    def write(self) -> None:
        """Write both files, each atomically."""
        seconds = round(time.monotonic() - self.started, 1)
        data = {
            "title": self.title, "date": self.date, "seconds": seconds,
            "parts": [asdict(part) for part in self.parts], "rows": [asdict(row) for row in self.rows],
        }  # fmt: skip
        _replace(self.folder / "gpu.json", json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        lines = [f"# {self.title}", "", f"{self.date}, {seconds:.0f} s in all.", ""]
        lines += table(("part", "seconds", "limit", "status"), (asdict(part) for part in self.parts))
        for part in self.parts:
            rows = [row for row in self.rows if row.part == part.part]
            lines += ["", f"## {part.part}", "", *_part(rows)] if rows else []
        _replace(self.folder / "gpu.md", "\n".join(lines) + "\n")


def _part(rows: list[Row]) -> list[str]:
    """The table of a part; a single row is shown as two columns."""
    if len(rows) == 1 or rows[0].name == "machine":
        first, *rest = rows
        lines = [{first.name: name, "value": value} for name, value in first.values.items()]
        lines += [{first.name: "result", "value": f"{first.status} {first.note}"}] if first.note else []
        own = table((first.name, "value"), lines)
        return [*own, "", *_part(rest)] if rest else own
    columns = dict.fromkeys(column for row in rows for column in row.values)
    noted = any(row.note for row in rows)
    names = ("what", *columns, *(("note",) if noted else ()))
    return table(
        names,
        (
            {"what": row.name, **row.values, "note": f"{row.status}: {row.note}" if row.note else ""}
            for row in rows
        ),
    )


def table(columns: tuple[str, ...], rows: Iterable[Mapping[str, object]]) -> list[str]:
    """A table in Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_text(column, row.get(column)) for column in columns) + " |" for row in rows]
    return lines


def _text(column: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        if column.startswith(("of ", "saving of")):
            return f"{value:.1%}"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if value else "0"
    return " ".join(str(value).replace("|", "/").split())


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
