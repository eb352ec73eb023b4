"""Runs a request: loads the model, decodes all samples, writes their files, and yields events.

Samples are decoded in batches, and the files of a batch are written when it is done. A result depends only on
the model, chain, seed, sample and variation. So batch size, number of processes and resuming do not change
the output folder.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from fourm.codecs.images import rows_at_once
from fourm.codecs.table import Codec, build_codec
from fourm.data.dataset import Input
from fourm.decoding.engine import RELEASED_SENTINELS, Engine, with_targets
from fourm.decoding.sampling import Noise
from fourm.modalities.text import WordPiece
from fourm.networks.checkpoint import check_files, load_model, load_tokenizer
from fourm.networks.layers import arithmetic, choose_dtype, set_attention, torch_dtype
from fourm.networks.state import stack_batches
from fourm.output.joining import Joining, withdraw_output
from fourm.output.processes import Launch, Listed, close_output, now, read_checksums
from fourm.output.record import BASE, RUN
from fourm.output.samples import Run, SampleWriter
from fourm.runs.conditions import Conditions, Given, Work
from fourm.runs.device import Portions, as_fourm_errors, check_memory, choose_device, choose_rows
from fourm.runs.events import Event, Finished, Halved, Loading, Noted, Started, Stepped
from fourm.runs.origins import conditions_from
from fourm.runs.outputs import Film, Job, Saver, count_evaluations, make_record, plan_places, tokenizers_of
from fourm.runs.request import Request

NOT_FINITE = (
    "the network's results are not finite numbers: its weights are damaged, a guidance scale is too large, "
    "or float16 is too narrow for it (try --dtype float32)"
)


def check(request: Request) -> Job:
    """Check a request before anything is loaded. UsageError for settings, MissingError for missing files."""
    device = choose_device(request.device, request.world)
    dtype = choose_dtype(request.dtype, device)
    set_attention(torch.nn.Identity(), request.attention, device)  # only checks the setting
    places = plan_places(request)
    check_files(request.model, tokenizers_of(request.model, places))
    return Job(request, places, device, dtype, check_memory(request, device))


def run(request: Request) -> Iterator[Event]:
    """Generate every result of the request that is not complete yet, and yield events.

    Errors in the request or the model's files are raised before anything is written. A sample that fails is
    reported as `Failed` and added to failures.jsonl; the others are not affected.
    """
    started = time.perf_counter()
    out, world = request.out, request.world
    job = check(request)
    launch, record = Launch(world.rank, world.size, now()), make_record(job)
    joining = Joining(out, record, launch, request.resume, request.overwrite, request.record, world.began)
    joining.check()
    samples = sorted(request.samples, key=lambda sample: sample.key)
    writer = SampleWriter(Run(out, request.record, record), samples, request.reads_pictures)
    if not request.overwrite:
        writer.check()
    # With --overwrite all files count as missing.
    listed = {} if request.overwrite else read_checksums(out, (world.rank, world.size))
    works = [Work(sample, variation) for sample in samples for variation in request.variations]
    made, todo = _split_work(job, world.share(works), listed)
    yield Started(
        total=len(made) + len(todo), skipped=len(made), batch_size=job.batch_size, model=request.model.name,
        device=str(job.device), steps=len(request.chain.steps),
        evaluations=count_evaluations(request, job.places), stage=request.stage,
        variations=len(request.variations),
    )  # fmt: skip
    engine, codecs = None, dict[str, Codec]()
    if todo:
        yield Loading(f"model {request.model.name}")
        with as_fourm_errors(job.device, job.dtype, out), arithmetic(job.dtype):
            engine, codecs = load_parts(job)
    saver = Saver(job, codecs, joining.enter(), listed, writer)
    has_ended, halved_to = False, None
    try:
        with as_fourm_errors(job.device, job.dtype, out), arithmetic(job.dtype):
            saver.add_missing_checksums(made)
            for event in _generate(engine, saver, todo) if engine is not None else ():
                if isinstance(event, Halved):
                    halved_to = event.rows
                yield event
        has_ended = True
    finally:
        seconds = time.perf_counter() - started
        ended = replace(
            launch, finished=now(), saved=len(saver.saved), skipped=saver.skipped, failed=len(saver.failed),
            seconds=round(seconds, 3), halved_to=halved_to,
        )  # fmt: skip
        is_idle = not (has_ended or saver.saved or saver.skipped or saver.failed)
        if not (is_idle and withdraw_output(saver.process, request.record)):
            close_output(saver.process, ended)
    yield Finished(len(saver.saved), saver.skipped, len(saver.failed), seconds, request.stage)


def check_weights(job: Job) -> None:
    """Read all weights and check them as loading does: shapes, and finite values. Nothing is kept."""
    load_model(job.request.model, "meta")
    for name, part in tokenizers_of(job.request.model, job.places).items():
        load_tokenizer(job.request.model.tokenizers[name], "meta", part=part)


def follow_on(base: Request, finer: Request) -> Request:
    """The request for super-resolution of all results of the run `base`, in the same folder.

    finer: the model, chain and settings of super-resolution. Both runs can be resumed.
    """
    record = make_record(check(base))
    run = Run(base.out, RUN, record)
    samples = conditions_from(run, map(run.describe, base.samples), finer.chain, finer.model)
    return replace(
        finer, samples=samples, input=Input("run"), out=base.out, origin=record,
        num_variations=base.num_variations, variation=base.variation,
    )  # fmt: skip


def load_parts(job: Job) -> tuple[Engine, dict[str, Codec]]:
    """Load the transformer as an engine, and the tokenizers as codecs: modality -> codec."""
    request, model = job.request, job.request.model
    device, dtype = job.device, torch_dtype(job.dtype)
    wordpiece = WordPiece.load(model.text_tokenizer) if model.text_tokenizer is not None else None
    tokenizers = {
        name: load_tokenizer(model.tokenizers[name], device, dtype, part)
        for name, part in tokenizers_of(model, job.places).items()
    }
    rows = [model.registry.get(place.modality) for place in job.places]
    codecs = {row.name: build_codec(row, tokenizers.get(row.tokenizer), wordpiece) for row in rows}
    network = load_model(model, device, dtype)
    for module in (network, *tokenizers.values()):
        set_attention(module, request.attention, device)
    sentinels = wordpiece.sentinels if wordpiece is not None else RELEASED_SENTINELS
    return Engine(network, sentinels, max_rows=choose_rows(request, device)), codecs


def _split_work(
    job: Job, works: Sequence[Work], listed: Mapping[str, Listed]
) -> tuple[list[Work], list[Work]]:
    """The results that are complete, and those that are to be made.

    Super-resolution leaves out what the base run did not make, which that run has reported.
    """
    request, made, todo = job.request, list[Work](), list[Work]()
    for work in works:
        files = work.sample.files_of(work.variation)
        given = (name in files and files[name].is_file() for name in request.chain.conditions)
        if request.origin and not all(given):
            continue
        complete = (job.is_complete(place, work, listed) for place in job.written)
        (made if not request.overwrite and all(complete) else todo).append(work)
    return made, todo


def _generate(engine: Engine, saver: Saver, todo: Sequence[Work]) -> Iterator[Event]:
    """Decode and save the work of this process in batches."""
    job, size = saver.job, saver.job.batch_size
    groups = [todo[first : first + size] for first in range(0, len(todo), size)]
    decoding = Portions(size, job.device, job.dtype)
    saving = Portions(rows_at_once(job.device), job.device, job.dtype)
    for prepared in Conditions(job.request, saver.codecs).prepared(groups):
        for row in prepared:
            if row.problem:
                yield saver.fail(row.work, row.problem)
        for row in prepared:
            yield from (Noted(*row.work.result, name, notes) for name, notes in row.notes.items() if notes)
        readable = [row for row in prepared if not row.problem]
        yield from decoding.each(readable, partial(_make, engine, saver, decoding, saving))


def _make(
    engine: Engine, saver: Saver, decoding: Portions, saving: Portions, rows: Sequence[Given]
) -> Iterator[Event]:
    """Decode and write some samples. One that fails does not affect the others."""
    request, device = saver.job.request, decoding.device
    steps = request.chain.steps
    works = [row.work for row in rows]
    saver.record_samples(works)
    conditions = stack_batches([row.batch for row in rows])
    batch = with_targets(conditions, request.chain, request.model.registry).to(device)
    stage = "" if request.stage == BASE else request.stage  # so that super-resolution has its own noise
    noise = Noise.for_samples(request.seed, [work.result for work in works], stage)
    if decoding.rows < saver.job.batch_size:  # memory ran out before
        engine = replace(engine, max_rows=decoding.rows)
    film = Film()
    faults = dict[int, str]()  # row -> why it cannot be decoded
    sound = torch.ones(len(rows), dtype=torch.bool, device=device)  # (B,), True while all logits are finite
    for progress in engine.run(batch, request.chain, noise.to(device)):
        batch, step = progress.batch, progress.step
        sound = sound & progress.sound
        faults |= progress.faults
        if request.preview:
            saver.preview(progress, film, works)
        yield Stepped(
            keys=batch.keys, target=step.target, scheme=step.scheme, step=step.index, steps=len(steps),
            done=progress.done, total=progress.total, fixed=progress.fixed * len(batch.keys),
            temperature=step.temperature, guidance=step.guidance, seconds=progress.seconds,
        )  # fmt: skip
    faults |= {index: NOT_FINITE for index, is_sound in enumerate(sound.tolist()) if not is_sound}
    for index in sorted(faults):
        yield saver.fail(works[index], faults[index])
    decoded = [index for index in range(len(rows)) if index not in faults]
    yield from saving.each(decoded, partial(saver.save, rows, batch))
