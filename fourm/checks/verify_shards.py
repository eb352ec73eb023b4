"""Checks the folder of a sharded run, one shard at a time: markers, tars, tables, and what is of no shard."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fourm.checks.findings import (
    ALTERED,
    FOREIGN,
    MISSING,
    ORDER,
    OTHER_FOLDERS,
    TRUNCATED,
    UNFINISHED,
    UNLISTED,
    UNREADABLE,
    Finding,
    Report,
    Verdict,
    check_reserved,
    reason_of,
)
from fourm.data.layout import Place
from fourm.data.shards import PARQUET, SHARDS, shard_name
from fourm.errors import FourMError, UsageError
from fourm.files.opening import real
from fourm.output.markers import Marker, marker_files, marker_path, read_marker, settings_digest
from fourm.output.members import ShardMembers
from fourm.output.processes import sha256_of_file
from fourm.output.record import DONE, EVAL_CSV, EVAL_JSON, FRAMES, NEXT, RUN, SR, SR_RUN
from fourm.output.samples import Run, load_run

_ENDINGS = (".tar", f".{PARQUET}")  # of files of results
_NUMBERED = re.compile("[0-9]{5,}")  # names of shards that have no other
_RANGES_SHOWN = 10  # of shards that are missing


def is_sharded(root: Path) -> bool:
    """Whether a folder is that of a sharded run, also where its record is gone or damaged."""
    try:
        return load_run(root).record.is_sharded
    except UsageError:
        return (root / DONE[RUN]).is_dir()


def verify_shards(root: Path, report: Report = lambda done, total: None) -> Verdict:
    """Check every file of the folder of a sharded run without changing any."""
    folder = _Folder(root)
    for file in (RUN, SR_RUN):
        if os.path.lexists(root / file) or os.path.isdir(root / DONE[file]):
            folder.check_run(file, report)
    folder.check_others()
    findings = sorted(folder.findings, key=lambda found: ORDER.index(found.kind))
    return Verdict(
        root, folder.samples, folder.failed, folder.files, tuple(findings), tuple(folder.notes), DONE[RUN]
    )


def missing_shards(numbers: set[int], total: int) -> list[tuple[int, int]]:
    """The ranges, first and last, of the numbers below `total` that are not in a set."""
    found, first = list[tuple[int, int]](), 0
    for number in sorted(one for one in numbers if one < total):
        if number > first:
            found.append((first, number - 1))
        first = number + 1
    return [*found, (first, total - 1)] if first < total else found


def as_ranges(ranges: Sequence[tuple[int, int]]) -> str:
    """`00001, 00004-00099` and how many more there are."""
    said = [shard_name(a) + (f"-{shard_name(b)}" if b > a else "") for a, b in ranges[:_RANGES_SHOWN]]
    more = len(ranges) - _RANGES_SHOWN
    return ", ".join(said) + (f" and {more:,} more ranges" if more > 0 else "")


@dataclass(slots=True)
class _Folder:
    """What is known of a folder so far; of each shard, only the names of its files, relative to it."""

    root: Path
    findings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    listed: set[str] = field(default_factory=set)  # files that markers name
    damaged: set[str] = field(default_factory=set)  # names of shards whose markers cannot be read
    is_whole: bool = True  # no shard is missing
    total: int = 0  # shards of the run; 0: its record cannot be read
    folders: dict[str, str] = field(default_factory=dict)  # of tars -> the record of their run
    joint: set[str] = field(default_factory=set)  # records of runs whose shards are one file each
    samples: int = 0
    failed: int = 0
    files: int = 0

    def add(self, kind: str, file: str, detail: str) -> None:
        found = self.notes if kind in (UNFINISHED, UNLISTED) else self.findings
        found.append(Finding(kind, file, detail))

    def check_run(self, file: str, report: Report) -> None:
        """Check one run: its record, then each of its shards."""
        run, numbers = self._read_record(file), set[int]()
        settings = settings_digest(run.record) if run is not None else None
        for path in marker_files(self.root, file):
            name = path.relative_to(self.root).as_posix()
            shard = path.relative_to(self.root / DONE[file]).with_suffix("").as_posix()
            try:
                marker = read_marker(path)
            except UsageError as error:
                self.damaged.add(shard)
                numbers |= {int(shard)} if _NUMBERED.fullmatch(shard) else set()
                self.add(ALTERED, name, reason_of(error, path))
                continue
            numbers.add(marker.shard.number)
            self._check_marker(name, shard, marker, settings)
            intact = set[str]()
            for one, (sha256, size) in marker.files.items():
                self.listed.add(one)
                report(self.files, len(marker.files) * max(self.total, len(numbers)))
                intact |= {one} if self._compare(name, one, sha256, size) else set()
            if run is not None:
                self._count(name, run, marker, intact)
        if run is not None:
            self._check_number(run, numbers)

    def _read_record(self, file: str) -> Run | None:
        path = self.root / file
        try:
            run = load_run(self.root, file)
        except UsageError as error:
            is_there = os.path.lexists(path)
            what = reason_of(error, path) if is_there else ""
            where = f"without it, only what {DONE[file]} names can be checked"
            self.add(ALTERED if is_there else MISSING, file, what or where)
            self.is_whole = False
            return None
        if path.is_symlink():
            self.add(FOREIGN, file, "is a link; other commands refuse a record that is a link")
        if not run.is_as_written:
            what = "was changed after its run wrote it; checks that rely on it may be wrong"
            self.add(ALTERED, file, what)
        self.total = max(self.total, run.record.shards or 0)
        if run.record.layout == SHARDS:
            self.folders |= {place.folder: file for place in (*run.record.places, FRAMES)}
        else:
            self.joint.add(file)
        if file == SR_RUN and os.path.lexists(self.root / RUN):
            self._compare_origin(run)
        return run

    def _compare_origin(self, sr: Run) -> None:
        try:
            base = load_run(self.root)
        except UsageError:
            return  # was said
        if not base.record.as_origin().items() <= sr.record.origin.items():
            self.add(ALTERED, SR_RUN, f"continues another run than the one in {RUN}")

    def _check_marker(self, name: str, shard: str, marker: Marker, settings: str | None) -> None:
        counts = marker.counts
        if marker.shard.name != shard:
            self.add(ALTERED, name, f"is the marker of shard {marker.shard.name}")
        elif settings is not None and marker.settings != settings:
            self.add(ALTERED, name, "is of other settings than the record of the run")
        elif self.total and not 0 <= marker.shard.number < self.total:
            self.add(FOREIGN, name, f"the run has {self.total:,} shards")
        elif (counts.failed, counts.incomplete) != (len(marker.failures), len(marker.incomplete)):
            self.add(ALTERED, name, "its counts are not those of the failures that it lists")

    def _compare(self, marker: str, name: str, sha256: str, size: int) -> bool:
        """Compare a file with what its marker says; True if it is intact."""
        path, before = self.root / name, len(self.findings)
        try:
            there = os.stat(path).st_size
            if not real(path).is_relative_to(real(self.root)):
                self.add(FOREIGN, name, "a link that leads out of the folder")
            elif there != size:
                kind = TRUNCATED if there < size else ALTERED
                self.add(kind, name, f"has {there:,} bytes, not the {size:,} in {marker}")
            elif sha256_of_file(path) != sha256:
                self.add(ALTERED, name, f"its checksum is not the one in {marker}")
            self.files += 1
        except FileNotFoundError:
            self.add(MISSING, name, f"{marker} lists it; `resume=True` makes it again")
        except OSError as error:
            self.add(UNREADABLE, name, f"cannot be read ({error.strerror or error})")
        return len(self.findings) == before

    def _count(self, name: str, run: Run, marker: Marker, intact: set[str]) -> None:
        """Add up results, and compare their number with that of the members of tars or the rows of tables."""
        counts, variations = marker.counts, len(run.variations)
        if run.file == RUN:
            lost = Counter(failure.key for failure in marker.failures)
            self.samples += counts.samples - sum(number == variations for number in lost.values())
            if counts.saved + counts.failed != counts.samples * variations:
                results = f"{counts.saved + counts.failed:,} results"
                what = f"has {results}, but {counts.samples:,} samples in {variations:,} variations"
                self.add(ALTERED, name, what)
        self.failed += counts.failed
        for place in run.places:
            number = None if place.shared else self._count_files(run, marker, place, intact)
            if number is not None and number != counts.saved:
                what = f"says {counts.saved:,} results, but there are {number:,}"
                self.add(ALTERED, name, f"{what} of {place.folder}{place.suffix}")

    def _count_files(self, run: Run, marker: Marker, place: Place, intact: set[str]) -> int | None:
        """How many files of a place are in a shard, or rows in its table; None if that is not known."""
        members = ShardMembers(self.root, marker, run.variations, run.file)
        name = members.file_of(place)
        if name not in intact:
            return None if name in marker.files else 0
        try:
            return members.count(place)
        except (ImportError, OSError, ValueError, FourMError):
            return None  # a file that has its checksum; without pyarrow, rows are not counted

    def _check_number(self, run: Run, numbers: set[int]) -> None:
        total = run.record.shards or 0
        if missing := missing_shards(numbers, total):
            self.is_whole = False
            count = sum(last - first + 1 for first, last in missing)
            what = f"{count:,} of {total:,} shards were not made ({as_ranges(missing)})"
            self.add(MISSING, run.file, f"{what}; `resume=True` makes them")

    def check_others(self) -> None:
        """Report the files that belong to no shard."""
        own = {RUN, SR_RUN, EVAL_JSON, EVAL_CSV}
        for path in self._walk():
            name, (top, *below) = path.as_posix(), path.parts
            if name in own or name in self.listed:
                continue
            if not below and top in (*NEXT.values(), *OTHER_FOLDERS):
                self._add_all(check_reserved(self.root, top, is_folder=False))
            elif top in DONE.values() and below and path.suffix == ".json":
                continue  # it was read
            else:
                self._report_other(path)

    def _walk(self) -> Iterator[Path]:
        """Paths of all files that can be of runs; no link to a folder is followed."""
        for where, folders, files in os.walk(self.root, onerror=self._add_unreadable):
            above = Path(where).relative_to(self.root)
            for name in sorted(folders):
                if os.path.islink(os.path.join(where, name)):
                    self.add(FOREIGN, (above / name).as_posix(), "a link to a folder, which is not followed")
                    folders.remove(name)
            if above == Path():
                for name in OTHER_FOLDERS.keys() & {*folders}:
                    self._add_all(check_reserved(self.root, name, is_folder=True))
                    folders.remove(name)
            folders.sort()
            yield from (above / name for name in sorted(files))

    def _report_other(self, path: Path) -> None:
        """Report a file that no marker names, unless the record is gone that could tell what it is."""
        name, (shard, file) = path.as_posix(), self._shard_of(path)
        if not self.total:
            return
        if not shard:
            self.add(FOREIGN, name, "no run of this program wrote it")
        elif shard in self.damaged:
            self.add(UNLISTED, name, "the marker of its shard is damaged, so it was not checked")
        elif os.path.lexists(marker := marker_path(self.root, shard, file)):
            self.add(FOREIGN, name, f"{marker.relative_to(self.root).as_posix()} does not list it")
        elif self.is_whole or (_NUMBERED.fullmatch(shard) and int(shard) >= self.total):
            self.add(FOREIGN, name, "no shard of this run has this name")
        else:
            self.add(UNLISTED, name, "has no marker, so its shard is not whole; `resume=True` makes it again")

    def _shard_of(self, path: Path) -> tuple[str, str]:
        """The shard whose file this may be, and the record of its run; "" for no shard."""
        stem = path.with_suffix("").as_posix()
        above = [folder for folder in self.folders if stem.startswith(f"{folder}/")]
        if path.suffix not in _ENDINGS or not (above or self.joint):
            return "", RUN
        if above:
            folder = max(above, key=len)
            return stem.removeprefix(f"{folder}/"), self.folders[folder]
        if SR_RUN in self.joint and stem.startswith(f"{SR}/"):
            return stem.removeprefix(f"{SR}/"), SR_RUN
        return stem, RUN

    def _add_unreadable(self, error: OSError) -> None:
        where = Path(error.filename).relative_to(self.root).as_posix()
        self.add(UNREADABLE, where, f"cannot be read ({error.strerror or error})")

    def _add_all(self, found: Iterator[Finding]) -> None:
        for one in found:
            self.add(one.kind, one.file, one.detail)
