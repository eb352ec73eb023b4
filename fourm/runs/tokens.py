"""Makes the tokens of samples: their crops, what tokenizers read of them, one modality after the other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from fourm.codecs.files import read_crop_rows, read_crops, read_frame, read_size
from fourm.codecs.images import GridCodec, rows_at_once
from fourm.codecs.maps import FORMS
from fourm.data.layout import (
    CROP_SETTINGS,
    FRAME,
    NUM_UNIFORMS,
    PICTURES,
    VALID_PIXELS,
    Crop,
    Fit,
    Key,
    Sample,
    fit_crop,
    random_crop,
)
from fourm.decoding.sampling import Noise
from fourm.errors import SampleError, UsageError
from fourm.hub.header import TokenizerPart
from fourm.inputs.request import TokenizeRequest
from fourm.modalities.registry import Modality
from fourm.networks.attention import check_kernel
from fourm.networks.checkpoint import tokenizer_config
from fourm.networks.precision import check_compiler, choose_dtype, torch_dtype
from fourm.results.background import BESIDE, ahead, in_threads
from fourm.results.events import Event, Failed, Loading, Saved
from fourm.results.job import TokenJob
from fourm.results.portions import Portions
from fourm.results.token_files import TokenFiles
from fourm.runs.device import check_tokenizing_memory, choose_device
from fourm.runs.loaded import LoadedModel

Inputs = dict[str, list[Tensor]]  # by modality, for each crop of a sample


@dataclass(slots=True)
class Untokenized:
    """A sample, the modalities of it that are still to be made, and what became of them."""

    sample: Sample
    rows: tuple[Modality, ...]
    crops: tuple[Crop, ...] | None = None  # None: not known
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Work:
    """What makes tokens, and where they go."""

    job: TokenJob
    files: TokenFiles
    codecs: Mapping[str, GridCodec]  # by modality
    portions: Portions  # of crops that go through a tokenizer together


def check_tokenizing(request: TokenizeRequest) -> TokenJob:
    """Check a request before anything is loaded, and choose its device, dtype and number of crops."""
    device = choose_device(request.device, request.world)
    request = replace(request, dtype=choose_dtype(request.dtype, device))
    check_kernel(request.attention, device, torch.empty(0, dtype=torch_dtype(request.dtype), device=device))
    if request.compile:
        check_compiler(device)
    for row in request.rows:
        path = request.model.tokenizers[row.tokenizer]
        if row.codec not in FORMS:
            raise UsageError(f"{row.name}: its values are not made of pictures or maps")
        if FORMS[row.codec].is_labels != (has_labels := tokenizer_config(path).n_labels is not None):
            has = "class numbers" if has_labels else "no class numbers"
            raise UsageError(f"{row.name}: its tokenizer {path} reads {has}")
    request = replace(request, num_crops=count_crops(request, request.samples))
    check_tokenizing_memory(request, device)
    return TokenJob(request, device)


def count_crops(request: TokenizeRequest, samples: Sequence[Sample]) -> int:
    """The number of crops, which must be that of crop settings which are there already."""
    found = next((path for sample in samples if (path := sample.files.get(CROP_SETTINGS))), None)
    there = 0
    with suppress(SampleError):  # this one sample fails with it later
        there = len(read_crop_rows(found)) if found is not None else 0
    if there and request.num_crops not in (None, there):
        why = "other tokens of this dataset may belong to them, so the numbers must be the same"
        raise UsageError(f"`crops={request.num_crops}`: {found} has {there}; {why}")
    count = there or request.num_crops or 1
    features = [row.name for row in request.rows if FORMS[row.codec].resample is None]
    if count > 1 and features:
        why = f"features of a picture cannot be cropped, so there can be one crop only, not {count}"
        raise UsageError(f"{features[0]}: {why}")
    return count


def draw_crops(
    seed: int, key: Key, whole: tuple[int, int], count: int, min_scale: float, fit: Fit = "crop"
) -> tuple[Crop, ...]:
    """The square of a picture, then count - 1 random crops that depend on nothing but what is given here."""
    noise = Noise.for_samples(seed, [(key.text, number) for number in range(1, count)], "crop")
    places = torch.arange(NUM_UNIFORMS).expand(count - 1, -1)
    uniforms = enumerate(noise.uniforms(0, 0, places).tolist(), start=1)
    return (fit_crop(fit, *whole), *(random_crop(*whole, min_scale, row, number) for number, row in uniforms))


def untokenized(request: TokenizeRequest, files: TokenFiles, sample: Sample) -> Untokenized:
    """A sample, and which of its token files are not there yet."""
    one = Untokenized(sample, tuple(row for row in request.rows if row.name in sample.files))
    try:
        if sample.problem:
            raise SampleError(sample.problem)
        one.rows = tuple(row for row in one.rows if not files.holds(row, sample.key))
    except SampleError as error:
        one.problems.append(str(error))
    return one


def tokenize(
    job: TokenJob, loaded: LoadedModel, found: Sequence[Untokenized], files: TokenFiles,
    begin: Callable[[], object] = lambda: None,
) -> Iterator[Event]:  # fmt: skip
    """Load the tokenizers, call `begin`, and make tokens; events of all that happens."""
    rows = {row.name: row for one in found if not one.problems for row in one.rows}
    names = sorted({row.tokenizer for row in rows.values()})
    if any(job.request.model.tokenizers[name] not in loaded.tokenizers for name in names):
        yield Loading(f"tokenizers {', '.join(names)}")
    encoders = {name: loaded.tokenizer(name, TokenizerPart.ENCODER) for name in names}
    codecs = {row.name: GridCodec(row, FORMS[row.codec], encoders[row.tokenizer]) for row in rows.values()}
    begin()
    work = _Work(job, files, codecs, Portions(rows_at_once(job.device), job.device, job.dtype))
    batches = [found[first : first + job.batch_size] for first in range(0, len(found), job.batch_size)]
    read = ahead if job.device.type in BESIDE else map
    for batch, inputs in zip(batches, read(partial(_read_batch, work), batches), strict=True):
        yield from _make_batch(work, batch, inputs)


def _read_batch(work: _Work, batch: Sequence[Untokenized]) -> list[Inputs]:
    """What tokenizers read of each sample."""
    return [*in_threads(partial(_read, work), batch)]


def _read(work: _Work, one: Untokenized) -> Inputs:
    """What tokenizers read of a sample; its problems are noted in it."""
    inputs = Inputs()
    try:
        one.crops = None if one.problems else _crops_of(work, one)
    except SampleError as error:
        one.problems.append(str(error))
    for name, codec in work.codecs.items():
        if codec.row not in one.rows or one.crops is None:
            continue
        try:
            inputs[name] = _inputs_of(codec, one.sample, one.crops)
        except SampleError as error:
            path, text = one.sample.files[name], str(error)
            one.problems.append(text if text.startswith(f"{path}:") else f"{path}: {text}")
    return inputs


def _make_batch(work: _Work, batch: Sequence[Untokenized], inputs: Sequence[Inputs]) -> Iterator[Event]:
    """Tokenize and write what was read of some samples, one modality of all of them after the other."""
    for name, codec in work.codecs.items():
        if ready := [(one, read[name]) for one, read in zip(batch, inputs, strict=True) if name in read]:
            yield from _make_tokens(work, codec, ready)
    for one in batch:
        key = one.sample.key
        if reason := "; ".join(one.problems):
            work.files.fail(key, one.rows, reason)
            yield Failed(key.text, 0, reason)
        else:
            yield Saved(key.text, 0, work.files.finish(key, one.rows))


def _crops_of(work: _Work, one: Untokenized) -> tuple[Crop, ...]:
    """The crops of a sample, none for features: those that its files say, or new ones, which are written."""
    request, sample = work.job.request, one.sample
    maps = [row.name for row in one.rows if FORMS[row.codec].resample is not None]
    if not maps:
        return ()
    whole = read_size(sample.files.get(PICTURES) or sample.files[maps[0]])
    kept = work.files.crops(sample.key)
    there = kept or sample.files.get(CROP_SETTINGS)
    if there is not None:
        crops = read_crops(there, whole)
    elif (recorded := sample.files.get(FRAME)) is not None and (frame := read_frame(recorded)).restored:
        there, crops = recorded, (frame.crop,)
        if frame.crop.whole != whole:
            raise SampleError(f"{recorded}: is of another picture than {sample.files[maps[0]]}")
    else:
        count = work.job.num_crops
        crops = draw_crops(request.seed, sample.key, whole, count, request.min_scale, request.fit)
    if there is not None and request.fit == "pad" and crops[0] != fit_crop("pad", *whole):
        raise SampleError(f"{there}: says which part is read, but `fit=pad` reads the whole picture")
    if len(crops) != work.job.num_crops:
        raise SampleError(f"{there}: has {len(crops)} crops, where there are {work.job.num_crops} of others")
    if kept is None and not work.files.keep_crops(sample.key, crops, are_drawn=there is None):
        return _crops_of(work, one)  # a process with other modalities was first
    return crops


def _inputs_of(codec: GridCodec, sample: Sample, crops: Sequence[Crop]) -> list[Tensor]:
    """The input of the tokenizer for each crop; features have one input and no crops."""
    path = sample.files[codec.row.name]
    valid = sample.files.get(VALID_PIXELS) if codec.takes_mask else None
    value = codec.read(path)
    if codec.form.resample is None:
        return [codec.prepare(value)]
    return [
        codec.prepare(codec.cut(value, crop, path), codec.read_mask(valid, crop) if valid else None)
        for crop in crops
    ]


def _make_tokens(
    work: _Work, codec: GridCodec, ready: Sequence[tuple[Untokenized, list[Tensor]]]
) -> Iterator[Event]:
    """Tokenize and write what was read of samples; where all together fail, each is tried alone."""
    made = list[Tensor]()  # (crops, L) each

    def encode(crops: Sequence[Tensor]) -> Iterator[Event]:
        made.append(codec.tokenize(crops))
        yield from ()

    try:
        yield from work.portions.each([x for _, crops in ready for x in crops], encode)
    except SampleError as error:
        if len(ready) == 1:
            ready[0][0].problems.append(str(error))
        for alone in ready if len(ready) > 1 else ():
            yield from _make_tokens(work, codec, [alone])
        return
    for (one, _), ids in zip(ready, torch.cat(made).chunk(len(ready)), strict=True):
        work.files.write(codec.row, one.sample.key, ids)
