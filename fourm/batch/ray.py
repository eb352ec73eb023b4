"""A sharded run on Ray: actors that hold a worker each are fed with descriptors of shards."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fourm.batch.batches import Batch, Share
from fourm.batch.dispatch import NOT_TOLD, Died, Said, as_end, dispatch
from fourm.batch.local import start_of, summed
from fourm.batch.worker import Report, Worker
from fourm.data.shards import Shard
from fourm.errors import FourMError, MissingError
from fourm.results.events import Event, Started

INTERVAL = 0.5  # seconds of events that an actor sends together
PATIENCE = 10.0  # seconds in which an actor without a shard releases what it holds


class Actor:
    """What a process of Ray does."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.worker: Worker | None = None

    def begin(self, rank: int, size: int, workers: int) -> tuple[Share, Started]:
        """Open the folder on a machine that has the device: what is to be made."""
        self.batch.open_folder()
        share = self.batch.share(rank, size)
        return share, start_of(self.batch, share, self.batch.stages(), workers)

    def make(self, shard: Shard) -> Iterator[list[Said]]:
        """Make a shard: its events, several at a time, and at the end its report."""
        self.worker = self.worker or Worker(self.batch)
        told, last = list[Said](), time.monotonic()
        for event in self.worker.events(shard):
            if not isinstance(event, NOT_TOLD):
                told.append(event)
            if isinstance(event, Report) or (told and time.monotonic() - last > INTERVAL):
                yield told
                told, last = [], time.monotonic()

    def close(self) -> None:
        """Release the models, and remove what processes that died have left on this machine."""
        if self.worker is not None:
            self.worker.close()


@dataclass(eq=False, slots=True)
class _Remote:
    """An actor, and the stream of what it says.

    It is not restarted by Ray: a stream that is repeated goes on in its middle, whatever the new one has.
    """

    ray: Any
    actor: Any
    stream: Any = None

    def give(self, shard: Shard) -> None:
        """Call it with a shard."""
        self.stream = self.actor.make.options(num_returns="streaming").remote(shard)

    def receive(self) -> list[Said]:
        """The next object of its stream."""
        said: list[Said] = _get(self.ray, next(self.stream))
        return said

    def end(self, is_busy: bool) -> None:
        """Kill it; one that has no shard closes its worker before."""
        if not is_busy:
            with suppress(self.ray.exceptions.RayError):
                self.ray.get(self.actor.close.remote(), timeout=PATIENCE)
        self.ray.kill(self.actor)


def run_ray(batch: Batch, workers: int, gpus_per_worker: float | None = None) -> Iterator[Event]:
    """Make a batch on the cluster that RAY_ADDRESS names, else on this machine. None: a GPU, if there is one.

    An actor that dies is replaced by one that Ray starts wherever there is room.
    """
    ray = _import_ray()
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, logging_level="warning", configure_logging=True)
    if gpus_per_worker is None:
        has_gpus = batch.requests[0].device != "cpu" and ray.cluster_resources().get("GPU")
        gpus_per_worker = 1 if has_gpus else 0
    kind = ray.remote(num_cpus=1, num_gpus=gpus_per_worker)(Actor)
    fresh = [kind.remote(batch) for _ in range(workers)]

    def start(_: int) -> _Remote:
        return _Remote(ray, fresh.pop() if fresh else kind.remote(batch))

    def wait(remotes: list[_Remote]) -> list[_Remote]:
        streams = [one.stream for one in remotes]
        ray.wait(streams)
        ready = ray.wait(streams, num_returns=len(streams), timeout=0)[0]
        return [one for one in remotes if one.stream in ready]

    try:
        share, started = _begin(ray, fresh[-1], batch, workers)
        yield started
        yield from summed(batch, share, dispatch(share.todo, workers, start, wait))
    finally:
        for actor in fresh:
            ray.kill(actor)
        if ours:
            ray.shutdown()


def _begin(ray: Any, actor: Any, batch: Batch, workers: int) -> tuple[Share, Started]:
    world = batch.requests[0].world
    try:
        begun: tuple[Share, Started] = _get(ray, actor.begin.remote(world.rank, world.size, workers))
    except Died as death:
        raise FourMError(f"the first actor of Ray {death}") from death
    return begun


def _get(ray: Any, reference: Any) -> Any:
    """What a call of an actor returned. Died if the actor did, FourMError for an error in it."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise as_end(error.cause) from None
    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
        lines = str(error).strip().splitlines()
        if getattr(error, "actor_init_failed", False):
            raise FourMError(f"an actor of Ray cannot be started: {lines[-1]}") from error
        raise Died(f"died ({lines[0].rstrip('.')})") from error


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingError("`executor=ray` needs Ray: pip install 'fourm[ray]'") from error
    return ray
