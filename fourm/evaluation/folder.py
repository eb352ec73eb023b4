"""Measures the values of a folder, alone or as one of several processes, and writes what was found.

A process takes every n-th sample (of sharded runs every n-th shard) and writes what its measures collected to
`eval/RANK-of-N.npz`. The one that finds all of them there merges them: the result is that of one process.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from fourm import __version__
from fourm.data.layout import parse_key
from fourm.data.mirrors import local_folder
from fourm.errors import MissingError, SampleError, UsageError, as_addresses, near_match
from fourm.evaluation.pairs import CAPTION, Folder, Pairs, Problem, RunFolder, list_pairs
from fourm.evaluation.results import LEVEL, RESAMPLES, SEED, Evaluation, Number, Rows, intervals
from fourm.evaluation.shares import Share, path_of_share, read_share, recorded_measures, write_share
from fourm.files.opening import output_path, path_text
from fourm.files.writing import (
    check_root,
    check_writable,
    make_all,
    refuse_inside,
    remove_leftovers,
    write_text,
)
from fourm.hub.cache import find_measure
from fourm.hub.files import weights_of
from fourm.inputs.world import World, parse_world
from fourm.measures.measure import Measure, Pair, Row, Settings
from fourm.measures.tables import MEASURES, MeasureRow, build_measure, measures_for, source_of
from fourm.output.joining import remove_measures
from fourm.output.processes import remove_empty, sha256_of_file
from fourm.output.record import EVAL, EVAL_CSV, EVAL_DRAWINGS, EVAL_JSON

# Pairs that a measure gets at once, and about how large they may be together.
GROUP, GROUP_BYTES = 32, 1 << 26


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
        for group in _grouped(self.pairs):
            for name, measure in self.measures.items():
                fit = [pair for pair in group if _suits(pair, MEASURES[name])]
                for pair, row in _update(measure, fit, self._lose):
                    own = rows.setdefault((pair.key, pair.variation), {})
                    named = ((f"{self.name}/{column}", float(number)) for column, number in row.items())
                    own.update((column, number) for column, number in named if number == number)
            seen(len(group))

    def _lose(self, pair: Pair, error: SampleError) -> None:
        """Note a pair that cannot be measured, once for all measures that say the same."""
        problem = Problem(pair.key, pair.variation, self.name, str(error))
        if problem not in self.pairs.problems[-GROUP:]:
            self.pairs.problems.append(problem)


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
    another folder for the results, as the address of an object store needs one.
    None: other shares are not measured yet; the last one returns the results of all. UsageError: a folder
    that cannot be read, an unknown measure, nothing to compare; MissingError: a network is not here.
    """
    names = measures.replace(",", " ").split() if isinstance(measures, str) else measures
    other = None if against is None else path_text(against)
    return measure_folder(Asked(
        local_folder(folder), other, tuple(names), metric_depth, model, device, parse_world(shard, {}),
        None if out is None else output_path(out),
    ))  # fmt: skip


