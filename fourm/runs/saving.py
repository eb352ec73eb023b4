"""Writes the files of each sample: tokens, decoded values, previews; records the samples that fail."""

import json
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
from fourm.data.layout import Place
from fourm.data.writing import write_atomic, write_text
from fourm.decoding.engine import Progress
from fourm.decoding.sampling import Noise
from fourm.errors import SampleError
from fourm.modalities.registry import Modality
from fourm.modalities.text import Structured
from fourm.networks.state import Batch
from fourm.output.processes import Listed, Process, list_files
from fourm.output.record import BASE, RUN, SR
from fourm.output.samples import SampleWriter
from fourm.runs.conditions import Given, Work
from fourm.runs.events import Detokenized, Event, Failed, Malformed, Saved
from fourm.runs.inputs import CAPTION
from fourm.runs.outputs import Job, malformed_place, order_place, preview_place
from fourm.runs.request import MAX_DETOKENIZER_STEPS

PREVIEW_STEPS = 25  # at most, of a diffusion, for a picture that is still being decoded
GREY = (128, 128, 128)


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

    job: Job
    codecs: Mapping[str, Codec]  # by modality
    process: Process
    listed: Mapping[str, Listed]  # checksums of files that were there, by path below the folder
    samples: SampleWriter
    saved: set[tuple[str, int]] = field(default_factory=set)  # key and variation of results, so far
    failed: set[tuple[str, int]] = field(default_factory=set)
    skipped: int = 0  # results that were complete already
    _hashed: set[Path] = field(default_factory=set)

    def add_missing_checksums(self, works: Sequence[Work]) -> None:
        """List the checksums of complete samples that are not listed yet; these samples are skipped."""
        self.skipped = len(works)
        self.record_samples(works)
        paths = {path for work in works for path in self.job.paths(work)}
        paths |= set(self.samples.recorded() if self.job.request.resume else ())
        out = self.job.request.out
        self._note_checksums(sorted(p for p in paths if p.relative_to(out).as_posix() not in self.listed))

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
        for place in self.job.written:
            if place.form == "ids":
                made = None if place.is_condition else batch.slots[place.modality].values.cpu().numpy()
                for index, row in enumerate(rows):
                    ids = row.ids[place.modality] if made is None else made[index]
                    self._write(place, row.work, partial(write_ids, ids))
        decoded = dict[str, list[Any]]()
        try:
            for place in self.job.written:
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
            self._note_checksums([path for work in saved for path in self.job.paths(work)])

    def fail(self, work: Work, reason: str) -> Failed:
        """Record a failed sample."""
        key, stage = work.sample.key.text, BASE if self.job.request.record == RUN else SR
        self.record_samples([work])
        self.failed.add(work.result)
        self.process.add_failure(key, work.variation, reason, stage, self.job.paths(work))
        return Failed(key, work.variation, reason)

    def preview(self, progress: Progress, film: Film, works: Sequence[Work], is_last: bool) -> None:
        """Keep the picture after a step of a grid; after its last step, also the step of each token."""
        out, step, slot = self.job.request.out, progress.step, progress.batch.slots[progress.step.target]
        codec, written = self.codecs[step.target], list[Path]()
        if not isinstance(codec, GridCodec):
            return
        if film.target != step.target:
            film.target, film.frames = step.target, []
            film.order = torch.full_like(slot.known, -1, dtype=torch.int16)
        film.order[slot.known & (film.order < 0)] = step.number
        if step.number % self.job.request.preview == 0:
            diffusion = self._diffusion(step.target, works, PREVIEW_STEPS)
            with suppress(SampleError):  # the same error is reported when the result is decoded
                place = preview_place(step.target, step.number)
                film.frames.append((place, slot.known, codec.decode(slot, diffusion)))
        if film.frames and (is_last or codec.form.resample is not None):  # features share colours, known last
            for index, work in enumerate(works):
                pictures = codec.pictures([values[index] for _, _, values in film.frames])
                for (place, known, _), picture in zip(film.frames, pictures, strict=True):
                    path, shown = self.job.path(place, work), _covered(picture, known[index], codec.row)
                    write_atomic(out, path, partial(shown.save, format="PNG"))
                    written.append(path)
            film.frames = []
        for work, ids in zip(works, film.order.cpu().numpy(), strict=True) if is_last else ():
            path = self.job.path(order_place(step.target), work)
            write_atomic(out, path, partial(write_ids, ids))
            written.append(path)
        self._note_checksums(written)

    def _save_values(self, row: Given, made: Mapping[str, Any]) -> Iterator[Event]:
        """Write the values of one sample, and report texts that violate the grammar of their modality."""
        work = row.work
        for name, value in made.items():
            if isinstance(value, Structured) and value.problems:
                path = self.job.path(malformed_place(name), work)
                said = json.dumps({"text": value.text, "problems": value.problems}, ensure_ascii=False)
                write_text(self.job.request.out, path, said + "\n")
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
        noise = Noise.for_samples(self.job.request.seed, [w.result for w in works], f"detokenizer {name}")
        return Diffusion(min(most, self.job.request.detokenizer_steps), noise)

    def _write(self, place: Place, work: Work, write: Callable[[Path], None]) -> None:
        path = self.job.path(place, work)
        # What variations share may have been written with another one.
        if not (place.shared and self.job.is_complete(path, self.listed)):
            write_atomic(self.job.request.out, path, write)

    def _note_checksums(self, paths: Sequence[Path]) -> None:
        new = [path for path in dict.fromkeys(paths) if path not in self._hashed]
        if not new:
            return
        self.process.add_checksums(list_files(self.job.request.out, new))
        shared = [self.job.request.out / place.folder for place in self.job.written if place.shared]
        # Only files that variations share occur again.
        self._hashed |= {path for path in new if any(map(path.is_relative_to, shared))}

    def _chunks(self, work: Work, values: Mapping[str, Any], is_shared: bool) -> dict[str, str]:
        """The text chunks of a PNG: everything that is needed to make the picture again."""
        record, registry = self.samples.run.record, self.job.request.model.registry
        prompts = [value for name, value in values.items() if registry.get(name).codec == CAPTION]
        chunks = {
            "software": f"fourm {__version__}", **({"prompt": prompts[0]} if prompts else {}),
            "model": record.model, "seed": str(record.seed), "sample": work.sample.key.text,
            **({} if is_shared else {"variation": str(work.variation)}),  # any of them may write it
            "variations": str(record.num_variations),
            "schedule": record.options, "weights": record.files["weights"], "dtype": record.dtype,
            "detokenizer steps": str(record.detokenizer_steps),
        }  # fmt: skip
        if base := self.job.request.origin:
            facts = {"model": base.model, "seed": base.seed, "schedule": base.options, "dtype": base.dtype,
                     "weights": base.files.get("weights", "")}  # fmt: skip
            chunks |= {f"base {name}": str(fact) for name, fact in facts.items()}
        return chunks


def _covered(picture: Image.Image, known: Tensor, row: Modality) -> Image.Image:
    """The picture with what is not known (L,) in grey."""
    cells = rearrange(known.to(torch.uint8) * 255, "(h w) -> h w", h=row.grid[0] if row.grid else 1)
    mask = Image.fromarray(cells.cpu().numpy()).resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(picture.convert("RGB"), Image.new("RGB", picture.size, GREY), mask)
