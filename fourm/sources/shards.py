"""An input as a list of shards: each is found without its samples, which are read when the shard is made.

A kind of input is one entry of `KINDS`: a function that finds its shards, and a class that reads the samples
of one. Samples have the same names as those that `read_samples` finds in the whole input.
"""

import atexit
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

from fourm.data.containers import Container
from fourm.data.dataset import UNKNOWN, Dataset, Input, find_folder
from fourm.data.layout import Key, Sample, number_keys
from fourm.data.lines import LineRange, scan_lines, split_rows
from fourm.data.parts import DatasetPart, list_parts
from fourm.data.pictures import count_pictures, pictures_in
from fourm.data.prompts import OTHER_TEXTS, PartOfTable
from fourm.data.shards import SHARD_SIZE, Ranges, Shard, check_number, shard_name, take_shards
from fourm.data.storage import is_remote, local_file
from fourm.errors import FourMError, UsageError
from fourm.files.opening import open_file
from fourm.hub.files import ModelFiles
from fourm.modalities.registry import Modality
from fourm.schedule.keeps import Keep
from fourm.sources.containers import (
    ContainerReader,
    container_reader,
    count_rows,
    describe,
    found_container,
    is_counted,
)
from fourm.sources.datasets import WantedFiles, find_lacking, hold_whole_keys, notes_of_lacking, read_part
from fourm.sources.reading import read_pictures, read_samples
from fourm.sources.source import EMPTY, STREAM, Source, checked_source, is_dataset
from fourm.sources.texts import (
    check_text_conditions,
    check_text_keeps,
    default_suffix,
    parse_texts,
    problems_of,
    text_file,
)


class Reader(Protocol):
    """Reads the samples of one shard. It is sent to other processes, so all of it can be pickled."""

    def read(self, shard: Shard) -> Dataset:
        """The samples, checked as those of a whole input; UsageError if they cannot be read."""


@dataclass(frozen=True, slots=True)
class Shards:
    """An input in shards."""

    shards: Sequence[Shard]
    reader: Reader
    input: Input
    notes: tuple[str, ...] = ()
    incomplete: tuple[str, ...] = ()  # a sentence for each sample that lacks a file, where that is known
    total: int | None = None  # samples of all shards; None: not known before they are read
    listed: Sequence[Sample] = ()  # all samples, of an input that had to be listed whole
    places: tuple[Path, ...] = ()  # files that are read, or folders in which they lie
    tops: tuple[Path, ...] = ()  # folders whose files, of any depth, are samples, so that none may be added
    due: tuple[int, int] | None = None  # samples (0: not known) and shards, with those still to come, if any

    @property
    def counts(self) -> tuple[int, int]:
        """Samples (0: not known) and shards, as the record of a run has them."""
        return self.due or (self.total or 0, len(self.shards))

    def samples(self, shard: Shard) -> Dataset:
        """The samples of one shard."""
        return self.reader.read(shard)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the shards of an input are to be read for; see `read_samples`."""

    source: Source
    conditions: tuple[str, ...]
    model: ModelFiles
    raw: frozenset[str] = frozenset()
    keeps: tuple[Keep, ...] = ()
    later: tuple[Keep, ...] = ()
    size: int = SHARD_SIZE
    more: tuple[str, ...] = ()  # see `WantedFiles`

    @property
    def wanted(self) -> WantedFiles:
        """What of a dataset is read."""
        keeps = (*self.keeps, *self.later)
        raw = {*self.raw, *(keep.target for keep in keeps if keep.raw)}
        return WantedFiles(tuple(map(self.model.registry.get, self.given)), raw, keeps, self.later, self.more)

    @property
    def given(self) -> tuple[str, ...]:
        """All modalities of which something is read: conditions, and targets of which a part is kept."""
        return tuple(dict.fromkeys((*self.conditions, *(k.target for k in (*self.keeps, *self.later)))))


def list_shards(
    source: Source, conditions: Sequence[str], model: ModelFiles, stdin: BinaryIO,
    raw: Collection[str] = (), keeps: Sequence[Keep] = (), later: Sequence[Keep] = (),
    size: int = SHARD_SIZE,
) -> Shards:  # fmt: skip
    """The shards of an input; arguments as those of `read_samples`. size: samples of a shard, at most."""
    if size < 1:
        raise UsageError(f"`shard_size={size}`: a shard has one sample or more")
    source = checked_source(source, model)
    asked = Asked(source, tuple(conditions), model, frozenset(raw), tuple(keeps), tuple(later), size)
    return find_shards(asked, stdin)


def find_shards(asked: Asked, stdin: BinaryIO) -> Shards:
    """The shards of an input whose source was checked."""
    return next(found for find in KINDS if (found := find(asked, stdin)) is not None)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Samples without any input."""

    def read(self, shard: Shard) -> Dataset:
        assert shard.first is not None
        assert shard.count is not None
        return Dataset(tuple(map(Sample, number_keys(shard.count, shard.first))))


