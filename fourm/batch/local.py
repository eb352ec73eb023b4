"""Makes the shards of one process, here, as one stream of events."""

import time
from collections.abc import Iterator

from fourm.batch.batches import Batch, Share
from fourm.batch.worker import Report, Worker
from fourm.runs.events import Event, Finished, Started
from fourm.runs.job import count_evaluations


def run_share(batch: Batch, share: Share) -> Iterator[Event]:
    """Make what is to be made of a share; the counts of all its shards are summed up."""
    started, worker = time.perf_counter(), Worker(batch)
    job, stages = worker.stages[0].job, len(batch.requests)
    skipped = share.done.saved + share.done.failed
    counts = [shard.count for shard in share.todo]
    due = sum(count or 0 for count in counts) * batch.variations * stages
    yield Started(
        total=0 if None in counts else skipped + due, skipped=skipped,
        batch_size=job.batch_size, model=job.request.model.name,
        device=str(job.device), steps=sum(len(stage.job.request.chain.steps) for stage in worker.stages),
        evaluations=count_evaluations(job.request, job.places), variations=batch.variations, dtype=job.dtype,
        shards=len(share.shards),
    )  # fmt: skip
    saved, failed, incomplete = 0, share.done.failed, share.done.incomplete
    try:
        for shard in share.todo:
            for event in worker.events(shard):
                if isinstance(event, Report):
                    saved, failed = saved + event.counts.saved, failed + event.counts.failed
                    incomplete += event.counts.incomplete
                else:
                    yield event
    finally:
        worker.close()
    seconds = time.perf_counter() - started
    yield Finished(saved, share.done.saved, failed, seconds, incomplete=incomplete)
