"""`fourm tokenize`: pictures and maps in, token files out, the same crops for all modalities of a sample.

A sample's tokens depend on (tokenizer, seed, sample, crops) alone. Whatever is there and whole is left as it
is, so the same command goes on where an earlier one stopped, and processes share nothing but the folder.
"""

import json
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fourm import __version__
from fourm.codecs.crops import count_crops, read_crops, write_crops
from fourm.codecs.files import read_array, read_json, read_size, write_ids
from fourm.codecs.forms import FORMS
from fourm.codecs.images import GridCodec, rows_at_once
from fourm.data.dataset import TOKENIZER
from fourm.data.layout import CROP_SETTINGS, NUM_UNIFORMS, Crop, Key, centre_crop, path_of, random_crop
from fourm.data.writing import (
    check_folder,
    check_root,
    create_atomic,
    create_text,
    make_all,
    remove_leftovers,
    write_atomic,
    write_text,
)
from fourm.decoding.sampling import Noise
from fourm.errors import FourMError, SampleError, UsageError
from fourm.hub.files import weights_of
from fourm.modalities.registry import Modality
from fourm.networks.checkpoint import load_tokenizer, tokenizer_config
from fourm.networks.layers import set_attention
from fourm.networks.precision import arithmetic, choose_dtype, torch_dtype
from fourm.networks.tokenizers.vq import Part
from fourm.output.processes import ANY_RUN, Failure, Launch, Process, lacking, now, write_failures
from fourm.output.record import check_names, sha256_of
from fourm.output.runfile import BASE, RUN, SR_RUN, read_run
from fourm.runs.device import Portions, check_tokenizing_memory, choose_device, is_out_of_memory, too_little
from fourm.runs.events import Event, Failed, Finished, Loading, Saved, Started
from fourm.runs.rawdata import RawSample, TokenizeRequest

_STAGE = "crop"  # of the noise


@dataclass(frozen=True, slots=True)
class Work:
    """A sample and the modalities of it that are still to be made."""

    sample: RawSample
    rows: tuple[Modality, ...]


@dataclass(slots=True)
class Tally:
    """What a run has done so far."""

    process: Process
    saved: set[tuple[str, int]] = field(default_factory=set)
    skipped: int = 0
    failed: int = 0


def tokenize_dataset(request: TokenizeRequest) -> Iterator[Event]:
    """Make the token files that are not there yet, and say what happens on the way.

    A sample that fails is reported and noted in failures.jsonl; the others go on.
    """
    started = time.perf_counter()
    device = choose_device(request.device, request.world)
    dtype = choose_dtype(request.dtype, device)
    set_attention(torch.nn.Identity(), request.attention, device)  # said before anything is loaded
    for row in request.rows:
        _check_row(row, request.model.tokenizers[row.tokenizer])
    num_crops = _count(request)
    features = [row.name for row in request.rows if FORMS[row.codec].resample is None]
    if num_crops > 1 and features:
        raise UsageError(
            f"{features[0]}: features of a picture cannot be cropped, so there can be one crop only, "
            f"not {num_crops}"
        )
    check_tokenizing_memory(request, device)
    _check_output(request)
    tally = Tally(Process(request.out, ANY_RUN, Launch(request.world.rank, request.world.size, now())))
    claims = _claims(request, num_crops, dtype, device)
    try:
        with arithmetic(dtype):
            yield from _tokenize(request, claims, num_crops, device, dtype, tally)
    except (RuntimeError, MemoryError, OSError) as error:
        if is_out_of_memory(error):
            raise too_little(device, dtype) from error
        if not isinstance(error, OSError):
            raise
        raise FourMError(f"{error.filename or request.out}: cannot be written ({error.strerror})") from error
    finally:
        if request.out.is_dir():
            write_failures(request.out)
            remove_leftovers(request.out)
    seconds = time.perf_counter() - started
    yield Finished(len(tally.saved), tally.skipped, tally.failed, seconds)


