"""An output folder that changes under a run, and files that are not ours in it, at the command line."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fourm.checks.verify import verify_folder

ROOT = Path(__file__).resolve().parents[2]


def start(tiny: Path, folder: Path, *words: object) -> subprocess.Popen[str]:
    (folder / "prompts.txt").write_text("a red circle\n" * 12)
    command = [
        "generate",
        "--data",
        "prompts.txt",
        "--model",
        tiny,
        "--out",
        "out",
        "--batch-size",
        "1",
        *words,
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "fourm_cli", *map(str, command), "--quiet"], cwd=folder, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("does", ["rename", pytest.param("replace", marks=pytest.mark.more)])
def test_a_folder_that_goes_away_under_a_run_is_said_and_resumed(
    tiny: Path, tmp_path: Path, does: str
) -> None:
    process, out = start(tiny, tmp_path), tmp_path / "out"
    while not list(out.glob("rgb/00000/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    out.rename(tmp_path / "renamed")
    if does == "replace":
        out.mkdir()
    _, err = process.communicate(timeout=180)
    assert process.returncode == 1
    assert err.startswith("fourm: out: was deleted or renamed while this process wrote into it")
    assert err.count("\n") == 1
    assert not out.exists()  # an empty folder in its place is removed, as after any run that made nothing
    assert start(tiny, tmp_path).wait(180) == 0  # the name is free again
    (tmp_path / "out").rename(tmp_path / "other")
    (tmp_path / "renamed").rename(out)
    again = start(tiny, tmp_path, "--resume")
    assert again.wait(180) == 0, again.communicate()
    assert verify_folder(out).ok
    assert not (out / ".partial").exists()


def test_resuming_deletes_nothing_behind_a_link_and_minds_no_foreign_file(tiny: Path, tmp_path: Path) -> None:
    assert start(tiny, tmp_path, "--num-samples", "1").wait(180) == 0
    out, victim = tmp_path / "out", tmp_path / "victim"
    victim.mkdir()
    mine = [victim / "mine.txt", victim / "0a1b2c3d-0a1b2c3d4e5f-0.npy"]
    for path in mine:
        path.write_text("mine")
        os.utime(path, (0, 0))
    (out / ".partial").symlink_to(victim)
    refused = start(tiny, tmp_path, "--num-samples", "1", "--resume")
    _, err = refused.communicate()
    assert (refused.returncode, "out/.partial: is a link or a file" in err) == (2, True), err
    (out / ".partial").unlink()
    (out / ".partial" / "folder").mkdir(parents=True)
    (out / ".partial" / "mine.txt").write_text("mine")
    assert start(tiny, tmp_path, "--num-samples", "1", "--resume").wait(180) == 0
    assert all(path.exists() for path in (*mine, out / ".partial" / "folder", out / ".partial" / "mine.txt"))
