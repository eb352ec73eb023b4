"""An output folder read back: its runs, their samples, and where each file of a sample lies."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourm.data.dataset import list_folder, suffix_of
from fourm.data.layout import Key, Place, Sample, path_of
from fourm.errors import UsageError, printable
from fourm.output.processes import Failure, read_failures
from fourm.output.record import read_record
from fourm.output.runfile import RUN, SR_RUN, RunRecord

_VARIATION = re.compile(r"(.+)-v([0-9]+)")


@dataclass(frozen=True, slots=True)
class Run:
    """One of the runs that wrote into a folder."""

    record: RunRecord
    file: str  # its record: RUN or SR_RUN

    @property
    def places(self) -> tuple[Place, ...]:
        """Where every sample has a file."""
        return tuple(place for place in self.record.places if place.form != "extra")

    @property
    def variations(self) -> tuple[int | None, ...]:
        """Variations as file names show them: (None,) where there is but one."""
        record = self.record
        if record.num_variations == 1:
            return (None,)
        return (record.variation,) if record.variation is not None else tuple(range(record.num_variations))

    def count_tokens(self, place: Place) -> int | None:
        """Tokens in each file of a target of the run; None where its record does not tell."""
        steps = [step for step in self.record.schedule["steps"] if step["target"] == place.modality]
        return sum(step["num_tokens"] for step in steps) if steps else None


@dataclass(frozen=True, slots=True)
class Results:
    """An output folder."""

    root: Path
    runs: tuple[Run, ...]  # the one that made it, then super-resolution; at least one
    keys: tuple[Key, ...]  # of all samples that have files, in order

    def path(self, run: Run, place: Place, key: Key, variation: int | None) -> Path:
        """Where a file of one sample and variation lies, or would lie.

        A run with one variation has the same file for each of a later run.
        """
        suffix = None if place.shared or run.variations == (None,) else variation
        return path_of(self.root, place.folder, key, place.suffix, suffix)

    @property
    def variations(self) -> tuple[int | None, ...]:
        """Variations of the run that has most of them."""
        return max((run.variations for run in self.runs), key=len)

    def failures(self) -> list[Failure]:
        """What is written down of samples that failed and were not made since."""
        try:
            return read_failures(self.root)
        except OSError as error:
            where = printable(str(error.filename or self.root))
            raise UsageError(f"{where}: cannot be read ({error.strerror}); move it away") from error


def open_results(root: Path) -> Results:
    """Read the records of a folder and list its samples; UsageError where no run wrote it."""
    if not root.is_dir():
        raise UsageError(f"{printable(str(root))}: no such folder")
    runs = tuple(Run(read_record(root, file), file) for file in (RUN, SR_RUN) if os.path.lexists(root / file))
    if not runs:
        raise UsageError(f"{root}: holds no {RUN}, so no run of this program wrote it")
    return Results(root, runs, _keys(root, runs))


def _keys(root: Path, runs: Sequence[Run]) -> tuple[Key, ...]:
    """Keys of all files, variations taken off."""
    found = set[Key]()
    for run in runs:
        for place in run.places:
            if not (root / place.folder).is_dir():
                continue
            varied = not place.shared and run.variations != (None,)
            for key, path in list_folder(root, place.folder).files.items():
                # The key of a file itself may be cut together with its variation.
                stem = path.name[: -len(suffix_of(path.name))]
                match = _VARIATION.fullmatch(stem) if varied else None
                found.add(Key(key.folder, match[1]) if match else key)
    return tuple(sorted(found))


def samples_for(
    root: Path, run: Run, keys: Sequence[Key], conditions: Sequence[str], ids: Mapping[str, bool]
) -> list[Sample]:
    """Samples of a run as conditions of another one: the files that are or will be there.

    ids: for each condition (full name) whether its tokens are read, not its values.
    """
    places = dict[str, Place]()
    for name in conditions:
        form = "ids" if ids[name] else "value"
        named = [p for p in run.places if p.modality == name and p.form == form]
        if not named:
            has = sorted({p.modality for p in run.places})
            raise UsageError(f"{root}: its run left no {name}; it has {', '.join(has)}")
        places[name] = named[0]
    shared = {name: place for name, place in places.items() if place.shared or run.variations == (None,)}
    varied = {name: place for name, place in places.items() if name not in shared}
    return [
        Sample(
            key,
            files={n: path_of(root, p.folder, key, p.suffix) for n, p in shared.items()},
            varied=[
                {n: path_of(root, p.folder, key, p.suffix, v) for n, p in varied.items()}
                for v in range(run.record.num_variations)
            ]
            if varied
            else (),
        )
        for key in keys
    ]


def chain_names(schedule: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Conditions and targets (full names, in order) of the schedule in a record."""
    return list(schedule["conditions"]), list(dict.fromkeys(step["target"] for step in schedule["steps"]))
