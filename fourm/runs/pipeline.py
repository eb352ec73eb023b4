"""Runs a request: loads the model, decodes all samples, writes their files, and yields events.

Samples are decoded in batches, and the files of a batch are written when it is done: on a GPU while the next
one is decoded. A result depends only on the model, chain, seed, sample and variation. So batch size, number
of processes and resuming do not change the output folder.
"""

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch

from fourm.codecs.images import rows_at_once
from fourm.codecs.table import Codec
from fourm.data.containers import is_there
from fourm.data.dataset import Input
from fourm.data.layout import Sample
from fourm.decoding.engine import Engine, group_by_counts, with_targets
from fourm.decoding.sampling import Noise
from fourm.decoding.steps import Progress
from fourm.errors import SampleError, UsageError
from fourm.hub.header import FULL
from fourm.inputs.conditions import ConditionReader, PreparedSample, Work
from fourm.inputs.kept import check_mask_files
from fourm.inputs.request import Request
from fourm.networks.attention import check_kernel
from fourm.networks.checkpoint import check_files, load_model, load_tokenizer
from fourm.networks.precision import arithmetic, check_compiler, torch_dtype
from fourm.networks.state import Batch, stack_batches
from fourm.output.joining import Joining, withdraw_output
from fourm.output.processes import Launch, Listed, close_output, now, read_checksums
from fourm.output.record import BASE, NEXT, RUN
from fourm.output.samples import Run, SampleWriter
from fourm.results.background import Background
from fourm.results.events import Event, Failed, Finished, Halved, Loading, Noted, Started, Stepped
from fourm.results.job import Job, TokenJob, fill_diffusion, make_record, plan_places, tokenizers_of
from fourm.results.portions import Portions, as_fourm_errors
from fourm.results.saver import Saver
from fourm.results.sinks import FolderSink
from fourm.results.values import Collector, ResultValues
from fourm.runs.best import Chooser, keep_best
from fourm.runs.device import (
    checked_batch_size,
    choose_device,
    choose_rows,
    resolve_dtype,
    resolve_weights,
)
from fourm.runs.features import embed
from fourm.runs.loaded import LoadedModel
from fourm.runs.planning import Plan, check_disk, plan_results
from fourm.runs.timing import estimate_seconds
from fourm.schedule.chain import Chain
from fourm.sources.datasets import kept_names
from fourm.sources.results import conditions_from, with_files

NOT_FINITE = (
    "the network's results are not finite numbers: its weights are damaged, a guidance scale is too large, "
    "or float16 is too narrow for it (try `dtype=float32`)"
)


class Writer(Protocol):
    """Takes decoded samples: `Saver` writes files, `Collector` keeps results in memory."""

    job: Job
    codecs: Mapping[str, Codec]

    def begin(self, works: Sequence[Work]) -> None:
        """Called with samples before they are decoded together."""

    def watch(self, progress: Progress, works: Sequence[Work], is_last: bool) -> None:
        """Called after each decoding step; is_last: True for the last step of a target."""

    def fail(self, work: Work, reason: str) -> Failed:
        """A sample that cannot be made."""

    def save(
        self, given: Sequence[PreparedSample], batch: Batch, chosen: Sequence[int]
    ) -> Generator[Event, None, None]:
        """Save the chosen samples that are not reported yet; batch: a decoded row for each of `given`.

        Perhaps in another thread, while the samples of the next batch are passed to the other functions.
        """


def check(request: Request) -> Job:
    """Check a request before anything is loaded. UsageError for settings, MissingError for missing files."""
    device = choose_device(request.device, request.world)
    dtype = resolve_dtype(request, device)
    request = fill_diffusion(replace(request, dtype=dtype, weights=resolve_weights(request)))
    check_kernel(request.attention, device, torch.empty(0, dtype=torch_dtype(dtype), device=device))
    if request.compile:
        check_compiler(device, request.weights)
    places = plan_places(request)
    check_mask_files(request.chain)
    check_files(request.model, tokenizers_of(request.model, places))
    return Job(request, places, device, dtype, checked_batch_size(request, device))


