"""What each process leaves in `OUT/processes`: its launch, checksums and failures. Readers merge them.

Every process writes files of its own and no others, so that any number of them work in one folder without
locks. The start of a file name is the same for all files of a process:
`20260131T093000Z-0-of-3-RUN-PROCESS-0`, with the identity of the run and of the process.
"""

import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fourm.checksums import Listed, Scan, format_checksums, scan_lines, sha256_of_file
from fourm.errors import UsageError, printable
from fourm.layout import is_alive, make_below, process_name, vanished, write_text
from fourm.opening import open_own
from fourm.typed import fit

PROCESSES, FAILURES = "processes", "failures.jsonl"
LAUNCH, CHECKSUMS, FAILED = ".json", ".sha256", ".jsonl"  # suffixes of a process's files
ANY_RUN = "0" * 8  # of processes that belong to no run: those of `tokenize`
_NAME = re.compile(
    r"([0-9]{8}T[0-9]{6}Z)-([0-9]{1,9})-of-([0-9]{1,9})-([0-9a-f]{8})-([0-9a-f]{8}-[0-9a-f]{12})-([0-9]+)"
    r"(\.json|\.sha256|\.jsonl)"
)
RUN_IDENTITY = re.compile(r"[0-9a-f]{8}")
MAX_LAUNCH_BYTES, MAX_LIST_BYTES = 1 << 20, 1 << 30
_counter = itertools.count()


@dataclass(frozen=True, slots=True)
class Launch:
    """One process that worked on a folder, from when to when and with what result."""

    rank: int
    size: int
    started: str
    finished: str | None = None
    saved: int = 0
    skipped: int = 0
    failed: int = 0
    seconds: float = 0.0
    halved_to: int | None = None  # samples that were worked on together, where memory had room for no more
    # sha256 of the other files of a process that has ended, by the ends of their names.
    files: Mapping[str, str] = field(default_factory=dict)

    def covers(self, other: "Launch") -> bool:
        """True where this launch began later, with all samples of the other one among its own."""
        is_part = other.size % self.size == 0 and other.rank % self.size == self.rank
        return is_part and self.started > other.started


@dataclass(frozen=True, slots=True)
class Failure:
    """A sample that could not be made."""

    key: str
    variation: int
    reason: str
    stage: str
    time: str = ""
    # Those that it lacks, below the folder. If it lacks none: all, and when each was changed (nanoseconds).
    files: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def where(self) -> tuple[str, int, str]:
        """What failed."""
        return self.key, self.variation, self.stage

    def is_mended(self, out: Path) -> bool:
        """True if a later process has made the sample."""
        changed = {file: _changed(out / file) for file in self.files}
        is_there = None not in changed.values()
        return is_there and any(time != self.files[file] for file, time in changed.items())


@dataclass(frozen=True, slots=True)
class ProcessFile:
    """One file of a process, as its name says."""

    path: Path
    started: str
    rank: int
    size: int
    run: str  # identity of the run
    process: str  # identity of the process
    number: int  # of the launch in this process
    kind: str  # LAUNCH, CHECKSUMS or FAILED

    @property
    def order(self) -> tuple[str, int, str, int]:
        """By the time at which processes began."""
        return self.started, self.rank, self.process, self.number


@dataclass(frozen=True, slots=True)
class Process:
    """This process, as it leaves its traces in an output folder."""

    out: Path
    run: str
    launch: Launch
    number: int = field(default_factory=lambda: next(_counter))

    def path(self, kind: str) -> Path:
        """Where a file of this process lies."""
        started = re.sub(r"\+00:00$", "Z", self.launch.started).translate({ord(c): None for c in "-:"})
        share = f"{self.launch.rank}-of-{self.launch.size}"
        name = f"{started}-{share}-{self.run}-{process_name()}-{self.number}{kind}"
        return self.out / PROCESSES / name

    def begin(self) -> None:
        """Note that this process works here."""
        self._write(self.launch)

    def end(self, launch: Launch) -> None:
        """Note how it ended, and what it has written down."""
        files = {kind: self.path(kind) for kind in (CHECKSUMS, FAILED)}
        sums = {kind: sha256_of_file(path) for kind, path in files.items() if path.exists()}
        self._write(replace(launch, files=sums))

    def add_checksums(self, listed: Mapping[str, Listed]) -> None:
        """Note checksums by path below the folder."""
        self._append(CHECKSUMS, format_checksums(listed))

    def add_failure(self, failure: Failure) -> None:
        """Note that a sample cannot be made."""
        self._append(FAILED, (_line(failure) + "\n").encode())

    def check(self) -> None:
        """FourMError if the folder is no longer the one in which this process began."""
        if not os.path.lexists(self.path(LAUNCH)):
            raise vanished(self.out)

    def withdraw(self) -> None:
        """Take back all files of this process, which has done nothing."""
        for kind in (LAUNCH, CHECKSUMS, FAILED):
            self.path(kind).unlink(missing_ok=True)
        _remove_folder(self.out)

    def _write(self, launch: Launch) -> None:
        write_text(self.out, self.path(LAUNCH), json.dumps(asdict(launch), indent=1) + "\n")

    def _append(self, kind: str, data: bytes) -> None:
        try:
            if self.run != ANY_RUN:
                self.check()
            make_below(self.out, self.out / PROCESSES)
            with open_own(self.path(kind), "a") as file:
                file.write(data)
        except FileNotFoundError:
            raise vanished(self.out) from None


