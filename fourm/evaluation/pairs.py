"""Pairs of values from two folders, matched by the names of samples and read one after the other.

A folder is the output of a run (files or shards), a dataset (folders, tars, Parquet), or pictures.
"""

import errno
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

from fourm.codecs.files import read_caption, read_frame
from fourm.data.containers import CONTAINER_SUFFIXES, is_there
from fourm.data.dataset import Listing, folders_in, list_folder
from fourm.data.layout import Frame, Key
from fourm.data.mirrors import local_folder
from fourm.data.storage import is_remote
from fourm.errors import FourMError, SampleError, UsageError
from fourm.evaluation.values import ENCODER, MAPS, Held, fitted, read_value
from fourm.files.opening import no_folder
from fourm.hub.catalogue import DEMO
from fourm.hub.files import ModelFiles, find_model, find_sr
from fourm.inputs.world import World
from fourm.measures.measure import Pair
from fourm.measures.tables import sort_of
from fourm.modalities.registry import RELEASED, Kind, Modality, Registry
from fourm.output.markers import Marker, marker_files, read_marker
from fourm.output.members import ShardMembers
from fourm.output.record import FEATURES, FRAMES, RUN, SR_RUN
from fourm.output.record import TOKENS as TOKENIZING
from fourm.output.samples import Run, open_runs
from fourm.sources.reading import read_samples
from fourm.sources.source import Source, classify_source, folder_of_values

CAPTION = "caption"  # the name of values that other measures read beside theirs


@dataclass(frozen=True, slots=True)
class Problem:
    """A value that could not be measured."""

    key: str
    variation: int | None
    modality: str
    reason: str


