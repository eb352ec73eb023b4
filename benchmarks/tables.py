"""The table that a benchmark prints in Markdown, and the same as JSON with `--json FILE`."""

import argparse
import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import torch

from fourm import __version__

Value = float | int | str | None | list[float]


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option that every benchmark has."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows, unrounded, there too")


class Table:
    """Rows that are printed one by one; after each, the file is written anew."""

    def __init__(self, columns: Mapping[str, str], file: Path | None = None, **measured: Value) -> None:
        """columns: how values are printed (".2f"), "" for texts. measured: limits of the machine."""
        self.rows = list[dict[str, Value]]()
        self._columns, self._file, self._measured = columns, file, measured
        self._write()  # a file that cannot be written is found out before anything is measured
        print(f"| {' | '.join(columns)} |")
        print(f"| {' | '.join('---:' if how else '---' for how in columns.values())} |", flush=True)

    def add(self, *values: Value, **more: Value) -> None:
        """One value for each column; `more` stands in the file alone."""
        row = dict(zip(self._columns, values, strict=True))
        cells = ("" if row[name] is None else format(row[name], how) for name, how in self._columns.items())
        print(f"| {' | '.join(cells)} |", flush=True)
        self.rows.append(row | more)
        self._write()

    def _write(self) -> None:
        if self._file is not None:
            date = datetime.now(UTC).isoformat(timespec="seconds")
            data = {"date": date, "machine": machine(), "measured": self._measured, "rows": self.rows}
            self._file.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def machine() -> dict[str, str | int | None]:
    """What times depend on, but for GPUs."""
    return {
        "torch": torch.__version__, "Python": platform.python_version(), "processor": _processor(),
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "fourm": __version__,
    }  # fmt: skip


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
