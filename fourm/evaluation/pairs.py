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
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fourm.codecs.files import read_array, read_caption, read_features, read_frame, read_picture
from fourm.data.containers import CONTAINER_SUFFIXES, is_there
from fourm.data.dataset import Listing, folders_in, list_folder
from fourm.data.layout import Crop, Frame, Key, Place, centre_crop
from fourm.data.mirrors import local_folder
from fourm.data.storage import is_remote
from fourm.errors import FourMError, SampleError, UsageError
from fourm.files.opening import no_folder
from fourm.hub.catalogue import DEMO
from fourm.hub.files import ModelFiles, find_model, find_sr
from fourm.inputs.world import World
from fourm.measures.measure import Pair
from fourm.measures.tables import Sort, sort_of
from fourm.modalities.registry import RELEASED, TOKENS, Kind, Modality, Registry
from fourm.output.markers import Marker, marker_files, read_marker
from fourm.output.members import ShardMembers
from fourm.output.record import FEATURES, FRAMES, RUN, SR_RUN
from fourm.output.record import TOKENS as TOKENIZING
from fourm.output.samples import Run, open_runs
from fourm.schedule.features import Features
from fourm.sources.reading import read_samples
from fourm.sources.source import Source, classify_source, folder_of_values

CAPTION = "caption"  # the name of values that other measures read beside theirs
# Stands for what `fourm embed` writes, which is of no modality.
ENCODER = Modality("encoder", Kind.EMBEDDING, 1, title="Features of the encoder")
_MAPS = ("picture", "depth", "normal", "labels", "edges")  # sorts that are fitted to each other
_LEVELS = np.iinfo(np.uint16).max  # of depth in 16 bits
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Held:
    """One kind of value in a folder."""

    name: str  # its folder: "rgb", "tok_rgb@64"
    row: Modality
    sort: Sort
    run: Run | None = None  # that wrote it
    place: Place | None = None  # of the run

    @property
    def kind(self) -> str:
        """What partners have in common: the full name of tokens; of values, `rgb` of `tok_rgb@64`."""
        return self.row.name if self.sort == "tokens" else self.row.key.removeprefix(TOKENS)

    @property
    def variations(self) -> tuple[int | None, ...]:
        """Those of a run that makes several, unless all share this value; else (None,)."""
        return (None,) if self.run is None or self.place is None or self.place.shared else self.run.variations

    @property
    def features(self) -> Features | None:
        """Those that `fourm embed` has made; None: another command made this."""
        return None if self.run is None else self.run.record.features


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
        """What is wrong with the file of a shard that holds these values; "" if it is as it was written."""
        assert held.run is not None
        assert held.place is not None
        name = ShardMembers(self.root, marker, held.run.variations, held.run.file).file_of(held.place)
        if name not in marker.files:  # all its samples failed
            return ""
        path, size = self.root / name, marker.files[name][1]
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
        is_placed = self.held.sort in (*_MAPS, "boxes", "poses", "instances")
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


def read_value(held: Held, path: Path, crop: Crop | None = None) -> tuple[Any, Mask | None]:
    """A value as `measure` describes it, and which of its pixels are known; None: all of them.

    crop: the square of the other folder's value; boxes and poses of a dataset are read in it.
    """
    if held.sort == "tokens":
        ids = read_array(path)
        if ids.dtype.kind not in "iu" or ids.size == 0:
            raise SampleError(f"{path}: {ids.dtype} of shape {ids.shape} is not a row of token ids")
        return ids.astype(np.int64).ravel(), None
    if held.sort == "text":
        return read_caption(path), None
    if held.row is ENCODER:
        return np.moveaxis(read_features(path), -1, 0), None
    from fourm.codecs.maps import FORMS, pixels_of  # imports torch, which texts and tokens do not need
    from fourm.codecs.texts import STRUCTURED, read_structured, read_whole

    codec = held.row.codec
    if codec in STRUCTURED:
        grammar = STRUCTURED[codec].grammar
        if held.run is not None and held.run.record.restore and grammar.cut is not None:
            return read_whole(path, grammar), None
        return read_structured(path, grammar, crop), None
    if held.sort in ("picture", "normal"):
        picture = read_picture(path)
        pixels, known = pixels_of(picture, "RGB", str(path)), None
        if picture.mode in ("LA", "RGBA"):
            known = np.asarray(picture.getchannel("A")) > 0
            pixels = np.where(known[..., None], pixels, np.uint8(0))
        return pixels, None if known is None or known.all() else known
    value = FORMS[codec].read(path)
    if codec == "tok_distance":  # 2 d - 1, whose zero is no zero of distances
        value = (value + 1) / 2
    return (value / _LEVELS).astype(np.float32) if value.dtype == np.uint16 else value, None


def fitted(
    held: Held, value: Any, other: Any, known: Mask | None, crop: Crop | None
) -> tuple[Any, Mask | None]:
    """A partner's map at the size of a square value: the recorded crop of it, or its centre; others stay.

    Pixels beyond the picture, which a padded crop shows, are not known.
    """
    if held.sort not in _MAPS or value.shape[0] != value.shape[1]:
        return other, known
    if crop is None or crop.whole != other.shape[:2]:
        crop = centre_crop(*other.shape[:2])
    if crop.is_whole and value.shape[:2] == other.shape[:2]:
        return other, known
    from fourm.codecs.maps import FORMS, cut

    form, side = FORMS["tok_rgb" if held.row.codec == "rgb" else held.row.codec], value.shape[0]
    assert form.resample is not None
    if held.sort == "depth" and not (other < 0).any():  # 0 is no depth, and must not become a part of others
        other = np.where(other == 0, np.float32(np.nan), other)
    inside = _inside(crop, side)
    if known is not None:
        inside &= cut(known.astype(np.uint8), crop, side) > 0
    return cut(other, crop, side, form.resample, form.outside), None if inside.all() else inside


def _inside(crop: Crop, side: int) -> Mask:
    """(side, side): the pixels of a crop whose middle lies in the picture."""
    middle = (np.arange(side) + 0.5) / side
    down, across = crop.top + middle * crop.height, crop.left + middle * crop.width
    across = across[::-1] if crop.mirrored else across
    rows, columns = ((at >= 0) & (at < size) for at, size in zip((down, across), crop.whole, strict=True))
    return rows[:, None] & columns


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
