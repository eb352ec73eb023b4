"""Checks an output folder for missing, truncated, altered and foreign files, by its records and checksums."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PurePosixPath

from fourm.checks.findings import (
    ALTERED,
    FOREIGN,
    MISSING,
    OLDER,
    ORDER,
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
from fourm.checks.formats import Flaw, Tokens, find_flaw
from fourm.checks.verify_shards import is_sharded, verify_shards
from fourm.data.layout import Place, file_name
from fourm.errors import UsageError, printable
from fourm.files.opening import no_folder, read_bytes, real
from fourm.output.processes import (
    ANY_RUN,
    CHECKSUMS,
    FAILED,
    FAILURES,
    LAUNCH,
    MAX_LIST_BYTES,
    OLDER_CHECKSUMS,
    PROCESSES,
    Failure,
    Listed,
    ProcessFile,
    is_closed,
    list_processes,
    noted_failures,
    read_failures,
    read_launch,
    read_launches,
    scan_checksums,
    sha256_of_file,
)
from fourm.output.record import FRAMES, RESERVED_NAMES, RUN, SAMPLES, SR_RUN
from fourm.output.samples import RecordedSample, Run, load_run, read_samples_file

# Outcomes of a result, which is one variation of a sample. Partial: only files without a checksum exist.
_MADE, _FAILED, _PARTIAL, _ABSENT = "made", "failed", "partial", "absent"
_LEGACY = (OLDER_CHECKSUMS, ".lock")  # files of formats 1 and 2
_RECORDS = tuple(f"{place.folder}/" for place in SAMPLES.values())  # folders of files that record samples


def verify_folder(root: Path, report: Report = lambda done, total: None) -> Verdict:
    """Check every file of an output folder without changing any. UsageError if no run wrote the folder.

    A file with a checksum is compared with it. A file without one is checked by its format only, which finds
    a truncated file, but not a replaced one; a token file must also have the length that the record gives.
    """
    if not root.is_dir():
        raise no_folder(root)
    if is_sharded(root):
        return verify_shards(root, report)
    folder = _Folder(root)
    folder.read_processes()
    folder.read_records()
    folder.compare_files(report)
    for state in folder.runs:
        folder.check_results(state)
    folder.report_unlisted()
    failed = sum(len(state.failed) for state in folder.runs)
    findings = sorted(folder.findings, key=lambda found: ORDER.index(found.kind))
    return Verdict(root, folder.samples, failed, folder.files, tuple(findings), tuple(folder.notes))


@dataclass(slots=True)
class _RunState:
    """A run, and its results that failed, each as key and variation."""

    run: Run
    is_closed: bool  # all its processes ended normally, so every file has a checksum
    failed: set[tuple[str, int]]  # that are listed in failures.jsonl and were not made since
    was_limited: bool = False  # each process was to make only the samples that `only` names
    base_failed: set[tuple[str, int]] = field(default_factory=set)  # `failed` of the base run


@dataclass(slots=True)
class _Folder:
    """What is known of an output folder so far. All paths are relative to it."""

    root: Path
    findings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    runs: list[_RunState] = field(default_factory=list)
    has_base: bool = False  # run.json can be read; without it, nobody knows which files belong to no run
    known_folders: set[str] = field(default_factory=set)  # names directly below root, with files of runs
    checksums: dict[str, Listed] = field(default_factory=dict)  # by path
    failures: list[Failure] = field(default_factory=list)  # of samples that no later process made
    unlisted: set[str] = field(default_factory=set)  # files without a checksum that are not judged yet
    unlisted_closed: list[str] = field(default_factory=list)  # those that are results of a closed run
    unlisted_open: list[str] = field(default_factory=list)  # those that are results of a run that is not
    blocked: set[str] = field(default_factory=set)  # folders and links that were not entered
    files: int = 0  # that were read
    samples: int = 0  # of the first run, that have a result
    has_unknown_samples: bool = False  # records of samples are missing: files may belong to unknown ones

    def add(self, kind: str, file: str, detail: str) -> None:
        self.findings.append(Finding(kind, file, detail))

    def add_note(self, kind: str, file: str, detail: str) -> None:
        self.notes.append(Finding(kind, file, detail))

    def add_missing(self, path: str, detail: str) -> None:
        """Report a missing file, unless it lies in a folder that was not entered."""
        if self.blocked.isdisjoint((path, *map(str, PurePosixPath(path).parents))):
            self.add(MISSING, path, detail)

    def read_processes(self) -> None:
        """Read what the processes of all runs recorded: launches, checksums and failures."""
        files, others = list_processes(self.root)
        for name in others:
            self.add(FOREIGN, f"{PROCESSES}/{name}", "no process of this program wrote it")
        for name, own in groupby(files, key=lambda file: f"{PROCESSES}/{file.path.stem}"):
            self._read_process(name, {file.kind: file for file in own})
        try:
            self.failures = read_failures(self.root)
        except UsageError as error:
            self.add(UNREADABLE, FAILURES, str(error).partition(": ")[2])

    def _read_process(self, name: str, kinds: dict[str, ProcessFile]) -> None:
        """Compare the files of one process with the checksums that it recorded when it ended."""
        recorded: Mapping[str, str] = {}
        if LAUNCH in kinds:
            try:
                launch, is_as_written = read_launch(kinds[LAUNCH])
                recorded = launch.files
                if not is_as_written:
                    self.add(ALTERED, name + LAUNCH, "was changed or renamed after its process wrote it")
            except UsageError as error:
                self.add(ALTERED, name + LAUNCH, str(error).partition(": ")[2])
        elif any(file.run != ANY_RUN for file in kinds.values()):
            self.add(MISSING, name + LAUNCH, "other files of this process exist")
        for kind in sorted(recorded.keys() - kinds.keys()):
            self.add(MISSING, name + kind, f"{name}{LAUNCH} lists it")
        for kind, file in kinds.items():
            damaged = list[int]()
            try:
                if kind == CHECKSUMS:
                    listed, damaged = scan_checksums(file.path, has_ended=kind in recorded)
                    self.checksums |= listed
                is_changed = kind in recorded and sha256_of_file(file.path) != recorded[kind]
            except OSError as error:
                self.add(UNREADABLE, name + kind, f"cannot be read ({error.strerror or error})")
                continue
            if damaged:
                more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
                self.add(ALTERED, name + kind, f"line {damaged[0]}{more} is cut off or holds no checksum")
            elif is_changed:
                self.add(ALTERED, name + kind, "was changed after its process had ended")

    def read_records(self) -> None:
        """Read the records of runs, and compare them. UsageError if no run wrote the folder."""
        for file in (RUN, SR_RUN):
            if os.path.lexists(self.root / file):
                self._read_record(file)
        if len(self.runs) == 2:
            base, sr = self.runs
            if not base.run.record.as_origin().items() <= sr.run.record.origin.items():
                self.add(ALTERED, SR_RUN, f"continues another run than the one in {RUN}")
            if base.run.variations == sr.run.variations:
                sr.base_failed = set(base.failed)
        if all(state.is_closed for state in self.runs):
            self._check_failures()
        # Super-resolution that writes into the folder of its input leaves no run.json. If that folder is a
        # dataset and not an output folder, its record has no origin.
        is_beside_a_dataset = bool(self.runs) and not self.runs[0].run.record.origin
        if os.path.lexists(self.root / RUN) or is_beside_a_dataset:
            return
        if not any(os.path.lexists(self.root / file) for file in (SR_RUN, PROCESSES)):
            what = f"holds no {RUN}, so no run of this program wrote it"
            raise UsageError(f"{printable(str(self.root))}: {what}")
        self.add(MISSING, RUN, f"without it, only the files that {PROCESSES} lists can be checked")

    def _read_record(self, file: str) -> None:
        """Read the record of a run; report what is wrong with it."""
        path = self.root / file
        if not path.exists():
            self.add(UNREADABLE, file, "a link to a file that is gone")
            return
        try:
            run = load_run(self.root, file)
            launches = read_launches(self.root, run.identity)
        except UsageError as error:
            self.add(ALTERED, file, reason_of(error, path))
            return
        if path.is_symlink():
            self.add(FOREIGN, file, "is a link; other commands refuse a record that is a link")
        if not run.is_as_written:
            what = "was changed after its run wrote it; checks that rely on it may be wrong"
            self.add(ALTERED, file, what)
        if not launches and run.identity:
            self.add(MISSING, PROCESSES, f"it holds no record of the processes that made {file}")
        if run.is_older:
            if (older := self.root / OLDER_CHECKSUMS).is_file():
                self.checksums |= scan_checksums(older)[0]
            self.add_note(OLDER, file, "an older version wrote it; only files with a checksum are checked")
        failed = {(f.key, f.variation) for f in self.failures if f.stage == run.stage}
        was_limited = all(launch.only for launch in launches)
        self.runs.append(_RunState(run, is_closed(launches), failed, was_limited))
        places = (*run.record.places, SAMPLES[file], *([FRAMES] if file == RUN else []))
        self.known_folders |= {place.folder.partition("/")[0] for place in places}
        self.has_base |= file == RUN

    def _check_failures(self) -> None:
        """Compare `failures.jsonl` with the lists of failures of the processes, all of which have ended."""
        lists = [found.file for found in self.findings if found.file.startswith((FAILURES, f"{PROCESSES}/"))]
        if any(file.endswith(FAILED) for file in lists):
            return  # a finding reports it already
        path = self.root / FAILURES
        text = read_bytes(path, MAX_LIST_BYTES) if path.exists() else b""
        lines = text.splitlines(keepends=True)
        expected = {f.to_line().encode(): f for f in noted_failures(self.root)}
        lost = [line for line, f in expected.items() if line not in lines and not f.is_resolved(self.root)]
        if lost or lines != [line for line in expected if line in lines]:
            what = f"{len(lost)} more failed samples are listed" if lost else "other lines are listed"
            self.add(ALTERED if lines else MISSING, FAILURES, f"{what} in {PROCESSES}")
        elif path.exists() and not lines:
            self.add(FOREIGN, FAILURES, "is empty; a process deletes an empty list")

    def compare_files(self, report: Report) -> None:
        """Compare all files that have a checksum with it; collect those that have none."""
        total = sum(not path.startswith(_RECORDS) for path in self.checksums)
        found = set[str]()
        for path in self._walk():
            if not path.startswith(_RECORDS):
                report(self.files, total)
            found.add(path)
            if path in self.checksums:
                self._compare(path)
        self.unlisted = found - self.checksums.keys()
        for path in sorted(self.checksums.keys() - found):
            self.add_missing(path, f"{PROCESSES} lists it")

    def _walk(self) -> Iterator[str]:
        """Paths of the files of runs; a link is followed only to a file inside the output folder."""
        listed = {path.partition("/")[0] for path in self.checksums}

        def add_unreadable(error: OSError) -> None:
            folder = Path(error.filename).relative_to(self.root).as_posix()
            self.add(UNREADABLE, folder, f"cannot be read ({error.strerror or error})")
            self.blocked.add(folder)

        for where, folders, files in os.walk(self.root, onerror=add_unreadable):
            prefix = f"{Path(where).relative_to(self.root).as_posix()}/".removeprefix("./")
            links = [name for name in folders if os.path.islink(os.path.join(where, name))]
            folders[:] = sorted({*folders} - {*links})  # in place: os.walk enters what is left in the list
            files = sorted([*files, *links])
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
                    self.add(FOREIGN, path, problem)
                    self.blocked.add(path)
                else:
                    yield path

    def _is_of_runs(self, name: str, listed: set[str], is_folder: bool) -> bool:
        """True if runs have files under a name directly below root; of other names, report what is wrong."""
        own = (*RESERVED_NAMES, *(_LEGACY if any(state.run.is_older for state in self.runs) else ()))
        if name in self.known_folders or name in listed:
            if name not in self.known_folders and self.has_base:
                self.add(FOREIGN, name, "no record in this folder names it")
            return True
        if found := [*check_reserved(self.root, name, is_folder)]:
            self.findings += [one for one in found if one.kind != UNFINISHED]
            self.notes += [one for one in found if one.kind == UNFINISHED]
        elif self.has_base and name not in own:
            self.add(FOREIGN, name, "no run of this program wrote it")
        return False

    def check_results(self, state: _RunState) -> None:
        """Check the results of a run, their number, and their files without a checksum."""
        run = state.run
        if run.is_older:
            self.has_unknown_samples = True
            if state is self.runs[0]:
                self.samples += sum(1 for _ in run.samples())
            return
        counts = Counter[str]()  # of results, by outcome
        lists = {path.relative_to(self.root).as_posix(): path for path in run.sample_files()}
        folder = f"{SAMPLES[run.file].folder}/"
        is_known = all(path in lists for path in self.checksums if path.startswith(folder))
        for name, path in lists.items():
            self._take_unlisted(state, name, is_made=True)
            try:
                samples = read_samples_file(path, run)
            except UsageError as error:
                is_known, samples = False, ()
                if name not in {found.file for found in self.findings}:
                    self.add(ALTERED, name, str(error))
            for sample in samples:
                outcomes = self._check_sample(state, sample)
                counts.update(outcomes)
                if state is self.runs[0] and _MADE in outcomes:
                    self.samples += 1
        if is_known:
            self._check_number(state, counts)
        else:
            self.has_unknown_samples = True

    def _check_number(self, state: _RunState, counts: Counter[str]) -> None:
        """Compare the number of results with that in the record of their run."""
        run = state.run
        expected = run.record.samples * len(run.variations)
        if counts[_MADE] > expected:
            self.add(ALTERED, run.file, f"records {expected:,} results, but there are {counts[_MADE]:,}")
        num_missing = expected - counts[_MADE] - counts[_FAILED]
        if num_missing > 0:
            partial = f" ({counts[_PARTIAL]:,} of them partly)" if counts[_PARTIAL] else ""
            what = f"{num_missing:,} of {expected:,} results were not made{partial}; "
            if run.record.origin and run.file == RUN and state.is_closed:
                why = "the run that this one continues lacks them, or"
                self.add_note(MISSING, run.file, f"{what}{why} `resume=True` makes them")
            elif state.was_limited and state.is_closed and not counts[_PARTIAL]:
                self.add_note(MISSING, run.file, f"{what}only others were chosen; `resume=True` makes them")
            else:
                self.add(MISSING, run.file, f"{what}`resume=True` makes them")

    def _check_sample(self, state: _RunState, sample: RecordedSample) -> list[str]:
        """Check the files of a sample, and return the outcome of each variation."""
        run = state.run
        is_single = run.variations == (None,)
        shared = {sample.file(place, None) for place in run.places if place.shared and not is_single}
        missing = dict[str, None]()  # files of results that were made, in order
        outcomes = list[str]()
        for variation in sample.variations:
            result = (sample.key.text, variation)
            files = [sample.file(place, variation) for place in run.places]
            absent = [file for file in files if file not in self.checksums and file not in self.unlisted]
            outcome = self._outcome(state, result, {*files} - shared) if absent else _MADE
            outcomes.append(outcome)
            if outcome == _MADE:
                state.failed.discard(result)
                missing |= dict.fromkeys(absent)
        for file in missing:
            self.add_missing(file, "other files of its sample exist")
        if not self.unlisted:
            return outcomes
        for variation, outcome in zip(sample.variations, outcomes, strict=True):
            for place in (*run.record.places, FRAMES):
                if place.form == "extra":
                    number = None if is_single or place.shared else variation
                    file = file_name(place.folder, sample.key, place.suffix, number)
                else:
                    file = sample.file(place, variation)
                is_made = _MADE in outcomes if place.shared else outcome == _MADE
                self._take_unlisted(state, file, is_made, place)
        return outcomes

    def _outcome(self, state: _RunState, result: tuple[str, int], own: set[str]) -> str:
        """The outcome of a result that lacks files. own: its files, without those that variations share."""
        if any(file in self.checksums for file in own):
            return _MADE
        if result in state.failed or result in state.base_failed:
            return _FAILED
        if own.isdisjoint(self.unlisted):
            return _ABSENT
        # A closed run leaves no partial result, so if all checksums are lost, what exists was made.
        return _MADE if state.is_closed and not self.checksums else _PARTIAL

    def _take_unlisted(self, state: _RunState, file: str, is_made: bool, place: Place | None = None) -> None:
        """Check a file without a checksum that belongs to a result. is_made: whether the result was made."""
        if file not in self.unlisted:
            return
        self.unlisted.remove(file)
        # A failure lists the files that did not exist then, with None.
        if state.is_closed and any(file in f.files and f.files[file] is None for f in self.failures):
            self.add(FOREIGN, file, "its sample failed, and this file was not there then")
            return
        if is_made:
            unlisted = self.unlisted_closed if state.is_closed else self.unlisted_open
            unlisted.append(file)
        tokens = Tokens(state.run.count_tokens(place)) if place and place.form == "ids" else None
        self._compare(file, tokens)

    def report_unlisted(self) -> None:
        """Report files without a checksum: those that belong to no result, and those that do."""
        for path in () if self.has_unknown_samples else sorted(self.unlisted):
            if self.has_base or path.partition("/")[0] in self.known_folders:
                self.add(FOREIGN, path, "belongs to no sample of a run")
        if self.unlisted_open:
            what = f"{_named(self.unlisted_open)} not listed yet; `resume=True` lists them"
            self.add_note(UNLISTED, PROCESSES, what)
        if self.unlisted_closed and not self.checksums:
            what = "without its lists of checksums, files can be checked by their formats only"
            self.add(MISSING, PROCESSES, what)
        elif self.unlisted_closed:
            what = (
                f"{_named(self.unlisted_closed)} not listed; `resume=True` adds files that belong to samples"
            )
            self.add(ALTERED, PROCESSES, what)

    def _compare(self, path: str, tokens: Tokens | None = None) -> None:
        """Compare a file with its checksum, or without one, check its format. tokens: what it must hold."""
        if not path.startswith(_RECORDS):
            self.files += 1
        file, listed = self.root / path, self.checksums.get(path)
        try:
            size = file.stat().st_size
            if listed is not None and listed.size is not None and size > listed.size:
                self.add(ALTERED, path, f"is larger than the {listed.size:,} bytes in {PROCESSES}")
                return
            if listed is not None and sha256_of_file(file) == listed.sha256:
                return
            flaw = find_flaw(file, tokens)
        except OSError as error:
            self.add(UNREADABLE, path, f"cannot be read ({error.strerror or error})")
            return
        if flaw is None and listed is None:
            return
        if size == 0:
            flaw = Flaw(True, "is empty")
        elif flaw is None:
            flaw = Flaw(False, f"its checksum is not the one in {PROCESSES}")
        self.add(TRUNCATED if flaw.is_cut else ALTERED, path, flaw.what)


def _named(paths: list[str]) -> str:
    """The beginning of a sentence about files: the first one and the number of the others."""
    return min(paths) + (f" and {len(paths) - 1:,} more files are" if len(paths) > 1 else " is")
