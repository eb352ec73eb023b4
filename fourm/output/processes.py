"""The files of each process in `OUT/processes`: its launch, checksums and failures. Readers merge them.

Every process writes only files of its own, so any number of processes can share one folder without locks.
The names of its files begin alike, with the identities of run and process: `TIME-0-of-3-RUN-PROCESS-0`.
Lists of checksums are in the form of `sha256sum`, with the size of each file in a comment above it.
"""

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fourm.errors import UsageError, printable
from fourm.files.opening import open_file, open_own, parse_json_lines
from fourm.files.writing import make_below, process_name, remove_leftovers, vanished, write_text
from fourm.modalities.typed import to_type

PROCESSES, FAILURES = "processes", "failures.jsonl"
LAUNCH, CHECKSUMS, FAILED = ".json", ".sha256", ".jsonl"  # suffixes of a process's files
OLDER_CHECKSUMS = "checksums.sha256"  # the only list in folders of formats 1 and 2
ANY_RUN = "0" * 8  # identity of the run for `tokenize`, which has no run.json
RUN_IDENTITY = re.compile(r"[0-9a-f]{8}")
MAX_LAUNCH_BYTES, MAX_LIST_BYTES = 1 << 20, 1 << 30
_NAME = re.compile(
    r"([0-9]{8}T[0-9]{6}Z)-([0-9]{1,9})-of-([0-9]{1,9})-([0-9a-f]{8})-([0-9a-f]{8}-[0-9a-f]{12})-([0-9]+)"
    r"(\.json|\.sha256|\.jsonl)"
)
_DIGEST = "sha256"  # of all else that a launch says
_LINE = re.compile(rb"(\\?)([0-9a-f]{64})  (.+)", re.DOTALL)
_SIZE = re.compile(rb"# ([0-9]{1,18}) bytes")
_UNESCAPES = {r"\\": "\\", r"\n": "\n", r"\r": "\r"}  # of names, as sha256sum writes them
_ESCAPES = {ord(letter): escape for escape, letter in _UNESCAPES.items()}
_counter = itertools.count()


class Listed(NamedTuple):
    """What a list of checksums says of a file."""

    sha256: str
    size: int | None = None  # bytes, where it is told


@dataclass(frozen=True, slots=True)
class Launch:
    """One process that worked on a folder: when it started and ended, and what it did."""

    rank: int
    size: int
    started: str
    finished: str | None = None
    saved: int = 0
    skipped: int = 0
    failed: int = 0
    seconds: float = 0.0
    batch_size: int | None = None  # results per batch, before memory ran out
    halved_to: int | None = None  # samples per group after memory ran out; None: it did not
    only: tuple[str, ...] = ()  # keys of the samples that it was to make; (): all of its share
    files: Mapping[str, str] = field(default_factory=dict)  # at the end: sha256 of its other files, by suffix


@dataclass(frozen=True, slots=True)
class Failure:
    """A sample that failed."""

    key: str
    variation: int
    reason: str
    stage: str = "base"  # or "sr"
    time: str = ""
    # Paths of missing files, with None. If none is missing: all files, with their mtime in nanoseconds.
    files: Mapping[str, int | None] = field(default_factory=dict)

    def to_line(self) -> str:
        """The failure as a line of `failures.jsonl`; the stage is left out if it is "base"."""
        row = {"key": self.key, "variation": self.variation, "reason": self.reason, "stage": self.stage,
               "time": self.time, "files": dict(self.files)}  # fmt: skip
        if self.stage == "base":
            del row["stage"]
        return json.dumps(row) + "\n"

    def is_resolved(self, out: Path) -> bool:
        """True if a later process made the sample: all files exist, and at least one is new."""
        changed = dict[str, int]()
        for file in self.files:
            if (time := _changed(out / file)) is None:
                return False
            changed[file] = time
        return changed != self.files


class ProcessFile(NamedTuple):
    """One file of a process, with what its name tells. They sort in the order in which processes started."""

    started: str
    rank: int
    process: str  # identity of the process
    number: int  # of the launch in this process
    size: int
    run: str  # identity of the run
    kind: str  # LAUNCH, CHECKSUMS or FAILED
    path: Path


