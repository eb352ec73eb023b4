"""The names of a shard's files: members of tars, cells of tables; and which samples a shard holds."""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from fourm.data.layout import Key, Place, escape_dots, file_name, parse_key, unescape_dots
from fourm.data.shards import PARQUET, SHARDS
from fourm.errors import UsageError
from fourm.files.opening import open_file
from fourm.files.tars import read_tar, scan_tar
from fourm.output.markers import Marker
from fourm.output.record import RUN, SR


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a result."""

    key: Key
    variation: int | None  # None: the only one, or of all
    folder: str  # of its kind of file: "rgb", "tok_rgb@64"
    suffix: str

    def name(self, within: str) -> str:
        """Its name in a tar of its folder that stands for the folder `within` of keys: `042017-v1.png`."""
        return file_name("", self.key, self.suffix, self.variation)[1:].removeprefix(f"{within}/")

    def web_name(self, within: str) -> str:
        """Its name in a tar of all folders, `042017-v1.rgb.png`; the first dot ends the name of a sample."""
        above = f"{self.key.folder}/".removeprefix(f"{within}/")
        number = "" if self.variation is None else f"-v{self.variation}"
        return above + escape_dots(self.key.name) + number + web_ending(self)


def web_ending(kind: Member | Place) -> str:
    """How the names of a kind of file end in a tar of all folders: `.rgb.png`."""
    return f".{kind.folder.replace('/', '.')}{kind.suffix}"


def column_of(kind: Member | Place) -> str:
    """The column of a kind of file in a table: the folder, and what else than an ending the suffix has."""
    return kind.folder + os.path.splitext(f"x{kind.suffix}")[0][1:]


def joint_file(shard: str, form: str, record: str = RUN) -> str:
    """The one file of all results of a shard, by its path below the folder of the run."""
    name = f"{shard}.{PARQUET if form == PARQUET else 'tar'}"
    return name if record == RUN else f"{SR}/{name}"


@dataclass(frozen=True, slots=True)
class ShardMembers:
    """The files of one shard."""

    root: Path  # folder of the run
    marker: Marker
    numbers: Sequence[int | None]  # variations of the run; (None,) if there is only one
    record: str = RUN
    _rows: dict[tuple[Key, int | None], int] = field(default_factory=dict)  # of a table, when it was read
    _keys: dict[Place, dict[Key, None]] = field(default_factory=dict)
    _has: dict[Place, bool] = field(default_factory=dict)

    def file_of(self, place: Place) -> str:
        """The file of the shard that holds those of a place, by its path below the folder of the run."""
        if self.marker.format == SHARDS:
            return f"{place.folder}/{self.marker.shard.name}.tar"
        return joint_file(self.marker.shard.name, self.marker.format, self.record)

    def keys(self, place: Place) -> Collection[Key]:
        """The samples of which a file of a place is there, and those that failed, in order."""
        if place not in self._keys:
            failed = {parse_key(failure.key) for failure in self.marker.failures}
            self._keys[place] = dict.fromkeys(sorted(self.made(place) | failed))
        return self._keys[place].keys()

    def made(self, place: Place) -> set[Key]:
        """The samples of which a file of a place is there."""
        if self.marker.format == PARQUET:
            return {key for key, _ in self._read_rows()}
        return set(self._keys_of_tar(place))

    def paths(self, key: Key, place: Place) -> tuple[str, ...]:
        """The files of a sample: one for each variation, or one for all of them.

        The path of a result that failed names a file that is not there.
        """
        is_joint, file, within = self.marker.format != SHARDS, self.file_of(place), self.marker.within
        numbers = (None,) if place.shared and not is_joint else self.numbers
        members = [Member(key, number, place.folder, place.suffix) for number in numbers]
        if not is_joint:
            return tuple(f"{file}/{one.name(within)}" for one in members)
        if self.marker.format == PARQUET:
            rows = [self._read_rows().get((key, one.variation)) for one in members]
            names = [f"{'-' if row is None else row}.{column_of(place)}" for row in rows]
            there = [row is not None for row in rows]
        else:
            names = [one.web_name(within) for one in members]
            known = self._members_of(file) if place.shared and file in self.marker.files else {}
            there = [name in known for name in names]
        if place.shared:  # it is with each result: any that was made has it
            names = [names[there.index(True) if any(there) else 0]]
        return tuple(f"{file}/{name}" for name in names)

    def has(self, place: Place) -> bool:
        """Whether the shard has files of a place that not every shard has."""
        if place not in self._has:
            self._has[place] = self._look_for(place)
        return self._has[place]

    def _look_for(self, place: Place) -> bool:
        file = self.file_of(place)
        if self.marker.format == SHARDS or file not in self.marker.files:
            return file in self.marker.files
        if self.marker.format == PARQUET:
            from pyarrow import parquet

            with _reading(self.root / file) as opened:
                return column_of(place) in parquet.read_schema(opened).names
        return any(name.endswith(web_ending(place)) for name in self._members_of(file))

    def count(self, place: Place) -> int:
        """How many files of a place there are, or rows of the table; nothing is kept of them.

        ImportError without pyarrow; OSError, ValueError: the file cannot be read.
        """
        file = self.file_of(place)
        if self.marker.format == PARQUET:
            from pyarrow import parquet

            with open_file(self.root / file) as opened:
                return int(parquet.read_metadata(opened).num_rows)
        ending = place.suffix if self.marker.format == SHARDS else web_ending(place)
        return sum(name.endswith(ending) for name in scan_tar(self.root / file).members)

    def _keys_of_tar(self, place: Place) -> Iterator[Key]:
        is_joint, tar = self.marker.format != SHARDS, self.file_of(place)
        if tar not in self.marker.files:
            return
        ending = web_ending(place) if is_joint else place.suffix
        number = "" if self.numbers == (None,) or (place.shared and not is_joint) else "-v[0-9]+"
        pattern = re.compile(f"(.+){number}{re.escape(ending)}", re.DOTALL)
        for name, at in self._members_of(tar).items():
            if isinstance(at, tuple) and (match := pattern.fullmatch(name)):
                key = parse_key(f"{self.marker.within}/{match[1]}".lstrip("/"))
                yield replace(key, name=unescape_dots(key.name)) if is_joint else key

    def _members_of(self, tar: str) -> Mapping[str, object]:
        try:
            return read_tar(self.root / tar).members
        except OSError as error:
            raise UsageError(f"{self.root / tar}: cannot be read ({error.strerror})") from error

    def _read_rows(self) -> Mapping[tuple[Key, int | None], int]:
        """The row of each result in the table, by key and variation."""
        from pyarrow import parquet

        for name in self.marker.files if not self._rows else ():
            names = ["key"] if self.numbers == (None,) else ["key", "variation"]
            with _reading(self.root / name) as file:
                table = parquet.read_table(file, columns=names).to_pydict()
                numbers = table.get("variation", [None] * len(table["key"]))
                results = zip(map(parse_key, table["key"]), numbers, strict=True)
                self._rows.update({result: row for row, result in enumerate(results)})
        return self._rows


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """A table of results, opened; UsageError if it is damaged or gone."""
    try:
        with open_file(path) as file:
            yield file
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = getattr(error, "strerror", None) or f"is damaged, or no table of results: {error}"
        raise UsageError(f"{path}: cannot be read ({why})") from error
