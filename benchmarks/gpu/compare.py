"""Compares a result of gpu.sh with a committed one, by shares of the peak that each measured.

python -m benchmarks.gpu.compare OUTDIR [benchmarks/results/FOLDER]

Without the second folder it is the newest committed one of the same card. Exit code 1 if a share of the peak
is less than nine tenths of the committed one, or tokens differ where none did.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
ENOUGH = 0.9  # of the committed share
Rows = Mapping[tuple[str, str], Mapping[str, Any]]  # values by part and name of the case


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


def compared(new: Rows, old: Rows) -> Iterator[tuple[str, str, bool]]:
    """Of each case that both have: its name, what became of it, and whether that is well."""
    for key in [key for key in old if key in new]:
        before, now = old[key].get("of peak"), new[key].get("of peak")
        if before and now:
            ratio = now / before
            yield " ".join(key), f"{before:.2%} -> {now:.2%} of peak, {ratio:.2f} times", ratio >= ENOUGH
        wrong = [values[key].get("differing tokens") for values in (old, new)]
        if None not in wrong:
            yield " ".join(key), f"{wrong[0]} -> {wrong[1]} tokens differ", wrong[1] == 0 or wrong[0] != 0


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("new", type=Path, help="folder that gpu.sh wrote")
    parser.add_argument(
        "old", type=Path, nargs="?", help="committed result; by default the newest of the card"
    )
    options = parser.parse_args()
    new = read(options.new)
    lines = list(compared(new, read(options.old or newest(card_of(new)))))
    for name, what, is_well in lines:
        print(f"{'  ' if is_well else '! '}{name}: {what}")
    sys.exit(not all(is_well for _, _, is_well in lines))


if __name__ == "__main__":
    main()
