"""The only file that knows all the parts: a request in, events out, files written.

`run` loads what a chain needs, turns samples into batches, lets the engine decode them and writes every
sample's files as soon as its batch is done. A sample depends on (model, chain, seed, sample, variation)
alone, so batches, processes and resumed runs all lead to the same folder.
"""

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fourm import __version__
from fourm.checkpoint import check_files, load_model, load_tokenizer
from fourm.codecs import Codec, build_codec
from fourm.codecs.files import write_ids
from fourm.codecs.images import Diffusion, GridCodec, rows_at_once
from fourm.conditions import Conditions, Given, Prepared, Work
from fourm.device import choose_batch_size, choose_device, choose_dtype
from fourm.engine import RELEASED_SENTINELS, Engine, Progress, with_targets
from fourm.errors import FourMError, SampleError
from fourm.events import (
    Detokenized,
    Event,
    Failed,
    Finished,
    Loading,
    Malformed,
    Noted,
    Saved,
    Started,
    Stepped,
)
from fourm.grammars.structured import Structured
from fourm.inputs import CAPTION
from fourm.layers import set_attention
from fourm.layout import is_done, path_of, write_atomic, write_text
from fourm.model import FourM
from fourm.outputs import MALFORMED, Output, count_evaluations, make_record, plan_outputs, tokenizers_of
from fourm.preview import PREVIEWS, write_previews
from fourm.record import Launch, add_failure, close_output, now, open_output
from fourm.request import PREVIEW_STEPS, Request
from fourm.sampling import Noise
from fourm.state import Batch
from fourm.wordpiece import WordPiece

NOT_FINITE = (
    "the network's results are not finite numbers: its weights are damaged, a guidance scale is too large, "
    "or float16 is too narrow for it (try --dtype float32)"
)


def run(request: Request) -> Iterator[Event]:
    """Make every sample of the request that is not there yet, and say what happens on the way.

    Errors of the request (exit code 2) and of missing files (4) come before anything is loaded. A sample
    that fails is reported and noted in failures.jsonl; the others go on.
    """
    started = time.perf_counter()
    device, dtype = choose_device(request.device, request.world), choose_dtype(request.dtype)
    set_attention(torch.nn.Identity(), request.attention, device)  # said before anything is loaded
    outputs = plan_outputs(request)
    check_files(request.model, tokenizers_of(outputs))
    record = make_record(request, outputs, device, dtype)
    launch = Launch(request.world.rank, request.world.size, now())
    number = open_output(request.out, record, launch, request.resume, request.overwrite)
    tally = Tally()
    try:
        yield from _generate(request, outputs, device, dtype, tally)
    except OSError as error:
        raise FourMError(f"{error.filename or request.out}: cannot be written ({error.strerror})") from error
    finally:
        seconds = time.perf_counter() - started
        ended = Launch(
            launch.rank, launch.size, launch.started, now(),
            len(tally.saved), tally.skipped, tally.failed, round(seconds, 3),
        )  # fmt: skip
        close_output(request.out, number, ended, tally.saved)
    yield Finished(len(tally.saved), tally.skipped, tally.failed, seconds)


@dataclass(slots=True)
class Tally:
    """What a run has done so far."""

    saved: set[tuple[str, int]] = field(default_factory=set)
    skipped: int = 0
    failed: int = 0


def _generate(
    request: Request, outputs: list[Output], device: torch.device, dtype: torch.dtype, tally: Tally
) -> Iterator[Event]:
    """The work of one process: load, then batch after batch."""
    everything = [
        Work(s, v)
        for s in sorted(request.samples, key=lambda s: s.key)
        for v in range(request.num_variations)
    ]
    mine = request.world.share(everything)
    todo = [work for work in mine if not _is_made(request, outputs, work)]
    tally.skipped = len(mine) - len(todo)
    size = request.batch_size or choose_batch_size(request, device)
    steps = len(request.chain.steps)
    evaluations = count_evaluations(request, outputs)
    yield Started(len(mine), tally.skipped, size, request.model.name, str(device), steps, evaluations)
    if not todo:
        return
    yield Loading(f"model {request.model.name}")
    parts = load_parts(request, outputs, device, dtype)
    groups = [todo[first : first + size] for first in range(0, len(todo), size)]
    for prepared in Conditions(request, parts.codecs).prepared(groups):
        yield from _make_batch(request, parts, outputs, prepared, tally)


def _is_made(request: Request, outputs: list[Output], work: Work) -> bool:
    places = [output.place for output in outputs]
    return is_done(request.out, work.sample.key, places, _suffix(request, work.variation))