def draw_crops(seed: int, key: Key, whole: tuple[int, int], count: int, min_scale: float) -> tuple[Crop, ...]:
    """The centre of a picture, then count - 1 random crops that depend on nothing but what is given here."""
    noise = Noise.for_samples(seed, [(key.text, number) for number in range(1, count)], _STAGE)
    places = torch.arange(NUM_UNIFORMS).expand(count - 1, -1)
    uniforms = noise.uniforms(0, 0, places).tolist() if count > 1 else []
    crops = [random_crop(*whole, min_scale, row, number) for number, row in enumerate(uniforms, start=1)]
    return (centre_crop(*whole), *crops)


def _check_row(row: Modality, path: Path) -> None:
    """Refuse what no sample could mend."""
    if row.codec not in FORMS:
        raise UsageError(f"{row.name}: its values are not made of pictures or maps")
    config = tokenizer_config(path)
    if FORMS[row.codec].is_labels != (config.n_labels is not None):
        has = "class numbers" if config.n_labels is not None else "no class numbers"
        raise UsageError(f"{row.name}: its tokenizer {path} reads {has}")


def _count(request: TokenizeRequest) -> int:
    """The number of crops, which must be that of crop settings which are there already."""
    found = next((sample.settings for sample in request.samples if sample.settings is not None), None)
    if found is None:
        return request.num_crops or 1
    try:
        count = count_crops(found)
    except SampleError:  # told of this one sample later
        return request.num_crops or 1
    if request.num_crops not in (None, count):
        raise UsageError(
            f"--crops {request.num_crops}: {found} has {count}; other tokens of this dataset may belong to "
            "them, so the numbers must be the same"
        )
    return count


def _check_output(request: TokenizeRequest) -> None:
    """Refuse an output folder in which something else has the name of a folder or file of ours."""
    check_root(request.out)
    check_names(request.out)
    for name in (*(row.name for row in request.rows), CROP_SETTINGS):
        check_folder(request.out, request.out / name)
    if request.overwrite:
        _check_results(request)


def _check_results(request: TokenizeRequest) -> None:
    """Refuse to replace what a run has decoded; the pictures beside it were made of these very tokens."""
    for path in (request.out / RUN, request.out / SR_RUN):
        try:
            taken = {place.folder for place in read_run(path).run.places} if path.is_file() else set[str]()
        except UsageError:  # of another program, which may name its files so
            continue
        if found := next((row.name for row in request.rows if row.name in taken), None):
            raise UsageError(
                f"{request.out / found}: --overwrite would replace results of the run in {path}; name "
                "another folder with --out"
            )


def _claims(
    request: TokenizeRequest, num_crops: int, dtype: str, device: torch.device
) -> dict[Path, Mapping[str, object]]:
    """What makes the tokens of each folder, by its record; refuse one that was begun with something else."""
    claims = dict[Path, Mapping[str, object]]()
    for row in request.rows:
        path = request.out / row.name / TOKENIZER
        claims[path] = {
            "tokenizer": sha256_of(weights_of(request.model.tokenizers[row.tokenizer])),
            "crops": num_crops,
            "dtype": dtype,
            "attention": request.attention,
            "device": device.type,
        }
        if path.exists() and not request.overwrite:
            _compare(path, claims[path])
    return claims


def _begin(request: TokenizeRequest, claims: Mapping[Path, Mapping[str, object]]) -> None:
    """Note in each folder of tokens what makes them; another process may just have begun to."""
    make_all(request.out)
    remove_leftovers(request.out)
    for path, claim in claims.items():
        text = json.dumps({**claim, "fourm": __version__, "model": request.model.name}, indent=1) + "\n"
        is_new = not path.parent.is_dir() or not any(path.parent.iterdir())
        if request.overwrite:
            write_text(request.out, path, text)
        elif not (is_new and create_text(request.out, path, text)) and path.exists():
            _compare(path, claim)


def _compare(path: Path, here: Mapping[str, object]) -> None:
    try:
        there = read_json(path)
    except SampleError as error:
        raise UsageError(f"{error}; --overwrite makes all tokens anew") from error
    if not isinstance(there, dict):
        raise UsageError(f"{path}: is not a record of this program; --overwrite makes all tokens anew")
    for name, value in here.items():
        if there.get(name) != value:
            raise UsageError(
                f"{path.parent}: was begun with other settings: {name} is {there.get(name)} there and "
                f"{value} here; --overwrite makes all tokens anew"
            )


