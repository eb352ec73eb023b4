"""Work in other threads beside a run: batches are saved or read there, several files at once."""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from fourm.networks.memory import is_out_of_memory, release_memory
from fourm.networks.precision import arithmetic
from fourm.results.events import Event
from fourm.results.portions import Portions

T = TypeVar("T")
R = TypeVar("R")
Handler = Callable[[Sequence[T]], Generator[Event, None, None]]  # works on rows, and says what it does
# Types of devices beside which batches are saved; on a CPU, both would only share its cores.
BESIDE = {"cuda"}
MOST_THREADS = 4  # that read or write files


@dataclass(slots=True)
class Background:
    """Works on rows in another thread, while the caller keeps the device busy and asks for the events.

    Where that is of no use, and after memory has run out, work is done at once, in the caller's thread.
    """

    portions: Portions
    is_beside: bool = field(init=False)
    _thread: ThreadPoolExecutor = field(init=False)
    _events: SimpleQueue[Event | None] = field(default_factory=SimpleQueue)  # None: the work has ended
    _begun: tuple[Future[None], Sequence[Any], Handler[Any]] | None = None
    _is_stopped: bool = False

    def __post_init__(self) -> None:
        self.is_beside = self.portions.device.type in BESIDE
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saving")

    def add(self, rows: Sequence[T], work: Handler[T]) -> Iterator[Event]:
        """Begin to work on rows, in portions, after the rows before them are done, and yield their events.

        `work` must be safe to repeat after an error at any point. Its errors are raised by a later call.
        """
        yield from self.finish()
        if self.is_beside:
            self._begun = self._thread.submit(self._run, rows, work), rows, work
        else:
            yield from self.portions.each(rows, work)

    def ready(self) -> Iterator[Event]:
        """The events that are there by now."""
        with suppress(Empty):
            while self._begun is not None:
                if (event := self._events.get_nowait()) is None:
                    yield from self._ended()
                else:
                    yield event

    def finish(self) -> Iterator[Event]:
        """All events of what has begun, as they come."""
        while self._begun is not None:
            if (event := self._events.get()) is None:
                yield from self._ended()
            else:
                yield event

    def beside(self, rows: Sequence[T], work: Handler[T]) -> Iterator[Event]:
        """The events of `work`, repeated if memory ran out and the thread had some of it."""
        try:
            yield from work(rows)
            return
        except (RuntimeError, MemoryError, OSError) as error:
            if self._begun is None or not is_out_of_memory(error):
                raise
        self.is_beside = False
        yield from self.finish()
        release_memory()
        yield from work(rows)

    def close(self) -> None:
        """Stop after the rows that are being worked on; their events are lost."""
        self._is_stopped = True
        self._thread.shutdown()

    def _ended(self) -> Iterator[Event]:
        """Raise the error of the work that has ended; if memory ran out, it is done here."""
        assert self._begun is not None
        (future, rows, work), self._begun = self._begun, None
        try:
            future.result()
            return
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
        del future  # whose traceback keeps tensors alive
        self.is_beside = False
        release_memory()
        yield from self.portions.each(rows, work)

    def _run(self, rows: Sequence[T], work: Handler[T]) -> None:
        try:
            for first in range(0, len(rows), size := self.portions.rows):
                with closing(work(rows[first : first + size])) as events:
                    while not self._is_stopped:
                        with arithmetic(self.portions.dtype):
                            event = next(events, None)
                        if event is None:
                            break
                        self._events.put(event)
        finally:
            self._events.put(None)


def ahead(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """What `work` makes of each item, in order; while the caller uses one, the next one is made."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reading") as thread:
        begun = [thread.submit(work, item) for item in items[:1]]
        for number in range(1, 1 + len(items)):
            future = begun.pop()
            begun += [thread.submit(work, item) for item in items[number : number + 1]]
            yield future.result()


def in_threads(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """What `work` makes of each item, in order; several at once. No item is begun once the caller stops."""
    if len(items) < 2:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(max_workers=MOST_THREADS, thread_name_prefix="files") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            yield from (future.result() for future in futures)
        finally:
            pool.shutdown(cancel_futures=True)
