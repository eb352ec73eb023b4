"""Where the files of a run go: each to a path of its own, or with the others of their shard into tars."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Protocol

from fourm.data.layout import Place
from fourm.errors import as_addresses
from fourm.files.writing import write_data
from fourm.inputs.conditions import Work
from fourm.output.markers import ShardFailure
from fourm.output.members import Member
from fourm.output.processes import Listed, Process, list_data, list_files
from fourm.output.record import FRAMES
from fourm.output.samples import Run, SampleWriter
from fourm.output.shard_files import ShardFiles
from fourm.results.job import Job

Pack = Callable[[], bytes]  # makes the contents of a file


class Sink(Protocol):
    """Takes the files of results, from any thread."""

    @property
    def run(self) -> Run:
        """The run that the files belong to."""

    def check(self) -> None:
        """FourMError if nothing can be written any more."""

    def begin(self, works: Sequence[Work]) -> None:
        """Called before the first file of results is written."""

    def holds(self, place: Place, work: Work) -> bool:
        """Whether a file is there, complete."""

    def write(self, place: Place, work: Work, pack: Pack) -> None:
        """Write one file."""

    def note(self, places: Sequence[Place], work: Work) -> None:
        """These files of a result are written: they belong to it whatever happens next."""

    def finish(self, work: Work) -> None:
        """All files of a result are written."""

    def fail(self, work: Work, reason: str) -> None:
        """A result cannot be made."""

    def paths(self, work: Work) -> tuple[Path, ...]:
        """The files of a result, as events name them."""


@dataclass(slots=True)
class FolderSink:
    """Writes each file atomically to a path of its own, and lists its checksum."""

    job: Job
    process: Process
    listed: Mapping[str, Listed]  # checksums of files of earlier runs, by path relative to the folder
    samples: SampleWriter
    _written: dict[Path, Listed] = field(default_factory=dict)  # files whose checksum is not listed yet
    _hashed: set[Path] = field(default_factory=set)  # shared files whose checksum is listed
    _lock: RLock = field(default_factory=RLock)  # held while something is recorded

    @property
    def run(self) -> Run:
        return self.samples.run

    def add_missing_checksums(self, works: Sequence[Work]) -> None:
        """List the checksums of complete samples that are not listed yet; these samples are skipped."""
        self.begin(works)
        out = self.job.request.out
        paths = {path for work in works for path in self._all_paths(work)}
        if self.job.request.resume:
            paths |= self.samples.recorded
        self._note_checksums(sorted(p for p in paths if p.relative_to(out).as_posix() not in self.listed))

    def check(self) -> None:
        self.process.check()

    def begin(self, works: Sequence[Work]) -> None:
        """Record the input files of samples. This is done before any output file of theirs is written."""
        with self._lock:
            for work in works:
                if path := self.samples.record(work.sample.key):
                    self._note_checksums([path])

    def holds(self, place: Place, work: Work) -> bool:
        return self.job.is_complete(place, work, self.listed)

    def write(self, place: Place, work: Work, pack: Pack) -> None:
        path, data = self.job.path(place, work), pack()
        write_data(self.job.request.out, path, data)
        self._written[path] = list_data(data)

    def note(self, places: Sequence[Place], work: Work) -> None:
        self._note_checksums([self.job.path(place, work) for place in places])

    def finish(self, work: Work) -> None:
        self._note_checksums(self._all_paths(work))

    def fail(self, work: Work, reason: str) -> None:
        with self._lock:
            self.begin([work])
            self.process.add_failure(*work.result, reason, self.run.stage, self.job.paths(work))
            for path in self._all_paths(work):
                self._written.pop(path, None)

    def paths(self, work: Work) -> tuple[Path, ...]:
        return self.job.paths(work)

    def _all_paths(self, work: Work) -> list[Path]:
        """All files of a complete result, the record of its frame among them."""
        frame = self.job.path(FRAMES, work)
        return [
            *self.job.paths(work),
            *([frame] if not self.job.request.is_beside and frame.is_file() else []),
        ]

    def _note_checksums(self, paths: Sequence[Path]) -> None:
        with self._lock:
            new = [path for path in dict.fromkeys(paths) if path not in self._hashed]
            if not new:
                return
            known = {path: self._written.pop(path) for path in new if path in self._written}
            listed = list_files(self.job.request.out, new, known)
            self.process.add_checksums(listed)
            # Only files that variations share are passed more than once, so only those are remembered.
            places = [*(place for place in self.job.written if place.shared), FRAMES]
            shared = [self.job.request.out / place.folder for place in places]
            self._hashed |= {path for path in new if any(map(path.is_relative_to, shared))}


@dataclass(slots=True)
class ShardSink:
    """Collects the files of one shard. A result gets in with all its files or with none."""

    run: Run
    files: ShardFiles
    saved: set[tuple[str, int]] = field(default_factory=set)
    failures: dict[tuple[str, int], ShardFailure] = field(default_factory=dict)
    _waiting: dict[tuple[str, int], dict[Member, bytes]] = field(
        default_factory=dict
    )  # of unfinished results
    _lock: RLock = field(default_factory=RLock)

    def check(self) -> None:
        pass

    def begin(self, works: Sequence[Work]) -> None:
        pass

    def holds(self, place: Place, work: Work) -> bool:
        return self._member(place, work) in self.files

    def write(self, place: Place, work: Work, pack: Pack) -> None:
        data = pack()
        with self._lock:
            self._waiting.setdefault(work.result, {})[self._member(place, work)] = data

    def note(self, places: Sequence[Place], work: Work) -> None:
        pass

    def finish(self, work: Work) -> None:
        with self._lock:
            for member, data in self._waiting.pop(work.result, {}).items():
                self.files.add(member, data)
            self.saved.add(work.result)

    def fail(self, work: Work, reason: str) -> None:
        with self._lock:
            self._waiting.pop(work.result, None)
            self.failures[work.result] = ShardFailure(*work.result, as_addresses(reason))

    def paths(self, work: Work) -> tuple[Path, ...]:
        return ()

    def _member(self, place: Place, work: Work) -> Member:
        variation = None if place.shared or self.run.record.num_variations == 1 else work.variation
        return Member(work.sample.key, variation, place.folder, place.suffix)
