"""What the engines that hand out shards cost, beside as many plain processes that share them (`--shard i/n`).

    python -m benchmarks.executors [--rounds 3] [--shards 4,64] [--json FILE]

Each engine makes few shards and many, two processes at a time, in turns with the others, by commands of their
own with the embedded model. The line through both is a start, which is paid once, and a shard. *CPU* is the
processor time of all processes that the command started, daemons of Ray included, looked at ten times a
second. `sbatch` is a program that runs all tasks of an array at once, so waiting in a queue is not measured.
"""

import argparse
import hashlib
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.scale import command, write_prompts
from benchmarks.tables import Table, add_json

WORKERS, SIZE = 2, 8  # processes; samples of a shard
WORDS = ("--model", "demo", "--device", "cpu", "--targets", "tok_rgb", "--steps", "2", "--no-decode",
         "--format", "shards", "--shard-size", str(SIZE))  # fmt: skip
ENGINES: Mapping[str, Sequence[Sequence[str]]] = {  # of each command that is started, what it adds
    f"{WORKERS} plain processes": [("--shard", f"{rank}/{WORKERS}") for rank in range(WORKERS)],
    "`--workers`": [("--workers", str(WORKERS))],
    "`--executor slurm`": [("--executor", "slurm", "--workers", str(WORKERS))],
    "`--executor ray`": [("--executor", "ray", "--workers", str(WORKERS))],
}
SBATCH = """#!/bin/sh
cat > "$0.job"
export SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_MAX={last}
export SLURM_ARRAY_TASK_STEP=1 SLURM_ARRAY_TASK_COUNT={count}
for task in $(seq 0 {last}); do SLURM_ARRAY_TASK_ID=$task sh "$0.job" > /dev/null & done
wait
echo 1
"""
COLUMNS = {"engine": "", "start, s": ".2f", "CPU, s": ".2f", "a shard, ms": ".0f", "CPU, ms": ".0f",
           "CPU of the start - plain, s": "+.2f", "CPU of a shard / plain": ".2f"}  # fmt: skip
INTERVAL, AFTERWARDS = 0.1, 10.0  # seconds between two looks at processes, and until daemons have ended


@dataclass(frozen=True, slots=True)
class Used:
    """What a run took, and a digest of its tars."""

    seconds: float
    cpu: float  # seconds of processor time
    digest: str


@dataclass(slots=True)
class Tree:
    """Processes that descend from some, and what each used of the processor until it was last seen."""

    used: dict[int, float] = field(default_factory=dict)  # seconds, by process

    def look(self) -> bool:
        """Add what is new; whether one of them is alive."""
        found = dict(_processes())
        size = -1
        while len(self.used) > size:  # children of children are found in any order
            size = len(self.used)
            new = [one for one, (parent, _) in found.items() if parent in self.used and one not in self.used]
            self.used |= dict.fromkeys(new, 0.0)
        self.used |= {one: seconds for one, (_, seconds) in found.items() if one in self.used}
        return any(one in self.used for one in found)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, of which the median counts")
    parser.add_argument("--shards", default="4,64", help="few and many")
    add_json(parser)
    args = parser.parse_args()
    few, many = (int(word) for word in args.shards.split(","))
    with tempfile.TemporaryDirectory() as work, sbatch(Path(work)):
        runs = {(name, count): list[Used]() for name in ENGINES for count in (few, many)}
        table = Table(COLUMNS, args.json)
        for _ in range(args.rounds):
            for name, count in runs:
                runs[name, count].append(measure(Path(work), name, count))
    if len({used.digest for (_, count), some in runs.items() if count == many for used in some}) > 1:
        raise SystemExit("not all engines have made the same tars")
    report(table, runs, few, many)


def report(table: Table, runs: Mapping[tuple[str, int], list[Used]], few: int, many: int) -> None:
    """A row for each engine: the line through its medians for few and for many shards."""
    plain = list[float]()
    for name in ENGINES:
        lines = list[tuple[float, float]]()
        for what in ("seconds", "cpu"):
            first, last = (
                statistics.median(getattr(used, what) for used in runs[name, count]) for count in (few, many)
            )
            each = (last - first) / (many - few)
            lines.append((first - few * each, each))
        (start, shard), (start_cpu, shard_cpu) = lines
        plain = plain or [start_cpu, shard_cpu]
        table.add(
            name, start, start_cpu, 1000 * shard, 1000 * shard_cpu,
            start_cpu - plain[0], shard_cpu / plain[1],
            **{f"{what}, {count} shards": [getattr(used, what) for used in runs[name, count]]
               for what in ("seconds", "cpu") for count in (few, many)},
        )  # fmt: skip


def measure(work: Path, name: str, shards: int) -> Used:
    """Let an engine make so many shards."""
    prompts = write_prompts(work, shards * SIZE)
    out = Path(tempfile.mkdtemp(dir=work)) / "out"
    words = ("--data", str(prompts), *WORDS, "--out", str(out))
    began = time.perf_counter()
    started = [
        subprocess.Popen(command(*words, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for more in ENGINES[name]
    ]
    tree = Tree({process.pid: 0.0 for process in started})
    while tree.look() and None in [process.poll() for process in started]:
        time.sleep(INTERVAL)
    seconds, end = time.perf_counter() - began, time.monotonic() + AFTERWARDS
    while tree.look() and time.monotonic() < end:
        time.sleep(INTERVAL)
    if any(process.returncode for process in started) or len(list((out / "done").iterdir())) != shards:
        raise SystemExit(f"{name}: the run of {shards} shards failed")
    digest = hashlib.sha256()
    for path in sorted(out.rglob("*.tar")):
        digest.update(path.read_bytes())
    return Used(seconds, sum(tree.used.values()), digest.hexdigest())


@contextmanager
def sbatch(folder: Path) -> Iterator[None]:
    """Put a program `sbatch` on the path."""
    (folder / "sbatch").write_text(SBATCH.format(last=WORKERS - 1, count=WORKERS), encoding="utf-8")
    (folder / "sbatch").chmod(0o755)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{folder}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _processes() -> Iterator[tuple[int, tuple[int, float]]]:
    """All processes: parent, and seconds of processor time."""
    ticks = os.sysconf("SC_CLK_TCK")
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            facts = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        yield int(path.parent.name), (int(facts[1]), (int(facts[11]) + int(facts[12])) / ticks)


if __name__ == "__main__":
    main()
