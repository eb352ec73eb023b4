"""The folder of a run in an object store: shards are made in a temporary folder and uploaded, markers last.

There is no renaming and no lock: a file appears whole, the first record counts, and a shard that is made
twice is the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fourm.data.shards import Shard
from fourm.data.storage import RemoteFolder
from fourm.errors import UsageError
from fourm.output.joining import open_shards
from fourm.output.markers import Counts, Marker, find_done, marker_path, read_done
from fourm.output.record import RUN, RunRecord


@dataclass(frozen=True, slots=True)
class Store:
    """The folder of a run, `address` in an object store or else `out`, and what is done with its shards."""

    out: Path  # in which files are made
    address: str = ""

    def begin(self, settings: RunRecord, size: int, resume: bool, overwrite: bool, record: str) -> None:
        """Open the folder as `open_shards` does."""
        asked = self.out, settings, size, resume, overwrite, record
        is_there = (self.out / record).exists()
        if self.address and not is_there and record == RUN and self._folder.sizes().keys() - {RUN}:
            raise UsageError(f"`out={self.address}`: is not empty; name another folder")
        open_shards(*asked)
        if not self.address or is_there:
            return
        if not self._folder.create(record):
            self._folder.fetch_small([record])  # another process was first
            open_shards(*asked)

    def find_done(
        self, shards: Sequence[Shard], settings: str, record: str
    ) -> tuple[dict[int, Counts], list[str]]:
        """As `find_done`; of a store by one listing, and the markers that it has."""
        if not self.address:
            return find_done(self.out, shards, settings, record)
        sizes = self._folder.sizes()
        names = [self._marker(shard, record) for shard in shards]
        self._forget(names)
        self._folder.fetch_small([name for name in names if name in sizes])
        found = find_done(self.out, shards, settings, record, sizes.get)
        self._forget(names)
        return found

    def read_done(self, shard: Shard, settings: str, record: str) -> Marker:
        """The marker of a shard that is whole; UsageError if it is not."""
        path = marker_path(self.out, shard.name, record)
        if not self.address:
            return read_done(path, self.out, settings, shard=shard)
        self._folder.fetch_small([self._marker(shard, record)])
        return read_done(path, self.out, settings, self._folder.size, shard)

    def put(self, marker: Marker, record: str) -> None:
        """Upload the files of a shard, then its marker; one that is there says nothing meanwhile."""
        if not self.address:
            return
        own = self._marker(marker.shard, record)
        if self._folder.size(own):
            self._folder.empty(own)
        for name in (*marker.files, own):
            self._folder.upload(name)

    def get(self, marker: Marker) -> None:
        """Fetch the files of a shard that are not here."""
        for name in marker.files if self.address else ():
            if not (self.out / name).exists():
                self._folder.fetch(name)

    def forget(self, markers: Sequence[Marker], records: Sequence[str]) -> None:
        """Delete the temporary files of a shard."""
        for marker, record in zip(markers, records, strict=False) if self.address else ():
            self._forget([*marker.files, self._marker(marker.shard, record)])

    @property
    def _folder(self) -> RemoteFolder:
        return RemoteFolder(self.address)

    def _marker(self, shard: Shard, record: str) -> str:
        return marker_path(self.out, shard.name, record).relative_to(self.out).as_posix()

    def _forget(self, names: Sequence[str]) -> None:
        for name in names:
            (self.out / name).unlink(missing_ok=True)
