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

from fourm import __version__
from fourm.codecs.files import write_ids
from fourm.codecs.images import Diffusion, GridCodec
from fourm.codecs.table import Codec
from fourm.data.layout import Place, path_of
from fourm.data.writing import write_atomic, write_text
from fourm.decoding.engine import Progress
from fourm.decoding.sampling import Noise
from fourm.errors import SampleError
from fourm.modalities.text import Structured
from fourm.networks.state import Batch
from fourm.output.checksums import list_files
from fourm.output.processes import Failure, Process, lacking, now
from fourm.output.record import sha256_of
from fourm.output.runfile import BASE, RUN, SR
from fourm.runs.conditions import Given, Work
from fourm.runs.events import Detokenized, Event, Failed, Malformed, Saved
from fourm.runs.finished import Folder
from fourm.runs.inputs import CAPTION
from fourm.runs.outputs import Output, malformed_place
from fourm.runs.preview import Film, preview_places
from fourm.runs.request import PREVIEW_STEPS, Request


@dataclass(slots=True)
class Tally:
    """Which samples are saved, skipped or failed so far, by key and variation."""

    saved: set[tuple[str, int]] = field(default_factory=set)
    skipped: int = 0
    failed: set[tuple[str, int]] = field(default_factory=set)


@dataclass(slots=True)
class Saver:
    """Writes the files of one run."""

    request: Request
    outputs: Sequence[Output]
    dtype: str
    process: Process
    folder: Folder
    codecs: Mapping[str, Codec[Any]] = field(default_factory=dict)  # by modality
    tally: Tally = field(default_factory=Tally)
    _hashed: set[Path] = field(default_factory=set)

    def add_missing_checksums(self, works: Sequence[Work]) -> None:
        """List the checksums of complete samples that are not listed yet; these samples are skipped."""
        self.tally.skipped = len(works)
        paths = {path for work in works for path in self.folder.paths(work)}
        self._note_checksums(sorted(path for path in paths if not self.folder.is_listed(path)))

    def is_done(self, work: Work) -> bool:
        """True if this run has saved a sample and variation, or has reported that it failed."""
        result = (work.sample.key.text, work.variation)
        return result in self.tally.saved or result in self.tally.failed

    def save(self, rows: Sequence[Given], batch: Batch) -> Iterator[Event]:
        """Write all files of decoded samples; each file is written atomically.

        Tokens are written first. Values are decoded together; if that fails, each sample is decoded alone.
        """
        works = [row.work for row in rows]
        self.process.check()
        for output in self.outputs:
            if output.form == "ids" and output.is_written:
                self._write_ids(output, rows, batch)
        decoded = dict[str, list[Any]]()
        try:
            for output in self.outputs:
                if output.form == "value" and not output.is_condition:
                    decoded[output.modality.name] = yield from self._decode(
                        output.modality.name, works, batch
                    )
        except SampleError as error:
            if len(rows) == 1:
                yield self.fail(works[0], str(error))
                return
            for index, row in enumerate(rows):
                alone = batch.select(torch.tensor([index], device=batch.device))
                yield from self.save([row], alone)
            return
        saved = list[Work]()
        try:
            for index, row in enumerate(rows):
                values = {name: made[index] for name, made in decoded.items()}
                if (yield from self._save_values(row, values)):
                    saved.append(row.work)
        finally:  # if memory runs out for one of them, those before it are not saved again
            self._note_checksums([path for work in saved for path in self.folder.paths(work)])

    def fail(self, work: Work, reason: str) -> Failed:
        """Record a failed sample."""
        request, key = self.request, work.sample.key.text
        self.tally.failed.add((key, work.variation))
        files = lacking(request.out, self.folder.paths(work))
        stage = BASE if request.record == RUN else SR
        self.process.add_failure(Failure(key, work.variation, reason, stage, now(), files))
        return Failed(key, work.variation, reason)

    def preview(self, progress: Progress, film: Film, works: Sequence[Work], is_last: bool) -> None:
        """Keep the picture after a step; after a target's last step, also the step of each token."""
        request, step, name = self.request, progress.step, progress.step.target
        row, slot, codec = request.model.registry.get(name), progress.batch.slots[name], self.codecs[name]
        pictures, order_place = preview_places(name)
        order = film.note(name, slot.known, step.number)
        if not isinstance(codec, GridCodec) or row.grid is None:
            return
        if step.number % request.preview == 0:
            suffix = f"-step{step.number:03d}{pictures.suffix}"
            paths = [self._path(Place(pictures.folder, suffix), work) for work in works]
            diffusion = self._diffusion(name, works, min(PREVIEW_STEPS, request.detokenizer_steps))
            with suppress(SampleError):  # the same error is reported when the result is decoded
                film.keep(name, paths, slot, codec.decode(slot, diffusion))
        written = list[Path]()
        if is_last or not codec.shares_colours:  # shared colours are known after the last picture
            for path, shown in film.draw(name, row, codec):
                write_atomic(request.out, path, partial(shown.save, format="PNG"))
                written.append(path)
        if is_last:
            for work, ids in zip(works, order.cpu().numpy(), strict=True):
                path = self._path(order_place, work)
                write_atomic(request.out, path, partial(write_ids, ids))
                written.append(path)
        self._note_checksums(written)

    def _save_values(self, row: Given, made: Mapping[str, Any]) -> Generator[Event, None, bool]:
        """Write the values of one sample; False if one of them cannot be written."""
        work, key = row.work, row.work.sample.key.text
        text = self._chunks(work, row.values)
        # A shared file must not depend on which variation writes it.
        shared_text = {name: said for name, said in text.items() if name != "variation"}
        yield from self._write_malformed(work, made)
        try:
            for output in self.outputs:
                if output.form == "value" and output.is_written:
                    name = output.modality.name
                    said = shared_text if output.place.shared else text
                    write = partial(self.codecs[name].write, text=said)
                    self._write(output, work, partial(write, made.get(name, row.values.get(name))))
        except SampleError as error:
            yield self.fail(work, str(error))
            return False
        self.tally.saved.add((key, work.variation))
        yield Saved(key, work.variation, self.folder.paths(work), self.request.stage)
        return True

    def _decode(self, name: str, works: Sequence[Work], batch: Batch) -> Generator[Event, None, list[Any]]:
        """Decode the values of one target; a diffusion decoder reports its steps."""
        codec, slot = self.codecs[name], batch.slots[name]
        if not (isinstance(codec, GridCodec) and codec.diffuses):
            return codec.decode(slot)
        steps = codec.decode_stepwise(slot, self._diffusion(name, works, self.request.detokenizer_steps))
        keys = tuple(work.sample.key.text for work in works)
        while True:
            started = time.perf_counter()
            try:
                done, total = next(steps)
            except StopIteration as end:
                return end.value
            yield Detokenized(keys, name, done, total, time.perf_counter() - started)

    def _diffusion(self, name: str, works: Sequence[Work], steps: int) -> Diffusion:
        """The settings of a diffusion decoder; its noise depends on the sample and the modality."""
        samples = [(work.sample.key.text, work.variation) for work in works]
        return Diffusion(steps, Noise.for_samples(self.request.seed, samples, f"detokenizer {name}"))

    def _write_malformed(self, work: Work, made: Mapping[str, Any]) -> Iterator[Event]:
        """Write and report texts that violate the grammar of their modality."""
        for name, value in made.items():
            if isinstance(value, Structured) and value.problems:
                path = self._path(malformed_place(name), work)
                said = json.dumps({"text": value.text, "problems": value.problems}, ensure_ascii=False)
                write_text(self.request.out, path, said + "\n")
                self._note_checksums([path])
                yield Malformed(work.sample.key.text, work.variation, name, value.problems)

    def _write_ids(self, output: Output, rows: Sequence[Given], batch: Batch) -> None:
        name = output.modality.name
        made = None if output.is_condition else batch.slots[name].values.cpu().numpy()
        for index, row in enumerate(rows):
            ids = row.ids[name] if made is None else made[index]
            self._write(output, row.work, partial(write_ids, ids))

    def _write(self, output: Output, work: Work, write: Callable[[Path], None]) -> None:
        path = self._path(output.place, work)
        if not (output.place.shared and self.folder.is_whole(path)):  # else: written with another variation
            write_atomic(self.request.out, path, write)

    def _path(self, place: Place, work: Work) -> Path:
        variation = None if place.shared else self._suffix(work)
        return path_of(self.request.out, place.folder, work.sample.key, place.suffix, variation)

    def _suffix(self, work: Work) -> int | None:
        """The variation in file names; None if there is only one."""
        return work.variation if self.request.num_variations > 1 else None

    def _note_checksums(self, paths: Sequence[Path]) -> None:
        new = [path for path in dict.fromkeys(paths) if path not in self._hashed]
        if not new:
            return
        self.process.add_checksums(list_files(self.request.out, new))
        # Only files that variations share occur again.
        self._hashed |= {path for path in new if any(path.is_relative_to(f) for f in self._shared_folders)}

    @property
    def _shared_folders(self) -> list[Path]:
        return [self.request.out / o.place.folder for o in self.outputs if o.place.shared]

    def _chunks(self, work: Work, values: Mapping[str, Any]) -> dict[str, str]:
        """The text chunks of a PNG: everything that is needed to make the picture again."""
        request = self.request
        registry = request.model.registry
        prompts = [value for name, value in values.items() if registry.get(name).codec == CAPTION]
        said = {"prompt": prompts[0]} if prompts else {}
        chunks = {
            "software": f"fourm {__version__}",
            **said,
            "model": request.model.name,
            "seed": str(request.seed),
            "sample": work.sample.key.text,
            "variation": str(work.variation),
            "variations": str(request.num_variations),
            "schedule": request.chain.to_text(),
            "weights": sha256_of(request.model.weights),
            "dtype": self.dtype,
            "detokenizer steps": str(request.detokenizer_steps),
        }
        if request.origin is None or (base := request.origin.record) is None:
            return chunks
        facts = {"model": base.model, "seed": base.seed, "schedule": base.options, "dtype": base.dtype,
                 "weights": base.files.get("weights", "")}  # fmt: skip
        return chunks | {f"base {name}": str(fact) for name, fact in facts.items()}