def measure_folder(
    asked: Asked, seen: Callable[[int], None] = lambda count: None, only_merge: bool = False
) -> Evaluation | None:
    """Measure the share of this process, and merge all shares if they are there; None if not.

    seen: is told how many pairs were measured since the last call. only_merge: nothing is measured, and no
    network is needed; UsageError if a share is not there.
    """
    if asked.out is None and (place := as_addresses(str(asked.root))) != str(asked.root):
        raise UsageError(f"`out`: names a folder here for the results, as {place} is elsewhere")
    folder, world, rows = asked.folder, asked.world, Rows()
    tasks, notes = plan(asked, recorded_measures(folder, world.size) if only_merge else None)
    settings, sources = settings_of(asked, tasks), dict[str, object]()
    try:
        if not only_merge:
            _check_place(asked, tasks)
            path_of_share(folder, world).unlink(missing_ok=True)  # no other process merges an old one
            for task in tasks:
                task.measure(rows, seen)
            sources = _sources(asked, tasks)
        if world.size > 1:
            if not only_merge:
                write_share(folder, world, settings, _share_of(tasks, rows, sources))
            lacking = list[int]()
            for rank in (rank for rank in range(world.size) if only_merge or rank != world.rank):
                if (share := read_share(folder, replace(world, rank=rank), settings)) is None:
                    lacking.append(rank)
                elif not lacking:
                    _merge(tasks, rows, share)
                    sources = sources or dict(share.sources)
            if lacking and only_merge:
                which = ", ".join(map(str, lacking[:8])) + (", ..." if len(lacking) > 8 else "")
                raise UsageError(f"{folder / EVAL}: no share {which} of these settings is there")
            if lacking:
                return None
        _check_any(asked, tasks)
        found = _result(asked, tasks, rows, notes, {**settings, "sources": sources})
        # The first file is deleted first and written last: nobody sees results of which half is old.
        remove_measures(folder, EVAL_DRAWINGS)
        write_text(folder, folder / EVAL_CSV, found.to_csv())
        write_text(folder, folder / EVAL_JSON, json.dumps(found.to_json(), indent=2) + "\n")
        for rank in range(world.size):  # they are merged
            path_of_share(folder, replace(world, rank=rank)).unlink(missing_ok=True)
        remove_empty([folder / EVAL])
        return found
    finally:
        remove_leftovers(folder)


def plan(asked: Asked, recorded: Mapping[str, Sequence[str]] | None = None) -> tuple[list[Task], list[str]]:
    """What is measured of what, and notes on what is not. Reads no values; imports torch for networks only.

    recorded: the measures of each modality that processes have taken, which are only merged. UsageError: an
    unknown measure, or one that fits nothing in the folder; MissingError: what one needs that was asked for
    by name is not here.
    """
    for name in asked.measures:
        if name not in MEASURES:
            givers = [row.name for row in MEASURES.values() if name in row.results]
            of = f"; {givers[0]} gives that number" if givers else ""
            near = of or near_match(name, MEASURES) or f"; there are {', '.join(MEASURES)}"
            raise UsageError(f"`measures`: there is no measure '{name}'{near}")
    tasks, alone, missing = list[Task](), list[str](), dict[str, MeasureRow]()
    for pairs in list_pairs(asked.root, asked.against, asked.world, asked.model):
        held, built = pairs.held, dict[str, Measure]()
        fit = measures_for(held.sort, pairs.partner is not None, pairs.captions is not None)
        names = asked.measures or MEASURES if recorded is None else recorded.get(held.name, ())
        for row in (row for row in fit if row.name in names):
            try:
                built[row.name] = build_measure(row, _settings_for(row, pairs, asked, recorded is None))
            except MissingError:
                if asked.measures:
                    raise
                missing[row.name] = row
        if built:
            if not any(MEASURES[name].needs_caption for name in built):
                pairs = replace(pairs, captions=None)
            tasks.append(Task(pairs, built))
        compared = measures_for(held.sort, True, False)
        if asked.against is not None and pairs.partner is None and any(row.name in names for row in compared):
            alone.append(held.name)
    done = {name for task in tasks for name in task.measures}
    if unused := [name for name in asked.measures if name not in done]:
        what = _why_unused(MEASURES[unused[0]], asked)
        raise UsageError(f"`measures`: {unused[0]} {what}")
    if not tasks:
        here = ", ".join(alone) or "none"
        both = f"{asked.root} and {asked.against} have no values in common that a measure compares"
        both += f" (the first has {here})"
        if asked.model is None:
            both += "; `model=NAME` says whose modalities these are"
        none = (
            f"what is for it alone ({', '.join(missing)}) is not here"
            if missing
            else "no measure is for it alone"
        )
        one = f"{asked.root}: {none}; `against=DIR` names what to compare with"
        raise UsageError(one if asked.against is None else both)
    return tasks, [*_notes(asked, tasks[0].pairs.here, alone, missing.values())]


