"""From decoded tokens to values, and results that are kept in memory instead of files."""

import time
from collections import ChainMap
from collections.abc import Callable, Container, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fourm.codecs.images import Diffusion, GridCodec
from fourm.codecs.keeping import lay_over, lay_over_whole
from fourm.codecs.table import Codec
from fourm.data.layout import Frame
from fourm.decoding.sampling import Noise
from fourm.decoding.steps import Progress
from fourm.errors import SampleError
from fourm.inputs.conditions import PreparedSample, Work
from fourm.inputs.kept import Kept
from fourm.inputs.request import MAX_DETOKENIZER_STEPS, Request
from fourm.modalities.registry import Kind, Modality
from fourm.modalities.text import EOS_ID, Structured
from fourm.networks.state import Batch
from fourm.results.background import in_threads
from fourm.results.events import Detokenized, Event, Failed, Malformed, Saved
from fourm.results.job import Job
from fourm.schedule.best import Scores
from fourm.schedule.solvers import parse_solver

Values = dict[str, list[Any]]  # target -> one value for each sample
GREY = (128, 128, 128)  # colour of tokens that are not decoded yet, in preview pictures
PREVIEW_STEPS = 25  # most diffusion steps for a preview picture


def decode_values(
    job: Job, codecs: Mapping[str, Codec], rows: Sequence[PreparedSample], batch: Batch
) -> Generator[Event, None, Values]:
    """The values of all targets that a job decodes; yields the steps of diffusion decoders.

    rows: what was given of each row of the batch. What is kept of a picture lies over what was decoded.
    """
    decoded, works = Values(), [row.work for row in rows]
    for place in job.written:
        if place.form == "value" and not place.is_condition:
            name = place.modality
            values = yield from _decode(job.request, codecs[name], name, works, batch)
            blends = job.request.blend and codecs[name].row.is_rgb
            decoded[name] = [
                _with_kept(value, row.kept.get(name), codecs[name].row) if blends else value
                for value, row in zip(values, rows, strict=True)
            ]
    return decoded


def decode_rows(
    job: Job, codecs: Mapping[str, Codec], rows: Sequence[PreparedSample], batch: Batch,
    keep: Callable[[PreparedSample, Mapping[str, Any]], Sequence[Event]],
) -> Iterator[Event]:  # fmt: skip
    """Decode a batch, pass each of its rows to `keep` with its values, and yield the events and `Failed`.

    Values are decoded together; if that fails, each row is decoded alone, so that only the bad ones fail.
    keep: is called for several rows at once, in threads.
    """
    try:
        decoded = yield from decode_values(job, codecs, rows, batch)
    except SampleError as error:
        if len(rows) == 1:
            yield Failed(*rows[0].work.result, str(error))
            return
        for index, row in enumerate(rows):
            alone = batch.select(torch.tensor([index]))
            yield from decode_rows(job, codecs, [row], alone, keep)
        return

    def finish(index: int) -> Sequence[Event]:
        row = rows[index]
        used = {**row.values, **{name: values[index] for name, values in decoded.items()}}
        try:
            values = restored_values(job.request, codecs, row, used)
        except SampleError as error:
            return [Failed(*row.work.result, str(error))]
        return keep(row, values)

    for events in in_threads(finish, range(len(rows))):
        yield from events


def malformed_of(job: Job, work: Work, values: Mapping[str, Any]) -> list[Malformed]:
    """The texts among the values of a sample that violate the grammar of their modality."""
    found = ((name, values.get(name)) for name in job.request.chain.targets)
    return [
        Malformed(*work.result, name, value.problems)
        for name, value in found
        if isinstance(value, Structured) and value.problems
    ]


def unreported(
    given: Sequence[PreparedSample], batch: Batch, chosen: Sequence[int], reported: Container[tuple[str, int]]
) -> tuple[list[PreparedSample], Batch]:
    """The chosen rows of a batch whose results (key and variation) are not reported yet."""
    left = [index for index in chosen if given[index].work.result not in reported]
    return [given[i] for i in left], batch.select(torch.tensor(left, dtype=torch.long))


