"""One process among those that share a job, and the variables by which launchers tell it which one it is."""

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fourm.errors import UsageError, shown
from fourm.files.opening import read_bytes

T = TypeVar("T")
# Launchers that are not followed unasked: the variable of a process, of their number, a value of `shard`.
_LAUNCHERS = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "array"),
    ("SLURM_PROCID", "SLURM_NTASKS", "slurm"),
    ("JOB_COMPLETION_INDEX", "", "k8s/N"),
)
_LOADED = time.time()  # in place of the start of a process, where the system does not tell it


@dataclass(frozen=True, slots=True)
class World:
    """One process among those that share a job. They exchange nothing but files in the output folder."""

    rank: int = 0  # 0 <= rank < size
    size: int = 1
    local_rank: int = 0  # index of the device on this machine
    group_rank: int = 0  # among the processes of one torchrun
    group_size: int = 1
    is_told: bool = field(default=False, compare=False)  # `--shard` or torchrun says which process this is
    # When this process's job began, in seconds since 1970: all that its processes write is younger.
    began: float = field(default_factory=lambda: start_of(os.getpid()), compare=False)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"WORLD_SIZE is {self.size}; a job has at least one process")
        if not 0 <= self.rank < self.size:
            raise UsageError(f"process {self.rank} of {self.size}: the number must lie in 0..{self.size - 1}")

    @property
    def joining(self) -> int:
        """How many processes may join a folder of shards unasked: an array may have a single task."""
        return max(self.size, 1 + self.is_told)

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
    """The world of torchrun's variables, divided once more by `--shard`.

    shard: i/n (i counts from 0), or the launcher whose variables say it: array, slurm, k8s/N. An empty
    variable counts as none.
    """
    environment = {name: text for name, text in environment.items() if text}
    for name, other in (("WORLD_SIZE", "RANK"), ("RANK", "WORLD_SIZE")):
        if name in environment and other not in environment:
            what = f"{name} is {shown(environment[name])}, but {other} is not set"
            advice = "torchrun sets both, a single process needs neither"
            raise UsageError(f"environment variable {what}; {advice}")
    rank, size = _number("RANK", environment, 0), _number("WORLD_SIZE", environment, 1)
    index, count, local = (0, 1, 0) if shard is None else _parse_shard(shard.strip(), environment)
    local_rank = _number("LOCAL_RANK", environment, rank if size > 1 else local)
    launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in environment else os.getpid()
    is_told = shard is not None or "RANK" in environment
    return World(index * size + rank, count * size, local_rank, rank, size, is_told, start_of(launcher))


def other_launcher(environment: Mapping[str, str]) -> str:
    """What a run that was not told is told: that variables say it is one of several processes; or ""."""
    for name, size, form in _LAUNCHERS:
        if environment.get(name) and environment.get(size, "") != "1":
            what = f"{name} is set, but `shard` is not, so this process makes everything"
            return f"{what}; `shard={form}` divides it"
    return ""


def _parse_shard(text: str, environment: Mapping[str, str]) -> tuple[int, int, int]:
    """Number of a process, number of processes, and the number among those of its machine."""
    if text == "array":
        return *_of_array(environment), 0
    if text == "slurm":
        names = "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"
        index, count, local = (_number(name, environment, None, "srun") for name in names)
        return _checked(text, index, count), count, local
    if match := re.fullmatch(r"k8s/([0-9]{1,9})", text):
        who = "an indexed Job of Kubernetes"
        index = _number("JOB_COMPLETION_INDEX", environment, None, who)
        return _checked(text, index, int(match[1])), int(match[1]), 0
    if not (match := re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)):
        forms = "the first of four shards is 0/4; array, slurm and k8s/N read variables of a launcher"
        raise UsageError(f"`shard`: '{shown(text)}' is not i/n; {forms}")
    return _checked(text, int(match[1]), int(match[2])), int(match[2]), 0


def _of_array(environment: Mapping[str, str]) -> tuple[int, int]:
    """The place of a task in its SLURM array, and the tasks of the array, which may start anywhere."""
    names = (f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "STEP", "COUNT"))
    own, first, last, step, count = (_number(name, environment, None, "an array of SLURM") for name in names)
    index, rest = divmod(own - first, max(step, 1))
    if rest or not first <= own <= last or (last - first) // max(step, 1) + 1 != count:
        found = f"task {own} of {count}, from {first} to {last} in steps of {step}"
        raise UsageError(
            f"`shard=array`: {found}, is a list with gaps; FIRST-LAST and FIRST-LAST:STEP have none"
        )
    return _checked("array", index, count), count


def _checked(shard: str, index: int, count: int) -> int:
    if index >= count:
        own = "" if "/" in shard and not shard.startswith("k8s") else f"process {index} of {count} "
        why = f"{own}is out of range; shards count from 0, so i lies in 0..{max(count - 1, 0)}"
        raise UsageError(f"`shard`: {shard} {why}")
    return index


def start_of(process: int) -> float:
    """When a process was started, in seconds since 1970; without /proc, when this module was loaded."""
    try:
        ticks = int(read_bytes(Path(f"/proc/{process}/stat"), 1 << 12).rpartition(b")")[2].split()[19])
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return _LOADED


def _number(name: str, environment: Mapping[str, str], default: int | None, who: str = "torchrun") -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not text:
        raise UsageError(f"environment variable {name} is not set; {who} sets it")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        due = f"a whole number of at most 9 digits; {who} sets it"
        raise UsageError(f"environment variable {name} is '{shown(text)}', not {due}")
    return int(text)