def _tokenize(
    request: TokenizeRequest, claims: Mapping[Path, Mapping[str, object]], num_crops: int,
    device: torch.device, dtype: str, tally: Tally,
) -> Iterator[Event]:  # fmt: skip
    """The work of one process: look what is there, load, then batch after batch.

    Nothing is written before all is loaded.
    """
    mine = request.world.share(request.samples)
    todo, wrong = list[Work](), list[tuple[Work, str]]()
    for sample in mine:
        rows = [row for row in request.rows if row.name in sample.files]
        try:
            if sample.problem:
                raise SampleError(sample.problem)
            left = tuple(row for row in rows if not _is_made(request, row, sample.key, num_crops))
        except SampleError as error:
            wrong.append((Work(sample, tuple(rows)), str(error)))
        else:
            todo += [Work(sample, left)] if left else []
    tally.skipped = len(mine) - len(todo) - len(wrong)
    size = request.batch_size or rows_at_once(device)
    yield Started(len(mine), tally.skipped, size, request.model.name, str(device), 0)
    codecs = dict[str, GridCodec]()
    if todo:
        yield Loading(f"tokenizers {', '.join(sorted({row.tokenizer for w in todo for row in w.rows}))}")
        codecs = _load(request, todo, device, dtype)
    _begin(request, claims)
    for work, reason in wrong:
        yield _fail(request, work, reason, tally)
    portions = Portions(rows_at_once(device), device, dtype)
    for first in range(0, len(todo), size):
        yield from _make_batch(request, codecs, todo[first : first + size], num_crops, tally, portions)


def _load(
    request: TokenizeRequest, todo: Sequence[Work], device: torch.device, dtype: str
) -> dict[str, GridCodec]:
    """The codecs of what is to be made, by its row."""
    needed = {row.name: row for work in todo for row in work.rows}
    loaded = sorted({row.tokenizer for row in needed.values()})
    part, kind = Part.ENCODER, torch_dtype(dtype)
    tokenizers = {key: load_tokenizer(request.model.tokenizers[key], device, kind, part) for key in loaded}
    for module in tokenizers.values():
        set_attention(module, request.attention, device)
    return {name: GridCodec(row, FORMS[row.codec], tokenizers[row.tokenizer]) for name, row in needed.items()}


def _make_batch(
    request: TokenizeRequest, codecs: Mapping[str, GridCodec], works: Sequence[Work], num_crops: int,
    tally: Tally, portions: Portions,
) -> Iterator[Event]:  # fmt: skip
    """Read, tokenize and write some samples, one modality of all of them after the other."""
    crops, problems = dict[Key, tuple[Crop, ...]](), dict[Key, list[str]]()
    for work in works:
        try:
            crops[work.sample.key] = _settle_crops(request, codecs, work, num_crops)
        except SampleError as error:
            problems[work.sample.key] = [str(error)]
    files = dict[Key, list[Path]]()
    for name, codec in codecs.items():
        ready = list[tuple[Key, list[Tensor]]]()
        for work in works:
            key = work.sample.key
            if key in crops and any(row.name == name for row in work.rows):
                try:
                    ready.append((key, _prepare(codec, work.sample, crops[key])))
                except SampleError as error:
                    problems.setdefault(key, []).append(str(error))
        made = (yield from _tokens(codec, ready, problems, portions)) if ready else {}
        for key, ids in made.items():
            path = path_of(request.out, name, key, ".npy")
            write_atomic(request.out, path, partial(write_ids, ids))
            files.setdefault(key, []).append(path)
    for work in works:
        key = work.sample.key
        if key in problems:
            yield _fail(request, work, "; ".join(problems[key]), tally)
        else:
            tally.saved.add((key.text, 0))
            yield Saved(key.text, 0, tuple(files[key]))


