"""Writes the files of a run: tokens, values, what was kept, previews; and records checksums and failures."""

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourm import __version__
from fourm.codecs.files import format_frame, write_ids, write_png
from fourm.codecs.images import GridCodec
from fourm.codecs.table import Codec
from fourm.data.layout import Place
from fourm.data.opening import read_bytes
from fourm.data.writing import write_atomic, write_text
from fourm.decoding.steps import Progress
from fourm.errors import SampleError
from fourm.hub.header import FULL
from fourm.inputs.conditions import PreparedSample, Work
from fourm.inputs.request import DDIM, MAX_DETOKENIZER_STEPS
from fourm.inputs.sources import CAPTION
from fourm.networks.state import Batch, Slot
from fourm.output.processes import Listed, Process, list_files
from fourm.output.record import FRAMES
from fourm.output.samples import SampleWriter
from fourm.runs.events import Event, Failed, Malformed, Saved
from fourm.runs.job import Job, malformed_place, order_place, preview_place
from fourm.runs.values import (
    PREVIEW_STEPS,
    Made,
    covered,
    decode_rows,
    diffusion_of,
    malformed_of,
    unreported,
)
from fourm.schedule.chain import Step


@dataclass(slots=True)
class Previews:
    """What previews show of the target that a batch is decoding."""

    target: str = ""
    # The number of the step that decoded each token, from 1; 0 if it was given, -1 if it is not decoded.
    order: Tensor = field(default_factory=lambda: torch.empty(0))  # (B, L) int16
    # Pictures that are not written yet: place, known tokens (B, L) bool, one value per sample.
    waiting: list[tuple[Place, Tensor, list[Any]]] = field(default_factory=list)

    def note(self, step: Step, slot: Slot) -> None:
        """Note which tokens of the slot a step has decoded. A new target begins anew."""
        if self.target != step.target:
            self.target, self.waiting = step.target, []
            self.order = torch.full_like(slot.known, -1, dtype=torch.int16)
            if slot.given is not None:
                self.order[slot.given] = 0
        self.order[slot.known & (self.order < 0)] = step.number


