"""Worker processes of this machine: each loads the models once and takes the next shard; one may die."""

import contextlib
import os
import pickle
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from fourm.batch.batches import Batch
from fourm.batch.worker import Report, Worker
from fourm.data.shards import Shard
from fourm.errors import FourMError
from fourm.files.writing import remove_leftovers
from fourm.output.markers import Counts
from fourm.results.events import Detokenized, Event, Failed, Loading, Lost, Saved, Stepped

TRIES = 3  # of a shard whose worker dies, before it is reported as not made


@dataclass(slots=True)
class _Hand:
    """A worker process, and the shard that it has."""

    process: SpawnProcess
    connection: Connection
    device: str | None
    shard: Shard | None = None
    saved: int = 0  # results of its shard so far
    failed: int = 0


def run_pool(batch: Batch, todo: Sequence[Shard], devices: Sequence[str | None]) -> Iterator[Event | Report]:
    """Make shards in one process for each device; the events of all of them, without single steps.

    A process that dies is replaced, and its shard is given to another one, TRIES times in all. An error that
    ends a worker's run ends this one. Processes end with this generator; whole shards stay.
    """
    left, tries = deque(todo), dict[int, int]()
    hands = [_start(batch, device) for device in devices]
    try:
        for hand in hands:
            _give(hand, left)
        while busy := {hand.connection: hand for hand in hands if hand.shard is not None}:
            for connection in wait(list(busy)):
                hand = busy[connection]  # type: ignore[index]
                try:
                    said = hand.connection.recv()
                except (EOFError, OSError, pickle.UnpicklingError):
                    yield _bury(hand, left, tries)
                    hands.remove(hand)
                    if left:
                        hands.append(fresh := _start(batch, hand.device))
                        _give(fresh, left)
                    continue
                if isinstance(said, Exception):
                    raise said
                hand.saved += isinstance(said, Saved)
                hand.failed += isinstance(said, Failed)
                if isinstance(said, Report):
                    _give(hand, left)
                yield said
    finally:
        for hand in hands:
            hand.connection.close()  # which ends a process that has no shard
            if hand.shard is not None:
                hand.process.terminate()
        for hand in hands:
            hand.process.join()
        remove_leftovers(batch.staged().out)


def _start(batch: Batch, device: str | None) -> _Hand:
    context = get_context("spawn")
    own, other = context.Pipe()
    process = context.Process(target=_work, args=(other, batch, device), daemon=True)
    process.start()
    other.close()
    return _Hand(process, own, device)


def _give(hand: _Hand, left: deque[Shard]) -> None:
    """Give a worker the next shard, if there is one."""
    hand.shard, hand.saved, hand.failed = (left.popleft() if left else None), 0, 0
    if hand.shard is not None:
        with contextlib.suppress(OSError):  # it has died, which its connection will say
            hand.connection.send(hand.shard)


def _bury(hand: _Hand, left: deque[Shard], tries: dict[int, int]) -> Event | Report:
    """Take the shard of a worker that died: it is made again, or reported as not made."""
    hand.process.join()
    hand.connection.close()
    code, shard = hand.process.exitcode or 0, hand.shard
    assert shard is not None
    hand.shard = None
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    tries[shard.number] = tries.get(shard.number, 0) + 1
    if tries[shard.number] < TRIES:
        left.appendleft(shard)
        return Lost(shard.name, f"its worker {how}", hand.saved, hand.failed)
    return Report(shard, Counts(), lost=f"each of its {TRIES} workers died, the last one {how}")


def _work(connection: Connection, batch: Batch, device: str | None) -> None:
    """What a worker process does until its parent has no more shards, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    try:
        worker = Worker(batch, device)
        while True:
            shard = connection.recv()
            for event in worker.events(shard):
                if not isinstance(event, Stepped | Detokenized | Loading):
                    connection.send(event)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent ended
        os._exit(0)
    except FourMError as error:
        connection.send(error)
    except Exception as error:  # of any kind: the parent waits for word of this process, and tells it
        connection.send(FourMError(f"a worker ended: {type(error).__name__}: {error}"))