class Folder(Protocol):
    """What a folder holds, and where."""

    @property
    def root(self) -> Path:
        """Where it is."""

    @property
    def held(self) -> Sequence[Held]:
        """The kinds of values, in the order of results."""

    @property
    def unknown(self) -> Sequence[str]:
        """Results that are of no modality that is known here."""

    def keys(self, held: Held, world: World) -> Iterator[Key]:
        """The samples of a share that may have a value, in order."""

    def damaged(self, held: Held, world: World) -> Iterator[Problem]:
        """The shards of a share that are not as they were written; `keys` passes over them."""

    def path(self, held: Held, key: Key, variation: int | None) -> Path | None:
        """The file of a value; None or a path without a file: there is none. SampleError: it is in doubt."""

    def frame(self, key: Key) -> Frame | None:
        """Where the square of a sample lies in its picture, if that is recorded."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """What runs wrote."""

    root: Path
    runs: tuple[Run, ...]
    held: tuple[Held, ...]

    @property
    def unknown(self) -> Sequence[str]:
        made = [place for run in self.runs for place in run.places if not place.is_condition]
        known = {held.name for held in self.held}
        return [one.folder for one in made if one.form in ("value", "ids") and one.folder not in known]

    def keys(self, held: Held, world: World) -> Iterator[Key]:
        assert held.run is not None
        if held.run.record.is_sharded:
            for marker in self._shards(held.run, world):
                if not self._problem_of(held, marker):
                    yield from (sample.key for sample in held.run.samples_of(marker))
            return
        for number, sample in enumerate(held.run.samples()):
            if number % world.size == world.rank:
                yield sample.key

    def path(self, held: Held, key: Key, variation: int | None) -> Path | None:
        assert held.run is not None
        assert held.place is not None
        try:
            shard = held.run.shard_of(key) if held.run.record.is_sharded else None
            if shard is not None and self._problem_of(held, shard.marker):  # `damaged` names it
                return None
            return held.run.path(held.place, key, variation)
        except UsageError as error:  # a table that cannot be read
            raise SampleError(str(error)) from error

    def damaged(self, held: Held, world: World) -> Iterator[Problem]:
        assert held.run is not None
        for marker in self._shards(held.run, world) if held.run.record.is_sharded else ():
            if problem := self._problem_of(held, marker):
                yield Problem(f"{marker.shard.name}/*", None, held.name, problem)

    def _shards(self, run: Run, world: World) -> Iterator[Marker]:
        yield from map(read_marker, world.share([*marker_files(self.root, run.file)]))

    def _problem_of(self, held: Held, marker: Marker) -> str:
        """What is wrong with the files of a shard that hold these values; "" if nothing is.

        They are the one with the values, and the one that says which samples there are.
        """
        assert held.run is not None
        assert held.place is not None
        shard = ShardMembers(self.root, marker, held.run.variations, held.run.file)
        places = (held.place, held.run.own or held.place)
        # Where a file was not written, all its samples failed.
        names = [name for name in dict.fromkeys(map(shard.file_of, places)) if name in marker.files]
        return next(filter(None, (self._problem_in(name, marker.files[name][1]) for name in names)), "")

    def _problem_in(self, name: str, size: int) -> str:
        """What is wrong with a file of `size` bytes."""
        path = self.root / name
        try:
            there = path.stat().st_size if path.is_file() else 0
            if there and not os.access(path, os.R_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            return f"{path}: cannot be read ({error.strerror})"
        return "" if there == size else f"{path}: has {there:,} bytes, not the {size:,} that were written"

    def frame(self, key: Key) -> Frame | None:
        path = self.runs[0].path(FRAMES, key, None)
        return read_frame(path) if is_there(path) else None


@dataclass(frozen=True, slots=True)
class ListedFolder:
    """Files of a dataset, by name."""

    root: Path
    listings: Mapping[str, Listing]  # by the names of what is held
    held: tuple[Held, ...]
    unknown: tuple[str, ...] = ()

    def keys(self, held: Held, world: World) -> Iterator[Key]:
        listing = self.listings[held.name]
        yield from world.share(sorted({*listing.files, *listing.problems}))

    def damaged(self, held: Held, world: World) -> Iterator[Problem]:
        yield from ()

    def path(self, held: Held, key: Key, variation: int | None) -> Path | None:
        listing = self.listings[held.name]
        if (cause := listing.cause_of(key)) is not None:
            raise SampleError(listing.problems[cause])
        return listing.files.get(key)

    def frame(self, key: Key) -> Frame | None:
        return None


@dataclass(slots=True)
class Counts:
    """How many values of a share were found."""

    pairs: int = 0  # with a partner, or of a folder that has none
    without_partner: int = 0
    matched: int = 0  # samples that both folders have
    others: int = 0  # samples of the same share of the other folder

    def __add__(self, other: "Counts") -> "Counts":
        """The counts of both."""
        mine, theirs = asdict(self), asdict(other)
        return Counts(**{name: mine[name] + theirs[name] for name in mine})


@dataclass(slots=True)
class Pairs:
    """The pairs of one kind of value. Iterating over it reads them, counts, and collects problems."""

    held: Held
    here: Folder
    partner: Held | None = None
    there: Folder | None = None
    captions: tuple[Folder, Held] | None = None
    world: World = field(default_factory=World)
    counts: Counts = field(default_factory=Counts)
    problems: list[Problem] = field(default_factory=list)

    def __iter__(self) -> Iterator[Pair]:
        self.counts, self.problems = Counts(), [*self.here.damaged(self.held, self.world)]
        if self.there is not None and self.partner is not None:
            self.problems += self.there.damaged(self.partner, self.world)
        for key in self.here.keys(self.held, self.world):
            has_both = False
            for variation in self.held.variations:
                try:
                    pair = self.read(key, variation)
                except SampleError as error:
                    self.problems.append(Problem(key.text, variation, self.held.name, str(error)))
                    has_both = True
                    continue
                if pair is None:
                    continue
                lacks = self.partner is not None and pair.other is None
                self.counts.without_partner += lacks
                self.counts.pairs += not lacks
                has_both |= not lacks
                yield pair
            self.counts.matched += has_both
        if self.there is not None and self.partner is not None:
            keys = self.there.keys(self.partner, self.world)
            self.counts.others = sum(_has_value(self.there, self.partner, key) for key in keys)

    def read(self, key: Key, variation: int | None) -> Pair | None:
        """One pair; None if there is no value. SampleError: a file of it cannot be read."""
        path, other = self.here.path(self.held, key, variation), None
        if path is None or not _is_there(path):
            return None
        if self.there is not None and self.partner is not None:
            number = variation if len(self.partner.variations) > 1 else None
            other = self.there.path(self.partner, key, number)
            other = other if _is_there(other) else None
        value, known = read_value(self.held, path)
        partner = None
        if other is not None and self.partner is not None:
            frame = self.here.frame(key) if self._may_differ else None
            crop = None if frame is None or frame.restored else frame.crop
            partner, known_there = read_value(self.partner, other, crop)
            partner, known_there = fitted(self.held, value, partner, known_there, crop)
            known = known_there if known is None else known
            if known_there is not None and known is not None and known.shape == known_there.shape:
                known = known & known_there
        return Pair(key.text, variation, value, partner, self._texts(key, variation), known)

    @property
    def _may_differ(self) -> bool:
        """Whether the values of this folder may be of a part of the picture of which their partners are."""
        is_placed = self.held.sort in (*MAPS, "boxes", "poses", "instances")
        return is_placed and self.held.run is not None and self.partner is not None and not self.partner.run

    def _texts(self, key: Key, variation: int | None) -> Mapping[str, str]:
        if self.captions is None:
            return {}
        folder, held = self.captions
        path = folder.path(held, key, variation if len(held.variations) > 1 else None)
        return {} if path is None or not _is_there(path) else {CAPTION: read_caption(path)}


def list_pairs(
    root: Path, against: str | None, world: World | None = None, model: str | None = None
) -> list[Pairs]:
    """What of a folder can be measured, in its order: each kind of value with its partner, if it has one.

    against: a folder, or what else names a dataset. model: whose modalities the values of `root` are, where
    its record does not say it or the model is gone. UsageError: a folder that cannot be read, or the numbers
    of variations do not fit together.
    """
    world, here = world or World(), open_folder(str(root), model)
    there = None if against is None else open_folder(against, model, _registry_of(here))
    if not isinstance(here, RunFolder) and (registry := _registry_of(there)) not in (None, RELEASED):
        here = open_folder(str(root), model, registry)
    captions = next(
        ((folder, held) for folder in (here, there) if folder is not None for held in _captions_of(folder)),
        None,
    )
    found = list[Pairs]()
    for held in (one for one in here.held if _is_result(one)):
        partner = None if there is None else _partner_of(held, there)
        if partner is not None and len(partner.variations) > 1 and partner.variations != held.variations:
            mine, theirs = len(held.variations), len(partner.variations)
            numbers = f"{root} has {mine:,} for each sample, {against} has {theirs:,}"
            raise UsageError(f"{held.name}: {numbers}; those to compare with are as many, or one")
        if partner is not None and (made := held.features) != partner.features:
            raise UsageError(f"{held.name}: {root} has {made}, {against} has {partner.features}")
        found.append(Pairs(held, here, partner, there if partner else None, captions, world))
    return found


def open_folder(text: str, model: str | None = None, registry: Registry | None = None) -> Folder:
    """The folder of a run, a dataset, or what else names one; UsageError: it cannot be read.

    registry: the modalities of a dataset, if the model is not named.
    """
    if is_remote(text) and not text.lower().endswith(CONTAINER_SUFFIXES):
        text = str(local_folder(text))
    if not text:
        raise UsageError("`against`: the name of a file or folder is empty")
    root = Path(text)
    if any(os.path.lexists(root / file) for file in (RUN, SR_RUN)):
        runs = open_runs(root)
        return RunFolder(root, runs, tuple(_held_by(runs, model)))
    files = find_model(model or DEMO)
    registry = files.registry if model is not None else registry or RELEASED
    files = replace(files, registry=registry)
    # A model's own rows come first: they say best what the folders are.
    rows = sorted(registry.rows.values(), key=lambda row: RELEASED.rows.get(row.name) is row)
    source = classify_source(Source(data=text), files)
    if source.data is not None and not source.containers and not source.is_folder:
        raise no_folder(root)
    if source.containers or source.paths:
        return _read_listed(source, root, files, rows)
    present, held = folders_in(root), dict[str, Held]()
    for row in rows:
        is_grid = row.kind is Kind.GRID
        folder = folder_of_values(row, present) if is_grid else row.folder if row.folder in present else ""
        for name, form in ((folder, "value"), (row.name if is_grid and row.name in present else "", "ids")):
            if name and (sort := sort_of(row, form)) is not None:
                held.setdefault(name, Held(name, row, sort))
    return ListedFolder(root, {name: list_folder(root, name) for name in held}, tuple(held.values()))


def _registry_of(folder: Folder | None) -> Registry | None:
    """The modalities of the model of a run; of datasets None."""
    return rows_of(folder.runs[0].record.model) if isinstance(folder, RunFolder) else None


def _read_listed(source: Source, root: Path, model: ModelFiles, rows: Sequence[Modality]) -> Folder:
    """Containers or pictures: of each modality, what they hold of it."""
    listings, held = dict[str, Listing](), dict[str, Held]()
    for row in rows:
        is_grid = row.kind is Kind.GRID
        forms = {"value": (row.value_names or (row.folder,))[-1], **({"ids": row.name} if is_grid else {})}
        for form, name in forms.items():
            sort = sort_of(row, form)
            if sort is None or name in held:
                continue
            raw = (row.name,) if is_grid and form == "value" else ()
            try:
                dataset = read_samples(source, (row.name,), model, io.BytesIO(), raw)
            except UsageError:  # it has nothing of this modality
                continue
            listing = Listing(top=root)
            for sample in dataset.samples:
                if sample.problem:
                    listing.problems[sample.key] = sample.problem
                if row.name in sample.files:
                    listing.files[sample.key] = sample.files[row.name]
            listings[name], held[name] = listing, Held(name, row, sort)
    return ListedFolder(root, listings, tuple(held.values()))


def _held_by(runs: Sequence[Run], model: str | None) -> Iterator[Held]:
    """What runs wrote, as far as its modality is known."""
    for run in runs:
        registry = rows_of(run.record.model) if model is None else find_model(model).registry
        for place in run.places:
            with suppress(UsageError):  # of a modality that nobody knows here
                is_encoded = place.form == FEATURES
                row = ENCODER if is_encoded else find_row(place.modality, registry, run.count_tokens(place))
                if (sort := sort_of(row, place.form)) is not None:
                    yield Held(place.folder, row, sort, run, place)


def _has_value(folder: Folder, held: Held, key: Key) -> bool:
    """Whether a sample has a value, which may be damaged; one that failed has none."""
    try:
        return any(_is_there(folder.path(held, key, variation)) for variation in held.variations)
    except SampleError:
        return True


def _is_there(path: Path | None) -> bool:
    """Whether there is a file. SampleError: its folder cannot be read."""
    try:
        return path is not None and is_there(path)
    except OSError as error:
        raise SampleError(f"{path}: cannot be read ({error.strerror})") from error


def _is_result(held: Held) -> bool:
    """Whether a value was made, not given to the run; those of datasets count as made."""
    if held.run is None or held.place is None or held.run.record.stage == TOKENIZING:
        return True
    return not held.place.is_condition


def _captions_of(folder: Folder) -> Iterator[Held]:
    """Captions: those that results were made from come first."""
    yield from sorted((one for one in folder.held if one.sort == "text"), key=_is_result)


def _partner_of(held: Held, there: Folder) -> Held | None:
    """What a value is compared with: a result before a condition, and one of the same name before others."""
    alike = (one for one in there.held if one.kind == held.kind)
    return min(alike, key=lambda one: (not _is_result(one), one.name != held.name), default=None)


def rows_of(model: str) -> Registry:
    """The modalities of a model, or of its super-resolution (`MODEL/sr`); RELEASED if it is not here."""
    with suppress(FourMError):
        return find_model(model).registry
    if model.endswith("/sr"):
        with suppress(FourMError):
            return find_sr(find_model(model.removesuffix("/sr"))).registry
    return RELEASED


def find_row(name: str, registry: Registry, count: int | None = None) -> Modality:
    """The row of a full name in `registry`, else in the released registry; UsageError if it is in neither.

    Another resolution of a released modality is read like the released one, with a square grid of `count`
    tokens. That excludes maps of labels, whose class numbers may have another meaning.
    """
    if row := registry.rows.get(name) or RELEASED.rows.get(name):
        return row
    for row in RELEASED.rows.values():
        if row.key == name.partition("@")[0] and sort_of(row, "value") != "labels":
            side = math.isqrt(count or 0)
            is_square = row.kind is Kind.GRID and side > 0 and side * side == count
            return replace(row, grid=(side, side), max_tokens=side * side) if is_square else row
    raise UsageError("neither its model nor the released ones have it")
