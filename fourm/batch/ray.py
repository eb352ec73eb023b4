"""A sharded run on Ray: actors that hold a worker each are fed with descriptors of shards."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from fourm.batch.batches import Batch, Share
from fourm.batch.local import start_of, summed
from fourm.batch.worker import Report, Worker
from fourm.errors import FourMError, MissingError
from fourm.output.markers import Counts
from fourm.results.events import Detokenized, Event, Loading, Started, Stepped

RETRIES = 2  # restarts of an actor that died, and repetitions of what it was asked


class Actor:
    """What a process of Ray does. It is restarted, and asked again, by Ray."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.worker: Worker | None = None

    def begin(self, rank: int, size: int, workers: int) -> tuple[Share, Started]:
        """Open the folder on a machine that has the device: what is to be made."""
        self.batch.open_folder()
        share = self.batch.share(rank, size)
        return share, start_of(self.batch, share, self.batch.stages(), workers)

    def make(self, shard: Any) -> list[Event | Report]:
        """Make a shard: its events, without single steps, and at the end its report."""
        self.worker = self.worker or Worker(self.batch)
        events = self.worker.events(shard)
        return [event for event in events if not isinstance(event, Stepped | Detokenized | Loading)]

    def close(self) -> None:
        """Release the models, and remove what processes that died have left on this machine."""
        if self.worker is not None:
            self.worker.close()


def run_ray(batch: Batch, workers: int, gpus_per_worker: float | None = None) -> Iterator[Event]:
    """Make a batch on the cluster that RAY_ADDRESS names, else on this machine. None: a GPU, if there is one.

    An actor that dies is restarted by Ray and makes its shard again; after RETRIES restarts the shard is
    reported as not made, and the other actors go on.
    """
    ray = _import_ray()
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, logging_level="warning", configure_logging=True)
    if gpus_per_worker is None:
        has_gpus = batch.requests[0].device != "cpu" and ray.cluster_resources().get("GPU")
        gpus_per_worker = 1 if has_gpus else 0
    retries = {"max_restarts": RETRIES, "max_task_retries": RETRIES}
    kind = ray.remote(num_cpus=1, num_gpus=gpus_per_worker, **retries)(Actor)
    actors = [kind.remote(batch) for _ in range(workers)]
    try:
        world, begin = batch.requests[0].world, actors[0].begin.options(max_task_retries=0)
        share, started = ray.get(begin.remote(world.rank, world.size, workers))
        yield started
        yield from summed(batch, share, _feed(ray, actors, share))
    finally:
        for actor in actors:
            ray.kill(actor)
        if ours:
            ray.shutdown()


def _feed(ray: Any, actors: list[Any], share: Share) -> Iterator[Event | Report]:
    """Give each actor the next shard as soon as it has made one."""
    left = iter(share.todo)
    busy = {actor.make.remote(shard): (actor, shard) for actor, shard in zip(actors, left, strict=False)}
    while busy:
        for done in ray.wait(list(busy))[0]:
            actor, shard = busy.pop(done)
            try:
                yield from ray.get(done)
            except ray.exceptions.RayActorError as error:
                lost = f"its actor died more than {RETRIES} times ({_first(error)})"
                yield Report(shard, Counts(), lost=lost)
                if not busy and next(left, None) is not None:
                    raise FourMError("all actors of Ray have died; `resume=True` goes on") from error
                continue
            if (following := next(left, None)) is not None:
                busy[actor.make.remote(following)] = actor, following
            else:
                with suppress(ray.exceptions.RayActorError):
                    ray.get(actor.close.remote())


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingError("`executor=ray` needs Ray: pip install 'fourm[ray]'") from error
    return ray