@dataclass(frozen=True, slots=True)
class Process:
    """This process, and the files that it writes into `OUT/processes`."""

    out: Path
    run: str
    launch: Launch
    number: int = field(default_factory=lambda: next(_counter))
    # By kind, the digest and the size of what was appended.
    _appended: dict[str, tuple[Any, int]] = field(default_factory=dict, repr=False, compare=False)

    def path(self, kind: str) -> Path:
        """The path of one of its files."""
        share = f"{self.launch.rank}-of-{self.launch.size}"
        name = f"{_stamp(self.launch.started)}-{share}-{self.run}-{process_name()}-{self.number}{kind}"
        return self.out / PROCESSES / name

    def begin(self) -> "Process":
        """Write the launch: this process works in the folder."""
        write_text(self.out, self.path(LAUNCH), seal(asdict(self.launch)))
        return self

    def add_checksums(self, listed: Mapping[str, Listed]) -> None:
        """Append checksums, by path below the folder."""
        lines = list[str]()
        for name, (digest, size) in listed.items():
            escaped = name.translate(_ESCAPES)
            comment = "" if size is None else f"# {size} bytes\n"
            lines.append(f"{comment}{'' if escaped == name else chr(92)}{digest}  {escaped}\n")
        self._append(CHECKSUMS, os.fsencode("".join(lines)))

    def add_failure(self, key: str, variation: int, reason: str, stage: str, paths: Iterable[Path]) -> None:
        """Append a failed sample, which has these paths or would have them."""
        changed = {path.relative_to(self.out).as_posix(): _changed(path) for path in paths}
        files = {file: None for file, time in changed.items() if time is None} or changed
        failure = Failure(key, variation, reason, stage, now(), files)
        self._append(FAILED, failure.to_line().encode())

    def check(self) -> None:
        """FourMError if the folder was deleted or replaced since this process of a run started."""
        if self.run != ANY_RUN and not os.path.lexists(self.path(LAUNCH)):
            raise vanished(self.out)

    def _append(self, kind: str, data: bytes) -> None:
        try:
            self.check()
            if self.run == ANY_RUN:  # of others, `check` has found a file there
                make_below(self.out, self.out / PROCESSES)
            with open_own(self.path(kind), "a") as file:
                file.write(data)
        except FileNotFoundError:
            raise vanished(self.out) from None
        digest, size = self._appended.get(kind, (hashlib.sha256(), 0))
        digest.update(data)
        self._appended[kind] = digest, size + len(data)

    def sums(self) -> dict[str, str]:
        """sha256 of its lists, by kind. Only a list that has another size than what was written is read."""
        found = dict[str, str]()
        for kind in (CHECKSUMS, FAILED):
            path, (digest, size) = self.path(kind), self._appended.get(kind, (None, 0))
            with suppress(FileNotFoundError):
                is_known = path.lstat().st_size == size and digest is not None
                found[kind] = digest.hexdigest() if is_known else sha256_of_file(path)
        return found


def close_output(process: Process, launch: Launch) -> None:
    """Record how a launch ended, rewrite the list of failures, delete temporary files."""
    try:
        process.check()
        write_text(process.out, process.path(LAUNCH), seal(asdict(replace(launch, files=process.sums()))))
        write_failures(process.out)
    finally:
        remove_leftovers(process.out)


