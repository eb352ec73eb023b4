"""Which share of the samples this process does: rank and size from torchrun, and `--shard i/n`."""

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fourm.data.opening import read_bytes
from fourm.errors import UsageError, shown

T = TypeVar("T")
_LOADED = time.time()


@dataclass(frozen=True, slots=True)
class World:
    """One process among those that share a job; they share nothing but the output folder."""

    rank: int = 0  # 0 <= rank < size
    size: int = 1
    local_rank: int = 0  # index of the device on this machine
    group_rank: int = 0  # among the processes of one torchrun
    group_size: int = 1
    # When this process's job began, in seconds since 1970: all that its processes write is younger.
    began: float = field(default_factory=lambda: start_of(os.getpid()), compare=False)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"WORLD_SIZE is {self.size}; a job has at least one process")
        if not 0 <= self.rank < self.size:
            raise UsageError(f"process {self.rank} of {self.size}: the number must lie in 0..{self.size - 1}")

    @property
    def is_shard(self) -> bool:
        """Whether others of the job are started with `--shard`, perhaps at another time."""
        return self.size > self.group_size

    def share(self, items: Sequence[T]) -> list[T]:
        """Every size-th item from rank on; the caller gives all processes the same sorted items."""
        return list(items[self.rank :: self.size])

    def describe_share(self, samples: int, variations: int = 1) -> str:
        """`process 0 of 8: 1 of 2 samples`; with several variations what is divided are results."""
        results = range(samples * variations)
        what = "samples" if variations == 1 else f"results ({samples:,} samples x {variations} variations)"
        share = len(results[self.rank :: self.size])
        return f"process {self.rank} of {self.size}: {share:,} of {len(results):,} {what}"


def parse_world(shard: str | None, environment: Mapping[str, str]) -> World:
    """The world of torchrun's variables, divided once more by `--shard i/n` (i counts from 0).

    An empty variable counts as none.
    """
    environment = {name: text for name, text in environment.items() if text}
    for name, other in (("WORLD_SIZE", "RANK"), ("RANK", "WORLD_SIZE")):
        if name in environment and other not in environment:
            what = f"{name} is {shown(environment[name])}, but {other} is not set"
            advice = "torchrun sets both, a single process needs neither"
            raise UsageError(f"environment variable {what}; {advice}")
    rank, size = _number("RANK", environment, 0), _number("WORLD_SIZE", environment, 1)
    local_rank = _number("LOCAL_RANK", environment, rank if size > 1 else 0)
    index, count = parse_shard(shard) if shard is not None else (0, 1)
    launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in environment else os.getpid()
    return World(index * size + rank, count * size, local_rank, rank, size, start_of(launcher))


def start_of(process: int) -> float:
    """When a process was started, in seconds since 1970; if that is not told, when this module was loaded."""
    try:
        ticks = int(read_bytes(Path(f"/proc/{process}/stat"), 1 << 12).rpartition(b")")[2].split()[19])
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return _LOADED


def parse_shard(text: str) -> tuple[int, int]:
    """`0/4` -> (0, 4): the first of four shards."""
    if not (match := re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip())):
        raise UsageError(f"--shard: '{text}' is not i/n; the first of four shards is 0/4")
    index, count = int(match[1]), int(match[2])
    if index >= count:
        allowed = f"0..{max(count - 1, 0)}"
        raise UsageError(f"--shard: {text} is out of range; shards count from 0, so i lies in {allowed}")
    return index, count


def _number(name: str, environment: Mapping[str, str], default: int) -> int:
    text = environment.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,9}", text):
        due = "a whole number of at most 9 digits; torchrun sets it"
        raise UsageError(f"environment variable {name} is '{shown(text)}', not {due}")
    return int(text)
