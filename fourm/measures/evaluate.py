"""Measures the values of a folder, alone or as one of several processes, and writes what was found.

A process takes every n-th sample (of sharded runs every n-th shard) and writes what its measures collected to
`eval/RANK-of-N.npz`. The one that finds all of them there merges them: the result is that of one process.
"""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fourm import __version__
from fourm.codecs.files import read_members
from fourm.data.layout import parse_key
from fourm.errors import MissingError, SampleError, UsageError, near_match
from fourm.files.opening import path_text
from fourm.files.writing import make_all, remove_leftovers, write_atomic, write_text
from fourm.hub.cache import find_measure
from fourm.inputs.world import World, parse_world
from fourm.measures.measure import Measure, Pair, Row, Settings, Value
from fourm.measures.pairs import CAPTION, Counts, Pairs, Problem, RunFolder, list_pairs
from fourm.measures.tables import MEASURES, MeasureRow, build_measure, measures_for
from fourm.modalities.registry import Modality
from fourm.output.record import EVAL, EVAL_CSV, EVAL_JSON

GROUP = 32  # pairs that a measure gets at once
RESAMPLES, LEVEL, SEED = 1000, 0.95, 0  # of the bootstrap
FORMAT = 1  # of eval.json; fields may be added to it
Sample = tuple[str, int | None]  # key and variation
Rows = dict[Sample, dict[str, float]]  # numbers of each sample, by "MODALITY/NAME"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be measured, and where the results go."""

    root: Path
    against: str | None = None
    measures: tuple[str, ...] = ()  # names in MEASURES; (): all that fit and whose networks are here
    metric_depth: bool = False
    model: str | None = None  # whose modalities these are; None: that of the record
    device: str = "auto"  # of networks
    world: World = field(default_factory=World)
    out: Path | None = None  # None: the folder that is measured

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return self.root if self.out is None else self.out


@dataclass(slots=True)
class Task:
    """One kind of value, and what is measured of it."""

    pairs: Pairs
    measures: dict[str, Measure]  # by their names in MEASURES

    @property
    def name(self) -> str:
        """What it is called in results."""
        return self.pairs.held.name

    def measure(self, rows: Rows, seen: Callable[[int], None]) -> None:
        """Read all pairs of this share, and measure them."""
        lost = list[Problem]()
        for group in _grouped(self.pairs):
            for name, measure in self.measures.items():
                fit = [pair for pair in group if _suits(pair, MEASURES[name])]
                for pair, row in _update(measure, fit, self.name, lost):
                    own = rows.setdefault((pair.key, pair.variation), {})
                    own |= {f"{self.name}/{column}": float(number) for column, number in row.items()}
            seen(len(group))
        self.pairs.problems += [one for one in dict.fromkeys(lost) if one not in self.pairs.problems]


