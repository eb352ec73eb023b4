"""Gives shards to workers in other processes, replaces workers that die, and passes their events on."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fourm.batch.worker import Report
from fourm.data.shards import Shard
from fourm.errors import FourMError
from fourm.output.markers import Counts
from fourm.results.events import Detokenized, Event, Failed, Loading, Lost, Saved, Stepped

Said = Event | Report
TRIES = 3  # of a shard whose worker dies, before it is reported as not made
DEATHS = 3  # in a row of the workers of one place, before it gets no more shards: its device may be broken
NOT_TOLD = Stepped, Detokenized, Loading  # events that workers elsewhere keep to themselves


class Died(Exception):
    """A worker ended before its report; the message says how."""


class Remote(Protocol):
    """A worker in another process, of this machine or of another one."""

    def give(self, shard: Shard) -> None:
        """Let it make a shard. It has none."""

    def receive(self) -> list[Said]:
        """Its next events or its report. Died if it has ended, FourMError for what ends the run."""

    def end(self, is_busy: bool) -> None:
        """End it, also where it hangs."""


@dataclass(eq=False, slots=True)
class _Place:
    """Where one worker at a time is, and the shard that it has."""

    number: int
    worker: Remote | None = None
    shard: Shard | None = None
    saved: int = 0  # results of its shard so far
    failed: int = 0
    deaths: int = 0  # since a worker of it made a shard


def dispatch(
    todo: Sequence[Shard],
    count: int,
    start: Callable[[int], Remote],
    wait: Callable[[list[Any]], list[Any]],
) -> Iterator[Said]:
    """Make shards by so many workers at a time; the events of all of them, without those in NOT_TOLD.

    start: starts a worker in a place, 0 to count - 1; wait: waits until some of these workers say something.
    A worker that dies is replaced; its shard is given out again, TRIES times in all, after as many others as
    there are places: so another worker gets it where one can. Workers end with this generator.
    """
    left, tries, places = deque(todo), Counter[int](), [_Place(number) for number in range(count)]
    try:
        _give(places, left, start)
        while busy := {place.worker: place for place in places if place.worker and place.shard}:
            for worker in wait(list(busy)):
                said = _receive(busy[worker], left, tries, count)
                _give(places, left, start)
                yield from said
        if left:
            what = f"the workers of every place died {DEATHS} times in a row"
            raise FourMError(f"{what}; `resume=True` goes on with the {len(left):,} shards that are left")
    finally:
        for place in places:
            if place.worker is not None:
                place.worker.end(is_busy=place.shard is not None)


def as_end(error: Exception) -> FourMError:
    """What ends the run where a worker met an error that is not of one sample."""
    if isinstance(error, FourMError):
        return error
    return FourMError(f"a worker ended: {type(error).__name__}: {error}")


def _give(places: Sequence[_Place], left: deque[Shard], start: Callable[[int], Remote]) -> None:
    """Give shards to places that have none, first to those whose workers do not die."""
    for place in sorted(places, key=lambda one: one.deaths) if left else ():
        if left and place.shard is None and place.deaths < DEATHS:
            place.worker = place.worker or start(place.number)
            place.shard, place.saved, place.failed = left.popleft(), 0, 0
            place.worker.give(place.shard)


def _receive(place: _Place, left: deque[Shard], tries: Counter[int], count: int) -> list[Said]:
    """What the worker of a place says. If it died, that is said, and its shard is made again or reported."""
    worker, shard = place.worker, place.shard
    assert worker is not None
    assert shard is not None
    try:
        said = worker.receive()
    except Died as death:
        worker.end(is_busy=True)
        place.worker, place.shard, place.deaths = None, None, place.deaths + 1
        tries[shard.number] += 1
        if tries[shard.number] < TRIES:
            left.insert(count, shard)
            return [Lost(shard.name, f"its worker {death}", place.saved, place.failed)]
        return [Report(shard, Counts(), lost=f"each of its {TRIES} workers died, the last one {death}")]
    place.saved += sum(isinstance(event, Saved) for event in said)
    place.failed += sum(isinstance(event, Failed) for event in said)
    if any(isinstance(event, Report) for event in said):
        place.shard, place.deaths = None, 0
    return said
