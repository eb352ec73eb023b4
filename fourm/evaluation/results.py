"""The results of an evaluation: the numbers of each measure, their intervals, and those of each sample."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from fourm.errors import UsageError, near_match
from fourm.evaluation.pairs import Counts, Pairs, Problem
from fourm.measures.measure import Value
from fourm.measures.tables import MEASURES

RESAMPLES, LEVEL, SEED = 1000, 0.95, 0  # of the bootstrap
FORMAT = 1  # of eval.json; fields may be added to it
Ends = tuple[float, float]  # of an interval
Better = Literal["higher", "lower", ""]
Sample = tuple[str, int | None]  # key and variation
Rows = dict[Sample, dict[str, float]]  # numbers of each sample, by "MODALITY/NAME"; those that are not NaN


@dataclass(frozen=True, slots=True)
class Number:
    """One line of the table of results.

    `modality`, `measure` and `name` say what it is; `value`, and `low` and `high` of its interval (None:
    there is none); `samples` that it is made of; `better`: "higher", "lower" or ""; `is_detail`: of one class
    or field, and not in the table; `counts`: what was left out of it, by why.
    """

    modality: str  # the folder of the values
    measure: str  # name in MEASURES
    name: str  # of the number
    value: float  # NaN: not defined
    samples: int  # results that it is made of
    better: Better
    low: float | None = None  # of the interval; None: there is none
    high: float | None = None
    is_detail: bool = False
    counts: Mapping[str, int] = field(default_factory=dict)  # left out of it, by why

    @classmethod
    def of(cls, modality: str, measure: str, name: str, one: Value, ends: Ends | None) -> "Number":
        """A number of a measure, with the interval that samples give it."""
        better: Better = MEASURES[measure].results.get(name, "")
        low, high = ends or (None, None)
        return cls(
            modality, measure, name, one.value, one.samples, better, low, high, one.is_detail, one.counts
        )

    def to_json(self) -> dict[str, object]:
        """The fields as JSON has them: numbers that JSON does not know are null."""
        facts = {**asdict(self), **self.counts}
        del facts["counts"]
        for name in ("value", "low", "high"):
            if facts[name] is not None and not math.isfinite(facts[name]):
                facts[name] = None
        return facts

    def texts(self) -> tuple[str, str, str, str, str, str]:
        """Modality, name, value, interval, samples and the better direction, as a table shows them."""
        value = "-" if math.isnan(self.value) else digits(self.value)
        interval = " .. ".join(digits(end) for end in (self.low, self.high) if end is not None)
        arrow = {"higher": "↑", "lower": "↓", "": ""}[self.better]
        return self.modality, self.name, value, interval, f"{self.samples:,}", arrow


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Evaluation:
    """The results of a folder.

    `found.value("psnr")` is one number; `found.numbers` are all, with intervals and numbers of samples;
    `found.rows["00000/000003", None]` are those of one sample and variation (None: the only one), as
    `{"rgb/psnr": 31.2}`. `problems` and `notes` say what was left out, `settings` what numbers depend on.
    """

    numbers: tuple[Number, ...]
    rows: Rows  # in the order of keys
    counts: Mapping[str, Counts]  # by modality
    problems: tuple[Problem, ...]  # what could not be measured, and is left out
    notes: tuple[str, ...]
    settings: Mapping[str, object]
    pairs: tuple[Pairs, ...]  # of all samples, to look at some of them
    folder: Path  # that holds eval.json and eval.csv

    def __repr__(self) -> str:
        """The table."""
        lines = [one.texts() for one in self.numbers if not one.is_detail]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
        return "\n".join([f"Evaluation of {self.folder}", *table])

    def value(self, name: str) -> float:
        """The number `psnr`, or `rgb/psnr` where several modalities have one. UsageError: there is none."""
        found = [one for one in self.numbers if name in (one.name, f"{one.modality}/{one.name}")]
        if len(found) == 1:
            return found[0].value
        if not found:
            known = dict.fromkeys(one.name for one in self.numbers if not one.is_detail)
            near = near_match(name, {one.name for one in self.numbers}) or f"; there are {', '.join(known)}"
            raise UsageError(f"'{name}' was not measured{near}")
        names = ", ".join(f"'{one.modality}/{one.name}'" for one in found)
        raise UsageError(f"'{name}' was measured of several: {names}")

    def to_json(self) -> dict[str, object]:
        """What eval.json contains."""
        return {
            "format": FORMAT, "settings": dict(self.settings),
            "results": [one.to_json() for one in self.numbers],
            "counts": {name: asdict(one) for name, one in self.counts.items()},
            "problems": [asdict(one) for one in self.problems], "notes": list(self.notes),
        }  # fmt: skip

    def to_csv(self) -> str:
        """What eval.csv contains: a row for each sample and variation; empty where there is no number."""
        columns = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["key", "variation", *columns])
        for (key, variation), row in self.rows.items():
            numbers = (repr(row[name]) if name in row else "" for name in columns)
            writer.writerow([key, "" if variation is None else variation, *numbers])
        return file.getvalue()


def digits(number: float) -> str:
    """Four decimals; below 0.01, four significant digits."""
    return f"{number:.4f}" if not number or abs(number) >= 0.01 else f"{number:.4g}"


def intervals(rows: Rows, columns: Sequence[str]) -> dict[str, Ends]:
    """Percentile intervals of the means of some columns, by a bootstrap over samples.

    All variations of a sample are drawn together. Numbers that are not finite are left out, as in the means.
    There is none for fewer than two samples.
    """
    found = dict[str, Ends]()
    keys = {key: number for number, key in enumerate(dict.fromkeys(key for key, _ in rows))}
    for name in columns:
        sums, counts = np.zeros(len(keys)), np.zeros(len(keys))
        for (key, _), row in rows.items():
            if math.isfinite(number := row.get(name, math.nan)):
                sums[keys[key]] += number
                counts[keys[key]] += 1
        known = counts > 0
        if (size := int(known.sum())) < 2:
            continue
        # Only samples that have the number are drawn, so other columns change nothing.
        sums, counts = sums[known], counts[known]
        draw, means = np.random.default_rng(SEED), np.zeros(RESAMPLES)
        for number in range(RESAMPLES):  # one at a time: a matrix of all draws would need gigabytes
            drawn = draw.integers(size, size=size)
            means[number] = sums[drawn].sum() / counts[drawn].sum()
        low, high = np.percentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)]).tolist()
        found[name] = low, high
    return found