@dataclass(frozen=True, slots=True)
class Number:
    """One line of the table of results."""

    modality: str  # the folder of the values
    measure: str  # name in MEASURES
    name: str  # of the number
    value: float  # NaN: not defined
    samples: int  # results that it is made of
    better: Literal["higher", "lower", ""]
    low: float | None = None  # of the interval; None: there is none
    high: float | None = None
    is_detail: bool = False
    counts: Mapping[str, int] = field(default_factory=dict)  # left out of it, by why

    def to_json(self) -> dict[str, object]:
        """The fields as JSON has them: numbers that JSON does not know are null."""
        facts = asdict(self) | self.counts
        del facts["counts"]
        numbers = {name: _finite(facts[name]) for name in ("value", "low", "high")}
        return {**facts, **numbers, "source": MEASURES[self.measure].source}


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The results of a folder."""

    numbers: tuple[Number, ...]
    rows: Rows  # in the order of keys
    counts: Mapping[str, Counts]  # by modality
    problems: tuple[Problem, ...]  # what could not be measured, and is left out
    notes: tuple[str, ...]
    settings: Mapping[str, object]
    pairs: tuple[Pairs, ...]  # of all samples, to look at some of them
    folder: Path  # that holds eval.json and eval.csv

    def to_json(self) -> dict[str, object]:
        """What eval.json contains."""
        counts = {name: one.to_json() for name, one in self.counts.items()}
        return {
            "format": FORMAT, "settings": dict(self.settings),
            "results": [one.to_json() for one in self.numbers], "counts": counts,
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


def evaluate(
    folder: str | os.PathLike[str], against: str | os.PathLike[str] | None = None, *,
    measures: str | Sequence[str] = (), metric_depth: bool = False, model: str | None = None,
    device: str = "auto", shard: str | None = None, out: str | os.PathLike[str] | None = None,
) -> Evaluation | None:  # fmt: skip
    """Measure what a folder holds, and write `eval.json` and `eval.csv` into it, as `fourm eval` does.

    folder: of a run or a dataset. against: another one, with samples of the same names, or what else names a
    dataset; None: measures that need no partner. measures: names ("psnr", "fid", ...), in one text or a list;
    without any, all that fit the values and whose networks are on this machine. metric_depth=True: depth is
    compared as it is; else each picture's scale and shift are fitted first. model: whose modalities the
    values are, if the record of the folder does not say it. shard: "0/4" measures one of four shares. out:
    another folder for the results.
    None: other shares are not measured yet; the last one returns the results of all. UsageError: a folder
    that cannot be read, an unknown measure, nothing to compare; MissingError: a network is not here.
    """
    names = tuple(measures.replace(",", " ").split()) if isinstance(measures, str) else tuple(measures)
    asked = Asked(
        Path(path_text(folder)), None if against is None else path_text(against), names, metric_depth, model,
        device, parse_world(shard, {}), None if out is None else Path(path_text(out)),
    )  # fmt: skip
    return measure_folder(asked)


def measure_folder(
    asked: Asked, seen: Callable[[int], None] = lambda count: None, only_merge: bool = False
) -> Evaluation | None:
    """Measure the share of this process, and merge all shares if they are there; None if not.

    seen: is told how many pairs were measured since the last call. only_merge: nothing is measured;
    UsageError if a share is not there.
    """
    tasks, notes = plan(asked)
    make_all(asked.folder)
    settings, rows = settings_of(asked, tasks), Rows()
    try:
        if not only_merge:
            for task in tasks:
                task.measure(rows, seen)
        if asked.world.size > 1:
            if not only_merge:
                _save(asked, tasks, rows, settings)
            shares = [_load(asked, rank, settings) for rank in range(asked.world.size)]
            there = [share for share in shares if share is not None]
            if len(there) < len(shares):
                if only_merge:
                    lacking = [str(rank) for rank, share in enumerate(shares) if share is None]
                    which = ", ".join(lacking[:8]) + (", ..." if len(lacking) > 8 else "")
                    raise UsageError(f"{asked.folder / EVAL}: no share {which} of these settings is there")
                return None
            own = None if only_merge else asked.world.rank
            rows = _merge(tasks, there, own)
        found = _result(asked, tasks, rows, notes, settings)
        write_text(asked.folder, asked.folder / EVAL_CSV, found.to_csv())
        write_text(asked.folder, asked.folder / EVAL_JSON, json.dumps(found.to_json(), indent=2) + "\n")
        return found
    finally:
        remove_leftovers(asked.folder)


def plan(asked: Asked) -> tuple[list[Task], list[str]]:
    """What is measured of what, and notes on what is not. Reads no values; imports torch for networks only.

    UsageError: an unknown measure, or one that fits nothing in the folder; MissingError: what one needs that
    was asked for by name is not here.
    """
    for name in asked.measures:
        if name not in MEASURES:
            near = near_match(name, MEASURES) or f"; there are {', '.join(MEASURES)}"
            raise UsageError(f"`measures`: there is no measure '{name}'{near}")
    tasks, notes, missing = list[Task](), list[str](), dict[str, list[str]]()
    for pairs in list_pairs(asked.root, asked.against, asked.world, asked.model):
        held, built = pairs.held, dict[str, Measure]()
        for row in measures_for(held.sort, pairs.partner is not None, pairs.captions is not None):
            if asked.measures and row.name not in asked.measures:
                continue
            try:
                built[row.name] = build_measure(row, _settings_for(row, held.row, asked))
            except MissingError as error:
                if asked.measures:
                    raise
                missing.setdefault(str(error), []).append(row.name)
        if built:
            if not any(MEASURES[name].needs_caption for name in built):
                pairs = replace(pairs, captions=None)
            tasks.append(Task(pairs, built))
        if asked.against is not None and pairs.partner is None:
            notes.append(f"{held.name}: {asked.against} has nothing to compare it with")
    notes += [f"not measured: {', '.join(dict.fromkeys(names))} ({why})" for why, names in missing.items()]
    done = {name for task in tasks for name in task.measures}
    if unused := [name for name in asked.measures if name not in done]:
        what = _why_unused(MEASURES[unused[0]], asked)
        raise UsageError(f"`measures`: {unused[0]} {what}")
    if not tasks:
        where = f"{asked.root} and {asked.against} have no values that a measure compares"
        alone = f"{asked.root}: no measure is for it alone; `against=DIR` names what to compare with"
        raise UsageError(alone if asked.against is None else where)
    return tasks, notes


def settings_of(asked: Asked, tasks: Sequence[Task]) -> dict[str, object]:
    """What the results depend on, as eval.json says it; states of other settings are not merged."""
    folders = [folder for task in tasks for folder in (task.pairs.here, task.pairs.there)]
    runs = [run.identity for one in folders if isinstance(one, RunFolder) for run in one.runs]
    return {
        "against": asked.against, "measures": {task.name: list(task.measures) for task in tasks},
        "metric_depth": asked.metric_depth, "processes": asked.world.size, "runs": sorted({*runs}),
        "interval": LEVEL, "resamples": RESAMPLES, "seed": SEED, "version": __version__,
    }  # fmt: skip


def intervals(rows: Rows, columns: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the means of some columns, by a bootstrap over samples.

    All variations of a sample are drawn together. Numbers that are not finite are left out, as in the means.
    There is none for fewer than two samples.
    """
    keys = {key: number for number, key in enumerate(dict.fromkeys(key for key, _ in rows))}
    sums, counts = (np.zeros((len(keys), len(columns))) for _ in range(2))
    for (key, _), row in rows.items():
        for column, name in enumerate(columns):
            if math.isfinite(number := row.get(name, math.nan)):
                sums[keys[key], column] += number
                counts[keys[key], column] += 1
    known = np.flatnonzero((counts > 0).sum(axis=0) > 1)
    if not len(known):
        return {}
    sums, counts = sums[:, known], counts[:, known]
    draw, means = np.random.default_rng(SEED), np.full((RESAMPLES, len(known)), math.nan)
    for number in range(RESAMPLES):
        weights = np.bincount(draw.integers(len(keys), size=len(keys)), minlength=len(keys))
        total = weights @ counts
        np.divide(weights @ sums, total, out=means[number], where=total > 0)
    ends = np.nanpercentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0).T.tolist()
    return {columns[column]: (low, high) for column, (low, high) in zip(known, ends, strict=True)}


