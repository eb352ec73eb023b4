"""An output folder against its records and checksums: what is missing, truncated, altered or foreign."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path, PurePosixPath

from fourm.data.layout import Place, file_name
from fourm.data.opening import read_bytes, real
from fourm.data.writing import PARTIAL, foreign_leftovers
from fourm.errors import SampleError, UsageError, printable
from fourm.output import processes
from fourm.output.formats import Flaw, Tokens, find_flaw
from fourm.output.processes import CHECKSUMS, FAILURES, LAUNCH, PROCESSES, Failure, Listed, ProcessFile
from fourm.output.record import BASE, NEXT, PLOTS, RESERVED_NAMES, RUN, SAMPLES, SR, SR_RUN, load_run
from fourm.output.samples import RecordedSample, Run, read_samples_file

FOREIGN, MISSING, TRUNCATED, ALTERED, UNREADABLE = "foreign", "missing", "truncated", "altered", "unreadable"
UNFINISHED, UNLISTED, OLDER = "unfinished", "unlisted", "older"  # notes: nothing is wrong with a file
_ORDER = (FOREIGN, MISSING, TRUNCATED, ALTERED, UNREADABLE)  # of findings
MADE, NOTED, BEGUN, ABSENT = "made", "noted", "begun", "absent"  # what became of a result; noted: it failed
_LEGACY = (processes.OLDER_CHECKSUMS, ".lock")  # files of formats 1 and 2
_RECORDS = tuple(f"{place.folder}/" for place in SAMPLES.values())  # folders in which samples are recorded
Tell = Callable[[int, int], None]  # files that were read so far, and about how many there are


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be, or worth knowing."""

    kind: str
    file: str  # below the folder, with "/"
    detail: str


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
        facts = asdict(self)
        return {"out": str(facts.pop("root")), "ok": self.ok, **facts}


def verify_folder(root: Path, tell: Tell = lambda done, total: None) -> Verdict:
    """Check every file of a folder; UsageError if it is none of a run. Nothing is changed.

    A file with a checksum is compared with it; any other by its format, which tells one that is truncated,
    but not one that was exchanged. Tokens without a checksum must also be as many as the record says.
    """
    if not root.is_dir():
        raise UsageError(f"{printable(str(root))}: no such folder")
    folder = _Folder(root)
    folder.read_processes()
    folder.read_records()
    folder.compare_files(tell)
    for each in folder.runs:
        folder.check_results(each)
    folder.check_unlisted()
    failed = sum(len(each.failed) for each in folder.runs)
    findings = sorted(folder.findings, key=lambda found: _ORDER.index(found.kind))
    return Verdict(root, folder.samples, failed, folder.files, tuple(findings), tuple(folder.notes))


@dataclass(slots=True)
class _RunState:
    run: Run
    is_closed: bool  # its last process has ended normally, so that every file is listed
    failed: set[tuple[str, int]]  # key and variation of results that are noted as failed, and not here
    base_failed: set[tuple[str, int]] = field(default_factory=set)  # the run before failed to make these


