"""Which result of a run each file of its folder belongs to, and which results are whole, begun or strange."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from fourm.data.layout import Place
from fourm.output.processes import Failure
from fourm.output.results import Run

ALL = -1  # instead of a variation: the file that all variations share
_VARIATION = re.compile(r"(.+)-v(0|[1-9][0-9]*)")
_STEP = re.compile(r"(.+)-step[0-9]{3,}")

Result = tuple[str, int]  # key, variation (0 where a run has but one)


class Status(Enum):
    """What became of a result."""

    MADE = auto()
    FAILED = auto()  # and said so
    UNFINISHED = auto()  # some of its files are here, and its process was stopped
    FOREIGN = auto()  # no run made it


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a result."""

    place: int  # number among the places of the record
    result: Result


@dataclass(slots=True)
class Traces:
    """Files of one result, as bits by the number of their place."""

    there: int = 0
    listed: int = 0  # with a checksum


@dataclass(slots=True)
class Census:
    """All results of one run that have left anything."""

    run: Run
    is_closed: bool  # its last process has ended in order, so that every file is listed
    failed: set[Result] = field(default_factory=set)
    excused: set[Result] = field(default_factory=set)  # the run before failed to make what these need
    results: dict[Result, Traces] = field(default_factory=dict)
    shared: dict[str, Traces] = field(default_factory=dict)  # files of all variations, by key
    status: dict[Result, Status] = field(default_factory=dict)
    is_full: bool = False  # as many results are listed or failed as there should be

    @property
    def expected(self) -> int:
        """Results that the run was to make."""
        return self.run.record.samples * len(self.run.variations)

    @property
    def places(self) -> tuple[Place, ...]:
        """Also those where only some samples have files."""
        return self.run.record.places

    def count_failures(self, failures: Iterable[Failure]) -> None:
        """Take in what is known to have failed."""
        for failure in failures:
            folder, _, name = failure.key.rpartition("/")
            varied = self.run.variations != (None,)
            stem = f"{name}-v{failure.variation}" if varied else name
            if (result := self._identify(folder, stem, is_shared=False)) is not None:
                self.failed.add(result)

    def find(self, place: int, rest: str) -> Member | None:
        """The file at `rest` below the folder of a place; None if no run would name it so."""
        where = self.places[place]
        folder, _, name = rest.rpartition("/")
        stem = name.removesuffix(where.suffix)
        if not folder or not stem or (where.suffix and stem == name):
            return None
        if where.form == "extra" and where.suffix == ".png":
            match = _STEP.fullmatch(stem)
            stem = match[1] if match else ""
        result = self._identify(folder, stem, self._is_shared(where)) if stem else None
        return None if result is None else Member(place, result)

    def take(self, member: Member, is_there: bool, is_listed: bool) -> None:
        """Count one file."""
        if self.places[member.place].form == "extra":
            return
        key, variation = member.result
        if variation == ALL:
            traces = self.shared.setdefault(key, Traces())
        else:
            traces = self.results.setdefault(member.result, Traces())
        bit = 1 << member.place
        traces.there |= bit if is_there else 0
        traces.listed |= bit if is_listed else 0

    def judge(self) -> None:
        """Say of every result what became of it; all files are counted by now."""
        listed = {result for result, traces in self.results.items() if traces.listed}
        not_made = self.failed | self.excused
        self.status = dict.fromkeys(not_made, Status.FAILED) | dict.fromkeys(listed, Status.MADE)
        self.is_full = len(self.status) >= self.expected
        for result, traces in self.results.items():
            if result in listed:
                continue
            whole = not self._lacking(result, traces)
            if result in not_made:
                self.status[result] = Status.MADE if whole else Status.FAILED
            elif self.is_full:
                self.status[result] = Status.FOREIGN
            elif whole or (self.is_closed and not listed):
                self.status[result] = Status.MADE
            else:
                self.status[result] = Status.UNFINISHED

    def status_of(self, member: Member) -> Status:
        """What became of the result of a file; of several ones, what became of the best."""
        key, variation = member.result
        found = self.status.get(member.result)
        if variation == ALL:
            all_of_it = {self.status.get((key, v or 0)) for v in self.run.variations}
            found = next((s for s in Status if s in all_of_it), None)
        return found or (Status.FOREIGN if self.is_full else Status.UNFINISHED)

    def missing(self) -> Iterator[str]:
        """Paths of files that results lack which have others, and that no checksum tells of."""
        told = set[str]()
        for result, status in self.status.items():
            if status is not Status.MADE:
                continue
            for place in self._lacking(result, self.results.get(result, Traces())):
                key, variation = result
                folder, is_shared = self.places[place], self._is_shared(self.places[place])
                end = f"-v{variation}" if self.run.variations != (None,) and not is_shared else ""
                path = f"{folder.folder}/{key}{end}{folder.suffix}"
                if path not in told:
                    told.add(path)
                    yield path

    def made(self) -> set[Result]:
        """Results that are here, if not with all of their files."""
        return {result for result, status in self.status.items() if status is Status.MADE}

    def _lacking(self, result: Result, traces: Traces) -> list[int]:
        """Places where a result has no file and no checksum."""
        lacking = list[int]()
        shared = self.shared.get(result[0], Traces())
        for number, place in enumerate(self.places):
            is_shared = self._is_shared(place)
            if place.form == "extra":
                continue
            found = shared if is_shared else traces
            if not (found.there | found.listed) >> number & 1:
                lacking.append(number)
        return lacking

    def _is_shared(self, place: Place) -> bool:
        """True for one file beside several variations."""
        return place.shared and self.run.variations != (None,)

    def _identify(self, folder: str, stem: str, is_shared: bool) -> Result | None:
        """The result that a file name without suffix stands for; None if no variation has that name."""
        is_varied = self.run.variations != (None,) and not is_shared
        if not is_varied:
            return _text(f"{folder}/{stem}"), ALL if is_shared else 0
        match = _VARIATION.fullmatch(stem)
        if match is None or int(match[2]) not in self.run.variations:
            return None
        return _text(f"{folder}/{match[1]}"), int(match[2])


def _text(path: str) -> str:
    """A path as keys say it in records: printable even where a name is not UTF-8."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")
