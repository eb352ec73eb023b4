"""The files of a run: plans which are written, checks which are complete already, and writes the others."""

import hashlib
import json
import platform
import stat
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from fourm import __version__
from fourm.codecs.files import write_ids
from fourm.codecs.images import Diffusion, GridCodec
from fourm.codecs.table import Codec, check_codec
from fourm.data.layout import Place, path_of
from fourm.data.opening import read_bytes
from fourm.data.writing import write_atomic, write_text
from fourm.decoding.engine import Progress
from fourm.decoding.sampling import Noise
from fourm.errors import MissingError, SampleError, UsageError
from fourm.hub.files import ModelFiles, check_tokenizers, require_text_tokenizer, tokenizer_advice, weights_of
from fourm.hub.header import TokenizerPart
from fourm.modalities.registry import Kind, Modality
from fourm.modalities.text import Structured
from fourm.networks.checkpoint import tokenizer_config
from fourm.networks.state import Batch
from fourm.networks.tokenizers.config import DiVAEConfig
from fourm.output.formats import Tokens, find_flaw
from fourm.output.processes import Listed, Process, list_files, now, sha256_of
from fourm.output.record import BASE, RUN, SR, RunRecord
from fourm.output.samples import SampleWriter
from fourm.runs.conditions import Given, Work
from fourm.runs.events import Detokenized, Event, Failed, Malformed, Saved
from fourm.runs.inputs import CAPTION
from fourm.runs.request import MAX_DETOKENIZER_STEPS, Request
from fourm.schedule.chain import joining_problem

READ_BYTES = 1 << 16  # files up to this size are compared by checksum, larger ones by size only
PREVIEW_STEPS = 25  # most diffusion steps for a preview picture
GREY = (128, 128, 128)  # colour of tokens that are not decoded yet, in preview pictures


@dataclass(frozen=True, slots=True)
class Job:
    """A request that passed all checks, with the device, dtype, batch size and files chosen for it."""

    request: Request
    places: list[Place]  # kinds of files that every sample has, including conditions
    device: torch.device
    dtype: str  # a key of DTYPES
    batch_size: int

    @property
    def written(self) -> list[Place]:
        """The places that this run writes: all, except conditions that are in the output folder already."""
        return [place for place in self.places if not (place.is_condition and self.request.is_beside)]

    def paths(self, work: Work) -> tuple[Path, ...]:
        """All files that are written for a sample and variation."""
        return tuple(self.path(place, work) for place in self.written)

    def path(self, place: Place, work: Work) -> Path:
        """The path of one file of a sample; its name holds the variation if the run makes several."""
        variation = None if place.shared or self.request.num_variations == 1 else work.variation
        return path_of(self.request.out, place.folder, work.sample.key, place.suffix, variation)

    def is_complete(self, place: Place, work: Work, listed: Mapping[str, Listed]) -> bool:
        """True if a file matches its checksum in `listed` or, without one there, is valid by its format.

        Of a file larger than `READ_BYTES`, only the size is compared. A token file without a checksum must
        also have the length and the vocabulary of its modality. Not complete are an empty file without a
        checksum (a power failure can leave one), a link (its target may lie outside the folder), and a file
        that cannot be read.
        """
        path, tokens = self.path(place, work), None
        if place.form == "ids":
            row = self.request.model.registry.get(place.modality)
            tokens = Tokens(row.max_tokens, row.vocab_size)
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                return False
            size = status.st_size
            expected = listed.get(path.relative_to(self.request.out).as_posix())
            if expected is None:
                return size > 0 and find_flaw(path, tokens) is None
            if expected.size is not None and (size != expected.size or size > READ_BYTES):
                return size == expected.size
            return hashlib.sha256(read_bytes(path, max(size, 1))).hexdigest() == expected.sha256
        except OSError:
            return False


@dataclass(slots=True)
class Film:
    """The decoding history of the current target of a batch, for preview pictures."""

    target: str = ""
    # The number of the step that decoded each token, from 1; -1 if it is not decoded.
    order: Tensor = field(default_factory=lambda: torch.empty(0))  # (B, L) int16
    # Pictures that are not written yet: place, known tokens (B, L) bool, and one decoded value per sample.
    frames: list[tuple[Place, Tensor, list[Any]]] = field(default_factory=list)


