"""Samples in tars with several files for each key (WebDataset), and in Parquet and Arrow files: which ending
or column holds which modality, and the samples of one file or of all.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

from fourm.data.containers import Container
from fourm.data.dataset import (
    EXTENSIONS,
    PICTURE_SUFFIXES,
    UNKNOWN,
    Dataset,
    Listing,
    check_readable,
    match_listings,
)
from fourm.data.layout import (
    CROP_SETTINGS,
    FRAME,
    KEPT_PIXELS,
    MAX_SAMPLES,
    PICTURES,
    SAMPLES_PER_FOLDER,
    VALID_PIXELS,
    Key,
    Sample,
    parse_key,
    unescape_dots,
)
from fourm.data.prompts import COLUMNS
from fourm.data.storage import fetch_remote, is_remote, read_remote_end, remote_container
from fourm.errors import SampleError, UsageError, near_match, printable
from fourm.files.columns import (
    BYTES,
    COLUMN_SUFFIXES,
    PICTURE,
    TEXT,
    Columns,
    read_cell,
    read_columns,
)
from fourm.files.copies import copy_of
from fourm.files.tars import TarIndex, read_tar
from fourm.hub.datasets import fetch_container, hub_container, read_hub_end
from fourm.hub.files import ModelFiles
from fourm.modalities.registry import Kind, Modality
from fourm.sources.datasets import CAPTION, WantedFiles, choose_listed
from fourm.sources.source import Source, folders_of

_JSON = "json"  # the ending of a member of which one text is read
_PICTURES = (*(suffix[1:] for suffix in PICTURE_SUFFIXES), "image", "img", "picture")  # names of columns
_TEXTS = (*COLUMNS, "txt")
_OTHERS = (FRAME, CROP_SETTINGS, KEPT_PIXELS, VALID_PIXELS)  # what else a dataset holds
_SHOWN = 8  # endings that a sentence names
_MAX_KEY = 4096  # bytes of a key in a table
_AT_ONCE = 16  # files elsewhere whose ends are fetched together
_END, _MAX_END = 1 << 16, 1 << 28  # bytes of the end of a Parquet file that are fetched at first, and at most


@dataclass(frozen=True, slots=True)
class ModalityMap:
    """Which endings of members, and which columns, hold which modality, by a name that folders have, too."""

    known: frozenset[str]  # all such names
    given: Mapping[str, str]  # ending or column -> name, as the user says
    column: str | None  # of captions

    def of_ending(self, ending: str) -> str:
        """The name for the ending of a member, in lower case; "" for none."""
        if ending in self.given:
            return self.given[ending]
        if ending == (_JSON if self.column is not None else "txt"):
            return CAPTION
        if f".{ending}" in PICTURE_SUFFIXES:
            return PICTURES
        name, dot, kind = ending.partition(".")
        return name if dot and f".{kind}" in EXTENSIONS and name in self.known else ""

    def shown(self, ending: str) -> str:
        """An ending as messages have it, with the name of the text that is read of it."""
        return f"{ending}/{self.column}" if ending == _JSON and self.column is not None else ending

    def of_columns(self, kinds: Mapping[str, str]) -> dict[str, str]:
        """The column of each name, for columns of these kinds."""
        found = {name: name for name, kind in kinds.items() if kind and name in self.known}
        by_case = {name.lower(): name for name in reversed([*kinds])}
        shown = [name for name, kind in kinds.items() if kind == PICTURE]
        named = [by_case[one] for one in ("image", *_PICTURES) if one in by_case]
        pictures = [one for one in named if kinds[one] in (PICTURE, BYTES)] or shown[: len(shown) == 1]
        texts = [by_case[one] for one in _TEXTS if one in by_case and kinds[by_case[one]] == TEXT]
        for name, columns in ((PICTURES, pictures), (CAPTION, texts)):
            if columns and name not in found:
                found[name] = columns[0]
        if self.column is not None:
            found[CAPTION] = self.column
        return {**found, **{name: column for column, name in self.given.items()}}


@dataclass(frozen=True, slots=True)
class ContainerReader:
    """Reads the samples of containers; see `read_containers`."""

    mapping: ModalityMap
    wanted: WantedFiles

    def names(self) -> dict[str, tuple[str, ...]]:
        """For each modality of which every sample has a file, the names that its files may have."""
        rows = {row.name: _names_of(row, row.name in self.wanted.raw) for row in self.wanted.rows}
        return {**rows, **dict.fromkeys(self.wanted.masks, (KEPT_PIXELS,))}

    def labels(self) -> dict[str, str]:
        """What the files of each modality are called in messages and records."""
        return {modality: names[0] for modality, names in self.names().items()}

    def read(self, containers: Sequence[Container]) -> Dataset:
        """The samples of containers of one kind, unless none is complete."""
        if containers[0].is_tar:
            return self._read_tars(containers)
        samples = list[Sample]()
        for one in containers:
            count = columns_of(one).num_rows
            if len(samples) + count > MAX_SAMPLES:
                raise UsageError(f"{one.path}: a dataset has at most {MAX_SAMPLES:,} samples")
            samples += self.read_rows(one, 0, count)
        return Dataset(tuple(samples))

    def read_rows(self, container: Container, first: int, count: int) -> list[Sample]:
        """The samples of some rows of a Parquet or Arrow file."""
        columns, path = self.columns(container), container.path
        _fetch(container)
        is_keyed = columns_of(container).is_keyed
        return [
            Sample(
                _key_in(container, row) if is_keyed else _key_of(container, row),
                files={modality: path / f"{row}.{column}" for modality, column in columns.items()},
            )
            for row in range(first, first + count)
        ]

    def columns(self, container: Container) -> dict[str, str]:
        """The column of each modality. UsageError: one has none, or one that cannot hold it."""
        kinds, rows = columns_of(container).kinds, {row.name: row for row in self.wanted.rows}
        found, columns = self.mapping.of_columns(kinds), dict[str, str]()
        listed = ", ".join(f"{printable(name)} ({kind or 'not read'})" for name, kind in kinds.items())
        if unknown := next((one for one in found.values() if not kinds.get(one)), ""):
            what = f"no column '{unknown}' that is read{near_match(unknown, kinds)}"
            raise UsageError(f"{container.label}: {what}; its columns are {listed}")
        for modality, names in self.names().items():
            column = next((found[name] for name in names if name in found), "")
            if not column:
                raise UsageError(_nothing_for(container, names[0], f"its columns are {listed}", "COLUMN"))
            if kinds[column] == TEXT and modality in rows and rows[modality].kind is not Kind.SEQUENCE:
                what = f"column '{column}' holds texts, where {names[0]} needs pictures, bytes or numbers"
                raise UsageError(f"{container.label}: {what}")
            columns[modality] = column
        return {**{name: found[name] for name in self.wanted.beside if name in found}, **columns}

    def endings(self, container: Container) -> tuple[dict[str, str], Counter[str]]:
        """Ending -> name of all that is read of a tar, and how often it has each other ending."""
        counts = Counter(ending for _, ending in _split_members(_index(container), self.mapping).values())
        found = {ending: name for ending in counts if (name := self.mapping.of_ending(ending))}
        read = {*self.wanted.beside}
        for names in self.names().values():
            read |= {next((name for name in names if name in found.values()), "")}
        used = {ending: name for ending, name in found.items() if name in read}
        return used, Counter({ending: count for ending, count in counts.items() if ending not in used})

    def _read_tars(self, containers: Sequence[Container]) -> Dataset:
        names, more = self.names(), {name: (name,) for name in self.wanted.beside}
        listings = {modality: Listing() for modality in (*names, *more)}
        for one in containers:
            used, _ = self.endings(one)
            chosen = {
                modality: next((name for name in choices if name in used.values()), "")
                for modality, choices in {**more, **names}.items()
            }
            self._list_tar(one, used, {name: listings[modality] for modality, name in chosen.items() if name})
            if problem := _index(one).problem:
                for modality in names:
                    listings[modality].problems[Key(one.name, UNKNOWN)] = f"{one.path}: {problem}"
        found = {modality: listings[modality] for modality in names}
        beside = {name: listings[name] for name in more if name not in names}
        return match_listings(found, beside, self.labels())

    def _list_tar(
        self, container: Container, used: Mapping[str, str], listings: Mapping[str, Listing]
    ) -> None:
        """Add the members of a tar to the listings of their names."""
        index = _index(container)
        for member, (stem, ending) in _split_members(index, self.mapping).items():
            if (listing := listings.get(used.get(ending, ""))) is None:
                continue
            folder, _, name = (stem if index.is_whole else f"{container.name}/{stem}").rpartition("/")
            name = unescape_dots(name) if index.is_escaped else name
            is_field = ending == _JSON and self.mapping.column is not None
            path = (
                container.path / member / (self.mapping.column or "") if is_field else container.path / member
            )
            listing.put(key := Key(folder, name), path)
            if isinstance(place := index.members[member], str):
                listing.problems[key] = f"{path}: {place}"


def container_reader(source: Source, wanted: WantedFiles, model: ModelFiles) -> ContainerReader:
    """What reads the containers of a source. UsageError: `endings` of it name an unknown modality."""
    rows = model.registry.rows.values()
    names = {one for row in rows for one in (*_names_of(row, True), *_names_of(row, False))}
    known = frozenset((*names, *_OTHERS))
    for ending, name in source.endings.items():
        if name not in known:
            raise UsageError(f"`map={ending}={name}`: there is no modality '{name}'{near_match(name, known)}")
    is_tar = source.containers[0].is_tar
    given = {(end.lower().lstrip(".") if is_tar else end): name for end, name in source.endings.items()}
    return ContainerReader(ModalityMap(known, given, source.column), wanted)


def read_containers(source: Source, wanted: WantedFiles, model: ModelFiles) -> Dataset:
    """All samples of the containers of a source. UsageError: none is complete, or none can be read."""
    reader = container_reader(source, wanted, model)
    note = describe(reader, source.containers)
    dataset = reader.read(source.containers)
    labels = reader.labels()
    check_readable(source.data or "", dataset, " and ".join(labels.values()))
    return replace(choose_listed(dataset, source, wanted, labels), notes=(note, *dataset.notes))


def describe(reader: ContainerReader, containers: Sequence[Container]) -> str:
    """A sentence that says which ending or column is read as what, by the first container that has any.

    UsageError: it has nothing for a condition.
    """
    first = containers[0]
    if not first.is_tar:
        columns = reader.columns(first)
        others = [name for name in columns_of(first).kinds if name not in columns.values()]
        named = {column: name for name, column in reader.mapping.of_columns(columns_of(first).kinds).items()}
        read = [f"{named[one].partition('@')[0]} from {printable(one)}" for one in columns.values()]
        return _sentence(first, read, others, "columns")
    first = next((one for one in containers if any(reader.endings(one))), first)
    used, counts = reader.endings(first)
    for names in reader.names().values():
        if not {*names} & {*used.values()} and not _index(first).problem:
            listed = ", ".join(sorted(map(printable, counts))[:_SHOWN]) or "none"
            raise UsageError(_nothing_for(first, names[0], f"its other endings are {listed}", "ENDING"))
    read = [
        f"{name} from {printable(reader.mapping.shown(ending))}"
        for ending, name in sorted(used.items(), key=lambda one: one[::-1])
    ]
    said = _sentence(first, read, [f"{end} ({count:,})" for end, count in sorted(counts.items())], "endings")
    tables = [one.name for end in COLUMN_SUFFIXES if (one := first.path.with_suffix(end)).is_file()]
    return said + "".join(f"; {name} beside it is not read" for name in tables)


def held_values(source: Source, rows: Sequence[Modality], model: ModelFiles) -> dict[Modality, str]:
    """For each grid, the name under which the first container holds its values; "" where it holds none."""
    reader = container_reader(source, WantedFiles(tuple(rows), frozenset(row.name for row in rows)), model)
    first = source.containers[0]
    if first.is_tar:
        found = {*reader.endings(first)[0].values()}
    else:
        found = {*reader.mapping.of_columns(columns_of(first).kinds)}
    return {row: next((one for one in _names_of(row, True) if one in found), "") for row in rows}


def implied_by(source: Source) -> str:
    """The condition of containers for which none is named: RGB if there are pictures, else captions."""
    known = frozenset((PICTURES, CAPTION))
    first, mapping = source.containers[0], ModalityMap(known, source.endings, source.column)
    if not first.is_tar:
        return PICTURES if PICTURES in mapping.of_columns(columns_of(first).kinds) else CAPTION
    members = _split_members(_index(first), mapping).values()
    return PICTURES if any(mapping.of_ending(ending) == PICTURES for _, ending in members) else CAPTION


def _names_of(row: Modality, is_raw: bool) -> tuple[str, ...]:
    """What may be the name of a modality's files, the likeliest first."""
    if row.kind is not Kind.GRID:
        return tuple(dict.fromkeys((row.folder, row.name, row.key)))
    return tuple(dict.fromkeys((*row.value_names[::-1], *folders_of(row)))) if is_raw else (row.name, row.key)