def lacking(out: Path, paths: Iterable[Path]) -> dict[str, int | None]:
    """What a sample that failed lacks, of all its files: see `Failure.files`."""
    changed = {path.relative_to(out).as_posix(): _changed(path) for path in paths}
    return {file: None for file, time in changed.items() if time is None} or changed


def now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def list_processes(out: Path) -> tuple[list[ProcessFile], list[str]]:
    """Files of processes in the order in which these began; names of all else in their folder."""
    folder = out / PROCESSES
    if not folder.is_dir() or folder.is_symlink():
        return [], []
    try:
        with os.scandir(folder) as entries:
            files = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
    except FileNotFoundError:  # another process has just removed it
        return [], []
    found, strange = list[ProcessFile](), list[str]()
    for name, is_file in files.items():
        match = _NAME.fullmatch(name)
        if match is None or not is_file:
            strange.append(name)
            continue
        started, rank, size, run, process, number, kind = match.groups()
        found.append(
            ProcessFile(folder / name, started, int(rank), int(size), run, process, int(number), kind)
        )
    return sorted(found, key=lambda one: one.order), sorted(strange)


def of_kind(out: Path, kind: str) -> list[ProcessFile]:
    """Files of one kind, in the order in which processes began."""
    return [file for file in list_processes(out)[0] if file.kind == kind]


def read_launches(out: Path, run: str) -> tuple[Launch, ...]:
    """Every process that worked on a run, in the order in which they began."""
    return tuple(read_launch(file.path) for file in of_kind(out, LAUNCH) if file.run == run)


def is_closed(launches: Sequence[Launch]) -> bool:
    """True where every process has ended in order, or was followed by one that did, so that all is listed."""
    ended = [launch for launch in launches if launch.finished]
    return bool(ended) and all(
        launch.finished or any(other.covers(launch) for other in ended) for launch in launches
    )


def read_checksums(out: Path, share: tuple[int, int] | None = None) -> dict[str, Listed]:
    """Checksums by path below `out`; a path's last line counts, and lines without a checksum are ignored.

    share: (rank, size) of a process. Only lists that may name files of its share are read, so that a thousand
    processes do not each read the lists of all the others.
    """
    listed = dict[str, Listed]()
    for file in of_kind(out, CHECKSUMS):
        if share is not None and not _overlap(share, (file.rank, file.size)):
            continue
        listed |= scan_checksums(file.path).listed
    return listed


def _overlap(share: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two shares have samples in common; (rank, size) is every size-th sample from rank on."""
    return (share[0] - other[0]) % math.gcd(share[1], other[1]) == 0


def scan_checksums(path: Path) -> Scan:
    """The list of one process."""
    with open_own(path, "r", MAX_LIST_BYTES) as file:
        return scan_lines(file)


def read_failures(out: Path) -> list[Failure]:
    """Samples that failed and were not made since, in order; lines that were cut off are passed over."""
    latest = dict[tuple[str, int, str], Failure]()
    for path in (out / FAILURES, *(file.path for file in of_kind(out, FAILED))):
        for failure in scan_failures(path):
            latest[failure.where] = failure
    return [latest[where] for where in sorted(latest) if not latest[where].is_mended(out)]


def write_failures(out: Path) -> None:
    """Make `failures.jsonl` of what processes noted. Several may do so at once: the last one sees all."""
    path = out / FAILURES
    if not os.path.lexists(path) and not of_kind(out, FAILED):
        return
    text: str | None = None
    while (latest := "".join(_line(failure) + "\n" for failure in read_failures(out))) != text:
        text = latest
        if text:
            write_text(out, path, text)
        else:
            path.unlink(missing_ok=True)


def find_living(out: Path) -> list[ProcessFile]:
    """Launches of processes, this one aside, that certainly run."""
    others = [file for file in of_kind(out, LAUNCH) if file.process != process_name()]
    return [file for file in others if is_alive(out, file.process)]


def remove_processes(out: Path, runs: Iterable[str]) -> None:
    """Delete the files of all processes but those of some runs."""
    kept = set(runs)
    for file in list_processes(out)[0]:
        if file.run not in kept:
            file.path.unlink(missing_ok=True)
    _remove_folder(out)


def _remove_folder(out: Path) -> None:
    """Remove the folder of processes if it is empty."""
    try:
        (out / PROCESSES).rmdir()
    except OSError:
        return


def read_launch(path: Path) -> Launch:
    """One launch; UsageError if its file is damaged."""
    try:
        with open_own(path, "r", MAX_LAUNCH_BYTES) as file:
            launch: Launch = fit(Launch, json.loads(file.read()), "launch")
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{printable(str(path))}: is not a record of this program ({error})") from error
    return launch


def scan_failures(path: Path) -> Iterator[Failure]:
    """The failures in one file; lines that were cut off are passed over."""
    try:
        with open_own(path, "r", MAX_LIST_BYTES) as file:
            lines = file.read().decode("utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield _parse_failure(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            continue


def _parse_failure(row: Mapping[str, Any]) -> Failure:
    files = {
        file: time if isinstance(time, int) else None
        for file, time in dict(row.get("files", {})).items()
        if "\0" not in file
    }
    key, variation, reason = str(row["key"]), int(row["variation"]), str(row["reason"])
    return Failure(key, variation, reason, str(row.get("stage", "base")), str(row.get("time", "")), files)


def _changed(path: Path) -> int | None:
    """When a file was changed, in nanoseconds; None if it is not there."""
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return None


def _line(failure: Failure) -> str:
    """One line of `failures.jsonl`; the stage is told where it is not the first."""
    row = {name: value for name, value in asdict(failure).items() if (name, value) != ("stage", "base")}
    return json.dumps(row)