def run(request: Request, loaded: LoadedModel | None = None) -> Iterator[Event]:
    """Generate every result of the request that is not complete yet, and yield events.

    loaded: the request's model, if it is loaded already; its device, dtype and attention are those of the
    request. What is loaded for the run stays loaded in it.
    Errors in the request or the model's files are raised before anything is written. A sample that fails is
    reported as `Failed` and added to failures.jsonl; the others are not affected.
    """
    started = time.perf_counter()
    out, world = request.out, request.world
    _check_no_store(request)
    job = check(request)
    launch = Launch(world.rank, world.size, now(), batch_size=job.batch_size, only=request.only)
    record = make_record(job)
    joining = Joining(out, record, launch, request.resume, request.overwrite, request.record, world.began)
    joining.check()
    samples = sorted(request.samples, key=lambda sample: sample.key)
    writer = SampleWriter(Run(out, request.record, record), samples, request.recorded_fit)
    if not request.overwrite:
        writer.check()
    # With --overwrite all files count as missing.
    listed = {} if request.overwrite else read_checksums(out, (world.rank, world.size))
    chosen = sorted(request.chosen, key=lambda sample: sample.key)
    made, todo = _split_work(job, _share(request, chosen), listed)
    check_disk(plan_results(job, made, todo))
    yield Started(
        total=len(made) + len(todo), skipped=len(made), batch_size=job.batch_size, model=request.model.name,
        device=str(job.device), steps=job.steps,
        evaluations=job.evaluations, stage=request.stage,
        variations=len(request.variations), dtype=job.dtype,
        best_of=0 if request.best is None else request.best.of,
    )  # fmt: skip
    engine, codecs = None, dict[str, Codec]()
    loaded = loaded_for(job, loaded)
    if todo:
        yield Loading(f"model {request.model.name}")
        with as_fourm_errors(job.device, job.dtype, out), arithmetic(job.dtype):
            engine, codecs = load_parts(job, loaded)
    saver = Saver(job, codecs, sink := FolderSink(job, joining.enter(), listed, writer))
    events = make_results(engine, saver, todo) if engine is not None else iter(())
    has_ended, halved_to, skipped = False, None, len(made)
    try:
        with as_fourm_errors(job.device, job.dtype, out):
            sink.add_missing_checksums(made)
            with closing(stepwise(events, loaded)) as steps:
                for event in steps:
                    if isinstance(event, Halved):
                        halved_to = event.rows
                    yield event
        has_ended = True
    finally:
        seconds = time.perf_counter() - started
        ended = replace(
            launch, finished=now(), saved=len(saver.saved), skipped=skipped, failed=len(saver.failed),
            seconds=round(seconds, 3), halved_to=halved_to,
        )  # fmt: skip
        is_idle = not (has_ended or saver.saved or skipped or saver.failed)
        if not (is_idle and withdraw_output(sink.process, request.record)):
            close_output(sink.process, ended)
    yield Finished(len(saver.saved), skipped, len(saver.failed), seconds, request.stage)


def plan(request: Request) -> Plan:
    """What a run of the request would make. Raises what the run would raise, and writes nothing."""
    job, out, world = check(request), request.out, request.world
    launch = Launch(world.rank, world.size, now(), only=request.only)
    following = out / NEXT[request.record]
    if request.resume and not os.path.lexists(following):  # which the run would complete first
        Joining(out, make_record(job), launch, True, False, request.record, world.began).check()
    is_new = request.overwrite or not os.path.isdir(out)
    listed = {} if is_new else read_checksums(out, (world.rank, world.size))
    works = _share(request, sorted(request.chosen, key=lambda sample: sample.key))
    # Of super-resolution, the run before it will have made what it reads.
    planned = plan_results(job, *_split_work(job, works, listed, is_base_made=True))
    check_disk(planned)
    return planned


def measure(planned: Plan) -> float:
    """Seconds that the results of a plan will take, without loading; see `estimate_seconds`.

    Loads the model and does a small part of the work; nothing is written.
    """
    job = planned.job
    if not planned.todo:
        return 0.0
    with as_fourm_errors(job.device, job.dtype), arithmetic(job.dtype), torch.inference_mode():
        return estimate_seconds(job, planned.todo, *load_parts(job, loaded_for(job, None)))