def _with_kept(made: Any, kept: Kept | None, row: Modality) -> Any:
    """A picture with what was kept in pixels laid over it, joined by a seam of half a patch."""
    if kept is None or kept.mask is None or kept.value.shape != made.shape:  # tokens were given, not pixels
        return made
    return lay_over(kept.value, made, kept.mask, row.patch_size // 2)


def restored_values(
    request: Request, codecs: Mapping[str, Codec], row: PreparedSample, values: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Values of one sample, in the frame of its picture if the request restores them.

    What is kept of a picture lies over the result in the picture's own pixels. SampleError: the file of a
    condition cannot be read again.
    """
    if not request.restore:
        return values
    restored = {name: row.restored(name, value, codecs[name]) for name, value in values.items()}
    for name, kept in row.kept.items() if request.blend else ():
        modality, frame, mask = codecs[name].row, row.frame, kept.mask
        if not modality.is_rgb or name not in restored:
            continue
        if kept.whole is not None and mask is not None and frame is not None:
            picture, whole_mask = kept.whole
            seam = modality.patch_size // 2
            restored[name] = lay_over_whole(picture, restored[name], whole_mask, mask, seam, frame.crop)
    return restored


def diffusion_of(
    request: Request, name: str, works: Sequence[Work], most: int = MAX_DETOKENIZER_STEPS
) -> Diffusion:
    """Steps, `most` at most, noise of each sample, and solver for a target that is decoded by diffusion."""
    noise = Noise.for_samples(request.seed, [work.noise for work in works], f"detokenizer {name}")
    return Diffusion(min(most, request.diffusion_steps), noise, parse_solver(request.diffusion_solver))


def _decode(
    request: Request, codec: Codec, name: str, works: Sequence[Work], batch: Batch
) -> Generator[Event, None, list[Any]]:
    if not isinstance(codec, GridCodec):
        slot = batch.slots[name]
        if any(keep.target == name for keep in request.chain.keeps):
            # What fills a mark ends with [EOS], in the middle of the text.
            slot = replace(slot, known=slot.known & (slot.values != EOS_ID))
        return codec.decode(slot)
    steps = codec.decode_stepwise(batch.slots[name], diffusion_of(request, name, works))
    keys = tuple(work.sample.key.text for work in works)
    while True:
        started = time.perf_counter()
        try:
            done, total = next(steps)
        except StopIteration as end:
            return end.value
        yield Detokenized(keys, name, done, total, time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class ResultValues:
    """One result in memory: a sample in one variation."""

    work: Work
    values: Mapping[str, Any]  # by modality: targets, and conditions as used
    tokens: Mapping[str, NDArray[np.int64]]  # (L,) by modality, of everything with ids
    kept: Mapping[str, Kept] = field(default_factory=dict)  # by target: the part that was given
    frame: Frame | None = None  # where the square lies in its picture, if that is known
    scores: Scores | None = None  # of all variations of its sample, of which this one was kept


@dataclass(slots=True)
class Collector:
    """Keeps the results of a run in memory, where `Saver` writes files."""

    job: Job
    codecs: Mapping[str, Codec]  # by modality
    made: dict[tuple[str, int], ResultValues] = field(default_factory=dict)  # by key and variation
    failures: dict[tuple[str, int], str] = field(default_factory=dict)  # the reasons
    latest: tuple[Progress, Sequence[Work]] | None = None  # the newest decoding step and its samples
    features: dict[tuple[str, int], NDArray[np.float32]] = field(default_factory=dict)  # likewise

    def begin(self, works: Sequence[Work]) -> None:
        """Nothing is recorded."""

    def watch(self, progress: Progress, works: Sequence[Work], is_last: bool) -> None:
        """Remember the newest state."""
        self.latest = progress, works

    def fail(self, work: Work, reason: str) -> Failed:
        """Remember a failed sample; the event to report is returned."""
        self.failures[work.result] = reason
        return Failed(*work.result, reason)

    def save_features(self, work: Work, features: NDArray[np.float32]) -> Saved:
        """Keep the features of a sample; the event to report is returned."""
        self.features[work.result] = features
        return Saved(*work.result, (), self.job.request.stage)

    def save(
        self, given: Sequence[PreparedSample], batch: Batch, chosen: Sequence[int]
    ) -> Generator[Event, None, None]:
        """Decode and keep the values of the chosen samples that are not reported yet; see `Saver.save`."""
        reported = ChainMap[tuple[str, int], Any](self.made, self.failures)
        rows, batch = unreported(given, batch, chosen, reported)
        if not rows:
            return
        kinds = (Kind.GRID, Kind.SEQUENCE)
        ids = {name: slot.to("cpu") for name, slot in batch.slots.items() if slot.kind in kinds}
        places = {row.work.result: index for index, row in enumerate(rows)}

        def keep(row: PreparedSample, values: Mapping[str, Any]) -> Sequence[Event]:
            result, index = row.work.result, places[row.work.result]
            tokens = {n: slot.values[index][slot.known[index]].numpy() for n, slot in ids.items()}
            self.made[result] = ResultValues(row.work, values, tokens, row.kept, row.frame, row.scores)
            return *malformed_of(self.job, row.work, values), Saved(*result, (), self.job.request.stage)

        for event in decode_rows(self.job, self.codecs, rows, batch, keep):
            if isinstance(event, Failed):
                self.failures[event.key, event.variation] = event.reason
            yield event


def picture_of(
    job: Job, codecs: Mapping[str, Codec], progress: Progress, works: Sequence[Work], name: str, index: int
) -> Image.Image:  # fmt: skip
    """A modality (full name) of one sample as it is after a decoding step; undecided tokens are grey."""
    codec: Any = codecs[name]
    slot = progress.batch.slots[name].select(torch.tensor([index]))
    if not isinstance(codec, GridCodec):
        return codec.picture(codec.decode(slot)[0])
    value = codec.decode(slot, diffusion_of(job.request, name, works[index : index + 1], PREVIEW_STEPS))[0]
    return covered(codec.picture(value), slot.known[0], codec.row)


def covered(picture: Image.Image, known: Tensor, row: Modality) -> Image.Image:
    """The picture in RGB, with grey where `known`, (L,) bool, is False."""
    cells = rearrange(known.to(torch.uint8) * 255, "(h w) -> h w", h=row.grid[0] if row.grid else 1)
    mask = Image.fromarray(cells.cpu().numpy()).resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(picture.convert("RGB"), Image.new("RGB", picture.size, GREY), mask)
