"""The reference's own command lines, as they stand, in one process and under torchrun: the same folder."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fourm.output.processes import read_launches
from fourm.output.samples import load_run
from tests.folders import tree
from tests.small_released import write_released

ROOT = Path(__file__).resolve().parents[2]
CFGS = ROOT / "cfgs" / "generation"
# As the reference's own guide writes it, but for the size of the model.
REFERENCE = [
    "-c", str(CFGS / "models" / "4m-b_mod7+sr_4m-l_mod7.yaml"),
    "-dc", str(CFGS / "data" / "parti_3x.yaml"),
    "-gc", str(CFGS / "settings_base" / "T2CR_roar49-25_cfg3_t6-0.5.yaml"),
    "-src", str(CFGS / "settings_sr" / "x2CR_mg8_cfg3_t1const.yaml"),
]  # fmt: skip
WHERE = "generation/models/4m-b_mod7+sr_4m-l_mod7/parti_3x/T2CR_roar49-25_cfg3_t6-0.5--x2CR_mg8_cfg3_t1const"
DEMO = ["--num-variations", "2", "--seed", "3", "--sr-targets", "tok_rgb", "--sr-steps", "3"]


def start(processes: int, words: list[str], folder: Path, **env: str) -> subprocess.Popen[str]:
    """`fourm generate`, alone or under torchrun, in a folder."""
    torchrun = ["torch.distributed.run", f"--nproc-per-node={processes}", "--master-port", "0", "-m"]
    launcher = torchrun if processes > 1 else []
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "fourm_cli", "generate", *words, "--quiet"], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **env},
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_released(tmp_path_factory.mktemp("released"))


def test_the_configuration_files_of_the_reference_run_unchanged(
    released: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    alone = start(1, REFERENCE, tmp_path / "one", **released)
    together = start(2, REFERENCE, tmp_path / "two", **released)
    assert finish(alone) == f"output/{WHERE}\n"
    assert finish(together) == f"output/{WHERE}\n"
    one, two = (tree(tmp_path / name / "output" / WHERE) for name in ("one", "two"))
    assert one == two
    folders = {name.split("/")[0] for name in one}
    assert folders == {"caption", "clip", "clip@448", "rgb", "rgb@448", "samples", "samples.sr",
                       "tok_clip@224", "tok_clip@448", "tok_rgb@224", "tok_rgb@448"}  # fmt: skip
    assert sum(name.startswith("rgb@448/") for name in one) == 3  # three variations, each made once
    made = tmp_path / "two/output" / WHERE
    launches = read_launches(made, load_run(made, "run.sr.json").identity)
    assert [launch.size for launch in launches] == [2, 2]
    assert sum(launch.saved for launch in launches) == 3
    record = json.loads((made / "run.sr.json").read_text())
    assert [step["num_tokens"] for step in record["schedule"]["steps"]] == [
        30,
        85,
        127,
        150,
        150,
        127,
        85,
        30,
    ] * 2


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("alone")
    finish(start(1, [*DEMO, "--out", "out"], folder))
    return tree(folder / "out")


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_makes_the_same_folder(
    alone: dict[str, bytes], tmp_path: Path, processes: int
) -> None:
    assert finish(start(processes, [*DEMO, "--out", "out"], tmp_path)) == "out\n"
    assert tree(tmp_path / "out") == alone


def test_one_of_three_processes_killed_half_way_and_resumed_makes_the_same_folder(
    alone: dict[str, bytes], tmp_path: Path
) -> None:
    process = start(3, [*DEMO, "--out", "out", "--log-json", "log"], tmp_path)
    log = tmp_path / "log.1"  # of the second process
    while not (log.exists() and log.read_text().count('"saved"') > 2):
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(rank_of(process.pid, 1), signal.SIGKILL)
    process.communicate()
    assert process.returncode != 0
    cut = {name: data for name, data in tree(tmp_path / "out").items() if not name.startswith(".")}
    assert cut.items() < alone.items()
    finish(start(3, [*DEMO, "--out", "out", "--resume"], tmp_path))
    assert tree(tmp_path / "out") == alone


def rank_of(parent: int, rank: int) -> int:
    """Process id of one process of a torchrun."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rsplit(")")[1].split()[1]) == parent:
                variables = (entry / "environ").read_bytes().split(b"\0")
                if f"RANK={rank}".encode() in variables:
                    return int(entry.name)
        except (OSError, IndexError):
            continue
    raise AssertionError(f"no process of rank {rank}")