@dataclass(slots=True)
class Saver:
    """Writes the files of one run."""

    job: Job
    codecs: Mapping[str, Codec]  # by modality
    process: Process
    listed: Mapping[str, Listed]  # checksums of files of earlier runs, by path relative to the folder
    samples: SampleWriter
    saved: set[tuple[str, int]] = field(default_factory=set)  # key and variation of each result
    failed: set[tuple[str, int]] = field(default_factory=set)
    skipped: int = 0  # results that were complete already
    _hashed: set[Path] = field(default_factory=set)  # shared files whose checksum is listed

    def add_missing_checksums(self, works: Sequence[Work]) -> None:
        """List the checksums of complete samples that are not listed yet; these samples are skipped."""
        self.skipped = len(works)
        self.record_samples(works)
        out = self.job.request.out
        paths = {path for work in works for path in self.job.paths(work)}
        if self.job.request.resume:
            paths |= self.samples.recorded
        self._note_checksums(sorted(p for p in paths if p.relative_to(out).as_posix() not in self.listed))

    def record_samples(self, works: Sequence[Work]) -> None:
        """Record the input files of samples. This is done before any output file of theirs is written."""
        for work in works:
            if path := self.samples.record(work.sample.key):
                self._note_checksums([path])

    def save(self, given: Sequence[Given], batch: Batch, chosen: Sequence[int]) -> Iterator[Event]:
        """Write all files of the chosen samples, each atomically, and report each as saved or failed.

        batch: one decoded row for each of `given`, in the same order. Samples that are reported already are
        left out, so a call can be repeated. Tokens are written first. Values are decoded together; if that
        fails, each sample is decoded alone, so that only the bad ones fail.
        """
        results = {index: given[index].work.result for index in chosen}
        left = [i for i, result in results.items() if result not in self.saved and result not in self.failed]
        if not left:
            return
        rows, batch = [given[index] for index in left], batch.select(torch.tensor(left, device=batch.device))
        works = [row.work for row in rows]
        self.process.check()
        for place in self.job.written:
            if place.form == "ids":
                for work, ids in zip(works, batch.slots[place.modality].values.cpu().numpy(), strict=True):
                    self._write(place, work, partial(write_ids, ids))
        decoded = dict[str, list[Any]]()
        try:
            for place in self.job.written:
                if place.form == "value" and not place.is_condition:
                    decoded[place.modality] = yield from self._decode(place.modality, works, batch)
        except SampleError as error:
            if len(rows) == 1:
                yield self.fail(works[0], str(error))
                return
            for index in range(len(rows)):
                yield from self.save(rows, batch, [index])
            return
        try:
            for index, row in enumerate(rows):
                yield from self._save_values(row, {name: values[index] for name, values in decoded.items()})
        finally:  # if memory runs out for one sample, those saved before it are not decoded again
            saved = [work for work in works if work.result in self.saved]
            self._note_checksums([path for work in saved for path in self.job.paths(work)])

    def fail(self, work: Work, reason: str) -> Failed:
        """Record a failed sample; the event to report is returned."""
        stage = BASE if self.job.request.record == RUN else SR
        self.record_samples([work])
        self.failed.add(work.result)
        self.process.add_failure(*work.result, reason, stage, self.job.paths(work))
        return Failed(*work.result, reason)

    def preview(self, progress: Progress, film: Film, works: Sequence[Work]) -> None:
        """Write a picture of each sample after a step of a grid.

        film: of this batch; each call updates it. After the last step of a target, the decoding step of each
        token is written, too.
        """
        step, steps, out = progress.step, self.job.request.chain.steps, self.job.request.out
        is_last = step is steps[-1] or steps[step.index + 1].target != step.target
        slot, codec = progress.batch.slots[step.target], self.codecs[step.target]
        if not isinstance(codec, GridCodec):
            return
        written = list[Path]()
        if film.target != step.target:
            film.target, film.frames = step.target, []
            film.order = torch.full_like(slot.known, -1, dtype=torch.int16)
        film.order[slot.known & (film.order < 0)] = step.number
        if step.number % self.job.request.preview == 0:
            diffusion = self._diffusion(step.target, works, PREVIEW_STEPS)
            with suppress(SampleError):  # the same error is reported when the result is decoded
                place = preview_place(step.target, step.number)
                film.frames.append((place, slot.known, codec.decode(slot, diffusion)))
        # Features (`resample` is None) are coloured alike in all pictures, so they wait for the last one.
        if film.frames and (is_last or codec.form.resample is not None):
            for index, work in enumerate(works):
                pictures = codec.pictures([values[index] for _, _, values in film.frames])
                for (place, known, _), picture in zip(film.frames, pictures, strict=True):
                    path = self.job.path(place, work)
                    covered = _covered(picture, known[index], codec.row)
                    write_atomic(out, path, partial(covered.save, format="PNG"))
                    written.append(path)
            film.frames = []
        if is_last:
            for work, order in zip(works, film.order.cpu().numpy(), strict=True):
                path = self.job.path(order_place(step.target), work)
                write_atomic(out, path, partial(write_ids, order))
                written.append(path)
        self._note_checksums(written)

    def _save_values(self, row: Given, made: Mapping[str, Any]) -> Iterator[Event]:
        """Write the values of one sample, and report texts that violate the grammar of their modality."""
        work = row.work
        for name, value in made.items():
            if isinstance(value, Structured) and value.problems:
                path = self.job.path(malformed_place(name), work)
                content = json.dumps({"text": value.text, "problems": value.problems}, ensure_ascii=False)
                write_text(self.job.request.out, path, content + "\n")
                self._note_checksums([path])
                yield Malformed(*work.result, name, value.problems)
        try:
            for place in self.job.written:
                if place.form == "value":
                    value = made.get(place.modality, row.values.get(place.modality))
                    text = self._chunks(work, row.values, place.shared)
                    self._write(place, work, partial(self.codecs[place.modality].write, value, text=text))
        except SampleError as error:
            yield self.fail(work, str(error))
        else:
            self.saved.add(work.result)
            yield Saved(*work.result, self.job.paths(work), self.job.request.stage)

    def _decode(self, name: str, works: Sequence[Work], batch: Batch) -> Generator[Event, None, list[Any]]:
        """Yield the steps of a diffusion decoder; return the values of one target, one per sample."""
        codec, slot = self.codecs[name], batch.slots[name]
        if not isinstance(codec, GridCodec):
            return codec.decode(slot)
        steps = codec.decode_stepwise(slot, self._diffusion(name, works))
        keys = tuple(work.sample.key.text for work in works)
        while True:
            started = time.perf_counter()
            try:
                done, total = next(steps)
            except StopIteration as end:
                return end.value
            yield Detokenized(keys, name, done, total, time.perf_counter() - started)

    def _diffusion(self, name: str, works: Sequence[Work], most: int = MAX_DETOKENIZER_STEPS) -> Diffusion:
        noise = Noise.for_samples(self.job.request.seed, [w.result for w in works], f"detokenizer {name}")
        return Diffusion(min(most, self.job.request.detokenizer_steps), noise)

    def _write(self, place: Place, work: Work, write: Callable[[Path], None]) -> None:
        # A file that variations share may have been written with another variation.
        if not (place.shared and self.job.is_complete(place, work, self.listed)):
            write_atomic(self.job.request.out, self.job.path(place, work), write)

    def _note_checksums(self, paths: Sequence[Path]) -> None:
        new = [path for path in dict.fromkeys(paths) if path not in self._hashed]
        if not new:
            return
        self.process.add_checksums(list_files(self.job.request.out, new))
        # Only files that variations share are passed more than once, so only those are remembered.
        shared = [self.job.request.out / place.folder for place in self.job.written if place.shared]
        self._hashed |= {path for path in new if any(map(path.is_relative_to, shared))}

    def _chunks(self, work: Work, values: Mapping[str, Any], is_shared: bool) -> dict[str, str]:
        """The text chunks of a PNG: what is needed to generate the picture again."""
        record, registry = self.samples.run.record, self.job.request.model.registry
        prompts = (value for name, value in values.items() if registry.get(name).codec == CAPTION)
        facts = {
            "software": f"fourm {__version__}", "prompt": next(prompts, None),
            "model": record.model, "seed": record.seed, "sample": work.sample.key.text,
            "variation": None if is_shared else work.variation,  # any variation may write a shared file
            "variations": record.num_variations, "schedule": record.options,
            "weights": record.files["weights"], "dtype": record.dtype,
            "detokenizer steps": record.detokenizer_steps,
        }  # fmt: skip
        if base := self.job.request.origin:
            facts |= {"base model": base.model, "base seed": base.seed, "base schedule": base.options,
                      "base dtype": base.dtype, "base weights": base.files.get("weights", "")}  # fmt: skip
        return {name: str(fact) for name, fact in facts.items() if fact is not None}