def collect(request: Request, loaded: LoadedModel) -> tuple[Collector, Iterator[Event]]:
    """A collector, and the events of generating every result of the request into it, in memory.

    The request's `out` is not used; each result is byte-equal to what `run` writes.
    """
    job = check(request)
    with as_fourm_errors(job.device, job.dtype), loaded.lock, arithmetic(job.dtype):
        engine, codecs = load_parts(job, loaded_for(job, loaded))
    collector = Collector(job, codecs)
    works = [Work(sample, v) for sample in request.chosen for v in request.variations]

    def events() -> Iterator[Event]:
        with as_fourm_errors(job.device, job.dtype):
            yield from stepwise(make_results(engine, collector, works), loaded)

    return collector, events()


def save_made(request: Request, codecs: Mapping[str, Codec], made: ResultValues) -> None:
    """Write one result: the same files that `run` writes for this request, the record included.

    request: with the sample of the result alone, and `out`. UsageError if that folder is not empty.
    """
    started, job = time.perf_counter(), check(request)
    launch, record = Launch(0, 1, now()), make_record(job)
    joining = Joining(request.out, record, launch, record=request.record)
    joining.check()
    writer = SampleWriter(Run(request.out, request.record, record), request.samples, request.recorded_fit)
    sink = FolderSink(job, joining.enter(), {}, writer)
    saver = Saver(job, codecs, sink)
    with as_fourm_errors(job.device, job.dtype, request.out):
        events = [*saver.save_made(made)]
    seconds = round(time.perf_counter() - started, 3)
    close_output(sink.process, replace(launch, finished=now(), saved=len(saver.saved), seconds=seconds))
    if failed := [event for event in events if isinstance(event, Failed)]:
        raise SampleError(failed[0].reason)


def stepwise(events: Iterator[Event], loaded: LoadedModel) -> Generator[Event, None, None]:
    """The events, each made while the model is held and torch has the settings of its dtype.

    Between two of them this thread holds nothing, so that a consumer can stop anywhere.
    """
    try:
        while True:
            with loaded.lock, arithmetic(loaded.dtype):
                event = next(events, None)
            if event is None:
                return
            yield event
    finally:
        if isinstance(events, Generator):
            events.close()


def loaded_for(job: Job | TokenJob, loaded: LoadedModel | None) -> LoadedModel:
    """The loaded model of a job; without one, one that loads its parts when they are used."""
    request = job.request
    weights = request.weights or FULL
    own = request.model, job.device, job.dtype, request.attention, request.compile, weights
    if loaded is None:
        return LoadedModel(*own)
    there = loaded.files, loaded.device, loaded.dtype, loaded.attention, loaded.compile, loaded.weights
    if there != own:
        settings = "device, dtype, attention, compile or weights"
        raise ValueError(f"the model is loaded from other files, or with another {settings}")
    return loaded


def load_parts(job: Job, loaded: LoadedModel) -> tuple[Engine, dict[str, Codec]]:
    """Load the transformer as an engine, and the tokenizers as codecs: modality -> codec."""
    request, model = job.request, job.request.model
    parts = tokenizers_of(model, job.places)
    rows = [model.registry.get(place.modality) for place in job.places if place.modality]
    codecs = {row.name: loaded.codec(row, parts.get(row.tokenizer)) for row in rows}
    return loaded.engine(choose_rows(request, job.device)), codecs


def check_weights(job: Job) -> None:
    """Read all weights and check them as loading does: shapes, and finite values. Nothing is kept."""
    load_model(job.request.model, "meta")
    for name, part in tokenizers_of(job.request.model, job.places).items():
        load_tokenizer(job.request.model.tokenizers[name], "meta", part=part)


def sr_request(base: Request, following: Request) -> Request:
    """The request for super-resolution of all results of the run `base`, in the same folder.

    following: with the model, chain and settings of super-resolution. Both runs can be resumed.
    """
    record = make_record(check(base))
    run = Run(base.out, RUN, record)
    made = conditions_from(run, map(run.describe, base.samples), following.chain, following.model)
    samples = with_files(made, base.samples, kept_names(following.chain.keeps))
    return replace(
        following, samples=samples, input=Input("run"), out=base.out, origin=record,
        num_variations=base.num_variations, variation=base.variation,
    )  # fmt: skip


