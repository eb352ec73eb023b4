"""`fourm tokenize`: pictures and maps in, token files out, the same crops for all modalities of a sample.

A sample's tokens depend on (tokenizer, seed, sample, crops) alone. Complete files are kept, so the same
command goes on where an earlier one stopped, and processes share nothing but the folder.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fourm import __version__
from fourm.codecs.files import (
    pack_ids,
    read_array,
    read_crop_rows,
    read_crops,
    read_frame,
    read_json,
    read_size,
    write_crops,
)
from fourm.codecs.images import GridCodec, rows_at_once
from fourm.codecs.maps import FORMS
from fourm.data.dataset import TOKENIZER
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
    path_of,
    random_crop,
)
from fourm.decoding.sampling import Noise
from fourm.errors import SampleError, UsageError
from fourm.files.writing import (
    check_root,
    create_atomic,
    create_text,
    make_all,
    remove_leftovers,
    write_data,
    write_text,
)
from fourm.hub.digests import sha256_of
from fourm.hub.files import weights_of
from fourm.hub.header import AUTO, DTYPES, TokenizerPart
from fourm.inputs.request import TokenizeRequest
from fourm.modalities.registry import Modality
from fourm.networks.attention import check_kernel, set_attention
from fourm.networks.checkpoint import load_tokenizer, tokenizer_config
from fourm.networks.layers import compile_blocks
from fourm.networks.precision import arithmetic, check_compiler, choose_dtype, torch_dtype
from fourm.output.joining import check_names
from fourm.output.processes import ANY_RUN, Launch, Process, now, write_failures
from fourm.output.record import BASE, RUN, SR_RUN
from fourm.output.samples import load_run
from fourm.results.background import BESIDE, ahead, in_threads
from fourm.results.events import Event, Failed, Finished, Loading, Saved, Started
from fourm.results.portions import Portions, as_fourm_errors
from fourm.runs.device import check_tokenizing_memory, choose_device

Inputs = dict[str, list[Tensor]]  # by modality, for each crop of a sample
_FIT = {"fit": "crop"}  # where a record of tokens says nothing of it


@dataclass(slots=True)
class Tokenizing:
    """One run of `tokenize`: what was decided for it, and what it has done so far."""

    request: TokenizeRequest
    num_crops: int
    portions: Portions  # of crops that go through a tokenizer together
    process: Process
    codecs: dict[str, GridCodec] = field(default_factory=dict)  # by modality, of those that are to be made
    saved: int = 0
    skipped: int = 0
    failed: int = 0

    def path(self, row: str, key: Key) -> Path:
        """The file for the tokens of one sample."""
        return path_of(self.request.out, row, key, ".npy")


@dataclass(slots=True)
class Untokenized:
    """A sample, the modalities of it that are still to be made, and what became of them."""

    sample: Sample
    rows: tuple[Modality, ...]
    crops: tuple[Crop, ...] | None = None  # None: not known
    problems: list[str] = field(default_factory=list)


def tokenize_dataset(request: TokenizeRequest) -> Iterator[Event]:
    """Make the token files that are not there yet, and say what happens on the way.

    A sample that fails is reported and noted in failures.jsonl; the others go on.
    """
    started = time.perf_counter()
    device = choose_device(request.device, request.world)
    dtype = choose_dtype(_begun_dtype(request), device)
    request = replace(request, dtype=dtype)
    # An error before anything is loaded.
    check_kernel(request.attention, device, torch.empty(0, dtype=torch_dtype(dtype), device=device))
    if request.compile:
        check_compiler(device)
    for row in request.rows:
        path = request.model.tokenizers[row.tokenizer]
        if row.codec not in FORMS:
            raise UsageError(f"{row.name}: its values are not made of pictures or maps")
        if FORMS[row.codec].is_labels != (has_labels := tokenizer_config(path).n_labels is not None):
            has = "class numbers" if has_labels else "no class numbers"
            raise UsageError(f"{row.name}: its tokenizer {path} reads {has}")
    num_crops = _count_crops(request)
    check_tokenizing_memory(request, device)
    _check_output(request)
    process = Process(request.out, ANY_RUN, Launch(request.world.rank, request.world.size, now()))
    run = Tokenizing(request, num_crops, Portions(rows_at_once(device), device, dtype), process)
    for row in request.rows:
        _check_origin(run, row)
    try:
        with as_fourm_errors(device, dtype, request.out), arithmetic(dtype):
            yield from _tokenize(run)
    finally:
        if request.out.is_dir():
            write_failures(request.out)
            remove_leftovers(request.out)
    yield Finished(run.saved, run.skipped, run.failed, time.perf_counter() - started)


def draw_crops(
    seed: int, key: Key, whole: tuple[int, int], count: int, min_scale: float, fit: Fit = "crop"
) -> tuple[Crop, ...]:
    """The square of a picture, then count - 1 random crops that depend on nothing but what is given here."""
    noise = Noise.for_samples(seed, [(key.text, number) for number in range(1, count)], "crop")
    places = torch.arange(NUM_UNIFORMS).expand(count - 1, -1)
    uniforms = enumerate(noise.uniforms(0, 0, places).tolist(), start=1)
    return (fit_crop(fit, *whole), *(random_crop(*whole, min_scale, row, number) for number, row in uniforms))


def _count_crops(request: TokenizeRequest) -> int:
    """The number of crops, which must be that of crop settings which are there already."""
    found = next((path for s in request.samples if (path := s.files.get(CROP_SETTINGS))), None)
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


def _check_output(request: TokenizeRequest) -> None:
    """Refuse a folder that has something else in the place of ours, or with `overwrite`, results of a run."""
    check_root(request.out, *(row.name for row in request.rows), CROP_SETTINGS)
    check_names(request.out)
    for file in (RUN, SR_RUN) if request.overwrite else ():
        try:
            taken = {place.folder for place in load_run(request.out, file).record.places}
        except UsageError:  # there is none, or it is of another program, which may name its files so
            continue
        if found := next((row.name for row in request.rows if row.name in taken), None):
            what = f"`overwrite=True` would replace results of the run in {request.out / file}"
            raise UsageError(f"{request.out / found}: {what}; name another folder with `out`")


def _origin(run: Tokenizing, row: Modality) -> dict[str, object]:
    digest = sha256_of(weights_of(run.request.model.tokenizers[row.tokenizer]))
    return {"tokenizer": digest, "crops": run.num_crops, "dtype": run.portions.dtype,
            "attention": run.request.attention, "device": run.portions.device.type,
            **({"fit": run.request.fit} if run.request.fit != _FIT["fit"] else {}),
            **({"compile": True} if run.request.compile else {})}  # fmt: skip


def _begun_dtype(request: TokenizeRequest) -> str:
    """The dtype that is asked for; of `auto`, that in which tokens are there already, if some are."""
    for row in request.rows if request.dtype == AUTO and not request.overwrite else ():
        with suppress(SampleError, OSError):  # `_check_origin` says what is wrong with it
            there = read_json(request.out / row.name / TOKENIZER)
            if isinstance(there, dict) and there.get("dtype") in list(DTYPES):
                return str(there["dtype"])
    return request.dtype


def _check_origin(run: Tokenizing, row: Modality) -> None:
    """Refuse a folder of tokens that was begun with something else."""
    path, advice = run.request.out / row.name / TOKENIZER, "`overwrite=True` makes all tokens anew"
    if run.request.overwrite or not path.exists():
        return
    try:
        there = read_json(path)
    except SampleError as error:
        raise UsageError(f"{error}; {advice}") from error
    if not isinstance(there, dict):
        raise UsageError(f"{path}: is not a record of this program; {advice}")
    there = _FIT | there
    for name, value in (_FIT | _origin(run, row)).items():
        if there.get(name) != value:
            what = f"was begun with other settings: {name} is {there.get(name)} there and {value} here"
            raise UsageError(f"{path.parent}: {what}; {advice}")


def _tokenize(run: Tokenizing) -> Iterator[Event]:
    """The work of one process. Nothing is written before all is loaded."""
    request, device, dtype = run.request, run.portions.device, torch_dtype(run.portions.dtype)
    mine, found = request.world.share(request.samples), list[Untokenized]()
    for sample in mine:
        one = Untokenized(sample, tuple(row for row in request.rows if row.name in sample.files))
        try:
            if sample.problem:
                raise SampleError(sample.problem)
            one.rows = tuple(row for row in one.rows if not _is_made(run, row, sample.key))
        except SampleError as error:
            one.problems.append(str(error))
        found += [one] if one.rows or one.problems else []
    run.skipped = len(mine) - len(found)
    size = request.batch_size or run.portions.rows
    width = run.portions.dtype
    yield Started(len(mine), run.skipped, size, request.model.name, str(device), 0, dtype=width)
    if needed := {row.name: row for one in found if not one.problems for row in one.rows}:
        names = sorted({row.tokenizer for row in needed.values()})
        yield Loading(f"tokenizers {', '.join(names)}")
        paths = {name: request.model.tokenizers[name] for name in names}
        encoders = {name: load_tokenizer(paths[name], device, dtype, TokenizerPart.ENCODER) for name in names}
        for row in needed.values():
            set_attention(encoders[row.tokenizer], request.attention, device)
            if request.compile:
                compile_blocks(encoders[row.tokenizer])
            run.codecs[row.name] = GridCodec(row, FORMS[row.codec], encoders[row.tokenizer])
    make_all(request.out)
    remove_leftovers(request.out)
    for row in request.rows:  # note in each folder of tokens what makes them
        path = request.out / row.name / TOKENIZER
        origin = {**_origin(run, row), "fourm": __version__, "model": request.model.name}
        text = json.dumps(origin, indent=1) + "\n"
        is_new = not path.parent.is_dir() or not any(path.parent.iterdir())
        if request.overwrite:
            write_text(request.out, path, text)
        elif not (is_new and create_text(request.out, path, text)):  # or another process was first
            _check_origin(run, row)
    batches = [found[first : first + size] for first in range(0, len(found), size)]
    read = ahead if device.type in BESIDE else map
    for batch, inputs in zip(batches, read(partial(_read_batch, run), batches), strict=True):
        yield from _make_batch(run, batch, inputs)


def _read_batch(run: Tokenizing, batch: Sequence[Untokenized]) -> list[Inputs]:
    """What tokenizers read of each sample."""
    return [*in_threads(partial(_read, run), batch)]


def _read(run: Tokenizing, one: Untokenized) -> Inputs:
    """What tokenizers read of a sample; its problems are noted in it."""
    inputs = Inputs()
    try:
        one.crops = None if one.problems else _crops_of(run, one)
    except SampleError as error:
        one.problems.append(str(error))
    for name, codec in run.codecs.items():
        if codec.row not in one.rows or one.crops is None:
            continue
        try:
            inputs[name] = _inputs_of(codec, one.sample, one.crops)
        except SampleError as error:
            path, text = one.sample.files[name], str(error)
            one.problems.append(text if text.startswith(f"{path}:") else f"{path}: {text}")
    return inputs


def _make_batch(run: Tokenizing, batch: Sequence[Untokenized], inputs: Sequence[Inputs]) -> Iterator[Event]:
    """Tokenize and write what was read of some samples, one modality of all of them after the other."""
    for name, codec in run.codecs.items():
        if ready := [(one, read[name]) for one, read in zip(batch, inputs, strict=True) if name in read]:
            yield from _make_tokens(run, codec, ready)
    for one in batch:
        key, paths = one.sample.key.text, tuple(run.path(row.name, one.sample.key) for row in one.rows)
        if reason := "; ".join(one.problems):
            run.failed += 1
            run.process.add_failure(key, 0, reason, BASE, paths)
            yield Failed(key, 0, reason)
        else:
            run.saved += 1
            yield Saved(key, 0, paths)


def _crops_of(run: Tokenizing, one: Untokenized) -> tuple[Crop, ...]:
    """The crops of a sample, none for features: those that its files say, or new ones, which are written."""
    request, sample = run.request, one.sample
    maps = [row.name for row in one.rows if FORMS[row.codec].resample is not None]
    if not maps:
        return ()
    whole = read_size(sample.files.get(PICTURES) or sample.files[maps[0]])
    path = run.path(CROP_SETTINGS, sample.key)
    there = path if path.is_file() else sample.files.get(CROP_SETTINGS)
    if there is not None:
        crops = read_crops(there, whole)
    elif (recorded := sample.files.get(FRAME)) is not None and (frame := read_frame(recorded)).restored:
        there, crops = recorded, (frame.crop,)
        if frame.crop.whole != whole:
            raise SampleError(f"{recorded}: is of another picture than {sample.files[maps[0]]}")
    else:
        crops = draw_crops(request.seed, sample.key, whole, run.num_crops, request.min_scale, request.fit)
    if there is not None and request.fit == "pad" and crops[0] != fit_crop("pad", *whole):
        raise SampleError(f"{there}: says which part is read, but `fit=pad` reads the whole picture")
    if len(crops) != run.num_crops:
        raise SampleError(f"{there}: has {len(crops)} crops, where there are {run.num_crops} of others")
    if there is None and run.num_crops > 1 and not request.overwrite:
        for row in request.rows:  # new random crops would not be those of older tokens
            if (tokens := run.path(row.name, sample.key)).is_file():
                raise SampleError(f"{tokens}: shows crops of which there is no file in {CROP_SETTINGS}")
    if there != path and not create_atomic(request.out, path, partial(write_crops, crops)):
        return _crops_of(run, one)  # a process with other modalities was first
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
    run: Tokenizing, codec: GridCodec, ready: Sequence[tuple[Untokenized, list[Tensor]]]
) -> Iterator[Event]:
    """Tokenize and write what was read of samples; where all together fail, each is tried alone."""
    made = list[Tensor]()  # (crops, L) each

    def tokenize(crops: Sequence[Tensor]) -> Iterator[Event]:
        made.append(codec.tokenize(crops))
        yield from ()

    try:
        yield from run.portions.each([x for _, crops in ready for x in crops], tokenize)
    except SampleError as error:
        if len(ready) == 1:
            ready[0][0].problems.append(str(error))
        for alone in ready if len(ready) > 1 else ():
            yield from _make_tokens(run, codec, [alone])
        return
    for (one, _), ids in zip(ready, torch.cat(made).chunk(len(ready)), strict=True):
        path = run.path(codec.row.name, one.sample.key)
        write_data(run.request.out, path, pack_ids(ids.numpy()))


def _is_made(run: Tokenizing, row: Modality, key: Key) -> bool:
    """True for a complete token file; one with other contents is refused: it may be the user's own."""
    path = run.path(row.name, key)
    if run.request.overwrite or not path.is_file() or path.stat().st_size == 0:  # as a power cut leaves it
        return False
    ids = read_array(path)
    wanted = (run.num_crops, row.max_tokens)
    if ids.dtype.kind not in "iu" or ids.shape != wanted or ids.min() < 0 or ids.max() >= row.vocab_size:
        due = f"{wanted[0]} crops of {wanted[1]} tokens in 0..{row.vocab_size - 1}"
        raise SampleError(
            f"{path}: {ids.dtype} of shape {ids.shape} is not {due}; `overwrite=True` makes it anew"
        )
    return True