def settings_of(asked: Asked, tasks: Sequence[Task]) -> dict[str, object]:
    """What the results depend on, as eval.json says it; states of other settings are not merged."""
    folders = [folder for task in tasks for folder in (task.pairs.here, task.pairs.there)]
    runs = [run.identity for one in folders if isinstance(one, RunFolder) for run in one.runs]
    return {
        "folder": as_addresses(str(asked.root)), "against": asked.against, "runs": sorted({*runs}),
        "measures": {task.name: list(task.measures) for task in tasks}, "metric_depth": asked.metric_depth,
        "processes": asked.world.size, "interval": LEVEL, "resamples": RESAMPLES, "seed": SEED,
        "version": __version__,
    }  # fmt: skip


def _sources(asked: Asked, tasks: Sequence[Task]) -> dict[str, object]:
    """Of each measure, what its numbers depend on: where it is defined, settings, network, packages."""
    found = dict[str, object]()
    for name in dict.fromkeys(name for task in tasks for name in task.measures):
        row = MEASURES[name]
        network = {}
        if row.weights:
            network = {
                "weights": row.weights, "sha256": sha256_of_file(weights_of(find_measure(row.weights))),
                "torch": version("torch"), "device": _device(asked),
            }  # fmt: skip
        found[name] = {**source_of(row), **network}
    return found


def _check_place(asked: Asked, tasks: Sequence[Task]) -> None:
    """Make the folder of the results; UsageError where they cannot be written, before hours are spent."""
    folder = asked.folder
    check_root(folder, EVAL)
    for side in (side for task in tasks for side in (task.pairs.here, task.pairs.there) if side is not None):
        for held in side.held:
            refuse_inside(folder, side.root / held.name)
    for file in (folder / EVAL_JSON, folder / EVAL_CSV, path_of_share(folder, asked.world)):
        if file.is_dir():
            raise UsageError(f"{file}: is a folder, in the place of a result; move it away")
    try:
        make_all(folder)
        check_writable(folder)
    except OSError as error:
        raise UsageError(f"`out={folder}`: cannot be written ({error.strerror or error})") from error


def _check_any(asked: Asked, tasks: Sequence[Task]) -> None:
    """UsageError if all is compared with something and nothing has a partner: names do not fit together."""
    is_alone = all(one.pairs.partner is not None and not one.pairs.counts.pairs for one in tasks)
    if is_alone and not any(one.pairs.problems for one in tasks):
        numbers = {one.name: one.pairs.counts.without_partner for one in tasks}
        found = ", ".join(f"{count:,} of {name}" for name, count in numbers.items())
        if not any(numbers.values()):
            raise UsageError(f"{asked.root}: holds no value to measure yet ({found})")
        raise UsageError(f"{asked.against}: has no sample with the name of one in {asked.root} ({found})")


def _share_of(tasks: Sequence[Task], rows: Rows, sources: Mapping[str, object]) -> Share:
    """What this process has found."""
    states = {(task.name, name): one.state() for task in tasks for name, one in task.measures.items()}
    problems = [one for task in tasks for one in task.pairs.problems]
    return Share(rows, {task.name: task.pairs.counts for task in tasks}, problems, states, sources)


def _merge(tasks: Sequence[Task], rows: Rows, share: Share) -> None:
    """Add what another process has found."""
    for sample, row in share.rows.items():
        rows.setdefault(sample, {}).update(row)
    for task in tasks:
        task.pairs.counts += share.counts[task.name]
        task.pairs.problems += [one for one in share.problems if one.modality == task.name]
        for name, measure in task.measures.items():
            measure.merge([share.states.get((task.name, name), {})])


