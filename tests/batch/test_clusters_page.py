"""docs/clusters.md: its commands are typed as they stand, its example and its manifest are what they say."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.executors import ROOT, tars, write_sbatch, write_srun
from tests.forked import run_block, typed_fourm
from tests.test_docs import blocks

PAGE = ROOT / "docs" / "clusters.md"
KUBERNETES = "1.33"  # the schema that is asked
FOLDERS = ("auto", "two", "slurm", "array", "srun", "ray", "torchrun")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """A PATH with `fourm`, `sbatch` and `srun`."""
    (tmp_path / "typed").mkdir()
    with typed_fourm(tmp_path / "typed") as path:
        write_sbatch(tmp_path / "bin")
        write_srun(tmp_path / "bin")
        yield f"{tmp_path / 'bin'}:{path}"


@pytest.mark.more
def test_every_command_works_as_written_and_makes_the_same_tars(path: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    done = run_block("\n".join(blocks(PAGE, "sh")), tmp_path / "here", path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "here" / "out"
    assert sorted(folder.name for folder in out.iterdir()) == sorted(FOLDERS)
    assert len(tars(out / "auto")) == 4 * 5
    assert all(tars(out / folder) == tars(out / "auto") for folder in FOLDERS)
    assert "4 of 4 shards" in done.stdout
    assert re.fullmatch(r"[0-9.]+", done.stdout.splitlines()[-1])


class Here:
    """An engine in this process."""

    def __init__(
        self, workers: int, context: object, begin: Callable[..., None], given: tuple[Any, ...]
    ) -> None:
        begin(*given)

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    map = staticmethod(map)


def check_example(said: str, folder: Path) -> None:
    assert re.fullmatch(r"00000 2 0 [0-9.]+\n00001 1 0 [0-9.]+\n", said)
    names = ("caption", "clip", "rgb", "tok_clip@64", "tok_rgb@64")
    assert sorted(tars(folder / "out" / "pool")) == [f"{name}/0000{n}.tar" for name in names for n in (0, 1)]


def test_the_example_of_a_worker_in_another_engine_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks(PAGE, "python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", Here)
    (tmp_path / "prompts.txt").write_text("a circle\na cube\na square\n")
    exec(code, {"__name__": "__main__"})
    check_example(capfd.readouterr().out, tmp_path)
    assert len([line for line in code.partition("def begin")[2].splitlines() if line.strip()]) <= 15


@pytest.mark.more
def test_the_example_of_a_worker_in_another_engine_runs_in_its_processes(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a circle\na cube\na square\n")
    (tmp_path / "pool.py").write_text(blocks(PAGE, "python")[0])
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "pool.py"], cwd=tmp_path, env=env, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    check_example(done.stdout, tmp_path)


def test_the_manifest_for_kubernetes_is_valid_and_divides_the_work_by_its_completions() -> None:
    job = yaml.safe_load(blocks(PAGE, "yaml")[0])
    assert kubernetes_validate.validate(job, KUBERNETES, strict=True) == KUBERNETES
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert (job["apiVersion"], job["kind"], job["spec"]["completionMode"]) == ("batch/v1", "Job", "Indexed")
    assert container["command"][:2] == ["fourm", "generate"]
    assert container["command"][-2:] == ["--shard", f"k8s/{job['spec']['completions']}"]
    (volume,) = job["spec"]["template"]["spec"]["volumes"]
    (mount,) = container["volumeMounts"]
    assert volume["name"] == mount["name"]
    for wrong in ({"completion": 1}, {"completions": "32"}):
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(job | {"spec": job["spec"] | wrong}, KUBERNETES, strict=True)
