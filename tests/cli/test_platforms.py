"""What other systems lack: file locks, the module for them, signals that only POSIX has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fourm.checks.verify import verify_folder
from tests.folders import tree

ROOT = Path(__file__).resolve().parents[2]
# Before the program's own first line: what Windows does not have.
WINDOWS = """
import signal, sys
sys.modules["fcntl"] = None
POSIX = "SIGKILL SIGALRM SIGHUP SIGPIPE SIGUSR1 SIGUSR2 SIGCHLD SIGQUIT SIGTSTP alarm"
for name in POSIX.split():
    delattr(signal, name)
"""
NO_LOCKS = """
import errno, fcntl
def flock(*args): raise OSError(errno.{error}, "No locks available")
fcntl.flock = flock
"""
START = "\nfrom fourm_cli.app import main\nmain()\n"


def fourm(before: str, folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process that something was done to first."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", before + START, *map(str, words)], cwd=folder, env=env, check=False,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("schedule", "show", "--targets", "tok_rgb"),
        ("generate", "red", "--out", "o", "--no-decode"),
    ],
    ids=lambda words: words[0],
)
def test_commands_run_without_posix_locks_and_signals(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = fourm(WINDOWS, tmp_path, *words)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    if words[0] == "generate":
        assert done.stdout == "o\n"
        assert verify_folder(tmp_path / "o").ok


@pytest.mark.parametrize(
    "error", ["ENOLCK", *(pytest.param(one, marks=pytest.mark.more) for one in ("ENOSYS", "EOPNOTSUPP"))]
)
def test_without_file_locks_a_run_is_the_same_and_says_so_once(
    tiny: Path, tmp_path: Path, error: str
) -> None:
    words = ("generate", "a red circle", "a blue square", "--model", tiny, "--no-decode", "--seed", "3")
    plain, bare = fourm("", tmp_path, *words, "--out", "plain"), NO_LOCKS.format(error=error)
    done = fourm(bare, tmp_path, *words, "--out", "out")
    assert (plain.returncode, done.returncode, done.stdout) == (0, 0, "out\n"), done.stderr
    assert (plain.stderr.count("no file locks"), done.stderr.count("no file locks")) == (0, 1)
    (tmp_path / "out/tok_rgb@64/00000/000001.npy").unlink()
    again = fourm(bare, tmp_path, *words, "--out", "out", "--resume", "--quiet")
    assert (again.returncode, again.stderr) == (0, "")
    assert tree(tmp_path / "out") == tree(tmp_path / "plain")
    assert verify_folder(tmp_path / "out").ok


def test_without_file_locks_processes_lose_nothing(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n" * 6)
    words = ("generate", "--data", "prompts.txt", "--model", tiny, "--no-decode", "--quiet")
    bare = NO_LOCKS.format(error="ENOLCK") + START
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", bare, *map(str, words), "--out", "out", "--shard", f"{i}/3"],
            cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(3)
    ]  # fmt: skip
    for process in running:
        assert process.wait(120) == 0, process.communicate()
    assert verify_folder(tmp_path / "out").ok
    assert not (tmp_path / "out/.partial").exists()
    launches = [json.loads(path.read_text()) for path in (tmp_path / "out/processes").glob("*.json")]
    assert sorted(launch["saved"] for launch in launches) == [2, 2, 2]