def preview_place(target: str, number: int) -> Place:
    """Where the picture of a target after a step is written. number: of the step in the chain, from 1."""
    return Place(f"preview/{target}", f"-step{number:03d}.png", modality=target, form="extra")


def order_place(target: str) -> Place:
    """Where the number of the decoding step of each token is written: (L,) int16, from 1; -1 for none."""
    return Place(f"preview/{target}", "-order.npy", modality=target, form="extra")


def malformed_place(target: str) -> Place:
    """Where generated texts that violate their grammar are written unchanged."""
    return Place(f"malformed/{target}", ".json", modality=target, form="extra")


def plan_places(request: Request) -> list[Place]:
    """Where each kind of file of a sample is written.

    UsageError for a value that can never be decoded or encoded; MissingError for one whose tokenizer is not
    on this machine.
    """
    model = request.model
    places = list[Place]()
    for name in request.chain.conditions:
        row = model.registry.get(name)
        shared = not any(name in files for sample in request.samples for files in sample.varied)
        if row.kind is Kind.GRID:
            places.append(Place(row.name, ".npy", shared, row.name, form="ids", is_condition=True))
        if row.kind is not Kind.GRID or name in request.chain.raw:
            places.append(Place(row.folder, row.suffix, shared, row.name, is_condition=True))
    # Folders of values that are given already; a decoded target must not be written over them.
    origin_places = request.origin.places if request.origin else ()
    taken = {place.folder for place in (origin_places if request.is_beside else places)}
    for spec in request.chain.specs:
        row = model.registry.get(spec.target)
        if spec.passes > 1 and (problem := joining_problem(row)):
            raise UsageError(problem)
        if row.kind is Kind.GRID:
            places.append(Place(row.name, ".npy", modality=row.name, form="ids"))
        if row.kind is Kind.SEQUENCE or request.decode:
            folder = row.folder if row.folder not in taken else f"{row.folder}_decoded"
            places.append(Place(folder, row.suffix, modality=row.name))
    for place in places:
        _check_place(model, place)
    check_tokenizers(model, [model.registry.get(place.modality) for place in places if place.form == "value"])
    count_evaluations(request, places)  # refuses a wrong number of steps
    return places