def _numbered_shards(asked: Asked, stdin: BinaryIO) -> Shards | None:
    """Shards without any input: ranges of numbers."""
    source = asked.source
    is_empty = source.data is None and not (source.prompts or source.paths or source.files or asked.given)
    if source.data != EMPTY and not is_empty:
        return None
    if asked.given or source.paths or source.files or source.num_samples is None:
        return _listed_shards(asked, stdin)  # which says what is wrong
    check_number(total := source.num_samples, asked.size)
    return Shards(Ranges(total, asked.size, "numbers"), _Numbers(), Input("none"), total=total)


@dataclass(frozen=True, slots=True)
class _Lines:
    """Lines of a file of texts; of a shard, `parts` name the file, the range of bytes, and its first line."""

    model: ModelFiles
    rows: tuple[Modality, ...]  # of the conditions
    column: str | None
    names: tuple[str, ...]  # of the table's columns
    label: str  # what messages call the file

    def read(self, shard: Shard) -> Dataset:
        data, suffix, line = self._data(shard)
        try:
            samples = self._parse(data, suffix, shard.first or 0, line)
        except UsageError:  # about some of the lines, each of which fails alone
            samples = []
            for number, row in split_rows(data, suffix, self.label, line):
                samples += self._parse_row(row, suffix, (shard.first or 0) + len(samples), number)
        problems = problems_of(samples, self.rows, self.model)
        checked = [
            replace(sample, problem=problem) if problem else sample
            for sample, problem in zip(samples, problems, strict=True)
        ]
        return Dataset(tuple(checked[: shard.count]))

    def check(self, shard: Shard) -> None:
        """UsageError if some of the lines cannot be understood, or hold nothing for a condition."""
        data, suffix, line = self._data(shard)
        self._parse(data, suffix, shard.first or 0, line)

    def _data(self, shard: Shard) -> tuple[bytes, str, int]:
        """The lines, the ending of their file, and the number of the first one."""
        _, file, begin, end, line = shard.parts
        path, lines = local_file(str(file)), LineRange(shard.count or 0, int(begin), int(end), int(line))
        return lines.read(path), path.suffix.lower() or default_suffix(self.rows), lines.line

    def _parse(self, data: bytes, suffix: str, first: int, line: int) -> list[Sample]:
        part = PartOfTable(line, self.names, is_first=first == 0)
        return parse_texts(data, self.label, suffix, self.rows, self.column, first, part)

    def _parse_row(self, row: bytes, suffix: str, first: int, line: int) -> list[Sample]:
        try:
            return self._parse(row, suffix, first, line)
        except UsageError as error:
            return [Sample(number_keys(1, first)[0], problem=str(error))]


def _line_shards(asked: Asked, stdin: BinaryIO) -> Shards | None:
    """Shards of a file of texts, or of standard input: ranges of lines."""
    source, model = asked.source, asked.model
    is_other = source.prompts or source.paths or source.files
    is_texts = not is_other and (source.is_text_file or source.data is None)
    if not is_texts or source.subset_seed is not None or not asked.given:
        return None
    check_text_keeps((*asked.keeps, *asked.later))
    rows = check_text_conditions(source, asked.given, model)
    path = _spool(stdin, default_suffix(rows)) if source.data == STREAM else text_file(source, model)
    label = source.data if source.data and is_remote(source.data) else str(path)
    label = "standard input" if source.data == STREAM else label
    suffix = path.suffix.lower() or default_suffix(rows)
    if not path.is_file() or suffix in OTHER_TEXTS:
        return None
    scan = scan_lines(path, suffix, asked.size, label)
    if scan.has_marks:  # they decide what is made, so all texts have to be known
        with open_file(path) as file:  # standard input has been read
            return _listed_shards(asked, file)
    total = scan.total if source.num_samples is None else min(scan.total, source.num_samples)
    check_number(total, asked.size)
    where = str(path) if source.data == STREAM else label
    shards = Ranges(total, asked.size, "lines", where, scan.columns)
    reader = _Lines(model, tuple(rows), source.column, scan.names, label)
    reader.check(shards[0])  # what is wrong with a column is said at once
    read = Input("texts", num_samples=source.num_samples, sha256=scan.sha256)
    return Shards(shards, reader, read, total=total, places=(path,))


