"""Compares a result of gpu.sh with a committed one, by shares of the peak that each measured.

python -m benchmarks.gpu.compare OUTDIR [benchmarks/results/FOLDER] [--json FILE]

Without the second folder it is the newest committed one of the same card. Exit code 1 if a share of the peak
is less than nine tenths of the committed one, tokens differ where none did, or nothing can be compared.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tables import Table, add_json

RESULTS = Path(__file__).parents[1] / "results"
ENOUGH = 0.9  # of the committed share
COLUMNS = {"case": "", "of what": "", "old": ".4g", "new": ".4g", "ratio": ".2f", "note": ""}
Rows = Mapping[tuple[str, str], Mapping[str, Any]]  # values by part and name of the case


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one case."""

    case: str
    what: str
    old: float
    new: float

    @property
    def ratio(self) -> float | None:
        """New over old: above 1 is faster."""
        return self.new / self.old if self.what == "of peak" else None

    @property
    def is_well(self) -> bool:
        """Fast enough, or no token differs that did not."""
        return self.new == 0 or self.old != 0 if self.ratio is None else self.ratio >= ENOUGH


def read(folder: Path) -> Rows:
    """The cases of a result that were measured."""
    data = json.loads((folder / "gpu.json").read_text(encoding="utf-8"))
    return {(row["part"], row["name"]): row["values"] for row in data["rows"] if row["status"] == "ok"}


def card_of(rows: Rows) -> str:
    """The name of the card."""
    return str(rows.get(("facts", "machine"), {}).get("card", ""))


def newest(card: str, results: Path = RESULTS) -> Path:
    """The newest committed result of a card."""
    folders = sorted((path.parent for path in results.glob("*/gpu.json")), reverse=True)
    for folder in folders:
        if card_of(read(folder)) == card:
            return folder
    sys.exit(f"no committed result of the card '{card}' in {results}")


def compared(new: Rows, old: Rows) -> Iterator[Change]:
    """What became of each case that both have."""
    for key in [key for key in old if key in new]:
        for what in ("of peak", "differing tokens"):
            before, now = old[key].get(what), new[key].get(what)
            if before is not None and now is not None and (before or what != "of peak"):
                yield Change(" ".join(key), what, before, now)


def show(new: Rows, old: Rows, file: Path | None = None) -> bool:
    """Print a row for each case; False if one of them is not well, or there is none."""
    table, changes = Table(COLUMNS, file, card=card_of(new)), [*compared(new, old)]
    for one in changes:
        mark = "" if one.is_well else "worse"
        table.add(one.case, one.what, one.old, one.new, one.ratio, mark)
    if missing := [" ".join(key) for key in old if key not in new]:
        print(f"\nNot measured in the new one: {', '.join(missing)}")
    return bool(changes) and all(one.is_well for one in changes)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("new", type=Path, help="folder that gpu.sh wrote")
    parser.add_argument(
        "old", type=Path, nargs="?", help="committed result; by default the newest of the card"
    )
    add_json(parser)
    options = parser.parse_args()
    new = read(options.new)
    sys.exit(not show(new, read(options.old or newest(card_of(new))), options.json))


if __name__ == "__main__":
    main()
