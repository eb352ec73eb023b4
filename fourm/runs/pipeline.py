"""Runs a request: loads the model, decodes all samples, writes their files, and yields events.

The samples are decoded in batches, and the files of a batch are written when it is done. A result depends
only on (model, chain, seed, sample, variation), so batch size, number of processes and resuming do not
change the output folder.
"""

import time
from collections.abc import Iterator, Sequence
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
from fourm.output.joining import Joining, withdraw_output
from fourm.output.processes import Launch, close_output, now, read_checksums
from fourm.output.record import BASE, RUN
from fourm.output.samples import Run, SampleWriter
from fourm.runs.conditions import Conditions, Prepared, Work
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
    """Check a request before anything is loaded: wrong settings (exit code 2), missing files (4)."""
    device = choose_device(request.device, request.world)
    dtype = choose_dtype(request.dtype, device)
    set_attention(torch.nn.Identity(), request.attention, device)
    places = plan_places(request)
    check_files(request.model, tokenizers_of(request.model, places))
    return Job(request, places, device, dtype, check_memory(request, device))


def run(request: Request) -> Iterator[Event]:
    """Make every sample of the request that is not complete yet, and yield events.

    Errors in the request or the model's files are raised before anything is written. A sample that fails is
    reported and added to failures.jsonl; the others go on.
    """
    started, out, world = time.perf_counter(), request.out, request.world
    job = check(request)
    launch, record = Launch(world.rank, world.size, now()), make_record(job)
    joining = Joining(out, record, launch, request.resume, request.overwrite, request.record, world.began)
    joining.check()
    samples = sorted(request.samples, key=lambda sample: sample.key)
    writer = SampleWriter(Run(out, request.record, record), samples, request.reads_pictures)
    if not request.overwrite:
        writer.check()
    # With --overwrite all files count as missing.
    share = None if request.overwrite or not out.is_dir() else (world.rank, world.size)
    listed = {} if share is None else read_checksums(out, share)
    made, todo, engine, codecs = list[Work](), list[Work](), None, dict[str, Codec]()
    for work in world.share([Work(sample, v) for sample in samples for v in request.variations]):
        if _has_conditions(request, work):
            is_made = not request.overwrite and all(job.is_complete(p, listed) for p in job.paths(work))
            (made if is_made else todo).append(work)
    yield Started(
        len(made) + len(todo), len(made), job.batch_size, request.model.name, str(job.device),
        len(request.chain.steps), count_evaluations(request, job.places), request.stage,
        len(request.variations),
    )  # fmt: skip
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
                halved_to = event.rows if isinstance(event, Halved) else halved_to
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
    """Check all weights as loading does (they must be finite), without keeping them."""
    load_model(job.request.model, "meta")
    for name, part in tokenizers_of(job.request.model, job.places).items():
        load_tokenizer(job.request.model.tokenizers[name], "meta", part=part)


def follow_on(base: Request, finer: Request) -> Request:
    """The request for super-resolution of all results of a run, in the same folder. Both can be resumed."""
    record = make_record(check(base))
    run = Run(base.out, RUN, record)
    samples = conditions_from(run, map(run.describe, base.samples), finer.chain, finer.model)
    return replace(
        finer, samples=samples, input=Input("run"), out=base.out, origin=record,
        num_variations=base.num_variations, variation=base.variation,
    )  # fmt: skip


def _has_conditions(request: Request, work: Work) -> bool:
    """True unless this is super-resolution of a sample that its run did not make (and has reported)."""
    files = work.sample.files_of(work.variation)
    return not request.origin or all(n in files and files[n].is_file() for n in request.chain.conditions)


def load_parts(job: Job) -> tuple[Engine, dict[str, Codec]]:
    """The transformer with what its decoding needs, and the codecs by modality with their tokenizers."""
    request, model, device, dtype = job.request, job.request.model, job.device, torch_dtype(job.dtype)
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


def _generate(engine: Engine, saver: Saver, todo: Sequence[Work]) -> Iterator[Event]:
    """Decode and save the work of this process in batches."""
    job, size = saver.job, saver.job.batch_size
    groups = [todo[first : first + size] for first in range(0, len(todo), size)]
    decoding, saving = (Portions(rows, job.device, job.dtype) for rows in (size, rows_at_once(job.device)))
    for prepared in Conditions(job.request, saver.codecs).prepared(groups):
        for work, reason in prepared.failures:
            yield saver.fail(work, reason)
        for row in prepared.rows:
            for name, notes in row.notes.items():
                yield Noted(row.work.sample.key.text, row.work.variation, name, notes)
        make = partial(_make, engine, saver, prepared, decoding, saving)
        yield from decoding.each(range(len(prepared.rows)), make)


def _make(
    engine: Engine, saver: Saver, prepared: Prepared, decoding: Portions, saving: Portions,
    chosen: Sequence[int],
) -> Iterator[Event]:  # fmt: skip
    """Decode and write the chosen rows of a group; rows that cannot be decoded or written fail alone."""
    request, steps, device = saver.job.request, saver.job.request.chain.steps, decoding.device
    rows = [prepared.rows[index] for index in chosen]
    works = [row.work for row in rows]
    saver.record_samples(works)
    conditions = prepared.batch.select(torch.tensor(chosen))
    batch = with_targets(conditions, request.chain, request.model.registry).to(device)
    stage = "" if request.stage == BASE else request.stage
    noise = Noise.for_samples(request.seed, [work.result for work in works], stage)
    if decoding.halved_to:
        engine = replace(engine, max_rows=decoding.halved_to)
    film, faults = Film(), dict[int, str]()
    sound = torch.ones(len(rows), dtype=torch.bool, device=device)
    for progress in engine.run(batch, request.chain, noise.to(device)):
        batch, sound, step = progress.batch, sound & progress.sound, progress.step
        faults |= progress.faults
        if request.preview:
            is_last = step is steps[-1] or steps[step.index + 1].target != step.target
            saver.preview(progress, film, works, is_last)
        yield Stepped(
            batch.keys, step.target, step.scheme, step.index, len(steps), progress.done, progress.total,
            progress.fixed * len(batch.keys), step.temperature, step.guidance, progress.seconds,
        )  # fmt: skip
    faults |= {index: NOT_FINITE for index, is_sound in enumerate(sound.tolist()) if not is_sound}
    for index in sorted(faults):
        yield saver.fail(works[index], faults[index])

    def save(group: Sequence[int]) -> Iterator[Event]:
        if left := [index for index in group if not saver.is_done(works[index])]:
            made = batch.select(torch.tensor(left, device=device))
            yield from saver.save([rows[index] for index in left], made)

    yield from saving.each([index for index in range(len(rows)) if index not in faults], save)
