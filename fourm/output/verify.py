"""An output folder against its records and checksums: what is missing, cut off, altered or nobody's."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from fourm.data.opening import open_file
from fourm.data.writing import PARTIAL, foreign_leftovers
from fourm.errors import SampleError, UsageError, printable
from fourm.output.census import Census, Member, Status
from fourm.output.checksums import Listed, sha256_of_file
from fourm.output.formats import find_flaw, find_flaw_of_tokens
from fourm.output.ledger import (
    ALTERED,
    FOREIGN,
    MISSING,
    TRUNCATED,
    UNFINISHED,
    UNLISTED,
    UNREADABLE,
    Finding,
    Ledger,
    why,
)
from fourm.output.processes import PROCESSES, Failure, is_closed, read_launches
from fourm.output.results import Run
from fourm.output.runfile import BASE, NEXT, PLOTS, RESERVED_NAMES, RUN, SR, SR_RUN, read_run

Tell = Callable[[int, int], None]  # files that were read so far, and how many there are


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found in a folder."""

    root: Path
    samples: int  # that are here
    failed: int  # results that failed and are noted in failures.jsonl
    files: int  # that were read
    findings: tuple[Finding, ...]  # nothing: the folder is as its runs left it
    notes: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.findings

    def to_json(self) -> dict[str, object]:
        """The verdict for a program."""
        return {
            "out": str(self.root), "ok": self.ok, "samples": self.samples, "failed": self.failed,
            "files": self.files, "findings": [asdict(f) for f in self.findings],
            "notes": [asdict(n) for n in self.notes],
        }  # fmt: skip


def verify_folder(root: Path, tell: Tell = lambda done, total: None) -> Verdict:
    """Check every file of a folder; UsageError if it is none of a run. Nothing is changed.

    A file with a checksum is compared with it; any other by its format, which tells one that is cut off, but
    not one that was exchanged. Tokens without a checksum must also be as many as the record says.
    """
    if not root.is_dir():
        raise UsageError(f"{printable(str(root))}: no such folder")
    search = _Search(root)
    search.read_records()
    search.list_files()
    search.count_results()
    files = search.compare(tell)
    made = {key for census in search.censuses[:1] for key, _ in census.made()}
    failed = sum(len(c.failed - c.made()) for c in search.censuses)
    return Verdict(root, len(made), failed, files, tuple(search.findings), tuple(search.notes))


