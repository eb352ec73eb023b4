"""What `fourm generate --format shards` needs for many prompts: time and memory at the start, and files.

    python -m benchmarks.scale [--prompts 1000,100000,1000000] [--shards 1000000] [--done 1000]
                               [--verify 10,100,1000] [--json FILE]

Each start is a command of its own with the embedded model, tokens only: process 7 of 100, until its first
sample is saved, then it is stopped; *CPU* is its processor time until then (on a busy machine seconds say
little), memory its peak. Shards of one sample show what more shards add. `--resume` finds markers and tars
that are copies of one real shard, `verify` shards with a thousand copies of one real sample. What more
samples need and leave is computed from these and from three real shards.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.tables import Table, add_json
from fourm.data.containers import read_member, split_path
from fourm.data.layout import number_keys
from fourm.data.shards import SHARD_SIZE, SHARDS, shard_name
from fourm.files.writing import remove_leftovers
from fourm.hub.files import find_model
from fourm.output.markers import Counts, Marker, marker_path, read_markers, settings_digest
from fourm.output.members import Member
from fourm.output.record import RUN, format_run
from fourm.output.samples import load_run
from fourm.output.shard_files import ShardFiles
from fourm.sources.shards import list_shards
from fourm.sources.source import Source

RANK, SIZE = 7, 100  # of the process that is measured
STEPS = ("--model", "demo", "--device", "cpu", "--steps", "2", "--batch-size", "8", "--format", "shards")
TOKENS = (*STEPS, "--targets", "tok_rgb", "--no-decode")
TWO_TARGETS = (*STEPS, "--targets", "tok_clip-tok_rgb", "--shard-size", "4")
COMPUTED = (100_000, 1_000_000, 100_000_000, 1_000_000_000)  # samples
COLUMNS = {"what": "", "samples": ",d", "seconds": ".2f", "CPU, s": ".2f", "peak, MB": ".0f", "files": ",d",
           "markers, MB": ".0f", "GB": ".2f"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Start:
    """The start of a command, until an event came."""

    seconds: float
    cpu: float  # seconds of processor time
    peak: float  # bytes

    def add(self, table: Table, what: str, samples: int) -> None:
        """Its row."""
        table.add(what, samples, self.seconds, self.cpu, self.peak / 1e6, None, None, None)


@dataclass(frozen=True, slots=True)
class Growth:
    """What more of something adds to the start of a process."""

    prompt: float  # seconds of processor time for each
    shard: float
    memory: float  # bytes for each shard


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", default="1000,100000,1000000", help="numbers of prompts")
    parser.add_argument(
        "--shards", type=int, default=1_000_000, help="shards of one sample each, at the start"
    )
    parser.add_argument("--done", type=int, default=1000, help="shards that --resume finds done")
    parser.add_argument("--verify", default="10,100,1000", help="numbers of shards that are verified")
    parser.add_argument("--work", type=Path, default=None, help="where temporary files go")
    add_json(parser)
    args = parser.parse_args()
    counts = [int(word) for word in args.prompts.split(",")]
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        table = Table(COLUMNS, args.json)
        starts = dict[int, Start]()
        for count in counts:
            starts[count] = measure_start(Path(work), count)
            starts[count].add(table, f"process {RANK} of {SIZE} to its first sample", count)
        most = measure_start(Path(work), args.shards, 1)
        most.add(table, f"the same, in {args.shards:,} shards", args.shards)
        measure_resume(table, Path(work), args.done)
        measure_verify(table, Path(work), [int(word) for word in args.verify.split(",")])
        growth = growth_of(Path(work), max(counts), starts[min(counts)], most, args.shards)
        report_files(table, Path(work), starts[min(counts)], growth)


def growth_of(work: Path, prompts: int, least: Start, most: Start, shards: int) -> Growth:
    """What further prompts and shards add to the start with the fewest; most: the start with so many shards.

    Processor time is that of listing alone: the rest of a start varies by more than it.
    """
    few, many = (listing(work, prompts, size) for size in (SHARD_SIZE, 1))
    memory = max(0.0, most.peak - least.peak) / shards
    return Growth(few / prompts, max(0.0, many - few) / prompts, memory)


def listing(work: Path, count: int, size: int) -> float:
    """Seconds of processor time in which the shards of so many prompts are listed."""
    model = find_model("demo")
    source = Source(data=str(write_prompts(work, count)))
    began = time.process_time()
    list_shards(source, ["caption"], model, io.BytesIO(), size=size)
    return time.process_time() - began


def measure_start(work: Path, count: int, size: int = 0) -> Start:
    """The start of one of a hundred processes for so many prompts. size: of a shard, if not the usual one."""
    prompts, out = write_prompts(work, count), work / "out"
    size = size or max(1, min(SHARD_SIZE, count // SIZE))  # so that each process has a shard
    share = ("--shard-size", str(size), "--shard", f"{RANK}/{SIZE}")
    started = start(work, "saved", "--data", str(prompts), *TOKENS, *share, "--out", str(out))
    shutil.rmtree(out)
    return started


def measure_resume(table: Table, work: Path, done: int) -> None:
    """The start of a run that has one shard left to make, with none done and with all others done."""
    out, prompts = work / "out", write_prompts(work, done + 1)
    words = ["--data", str(prompts), *TOKENS, "--shard-size", "1", "--out", str(out)]
    start(work, "started", *words).add(table, "no shard done, to the first event", done + 1)
    subprocess.run(command(*words, "--shard", f"{done}/{done + 1}"), check=True, stdout=subprocess.DEVNULL)
    (marker,) = read_markers(out)
    for number in range(done):
        copy_shard(out, marker, number)
    marker_path(out, marker.shard.name).unlink()
    what = f"`--resume`, {done:,} shards done, to the first event"
    start(work, "started", *words, "--resume").add(table, what, done + 1)
    shutil.rmtree(out)


def measure_verify(table: Table, work: Path, counts: Iterable[int]) -> None:
    """`fourm verify` of runs of so many shards."""
    one, out = work / "one", work / "out"
    words = ("--data", str(write_prompts(work, 1)), *TOKENS, "--out", str(one))
    subprocess.run(command(*words), check=True, stdout=subprocess.DEVNULL)
    for count in counts:
        make_run(one, out, count)
        began, used = time.perf_counter(), (0.0, 0.0)
        verify = [sys.executable, "-m", "fourm_cli", "verify", str(out)]
        process = subprocess.Popen(verify, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            with suppress(OSError, StopIteration):  # it has just ended
                used = used_by(process.pid)
            time.sleep(0.005)
        if process.returncode:
            raise SystemExit(f"verify ended with {process.returncode}")
        found = Start(time.perf_counter() - began, *used)
        found.add(table, f"`verify`, {count:,} shards", count * SHARD_SIZE)
        shutil.rmtree(out)


def make_run(one: Path, out: Path, count: int) -> None:
    """A run of so many shards, which hold the sample of the run `one` a thousand times."""
    run, (marker,) = load_run(one), read_markers(one)
    record = replace(run.record, samples=count * SHARD_SIZE, shards=count)
    (sample,) = run.samples()
    out.mkdir()
    (out / RUN).write_text(format_run(record, run.identity), encoding="utf-8")
    files = ShardFiles(out, marker.shard, SHARDS)
    for place in run.places:
        path = split_path(one / sample.file(place, None))
        assert path is not None
        for key in number_keys(SHARD_SIZE):
            files.add(Member(key, None, place.folder, place.suffix), read_member(*path, 1 << 20))
    made = replace(marker, counts=Counts(SHARD_SIZE, SHARD_SIZE), settings=settings_digest(record))
    made = files.finish(made)
    for number in range(1, count):
        copy_shard(out, made, number)
    remove_leftovers(out)


def copy_shard(out: Path, marker: Marker, number: int) -> None:
    """A further shard, with the bytes of one that is there."""
    name, files = shard_name(number), dict[str, tuple[str, int]]()
    for path, facts in marker.files.items():
        there = f"{Path(path).parent}/{name}.tar"
        os.link(out / path, out / there)
        files[there] = facts
    replace(marker, shard=replace(marker.shard, number=number, name=name), files=files).write(out)


def report_files(table: Table, work: Path, least: Start, growth: Growth) -> None:
    """What many samples with two targets leave, and what the start of one of a hundred processes takes."""
    out, prompts = work / "out", write_prompts(work, 12)
    subprocess.run(
        command("--data", str(prompts), *TWO_TARGETS, "--out", str(out)),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    markers = list(read_markers(out))
    assert len(markers) == 3
    per_shard = 1 + len(markers[0].files)  # the marker
    others = sum(1 for path in out.rglob("*") if path.is_file()) - 3 * per_shard
    per_sample = sum(members_size(out / path) for marker in markers for path in marker.files) / 12
    end = tarfile.RECORDSIZE / 2 * len(markers[0].files)  # a tar is filled up to whole records
    marker = marker_path(out, markers[0].shard.name).stat().st_size
    for count in COMPUTED:
        shards = -(-count // SHARD_SIZE)
        size = count * per_sample + shards * (end + marker)
        what = f"computed: two targets in {shards:,} shards"
        files = others + shards * per_shard
        cpu = least.cpu + count * growth.prompt + shards * growth.shard
        peak = least.peak + shards * growth.memory
        table.add(what, count, None, cpu, peak / 1e6, files, shards * marker / 1e6, size / 1e9)
    shutil.rmtree(out)


def members_size(tar: Path) -> int:
    """Bytes that the members of a tar need, with their headers."""
    with tarfile.open(tar) as file:
        blocks = sum(1 + -(-member.size // tarfile.BLOCKSIZE) for member in file)
    return blocks * tarfile.BLOCKSIZE


def write_prompts(work: Path, count: int) -> Path:
    """A file of different prompts, one a line."""
    path = work / f"{count}.txt"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(lines(count))
    return path


def lines(count: int) -> Iterable[str]:
    """Prompts in words of the embedded model."""
    colours, shapes = ("red", "green", "blue", "yellow"), ("circle", "square", "triangle")
    for number in range(count):
        yield f"a {colours[number % 4]} {shapes[number // 4 % 3]} and a {colours[number // 12 % 4]} square\n"


def command(*words: str) -> list[str]:
    """`fourm generate` with these options."""
    return [sys.executable, "-m", "fourm_cli", "generate", *words, "--quiet"]


def start(work: Path, event: str, *words: str) -> Start:
    """Start a command and stop it when its event log has such an event."""
    log, wanted = work / "log.jsonl", f'{{"event": "{event}"'
    log.unlink(missing_ok=True)
    began = time.perf_counter()
    process = subprocess.Popen(command(*words, "--log-json", str(log)), stdout=subprocess.DEVNULL)
    try:
        while not log.exists() or wanted not in log.read_text(encoding="utf-8"):
            if process.poll() is not None:
                raise SystemExit(f"the command ended with {process.returncode} before '{event}'")
            time.sleep(0.005)
        return Start(time.perf_counter() - began, *used_by(process.pid))
    finally:
        process.kill()
        process.wait()


def used_by(process: int) -> tuple[float, float]:
    """Seconds of processor time of a process, and the most bytes that it had in memory at once."""
    facts = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    ticks = int(facts[11]) + int(facts[12])
    with open(f"/proc/{process}/status", encoding="utf-8") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return ticks / os.sysconf("SC_CLK_TCK"), int(line.split()[1]) * 1024.0


if __name__ == "__main__":
    main()
