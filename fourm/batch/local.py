"""Makes the shards of one process, here or in processes of this machine, as one stream of events."""

import time
from collections import Counter
from collections.abc import Iterator

import torch

from fourm.batch.batches import Batch, Share
from fourm.batch.dispatch import Said
from fourm.batch.pool import run_pool
from fourm.batch.stages import Stage
from fourm.batch.worker import Report, Worker
from fourm.data.dataset import lacked
from fourm.inputs.world import World
from fourm.output.record import BASE, FEATURES
from fourm.results.events import Event, Failed, Finished, Started
from fourm.runs.device import choose_device

MAX_LACKING = 5  # kinds of files that samples lack, which are named at the end


def run_share(batch: Batch, share: Share, workers: int = 1) -> Iterator[Event]:
    """Make what is to be made of a share, in this process or in several; counts are of all its shards.

    A failure of a whole shard, whose workers died, is a failure of each of its results.
    """
    workers = max(1, min(workers, len(share.todo)))
    if workers == 1:
        worker = Worker(batch)
        made = _here(worker, share)
        stages = worker.stages
    else:
        stages = batch.stages()
        made = run_pool(batch, share.todo, devices_of(batch, workers))
    yield start_of(batch, share, stages, workers)
    yield from summed(batch, share, made)


def start_of(batch: Batch, share: Share, stages: list[Stage], workers: int = 1) -> Started:
    """The event at the start of making a share."""
    job, record, skipped = stages[0].job, stages[0].run.record, share.done.saved + share.done.failed
    counts = [shard.count for shard in share.todo]
    due = sum(count or 0 for count in counts) * batch.variations * len(batch.requests)
    return Started(
        total=0 if None in counts else skipped + due, skipped=skipped,
        batch_size=job.batch_size, model=job.request.model.name,
        device=str(job.device), steps=sum(stage.job.steps for stage in stages),
        evaluations=job.evaluations, variations=batch.variations, dtype=job.dtype,
        shards=len(share.shards), workers=workers, damaged=share.faults,
        stage=FEATURES if record.stage == FEATURES else BASE,
        best_of=0 if record.best is None else record.best.of,
    )  # fmt: skip


def summed(batch: Batch, share: Share, made: Iterator[Said]) -> Iterator[Event]:
    """Pass events on, and sum up the reports in the last one."""
    started = time.perf_counter()
    saved, skipped, failed, incomplete = 0, share.done.saved, share.done.failed, share.done.incomplete
    lacking = Counter[str]()
    for event in made:
        if isinstance(event, Report):
            lacking.update(lacked(text) for text in event.incomplete)
            if event.lost:
                due = (event.shard.count or 1) * batch.variations * len(batch.requests)
                failed += due
                yield Failed(f"shard {event.shard.name}", 0, event.lost)
            if event.was_done:  # another process has made it since
                skipped += event.counts.saved
            else:
                saved += event.counts.saved
            failed += event.counts.failed
            incomplete += event.counts.incomplete
        else:
            yield event
    seconds = time.perf_counter() - started
    said = tuple(f"{count:,} lack {what}" for what, count in lacking.most_common(MAX_LACKING))
    yield Finished(saved, skipped, failed, seconds, incomplete=incomplete, lacking=said)


def count_workers(batch: Batch, asked: str | None) -> int:
    """The number of `workers`: N, or one for each visible GPU (auto); without it one."""
    if asked is None:
        return 1
    if asked != "auto":
        return int(asked)
    return torch.cuda.device_count() if _kind(batch) == "cuda" else 1


def devices_of(batch: Batch, workers: int) -> list[str | None]:
    """The device of each worker: GPUs in turn, unless the batch names one of them."""
    device = batch.requests[0].device
    if _kind(batch) != "cuda" or ":" in device:
        return [None] * workers
    return [f"cuda:{number % torch.cuda.device_count()}" for number in range(workers)]


def _kind(batch: Batch) -> str:
    return choose_device(batch.requests[0].device, World()).type


def _here(worker: Worker, share: Share) -> Iterator[Said]:
    try:
        for shard in share.todo:
            yield from worker.events(shard)
    finally:
        worker.close()
