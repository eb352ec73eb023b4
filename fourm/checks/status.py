"""How far a run is: by markers or, of a run of single files, by lists of checksums. Reads no result."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fourm.checks.verify_shards import missing_shards
from fourm.errors import UsageError, printable
from fourm.output.markers import Marker, marker_files, marker_path, read_done, settings_digest
from fourm.output.processes import read_checksums, read_failures
from fourm.output.samples import Run, open_runs

MAX_REASONS = 1000  # that are told apart: a reason may name a file, so there may be as many as samples
OTHER_REASONS = "other reasons"


@dataclass(frozen=True, slots=True)
class Status:
    """How far one run of a folder is."""

    run: str  # its record: run.json, or run.sr.json
    layout: str  # one of FORMATS
    shards: int | None  # None: a run of single files
    done: int  # shards that are whole
    missing: tuple[tuple[int, int], ...]  # ranges of their numbers, first and last
    total: int | None  # results; None: not known before all shards are read
    saved: int
    failed: int
    incomplete: int  # samples that lacked a file
    reasons: tuple[tuple[str, int], ...]  # why results failed, and how many, most first; rare ones together
    damaged: tuple[str, ...]  # a sentence for each shard that is not as its marker says
    rate: float | None  # results per second, while any process worked
    left: float | None  # seconds for the shards that are missing, at this rate

    @property
    def is_complete(self) -> bool:
        """Whether all was made, or has failed."""
        if self.shards is None:
            return self.saved + self.failed == self.total
        return self.done == self.shards

    def to_json(self) -> dict[str, object]:
        """The status as plain data for JSON."""
        return {**asdict(self), "reasons": dict(self.reasons), "complete": self.is_complete}


def read_status(root: Path) -> tuple[Status, ...]:
    """The status of each run of a folder. UsageError if no run wrote it, or a record is damaged."""
    return tuple(_of_shards(run) if run.record.is_sharded else _of_files(run) for run in open_runs(root))


@dataclass(slots=True)
class _Sums:
    numbers: set[int] = field(default_factory=set)
    reasons: Counter[str] = field(default_factory=Counter)
    spans: list[tuple[float, float]] = field(default_factory=list)  # seconds when each shard began and ended
    damaged: list[str] = field(default_factory=list)
    saved: int = 0
    failed: int = 0
    incomplete: int = 0

    def add(self, marker: Marker, ended: float) -> None:
        self.numbers.add(marker.shard.number)
        self.spans.append((ended - marker.seconds, ended))
        self.reasons.update(failure.reason for failure in marker.failures)
        if len(self.reasons) > 2 * MAX_REASONS:
            self.reasons = _fewer(self.reasons)
        self.saved += marker.counts.saved
        self.failed += marker.counts.failed
        self.incomplete += marker.counts.incomplete


def _of_shards(run: Run) -> Status:
    sums, settings, total = _Sums(), settings_digest(run.record), run.record.shards or 0
    for path in marker_files(run.root, run.file):
        try:
            marker = read_done(path, run.root, settings)
            if marker_path(run.root, marker.shard.name, run.file) != path:
                raise UsageError(printable(f"{path}: is the marker of shard {marker.shard.name}"))
            sums.add(marker, os.stat(path).st_mtime)
        except (UsageError, OSError) as error:
            sums.damaged.append(str(error))
    missing, done = missing_shards(sums.numbers, total), len(sums.numbers)
    busy = _union(sums.spans)
    return Status(
        run.file, run.record.layout, total, done, tuple(missing),
        run.record.samples * len(run.variations) or None, sums.saved, sums.failed, sums.incomplete,
        _ranked(sums.reasons), tuple(sums.damaged), sums.saved / busy if busy else None,
        busy / done * (total - done) if busy else None,
    )  # fmt: skip


def _of_files(run: Run) -> Status:
    own = [place for place in run.places if not place.shared][:1]
    made = sum(
        path.startswith(f"{place.folder}/") and path.endswith(place.suffix)
        for place in own
        for path in read_checksums(run.root)
    )
    failures = [one for one in read_failures(run.root) if one.stage == run.stage]
    reasons = Counter(one.reason for one in failures)
    total = run.record.samples * len(run.variations)
    return Status(
        run.file, run.record.layout, None, 0, (), total, made, len(failures), 0, _ranked(reasons), (),
        None, None,
    )  # fmt: skip


def _ranked(reasons: Counter[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(_fewer(reasons).items(), key=lambda one: (-one[1], one[0])))


def _fewer(reasons: Counter[str]) -> Counter[str]:
    """The most frequent ones, and the number of all others."""
    kept = Counter(dict(reasons.most_common(MAX_REASONS)))
    if rest := reasons.total() - kept.total():
        kept[OTHER_REASONS] += rest
    return kept


def _union(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds in which at least one shard was made: pauses between runs do not count."""
    seconds, until = 0.0, float("-inf")
    for first, last in sorted(spans):
        seconds += max(0.0, last - max(first, until))
        until = max(until, last)
    return seconds