def count_evaluations(request: Request, places: Sequence[Place]) -> int:
    """How often networks that decode by diffusion are evaluated per sample.

    UsageError if the number of trained timesteps is no multiple of the number of steps that is asked for.
    """
    model, steps = request.model, request.detokenizer_steps
    decoders = filter(None, (_tokenizer_of(model, place) for place in places if not place.is_condition))
    configs = [tokenizer_config(model.tokenizers[key]) for key in decoders]
    diffusions = [config.num_train_timesteps for config in configs if isinstance(config, DiVAEConfig)]
    for trained in diffusions:
        if trained % steps:
            divisors = [n for n in range(1, trained + 1) if trained % n == 0]
            near = (*[n for n in divisors if n < steps][-1:], *[n for n in divisors if n > steps][:1])
            what = f"the {trained:,} timesteps of the tokenizer cannot be spaced evenly"
            raise UsageError(f"--detokenizer-steps {steps}: {what}; {' or '.join(map(str, near))} would do")
    return steps * len(diffusions)


def make_record(job: Job) -> RunRecord:
    """The contents of run.json. Reads all files of the model to compute their checksums."""
    request, device = job.request, job.device
    model, chain = request.model, request.chain
    files = {"weights": model.weights}
    for key in tokenizers_of(model, job.places):
        files[f"tokenizers/{key}"] = weights_of(model.tokenizers[key])
    if model.text_tokenizer is not None:
        files["text_tokenizer"] = model.text_tokenizer
    rows = [model.registry.get(name) for name in chain.targets]
    # Targets and steps with preview pictures; none if `preview` is 0.
    grids = [row.name for row in rows if row.kind is Kind.GRID and request.preview]
    steps = [step for step in chain.steps if step.target in grids and step.number % request.preview == 0]
    extras = (  # files that only some samples have
        *(preview_place(step.target, step.number) for step in steps),
        *map(order_place, grids),
        *(malformed_place(row.name) for row in rows if row.kind is Kind.SEQUENCE),
    )
    is_gpu = device.type == "cuda"
    processor = torch.cuda.get_device_name(device) if is_gpu else platform.processor() or platform.machine()
    versions = {name: version(name) for name in ("torch", "numpy", "tokenizers", "pillow")}
    return RunRecord(
        schedule=chain.to_json(), options=chain.to_text(), model=model.name, revision=model.revision,
        files={name: sha256_of(path) for name, path in sorted(files.items())},
        samples=len(request.samples), input=request.input, num_variations=request.num_variations,
        variation=request.variation, seed=request.seed, dtype=job.dtype, attention=request.attention,
        decode=request.decode, detokenizer_steps=request.detokenizer_steps, preview=request.preview,
        stage=request.stage, origin=request.origin.as_origin() if request.origin else {},
        places=(*job.written, *extras),
        device_type=device.type, device=f"{device if is_gpu else device.type} {processor}",
        versions={"fourm": __version__, "python": platform.python_version()} | versions,
        command=request.command, created=now(),
    )  # fmt: skip


