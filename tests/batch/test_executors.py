"""Workers of this machine, of SLURM and of Ray make what one process makes, also when one of them dies."""

import io
import os
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from fourm.batch.batches import Batch, plan
from fourm.batch.local import count_workers, devices_of, run_share
from fourm.batch.pool import TRIES
from fourm.batch.ray import run_ray
from fourm.batch.slurm import job_script, task_command
from fourm.data.dataset import Dataset
from fourm.data.shards import Shard
from fourm.errors import FourMError, UsageError
from fourm.files.opening import read_bytes
from fourm.hub.files import find_model
from fourm.inputs.request import Request
from fourm.results.events import Event, Failed, Finished, Lost, Saved, Started
from fourm.schedule.plan import parse_chain
from fourm.sources.shards import Reader, list_shards
from fourm.sources.source import Source
from fourm_cli.app import main

OPTIONS = "--cond caption --targets tok_clip --steps 2"
PROMPTS = ["a small red circle", "a blue square", "a green triangle", "two red squares", "a circle", "a cube"]


@dataclass(frozen=True)
class Deadly:
    """Kills its process with SIGKILL while it makes a shard, in so many of the tries."""

    reader: Reader
    out: Path
    number: int
    times: int

    def read(self, shard: Shard) -> Dataset:
        if shard.number == self.number:
            for time_ in range(self.times):
                try:
                    (self.out.parent / f"died{time_}").touch(exist_ok=False)
                except FileExistsError:
                    continue
                threading.Thread(target=self.kill, daemon=True).start()
                break
        return self.reader.read(shard)

    def kill(self) -> None:
        while not any(path.is_file() for path in (self.out / ".partial").rglob("*")):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    model = find_model("demo")
    chain = parse_chain(OPTIONS, model)
    asked = Source(data=str(tmp_path / "p.txt")), chain.conditions, model, io.BytesIO()
    return plan(
        [Request(model, chain, (), tmp_path / "one", device="cpu")], list_shards(*asked, size=2), "shards"
    )


def elsewhere(batch: Batch, out: Path, number: int = -1, times: int = 0) -> Batch:
    """The same batch in another folder, with a worker that dies."""
    reader = Deadly(batch.shards.reader, out, number, times)
    requests = tuple(replace(one, out=out) for one in batch.requests)
    return replace(batch, requests=requests, shards=replace(batch.shards, reader=reader))


def run_local(batch: Batch, workers: int = 1) -> list[Event]:
    batch.open_folder()
    return list(run_share(batch, batch.share(), workers))


def tars(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): read_bytes(path, 1 << 24) for path in out.rglob("*.tar")}


def count(events: list[Event], kind: type[Event]) -> int:
    return sum(isinstance(event, kind) for event in events)


def check(events: list[Event], batch: Batch, workers: int) -> None:
    """What one stream of the events of many workers has."""
    assert isinstance(start := events[0], Started)
    assert (start.total, start.workers, start.shards) == (6, workers, 3)
    assert isinstance(end := events[-1], Finished)
    assert (end.saved, end.skipped, end.failed) == (6, 0, 0)
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
    assert (lost.shard, lost.reason) == ("00001", "its worker was killed by signal 9")
    assert count(events, Saved) - lost.saved == 6


@pytest.mark.more
def test_a_shard_whose_workers_die_is_reported_and_the_others_are_made(batch: Batch, tmp_path: Path) -> None:
    broken = elsewhere(batch, tmp_path / "broken", 0, TRIES)
    events = run_local(broken, 2)
    assert count(events, Lost) == TRIES - 1
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert failed.key == "shard 00000"
    assert "each of its 3 workers died, the last one was killed by signal 9" in failed.reason
    assert isinstance(end := events[-1], Finished)
    assert (end.saved, end.failed) == (4, 2)
    assert [shard.name for shard in broken.todo()] == ["00000"]


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
    script = job_script(command, 4, "--partition=a100 --gpus=1")
    assert {"#SBATCH --array=0-3", "#SBATCH --partition=a100", "#SBATCH --requeue"} < set(script.splitlines())
    assert script.endswith("generate --data 'my p.txt' --out out/001 --shard array\n")
    for wrong in ("a100", "'--x"):
        with pytest.raises(UsageError, match="`sbatch`"):
            job_script(command, 4, wrong)


SBATCH = """#!/bin/sh
cat > job.sh
export SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_MAX=3 SLURM_ARRAY_TASK_STEP=1 SLURM_ARRAY_TASK_COUNT=4
for SLURM_ARRAY_TASK_ID in 2 0 3 1; do
  export SLURM_ARRAY_TASK_ID
  sh job.sh >> tasks.log 2>&1 || exit 1
done
echo '4711;cluster'
"""


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that runs the tasks of an array at once, in some order."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(SBATCH)
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
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
    assert (tmp_path / "job.sh").read_text() == script
    assert "process 3 of 4: 1 of 4 shards" in (tmp_path / "tasks.log").read_text()
    typed(monkeypatch, "--shard-size", "2", "--out", "alone")
    assert tars(tmp_path / "two") == tars(tmp_path / "alone")
    assert len(tars(tmp_path / "two")) == 12


@pytest.mark.more
def test_two_actors_of_ray_of_which_one_is_killed_make_what_one_process_makes(
    batch: Batch, tmp_path: Path
) -> None:
    run_local(batch)
    two = elsewhere(batch, tmp_path / "two", 1, 1)
    events = list(run_ray(two, 2))
    check(events, two, 2)
    assert (tmp_path / "died0").exists()
    assert tars(two.out) == tars(batch.out)


def test_ray_that_is_not_installed_is_one_sentence(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(FourMError, match=r"pip install 'fourm\[ray\]'"):
        list(run_ray(batch, 2))


def block(kind: str) -> str:
    """The block of docs/clusters.md in some language, of which there is one."""
    text = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text()
    (found,) = re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)
    return str(found)


def test_the_example_of_a_worker_in_another_engine_runs(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text(PROMPTS[0])
    exec(block("python"), {})
    assert re.fullmatch(r"00000 1 0 [0-9.]+\n", capfd.readouterr().out)
    assert sorted(tars(tmp_path / "out")) == [
        f"{name}/00000.tar" for name in ("caption", "clip", "rgb", "tok_clip@64", "tok_rgb@64")
    ]


def test_the_manifest_for_kubernetes_divides_the_work_by_its_completions() -> None:
    job = yaml.safe_load(block("yaml"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert (job["apiVersion"], job["kind"], job["spec"]["completionMode"]) == ("batch/v1", "Job", "Indexed")
    assert container["command"][-2:] == ["--shard", f"k8s/{job['spec']['completions']}"]
    assert container["command"][:2] == ["fourm", "generate"]


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
