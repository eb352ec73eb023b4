"""What a run would write: files and bytes by folder, and whether the disk has room for them."""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fourm.codecs.files import file_ending, read_size
from fourm.codecs.maps import FORMS
from fourm.data.dataset import PICTURE_SUFFIXES
from fourm.data.layout import PICTURES, SAMPLES_PER_FOLDER, Place
from fourm.errors import SampleError, UsageError
from fourm.hub.header import FULL
from fourm.inputs.conditions import Work
from fourm.inputs.request import Request
from fourm.modalities.registry import Kind, Modality
from fourm.networks.checkpoint import tokenizer_config
from fourm.output.processes import PROCESSES
from fourm.output.record import FRAMES, SAMPLES
from fourm.results.job import Job, order_place, preview_place
from fourm.schedule.cost import FLOAT32, encoder_width, estimate

BLOCK = 4096  # bytes; file systems give files whole blocks of about this size
_HEADER = 128  # bytes of a .npy file before its numbers
# A PNG's share of the bytes of its pixels: at least, as of plain areas, and of photographs.
_PNG_LEAST, _PNG_USUAL = 0.01, 0.6
_LOOKED_AT = 16  # pictures whose sizes tell how large restored maps are
_TEXT_BYTES = 8  # of a token of text
_SCORE_BYTES = 24  # of the score of a variation
_RECORD_BYTES, _SAMPLE_BYTES = 160, 300  # of what is recorded of a file, besides its name, and of a sample


@dataclass(frozen=True, slots=True)
class FolderPlan:
    """What a run writes into one folder."""

    files: int
    least: int  # bytes on disk, in whole blocks, at least
    usual: int  # an estimate


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do, counted before anything is loaded."""

    job: Job
    todo: Sequence[Work]  # the results that are not complete
    samples: int  # that are chosen
    results: int  # samples times variations, of this process
    folders: Mapping[str, FolderPlan]  # by name; the records of the run are one entry, with both its folders
    passes: int  # forward passes of the network for one result, at most
    evaluations: int  # of decoders by diffusion, for one result

    @property
    def files(self) -> int:
        """Number of files that are written."""
        return sum(folder.files for folder in self.folders.values())

    @property
    def usual(self) -> int:
        """Bytes on disk, an estimate."""
        return sum(folder.usual for folder in self.folders.values())

    @property
    def to_make(self) -> int:
        """Number of results that are not complete."""
        return len(self.todo)

    @property
    def complete(self) -> int:
        """Number of results that are there already."""
        return self.results - self.to_make

    @property
    def free(self) -> int:
        """Free bytes of the output's file system, now."""
        return free_bytes(self.job.request.out)

    def to_json(self) -> dict[str, object]:
        """The plan as plain data."""
        request = self.job.request
        return {
            "out": str(request.out), "stage": request.stage, "model": request.model.name,
            "device": str(self.job.device), "dtype": self.job.dtype, "batch_size": self.job.batch_size,
            "samples": self.samples, "variations": len(request.variations), "results": self.results,
            "complete": self.complete, "to_make": self.to_make, "files": self.files,
            "bytes_estimate": self.usual, "bytes_free": self.free,
            "passes_per_result": self.passes, "passes": self.passes * self.to_make,
            "diffusion_evaluations": self.evaluations * self.to_make,
            "folders": {name: {"files": one.files, "bytes_estimate": one.usual}
                        for name, one in self.folders.items()},
        }  # fmt: skip


def plan_results(job: Job, made: Sequence[Work], todo: Sequence[Work]) -> Plan:
    """The plan of a run of which some results are complete, and others are to be made."""
    request, chosen = job.request, {work.sample.key for work in todo}
    unshared = len(chosen - {work.sample.key for work in made})  # samples of which no variation is there
    counts = [(place, unshared if place.shared else len(todo), 1) for place in job.written]
    counts += [(place, len(todo), number) for place, number in _previews(job)]
    folders, whole = dict[str, FolderPlan](), _whole_pixels(job) if request.restore else 0
    for place, results, number in counts:
        least, usual = (results * number * _in_blocks(size) for size in _size_of(job, place, whole))
        folders[place.folder] = FolderPlan(results * number, least, usual)
    num_files = sum(folder.files for folder in folders.values())
    key_length = sum(len(work.sample.key.path) for work in todo) / max(len(todo), 1)
    noted = math.ceil(num_files * (_RECORD_BYTES + 2 * key_length) + len(chosen) * _SAMPLE_BYTES)
    if num_files and request.recorded_fit and not (request.is_beside or request.features):
        folders[FRAMES.folder] = FolderPlan(unshared, 0, unshared * BLOCK)
    if num_files:
        count = _num_records(request, len(chosen))
        usual = (count - 1) * BLOCK + _in_blocks(noted)
        folders[f"{PROCESSES}, {SAMPLES[request.record].folder}"] = FolderPlan(count, 0, usual)
    cost = estimate(request.chain, request.model, job.dtype, weights=request.weights or FULL)
    samples = {work.sample.key for work in (*made, *todo)}
    return Plan(
        job, todo, len(samples), len(made) + len(todo), folders, _passes(request, cost.passes),
        job.evaluations,
    )  # fmt: skip


def _passes(request: Request, passes: int) -> int:
    """Forward passes for one result, its share of those of variations that are left out included."""
    if request.best is None:
        return passes
    return math.ceil((passes + len(request.best.by)) * request.best.of / request.num_variations)


