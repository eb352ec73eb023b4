"""Which samples the shards of a run hold, and the paths of their files: members of tars, cells of tables."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote

from fourm.data.layout import Key, Place, parse_key
from fourm.data.shards import PARQUET, SHARDS
from fourm.errors import UsageError
from fourm.files.tars import read_tar
from fourm.output.markers import NAME, Marker, Member, stem_of_all
from fourm.output.record import RUN


@dataclass(frozen=True, slots=True)
class ShardMembers:
    """The files of one shard."""

    root: Path  # folder of the run
    marker: Marker
    numbers: Sequence[int | None]  # variations of the run; (None,) if there is only one
    record: str = RUN
    _rows: dict[tuple[Key, int | None], int] = field(default_factory=dict)  # of a table

    def keys(self, place: Place) -> list[Key]:
        """The samples of which a file of a place is there, and those that failed, in order."""
        found = set(self._keys_of_table() if self.marker.format == PARQUET else self._keys_of_tar(place))
        return sorted(found | {parse_key(failure.key) for failure in self.marker.failures})

    def paths(self, key: Key, place: Place) -> tuple[str, ...]:
        """The files of a sample: one for each variation, or one for all of them."""
        shard, is_split = self.marker.shard.name, self.marker.format != SHARDS
        stem = stem_of_all(shard, self.record)
        numbers = (None,) if place.shared and not is_split else self.numbers
        members = (Member(key, number, place.folder, place.suffix) for number in numbers)
        if self.marker.format == PARQUET:
            rows = ((self._rows.get((key, member.variation), "-"), member.column) for member in members)
            return tuple(f"{stem}.parquet/{row}.{column}" for row, column in rows)
        if self.marker.format == SHARDS:
            return tuple(f"{place.folder}/{shard}.tar/{one.name(self.marker.keys)}" for one in members)
        return tuple(f"{stem}.tar/{one.web_name(self.marker.keys)}" for one in members)

    def has(self, place: Place) -> bool:
        """Whether the shard has files of a place that not every shard has."""
        stem, files = stem_of_all(self.marker.shard.name, self.record), self.marker.files
        if not files or self.marker.format == SHARDS:
            return f"{place.folder}/{self.marker.shard.name}.tar" in files
        if self.marker.format == PARQUET:
            from pyarrow import parquet

            return place.folder in parquet.read_schema(self.root / f"{stem}.parquet").names
        ending = f".{place.folder}{place.suffix}"
        return any(name.endswith(ending) for name, _ in self._index(f"{stem}.tar"))

    def _keys_of_tar(self, place: Place) -> Iterator[Key]:
        shard, is_split = self.marker.shard.name, self.marker.format != SHARDS
        tar = f"{stem_of_all(shard, self.record)}.tar" if is_split else f"{place.folder}/{shard}.tar"
        if tar not in self.marker.files:
            return
        ending = f".{place.folder.replace('/', '.')}{place.suffix}" if is_split else place.suffix
        number = "" if self.numbers == (None,) or (place.shared and not is_split) else "-v[0-9]+"
        pattern = re.compile(f"(.+){number}{re.escape(ending)}", re.DOTALL)
        for name, at in self._index(tar):
            if isinstance(at, tuple) and (match := pattern.fullmatch(name)):
                key = parse_key(match[1])
                key = replace(key, name=unquote(key.name)) if is_split else key
                yield Key(shard, key.name) if self.marker.keys == NAME else key

    def _index(self, tar: str) -> Iterator[tuple[str, object]]:
        try:
            yield from read_tar(self.root / tar).members.items()
        except OSError as error:
            raise UsageError(f"{self.root / tar}: cannot be read ({error.strerror})") from error

    def _keys_of_table(self) -> Iterator[Key]:
        from pyarrow import parquet

        for name in self.marker.files:
            names = ["key"] if self.numbers == (None,) else ["key", "variation"]
            table = parquet.read_table(self.root / name, columns=names).to_pydict()
            numbers = table.get("variation", [None] * len(table["key"]))
            self._rows.update(
                {
                    (parse_key(key), v): row
                    for row, (key, v) in enumerate(zip(table["key"], numbers, strict=True))
                }
            )
        yield from (key for key, _ in self._rows)