def found_container(origin: str, name: str) -> Container:
    """The container on the Hub, or in an object store, that a process elsewhere has found."""
    return remote_container(origin, name) if is_remote(origin) else hub_container(origin, name)


def _fetch(container: Container) -> None:
    """Fetch the file of a container that is elsewhere and not here yet."""
    (fetch_remote if is_remote(container.origin) else fetch_container)(container)


def _index(container: Container) -> TarIndex:
    _fetch(container)
    try:
        return read_tar(container.path)
    except OSError as error:
        return TarIndex(problem=f"cannot be read ({error.strerror})")


def columns_of(container: Container) -> Columns:
    """The rows and columns of a file. One elsewhere is fetched first; of a Parquet file, only its end is."""
    if container.has_end and not container.path.is_file():
        return _columns_at(container.origin)
    _fetch(container)
    return read_columns(container.path)


def _key_of(container: Container, row: int) -> Key:
    return Key(f"{container.name}/{row // SAMPLES_PER_FOLDER:05d}", f"{row:06d}")


def _key_in(container: Container, row: int) -> Key:
    """The key that a row says, with its variation: the name that its files would have."""
    names = [one for one in ("key", "variation") if one in columns_of(container).kinds]
    try:
        cells = (read_cell(container.path, f"{row}.{name}", _MAX_KEY)[1].decode() for name in names)
        return parse_key("-v".join(cells))
    except (SampleError, UsageError, ValueError) as error:
        raise UsageError(f"{container.label}: row {row} has no name that is a key ({error})") from error


