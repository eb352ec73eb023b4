"""What one of several processes has found, in `eval/RANK-of-N.npz`: arrays of numbers, no pickles."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourm.codecs.files import read_members
from fourm.errors import SampleError, UsageError
from fourm.files.writing import write_atomic
from fourm.inputs.world import World
from fourm.measures.evaluation import Rows
from fourm.measures.pairs import Counts, Problem
from fourm.output.record import EVAL


@dataclass(frozen=True, slots=True)
class Share:
    """What one process has found."""

    rows: Rows
    counts: Mapping[str, Counts]  # by modality
    problems: Sequence[Problem]
    states: Mapping[tuple[str, str], Mapping[str, NDArray[Any]]]  # by modality and measure


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
        "problems": [asdict(one) for one in share.problems],
    }  # fmt: skip
    text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    named: dict[str, Any] = {"facts": text, **{str(number): one for number, one in enumerate(arrays)}}

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **named)

    write_atomic(folder, path_of_share(folder, world), write)


def read_share(folder: Path, world: World, settings: Mapping[str, object]) -> Share | None:
    """What a process has found with these settings; None: nothing yet. UsageError: the file is damaged."""
    path = path_of_share(folder, world)
    if not path.is_file():
        return None
    try:
        facts = json.loads(read_members(path, "facts")[0].tobytes())
        if facts["settings"] != json.loads(json.dumps(settings)):
            return None
        parts, columns = facts["states"], facts["columns"]
        table, *arrays = read_members(path, *map(str, range(1 + len(parts))))
        samples = [(str(key), variation) for key, variation in facts["samples"]]
        numbers = table.reshape(len(samples), len(columns)).tolist()
        rows = {
            sample: {name: number for name, number in zip(columns, row, strict=True) if number == number}
            for sample, row in zip(samples, numbers, strict=True)
        }
        states = dict[tuple[str, str], dict[str, NDArray[Any]]]()
        for (modality, measure, part), array in zip(parts, arrays, strict=True):
            states.setdefault((modality, measure), {})[part] = array
        counts = {name: Counts(**one) for name, one in facts["counts"].items()}
        return Share(rows, counts, [Problem(**one) for one in facts["problems"]], states)
    except (SampleError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{path}: is damaged ({error}); delete it, and measure its share again") from error