def _settle_crops(
    request: TokenizeRequest, codecs: Mapping[str, GridCodec], work: Work, num_crops: int
) -> tuple[Crop, ...]:
    """The crops of a sample: those that its files say, or new ones, written for all that come later.

    A sample of features alone has none.
    """
    sample = work.sample
    maps = [row.name for row in work.rows if codecs[row.name].form.resample is not None]
    if not maps:
        return ()
    whole = read_size(sample.picture or sample.files[maps[0]])
    path = path_of(request.out, CROP_SETTINGS, sample.key, ".npy")
    there = path if path.is_file() else sample.settings
    if there is not None:
        crops = read_crops(there, whole)
    else:
        crops = draw_crops(request.seed, sample.key, whole, num_crops, request.min_scale)
    if len(crops) != num_crops:
        raise SampleError(f"{there}: has {len(crops)} crops, where there are {num_crops} of other samples")
    if there is None:
        _check_alone(request, sample, num_crops)
    if there != path and not create_atomic(request.out, path, partial(write_crops, crops)):
        return _settle_crops(request, codecs, work, num_crops)  # a process with other modalities was first
    return crops


def _check_alone(request: TokenizeRequest, sample: RawSample, num_crops: int) -> None:
    """Refuse new random crops beside tokens of older ones that nobody noted."""
    for row in request.rows:
        path = path_of(request.out, row.name, sample.key, ".npy")
        if num_crops > 1 and path.is_file() and not request.overwrite:
            raise SampleError(f"{path}: shows crops of which there is no file in {CROP_SETTINGS}")


def _prepare(codec: GridCodec, sample: RawSample, crops: Iterable[Crop]) -> list[Tensor]:
    """What the tokenizer reads of each crop of a sample."""
    path, valid = sample.files[codec.row.name], sample.valid if codec.takes_mask else None
    value = codec.read(path)
    try:
        if codec.form.resample is None:
            return [codec.prepare(value)]
        return [
            codec.prepare(codec.cut(value, crop, path), codec.read_mask(valid, crop) if valid else None)
            for crop in crops
        ]
    except SampleError as error:
        text = str(error)
        raise SampleError(text if text.startswith(f"{path}:") else f"{path}: {text}") from error


def _tokens(
    codec: GridCodec, ready: Sequence[tuple[Key, list[Tensor]]], problems: dict[Key, list[str]],
    portions: Portions,
) -> Generator[Event, None, dict[Key, NDArray[np.int64]]]:  # fmt: skip
    """Ids (crops, L) by sample; where all together fail, each is tried alone, and what fails is noted."""
    made, found = list[Tensor](), dict[Key, NDArray[np.int64]]()

    def tokenize(crops: Sequence[Tensor]) -> Iterator[Event]:
        made.append(codec.tokenize(crops))
        yield from ()

    try:
        yield from portions.each([x for _, crops in ready for x in crops], tokenize)
    except SampleError as error:
        if len(ready) == 1:
            problems.setdefault(ready[0][0], []).append(str(error))
            return {}
        for one in ready:
            found |= yield from _tokens(codec, [one], problems, portions)
        return found
    ids = torch.cat(made)
    each = ids.view(len(ready), -1, ids.shape[-1]).numpy()
    return {key: each[index] for index, (key, _) in enumerate(ready)}


def _is_made(request: TokenizeRequest, row: Modality, key: Key, num_crops: int) -> bool:
    """True for a token file that is there and whole; one that is not is refused, for it may be somebody's.

    An empty one is made anew: a power cut leaves such.
    """
    path = path_of(request.out, row.name, key, ".npy")
    if request.overwrite or not path.is_file() or path.stat().st_size == 0:
        return False
    ids = read_array(path)
    wanted = (num_crops, row.max_tokens)
    if ids.dtype.kind not in "iu" or ids.shape != wanted or ids.min() < 0 or ids.max() >= row.vocab_size:
        raise SampleError(
            f"{path}: {ids.dtype} of shape {ids.shape} is not {wanted[0]} crops of {wanted[1]} tokens in "
            f"0..{row.vocab_size - 1}; --overwrite makes it anew"
        )
    return True


def _fail(request: TokenizeRequest, work: Work, reason: str, tally: Tally) -> Failed:
    key = work.sample.key
    tally.failed += 1
    files = lacking(request.out, [path_of(request.out, row.name, key, ".npy") for row in work.rows])
    tally.process.add_failure(Failure(key.text, 0, reason, BASE, now(), files))
    return Failed(key.text, 0, reason)