def is_counted(container: Container) -> bool:
    """Whether the number of rows of a file is known without fetching it."""
    return not container.is_tar and (container.has_end or not container.origin)


def count_rows(containers: Sequence[Container]) -> list[int | None]:
    """The rows of each file; None where they are not counted."""

    def count(one: Container) -> int | None:
        return columns_of(one).num_rows if is_counted(one) else None

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(count, containers))


@lru_cache(maxsize=1 << 16)
def _columns_at(origin: str) -> Columns:
    """What the end of a Parquet file elsewhere says."""
    size = int(origin.rpartition("#")[2].partition("-")[0])
    read: Callable[[str, int], bytes] = read_remote_end if is_remote(origin) else read_hub_end
    data = read(origin, _END)
    if (due := int.from_bytes(data[-8:-4], "little") + 8) > len(data) and due <= min(size, _MAX_END):
        data = read(origin, due)
    path = copy_of(origin.partition("#")[0], "ends")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("wb") as file:
            file.truncate(size)
            file.seek(size - len(data))
            file.write(data)
        return read_columns(path)
    finally:
        path.unlink(missing_ok=True)


def _split_members(index: TarIndex, mapping: ModalityMap) -> dict[str, tuple[str, str]]:
    """The key and the ending, in lower case, of each member that is not hidden.

    A key ends at the first dot of the last part of a name. It may hold dots, too (`img.v2.jpg`), where no
    member has the shorter key and an ending that is read.
    """
    split, firm = dict[str, tuple[str, str]](), set[str]()
    for member in index.members:
        *above, last = member.split("/")
        if any(part.startswith(".") for part in (*above, last)):
            continue
        stem, _, ending = last.partition(".")
        split[member] = "/".join((*above, stem)), ending.lower()
        if mapping.of_ending(ending.lower()):
            firm.add(split[member][0])
    for member, (stem, ending) in split.items():
        short = ending.rpartition(".")[2]
        if stem not in firm and short != ending and (mapping.of_ending(short) or short == _JSON):
            split[member] = member[: -len(short) - 1], short
    return split


def _sentence(container: Container, read: Sequence[str], others: Sequence[str], what: str) -> str:
    read = [*dict.fromkeys(read)]
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    rest = f"; other {what}: {', '.join(map(printable, others[:_SHOWN]))}{more}" if others else ""
    return f"{container.label}: {', '.join(read)}{rest}"


def _nothing_for(container: Container, name: str, listed: str, what: str) -> str:
    advice = f"`map={what}={name}` names the one that holds it"
    if name == CAPTION:
        advice += ", `column=NAME` a text in KEY.json" if what == "ENDING" else ""
    return f"{container.label}: has nothing for {name}; {listed}; {advice}"