@dataclass(slots=True)
class _Search:
    """What is known of a folder so far."""

    root: Path
    censuses: list[Census] = field(default_factory=list)
    sums: dict[str, Listed] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    there: list[str] = field(default_factory=list)  # plain files in folders of runs
    blocked: set[str] = field(default_factory=set)  # folders and links that are not followed
    unlisted: list[tuple[str, Census, Member]] = field(default_factory=list)
    strange: set[str] = field(default_factory=set)  # files that are not read
    tokens: dict[str, int | None] = field(
        default_factory=dict
    )  # how many an unlisted file has, if it is known
    findings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    _owners: dict[str, list[tuple[Census, int]]] = field(default_factory=dict)

    @property
    def has_base(self) -> bool:
        """True where the record of the run that made the folder tells what belongs here."""
        return any(census.run.file == RUN for census in self.censuses)

    def read_records(self) -> None:
        """The records of runs, their failures, and the checksums."""
        ledger = Ledger.of(self.root)
        self.sums, self.findings, self.failures = ledger.sums, ledger.findings, ledger.failures
        for file, stage in ((RUN, BASE), (SR_RUN, SR)):
            if not os.path.lexists(self.root / file):
                continue
            try:
                read = read_run(self.root / file)
                launches = read_launches(self.root, read.identity)
            except FileNotFoundError:
                self._find(UNREADABLE, file, "a link to a file that is gone")
                continue
            except UsageError as error:
                self._find(ALTERED, file, str(error).removeprefix(f"{printable(str(self.root / file))}: "))
                continue
            if (self.root / file).is_symlink():
                self._find(FOREIGN, file, "a link in the place of a record, which other commands refuse")
            if not read.is_as_written:
                self._find(ALTERED, file, "is not as its run wrote it; what is checked by it may be wrong")
            if not launches:
                self._find(MISSING, PROCESSES, f"nothing there tells of the processes that made {file}")
            census = Census(Run(read.run, file), is_closed(launches))
            census.count_failures(f for f in self.failures if f.stage == stage)
            self.censuses.append(census)
        self._compare_records()
        if all(census.is_closed for census in self.censuses):
            ledger.check_failures()
        for census in self.censuses:
            for number, place in enumerate(census.places):
                self._owners.setdefault(place.folder, []).append((census, number))
        for owners in self._owners.values():  # `-order.npy` before `.npy`
            owners.sort(key=lambda owner: -len(owner[0].places[owner[1]].suffix))
        if os.path.lexists(self.root / RUN) or self._is_beside_a_dataset():
            return
        if not any(os.path.lexists(self.root / file) for file in (SR_RUN, PROCESSES)):
            where = printable(str(self.root))
            raise UsageError(f"{where}: holds no {RUN}, so no run of this program wrote it")
        self._find(MISSING, RUN, f"of its files only those that {PROCESSES} lists can be checked")

    def list_files(self) -> None:
        """All files in the folders of runs; what lies beside these."""
        known = {_top(folder) for folder in self._owners}
        listed = {_top(path) for path in self.sums}
        for entry in self._scan(""):
            name = entry.name
            if name in known or name in listed:
                if name not in known and self.has_base:
                    self._find(FOREIGN, name, "no record here tells of it")
                self._walk(entry)
            elif name == PARTIAL and not entry.is_dir(follow_symlinks=False):
                self._find(FOREIGN, name, "a file or a link where unfinished files would go")
            elif name == PLOTS and not entry.is_dir(follow_symlinks=False):
                self._find(FOREIGN, name, "a file or a link where plots would go")
            elif name == PARTIAL:
                for strange in foreign_leftovers(self.root):
                    self._find(FOREIGN, f"{name}/{strange}", "no process of this program wrote it")
                self._note(UNFINISHED, name, "of a process that works here or was killed; --resume tidies up")
            elif name in NEXT.values():
                self._find(MISSING, name, "an --overwrite was interrupted while it emptied; --resume goes on")
            elif self.has_base and name not in RESERVED_NAMES:
                self._find(FOREIGN, name, "no run of this program wrote it")
        self.there.sort()

    def count_results(self) -> None:
        """Sort files into results; name those that are missing or nobody's."""
        there = set(self.there)
        for path in self.there:
            self._sort_in(path)
        for path in sorted(self.sums.keys() - there):
            self._sort_in(path, is_there=False)
            if not self._is_blocked(path):
                self._find(MISSING, path, f"{PROCESSES} lists it")
        for census in self.censuses:
            if census.run.file == SR_RUN:
                census.excused = self._unable(census)
            census.judge()
            for path in census.missing():
                if not self._is_blocked(path):
                    self._find(MISSING, path, "other files of its sample are here")
            self._count(census)
        self._judge_unlisted()

    def compare(self, tell: Tell) -> int:
        """Read all files that are somebody's, each once; returns how many."""
        paths = [path for path in self.there if path not in self.strange]
        for number, path in enumerate(paths):
            tell(number, len(paths))
            try:
                self._compare(path)
            except SampleError as error:
                self._find(UNREADABLE, path, str(error).removeprefix(f"{self.root / path}: "))
            except OSError as error:
                self._find(UNREADABLE, path, f"cannot be read ({why(error)})")
        return len(paths)

    def _compare_records(self) -> None:
        """Super-resolution beside a run goes on from this run, not from another one."""
        records = {census.run.file: census.run.record for census in self.censuses}
        if len(records) == 2 and records[SR_RUN].origin != records[RUN].as_origin():
            self._find(ALTERED, SR_RUN, f"goes on from another run than the one in {RUN}")

    def _is_beside_a_dataset(self) -> bool:
        """True for super-resolution of files that no run made."""
        return bool(self.censuses) and not self.censuses[0].run.record.origin

    def _compare(self, path: str) -> None:
        file, said = self.root / path, self.sums.get(path)
        if said is not None:
            open_file(file).close()  # a pipe would be waited for
            if said.size is not None and file.stat().st_size > said.size:
                self._find(ALTERED, path, f"is larger than the {said.size:,} bytes in {PROCESSES}")
                return
            if sha256_of_file(file) == said.sha256:
                return
        flaw = find_flaw(file)
        if flaw is None and path in self.tokens:
            flaw = find_flaw_of_tokens(file, self.tokens[path])
        if os.path.getsize(file) == 0 and (said is not None or flaw is not None):
            self._find(TRUNCATED, path, "is empty")
        elif flaw is not None:
            self._find(TRUNCATED if flaw.is_cut else ALTERED, path, flaw.what)
        elif said is not None:
            self._find(ALTERED, path, f"its checksum is not the one in {PROCESSES}")

    def _scan(self, folder: str) -> list["os.DirEntry[str]"]:
        try:
            with os.scandir(self.root / folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self._find(UNREADABLE, folder, f"cannot be read ({why(error)})")
            self.blocked.add(folder)
            return []

    def _walk(self, top: "os.DirEntry[str]") -> None:
        """Note all files below an entry of the folder; links are followed to files inside of it only."""
        waiting = [top]
        while waiting:
            entry = waiting.pop()
            path = os.path.relpath(entry.path, self.root)
            if entry.is_dir(follow_symlinks=False):
                waiting += self._scan(path)
            elif entry.is_symlink() and (strange := self._leads_away(entry)):
                self._find(FOREIGN, path, strange)
                self.blocked.add(path)
            else:
                self.there.append(path)

    def _leads_away(self, entry: "os.DirEntry[str]") -> str:
        """What is wrong with where a link leads, if anything."""
        if not Path(os.path.realpath(entry.path)).is_relative_to(os.path.realpath(self.root)):
            return "a link that leads out of the folder"
        return "a link to a folder, which is not followed" if os.path.isdir(entry.path) else ""

    def _is_blocked(self, path: str) -> bool:
        """True below what was not looked into, so that nobody knows what is missing there."""
        above = PurePosixPath(path)
        return bool(self.blocked) and any(str(p) in self.blocked for p in (above, *above.parents))

    def _sort_in(self, path: str, is_there: bool = True) -> None:
        """Count a file for its result; one that belongs to none is foreign, unless a run has listed it."""
        is_listed = path in self.sums
        census, member = self._owner(path)
        if census is not None and member is not None:
            census.take(member, is_there, is_listed)
            if not is_listed:
                self.unlisted.append((path, census, member))
                place = census.places[member.place]
                if place.form == "ids":
                    self.tokens[path] = None if place.is_condition else census.run.count_tokens(place)
        elif not is_listed:
            self.strange.add(path)
            if self.has_base or _top(path) in map(_top, self._owners):
                self._find(FOREIGN, path, "no run names a file so")

    def _owner(self, path: str) -> tuple[Census | None, Member | None]:
        """The run whose file this is, and what it is there."""
        for folder in map(str, PurePosixPath(path).parents):
            for census, number in self._owners.get(folder, ()):
                if (member := census.find(number, path[len(folder) + 1 :])) is not None:
                    return census, member
        return None, None

    def _unable(self, census: Census) -> set[tuple[str, int]]:
        """Results of super-resolution that the run before failed to prepare."""
        before = self.censuses[0]
        if before is census or before.run.variations != census.run.variations:
            return set()
        keys = {key for key, _ in before.results}
        return {(key, variation) for key, variation in before.failed if key in keys}

    def _count(self, census: Census) -> None:
        """As many results as the record says?"""
        file, record, made = census.run.file, census.run.record, len(census.made())
        begun = sum(status is Status.UNFINISHED for status in census.status.values())
        known = sum(status in (Status.MADE, Status.FAILED) for status in census.status.values())
        lack = census.expected - known
        if made > census.expected:
            self._find(ALTERED, file, f"tells of {census.expected:,} results, and there are {made:,}")
        if lack > 0:
            half = f" ({begun:,} of them begun)" if begun else ""
            say = f"{lack:,} of {census.expected:,} results were not made{half}; "
            if record.origin and file == RUN and census.is_closed:
                say += "the run that this one goes on from lacks them, or --resume makes them"
                self._note(MISSING, file, say)
            else:
                self._find(MISSING, file, f"{say}--resume makes them")

    def _judge_unlisted(self) -> None:
        """Files without a checksum: of a process that was killed, or nobody's."""
        lost, late, lacked = list[str](), list[str](), self._lacked()
        for path, census, member in self.unlisted:
            status = census.status_of(member)
            if status is Status.FOREIGN:
                self.strange.add(path)
                self._find(FOREIGN, path, "belongs to no sample of a run")
            elif census.is_closed and path in lacked:
                self._find(FOREIGN, path, "its sample failed without it")
            elif status is Status.MADE:
                (lost if census.is_closed else late).append(path)
        if late:
            self._note(UNLISTED, PROCESSES, f"{_named(late)} not listed yet; --resume does it")
        if lost and not self.sums:
            self._find(MISSING, PROCESSES, "without it, files can only be checked by their formats")
        elif lost:
            what = f"{_named(lost)} not listed; --resume adds what belongs to samples"
            self._find(ALTERED, PROCESSES, what)

    def _lacked(self) -> set[str]:
        """Files that failed samples lacked when they failed."""
        return {file for each in self.failures for file, time in each.files.items() if time is None}

    def _find(self, kind: str, file: str, detail: str) -> None:
        self.findings.append(Finding(kind, file, detail))

    def _note(self, kind: str, file: str, detail: str) -> None:
        self.notes.append(Finding(kind, file, detail))


def _named(paths: list[str]) -> str:
    return paths[0] + (f" and {len(paths) - 1:,} more files are" if len(paths) > 1 else " is")


def _top(path: str) -> str:
    return path.partition("/")[0]
