"""Writes the files of each sample: tokens, decoded values, previews; records the samples that fail.

What is complete already, so that `--resume` does not make it again, is decided by `ResultFiles`.
"""

import hashlib
import json
import stat
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from fourm import __version__
from fourm.codecs.files import write_ids
from fourm.codecs.images import Diffusion, GridCodec
from fourm.codecs.table import Codec
from fourm.data.layout import Place, path_of
from fourm.data.opening import read_bytes
from fourm.data.writing import write_atomic, write_text
from fourm.decoding.engine import Progress
from fourm.decoding.sampling import Noise
from fourm.errors import SampleError
from fourm.modalities.registry import Modality
from fourm.modalities.text import Structured
from fourm.networks.state import Batch
from fourm.output.formats import Tokens, find_flaw
from fourm.output.processes import Listed, Process, list_files, read_checksums
from fourm.output.record import BASE, RUN, SR
from fourm.output.samples import SampleWriter
from fourm.runs.conditions import Given, Work
from fourm.runs.events import Detokenized, Event, Failed, Malformed, Saved
from fourm.runs.inputs import CAPTION
from fourm.runs.outputs import malformed_place, order_place, preview_place
from fourm.runs.request import MAX_DETOKENIZER_STEPS, Request

READ_BYTES = 1 << 16  # larger files are compared by size only, others by checksum
PREVIEW_STEPS = 25  # at most, of a diffusion, for a picture that is still being decoded
GREY = (128, 128, 128)


@dataclass(frozen=True, slots=True)
class ResultFiles:
    """The files of a run's results, and which of them are complete."""

    request: Request
    places: Sequence[Place]  # of the files that every sample gets
    listed: Mapping[str, Listed] = field(default_factory=dict)  # by path below the folder

    @staticmethod
    def of(request: Request, places: Sequence[Place]) -> "ResultFiles":
        """Read the lists of checksums; with `overwrite` all files count as missing, so none is read."""
        share = (request.world.rank, request.world.size)
        listed = {} if request.overwrite or not request.out.is_dir() else read_checksums(request.out, share)
        return ResultFiles(request, places, listed)

    def paths(self, work: Work) -> tuple[Path, ...]:
        """All files of a sample and variation."""
        return tuple(self.path(place, work) for place in self.places)

    def path(self, place: Place, work: Work) -> Path:
        """One file of a sample and variation; the variation is in its name where there are several."""
        variation = None if place.shared or self.request.num_variations == 1 else work.variation
        return path_of(self.request.out, place.folder, work.sample.key, place.suffix, variation)

    def is_made(self, work: Work) -> bool:
        """True if every file of a sample and variation exists and is complete."""
        return not self.request.overwrite and all(map(self.is_complete, self.paths(work)))

    def is_complete(self, path: Path) -> bool:
        """True if a file matches its checksum, or if it has none, is a complete file of its format.

        Tokens without a checksum must also be as many as their modality has, and of its vocabulary. Only the
        size of a large file is compared. An empty file without a checksum is not complete: a power failure
        can leave one. Neither is a link: what it leads to does not belong to the folder.
        """
        try:
            told = path.lstat()
            if not stat.S_ISREG(told.st_mode):
                return False
            size = told.st_size
            name = path.relative_to(self.request.out).as_posix()
            said = self.listed.get(name)
            if said is None:
                ids = (place for place in self.places if place.form == "ids")
                place = next((place for place in ids if name.startswith(f"{place.folder}/")), None)
                row = self.request.model.registry.get(place.modality) if place else None
                tokens = Tokens(row.max_tokens, row.vocab_size) if row else None
                return size > 0 and find_flaw(path, tokens) is None
            if said.size is not None and (size != said.size or size > READ_BYTES):
                return size == said.size
            return hashlib.sha256(read_bytes(path, max(size, 1))).hexdigest() == said.sha256
        except (OSError, SampleError):
            return False


@dataclass(slots=True)
class Film:
    """How the current target of a batch came to be."""

    target: str = ""
    order: Tensor = field(default_factory=lambda: torch.empty(0))  # (B, L) int16: deciding steps; -1: none
    # Pictures to be drawn: where each lies, what was known (B, L), and the values (B).
    frames: list[tuple[Place, Tensor, list[Any]]] = field(default_factory=list)