@dataclass(slots=True)
class Saver:
    """Writes the files of one run. One thread may save samples while another one begins, fails or watches."""

    job: Job
    codecs: Mapping[str, Codec]  # by modality
    process: Process
    listed: Mapping[str, Listed]  # checksums of files of earlier runs, by path relative to the folder
    samples: SampleWriter
    saved: set[tuple[str, int]] = field(default_factory=set)  # key and variation of each result
    failed: set[tuple[str, int]] = field(default_factory=set)
    skipped: int = 0  # results that were complete already
    _hashed: set[Path] = field(default_factory=set)  # shared files whose checksum is listed
    _previews: Previews = field(default_factory=Previews)  # of the samples that are being decoded
    _lock: RLock = field(default_factory=RLock)  # held while something is recorded

    def add_missing_checksums(self, works: Sequence[Work]) -> None:
        """List the checksums of complete samples that are not listed yet; these samples are skipped."""
        self.skipped = len(works)
        self._record_samples(works)
        out = self.job.request.out
        paths = {path for work in works for path in self._paths(work)}
        if self.job.request.resume:
            paths |= self.samples.recorded
        self._note_checksums(sorted(p for p in paths if p.relative_to(out).as_posix() not in self.listed))

    def begin(self, works: Sequence[Work]) -> None:
        """Called with samples before they are decoded together."""
        self._previews = Previews()
        self._record_samples(works)

    def _record_samples(self, works: Sequence[Work]) -> None:
        """Record the input files of samples. This is done before any output file of theirs is written."""
        with self._lock:
            for work in works:
                if path := self.samples.record(work.sample.key):
                    self._note_checksums([path])

    def save(
        self, given: Sequence[PreparedSample], batch: Batch, chosen: Sequence[int]
    ) -> Generator[Event, None, None]:
        """Write all files of the chosen samples, each atomically, and report each as saved or failed.

        batch: one decoded row for each of `given`, in the same order. Samples that are reported already are
        left out, so a call can be repeated. Tokens are written first.
        """
        rows, batch = unreported(given, batch, chosen, self.saved | self.failed)
        if not rows:
            return
        self.process.check()
        for place in self.job.written:
            if place.form == "ids":
                for row, ids in zip(rows, batch.slots[place.modality].values.cpu().numpy(), strict=True):
                    self._write(place, row.work, partial(write_ids, ids))
        try:
            made = decode_rows(self.job, self.codecs, rows, batch, self._write_values)
            yield from self._recorded(rows, made)
        finally:  # if memory runs out for one sample, those saved before it are not decoded again
            saved = [row.work for row in rows if row.work.result in self.saved]
            self._note_checksums([path for work in saved for path in self._paths(work)])

    def save_made(self, made: Made) -> Iterator[Event]:
        """Write a result that is in memory: the same files as `save`."""
        work, targets = made.work, self.job.request.chain.targets
        self._record_samples([work])
        for place in self.job.written:
            if place.form == "ids":
                self._write(place, work, partial(write_ids, made.tokens[place.modality]))
        given = {name: value for name, value in made.values.items() if name not in targets}
        row = PreparedSample(work, values=given, kept=made.kept, frame=made.frame)
        yield from self._recorded([row], self._write_values(row, made.values))
        self._note_checksums(self._paths(work))

    def fail(self, work: Work, reason: str) -> Failed:
        """Record a failed sample; the event to report is returned."""
        with self._lock:
            self._record_samples([work])
            self.failed.add(work.result)
            self.process.add_failure(*work.result, reason, self.samples.run.stage, self.job.paths(work))
        return Failed(*work.result, reason)

    def watch(self, progress: Progress, works: Sequence[Work], is_last: bool) -> None:
        """Write a picture of each sample after a step of a grid, if the request asks for it.

        is_last: True for the last step of a target, after which the decoding step of each token is written,
        too.
        """
        step, request, previews = progress.step, self.job.request, self._previews
        slot, codec = progress.batch.slots[step.target], self.codecs[step.target]
        if not request.preview or not isinstance(codec, GridCodec):
            return
        previews.note(step, slot)
        # Depth and features have the colours of the result in all pictures, which therefore wait for it.
        is_scaled = codec.form.is_measured or codec.form.resample is None
        is_shown, is_result = step.number % request.preview == 0, is_last and is_scaled
        values = list[Any]()
        if is_shown or (is_result and previews.waiting):
            most = MAX_DETOKENIZER_STEPS if is_result else PREVIEW_STEPS
            with suppress(SampleError):  # the same error is reported when the result is decoded
                values = codec.decode(slot, diffusion_of(request, step.target, works, most))
        if is_shown and values:
            previews.waiting.append((preview_place(step.target, step.number), slot.known, values))
        written = list[Path]()
        if is_last or not is_scaled:
            written += self._write_previews(works, codec, values if is_result else [])
        if is_last:
            written += self._write_orders(works)
        self._note_checksums(written)

    def _write_previews(self, works: Sequence[Work], codec: GridCodec, results: Sequence[Any]) -> list[Path]:
        """Write the pictures that wait; results: of each sample the value whose colours they have, if any."""
        written, waiting = list[Path](), self._previews.waiting
        for index, work in enumerate(works) if waiting else ():
            pictures = codec.pictures([v[index] for _, _, v in waiting], results[index] if results else None)
            for (place, known, _), picture in zip(waiting, pictures, strict=True):
                written.append(self.job.path(place, work))
                shown = covered(picture, known[index], codec.row)
                write_atomic(self.job.request.out, written[-1], partial(shown.save, format="PNG"))
        self._previews.waiting = []
        return written

    def _write_orders(self, works: Sequence[Work]) -> list[Path]:
        """Write the number of the decoding step of each token of the target."""
        written, previews = list[Path](), self._previews
        for work, order in zip(works, previews.order.cpu().numpy(), strict=True):
            written.append(self.job.path(order_place(previews.target), work))
            write_atomic(self.job.request.out, written[-1], partial(write_ids, order))
        return written

    def _write_values(self, row: PreparedSample, made: Mapping[str, Any]) -> list[Event]:
        """Write the values of one sample; events, of texts that violate the grammar of their modality, too.

        made: by modality, values of targets and of conditions as they are written. Only writes, in any
        thread; `_recorded` does the rest.
        """
        work, malformed = row.work, malformed_of(self.job, row.work, made)
        for event in malformed:
            text, path = made[event.target].text, self.job.path(malformed_place(event.target), work)
            content = json.dumps({"text": text, "problems": event.problems}, ensure_ascii=False)
            write_text(self.job.request.out, path, content + "\n")
        try:
            self._record_frame(row)
            for place in self.job.written:
                if place.form == "value":
                    write, texts = self.codecs[place.modality].write, self._png_texts(row, place.shared)
                    self._write(place, work, partial(write, made[place.modality], text=texts))
                elif place.form in ("kept", "kept_ids", "mask"):
                    self._write(place, work, partial(self._write_kept, place, row))
        except SampleError as error:
            return [*malformed, Failed(*work.result, str(error))]
        return [*malformed, Saved(*work.result, self.job.paths(work), self.job.request.stage)]

    def _recorded(self, rows: Sequence[PreparedSample], events: Iterable[Event]) -> Iterator[Event]:
        """The events of these samples, each when it is recorded."""
        works = {row.work.result: row.work for row in rows}
        for event in events:
            if isinstance(event, Saved):
                self.saved.add((event.key, event.variation))
            elif isinstance(event, Malformed):
                work = works[event.key, event.variation]
                self._note_checksums([self.job.path(malformed_place(event.target), work)])
            elif isinstance(event, Failed):
                self.fail(works[event.key, event.variation], event.reason)
            yield event

    def _write_kept(self, place: Place, row: PreparedSample, path: Path) -> None:
        """Write what was given of a target as it was used, or the mask of what stays, white."""
        kept, codec = row.kept[place.modality], self.codecs[place.modality]
        if kept.whole is not None:
            kept = replace(kept, value=kept.whole[0], mask=kept.whole[1])
        if place.form == "mask":
            assert kept.mask is not None
            write_png(np.where(kept.mask, np.uint8(255), np.uint8(0)), path)
        elif place.form == "kept_ids":
            write_ids(kept.value, path)
        elif isinstance(codec, GridCodec):
            codec.write(kept.value, path)
        else:
            path.write_text(kept.value, encoding="utf-8", errors="surrogateescape", newline="")

    def _record_frame(self, row: PreparedSample) -> None:
        """Record where the square lies in its picture; super-resolution beside its run has that already."""
        if row.frame is None or self.job.request.is_beside:
            return
        path, text = self.job.path(FRAMES, row.work), format_frame(row.frame)
        if not path.is_file() or read_bytes(path, len(text)) != text.encode():
            write_text(self.job.request.out, path, text)

    def _write(self, place: Place, work: Work, write: Callable[[Path], None]) -> None:
        # A file that variations share may have been written with another variation.
        if not (place.shared and self.job.is_complete(place, work, self.listed)):
            write_atomic(self.job.request.out, self.job.path(place, work), write)

    def _paths(self, work: Work) -> list[Path]:
        """All files of a complete result, the record of its frame among them."""
        frame = self.job.path(FRAMES, work)
        return [
            *self.job.paths(work),
            *([frame] if not self.job.request.is_beside and frame.is_file() else []),
        ]

    def _note_checksums(self, paths: Sequence[Path]) -> None:
        with self._lock:
            new = [path for path in dict.fromkeys(paths) if path not in self._hashed]
            if not new:
                return
            self.process.add_checksums(list_files(self.job.request.out, new))
            # Only files that variations share are passed more than once, so only those are remembered.
            places = [*(place for place in self.job.written if place.shared), FRAMES]
            shared = [self.job.request.out / place.folder for place in places]
            self._hashed |= {path for path in new if any(map(path.is_relative_to, shared))}

    def _png_texts(self, row: PreparedSample, is_shared: bool) -> dict[str, str]:
        """The text chunks of a PNG: what is needed to generate the picture again."""
        record, registry, work = self.samples.run.record, self.job.request.model.registry, row.work
        texts = {**row.values, **{name: part.value for name, part in row.kept.items()}}
        prompts = (value for name, value in texts.items() if registry.get(name).codec == CAPTION)
        facts = {
            "software": f"fourm {__version__}", "prompt": next(prompts, None),
            "model": record.model, "seed": record.seed, "sample": work.sample.key.text,
            "variation": None if is_shared else work.variation,  # any variation may write a shared file
            "variations": record.num_variations, "schedule": record.options,
            "weights": record.files["weights"], "dtype": record.dtype,
            "kept weights": None if record.weights == FULL else record.weights,
            "detokenizer steps": record.detokenizer_steps, "blend": None if record.blend else "no",
            "detokenizer solver": None if record.detokenizer_solver == DDIM else record.detokenizer_solver,
        }  # fmt: skip
        if self.job.request.restore or self.job.request.fit != "crop":
            facts |= {"fit": record.fit, "restore": int(record.restore)}
        if base := self.job.request.origin:
            facts |= {"base model": base.model, "base seed": base.seed, "base schedule": base.options,
                      "base dtype": base.dtype, "base weights": base.files.get("weights", ""),
                      "base kept weights": None if base.weights == FULL else base.weights}  # fmt: skip
        return {name: str(fact) for name, fact in facts.items() if fact is not None}
