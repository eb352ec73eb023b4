"""A run whose prompts, pictures and results are in S3, as a server in a process of the test speaks it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sources.test_containers import write_tars

Run = Callable[..., tuple[int, str, str]]
GIVEN = ["--targets", "tok_clip", "--steps", "1", "--no-decode", "--device", "cpu", "--format", "shards"]
KILLED = """
import os, signal, sys
from fourm.data.storage import RemoteFolder
upload = RemoteFolder.upload
def killed(self, name):
    if name.endswith("done/00001.json"):
        os.kill(os.getpid(), signal.SIGKILL)
    upload(self, name)
RemoteFolder.upload = killed
from fourm_cli.app import main
sys.argv[0] = "fourm"
main()
"""
pytestmark = pytest.mark.more  # test_remote.py has the same in memory


def tars(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.tar")}


def test_tars_of_s3_become_the_bytes_of_those_here_though_the_process_is_killed(
    run: Run, s3: Any, tmp_path: Path
) -> None:
    write_tars(tmp_path / "in", 3, 2)
    for path in (tmp_path / "in").glob("*.tar"):
        s3.put_file(str(path), f"bucket/in/{path.name}")
    code, _, err = run("generate", "--data", tmp_path / "in", *GIVEN, "--out", tmp_path / "here")
    assert code == 0, err
    there = ["generate", "--data", "s3://bucket/in/{00000..00002}.tar", *GIVEN, "--out", "s3://bucket/out"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *there], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    found = {name.removeprefix("bucket/out/") for name in s3.find("bucket/out")}
    assert {"run.json", "done/00000.json", "tok_clip@64/00001.tar"} <= found
    assert not any(name.startswith("done/00001") or "00002" in name for name in found)
    code, out, err = run(*there, "--resume")
    assert (code, out) == (0, "s3://bucket/out\n"), err
    files = {name.removeprefix("bucket/out/"): s3.cat_file(name) for name in s3.find("bucket/out")}
    assert {name: data for name, data in files.items() if name.endswith(".tar")} == tars(tmp_path / "here")
    assert sorted(name for name in files if name.startswith("done/")) == [
        f"done/0000{i}.json" for i in range(3)
    ]
    assert not any(b"verysecret" in data or os.fsencode(tmp_path) in data for data in files.values())
    code, _, err = run(*there[:-1], "s3://nobucket/out")
    assert (code, err.count("fourm: s3://nobucket/out/run.json: there is no such file or bucket")) == (
        4,
        1,
    ), err
    assert "Traceback" not in err