def _result(
    asked: Asked, tasks: Sequence[Task], rows: Rows, notes: Sequence[str], settings: Mapping[str, object]
) -> Evaluation:
    """The results of all shares."""
    rows = dict(sorted(rows.items(), key=lambda one: (parse_key(one[0][0]), one[0][1] or 0)))
    found = [(task.name, name, one.result()) for task in tasks for name, one in task.measures.items()]
    means = [f"{task}/{name}" for task, _, values in found for name, one in values.items() if one.is_mean]
    ends = intervals(rows, means)
    numbers = [
        Number.of(task, measure, name, one, ends.get(f"{task}/{name}"))
        for task, measure, values in found
        for name, one in values.items()
    ]
    problems = sorted({one for task in tasks for one in task.pairs.problems}, key=_order)
    counts = {task.name: task.pairs.counts for task in tasks}
    whole = tuple(replace(task.pairs, world=World()) for task in tasks)
    return Evaluation(tuple(numbers), rows, counts, tuple(problems), tuple(notes), settings, whole,
                      asked.folder)  # fmt: skip


def _update(
    measure: Measure, pairs: Sequence[Pair], lose: Callable[[Pair, SampleError], None]
) -> Iterator[tuple[Pair, Row]]:
    """Each pair with its row; `lose` is told of those that cannot be measured."""
    try:
        yield from zip(pairs, measure.update(pairs) if pairs else (), strict=True)
        return
    except SampleError as error:
        if len(pairs) == 1:
            lose(pairs[0], error)
            return
    for pair in pairs:
        yield from _update(measure, [pair], lose)


def _suits(pair: Pair, row: MeasureRow) -> bool:
    """Whether a pair has what a measure needs."""
    return (pair.other is not None or not row.needs_partner) and (
        CAPTION in pair.texts or not row.needs_caption
    )


def _settings_for(row: MeasureRow, pairs: Pairs, asked: Asked, is_measured: bool) -> Settings:
    """The settings of a measure; MissingError: its network is not here."""
    modality = pairs.held.row
    if not is_measured:
        return Settings(modality, weights=Path(row.weights), metric_depth=asked.metric_depth)
    if not row.weights:
        return Settings(modality, metric_depth=asked.metric_depth)
    weights = find_measure(row.weights)
    return Settings(modality, _device(asked), weights, asked.metric_depth)


def _device(asked: Asked) -> str:
    """Where networks run."""
    from fourm.runs.device import choose_device  # imports torch, which networks alone need

    return str(choose_device(asked.device, asked.world))


def _grouped(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """Pairs, some at a time."""
    group, size = list[Pair](), 0
    for pair in pairs:
        group.append(pair)
        size += sum(getattr(value, "nbytes", 0) for value in (pair.value, pair.other))
        if len(group) == GROUP or size > GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _notes(
    asked: Asked, here: Folder, alone: Sequence[str], missing: Iterable[MeasureRow]
) -> Iterator[str]:  # fmt: skip
    """What is not measured, and why. missing: measures whose package or network is not here."""
    if unknown := here.unknown:
        names = ", ".join(unknown)
        yield f"not measured: {names}; no measure is for them, or `model=NAME` says what they are"
    if alone:
        yield f"{', '.join(alone)}: {asked.against} has nothing to compare with"
    packages = [row for row in missing if row.package and find_spec(row.package) is None]
    networks = [row for row in missing if row not in packages]
    if packages:
        names = ", ".join(row.name for row in packages)
        yield f"not measured: {names}; `pip install 'fourm[eval]'` installs what they need"
    if networks:
        names, weights = ", ".join(row.name for row in networks), {row.weights: None for row in networks}
        yield f"not measured: {names}; `fourm download {' '.join(weights)}` fetches what they need"


def _why_unused(row: MeasureRow, asked: Asked) -> str:
    if row.needs_partner and asked.against is None:
        return "compares two folders; `against=DIR` names the other"
    also = f", and {CAPTION}s" if row.needs_caption else ""
    return f"is for {', '.join(row.sorts)}{also}; there are none to measure"


def _order(problem: Problem) -> tuple[str, int, str, str]:
    return problem.key, problem.variation or 0, problem.modality, problem.reason
