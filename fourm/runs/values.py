"""From decoded tokens to values, and results that are kept in memory instead of files."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
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
from fourm.decoding.engine import Progress
from fourm.decoding.sampling import Noise
from fourm.errors import SampleError
from fourm.inputs.conditions import PreparedSample, Work
from fourm.inputs.kept import Kept
from fourm.inputs.request import MAX_DETOKENIZER_STEPS, Request
from fourm.modalities.registry import Kind, Modality
from fourm.modalities.text import EOS_ID, Structured
from fourm.networks.state import Batch
from fourm.runs.events import Detokenized, Event, Failed, Malformed, Saved
from fourm.runs.job import Job

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
    for name, kept in row.kept.items():
        one, frame, square = codecs[name].row, row.frame, kept.mask
        if not (request.blend and one.is_rgb and name in restored):
            continue
        if kept.whole is not None and square is not None and frame is not None:
            whole, mask = kept.whole
            restored[name] = lay_over_whole(
                whole, restored[name], mask, square, one.patch_size // 2, frame.crop
            )
    return restored


def diffusion_of(
    request: Request, name: str, works: Sequence[Work], most: int = MAX_DETOKENIZER_STEPS
) -> Diffusion:
    """Steps, `most` at most, and the noise of each sample for a target that is decoded by diffusion."""
    noise = Noise.for_samples(request.seed, [work.result for work in works], f"detokenizer {name}")
    return Diffusion(min(most, request.detokenizer_steps), noise)


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
class Made:
    """One result: a sample in one variation."""

    work: Work
    values: Mapping[str, Any]  # by modality: targets, and conditions as used
    tokens: Mapping[str, NDArray[np.int64]]  # (L,) by modality, of everything with ids
    kept: Mapping[str, Kept] = field(default_factory=dict)  # by target: the part that was given
    frame: Frame | None = None  # where the square lies in its picture, if that is known


@dataclass(slots=True)
class Collector:
    """Keeps the results of a run in memory."""

    job: Job
    codecs: Mapping[str, Codec]  # by modality
    made: dict[tuple[str, int], Made] = field(default_factory=dict)  # by key and variation
    failures: dict[tuple[str, int], str] = field(default_factory=dict)  # the reasons
    latest: tuple[Progress, Sequence[Work]] | None = None  # the newest decoding step and its samples

    def begin(self, works: Sequence[Work]) -> None:
        """Nothing is recorded."""

    def watch(self, progress: Progress, works: Sequence[Work], is_last: bool) -> None:
        """Remember the newest state."""
        self.latest = progress, works

    def fail(self, work: Work, reason: str) -> Failed:
        """Remember a failed sample; the event to report is returned."""
        self.failures[work.result] = reason
        return Failed(*work.result, reason)

    def save(self, given: Sequence[PreparedSample], batch: Batch, chosen: Sequence[int]) -> Iterator[Event]:
        """Decode and keep the values of the chosen samples that are not reported yet; see `Saver.save`."""
        done = {*self.made, *self.failures}
        left = [index for index in chosen if given[index].work.result not in done]
        if not left:
            return
        rows, batch = [given[index] for index in left], batch.select(torch.tensor(left, device=batch.device))
        works = [row.work for row in rows]
        try:
            decoded = yield from decode_values(self.job, self.codecs, rows, batch)
        except SampleError as error:
            if len(rows) == 1:
                yield self.fail(works[0], str(error))
                return
            for index in range(len(rows)):
                yield from self.save(rows, batch, [index])
            return
        kinds = (Kind.GRID, Kind.SEQUENCE)
        ids = {name: slot.to("cpu") for name, slot in batch.slots.items() if slot.kind in kinds}
        for index, row in enumerate(rows):
            values = {name: made[index] for name, made in decoded.items()}
            try:
                shown = restored_values(self.job.request, self.codecs, row, {**row.values, **values})
            except SampleError as error:
                yield self.fail(row.work, str(error))
                continue
            for name, value in values.items():
                if isinstance(value, Structured) and value.problems:
                    yield Malformed(*row.work.result, name, value.problems)
            tokens = {n: slot.values[index][slot.known[index]].numpy() for n, slot in ids.items()}
            self.made[row.work.result] = Made(row.work, shown, tokens, row.kept, row.frame)
            yield Saved(*row.work.result, (), self.job.request.stage)


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