@dataclass(slots=True)
class _Folder:
    """What is known of a folder so far."""

    root: Path
    findings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    runs: list[_RunState] = field(default_factory=list)
    has_base: bool = False  # the record of the run that made the folder tells what belongs here
    known: set[str] = field(default_factory=set)  # folders directly below root in which runs have files
    sums: dict[str, Listed] = field(default_factory=dict)  # by path
    failures: list[Failure] = field(default_factory=list)  # of samples that were not made since
    unlisted: set[str] = field(default_factory=set)  # files without a checksum
    blocked: set[str] = field(default_factory=set)  # folders and links that are not followed
    lost: list[str] = field(default_factory=list)  # unlisted files of complete runs that are made results
    late: list[str] = field(default_factory=list)  # the same of runs that are not complete
    files: int = 0  # that were read
    samples: int = 0  # of the first run, with a result
    is_unknown: bool = False  # which files belong to samples

    def find(self, kind: str, file: str, detail: str) -> None:
        self.findings.append(Finding(kind, file, detail))

    def note(self, kind: str, file: str, detail: str) -> None:
        self.notes.append(Finding(kind, file, detail))

    def lack(self, path: str, detail: str) -> None:
        """Add a missing file, unless it lies in what could not be looked into."""
        if self.blocked.isdisjoint((path, *map(str, PurePosixPath(path).parents))):
            self.find(MISSING, path, detail)

    def read_processes(self) -> None:
        files, others = processes.list_processes(self.root)
        for name in others:
            self.find(FOREIGN, f"{PROCESSES}/{name}", "no process of this program wrote it")
        for name, own in groupby(files, key=lambda file: f"{PROCESSES}/{file.path.stem}"):
            self._read_process(name, {file.kind: file for file in own})
        try:
            self.failures = processes.read_failures(self.root)
        except UsageError as error:
            self.find(UNREADABLE, FAILURES, str(error).partition(": ")[2])

    def _read_process(self, name: str, kinds: dict[str, ProcessFile]) -> None:
        """What one process wrote, compared with what it noted when it ended."""
        noted: Mapping[str, str] = {}
        if LAUNCH in kinds:
            try:
                launch, is_as_written = processes.read_launch(kinds[LAUNCH])
                noted = launch.files
                if not is_as_written:
                    self.find(ALTERED, name + LAUNCH, "is not as its process wrote it, or not under its name")
            except UsageError as error:
                self.find(ALTERED, name + LAUNCH, str(error).partition(": ")[2])
        elif any(file.run != processes.ANY_RUN for file in kinds.values()):
            self.find(MISSING, name + LAUNCH, "other files of this process are here")
        for kind in sorted(noted.keys() - kinds.keys()):
            self.find(MISSING, name + kind, f"{name}{LAUNCH} tells of it")
        for kind, file in kinds.items():
            damaged = list[int]()
            try:
                if kind == CHECKSUMS:
                    listed, damaged = processes.scan_checksums(file.path, has_ended=kind in noted)
                    self.sums |= listed
                is_changed = kind in noted and processes.sha256_of_file(file.path) != noted[kind]
            except OSError as error:
                self.find(UNREADABLE, name + kind, f"cannot be read ({error.strerror or error})")
                continue
            if damaged:
                more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
                self.find(ALTERED, name + kind, f"line {damaged[0]}{more} is cut off or holds no checksum")
            elif is_changed:
                self.find(ALTERED, name + kind, "was changed after its process had ended")

    def read_records(self) -> None:
        """Read the records of runs; UsageError where no run wrote the folder."""
        for file, stage in ((RUN, BASE), (SR_RUN, SR)):
            path = self.root / file
            if not os.path.lexists(path):
                continue
            if not path.exists():
                self.find(UNREADABLE, file, "a link to a file that is gone")
                continue
            try:
                read = load_run(self.root, file)
                launches = processes.read_launches(self.root, read.identity)
            except UsageError as error:
                self.find(ALTERED, file, str(error).removeprefix(f"{printable(str(path))}: "))
                continue
            run = Run(self.root, file, read.run)
            if path.is_symlink():
                self.find(FOREIGN, file, "a link in the place of a record, which other commands refuse")
            if not read.is_as_written:
                self.find(ALTERED, file, "is not as its run wrote it; what is checked by it may be wrong")
            if not launches and read.identity:
                self.find(MISSING, PROCESSES, f"nothing there tells of the processes that made {file}")
            if run.is_older:
                if (older := self.root / processes.OLDER_CHECKSUMS).is_file():
                    self.sums |= processes.scan_checksums(older)[0]
                self.note(OLDER, file, "an older version wrote it; only files with a checksum are checked")
            failed = {(f.key, f.variation) for f in self.failures if f.stage == stage}
            self.runs.append(_RunState(run, processes.is_closed(launches), failed))
            self.known |= {place.folder.partition("/")[0] for place in (*read.run.places, SAMPLES[file])}
            self.has_base |= file == RUN
        if len(self.runs) == 2:
            base, finer = self.runs
            if not base.run.record.as_origin().items() <= finer.run.record.origin.items():
                self.find(ALTERED, SR_RUN, f"goes on from another run than the one in {RUN}")
            if base.run.variations == finer.run.variations:
                finer.base_failed = set(base.failed)
        if all(each.is_closed for each in self.runs):
            self._check_failures()
        is_beside_a_dataset = bool(self.runs) and not self.runs[0].run.record.origin
        if os.path.lexists(self.root / RUN) or is_beside_a_dataset:
            return
        if not any(os.path.lexists(self.root / file) for file in (SR_RUN, PROCESSES)):
            raise UsageError(
                f"{printable(str(self.root))}: holds no {RUN}, so no run of this program wrote it"
            )
        self.find(MISSING, RUN, f"of its files only those that {PROCESSES} lists can be checked")

    def _check_failures(self) -> None:
        """Whether `failures.jsonl` is what its processes made of their own lists; all of them have ended."""
        lists = [found.file for found in self.findings if found.file.startswith((FAILURES, f"{PROCESSES}/"))]
        if any(file.endswith(processes.FAILED) for file in lists):
            return  # told already
        path = self.root / FAILURES
        told = read_bytes(path, processes.MAX_LIST_BYTES).splitlines(keepends=True) if path.exists() else []
        lines = {f.to_line().encode(): f for f in processes.noted_failures(self.root)}
        lost = [line for line, f in lines.items() if line not in told and not f.is_resolved(self.root)]
        if lost or told != [line for line in lines if line in told]:
            what = f"{len(lost)} more failed samples are noted" if lost else "other lines are noted"
            self.find(ALTERED if told else MISSING, FAILURES, f"{what} in {PROCESSES}")
        elif path.exists() and not told:
            self.find(FOREIGN, FAILURES, "is empty, and no process leaves such")

    def compare_files(self, tell: Tell) -> None:
        """Compare all files that have a checksum with it; collect those that have none."""
        total, missing = sum(not path.startswith(_RECORDS) for path in self.sums), set(self.sums)
        for path in self._walk():
            if not path.startswith(_RECORDS):
                tell(self.files, total)
            if path in missing:
                missing.remove(path)
                self._compare(path)
            else:
                self.unlisted.add(path)
        for path in sorted(missing):
            self.lack(path, f"{PROCESSES} lists it")

    def _walk(self) -> Iterator[str]:
        """Files in the folders of runs; links are followed to files inside of the output folder only."""
        listed = {path.partition("/")[0] for path in self.sums}

        def take_unreadable(error: OSError) -> None:
            folder = Path(error.filename).relative_to(self.root).as_posix()
            self.find(UNREADABLE, folder, f"cannot be read ({error.strerror or error})")
            self.blocked.add(folder)

        for where, folders, files in os.walk(self.root, onerror=take_unreadable):
            prefix = f"{Path(where).relative_to(self.root).as_posix()}/".removeprefix("./")
            links = [name for name in folders if os.path.islink(os.path.join(where, name))]
            folders[:], files = sorted({*folders} - {*links}), sorted([*files, *links])
            if not prefix:
                folders[:] = [name for name in folders if self._is_of_runs(name, listed, is_folder=True)]
                files = [name for name in files if self._is_of_runs(name, listed, is_folder=False)]
            for name in files:
                path, problem = prefix + name, ""
                is_link = os.path.islink(os.path.join(where, name))
                if is_link and not real(self.root / path).is_relative_to(real(self.root)):
                    problem = "a link that leads out of the folder"
                elif name in links:
                    problem = "a link to a folder, which is not followed"
                if problem:
                    self.find(FOREIGN, path, problem)
                    self.blocked.add(path)
                else:
                    yield path

    def _is_of_runs(self, name: str, listed: set[str], is_folder: bool) -> bool:
        """True for a name directly below root under which runs have files; what lies beside is judged."""
        own = (*RESERVED_NAMES, *(_LEGACY if any(each.run.is_older for each in self.runs) else ()))
        if name in self.known or name in listed:
            if name not in self.known and self.has_base:
                self.find(FOREIGN, name, "no record here tells of it")
            return True
        if name in (PARTIAL, PLOTS) and not is_folder:
            what = "unfinished files" if name == PARTIAL else "plots"
            self.find(FOREIGN, name, f"a file or a link where {what} would go")
        elif name == PARTIAL:
            for other in foreign_leftovers(self.root):
                self.find(FOREIGN, f"{name}/{other}", "no process of this program wrote it")
            self.note(UNFINISHED, name, "of a process that works here or was killed; --resume tidies up")
        elif name in NEXT.values():
            self.find(MISSING, name, "an --overwrite was interrupted while it emptied; --resume goes on")
        elif self.has_base and name not in own:
            self.find(FOREIGN, name, "no run of this program wrote it")
        return False

    def check_results(self, each: _RunState) -> None:
        """Check the results of a run: what became of them, their number, and the files without a checksum."""
        run, counts = each.run, Counter[str]()
        if run.is_older:
            self.is_unknown = True
            self.samples += sum(1 for _ in run.samples()) if each is self.runs[0] else 0
            return
        lists = {path.relative_to(self.root).as_posix(): path for path in run.thousands()}
        folder = f"{SAMPLES[run.file].folder}/"
        is_known = all(path in lists for path in self.sums if path.startswith(folder))
        for name, path in lists.items():
            self._take_unlisted(each, name, is_made=True)
            try:
                samples = read_samples_file(path, run)
            except UsageError as error:
                is_known, samples = False, ()
                if name not in {found.file for found in self.findings}:
                    self.find(ALTERED, name, str(error))
            for sample in samples:
                states = self._check_sample(each, sample)
                counts.update(states)
                self.samples += each is self.runs[0] and MADE in states
        if not is_known:
            self.is_unknown = True
            return
        expected, begun = run.record.samples * len(run.variations), counts[BEGUN]
        if counts[MADE] > expected:
            self.find(ALTERED, run.file, f"tells of {expected:,} results, and there are {counts[MADE]:,}")
        if (lack := expected - counts[MADE] - counts[NOTED]) > 0:
            half = f" ({begun:,} of them begun)" if begun else ""
            say = f"{lack:,} of {expected:,} results were not made{half}; "
            if run.record.origin and run.file == RUN and each.is_closed:
                why = "the run that this one goes on from lacks them, or"
                self.note(MISSING, run.file, f"{say}{why} --resume makes them")
            else:
                self.find(MISSING, run.file, f"{say}--resume makes them")

    def _check_sample(self, each: _RunState, sample: RecordedSample) -> list[str]:
        """What became of each variation of a sample."""
        run, is_single = each.run, each.run.variations == (None,)
        shared = {sample.file(place, None) for place in run.places if place.shared and not is_single}
        lacked, states = dict[str, None](), list[str]()
        for variation in sample.variations:
            files = [sample.file(place, variation) for place in run.places]
            missing = [file for file in files if file not in self.sums and file not in self.unlisted]
            result, own = (sample.key.text, variation), {*files} - shared
            if not missing or any(file in self.sums for file in own):
                state = MADE
            elif result in each.failed or result in each.base_failed:
                state = NOTED
            elif not any(file in self.unlisted for file in own):
                state = ABSENT
            else:  # without any list, of a run that has ended, all that is there was made
                state = MADE if each.is_closed and not self.sums else BEGUN
            states.append(state)
            if state == MADE:
                each.failed.discard(result)
                lacked |= dict.fromkeys(missing)
        for file in lacked:
            self.lack(file, "other files of its sample are here")
        for variation, state in zip(sample.variations, states, strict=True) if self.unlisted else ():
            for place in run.record.places:
                number = None if is_single else variation
                extra = file_name(place.folder, sample.key, place.suffix, number)
                file = extra if place.form == "extra" else sample.file(place, variation)
                is_made = MADE in states if file in shared else state == MADE
                self._take_unlisted(each, file, is_made, place)
        return states

    def _take_unlisted(self, each: _RunState, file: str, is_made: bool, place: Place | None = None) -> None:
        """Judge a file without a checksum that belongs to a result."""
        if file not in self.unlisted:
            return
        self.unlisted.remove(file)
        if each.is_closed and any(f.files.get(file, 0) is None for f in self.failures):
            self.find(FOREIGN, file, "its sample failed without it")
            return
        if is_made:
            (self.lost if each.is_closed else self.late).append(file)
        self._compare(file, Tokens(each.run.count_tokens(place)) if place and place.form == "ids" else None)

    def check_unlisted(self) -> None:
        """Files without a checksum that belong to no result, or to one of a process that was killed."""
        for path in () if self.is_unknown else sorted(self.unlisted):
            if self.has_base or path.partition("/")[0] in self.known:
                self.find(FOREIGN, path, "belongs to no sample of a run")
        if self.late:
            self.note(UNLISTED, PROCESSES, f"{_named(self.late)} not listed yet; --resume does it")
        if self.lost and not self.sums:
            self.find(MISSING, PROCESSES, "without it, files can only be checked by their formats")
        elif self.lost:
            what = f"{_named(self.lost)} not listed; --resume adds what belongs to samples"
            self.find(ALTERED, PROCESSES, what)

    def _compare(self, path: str, tokens: Tokens | None = None) -> None:
        """Read a file: against its checksum, or by its format and what is known of its tokens."""
        self.files += not path.startswith(_RECORDS)
        file, said = self.root / path, self.sums.get(path)
        try:
            size = file.stat().st_size
            if said is not None and said.size is not None and size > said.size:
                self.find(ALTERED, path, f"is larger than the {said.size:,} bytes in {PROCESSES}")
                return
            if said is not None and processes.sha256_of_file(file) == said.sha256:
                return
            flaw = find_flaw(file, tokens)
        except (OSError, SampleError) as error:
            why = f"cannot be read ({error.strerror or error})" if isinstance(error, OSError) else str(error)
            self.find(UNREADABLE, path, why)
            return
        if flaw is None and said is None:
            return
        flaw = flaw or Flaw(False, f"its checksum is not the one in {PROCESSES}")
        if size == 0:
            flaw = Flaw(True, "is empty")
        self.find(TRUNCATED if flaw.is_cut else ALTERED, path, flaw.what)


def _named(paths: list[str]) -> str:
    return min(paths) + (f" and {len(paths) - 1:,} more files are" if len(paths) > 1 else " is")
