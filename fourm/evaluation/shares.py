"""What one of several processes has found, in `eval/RANK-of-N.npz`: arrays of numbers, no pickles."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourm.codecs.files import read_members
from fourm.errors import SampleError, UsageError
from fourm.evaluation.pairs import Counts, Problem
from fourm.evaluation.results import Rows
from fourm.files.writing import write_atomic
from fourm.inputs.world import World
from fourm.output.processes import seal
from fourm.output.record import EVAL

_CHANGED = "it was changed after it was written"


@dataclass(frozen=True, slots=True)
class Share:
    """What one process has found."""

    rows: Rows
    counts: Mapping[str, Counts]  # by modality
    problems: Sequence[Problem]
    states: Mapping[tuple[str, str], Mapping[str, NDArray[Any]]]  # by modality and measure
    sources: Mapping[str, object]  # of measures, as eval.json says them


def path_of_share(folder: Path, world: World) -> Path:
    """Where a process writes what it has found."""
    return folder / EVAL / f"{world.rank:05d}-of-{world.size:05d}.npz"


def write_share(folder: Path, world: World, settings: Mapping[str, object], share: Share) -> None:
    """Write what this process has found: arrays, and a text that says what they are."""
    columns = list(dict.fromkeys(name for row in share.rows.values() for name in row))
    table = [[row.get(name, np.nan) for name in columns] for row in share.rows.values()]
    arrays = [np.array(table, np.float64).reshape(len(share.rows), len(columns))]
    parts = [(*names, part) for names, state in share.states.items() for part in state]
    arrays += [array for state in share.states.values() for array in state.values()]
    facts = {
        "settings": settings, "samples": list(share.rows), "columns": columns, "states": parts,
        "counts": {name: asdict(one) for name, one in share.counts.items()},
        "problems": [asdict(one) for one in share.problems], "sources": dict(share.sources),
    }  # fmt: skip
    sealed = seal(json.loads(json.dumps({**facts, "arrays": _digest_of(arrays)})))
    text = np.frombuffer(sealed.encode(), np.uint8)
    named: dict[str, Any] = {"facts": text, **{str(number): one for number, one in enumerate(arrays)}}

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **named)

    write_atomic(folder, path_of_share(folder, world), write)


def read_share(folder: Path, world: World, settings: Mapping[str, object]) -> Share | None:
    """What a process has found with these settings; None: nothing yet. UsageError: the file is damaged."""
    path = path_of_share(folder, world)
    with _reading(path):
        if (facts := _facts_of(path)) is None or facts["settings"] != json.loads(json.dumps(settings)):
            return None
        parts, columns = facts["states"], facts["columns"]
        table, *arrays = _members_of(path, *map(str, range(1 + len(parts))))
        if facts["arrays"] != _digest_of([table, *arrays]):
            raise ValueError(_CHANGED)
        samples = [(str(key), variation) for key, variation in facts["samples"]]
        rows = {
            sample: {name: number for name, number in zip(columns, row, strict=True) if number == number}
            for sample, row in zip(samples, table.tolist(), strict=True)
        }
        states = dict[tuple[str, str], dict[str, NDArray[Any]]]()
        for (modality, measure, part), array in zip(parts, arrays, strict=True):
            states.setdefault((modality, measure), {})[part] = array
        counts = {name: Counts(**one) for name, one in facts["counts"].items()}
        problems = [Problem(**one) for one in facts["problems"]]
        return Share(rows, counts, problems, states, facts["sources"])


def recorded_measures(folder: Path, size: int) -> Mapping[str, Sequence[str]]:
    """The measures of each modality that the first of `size` processes took. UsageError: none is there."""
    for rank in range(size):
        path = path_of_share(folder, World(rank, size))
        with _reading(path):
            if (facts := _facts_of(path)) is not None:
                return {str(name): [*map(str, each)] for name, each in facts["settings"]["measures"].items()}
    raise UsageError(f"{folder / EVAL}: no share of {size} is there")


def _facts_of(path: Path) -> Any:
    if not os.path.lexists(path):
        return None
    text = _members_of(path, "facts")[0].tobytes().decode()
    facts = json.loads(text)
    if seal(facts) != text:
        raise ValueError(_CHANGED)
    return facts


def _members_of(path: Path, *names: str) -> tuple[NDArray[Any], ...]:
    """Arrays of a share. They are stored as they are, so none is larger than the file."""
    return read_members(path, *names, limit=max(1, path.stat().st_size))


def _digest_of(arrays: Sequence[NDArray[Any]]) -> str:
    """sha256 of arrays, their shapes and types."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """UsageError: a share is damaged."""
    try:
        yield
    except (OSError, SampleError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: is damaged ({error}); delete it, and measure its share again") from error