def tokenizers_of(model: ModelFiles, places: Sequence[Place]) -> dict[str, TokenizerPart]:
    """Tokenizers that encode conditions or decode targets, by name, and the part that is needed of each."""
    needed = dict[str, TokenizerPart]()
    for place in places:
        part = TokenizerPart.ENCODER if place.is_condition else TokenizerPart.DECODER
        if key := _tokenizer_of(model, place):
            needed[key] = part if needed.get(key, part) is part else TokenizerPart.WHOLE
    return dict(sorted(needed.items()))


def _check_place(model: ModelFiles, place: Place) -> None:
    """Refuse a value that needs a codec or a tokenizer that does not exist or is not on this machine."""
    row = model.registry.get(place.modality)
    if place.is_condition:
        verb, way_out = "encodes", f", --cond {row.key} reads tokens"
    else:
        verb, way_out = "decodes", ", --no-decode keeps tokens only"
    check_codec(row)
    if place.form == "value" and row.kind is Kind.GRID and not row.tokenizer:
        raise UsageError(f"{row.name}: its row in modalities.yaml names no tokenizer{way_out}")
    if place.form == "value" and row.kind is Kind.SEQUENCE:
        require_text_tokenizer(model, row.name)
    if (key := _tokenizer_of(model, place)) and key not in model.tokenizers:
        what = f"the tokenizer '{key}' that {verb} it is not here; {tokenizer_advice(model, key)}"
        raise MissingError(f"{row.name}: {what}{way_out}")


def _tokenizer_of(model: ModelFiles, place: Place) -> str:
    """The tokenizer that encodes or decodes the values of a place; "" for texts and for tokens."""
    row = model.registry.get(place.modality)
    return row.tokenizer if place.form == "value" and row.kind is Kind.GRID else ""


def _covered(picture: Image.Image, known: Tensor, row: Modality) -> Image.Image:
    """The picture in RGB, with grey where `known`, (L,) bool, is False."""
    cells = rearrange(known.to(torch.uint8) * 255, "(h w) -> h w", h=row.grid[0] if row.grid else 1)
    mask = Image.fromarray(cells.cpu().numpy()).resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(picture.convert("RGB"), Image.new("RGB", picture.size, GREY), mask)