def _result(
    asked: Asked, tasks: Sequence[Task], rows: Rows, notes: Sequence[str], settings: Mapping[str, object]
) -> Evaluation:
    """The results of all shares."""
    rows = dict(sorted(rows.items(), key=lambda one: (parse_key(one[0][0]), one[0][1] or 0)))
    found = [(task, name, measure.result()) for task in tasks for name, measure in task.measures.items()]
    means = [
        f"{task.name}/{name}" for task, _, values in found for name, one in values.items() if one.is_mean
    ]
    ends = intervals(rows, means)
    numbers = [
        _number(task.name, measure, name, value, ends)
        for task, measure, values in found
        for name, value in values.items()
    ]
    problems = sorted({one for task in tasks for one in task.pairs.problems}, key=_order)
    counts = {task.name: task.pairs.counts for task in tasks}
    whole = tuple(replace(task.pairs, world=World()) for task in tasks)
    return Evaluation(
        tuple(numbers), rows, counts, tuple(problems), tuple(notes), settings, whole, asked.folder
    )


def _number(
    modality: str, measure: str, name: str, value: Value, ends: Mapping[str, tuple[float, float]]
) -> Number:
    low, high = ends.get(f"{modality}/{name}", (None, None)) if value.is_mean else (None, None)
    better = MEASURES[measure].results.get(name, "")
    return Number(
        modality, measure, name, value.value, value.samples, better, low, high, value.is_detail, value.counts
    )


def _update(
    measure: Measure, pairs: Sequence[Pair], modality: str, lost: list[Problem]
) -> Iterator[tuple[Pair, Row]]:
    """Each pair with its row; one that cannot be measured is added to `lost`."""
    try:
        yield from zip(pairs, measure.update(pairs) if pairs else (), strict=True)
        return
    except SampleError as error:
        if len(pairs) == 1:
            lost.append(Problem(pairs[0].key, pairs[0].variation, modality, str(error)))
            return
    for pair in pairs:
        yield from _update(measure, [pair], modality, lost)


def _suits(pair: Pair, row: MeasureRow) -> bool:
    """Whether a pair has what a measure needs."""
    return (pair.other is not None or not row.needs_partner) and (
        CAPTION in pair.texts or not row.needs_caption
    )


def _settings_for(row: MeasureRow, modality: Modality, asked: Asked) -> Settings:
    """The settings of a measure; MissingError: its network is not here."""
    if not row.weights:
        return Settings(modality, metric_depth=asked.metric_depth)
    weights = find_measure(row.weights)
    from fourm.runs.device import choose_device  # imports torch, which networks alone need

    return Settings(modality, str(choose_device(asked.device, asked.world)), weights, asked.metric_depth)


