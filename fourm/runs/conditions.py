"""From files of samples to the batch that a model reads; the next one is prepared while one is decoded."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fourm.codecs.files import read_crop, read_ids
from fourm.codecs.images import GridCodec
from fourm.codecs.table import Codec
from fourm.codecs.texts import CaptionCodec, StructuredCodec
from fourm.data.layout import CROP_SETTINGS, PICTURES, Sample
from fourm.errors import SampleError
from fourm.modalities.registry import Kind
from fourm.modalities.text import Structured
from fourm.networks.state import Batch, Slot, full_grid
from fourm.runs.device import is_out_of_memory, release_memory
from fourm.runs.inputs import CAPTION
from fourm.runs.request import Request


@dataclass(frozen=True, slots=True)
class Work:
    """One sample and variation that is still to be made."""

    sample: Sample
    variation: int

    @property
    def result(self) -> tuple[str, int]:
        """The key and the variation, which name the result."""
        return self.sample.key.text, self.variation


@dataclass(frozen=True, slots=True)
class Given:
    """What one sample brings."""

    work: Work
    # One row: all conditions, everything known; on the CPU.
    batch: Batch = field(default_factory=lambda: Batch((), {}))
    values: Mapping[str, Any] = field(default_factory=dict)  # by condition; none of grids read as tokens
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # what the model does not read of it
    problem: str = ""  # why the conditions cannot be read; then there are none


@dataclass(frozen=True, slots=True)
class Conditions:
    """Reads the conditions of a run."""

    request: Request
    codecs: Mapping[str, Codec]  # by modality

    def prepared(self, groups: Sequence[Sequence[Work]]) -> Iterator[list[Given]]:
        """Each group in turn; while it is used, the next one is read and tokenised in a thread."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="conditions") as thread:
            started = [thread.submit(self.prepare, group) for group in groups[:1]]
            for number, group in enumerate(groups, start=1):
                future, prepared = started.pop(), None
                started += [thread.submit(self.prepare, later) for later in groups[number : number + 1]]
                try:
                    prepared = future.result()
                except (RuntimeError, MemoryError, OSError) as error:
                    if not is_out_of_memory(error):
                        raise
                if prepared is None:  # there was no room beside what was decoded: once more, alone
                    release_memory()
                yield prepared or self.prepare(group)

    def prepare(self, works: Sequence[Work]) -> list[Given]:
        """Read a group of samples; each that cannot be read has a problem of its own."""
        rows = list[Given]()
        for work in works:
            if rows and rows[-1].work.sample is work.sample and not work.sample.varied:
                rows.append(replace(rows[-1], work=work, notes={}))  # another variation of the same
                continue
            try:
                rows.append(self._read(work))
            except SampleError as error:
                rows.append(Given(work, problem=str(error)))
        return rows

    def _read(self, work: Work) -> Given:
        sample, chain = work.sample, self.request.chain
        if sample.problem:
            raise SampleError(sample.problem)
        values, slots, notes = dict[str, Any](), dict[str, Slot](), dict[str, tuple[str, ...]]()
        files, crop = sample.files_of(work.variation), None
        if self.request.reads_pictures:
            # Crops refer to the size of a picture or map; features have none.
            raw = ((self.codecs[name], files[name]) for name in sorted(chain.raw) if name in files)
            maps = (path for one, path in raw if isinstance(one, GridCodec) and one.form.resample is not None)
            crop = read_crop(files.get(CROP_SETTINGS), files.get(PICTURES) or next(maps, None))
        for name in chain.conditions:
            row, path = self.request.model.registry.get(name), files.get(name)
            if path is not None and row.kind is Kind.GRID and name not in chain.raw:
                ids = read_ids(path, row.max_tokens, row.vocab_size)
                slots[name] = full_grid(torch.from_numpy(ids).unsqueeze(0))
                continue
            codec = self.codecs[name]
            if path is not None:
                values[name] = codec.read(path, crop)
                if isinstance(codec, CaptionCodec):
                    if not self.request.origin and not codec.wordpiece.encode(values[name]):
                        # A caption that a run has made may be so.
                        raise SampleError(f"{path}: holds no word, so it is no caption")
                    notes[name] = codec.notes(path, crop)
                elif isinstance(values[name], Structured):
                    notes[name] = values[name].problems
            elif row.codec == CAPTION and sample.caption is not None:
                values[name] = sample.caption
            elif name in sample.typed and isinstance(codec, StructuredCodec):
                values[name] = codec.typed(sample.typed[name])
            else:
                raise SampleError(f"sample {sample.key.text} has no {name}")
            try:
                slots[name] = codec.encode([values[name]])
            except SampleError as error:
                raise SampleError(f"{path}: {error}" if path is not None else str(error)) from error
        return Given(work, Batch((sample.key.text,), slots), values, notes)
