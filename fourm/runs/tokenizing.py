"""`fourm tokenize` into single files, which are kept: the same command goes on where an earlier one stopped.

A sample's tokens depend on (tokenizer, seed, sample, crops) alone; processes share nothing but the folder.
"""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial

from fourm import __version__
from fourm.codecs.files import read_json
from fourm.data.dataset import TOKENIZER
from fourm.data.layout import CROP_SETTINGS
from fourm.errors import SampleError, UsageError
from fourm.files.writing import check_root, create_text, make_all, remove_leftovers, write_text
from fourm.hub.digests import sha256_of
from fourm.hub.files import weights_of
from fourm.hub.header import AUTO, DTYPES
from fourm.inputs.request import TokenizeRequest
from fourm.modalities.registry import Modality
from fourm.networks.precision import arithmetic
from fourm.output.joining import check_names
from fourm.output.processes import ANY_RUN, Launch, Process, now, write_failures
from fourm.output.record import RUN, SR_RUN
from fourm.output.samples import load_run
from fourm.results.events import Event, Failed, Finished, Saved, Started
from fourm.results.job import TokenJob
from fourm.results.portions import as_fourm_errors
from fourm.results.token_files import TokenFolder
from fourm.runs.loaded import LoadedModel
from fourm.runs.tokens import check_tokenizing, tokenize, untokenized

_FIT = {"fit": "crop"}  # where a record of tokens says nothing of it


def tokenize_dataset(request: TokenizeRequest) -> Iterator[Event]:
    """Make the token files that are not there yet, and say what happens on the way.

    A sample that fails is reported and noted in failures.jsonl; the others go on.
    """
    started, world = time.perf_counter(), request.world
    job = check_tokenizing(replace(request, dtype=_begun_dtype(request)))
    _check_output(request)
    process = Process(request.out, ANY_RUN, Launch(world.rank, world.size, now()))
    for row in request.rows:
        _check_origin(job, row)
    skipped, counts = 0, {Saved: 0, Failed: 0}
    try:
        with as_fourm_errors(job.device, job.dtype, request.out), arithmetic(job.dtype):
            for event in _tokenize(job, TokenFolder(job.request, process)):
                if isinstance(event, Started):
                    skipped = event.skipped
                elif isinstance(event, Saved | Failed):
                    counts[type(event)] += 1
                yield event
    finally:
        if request.out.is_dir():
            write_failures(request.out)
            remove_leftovers(request.out)
    yield Finished(counts[Saved], skipped, counts[Failed], time.perf_counter() - started)


def _tokenize(job: TokenJob, files: TokenFolder) -> Iterator[Event]:
    """The work of one process. Nothing is written before all is loaded."""
    request = job.request
    mine = request.world.share(request.samples)
    ones = (untokenized(request, files, sample) for sample in mine)
    found = [one for one in ones if one.rows or one.problems]
    yield Started(
        len(mine), len(mine) - len(found), job.batch_size, request.model.name, str(job.device), 0,
        dtype=job.dtype,
    )  # fmt: skip
    loaded = LoadedModel(request.model, job.device, job.dtype, request.attention, request.compile)
    yield from tokenize(job, loaded, found, files, partial(_begin, job))


def _begin(job: TokenJob) -> None:
    """Note in each folder of tokens what makes them."""
    request = job.request
    make_all(request.out)
    remove_leftovers(request.out)
    for row in request.rows:
        path = request.out / row.name / TOKENIZER
        origin = {**_origin(job, row), "fourm": __version__, "model": request.model.name}
        text = json.dumps(origin, indent=1) + "\n"
        is_new = not path.parent.is_dir() or not any(path.parent.iterdir())
        if request.overwrite:
            write_text(request.out, path, text)
        elif not (is_new and create_text(request.out, path, text)):  # or another process was first
            _check_origin(job, row)


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


def _origin(job: TokenJob, row: Modality) -> dict[str, object]:
    request = job.request
    digest = sha256_of(weights_of(request.model.tokenizers[row.tokenizer]))
    return {"tokenizer": digest, "crops": job.num_crops, "dtype": job.dtype,
            "attention": request.attention, "device": job.device.type,
            **({"fit": request.fit} if request.fit != _FIT["fit"] else {}),
            **({"compile": True} if request.compile else {})}  # fmt: skip


def _begun_dtype(request: TokenizeRequest) -> str:
    """The dtype that is asked for; of `auto`, that in which tokens are there already, if some are."""
    for row in request.rows if request.dtype == AUTO and not request.overwrite else ():
        with suppress(SampleError, OSError):  # `_check_origin` says what is wrong with it
            there = read_json(request.out / row.name / TOKENIZER)
            if isinstance(there, dict) and there.get("dtype") in list(DTYPES):
                return str(there["dtype"])
    return request.dtype


def _check_origin(job: TokenJob, row: Modality) -> None:
    """Refuse a folder of tokens that was begun with something else."""
    request = job.request
    path, advice = request.out / row.name / TOKENIZER, "`overwrite=True` makes all tokens anew"
    if request.overwrite or not path.exists():
        return
    try:
        there = read_json(path)
    except SampleError as error:
        raise UsageError(f"{error}; {advice}") from error
    if not isinstance(there, dict):
        raise UsageError(f"{path}: is not a record of this program; {advice}")
    there = _FIT | there
    for name, value in (_FIT | _origin(job, row)).items():
        if there.get(name) != value:
            what = f"was begun with other settings: {name} is {there.get(name)} there and {value} here"
            raise UsageError(f"{path.parent}: {what}; {advice}")