def now() -> str:
    """The current time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def list_processes(out: Path) -> tuple[list[ProcessFile], list[str]]:
    """Files of processes in the order in which they started, and the names of other files in the folder."""
    found, others, folder = list[ProcessFile](), list[str](), out / PROCESSES
    try:
        entries = [] if folder.is_symlink() else list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):  # perhaps another process has just removed it
        return [], []
    for entry in entries:
        match = _NAME.fullmatch(entry.name)
        if match and entry.is_file(follow_symlinks=False):
            started, rank, size, run, process, number, kind = match.groups()
            path = folder / entry.name
            found.append(ProcessFile(started, int(rank), process, int(number), int(size), run, kind, path))
        else:
            others.append(entry.name)
    return sorted(found), sorted(others)


def of_kind(out: Path, kind: str, run: str | None = None) -> list[ProcessFile]:
    """Files of one kind, in the order in which the processes started; run: only those of this run."""
    return [file for file in list_processes(out)[0] if file.kind == kind and run in (None, file.run)]


def remove_processes(out: Path, runs: Container[str]) -> None:
    """Delete the files of all processes, except those of the given runs."""
    for file in list_processes(out)[0]:
        if file.run not in runs:
            file.path.unlink(missing_ok=True)
    remove_empty([out / PROCESSES])


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, given the innermost first; those that are not empty stay."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def read_launches(out: Path, run: str) -> tuple[Launch, ...]:
    """The launches of all processes of a run, in the order in which they started."""
    return tuple(read_launch(file)[0] for file in of_kind(out, LAUNCH, run))


def read_launch(file: ProcessFile) -> tuple[Launch, bool]:
    """One launch, and True if nothing in its file or in its name was changed; UsageError if it is damaged."""
    try:
        with open_own(file.path, "r", MAX_LAUNCH_BYTES) as stream:
            text = stream.read().decode()
        launch: Launch = to_type(Launch, json.loads(text), "launch", strict=False)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{printable(str(file.path))}: is not a record of this program ({error})") from error
    facts, named = asdict(launch), (_stamp(launch.started), launch.rank, launch.size)
    texts = (seal(facts), json.dumps(facts, indent=1) + "\n")  # older launches have no checksum
    return launch, text in texts and named == (file.started, file.rank, file.size)


def is_closed(launches: Sequence[Launch]) -> bool:
    """True if every process ended normally, or a later one with its samples did: all files are listed."""
    ended = [launch for launch in launches if launch.finished]
    for one in launches:
        later = (o for o in ended if o.started > one.started and one.size % o.size == 0 and not o.only)
        if not one.finished and not any(one.rank % other.size == other.rank for other in later):
            return False
    return bool(ended)


def seal(facts: Mapping[str, Any]) -> str:
    """Facts as JSON with a checksum of all but `format`. A text that equals its facts sealed is unchanged."""
    covered = {name: fact for name, fact in facts.items() if name not in ("format", _DIGEST)}
    digest = hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()
    return json.dumps({**facts, _DIGEST: digest}, indent=1) + "\n"


def _stamp(started: str) -> str:
    return started.replace("+00:00", "Z").replace("-", "").replace(":", "")


def sha256_of_file(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_data(data: bytes) -> Listed:
    """Checksum and size of the bytes of a file."""
    return Listed(hashlib.sha256(data).hexdigest(), len(data))


def list_files(
    out: Path, paths: Iterable[Path], known: Mapping[Path, Listed] = MappingProxyType({})
) -> dict[str, Listed]:
    """Checksums and sizes of files below `out`, by their paths there; those that are not known are read."""
    return {
        path.relative_to(out).as_posix(): known.get(path) or Listed(sha256_of_file(path), path.stat().st_size)
        for path in paths
    }


def read_checksums(out: Path, share: tuple[int, int] = (0, 1)) -> dict[str, Listed]:
    """Checksums by path below `out`; a path's last line counts, and lines without a checksum are ignored.

    share: (rank, size) of a process, which reads only the lists that may name files of its share.
    """
    listed = dict[str, Listed]()
    for file in of_kind(out, CHECKSUMS):
        if (share[0] - file.rank) % math.gcd(share[1], file.size) == 0:
            listed |= scan_checksums(file.path)[0]
    return listed


def scan_checksums(path: Path, has_ended: bool = False) -> tuple[dict[str, Listed], list[int]]:
    """One list: files by path, as their last lines say, and numbers (from 1) of lines without a checksum.

    A last line without an end says nothing. It is damage if the writer has ended: a kill may cut one off.
    """
    listed, damaged, size = dict[str, Listed](), list[int](), None
    with open_own(path, "r", MAX_LIST_BYTES) as file:
        for number, line in enumerate(file, 1):
            text = line.removesuffix(b"\n")
            told, match = _SIZE.fullmatch(text), _LINE.fullmatch(text)
            if text == line:
                damaged += [number] if has_ended else []
            elif match:
                name = os.fsdecode(match[3])
                if match[1]:
                    name = re.sub(r"\\[\\nr]", lambda escaped: _UNESCAPES[escaped[0]], name)
                listed[name] = Listed(match[2].decode(), size)
            elif not told:
                damaged.append(number)
            size = int(told[1]) if told else None
    return listed, damaged


def read_failures(out: Path) -> list[Failure]:
    """Samples that failed and were not made later, sorted; incomplete lines are ignored."""
    try:
        return [failure for failure in noted_failures(out, FAILURES) if not failure.is_resolved(out)]
    except OSError as error:
        where = printable(str(error.filename or out))
        raise UsageError(f"{where}: cannot be read ({error.strerror}); move it away") from error


def noted_failures(out: Path, *others: str) -> list[Failure]:
    """The last failure of each sample in `others` and the files of processes, made later or not, sorted."""
    last = dict[tuple[str, int, str], Failure]()
    for path in (*(out / name for name in others), *(file.path for file in of_kind(out, FAILED))):
        with suppress(FileNotFoundError), open_own(path, "r", MAX_LIST_BYTES) as file:
            text = file.read().decode("utf-8", errors="replace")
            for _, row in parse_json_lines(text, str(path), skip_damaged=True):
                with suppress(ValueError):
                    failure: Failure = to_type(Failure, row, "failure", strict=False)
                    last[failure.key, failure.variation, failure.stage] = failure
    return [last[where] for where in sorted(last)]


def write_failures(out: Path) -> None:
    """Write `failures.jsonl` from the failures of all processes, unless it says the same already."""
    path = out / FAILURES
    text = _text_of(path) if os.path.lexists(path) else ""
    before: list[tuple[str, int, int]] | None = None
    # Several processes may do this at once. Each looks again after it wrote, so the last one includes all.
    while (there := _progress(out)) != before:
        before = there
        latest = "".join(f.to_line() for f in noted_failures(out) if not f.is_resolved(out))
        if latest and latest != text:
            write_text(out, path, latest)
        elif not latest:
            path.unlink(missing_ok=True)
        text = latest


def _progress(out: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of the launches and failures of all processes, by which a change is known."""
    found = list[tuple[str, int, int]]()
    for file in list_processes(out)[0]:
        with suppress(FileNotFoundError):
            if file.kind != CHECKSUMS:
                status = file.path.lstat()
                found.append((file.path.name, status.st_size, status.st_mtime_ns))
    return found


def _text_of(path: Path) -> str | None:
    """The text of a list; None if it is empty or cannot be read."""
    with suppress(OSError, UnicodeDecodeError), open_own(path, "r", MAX_LIST_BYTES) as file:
        return file.read().decode() or None
    return None


def _changed(path: Path) -> int | None:
    """mtime of a file in nanoseconds; None if it does not exist."""
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return None