@dataclass(slots=True)
class Saver:
    """Writes the files of one run."""

    request: Request
    places: Sequence[Place]  # of the files that every sample gets
    codecs: Mapping[str, Codec]  # by modality
    process: Process
    files: ResultFiles
    samples: SampleWriter
    saved: set[tuple[str, int]] = field(default_factory=set)  # key and variation of results, so far
    failed: set[tuple[str, int]] = field(default_factory=set)
    skipped: int = 0  # results that were complete already
    _hashed: set[Path] = field(default_factory=set)

    def add_missing_checksums(self, works: Sequence[Work]) -> None:
        """List the checksums of complete samples that are not listed yet; these samples are skipped."""
        self.skipped = len(works)
        self.record_samples(works)
        paths = {path for work in works for path in self.files.paths(work)}
        paths |= set(self.samples.recorded() if self.request.resume else ())
        out, listed = self.request.out, self.files.listed
        self._note_checksums(sorted(p for p in paths if p.relative_to(out).as_posix() not in listed))

    def record_samples(self, works: Sequence[Work]) -> None:
        """Record what samples are made of, before any file of theirs is written."""
        for work in works:
            if path := self.samples.record(work.sample.key):
                self._note_checksums([path])

    def is_done(self, work: Work) -> bool:
        """True if this run has saved a sample and variation, or has reported that it failed."""
        return work.result in self.saved or work.result in self.failed

    def save(self, rows: Sequence[Given], batch: Batch) -> Iterator[Event]:
        """Write all files of decoded samples; each file is written atomically.

        Tokens are written first. Values are decoded together; if that fails, each sample is decoded alone.
        """
        works = [row.work for row in rows]
        self.process.check()
        for place in self.places:
            if place.form == "ids":
                made = None if place.is_condition else batch.slots[place.modality].values.cpu().numpy()
                for index, row in enumerate(rows):
                    ids = row.ids[place.modality] if made is None else made[index]
                    self._write(place, row.work, partial(write_ids, ids))
        decoded = dict[str, list[Any]]()
        try:
            for place in self.places:
                if place.form == "value" and not place.is_condition:
                    decoded[place.modality] = yield from self._decode(place.modality, works, batch)
        except SampleError as error:
            if len(rows) == 1:
                yield self.fail(works[0], str(error))
                return
            for index, row in enumerate(rows):
                alone = batch.select(torch.tensor([index], device=batch.device))
                yield from self.save([row], alone)
            return
        try:
            for index, row in enumerate(rows):
                yield from self._save_values(row, {name: values[index] for name, values in decoded.items()})
        finally:  # if memory runs out for one of them, those before it are not saved again
            saved = [work for work in works if work.result in self.saved]
            self._note_checksums([path for work in saved for path in self.files.paths(work)])

    def fail(self, work: Work, reason: str) -> Failed:
        """Record a failed sample."""
        key, stage = work.sample.key.text, BASE if self.request.record == RUN else SR
        self.record_samples([work])
        self.failed.add(work.result)
        self.process.add_failure(key, work.variation, reason, stage, self.files.paths(work))
        return Failed(key, work.variation, reason)

    def preview(self, progress: Progress, film: Film, works: Sequence[Work], is_last: bool) -> None:
        """Keep the picture after a step of a grid; after its last step, also the step of each token."""
        out, step, slot = self.request.out, progress.step, progress.batch.slots[progress.step.target]
        codec, written = self.codecs[step.target], list[Path]()
        if not isinstance(codec, GridCodec):
            return
        if film.target != step.target:
            film.target, film.frames = step.target, []
            film.order = torch.full_like(slot.known, -1, dtype=torch.int16)
        film.order[slot.known & (film.order < 0)] = step.number
        if step.number % self.request.preview == 0:
            diffusion = self._diffusion(step.target, works, PREVIEW_STEPS)
            with suppress(SampleError):  # the same error is reported when the result is decoded
                place = preview_place(step.target, step.number)
                film.frames.append((place, slot.known, codec.decode(slot, diffusion)))
        if film.frames and (is_last or codec.form.resample is not None):  # features share colours, known last
            for index, work in enumerate(works):
                pictures = codec.pictures([values[index] for _, _, values in film.frames])
                for (place, known, _), picture in zip(film.frames, pictures, strict=True):
                    path, shown = self.files.path(place, work), _covered(picture, known[index], codec.row)
                    write_atomic(out, path, partial(shown.save, format="PNG"))
                    written.append(path)
            film.frames = []
        for work, ids in zip(works, film.order.cpu().numpy(), strict=True) if is_last else ():
            path = self.files.path(order_place(step.target), work)
            write_atomic(out, path, partial(write_ids, ids))
            written.append(path)
        self._note_checksums(written)

    def _save_values(self, row: Given, made: Mapping[str, Any]) -> Iterator[Event]:
        """Write the values of one sample, and report texts that violate the grammar of their modality."""
        work, out, text = row.work, self.request.out, self._chunks(row.work, row.values)
        # A shared file must not depend on which variation writes it.
        shared_text = {name: said for name, said in text.items() if name != "variation"}
        for name, value in made.items():
            if isinstance(value, Structured) and value.problems:
                path = self.files.path(malformed_place(name), work)
                said = json.dumps({"text": value.text, "problems": value.problems}, ensure_ascii=False)
                write_text(out, path, said + "\n")
                self._note_checksums([path])
                yield Malformed(*work.result, name, value.problems)
        try:
            for place in self.places:
                if place.form == "value":
                    name, chunks = place.modality, shared_text if place.shared else text
                    write = partial(self.codecs[name].write, text=chunks)
                    self._write(place, work, partial(write, made.get(name, row.values.get(name))))
        except SampleError as error:
            yield self.fail(work, str(error))
        else:
            self.saved.add(work.result)
            yield Saved(*work.result, self.files.paths(work), self.request.stage)

    def _decode(self, name: str, works: Sequence[Work], batch: Batch) -> Generator[Event, None, list[Any]]:
        """Decode the values of one target; a diffusion decoder reports its steps."""
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
        """The settings of a diffusion decoder; its noise depends on the sample and the modality."""
        noise = Noise.for_samples(self.request.seed, [w.result for w in works], f"detokenizer {name}")
        return Diffusion(min(most, self.request.detokenizer_steps), noise)

    def _write(self, place: Place, work: Work, write: Callable[[Path], None]) -> None:
        path = self.files.path(place, work)
        if not (place.shared and self.files.is_complete(path)):  # else: written with another variation
            write_atomic(self.request.out, path, write)

    def _note_checksums(self, paths: Sequence[Path]) -> None:
        new = [path for path in dict.fromkeys(paths) if path not in self._hashed]
        if not new:
            return
        self.process.add_checksums(list_files(self.request.out, new))
        shared = [self.request.out / place.folder for place in self.places if place.shared]
        # Only files that variations share occur again.
        self._hashed |= {path for path in new if any(map(path.is_relative_to, shared))}

    def _chunks(self, work: Work, values: Mapping[str, Any]) -> dict[str, str]:
        """The text chunks of a PNG: everything that is needed to make the picture again."""
        record, registry = self.samples.run.record, self.request.model.registry
        prompts = [value for name, value in values.items() if registry.get(name).codec == CAPTION]
        chunks = {
            "software": f"fourm {__version__}", **({"prompt": prompts[0]} if prompts else {}),
            "model": record.model, "seed": str(record.seed), "sample": work.sample.key.text,
            "variation": str(work.variation), "variations": str(record.num_variations),
            "schedule": record.options, "weights": record.files["weights"], "dtype": record.dtype,
            "detokenizer steps": str(record.detokenizer_steps),
        }  # fmt: skip
        if base := self.request.origin:
            facts = {"model": base.model, "seed": base.seed, "schedule": base.options, "dtype": base.dtype,
                     "weights": base.files.get("weights", "")}  # fmt: skip
            chunks |= {f"base {name}": str(fact) for name, fact in facts.items()}
        return chunks


def _covered(picture: Image.Image, known: Tensor, row: Modality) -> Image.Image:
    """The picture with what is not known (L,) in grey."""
    cells = rearrange(known.to(torch.uint8) * 255, "(h w) -> h w", h=row.grid[0] if row.grid else 1)
    mask = Image.fromarray(cells.cpu().numpy()).resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(picture.convert("RGB"), Image.new("RGB", picture.size, GREY), mask)
