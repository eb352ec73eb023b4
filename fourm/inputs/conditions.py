"""Reads the conditions of samples, from files or memory, as the rows of a batch that a model reads."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fourm.codecs.files import read_crop, read_frame, read_ids, read_turn
from fourm.codecs.images import TURN_ADVICE, GridCodec
from fourm.codecs.table import Codec
from fourm.codecs.taking import take, take_ids, take_map, take_whole
from fourm.codecs.texts import STRUCTURED, CaptionCodec, StructuredCodec
from fourm.data.containers import split_path
from fourm.data.layout import CROP_SETTINGS, FRAME, PICTURES, Crop, Frame, Sample, fit_crop
from fourm.errors import SampleError
from fourm.inputs.kept import Kept, keep_grid, keep_text, read_marked, read_source, share_uniforms
from fourm.inputs.request import Request
from fourm.modalities.registry import TOKENS, Kind
from fourm.modalities.text import Structured
from fourm.networks.memory import is_out_of_memory, release_memory
from fourm.networks.precision import arithmetic
from fourm.networks.state import Batch, Slot, full_grid
from fourm.schedule.best import Scores
from fourm.schedule.keeps import Keep
from fourm.sources.datasets import CAPTION, kept_names


@dataclass(frozen=True, slots=True)
class Work:
    """A result that is still to be made: one variation of one sample."""

    sample: Sample
    variation: int
    drawn: int | None = None  # the variation whose noise it has, where that is another one

    @property
    def noise(self) -> tuple[str, int]:
        """The key and the variation by which its noise is drawn."""
        return self.sample.key.text, self.variation if self.drawn is None else self.drawn

    @property
    def result(self) -> tuple[str, int]:
        """The key and the variation, which name the result."""
        return self.sample.key.text, self.variation


@dataclass(frozen=True, slots=True)
class PreparedSample:
    """A sample that was read: what the model is given for one result."""

    work: Work
    # One row, on the CPU: a slot for each condition, all known, and for each target of which a part is given.
    batch: Batch = field(default_factory=lambda: Batch((), {}))
    values: Mapping[str, Any] = field(default_factory=dict)  # by condition, but for those read as tokens
    kept: Mapping[str, Kept] = field(default_factory=dict)  # by target, what of it is given
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by condition: what is not read of it
    problem: str = ""  # why the conditions cannot be read; then `batch` is empty
    frame: Frame | None = None  # where the square that the model sees lies in its picture, if that is known
    # With `restore`, by condition: a function that reads its value for the whole picture, not for the square.
    wholes: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    scores: Scores | None = None  # of all variations of its sample, of which this one was kept

    def restored(self, name: str, value: Any, codec: Codec) -> Any:
        """A value of the square as one of the whole picture; a condition is read anew from its file."""
        if name in self.wholes:
            return self.wholes[name]()
        return value if self.frame is None else codec.restore(value, self.frame.crop)


@dataclass(frozen=True, slots=True)
class ConditionReader:
    """Reads the conditions of a run, and what is given of its targets."""

    request: Request
    codecs: Mapping[str, Codec]  # by modality
    dtype: str = "float32"  # that tokenizers compute in, a key of `DTYPES`

    def read_groups(self, groups: Sequence[Sequence[Work]]) -> Iterator[list[PreparedSample]]:
        """Read each group in turn; while the caller uses one, the next one is read in another thread."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="conditions") as thread:
            started = [thread.submit(self._read_in_thread, group) for group in groups[:1]]
            for number, group in enumerate(groups, start=1):
                future, rows = started.pop(), None
                started += [thread.submit(self._read_in_thread, g) for g in groups[number : number + 1]]
                try:
                    rows = future.result()
                except (RuntimeError, MemoryError, OSError) as error:
                    if not is_out_of_memory(error):
                        raise
                if rows is None:  # memory ran out while another group was decoded; now there is more
                    release_memory()
                    rows = self.read_group(group)
                yield rows

    def read_group(self, works: Sequence[Work]) -> list[PreparedSample]:
        """Read a group of samples. One that cannot be read has a `problem`, and the others are read."""
        rows = list[PreparedSample]()
        # A share of the tokens is drawn anew for each variation; all else is the same in all of them.
        is_drawn = any(keep.share is not None for keep in self.request.chain.keeps)
        for work in works:
            is_same = rows and rows[-1].work.sample is work.sample and not work.sample.varied
            if is_same and not is_drawn:
                rows.append(replace(rows[-1], work=work, notes={}))
                continue
            try:
                rows.append(self._read(work))
            except SampleError as error:
                rows.append(PreparedSample(work, problem=str(error)))
        return rows

    def _read_in_thread(self, works: Sequence[Work]) -> list[PreparedSample]:
        """As `read_group`; the thread of the run may be between two steps, where torch has other settings."""
        with arithmetic(self.dtype):
            return self.read_group(works)

    def _read(self, work: Work) -> PreparedSample:
        if work.sample.problem:
            raise SampleError(work.sample.problem)
        chain = self.request.chain
        reading, whole = self._readings(work)
        slots = {name: reading.slot(name) for name in chain.conditions}
        kept = {keep.target: whole.kept(keep, work) for keep in chain.keeps}
        slots |= {name: part.slot for name, part in kept.items()}
        batch, notes = Batch((work.sample.key.text,), slots), {**reading.notes, **whole.notes}
        return PreparedSample(
            work, batch, reading.values, kept, notes, frame=whole.frame, wholes=reading.wholes
        )

    def _readings(self, work: Work) -> tuple["_Reading", "_Reading"]:
        """What reads conditions, and what reads the parts of targets that are kept.

        Super-resolution of a run has conditions that the run wrote, which are squares unless it restored
        them, and keeps parts of the pictures that the run has read.
        """
        request, sample, files = self.request, work.sample, work.sample.files_of(work.variation)
        names = kept_names(request.chain.keeps) if request.origin and request.chain.keeps else set[str]()
        own = {name: path for name, path in files.items() if name not in names}
        reading = whole = _Reading(request, self.codecs, sample, own)
        if names:
            given = {name: path for name, path in files.items() if name in (*names, FRAME)}
            whole = _Reading(request, self.codecs, sample, given)
            if reading.frame not in (None, whole.frame):
                where = given.get(PICTURES) or given.get(request.chain.keeps[0].target)
                raise SampleError(f"{where}: is not the picture that the run has read, or another part of it")
        if request.restore and whole.frame is None:
            raise SampleError("it has no picture or map, so the size that results should have is not known")
        return reading, whole