def _suffix(request: Request, variation: int) -> int | None:
    """The variation as file names show it: only where there is more than one."""
    return variation if request.num_variations > 1 else None


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything loaded for a run."""

    network: FourM
    codecs: Mapping[str, Codec[Any]]  # by modality
    sentinels: range
    device: torch.device


def load_parts(
    request: Request, outputs: Sequence[Output], device: torch.device, dtype: torch.dtype
) -> Parts:
    """The transformer, the text tokenizer, and the codecs with their tokenizers."""
    model = request.model
    wordpiece = WordPiece.load(model.text_tokenizer) if model.text_tokenizer is not None else None
    tokenizers = {
        name: load_tokenizer(model.tokenizers[name], device, dtype, part)
        for name, part in tokenizers_of(outputs).items()
    }
    codecs = {
        o.modality.name: build_codec(o.modality, tokenizers.get(o.modality.tokenizer), wordpiece)
        for o in outputs
    }
    network = load_model(model, device, dtype)
    for module in (network, *tokenizers.values()):
        set_attention(module, request.attention, device)
    sentinels = wordpiece.sentinels if wordpiece is not None else RELEASED_SENTINELS
    return Parts(network, codecs, sentinels, device)


def _make_batch(
    request: Request, parts: Parts, outputs: list[Output], prepared: Prepared, tally: Tally
) -> Iterator[Event]:
    """Decode and write one batch; what cannot be read or written is left out and reported."""
    rows = prepared.rows
    for work, reason in prepared.failures:
        yield _fail(request, work, reason, tally)
    for row in rows:
        for name, notes in row.notes.items():
            yield Noted(row.work.sample.key.text, row.work.variation, name, notes)
    if not rows:
        return
    batch = with_targets(prepared.batch, request.chain, request.model.registry).to(parts.device)
    noise = Noise.for_samples(request.seed, [(row.work.sample.key.text, row.work.variation) for row in rows])
    engine = Engine(parts.network, parts.sentinels)
    sound = torch.ones(len(rows), dtype=torch.bool, device=parts.device)
    for progress in engine.run(batch, request.chain, noise.to(parts.device)):
        batch, sound = progress.batch, sound & progress.sound
        if request.preview and (progress.step.index + 1) % request.preview == 0:
            _write_previews(request, parts, progress, [row.work for row in rows])
        yield _stepped(progress, len(request.chain.steps))
    are_sound = sound.tolist()
    for row in (row for row, is_sound in zip(rows, are_sound, strict=True) if not is_sound):
        yield _fail(request, row.work, NOT_FINITE, tally)
    finished = [index for index, is_sound in enumerate(are_sound) if is_sound]
    size = rows_at_once(parts.device)
    for first in range(0, len(finished), size):
        group = finished[first : first + size]
        made = batch.select(torch.tensor(group, device=parts.device))
        yield from _save(request, parts, outputs, [rows[index] for index in group], made, tally)


def _write_previews(request: Request, parts: Parts, progress: Progress, works: list[Work]) -> None:
    name = progress.step.target
    row, suffix = request.model.registry.get(name), f"-step{progress.step.index:03d}{PREVIEWS.suffix}"
    folder = f"{PREVIEWS.folder}/{name}"
    paths = [path_of(request.out, folder, w.sample.key, suffix, _suffix(request, w.variation)) for w in works]
    diffusion = _diffusion(request, name, works, min(PREVIEW_STEPS, request.detokenizer_steps))
    with suppress(SampleError):  # it will come again, and be reported, when the result is decoded
        write_previews(request.out, paths, row, parts.codecs[name], progress.batch.slots[name], diffusion)


def _stepped(progress: Progress, steps: int) -> Stepped:
    step = progress.step
    return Stepped(
        progress.batch.keys, step.target, step.scheme, step.index, steps, progress.done, progress.total,
        progress.fixed * len(progress.batch.keys), step.temperature, step.guidance, progress.seconds,
    )  # fmt: skip


def _save(
    request: Request, parts: Parts, outputs: list[Output], rows: list[Given], batch: Batch, tally: Tally
) -> Iterator[Event]:
    """Write all files of some finished samples; each file appears whole or not at all.

    Tokens come first. Values are decoded together; where that fails, each sample is tried alone.
    """
    works = [row.work for row in rows]
    for output in outputs:
        if output.form == "ids":
            _write_ids(request, output, rows, batch)
    decoded = dict[str, list[Any]]()
    try:
        for output in outputs:
            if output.form == "value" and not output.is_condition:
                name = output.modality.name
                decoded[name] = yield from _decode(request, parts, name, works, batch)
    except SampleError as error:
        if len(rows) == 1:
            yield _fail(request, works[0], str(error), tally)
            return
        for index, row in enumerate(rows):
            alone = batch.select(torch.tensor([index], device=parts.device))
            yield from _save(request, parts, outputs, [row], alone, tally)
        return
    for index, (work, row) in enumerate(zip(works, rows, strict=True)):
        given = {**row.values, **{name: made[index] for name, made in decoded.items()}}
        text = _chunks(request, work, row.values)
        shared_text = {key: said for key, said in text.items() if key != "variation"}  # whoever writes first
        yield from _write_malformed(request, work, {name: made[index] for name, made in decoded.items()})
        try:
            for output in outputs:
                if output.form == "value":
                    said = shared_text if output.place.shared else text
                    write = partial(parts.codecs[output.modality.name].write, text=said)
                    _write(request, output, work, partial(write, given[output.modality.name]))
        except SampleError as error:
            yield _fail(request, work, str(error), tally)
            continue
        tally.saved.add((work.sample.key.text, work.variation))
        yield Saved(work.sample.key.text, work.variation, tuple(_path(request, o, work) for o in outputs))


def _decode(
    request: Request, parts: Parts, name: str, works: list[Work], batch: Batch
) -> Generator[Event, None, list[Any]]:
    """The values of one target; a diffusion reports its steps."""
    codec, slot = parts.codecs[name], batch.slots[name]
    if not (isinstance(codec, GridCodec) and codec.diffuses):
        return codec.decode(slot)
    steps = codec.decode_stepwise(slot, _diffusion(request, name, works, request.detokenizer_steps))
    keys = tuple(work.sample.key.text for work in works)
    while True:
        started = time.perf_counter()
        try:
            done, total = next(steps)
        except StopIteration as end:
            return end.value
        yield Detokenized(keys, name, done, total, time.perf_counter() - started)


def _diffusion(request: Request, name: str, works: list[Work], steps: int) -> Diffusion:
    """Noise that belongs to the sample, as everywhere, and to the modality."""
    samples = [(work.sample.key.text, work.variation) for work in works]
    return Diffusion(steps, Noise.for_samples(request.seed, samples, f"detokenizer {name}"))


def _write_malformed(request: Request, work: Work, made: Mapping[str, Any]) -> Iterator[Event]:
    """Keep the texts that do not keep to their grammar, and tell of them."""
    for name, value in made.items():
        if isinstance(value, Structured) and value.problems:
            folder = f"{MALFORMED.folder}/{name}"
            suffix = _suffix(request, work.variation)
            path = path_of(request.out, folder, work.sample.key, MALFORMED.suffix, suffix)
            said = json.dumps({"text": value.text, "problems": value.problems}, ensure_ascii=False)
            write_text(request.out, path, said + "\n")
            yield Malformed(work.sample.key.text, work.variation, name, value.problems)


def _write_ids(request: Request, output: Output, rows: list[Given], batch: Batch) -> None:
    name = output.modality.name
    for index, row in enumerate(rows):
        ids = row.ids[name] if output.is_condition else batch.slots[name].values[index].cpu().numpy()
        _write(request, output, row.work, partial(write_ids, ids))


def _write(request: Request, output: Output, work: Work, write: Callable[[Path], None]) -> None:
    path = _path(request, output, work)
    if not (output.place.shared and path.exists()):  # another variation may have written the condition
        write_atomic(request.out, path, write)


def _path(request: Request, output: Output, work: Work) -> Path:
    place = output.place
    variation = None if place.shared else _suffix(request, work.variation)
    return path_of(request.out, place.folder, work.sample.key, place.suffix, variation)


def _chunks(request: Request, work: Work, values: Mapping[str, Any]) -> dict[str, str]:
    """What the text chunks of a PNG say: enough to make it again."""
    registry = request.model.registry
    prompts = [value for name, value in values.items() if registry.get(name).codec == CAPTION]
    said = {"prompt": prompts[0]} if prompts else {}
    return {
        "software": f"fourm {__version__}",
        **said,
        "model": request.model.name,
        "seed": str(request.seed),
        "sample": work.sample.key.text,
        "variation": str(work.variation),
        "schedule": request.chain.to_text(),
    }


def _fail(request: Request, work: Work, reason: str, tally: Tally) -> Failed:
    tally.failed += 1
    add_failure(request.out, work.sample.key.text, work.variation, reason)
    return Failed(work.sample.key.text, work.variation, reason)
