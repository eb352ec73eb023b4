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
from fourm.networks.state import Batch, Slot
from fourm.output.formats import Tokens, find_flaw
from fourm.output.processes import (
    Failure,
    Listed,
    Process,
    lacking,
    list_files,
    now,
    read_checksums,
    sha256_of,
)
from fourm.output.record import BASE, RUN, SR
from fourm.output.samples import SampleWriter
from fourm.runs.conditions import Given, Work
from fourm.runs.events import Detokenized, Event, Failed, Malformed, Saved
from fourm.runs.inputs import CAPTION
from fourm.runs.outputs import Output, is_previewed, malformed_place, order_place, preview_place
from fourm.runs.request import PREVIEW_STEPS, Request

READ_BYTES = 1 << 16  # larger files are compared by size only, others by checksum
GREY = (128, 128, 128)


@dataclass(frozen=True, slots=True)
class ResultFiles:
    """The files of a run's results, and which of them are complete."""

    request: Request
    outputs: Sequence[Output]
    listed: Mapping[str, Listed] = field(default_factory=dict)  # by path below the folder

    @staticmethod
    def of(request: Request, outputs: Sequence[Output]) -> "ResultFiles":
        """Read the lists of checksums; with `overwrite` all files count as missing, so none is read."""
        share = (request.world.rank, request.world.size)
        listed = {} if request.overwrite or not request.out.is_dir() else read_checksums(request.out, share)
        return ResultFiles(request, outputs, listed)

    def paths(self, work: Work) -> tuple[Path, ...]:
        """All files of a sample and variation."""
        places = [output.place for output in self.outputs if output.is_written]
        return tuple(self.path(place, work) for place in places)

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
            said = self.listed.get(path.relative_to(self.request.out).as_posix())
            if said is None:
                return size > 0 and find_flaw(path, self._tokens_of(path)) is None
            if said.size is not None and (size != said.size or size > READ_BYTES):
                return size == said.size
            return hashlib.sha256(read_bytes(path, max(size, 1))).hexdigest() == said.sha256
        except (OSError, SampleError):
            return False

    def _tokens_of(self, path: Path) -> Tokens | None:
        """What a file of tokens holds that this run writes; None for other files."""
        for output in self.outputs:
            if output.place.form == "ids" and path.is_relative_to(self.request.out / output.place.folder):
                return Tokens(output.modality.max_tokens, output.modality.vocab_size)
        return None


class Film:
    """How the targets of a batch came to be: which step decided which token, pictures still to be drawn."""

    def __init__(self) -> None:
        self._orders: dict[str, Tensor] = {}
        self._waiting: dict[str, list[tuple[Sequence[Path], Slot, list[Any]]]] = {}

    def note(self, target: str, known: Tensor, step: int) -> Tensor:
        """Take in what is known (B, L) after a step; (B, L) int16 numbers of steps, -1 for undecided ones."""
        order = self._orders.setdefault(target, torch.full_like(known, -1, dtype=torch.int16))
        order[known & (order < 0)] = step
        return order

    def keep(self, target: str, paths: Sequence[Path], slot: Slot, values: list[Any]) -> None:
        """Remember the values (B) of one step, whose pictures belong at these paths (B)."""
        self._waiting.setdefault(target, []).append((paths, slot, values))

    def draw(self, target: str, row: Modality, codec: GridCodec) -> Iterator[tuple[Path, Image.Image]]:
        """The pictures that wait, each with its path; colours of features mean the same in all of them."""
        frames = self._waiting.pop(target, [])
        for index in range(len(frames[0][0]) if frames else 0):
            pictures = codec.pictures([values[index] for _, _, values in frames])
            for (paths, slot, _), picture in zip(frames, pictures, strict=True):
                yield paths[index], _covered(picture.convert("RGB"), slot.known[index], row)