@dataclass(slots=True)
class _Reading:
    """One sample while it is read: its files, the crop of them that the model sees, and what was read."""

    request: Request
    codecs: Mapping[str, Codec]
    sample: Sample
    files: Mapping[str, Path]
    values: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    wholes: dict[str, Callable[[], Any]] = field(default_factory=dict)
    turn: int = field(init=False)  # how all maps are rotated before they are cropped, see `read_turn`
    crop: Crop | None = None  # the part of its files that the model sees; None: they have no pixels
    frame: Frame | None = None  # where that part lies in the whole picture, as the run records it
    has_wholes: bool = True  # files are of the whole picture; False: a run wrote them, of its square only

    def __post_init__(self) -> None:
        """SampleError: a crop cannot be read."""
        self.turn = self._find_turn() if self.sample.upright == "all" else 1
        request, recorded = self.request, self._recorded_frame()
        if recorded is not None and recorded.restored:
            self.crop = recorded.crop
        elif request.reads_pictures:
            self.crop = self._find_crop()
        if recorded is not None and (recorded.restored or self.crop is None or self.crop.is_whole):
            self.frame, self.has_wholes = replace(recorded, restored=request.restore), recorded.restored
        elif self.crop is not None:
            self.frame = Frame(self.crop, request.fit, request.restore)

    def _recorded_frame(self) -> Frame | None:
        """The frame that the run recorded which made the files; None if none did."""
        path, in_memory = self.files.get(FRAME), self.sample.values.get(FRAME)
        if isinstance(in_memory, Frame):
            return in_memory
        if path is None or (split_path(path) is None and not path.is_file()):
            return None
        frame, fit = read_frame(path), self.request.fit
        if frame.restored and fit == "pad" and frame.crop != fit_crop(fit, *frame.crop.whole):
            raise SampleError(f"{path}: a part was read, but `fit=pad` reads the whole picture")
        return frame

    def slot(self, name: str) -> Slot:
        """The slot, one row, of a condition; its value goes to `values`. SampleError if it cannot be read."""
        row, path = self.request.model.registry.get(name), self.files.get(name)
        in_memory = self.sample.values.get(name)
        if row.kind is Kind.GRID and name not in self.request.chain.raw:
            if path is not None:
                return _grid_of(read_ids(path, row.max_tokens, row.vocab_size))
            if in_memory is not None:
                return _grid_of(take_ids(row, in_memory, row.key))
        value = self.values[name] = self._value(name)
        try:
            return self.codecs[name].encode([value])
        except SampleError as error:
            raise SampleError(f"{path}: {error}" if path is not None else str(error)) from error

    def kept(self, keep: Keep, work: Work) -> Kept:
        """The given part of a target. SampleError if it is not there, or is all or nothing of the target."""
        codec, request = self.codecs[keep.target], self.request
        if keep.is_text:
            kept = keep_text(keep, codec, request.chain, self._value(keep.target, is_marked=True))
            self.wholes.pop(keep.target, None)  # its file has the text before it was filled
            return kept
        sources = {**self.sample.values, **self.files}
        if keep.target not in sources or not isinstance(codec, GridCodec):
            raise SampleError(
                f"sample {self.sample.key.text} has no {keep.target} of which a part could stay"
            )
        uniforms = share_uniforms(keep, request.seed, work.result, codec.row.max_tokens)
        turn = self.turn_of(self.files[keep.target]) if keep.target in self.files else 1
        kept = keep_grid(keep, codec, read_source(keep, codec, sources, turn), self.crop, uniforms)
        return kept if request.restore else replace(kept, whole=None)

    def _value(self, name: str, is_marked: bool = False) -> Any:
        """The value of a condition, from its file, from memory or as it was typed.

        is_marked: sentinels in its text mark parts to be filled.
        """
        codec, path = self.codecs[name], self.files.get(name)
        if is_marked and path is not None and (marked := read_marked(codec, path)):
            return marked
        if path is not None:
            turn = (self.turn_of(path),) if isinstance(codec, GridCodec) else ()
            value: Any = codec.read(path, self.crop, *turn)
            if self.request.restore and self.has_wholes:
                self.wholes[name] = (
                    partial(codec.read_whole, path) if isinstance(codec, StructuredCodec)
                    else partial(codec.read, path, None, *turn)
                )  # fmt: skip
            if isinstance(codec, CaptionCodec):
                if not self.request.origin and not codec.wordpiece.encode(value):
                    # A caption that a model generated may be empty; one that is given may not.
                    raise SampleError(f"{path}: holds no word, so it is no caption")
                self.notes[name] = codec.notes(path, self.crop)
            elif isinstance(value, Structured):
                self.notes[name] = value.problems
            return value
        if name in self.sample.values:
            in_memory, where = self.sample.values[name], _argument(codec)
            value = take(codec, in_memory, self.crop, where)
            if self.request.restore:
                self.wholes[name] = partial(take_whole, codec, in_memory, where)
            self.notes[name] = value.problems if isinstance(value, Structured) else ()
            return value
        if codec.row.codec == CAPTION and self.sample.caption is not None:
            return self.sample.caption
        if name in self.sample.typed and isinstance(codec, StructuredCodec):
            text = self.sample.typed[name]
            return codec.marked(text) if is_marked else codec.typed(text)
        raise SampleError(f"sample {self.sample.key.text} has no {name}")

    def turn_of(self, path: Path) -> int:
        """How a picture or map is rotated before it is cropped, as `read_turn` counts."""
        return read_turn(path) if self.sample.upright == "own" else self.turn

    def _find_crop(self) -> Crop | None:
        """The part of the sample's picture that the model sees, once it is rotated."""
        picture = self._picture()
        if (whole := self._size_in_memory()) and PICTURES not in self.files:
            return fit_crop(self.request.fit, *whole)
        turn = self.turn_of(picture) if picture else 1
        return read_crop(self.files.get(CROP_SETTINGS), picture, turn, self.request.fit)

    def _find_turn(self) -> int:
        """How all maps of a sample are rotated; SampleError if another condition would have to be, too."""
        picture = self._picture()
        if picture is None or (turn := read_turn(picture)) == 1:
            return 1
        chain = self.request.chain
        fixed = [name for name in chain.given if name in self.files and self._is_placed(name)]
        if CROP_SETTINGS in self.files:
            fixed.append(CROP_SETTINGS)
        if fixed:
            what = f"is to be turned by its EXIF tag ({turn}), and {fixed[0]} cannot be turned with it"
            raise SampleError(f"{picture}: {what}; {TURN_ADVICE}")
        return turn

    def _is_placed(self, name: str) -> bool:
        """True if a condition has places in a picture without being a map: tokens, boxes, people."""
        row = self.request.model.registry.get(name)
        if row.kind is Kind.GRID:
            return name not in self.request.chain.values
        return row.codec in STRUCTURED and STRUCTURED[row.codec].has_places

    def _picture(self) -> Path | None:
        """The file of the picture or map whose size crops refer to; None without either."""
        maps = sorted(codec.row.name for codec in self._map_codecs(self.files))
        return self.files.get(PICTURES) or next((self.files[name] for name in maps), None)

    def _size_in_memory(self) -> tuple[int, int] | None:
        """Height and width of the picture that is held in memory, else of a map; None without either."""
        maps = self._map_codecs(self.sample.values)
        if not maps:
            return None
        first = min(maps, key=lambda codec: (not codec.row.is_rgb, codec.row.name))
        height, width = take_map(first, self.sample.values[first.row.name], _argument(first)).shape[:2]
        return height, width

    def _map_codecs(self, names: Iterable[str]) -> list[GridCodec]:
        """The codecs of the conditions that are given as pictures or maps, not as tokens or features."""
        codecs = [self.codecs[name] for name in names if name in self.codecs]
        return [
            codec for codec in codecs
            if isinstance(codec, GridCodec) and codec.form.resample is not None
            and (codec.row.kind is Kind.PIXELS or codec.row.name in self.request.chain.values)
        ]  # fmt: skip


def _grid_of(ids: NDArray[np.int64]) -> Slot:
    """The slot, of one row, of token ids (L,)."""
    return full_grid(torch.from_numpy(ids).unsqueeze(0))


def _argument(codec: Codec) -> str:
    """The name of the argument by which a program gives a condition as a value."""
    return codec.row.key.removeprefix(TOKENS)