@dataclass(frozen=True, slots=True)
class _Containers:
    """Tars, or rows of Parquet and Arrow files; `parts` name the file, its keys' folder, the first row."""

    reader: ContainerReader
    source: Source

    def read(self, shard: Shard) -> Dataset:
        kind, file, name, *rows = shard.parts
        is_elsewhere = kind == "elsewhere"
        container = (
            found_container(str(file), str(name)) if is_elsewhere else Container(Path(str(file)), str(name))
        )
        if not rows:
            dataset = self.reader.read([container])
        else:
            dataset = Dataset(tuple(self.reader.read_rows(container, int(rows[0]), shard.count or 0)))
        return replace(dataset, samples=self.reader.wanted.finish(dataset.samples, self.source))


def _container_shards(asked: Asked, stdin: BinaryIO) -> Shards | None:
    """Shards of tars and of files whose rows are not counted, one each; ranges of rows of others."""
    source = asked.source
    if not source.containers or not asked.given or source.subset_seed is not None:
        return None
    if source.num_samples is not None and not all(map(is_counted, source.containers)):
        return None
    reader = container_reader(source, asked.wanted, asked.model)
    notes: tuple[str, ...] = (describe(reader, source.containers),)
    shards, counts = list[Shard](), count_rows(source.containers)
    if None in counts and asked.size != SHARD_SIZE:
        notes += (f"`shard_size={asked.size}`: divides no tar; each is one shard, with all of its samples",)
    for one, num_rows in zip(source.containers, counts, strict=True):
        kind = "elsewhere" if one.origin else "tar" if one.is_tar else "rows"
        parts = (kind, one.origin or str(one.path), one.name)
        if num_rows is None:
            shards.append(Shard(len(shards), one.name, parts=parts))
            continue
        check_number(asked.size * len(shards) + num_rows, asked.size)
        for number, first in enumerate(range(0, num_rows, asked.size)):
            count, name = min(asked.size, num_rows - first), f"{one.name}/{shard_name(number)}"
            shards.append(Shard(len(shards), name, count=count, parts=(*parts, first)))
    shards = take_shards(shards, source.num_samples)
    if not shards:
        raise UsageError(f"{source.data}: holds no row")
    total = None if None in counts else sum(shard.count or 0 for shard in shards)
    read = _with_names(reader.wanted.input(source, reader.labels()), shards)
    places = tuple({one.path.parent for one in source.containers})
    return Shards(shards, _Containers(reader, source), read, notes, total=total, places=places)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Parts of a dataset; `parts` of a shard name the folder, and its range of samples, if it is no tar."""

    source: Source
    wanted: WantedFiles
    root: Path
    folders: Mapping[str, str]  # by modality

    def read(self, shard: Shard) -> Dataset:
        kind, folder, *rest = shard.parts
        if kind == "problem":
            return Dataset((Sample(Key(str(folder), UNKNOWN), problem=str(rest[0])),))
        count, begin, end = map(int, rest) if rest else (None, 0, 0)
        part = DatasetPart(str(folder), count)
        dataset = read_part(self.root, self.folders, self.wanted.beside, part, slice(begin, end))
        return replace(dataset, samples=self.wanted.finish(dataset.samples, self.source))


def _dataset_shards(asked: Asked, stdin: BinaryIO) -> Shards | None:
    """Shards of a dataset: each tar and each folder of its first condition, a large folder in ranges."""
    source, root = asked.source, Path(asked.source.data or "")
    is_other = source.data is None or source.containers or source.paths or source.files
    if is_other or not asked.given or not root.is_dir() or source.num_samples is not None:
        return None
    folders = asked.wanted.folders(root)
    for folder in (*folders.values(), *asked.wanted.beside):
        if folder in folders.values() or os.path.lexists(root / folder):
            find_folder(root, folder)
    found, other = list_parts(root, next(iter(folders.values())))
    names, shards = {part.folder for part in found}, list[Shard]()

    def add(name: str, *parts: str | int) -> None:
        while name in names or not name:
            name += "~" if name else "files"
        names.add(name)
        shards.append(Shard(len(shards), name, parts=parts))

    for part in found:
        if part.count is None or part.count <= asked.size:
            names -= {part.folder}
            add(
                part.folder, "part", part.folder, *([] if part.count is None else [part.count, 0, part.count])
            )
            continue
        for number, first in enumerate(range(0, part.count, asked.size)):
            end = min(part.count, first + asked.size)
            name = f"{part.folder}/{shard_name(number)}".lstrip("/")
            add(name, "part", part.folder, part.count, first, end)
    for key, problem in sorted(other.problems.items()):
        add(key.folder, "problem", key.folder, problem)
    there = [*(part.folder for part in found), *(key.folder for key in other.problems)]
    lacking = find_lacking(root, [*folders.values()], there)
    if not shards or hold_whole_keys(root, lacking):
        return None  # all of it has to be listed, or what is wrong is said by whoever does
    read = _with_names(asked.wanted.input(source, folders), shards)
    notes = (*other.notes, *notes_of_lacking(root, next(iter(folders.values())), lacking))
    tops = tuple(root / folder for folder in folders.values())
    return Shards(shards, _Parts(source, asked.wanted, root, folders), read, notes, places=tops, tops=tops)


@dataclass(frozen=True, slots=True)
class _Pictures:
    """Pictures below a folder; `parts` of a shard name folders, and from where to where they are in each."""

    asked: Asked

    def read(self, shard: Shard) -> Dataset:
        asked, parts = self.asked, shard.parts[1:]
        fours = (parts[i : i + 4] for i in range(0, len(parts), 4))
        ranges = [(str(folder), int(begin), int(end), int(count)) for folder, begin, end, count in fours]
        pictures = pictures_in(Path(asked.source.paths[0]), ranges)
        source, wanted = replace(asked.source, num_samples=None), asked.wanted
        nothing = io.BytesIO()
        keeps = wanted.keeps
        dataset = read_pictures(source, asked.given, asked.model, nothing, wanted.raw, keeps, pictures)
        return replace(dataset, samples=dataset.samples[: shard.count])


def _picture_shards(asked: Asked, stdin: BinaryIO) -> Shards | None:
    """Shards of a folder of pictures: ranges of its sorted listing. Words are one prompt for all."""
    source = asked.source
    is_folder = len(source.paths) == 1 and os.path.isdir(source.paths[0])
    if not is_folder or source.data is not None or len(source.prompts) > 1 or source.subset_seed is not None:
        return None
    found = count_pictures(Path(source.paths[0]), partial(is_dataset, registry=asked.model.registry))
    first, shards = 0, list[Shard]()
    for number, ranges in enumerate(found.ranges(asked.size)):
        count = sum(end - begin for _, begin, end, _ in ranges)
        parts = [part for one in ranges for part in one]
        shards.append(Shard(number, shard_name(number), first, count, ("pictures", *parts)))
        first += count
    reader, shards = _Pictures(asked), take_shards(shards, source.num_samples)
    begun = reader.read(shards[0])  # what is wrong with conditions is said at once
    read = replace(begun.input, num_samples=source.num_samples, sha256=found.sha256)
    total = sum(shard.count or 0 for shard in shards)
    places = (Path(source.paths[0]),)
    return Shards(shards, reader, read, (*found.notes, *begun.notes), total=total, places=places)


@dataclass(frozen=True, slots=True)
class _Listed:
    """Samples of an input that is small, or that is only read whole."""

    samples: tuple[Sample, ...]  # sorted by key

    def read(self, shard: Shard) -> Dataset:
        assert shard.first is not None
        assert shard.count is not None
        return Dataset(self.samples[shard.first : shard.first + shard.count])


def shards_of_samples(dataset: Dataset, size: int) -> Shards:
    """Samples that are known already, in shards of `size`."""
    samples = tuple(sorted(dataset.samples, key=lambda sample: sample.key))
    if not samples:
        raise UsageError("there is no sample")
    ranges = Ranges(len(samples), size, "listed")
    files = (path for one in samples for each in (one.files, *one.varied) for path in each.values())
    return Shards(
        ranges, _Listed(samples), dataset.input, dataset.notes, dataset.incomplete, len(samples), samples,
        tuple({path.parent for path in files}),
    )  # fmt: skip


def _with_names(read: Input, shards: Sequence[Shard]) -> Input:
    """What is recorded of an input whose shards have names of their own: others are another input."""
    names = "\0".join(shard.name for shard in shards)
    return replace(read, sha256=hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest())


def _listed_shards(asked: Asked, stdin: BinaryIO) -> Shards:
    """Shards of any input: all samples are listed, as `read_samples` does, and divided."""
    whole = read_samples(
        asked.source, asked.conditions, asked.model, stdin, asked.raw, asked.keeps, asked.later
    )
    return shards_of_samples(whole, asked.size)


def _spool(stdin: BinaryIO, suffix: str) -> Path:
    """A temporary file with what a stream holds; it is deleted when this process ends."""
    try:
        with tempfile.NamedTemporaryFile(prefix="fourm-stdin-", suffix=suffix, delete=False) as file:
            atexit.register((path := Path(file.name)).unlink, missing_ok=True)
            while block := stdin.read(1 << 20):
                file.write(block)
    except OSError as error:
        where = f"{tempfile.gettempdir()} ({error.strerror}); TMPDIR names another folder"
        raise FourMError(f"standard input cannot be kept in {where}") from error
    return path


# Each finds the shards of one kind of input, or None where it is of another kind; the first one counts.
KINDS: tuple[Callable[[Asked, BinaryIO], Shards | None], ...] = (
    _numbered_shards, _container_shards, _dataset_shards, _picture_shards, _line_shards, _listed_shards,
)  # fmt: skip
