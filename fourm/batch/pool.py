"""Worker processes of this machine: each loads the models once and makes one shard after another."""

import contextlib
import os
import pickle
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from fourm.batch.batches import Batch
from fourm.batch.dispatch import NOT_TOLD, Died, Said, as_end, dispatch
from fourm.batch.worker import Worker
from fourm.data.shards import Shard
from fourm.files.copies import delete_home
from fourm.files.writing import remove_leftovers

PATIENCE = 5.0  # seconds in which a process ends, before it is killed


@dataclass(eq=False, slots=True)
class _Process:
    """A worker process."""

    process: SpawnProcess
    connection: Connection

    def give(self, shard: Shard) -> None:
        """Send a shard."""
        with contextlib.suppress(OSError):  # it has died, which its connection will say
            self.connection.send(shard)

    def receive(self) -> list[Said]:
        """What it sent."""
        try:
            said = self.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            self.process.join()
            raise Died(how_it_ended(self.process.exitcode or 0)) from error
        if isinstance(said, Exception):
            raise said
        return [said]

    def end(self, is_busy: bool) -> None:
        """Close its connection, which ends a process that has no shard; one that does not end is killed."""
        self.connection.close()
        if is_busy:
            self.process.terminate()
        self.process.join(PATIENCE)
        self.process.kill()
        self.process.join()


def run_pool(batch: Batch, todo: Sequence[Shard], devices: Sequence[str | None]) -> Iterator[Said]:
    """Make shards in one process for each device; whole shards stay when this ends early."""
    context, folder = (
        get_context("spawn"),
        tempfile.TemporaryDirectory(prefix="fourm-workers-", ignore_cleanup_errors=True),
    )

    def start(number: int) -> _Process:
        own, other = context.Pipe()
        args = other, batch, devices[number], folder.name
        process = context.Process(target=_work, args=args, daemon=True)
        with _without_interrupts():
            process.start()
        other.close()
        return _Process(process, own)

    def wait_for(workers: list[_Process]) -> list[_Process]:
        ready = wait([worker.connection for worker in workers])
        return [worker for worker in workers if worker.connection in ready]

    try:
        yield from dispatch(todo, len(devices), start, wait_for)
    finally:
        folder.cleanup()
        remove_leftovers(batch.staged().out)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C, which all processes of a terminal get, is for this one: others inherit what is blocked."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # which the first worker would start, and Python 3.11 unblocks then
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def how_it_ended(code: int) -> str:
    """How a process ended, by its exit code: `was killed by SIGKILL ...`."""
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
        return f"was killed by {name}{', as when memory runs out' if name == 'SIGKILL' else ''}"
    return f"was killed by signal {-code}"


def _work(connection: Connection, batch: Batch, device: str | None, folder: str) -> None:
    """What a worker process does until its parent has no more shards, or is gone.

    folder: for temporary files, which the parent deletes, also where this process is killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it could not be blocked
    tempfile.tempdir = folder
    try:
        worker = Worker(batch, device)
        while True:
            shard = connection.recv()
            for event in worker.events(shard):
                if not isinstance(event, NOT_TOLD):
                    connection.send(event)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent ended
        delete_home()
        with contextlib.suppress(OSError):  # another worker has files in it
            os.rmdir(folder)
        os._exit(0)
    except Exception as error:  # of any kind: the parent waits for word of this process, and tells it
        connection.send(as_end(error))