def _grouped(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """Pairs, GROUP at a time."""
    rest = iter(pairs)
    while group := list(islice(rest, GROUP)):
        yield group


def _why_unused(row: MeasureRow, asked: Asked) -> str:
    if row.needs_partner and asked.against is None:
        return "compares two folders; `against=DIR` names the other"
    also = f", and {CAPTION}s" if row.needs_caption else ""
    return f"is for {', '.join(row.sorts)}{also}; there are none to measure"


def _state_path(asked: Asked, rank: int) -> Path:
    return asked.folder / EVAL / f"{rank:05d}-of-{asked.world.size:05d}.npz"


@dataclass(frozen=True, slots=True)
class _Share:
    """What one process has found."""

    rows: Rows
    counts: Mapping[str, Counts]
    problems: tuple[Problem, ...]
    states: Mapping[tuple[str, str], Mapping[str, NDArray[Any]]]  # by modality and measure


def _save(asked: Asked, tasks: Sequence[Task], rows: Rows, settings: Mapping[str, object]) -> None:
    """Write what this process has found: arrays of numbers, and a text that says what they are."""
    arrays, states = list[NDArray[Any]](), list[tuple[str, str, str]]()
    for task in tasks:
        for name, measure in task.measures.items():
            for part, array in measure.state().items():
                states.append((task.name, name, part))
                arrays.append(np.asarray(array))
    samples, columns = list(rows), list(dict.fromkeys(name for row in rows.values() for name in row))
    for name in columns:
        own = [(at, row[name]) for at, row in enumerate(rows.values()) if name in row]
        arrays += [np.array([at for at, _ in own], np.int64), np.array([number for _, number in own])]
    facts = {
        "settings": settings, "states": states, "samples": samples, "columns": columns,
        "counts": {task.name: asdict(task.pairs.counts) for task in tasks},
        "problems": [asdict(one) for task in tasks for one in task.pairs.problems],
    }  # fmt: skip
    text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    named = {"facts": text, **{f"array{number}": array for number, array in enumerate(arrays)}}

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **named)

    write_atomic(asked.folder, _state_path(asked, asked.world.rank), write)


def _load(asked: Asked, rank: int, settings: Mapping[str, object]) -> _Share | None:
    """What a process has found with these settings; None: nothing yet. UsageError: the file is damaged."""
    path = _state_path(asked, rank)
    if not path.is_file():
        return None
    try:
        facts = json.loads(read_members(path, "facts")[0].tobytes())
        if facts["settings"] != json.loads(json.dumps(settings)):
            return None
        samples, columns = [(str(key), variation) for key, variation in facts["samples"]], facts["columns"]
        count = len(facts["states"]) + 2 * len(columns)
        arrays = iter(read_members(path, *(f"array{number}" for number in range(count))))
        states = dict[tuple[str, str], dict[str, NDArray[Any]]]()
        for modality, measure, part in facts["states"]:
            states.setdefault((modality, measure), {})[part] = next(arrays)
        rows: Rows = {sample: {} for sample in samples}
        for name in columns:
            for at, number in zip(next(arrays).tolist(), next(arrays).tolist(), strict=True):
                rows[samples[at]][name] = number
        counts = {name: Counts(**one) for name, one in facts["counts"].items()}
        return _Share(rows, counts, tuple(Problem(**one) for one in facts["problems"]), states)
    except (SampleError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{path}: is damaged ({error}); delete it, and measure its share again") from error


def _merge(tasks: Sequence[Task], shares: Sequence[_Share], own: int | None) -> Rows:
    """Add what all processes have found to tasks; the rows of all. own: the share that tasks have already."""
    rows = Rows()
    for share in shares:
        for sample, row in share.rows.items():
            rows.setdefault(sample, {}).update(row)
    for task in tasks:
        counts = [share.counts[task.name] for share in shares]
        task.pairs.counts = Counts(
            sum(one.pairs for one in counts), sum(one.without_partner for one in counts),
            sum(one.matched for one in counts), sum(one.others for one in counts),
        )  # fmt: skip
        task.pairs.problems = [one for share in shares for one in share.problems if one.modality == task.name]
        others = [share for rank, share in enumerate(shares) if rank != own]
        for name, measure in task.measures.items():
            measure.merge([share.states.get((task.name, name), {}) for share in others])
    return rows


def _order(problem: Problem) -> tuple[str, int, str, str]:
    return problem.key, problem.variation or 0, problem.modality, problem.reason


def _finite(number: object) -> object:
    return None if isinstance(number, float) and not math.isfinite(number) else number
