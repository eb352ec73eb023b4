"""Workers of this machine, of SLURM and of Ray: what becomes of a run where one dies, hangs or is refused."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fourm.batch.batches import Batch
from fourm.batch.dispatch import TRIES
from fourm.batch.local import count_workers, devices_of, run_share
from fourm.batch.pool import how_it_ended
from fourm.batch.ray import Actor, run_ray
from fourm.batch.slurm import job_script, task_command
from fourm.batch.worker import Report
from fourm.errors import FourMError, UsageError
from fourm.results.events import Event, Failed, Finished, Lost, Saved, Started
from fourm_cli.app import main
from tests.executors import OPTIONS, ROOT, elsewhere, generation, run_local, tars, write_sbatch


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return generation(tmp_path, tmp_path / "one")


def count(events: list[Event], kind: type[Event]) -> int:
    return sum(isinstance(event, kind) for event in events)


def check(events: list[Event], batch: Batch, workers: int) -> None:
    """What one stream of the events of many workers has."""
    assert isinstance(start := events[0], Started)
    assert (start.total, start.workers, start.shards) == (6, workers, 3)
    assert isinstance(end := events[-1], Finished)
    assert (end.saved, end.skipped, end.failed) == (6, 0, 0)
    assert count(events, Saved) - sum(event.saved for event in events if isinstance(event, Lost)) == 6
    assert not (batch.out / ".partial").exists()
    assert batch.todo() == []


def test_two_workers_of_which_one_dies_make_what_one_process_makes(batch: Batch, tmp_path: Path) -> None:
    run_local(batch)
    two = elsewhere(batch, tmp_path / "two", 1, 1)
    events = run_local(two, 2)
    check(events, two, 2)
    assert tars(two.out) == tars(batch.out)
    assert len(tars(two.out)) == 9
    (lost,) = [event for event in events if isinstance(event, Lost)]
    assert (lost.shard, lost.reason) == ("00001", "its worker was killed by SIGKILL, as when memory runs out")


def test_how_a_process_ended_is_said() -> None:
    assert [how_it_ended(code) for code in (3, -11, -250)] == [
        "ended with exit code 3", "was killed by SIGSEGV", "was killed by signal 250",
    ]  # fmt: skip


@pytest.mark.more
def test_a_shard_whose_workers_die_is_reported_and_the_others_are_made(batch: Batch, tmp_path: Path) -> None:
    broken = elsewhere(batch, tmp_path / "broken", 0, TRIES)
    events = run_local(broken, 2)
    assert count(events, Lost) == TRIES - 1
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert failed.key == "shard 00000"
    assert "each of its 3 workers died, the last one was killed by SIGKILL" in failed.reason
    assert isinstance(end := events[-1], Finished)
    assert (end.saved, end.failed) == (4, 2)
    assert [shard.name for shard in broken.todo()] == ["00000"]


@pytest.mark.more
@pytest.mark.parametrize("is_killed", [True, False])
def test_no_worker_waits_for_one_that_hangs(is_killed: bool, batch: Batch, tmp_path: Path) -> None:
    """A worker that is stopped while it makes a shard is killed by somebody, or ends with the run."""
    stopped = elsewhere(batch, tmp_path / "stopped", 0, 1, signal.SIGSTOP)
    stopped.open_folder()
    events, seen = run_share(stopped, stopped.share(), 2), list[Event]()
    while count(seen, Saved) < 4 or [shard.name for shard in stopped.todo()] != ["00000"]:
        seen.append(next(events))
        if count(seen, Saved) == 4:  # the marker of the last shard follows
            deadline = time.monotonic() + 30
            while len(stopped.todo()) > 1:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    process = int((tmp_path / "died0").read_text())
    assert Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    if is_killed:
        os.kill(process, signal.SIGKILL)
        check([*seen, *events], stopped, 2)
    else:
        events.close()  # type: ignore[attr-defined]
        assert not Path(f"/proc/{process}").exists()
        assert [shard.name for shard in stopped.todo()] == ["00000"]


def test_an_error_of_a_worker_ends_the_run_with_its_sentence(batch: Batch, tmp_path: Path) -> None:
    two = elsewhere(batch, tmp_path / "two")
    two.open_folder()
    (tmp_path / "p.txt").unlink()
    with pytest.raises(FourMError, match=r"p\.txt"):
        list(run_share(two, two.share(), 2))


def test_workers_are_counted_and_get_devices(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [count_workers(batch, asked) for asked in (None, "auto", "3")] == [1, 1, 3]
    assert devices_of(batch, 2) == [None, None]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    on_gpus, on_one = (replace(batch, requests=(replace(batch.requests[0], device=name),))
                       for name in ("auto", "cuda:1"))  # fmt: skip
    assert count_workers(on_gpus, "auto") == 2
    assert devices_of(on_gpus, 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert devices_of(on_one, 2) == [None, None]


def test_tasks_of_slurm_run_the_command_without_what_concerns_its_submission() -> None:
    typed = [
        "fourm",
        "generate",
        "--data",
        "my p.txt",
        "--executor=slurm",
        "--workers",
        "4",
        "--dry-run",
        "--resume",
    ]
    command = task_command(typed, "out/001")
    assert command[1:] == [
        "-m", "fourm_cli", "generate", "--data", "my p.txt", "--out", "out/001", "--shard", "array",
    ]  # fmt: skip
    dashed = [*typed, "--", "-a circle", "--workers"]  # what stands behind -- are arguments
    assert task_command(dashed, "out/001") == [*command, "--", "-a circle", "--workers"]
    script = job_script(command, 4, "--partition=a100 --gpus=1")
    assert {"#SBATCH --array=0-3", "#SBATCH --partition=a100", "#SBATCH --requeue"} < set(script.splitlines())
    assert script.endswith("generate --data 'my p.txt' --out out/001 --shard array\n")
    for wrong in ("a100", "'--x"):
        with pytest.raises(UsageError, match="`sbatch`"):
            job_script(command, 4, wrong)


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that runs the tasks of an array at once, in some order."""
    write_sbatch(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)


