"""Writes the files of results: tokens, values, what was kept, previews."""

import io
import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fourm import __version__
from fourm.codecs.files import format_frame, pack_array, pack_ids, pack_png
from fourm.codecs.images import GridCodec
from fourm.codecs.table import Codec
from fourm.data.layout import Place
from fourm.decoding.steps import Progress
from fourm.errors import SampleError
from fourm.hub.header import FULL
from fourm.inputs.conditions import PreparedSample, Work
from fourm.inputs.request import MAX_DETOKENIZER_STEPS
from fourm.networks.state import Batch, Slot
from fourm.output.record import FRAMES, RunRecord
from fourm.results.events import Event, Failed, Malformed, Saved
from fourm.results.job import Job, malformed_place, order_place, preview_place
from fourm.results.sinks import Pack, Sink
from fourm.results.values import (
    PREVIEW_STEPS,
    ResultValues,
    covered,
    decode_rows,
    diffusion_of,
    malformed_of,
    unreported,
)
from fourm.schedule.chain import Step
from fourm.schedule.solvers import DDIM
from fourm.sources.datasets import CAPTION


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
    sink: Sink
    saved: set[tuple[str, int]] = field(default_factory=set)  # key and variation of each result
    failed: set[tuple[str, int]] = field(default_factory=set)
    _previews: Previews = field(default_factory=Previews)  # of the samples that are being decoded

    def begin(self, works: Sequence[Work]) -> None:
        """Called with samples before they are decoded together."""
        self._previews = Previews()
        self.sink.begin(works)

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
        self.sink.check()
        for place in self.job.written:
            if place.form == "ids":
                for row, ids in zip(rows, batch.slots[place.modality].values.cpu().numpy(), strict=True):
                    self._write(place, row.work, partial(pack_ids, ids))
        yield from self._recorded(rows, decode_rows(self.job, self.codecs, rows, batch, self._write_values))

    def save_made(self, made: ResultValues) -> Iterator[Event]:
        """Write a result that is in memory: the same files as `save`."""
        work, targets = made.work, self.job.request.chain.targets
        self.sink.begin([work])
        for place in self.job.written:
            if place.form == "ids":
                self._write(place, work, partial(pack_ids, made.tokens[place.modality]))
        given = {name: value for name, value in made.values.items() if name not in targets}
        row = PreparedSample(work, values=given, kept=made.kept, frame=made.frame, scores=made.scores)
        yield from self._recorded([row], self._write_values(row, made.values))

    def save_features(self, work: Work, features: NDArray[np.float32]) -> Saved:
        """Write the features of a sample; the event to report is returned."""
        for place in self.job.written:
            self._write(place, work, partial(pack_array, features))
        self.sink.finish(work)
        self.saved.add(work.result)
        return Saved(*work.result, self.sink.paths(work), self.job.request.stage)

    def fail(self, work: Work, reason: str) -> Failed:
        """Record a failed sample; the event to report is returned."""
        self.failed.add(work.result)
        self.sink.fail(work, reason)
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
        if is_last or not is_scaled:
            self._write_previews(works, codec, values if is_result else [])
        if is_last:  # the number of the decoding step of each token, too
            for work, order in zip(works, previews.order.cpu().numpy(), strict=True):
                self._write_extra(order_place(previews.target), work, partial(pack_ids, order))

    def _write_previews(self, works: Sequence[Work], codec: GridCodec, results: Sequence[Any]) -> None:
        """Write the pictures that wait; results: of each sample the value whose colours they have, if any."""
        waiting = self._previews.waiting
        for index, work in enumerate(works) if waiting else ():
            pictures = codec.pictures([v[index] for _, _, v in waiting], results[index] if results else None)
            for (place, known, _), picture in zip(waiting, pictures, strict=True):
                shown = covered(picture, known[index], codec.row)
                self._write_extra(place, work, partial(_pack_preview, shown))
        self._previews.waiting = []

    def _write_extra(self, place: Place, work: Work, pack: Pack) -> None:
        """Write a file that stays even if its sample fails later."""
        self.sink.write(place, work, pack)
        self.sink.note([place], work)

    def _write_values(self, row: PreparedSample, made: Mapping[str, Any]) -> list[Event]:
        """Write the values of one sample; events, of texts that violate the grammar of their modality, too.

        made: by modality, values of targets and of conditions as they are written. Only writes, in any
        thread; `_recorded` does the rest.
        """
        work, malformed = row.work, malformed_of(self.job, row.work, made)
        for event in malformed:
            said = {"text": made[event.target].text, "problems": event.problems}
            content = json.dumps(said, ensure_ascii=False) + "\n"
            self.sink.write(malformed_place(event.target), work, partial(_pack_text, content))
        try:
            self._record_frame(row)
            for place in self.job.written:
                if place.form == "value":
                    pack, texts = self.codecs[place.modality].pack, self._png_texts(row, place.shared)
                    self._write(place, work, partial(pack, made[place.modality], text=texts))
                elif place.form in ("kept", "kept_ids", "mask"):
                    self._write(place, work, partial(self._pack_kept, place, row))
                elif place.form == "scores" and row.scores is not None:
                    self._write(place, work, partial(_pack_text, row.scores.to_text()))
        except SampleError as error:
            return [*malformed, Failed(*work.result, str(error))]
        return [*malformed, Saved(*work.result, self.sink.paths(work), self.job.request.stage)]

    def _recorded(self, rows: Sequence[PreparedSample], events: Iterable[Event]) -> Iterator[Event]:
        """The events of these samples, each when it is recorded."""
        works = {row.work.result: row.work for row in rows}
        for event in events:
            if isinstance(event, Saved):
                # At once: if memory runs out for the next sample, this one is not decoded again.
                self.sink.finish(works[event.key, event.variation])
                self.saved.add((event.key, event.variation))
            elif isinstance(event, Malformed):
                self.sink.note([malformed_place(event.target)], works[event.key, event.variation])
            elif isinstance(event, Failed):
                self.fail(works[event.key, event.variation], event.reason)
            yield event

    def _pack_kept(self, place: Place, row: PreparedSample) -> bytes:
        """What was given of a target as it was used, or the mask of what stays, white."""
        kept, codec = row.kept[place.modality], self.codecs[place.modality]
        if kept.whole is not None:
            kept = replace(kept, value=kept.whole[0], mask=kept.whole[1])
        if place.form == "mask":
            assert kept.mask is not None
            return pack_png(np.where(kept.mask, np.uint8(255), np.uint8(0)))
        if place.form == "kept_ids":
            return pack_ids(kept.value)
        return codec.pack(kept.value) if isinstance(codec, GridCodec) else _pack_text(kept.value)

    def _record_frame(self, row: PreparedSample) -> None:
        """Record where the square lies in its picture; super-resolution beside its run has that already."""
        if row.frame is not None and not self.job.request.is_beside:
            self.sink.write(FRAMES, row.work, partial(_pack_text, format_frame(row.frame)))

    def _write(self, place: Place, work: Work, pack: Pack) -> None:
        # A file that variations share may have been written with another variation.
        if not (place.shared and self.sink.holds(place, work)):
            self.sink.write(place, work, pack)

    def _png_texts(self, row: PreparedSample, is_shared: bool) -> dict[str, str]:
        """The text chunks of a PNG: what is needed to generate the picture again."""
        record, registry, work = self.sink.run.record, self.job.request.model.registry, row.work
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
            "best of": _best_text(record),
        }  # fmt: skip
        if self.job.request.restore or self.job.request.fit != "crop":
            facts |= {"fit": record.fit, "restore": int(record.restore)}
        if base := self.job.request.origin:
            facts |= {"base model": base.model, "base seed": base.seed, "base schedule": base.options,
                      "base dtype": base.dtype, "base weights": base.files.get("weights", ""),
                      "base kept weights": None if base.weights == FULL else base.weights,
                      "base best of": _best_text(base)}  # fmt: skip
        return {name: str(fact) for name, fact in facts.items() if fact is not None}


def _best_text(record: RunRecord) -> str | None:
    """How the variations of a run were chosen: `8 by caption`."""
    return None if record.best is None else f"{record.best.of} by {','.join(record.best.by)}"


def _pack_text(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogateescape")


def _pack_preview(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()
