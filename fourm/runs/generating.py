"""Decodes samples in batches; what becomes of them is a writer's affair: files, or values in memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch

from fourm.codecs.images import rows_at_once
from fourm.codecs.table import Codec
from fourm.decoding.engine import Engine, Progress, equal_counts, with_targets
from fourm.decoding.sampling import Noise
from fourm.networks.state import Batch, stack_batches
from fourm.output.record import BASE
from fourm.runs.conditions import Conditions, Given, Work
from fourm.runs.device import Portions
from fourm.runs.events import Event, Failed, Noted, Stepped
from fourm.runs.job import Job
from fourm.schedule.chain import Chain

NOT_FINITE = (
    "the network's results are not finite numbers: its weights are damaged, a guidance scale is too large, "
    "or float16 is too narrow for it (try `dtype=float32`)"
)


class Writer(Protocol):
    """Takes decoded samples."""

    job: Job
    codecs: Mapping[str, Codec]

    def begin(self, works: Sequence[Work]) -> None:
        """Called with samples before they are decoded together."""

    def watch(self, progress: Progress, works: Sequence[Work], is_last: bool) -> None:
        """Called after each decoding step; is_last: True for the last step of a target."""

    def fail(self, work: Work, reason: str) -> Failed:
        """A sample that cannot be made."""

    def save(self, given: Sequence[Given], batch: Batch, chosen: Sequence[int]) -> Iterator[Event]:
        """Save the chosen samples that are not reported yet; batch: a decoded row for each of `given`."""


def generate(engine: Engine, writer: Writer, todo: Sequence[Work]) -> Iterator[Event]:
    """Decode samples in batches and hand them to the writer."""
    job, size = writer.job, writer.job.batch_size
    groups = [todo[first : first + size] for first in range(0, len(todo), size)]
    decoding = Portions(size, job.device, job.dtype)
    saving = Portions(rows_at_once(job.device), job.device, job.dtype)
    for prepared in Conditions(job.request, writer.codecs, job.dtype).prepared(groups):
        for row in prepared:
            if row.problem:
                yield writer.fail(row.work, row.problem)
        for row in prepared:
            yield from (Noted(*row.work.result, name, notes) for name, notes in row.notes.items() if notes)
        readable = [row for row in prepared if not row.problem]
        conditions = job.request.chain.conditions
        given = stack_batches([row.batch.without(conditions) for row in readable])  # parts of targets
        for indices, chain in equal_counts(given, job.request.chain):
            make = partial(_make, engine, writer, chain, decoding, saving)
            yield from decoding.each([readable[index] for index in indices], make)


def _make(
    engine: Engine, writer: Writer, chain: Chain, decoding: Portions, saving: Portions, rows: Sequence[Given]
) -> Iterator[Event]:
    """Decode and save some samples. One that fails does not affect the others."""
    request, device, steps = writer.job.request, decoding.device, chain.steps
    works = [row.work for row in rows]
    writer.begin(works)
    conditions = stack_batches([row.batch for row in rows])
    batch = with_targets(conditions, chain, request.model.registry).to(device)
    stage = "" if request.stage == BASE else request.stage  # so that super-resolution has its own noise
    noise = Noise.for_samples(request.seed, [work.result for work in works], stage)
    if decoding.rows < writer.job.batch_size:  # memory ran out before
        engine = replace(engine, max_rows=decoding.rows)
    faults = dict[int, str]()  # row -> why it cannot be decoded
    sound = torch.ones(len(rows), dtype=torch.bool, device=device)  # (B,), True while all logits are finite
    for progress in engine.run(batch, chain, noise.to(device)):
        batch, step = progress.batch, progress.step
        sound = sound & progress.sound
        faults |= progress.faults
        is_last = step is steps[-1] or steps[step.index + 1].target != step.target
        writer.watch(progress, works, is_last)
        yield Stepped(
            keys=batch.keys, target=step.target, scheme=step.scheme, step=step.index, steps=len(steps),
            done=progress.done, total=progress.total, fixed=progress.fixed * len(batch.keys),
            temperature=step.temperature, guidance=step.guidance, seconds=progress.seconds,
        )  # fmt: skip
    faults |= {index: NOT_FINITE for index, is_sound in enumerate(sound.tolist()) if not is_sound}
    for index in sorted(faults):
        yield writer.fail(works[index], faults[index])
    decoded = [index for index in range(len(rows)) if index not in faults]
    yield from saving.each(decoded, partial(writer.save, rows, batch))