def typed(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    command = ["fourm", "generate", "--data", "p.txt", "--device", "cpu", *OPTIONS.split()]
    monkeypatch.setattr(sys, "argv", [*command, "--format", "shards", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0


@pytest.mark.usefixtures("sbatch")
def test_an_array_of_slurm_makes_what_one_process_makes(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "p.txt").open("a") as file:
        file.write("\na seventh\nan eighth\n")
    words = "--shard-size", "2", "--out", "two", "--executor", "slurm", "--workers", "4"
    typed(monkeypatch, *words, "--dry-run")
    script = capfd.readouterr().out
    assert "#SBATCH --array=0-3\n" in script
    assert not (tmp_path / "two").exists()
    typed(monkeypatch, *words)
    said = capfd.readouterr()
    assert said.out == "two\n"
    assert "job 4711: 4 tasks; `fourm status two` says how far it is" in said.err
    assert (tmp_path / "submitted.sh").read_text() == script
    assert "process 3 of 4: 1 of 4 shards" in (tmp_path / "tasks.log").read_text()
    typed(monkeypatch, "--shard-size", "2", "--out", "alone")
    assert tars(tmp_path / "two") == tars(tmp_path / "alone")
    assert len(tars(tmp_path / "two")) == 12


def test_an_actor_sends_the_events_of_a_shard_while_it_makes_it(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fourm.batch.ray.INTERVAL", 0.0)
    actor = Actor(batch)
    share, _ = actor.begin(0, 1, 1)
    said = list(actor.make(share.todo[0]))
    assert [[type(event) for event in some] for some in said] == [[Saved], [Saved], [Report]]
    actor.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster on this machine, so that not each run starts one."""
    import ray

    ray.init(num_cpus=2, log_to_driver=False, logging_level="warning")
    yield
    ray.shutdown()


@pytest.mark.more
@pytest.mark.usefixtures("cluster")
def test_an_actor_of_ray_that_dies_is_replaced_until_its_shard_is_given_up(
    batch: Batch, tmp_path: Path
) -> None:
    two = elsewhere(batch, tmp_path / "two", 1, TRIES)
    events = list(run_ray(two, 2))
    lost = [event for event in events if isinstance(event, Lost)]
    assert [event.shard for event in lost] == ["00001"] * (TRIES - 1)
    assert re.match(r"its worker died \(The actor died", lost[0].reason)
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert (failed.key, "each of its 3 workers died" in failed.reason) == ("shard 00001", True)
    assert isinstance(end := events[-1], Finished)
    assert (end.saved, end.failed) == (4, 2)
    assert [shard.name for shard in two.todo()] == ["00001"]
    (two.out / "tok_clip@64" / "00002.tar").write_bytes(b"cut")
    again = replace(two, requests=tuple(replace(one, resume=True) for one in two.requests))
    events = list(run_ray(again, 1))
    assert isinstance(start := events[0], Started)
    assert [re.search("00002.tar has 3 bytes.*is made again", one) is not None for one in start.damaged] == [
        True
    ]
    assert again.todo() == []
    other = replace(again, requests=tuple(replace(one, seed=1) for one in again.requests))
    with pytest.raises(UsageError, match=r"^[^\n]*seed is 0 there and 1 here[^\n]*$"):
        list(run_ray(other, 1))


def test_ray_that_is_not_installed_is_one_sentence(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(FourMError, match=r"pip install 'fourm\[ray\]'"):
        list(run_ray(batch, 2))


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("--executor slurm --workers 2", "--executor: hands out shards, and --format files has none"),
        ("--workers 2", "--workers: hands out shards"),
        ("--format shards --executor dask --workers 2", "'dask' is not one of local, slurm, ray"),
        ("--format shards --executor ray", "--workers N says how many"),
        ("--format shards --executor ray --workers 2 --shard 0/2 --out o", "starts all processes itself"),
        ("--format shards --workers many", "'many' is neither auto nor"),
        ("--format shards --executor slurm --workers 2 --out o --overwrite", "delete the folder first"),
        ("--format shards --sbatch --gpus=1", "--sbatch: is for --executor slurm"),
    ],
)
def test_executors_that_do_not_fit_are_refused_in_one_sentence(
    words: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fourm", "generate", "a cat", *words.split()])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert what in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be blocked there")
def test_ctrl_c_is_kept_from_the_first_worker_too() -> None:
    code = """
import signal
from multiprocessing import get_context
from fourm.batch.pool import _without_interrupts
with _without_interrupts():
    get_context("spawn").Process(target=int).start()
    print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "True\n"