@dataclass(slots=True)
class Saver:
    """Writes the files of one run."""

    request: Request
    outputs: Sequence[Output]
    dtype: str
    process: Process
    files: ResultFiles
    samples: SampleWriter
    codecs: Mapping[str, Codec] = field(default_factory=dict)  # by modality
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
        result = (work.sample.key.text, work.variation)
        return result in self.saved or result in self.failed

    def save(self, rows: Sequence[Given], batch: Batch) -> Iterator[Event]:
        """Write all files of decoded samples; each file is written atomically.

        Tokens are written first. Values are decoded together; if that fails, each sample is decoded alone.
        """
        works = [row.work for row in rows]
        self.process.check()
        for output in self.outputs:
            if output.place.form == "ids" and output.is_written:
                self._write_ids(output, rows, batch)
        decoded = dict[str, list[Any]]()
        try:
            for output in self.outputs:
                if output.place.form == "value" and not output.place.is_condition:
                    name = output.modality.name
                    decoded[name] = yield from self._decode(name, works, batch)
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
            self._note_checksums([path for work in saved for path in self.files.paths(work)])

    def fail(self, work: Work, reason: str) -> Failed:
        """Record a failed sample."""
        key, stage = work.sample.key.text, BASE if self.request.record == RUN else SR
        self.record_samples([work])
        self.failed.add((key, work.variation))
        files = lacking(self.request.out, self.files.paths(work))
        self.process.add_failure(Failure(key, work.variation, reason, stage, now(), files))
        return Failed(key, work.variation, reason)

    def preview(self, progress: Progress, film: Film, works: Sequence[Work], is_last: bool) -> None:
        """Keep the picture after a step; after a target's last step, also the step of each token."""
        request, step, name = self.request, progress.step, progress.step.target
        row, slot, codec = request.model.registry.get(name), progress.batch.slots[name], self.codecs[name]
        order = film.note(name, slot.known, step.number)
        if not isinstance(codec, GridCodec) or row.grid is None:
            return
        if is_previewed(step, request.preview):
            place = preview_place(name, step.number)
            paths = [self.files.path(place, work) for work in works]
            diffusion = self._diffusion(name, works, min(PREVIEW_STEPS, request.detokenizer_steps))
            with suppress(SampleError):  # the same error is reported when the result is decoded
                film.keep(name, paths, slot, codec.decode(slot, diffusion))
        written = list[Path]()
        if is_last or codec.form.resample is not None:  # features share colours, known after the last picture
            for path, shown in film.draw(name, row, codec):
                write_atomic(request.out, path, partial(shown.save, format="PNG"))
                written.append(path)
        if is_last:
            for work, ids in zip(works, order.cpu().numpy(), strict=True):
                path = self.files.path(order_place(name), work)
                write_atomic(request.out, path, partial(write_ids, ids))
                written.append(path)
        self._note_checksums(written)

    def _save_values(self, row: Given, made: Mapping[str, Any]) -> Generator[Event, None, bool]:
        """Write the values of one sample; False if one of them cannot be written."""
        work, key, text = row.work, row.work.sample.key.text, self._chunks(row.work, row.values)
        # A shared file must not depend on which variation writes it.
        shared_text = {name: said for name, said in text.items() if name != "variation"}
        yield from self._write_malformed(work, made)
        try:
            for output in self.outputs:
                if output.place.form == "value" and output.is_written:
                    name = output.modality.name
                    said = shared_text if output.place.shared else text
                    write = partial(self.codecs[name].write, text=said)
                    self._write(output, work, partial(write, made.get(name, row.values.get(name))))
        except SampleError as error:
            yield self.fail(work, str(error))
            return False
        self.saved.add((key, work.variation))
        yield Saved(key, work.variation, self.files.paths(work), self.request.stage)
        return True

    def _decode(self, name: str, works: Sequence[Work], batch: Batch) -> Generator[Event, None, list[Any]]:
        """Decode the values of one target; a diffusion decoder reports its steps."""
        codec, slot = self.codecs[name], batch.slots[name]
        if not isinstance(codec, GridCodec):
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
                path = self.files.path(malformed_place(name), work)
                said = json.dumps({"text": value.text, "problems": value.problems}, ensure_ascii=False)
                write_text(self.request.out, path, said + "\n")
                self._note_checksums([path])
                yield Malformed(work.sample.key.text, work.variation, name, value.problems)

    def _write_ids(self, output: Output, rows: Sequence[Given], batch: Batch) -> None:
        name = output.modality.name
        made = None if output.place.is_condition else batch.slots[name].values.cpu().numpy()
        for index, row in enumerate(rows):
            ids = row.ids[name] if made is None else made[index]
            self._write(output, row.work, partial(write_ids, ids))

    def _write(self, output: Output, work: Work, write: Callable[[Path], None]) -> None:
        path = self.files.path(output.place, work)
        if not (output.place.shared and self.files.is_complete(path)):  # else: written with another variation
            write_atomic(self.request.out, path, write)

    def _note_checksums(self, paths: Sequence[Path]) -> None:
        new = [path for path in dict.fromkeys(paths) if path not in self._hashed]
        if not new:
            return
        self.process.add_checksums(list_files(self.request.out, new))
        shared = [self.request.out / output.place.folder for output in self.outputs if output.place.shared]
        # Only files that variations share occur again.
        self._hashed |= {path for path in new if any(map(path.is_relative_to, shared))}

    def _chunks(self, work: Work, values: Mapping[str, Any]) -> dict[str, str]:
        """The text chunks of a PNG: everything that is needed to make the picture again."""
        request = self.request
        registry = request.model.registry
        prompts = [value for name, value in values.items() if registry.get(name).codec == CAPTION]
        chunks = {
            "software": f"fourm {__version__}",
            **({"prompt": prompts[0]} if prompts else {}),
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
        if request.origin and (base := request.origin.record):
            facts = {"model": base.model, "seed": base.seed, "schedule": base.options, "dtype": base.dtype,
                     "weights": base.files.get("weights", "")}  # fmt: skip
            chunks |= {f"base {name}": str(fact) for name, fact in facts.items()}
        return chunks


def _covered(picture: Image.Image, known: Tensor, row: Modality) -> Image.Image:
    """The picture with what is not known (L,) in grey."""
    rows = row.grid[0] if row.grid else 1
    cells = rearrange(known.to(torch.uint8) * 255, "(h w) -> h w", h=rows).cpu().numpy()
    mask = Image.fromarray(cells).resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(picture, Image.new("RGB", picture.size, GREY), mask)
