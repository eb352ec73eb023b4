"""A shard: the piece of an input that one process makes at a time, described without its samples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, overload

from fourm.errors import UsageError

# What results are put in: a file for each, or shards, which are tars or tables.
Format = Literal["files", "shards", "webdataset", "parquet"]
FILES, SHARDS, WEBDATASET, PARQUET = FORMATS = ("files", "shards", "webdataset", "parquet")
SHARD_SIZE = 1000  # samples of a shard, where nothing else is asked for
MAX_SHARDS = 1_000_000  # of a run: all of a process are in a list, and each is looked up when it starts


@dataclass(frozen=True, slots=True)
class Shard:
    """One piece of an input. It is plain data, so that any engine can hand it to any process."""

    number: int  # its position among the shards of the input
    name: str  # stem of the files that are made of it: "00042", or "train/00017" of a tar with that name
    first: int | None = None  # position of its first sample in the input; None: samples have other names
    count: int | None = None  # of samples; None: not known before it is read
    parts: tuple[str | int, ...] = ()  # what its reader needs: a kind of input, a file, a range, ...

    def has_range_of(self, other: "Shard") -> bool:
        """Whether both are the same range of samples, as far as that is known without reading them.

        Their files may have moved, and the input may have other shards before them. Numbers among `parts` are
        compared if both are of one kind.
        """
        both, is_one_kind = (self, other), self.parts[:1] == other.parts[:1]
        mine, theirs = ([part for part in one.parts if isinstance(part, int) and is_one_kind] for one in both)
        return mine == theirs and len({(one.name, one.first, one.count) for one in both}) == 1


def check_number(samples: int, size: int) -> None:
    """UsageError for more shards than a run has."""
    if (count := -(-samples // size)) > MAX_SHARDS:
        what = f"makes {count:,} shards of {samples:,} samples, and a run has at most {MAX_SHARDS:,}"
        raise UsageError(f"`shard_size={size}`: {what}; larger ones are fewer")


def shard_name(number: int) -> str:
    """The name of a shard that has no other: `00042`."""
    return f"{number:05d}"


@dataclass(frozen=True, slots=True)
class Ranges(Sequence[Shard]):
    """Shards of equal size, each made when it is asked for: a billion samples need no list."""

    total: int  # samples of all shards
    size: int  # samples of each but the last
    kind: str  # the first of its parts
    path: str = ""  # the second
    columns: tuple[Sequence[int], ...] = ()  # each has one more part of each shard

    def __len__(self) -> int:
        return -(-self.total // self.size)

    @overload
    def __getitem__(self, number: int) -> Shard: ...
    @overload
    def __getitem__(self, number: slice) -> list[Shard]: ...
    def __getitem__(self, number: int | slice) -> Shard | list[Shard]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        first = number * self.size
        begin: tuple[str | int, ...] = (self.kind, self.path) if self.path else (self.kind,)
        parts = (*begin, *(column[number] for column in self.columns))
        return Shard(number, shard_name(number), first, min(self.size, self.total - first), parts)


def take_shards(shards: Iterable[Shard], count: int | None) -> list[Shard]:
    """The shards of the first `count` samples, the last one shortened; all of them for None."""
    if count is None:
        return list(shards)
    taken, left = list[Shard](), count
    for shard in shards:
        if not left:
            break
        assert shard.count is not None
        kept = min(shard.count, left)
        taken.append(Shard(shard.number, shard.name, shard.first, kept, shard.parts))
        left -= kept
    return taken