def _check_no_store(request: Request) -> None:
    if request.store:
        raise UsageError(f"`out={request.store}`: takes results in shards (`fourm.batch`), not single files")


def _share(request: Request, samples: Sequence[Sample]) -> list[Work]:
    """The results that this process makes; those of a sample together, where the best are chosen."""
    if request.best is not None:
        return [
            Work(sample, number) for sample in request.world.share(samples) for number in request.variations
        ]
    return request.world.share([Work(sample, number) for sample in samples for number in request.variations])


def _split_work(
    job: Job, works: Sequence[Work], listed: Mapping[str, Listed], is_base_made: bool = False
) -> tuple[list[Work], list[Work]]:
    """The results that are complete, and those that are to be made.

    Super-resolution leaves out what the base run did not make, which that run has reported.
    """
    request, made, todo = job.request, list[Work](), list[Work]()
    for work in works:
        if request.origin and not (is_base_made or has_conditions(request, work)):
            continue
        complete = (job.is_complete(place, work, listed) for place in job.written)
        (made if not request.overwrite and all(complete) else todo).append(work)
    return made, todo


def has_conditions(request: Request, work: Work) -> bool:
    """Whether the files of all conditions of a result are there."""
    files = work.sample.files_of(work.variation)
    return all(name in files and is_there(files[name]) for name in request.chain.conditions)


def make_results(engine: Engine, writer: Saver | Collector, todo: Sequence[Work]) -> Iterator[Event]:
    """What the request asks for: the targets of samples, the best of several, or features of conditions."""
    request = writer.job.request
    if request.features is not None:
        return embed(engine.network, writer, todo)
    if request.best is None:
        return generate(engine, writer, todo)
    samples = {work.sample.key: work.sample for work in todo}.values()
    wanted = frozenset(work.result for work in todo)
    chooser = Chooser(writer, engine.network, request.best, wanted)
    works = [Work(sample, number) for sample in samples for number in range(request.best.of)]
    return keep_best(generate(engine, chooser, works), chooser)


def generate(engine: Engine, writer: Writer, todo: Sequence[Work]) -> Iterator[Event]:
    """Decode samples in batches and hand them to the writer."""
    job, size = writer.job, writer.job.batch_size
    groups = [todo[first : first + size] for first in range(0, len(todo), size)]
    decoding = Portions(size, job.device, job.dtype)
    saving = Background(Portions(rows_at_once(job.device), job.device, job.dtype))
    try:
        for prepared in ConditionReader(job.request, writer.codecs, job.dtype).read_groups(groups):
            for row in prepared:
                if row.problem:
                    yield writer.fail(row.work, row.problem)
            for row in prepared:
                yield from (Noted(*row.work.result, name, note) for name, note in row.notes.items() if note)
            readable = [row for row in prepared if not row.problem]
            conditions = job.request.chain.conditions
            given = stack_batches([row.batch.without(conditions) for row in readable])  # parts of targets
            for indices, chain in group_by_counts(given, job.request.chain):
                decode = partial(_decode, engine, writer, chain, decoding, saving)
                rows = [readable[index] for index in indices]
                yield from decoding.each(rows, partial(saving.beside, work=decode))
        yield from saving.finish()
    except Exception:
        yield from saving.finish()  # what was decoded before
        raise
    finally:
        saving.close()


def _decode(
    engine: Engine, writer: Writer, chain: Chain, decoding: Portions, saving: Background,
    rows: Sequence[PreparedSample],
) -> Generator[Event, None, None]:  # fmt: skip
    """Decode some samples and begin to save them. One that fails does not affect the others."""
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
        yield from saving.ready()
    faults |= {index: NOT_FINITE for index, is_sound in enumerate(sound.tolist()) if not is_sound}
    for index in sorted(faults):
        yield writer.fail(works[index], faults[index])
    decoded = [index for index in range(len(rows)) if index not in faults]
    yield from saving.add(decoded, partial(writer.save, rows, batch))