def _num_records(request: Request, chosen: int) -> int:
    """How many files record a run of so many samples: launch, checksums, and what is not there already.

    That is the record of the run, and what each thousand of its samples is made of.
    """
    is_new, folder = request.overwrite or not (request.out / request.record).exists(), SAMPLES[request.record]
    there = 0 if is_new else len([*(request.out / folder.folder).glob(f"*{folder.suffix}")])
    thousands = min(chosen, math.ceil(len(request.samples) / SAMPLES_PER_FOLDER))
    return 2 + int(is_new) + max(thousands - there, 0)


def check_disk(plan: Plan) -> None:
    """UsageError if the file system of the output folder clearly cannot hold the results."""
    out, least = plan.job.request.out, sum(folder.least for folder in plan.folders.values())
    where, free = f"`out={out}`: {plan.to_make:,} results", free_bytes(out)
    if least > free:
        need, left = (f"{n / 1e9:.3g} GB" if n >= 1e9 else f"{n / 1e6:.3g} MB" for n in (least, free))
        raise UsageError(f"{where} need {need} at least, but only {left} are free on its file system")
    status = os.statvfs(_existing(out)) if hasattr(os, "statvfs") else None
    if status is not None and status.f_files and plan.files > status.f_favail:
        what = f"are {plan.files:,} files, but its file system has room for {status.f_favail:,} more"
        raise UsageError(f"{where} {what}")


def free_bytes(out: Path) -> int:
    """Free bytes of the file system that a folder is on, or will be."""
    return shutil.disk_usage(_existing(out)).free


def _existing(out: Path) -> Path:
    path = Path(os.path.abspath(out))
    return next(one for one in (path, *path.parents) if one.exists())


def _previews(job: Job) -> list[tuple[Place, int]]:
    """Kinds of files that `preview` adds, and how many of each a result has."""
    request, found = job.request, list[tuple[Place, int]]()
    for name, row in ((name, request.model.registry.get(name)) for name in request.chain.targets):
        if request.preview and row.kind is Kind.GRID:
            steps = [step for step in request.chain.steps if step.target == name]
            kept = sum(step.number % request.preview == 0 for step in steps)
            pictures, order = preview_place(name, request.preview), order_place(name)
            # Both lie in one folder, in which the small file of the order counts as one picture more.
            found.append((pictures if kept else order, kept + 1))
    return found


def _in_blocks(size: float) -> int:
    return math.ceil(size / BLOCK) * BLOCK


def _whole_pixels(job: Job) -> int:
    """The pixels of a picture that results are restored to: the mean of the first samples, 0 if not known."""
    areas = list[int]()
    for sample in job.request.chosen[:_LOOKED_AT]:
        files = sample.files_of(0)
        with suppress(SampleError):  # the sample will fail
            known = (path for path in files.values() if file_ending(path) in PICTURE_SUFFIXES)
            if path := files.get(PICTURES) or next(known, None):
                areas.append(math.prod(read_size(path)))
    return sum(areas) // len(areas) if areas else 0


def _size_of(job: Job, place: Place, whole: int) -> tuple[float, float]:
    """Bytes of one file: at least, and usually. whole: pixels of restored maps, 0 for the model's square."""
    if place.form == "features":
        return _features_size(job)
    if (best := job.request.best) is not None and place.form == "scores":
        return (_SCORE_BYTES * best.of * len(best.by),) * 2
    row = job.request.model.registry.get(place.modality)
    if place.form == "ids":
        size = _HEADER + row.max_tokens * (2 if row.vocab_size <= 1 << 15 else 4)
        return size, size
    if row.kind is Kind.SEQUENCE:
        return 1, _TEXT_BYTES * row.max_tokens
    if row.kind is Kind.EMBEDDING:
        return 1, 4 * row.max_tokens * row.embedding_width
    usual = whole or row.image_size**2
    least = min(usual, row.image_size**2) if whole else usual
    if place.suffix == ".npy":
        counts = (least, usual) if _is_map(row) else (_num_features(job, row),) * 2
        return _HEADER + 4 * counts[0], _HEADER + 4 * counts[1]
    return _PNG_LEAST * 3 * least, _PNG_USUAL * 3 * usual


def _features_size(job: Job) -> tuple[float, float]:
    """Bytes of the features of a sample: with texts of one token, and with all tokens."""
    model, wanted = job.request.model, job.request.features
    assert wanted is not None
    rows = [model.registry.get(name) for name in job.request.chain.conditions]
    vector = len(wanted.layers) * encoder_width(model) * FLOAT32
    if wanted.pool == "mean":
        return _HEADER + vector, _HEADER + vector
    least = sum(1 if row.kind in (Kind.SEQUENCE, Kind.EMBEDDING) else row.max_tokens for row in rows)
    return _HEADER + least * vector, _HEADER + sum(row.max_tokens for row in rows) * vector


def _is_map(row: Modality) -> bool:
    """Whether a value has pixels; features have none."""
    return row.codec not in FORMS or FORMS[row.codec].resample is not None


def _num_features(job: Job, row: Modality) -> int:
    config = tokenizer_config(job.request.model.tokenizers[row.tokenizer])
    places = (1, 1) if config.token_rank == 4 else row.grid or (1, 1)
    return config.out_channels * math.prod(places)
