"""Processes, tasks of SLURM and actors of Ray leave the same tars, in any order, also where one is killed."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path

import pytest

from fourm.batch.batches import Batch
from fourm.batch.ray import run_ray
from fourm.batch.worker import Worker
from fourm.output.markers import read_markers
from fourm.output.samples import load_run
from fourm.results.events import Event, Finished, Lost, Saved
from fourm_cli.app import main
from tests.executors import (
    OPTIONS,
    PROMPTS,
    ROOT,
    SR_OPTIONS,
    elsewhere,
    generation,
    run_local,
    super_resolution,
    tars,
    tokenization,
    write_pictures,
    write_sbatch,
)

EIGHT = [*PROMPTS, "a yellow cube", "two circles"]  # in four shards, one for each task
Make = Callable[[Path], Batch]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in four shards, of which super-resolution can be made."""
    folder = tmp_path_factory.mktemp("base")
    chain = "--cond caption --targets tok_clip-tok_rgb --steps 1-1"
    run_local(generation(folder, folder / "base", chain, EIGHT))
    return folder / "base"


@pytest.fixture(params=["generate", "sr", "tokenize"])
def kind(request: pytest.FixtureRequest) -> str:
    """A command that makes shards."""
    return str(request.param)


@pytest.fixture
def make(kind: str, base: Path, tmp_path: Path) -> Make:
    """Its run, in some folder."""
    if kind == "sr":
        return lambda out: super_resolution(base, out)
    if kind == "tokenize":
        data = write_pictures(tmp_path / "data")
        return lambda out: tokenization(data, out)
    return lambda out: generation(tmp_path, out, prompts=EIGHT)


@pytest.fixture
def whole(make: Make, tmp_path: Path) -> dict[str, bytes]:
    """The tars that one process leaves."""
    run_local(make(tmp_path / "one"))
    found = tars(tmp_path / "one")
    assert len(found) in (12, 16)
    return found


def check(out: Path, whole: dict[str, bytes]) -> None:
    """The same tars, and every sample once."""
    assert tars(out) == whole
    assert sorted(marker.shard.name for marker in read_markers(out)) == [f"{n:05d}" for n in range(4)]
    assert sum(marker.counts.saved for marker in read_markers(out)) == len(EIGHT)
    keys = [sample.key.name for sample in load_run(out).samples()]
    assert keys == [f"{number:06d}" for number in range(len(EIGHT))]
    assert not (out / ".partial").exists()


@pytest.mark.parametrize(
    "orders", [[(2, 0, 3, 1)], pytest.param(list(permutations(range(4)))[5::6], marks=pytest.mark.more)]
)
def test_shards_in_any_order(
    orders: list[tuple[int, ...]], make: Make, whole: dict[str, bytes], tmp_path: Path
) -> None:
    for number, order in enumerate(orders):
        batch = make(tmp_path / str(number))
        batch.open_folder()
        worker = Worker(batch)
        for shard in order:
            worker.make(batch.shards.shards[shard])
        worker.close()
        check(batch.out, whole)


def ended_well(events: list[Event], is_killed: bool) -> None:
    assert isinstance(end := events[-1], Finished)
    assert (end.saved, end.failed) == (len(EIGHT), 0)
    lost = [event for event in events if isinstance(event, Lost)]
    assert len(lost) == is_killed
    saved = sum(isinstance(event, Saved) for event in events)
    assert saved - sum(event.saved for event in lost) == len(EIGHT)


@pytest.mark.more
def test_two_workers_of_which_one_is_killed(make: Make, whole: dict[str, bytes], tmp_path: Path) -> None:
    two = elsewhere(make(tmp_path / "two"), tmp_path / "two", 2, 1)
    ended_well(run_local(two, 2), True)
    check(two.out, whole)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of Ray on this machine, so that not each run starts one."""
    import ray

    ray.init(num_cpus=2, log_to_driver=False, logging_level="warning")
    yield
    ray.shutdown()


@pytest.mark.more
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("is_killed", [False, True])
def test_two_actors_of_ray(is_killed: bool, make: Make, whole: dict[str, bytes], tmp_path: Path) -> None:
    two = elsewhere(make(tmp_path / "two"), tmp_path / "two", 2, int(is_killed))
    ended_well(list(run_ray(two, 2)), is_killed)
    check(two.out, whole)


@pytest.mark.more
@pytest.mark.parametrize("killed", [-1, 3])
def test_four_tasks_of_slurm(
    killed: int,
    kind: str,
    base: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_sbatch(tmp_path / "bin", killed)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    words = ["generate", "--data", "p.txt", *OPTIONS.split(), "--shard-size", "2", "--format", "shards"]
    words = ["sr", str(base), *SR_OPTIONS.split()] if kind == "sr" else words
    if kind == "tokenize":
        words = ["tokenize", "data", "--crops", "2", "--shard-size", "2", "--format", "shards"]
    engine = ["--device", "cpu", "--out", "two", "--executor", "slurm", "--workers", "4"]
    (tmp_path / "p.txt").write_text("\n".join(EIGHT))
    monkeypatch.setattr(sys, "argv", ["fourm", *words, *engine])
    with pytest.raises(SystemExit) as end:
        main()
    log = (tmp_path / "tasks.log").read_text()
    assert end.value.code == 0, log
    assert re.findall(r"process (\d) of 4: 1 of 4 shards", log) == [*"3" * (1 + (killed == 3)), *"210"]
    assert ("task 3 ended with 137" in log) == (killed == 3)
    check(tmp_path / "two", whole)
