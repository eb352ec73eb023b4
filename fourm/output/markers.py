"""The marker of each shard of a run, `done/NAME.json`: written last, it says what the shard became.

What has a marker is whole: markers say how far a run is, and what is still to be made.
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from fourm.data.shards import PARQUET, Shard
from fourm.errors import UsageError, printable
from fourm.files.opening import open_own, real
from fourm.files.writing import write_text
from fourm.modalities.typed import to_type
from fourm.output.processes import remove_empty, seal
from fourm.output.record import DONE, NOT_COMPARED, RUN, RunRecord

# How members are called: by their key below the folder that their tar stands for, or by the whole key.
Keys = Literal["name", "path"]
NAME: Keys = "name"
PATH: Keys = "path"
MAX_MARKER_BYTES = 1 << 28
SizeOf = Callable[[str], int | None]  # bytes of a file by its path below the folder of a run; None: not there


@dataclass(frozen=True, slots=True)
class Counts:
    """What a shard became."""

    samples: int = 0
    saved: int = 0  # results: samples times variations
    failed: int = 0  # results
    incomplete: int = 0  # samples that were left out, as a file of theirs was missing


@dataclass(frozen=True, slots=True)
class ShardFailure:
    """One result that could not be made."""

    key: str
    variation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Marker:
    """Says that a shard is whole, and what it became."""

    shard: Shard
    format: str  # one of FORMATS
    keys: Keys
    counts: Counts
    settings: str  # digest of the run's settings
    files: Mapping[str, tuple[str, int]]  # by path below the folder of the run: sha256 and number of bytes
    failures: tuple[ShardFailure, ...] = ()
    incomplete: tuple[str, ...] = ()  # a sentence for each sample that was left out
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def within(self) -> str:
        """The folder of keys that each of its tars stands for; "" where names of members are whole keys."""
        return self.shard.name if self.keys == NAME else ""

    @property
    def own_files(self) -> set[str]:
        """Its files that have the name of the shard, as all have that this program writes."""
        ends = tuple(f"/{self.shard.name}{ending}" for ending in (".tar", f".{PARQUET}"))
        return {name for name in self.files if f"/{name}".endswith(ends)}

    def write(self, root: Path, record: str = RUN) -> None:
        """Write it; the shard is whole from now on."""
        path = marker_path(root, self.shard.name, record)
        write_text(root, path, seal(json.loads(json.dumps(asdict(self)))))


def marker_path(root: Path, name: str, record: str = RUN) -> Path:
    """The path of the marker of a shard."""
    return root / DONE[record] / f"{name}.json"


def read_marker(path: Path) -> Marker:
    """A marker; UsageError for one that is damaged or was changed."""
    try:
        with open_own(path, "r", MAX_MARKER_BYTES) as file:
            text = file.read().decode()
        said = json.loads(text)
        marker: Marker = to_type(Marker, said, "marker", strict=False)
        if seal(said) != text:
            raise ValueError("it was changed after it was written")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{printable(str(path))}: is no marker of a shard, or was damaged ({error})"
        ) from error
    return marker


def marker_files(root: Path, record: str = RUN) -> Iterator[Path]:
    """The paths of all markers of a run, sorted within each folder."""
    for where, folders, files in os.walk(root / DONE[record]):
        folders.sort()
        yield from (Path(where, name) for name in sorted(files) if name.endswith(".json"))


def read_markers(root: Path, record: str = RUN) -> Iterator[Marker]:
    """All markers of a run, one at a time; UsageError for a damaged one."""
    return map(read_marker, marker_files(root, record))


def settings_digest(record: RunRecord) -> str:
    """A digest of all that the files of a run depend on, and what they are called."""
    facts = {name: fact for name, fact in record.to_json().items() if name not in NOT_COMPARED}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def find_done(
    root: Path, shards: Sequence[Shard], settings: str, record: str = RUN, size_of: SizeOf | None = None
) -> tuple[dict[int, Counts], list[str]]:
    """By number, what became of the shards that are whole; and a sentence for each one that is damaged.

    A shard is whole if its marker is of these settings and of the same range of samples, and its files are
    there with their sizes. size_of: without it they are files below `root`.
    """
    done, faults = dict[int, Counts](), list[str]()
    for shard in shards:
        path = marker_path(root, shard.name, record)
        if not os.path.lexists(path):
            continue
        try:
            marker = read_done(path, root, settings, size_of, shard)
        except UsageError as error:
            faults.append(f"{error}; shard {shard.name} is made again")
        else:
            done[shard.number] = marker.counts
    return done, faults


def read_done(
    path: Path, root: Path, settings: str, size_of: SizeOf | None = None, shard: Shard | None = None
) -> Marker:
    """The marker of a shard that is whole; UsageError if it is not, see `find_done`.

    shard: as the input has it now, if that is known.
    """
    marker = read_marker(path)
    if shard is not None and not marker.shard.has_range_of(shard):
        raise UsageError(f"{printable(str(path))}: is of other samples than the input has there now")
    if fault := _fault_of(marker, settings, size_of or partial(_size_of, root)):
        raise UsageError(printable(f"{path}: {fault}"))
    return marker


def _fault_of(marker: Marker, settings: str, size_of: SizeOf) -> str:
    """Why a shard that has a marker is not whole; "" if it is."""
    if marker.settings != settings:
        return "is of other settings"
    for name, (_, size) in marker.files.items():
        if (there := size_of(name)) is None:
            return f"its file {name} is not there"
        if there != size:
            return f"its file {name} has {there:,} bytes, not {size:,}"
    return ""


def _size_of(root: Path, name: str) -> int | None:
    try:
        told = os.lstat(root / name)
    except OSError:
        return None
    return told.st_size if stat.S_ISREG(told.st_mode) else None


def withdraw_marker(root: Path, name: str, record: str = RUN) -> set[str]:
    """Delete the marker of a shard, if there is one; the files that it names stay, and are returned."""
    path, files = marker_path(root, name, record), set[str]()
    with suppress(UsageError):  # there is none, or it is damaged
        if (marker := read_marker(path)).shard.name == name:  # else it is a copy of another one
            files |= marker.own_files
    path.unlink(missing_ok=True)
    return files


def remove_files(root: Path, names: Iterable[str]) -> set[Path]:
    """Delete files that a marker names, but none that a link leads to; the folders that held them."""
    folders = set[Path]()
    for file in (root / name for name in names if {"", ".", ".."}.isdisjoint(name.split("/"))):
        if real(file.parent).is_relative_to(real(root)):
            file.unlink(missing_ok=True)
            folders.add(file.parent)
    return folders


def remove_shards(root: Path, record: str = RUN) -> None:
    """Delete all shards of a run, each before its marker; other files stay."""
    folders = set[Path]()
    for path in marker_files(root, record):
        with suppress(UsageError):
            folders |= remove_files(root, read_marker(path).own_files)
        path.unlink(missing_ok=True)
        folders.add(path.parent)
    for folder in sorted(folders, key=lambda one: len(one.parts), reverse=True):
        remove_empty(one for one in (folder, *folder.parents) if one != root and one.is_relative_to(root))
