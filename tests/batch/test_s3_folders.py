"""Commands on runs in S3, as a server in a thread of the test speaks it: what memory cannot show."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fourm
from tests.sharded_folder import make_folder

Run = Callable[..., tuple[int, str, str]]
OUT = "s3://bucket/out"
FINER = ["--targets", "tok_rgb", "--steps", "1", "--no-decode", "--device", "cpu"]
pytestmark = pytest.mark.more  # test_remote_folders.py has the same in memory


@dataclass
class Faults:
    """What the server answers instead: a status and a code, to so many of the requests with these methods."""

    status: str = ""
    code: str = ""
    times: int = 0
    methods: Sequence[str] = ("GET", "PUT", "HEAD")

    def __call__(self, call: Callable[..., Any], app: Any, environ: Any, start: Any) -> Any:
        if not self.times or environ["REQUEST_METHOD"] not in self.methods:
            return call(app, environ, start)
        self.times -= 1
        start(self.status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{self.code}</Code><Message>Not now</Message></Error>".encode()]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    from moto.server import DomainDispatcherApplication

    call, faults = DomainDispatcherApplication.__call__, Faults()
    monkeypatch.setattr(DomainDispatcherApplication, "__call__", lambda *given: faults(call, *given))
    return faults


def put(store: Any, folder: Path, name: str = "bucket/out") -> None:
    """Copy a folder into a bucket."""
    for path in folder.rglob("*"):
        if path.is_file():
            store.pipe_file(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def tars(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.tar")}


def test_a_run_in_a_bucket_is_checked_and_read(run: Run, s3: Any, tmp_path: Path) -> None:
    make_folder(tmp_path / "out", "shards")
    put(s3, tmp_path / "out")
    s3.touch("bucket/out/empty/")  # as consoles make folders
    code, said, _ = run("verify", OUT)
    assert (code, said.splitlines()[-1][:43]) == (0, "ok: 9 files of 8 samples checked, 1 result "), said
    assert run("status", OUT)[0] == 3
    s3.pipe_file("bucket/out/rgb/00000.tar", b"cut")
    s3.rm("bucket/out/caption/00001.tar")
    s3.rm("bucket/out/done/00002.json")
    code, said, _ = run("verify", OUT, "--json")
    found = json.loads(said)
    assert (code, found["out"]) == (5, OUT)
    assert [(one["kind"], one["file"]) for one in found["findings"]] == [
        ("missing", "caption/00001.tar"), ("missing", "run.json"), ("truncated", "rgb/00000.tar"),
    ]  # fmt: skip
    assert {one["file"] for one in found["notes"]} == {
        f"{folder}/00002.tar" for folder in ("caption", "rgb", "tok_rgb@64")
    }
    code, said, _ = run("status", OUT, "--json")
    (status,) = json.loads(said)
    assert (code, status["missing"], len(status["damaged"])) == (5, [[0, 2]], 2)
    assert status["damaged"][0].startswith(f"{OUT}/done/00000.json: its file rgb/00000.tar has 3 bytes")
    s3.pipe_file("bucket/odd/x", b"a file and a folder")
    s3.pipe_file("bucket/odd/x/y", b"")
    code, _, err = run("status", "s3://bucket/odd")
    assert (code, "s3://bucket/odd/x" in err, err.count("\n")) == (2, True, 1), err
    code, _, err = run("status", "s3://nobucket/out")
    assert (code, err) == (2, "fourm: s3://nobucket/out: no such folder\n")


def test_workers_make_super_resolution_beside_a_run_in_a_bucket(run: Run, s3: Any, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red circle\na blue square\na dog\n")
    made = ["--data", "p.txt", "--targets", "tok_clip-tok_rgb", "--steps", "1", "--device", "cpu"]
    code, _, err = run("generate", *made, "--format", "shards", "--shard-size", "1", "--out", "out")
    assert code == 0, err
    put(s3, tmp_path / "out")
    assert run("sr", "out", *FINER)[0] == 0
    code, out, err = run("sr", OUT, *FINER, "--workers", "2")
    assert (code, out) == (0, f"{OUT}\n"), err
    files = {name.removeprefix("bucket/out/"): s3.cat_file(name) for name in s3.find("bucket/out")}
    assert {name: data for name, data in files.items() if name.endswith(".tar")} == tars(tmp_path / "out")
    assert len([name for name in files if name.startswith("done.sr/")]) == 3
    assert not any(b"fourm-remote" in data or b"verysecret" in data for data in files.values())
    assert run("verify", OUT)[0] == 0
    assert [one.rgb.size for one in fourm.read(OUT)] == [one.rgb.size for one in fourm.read("out")]
    again = subprocess.run(
        [sys.executable, "-m", "fourm_cli", "sr", "-", *FINER, "--resume", "--json"],
        input=out, capture_output=True, text=True,
    )  # fmt: skip
    assert json.loads(again.stdout) | {"seconds": 0} == {
        "out": OUT, "saved": 0, "skipped": 3, "failed": 0, "seconds": 0
    }, again.stderr  # fmt: skip


def test_what_passes_is_tried_again_and_what_stays_is_one_sentence(
    run: Run, s3: Any, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "out", "shards")
    put(s3, tmp_path / "out")
    faults.status, faults.code, faults.times = "503 Slow Down", "SlowDown", 2
    assert (run("verify", OUT)[0], faults.times) == (0, 0)
    faults.status, faults.code, faults.times = "403 Forbidden", "AccessDenied", 99
    code, _, err = run("status", OUT)
    assert (code, err.count("\n")) == (4, 1), err
    assert err.startswith(f"fourm: {OUT}: the store cannot be used (PermissionError: "), err
    faults.methods = ("PUT",)
    given = ["a dog", "--targets", "tok_clip", "--steps", "1", "--no-decode", "--device", "cpu"]
    code, _, err = run("generate", *given, "--format", "shards", "--out", "s3://bucket/new")
    assert (code, err.count("fourm: s3://bucket/new/run.json: the store cannot be used (Permission")) == (
        4,
        1,
    )
    assert s3.find("bucket/new") == []
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    type(s3).clear_instance_cache()
    code, _, err = run("status", OUT)
    assert (code, err.count("\n")) == (4, 1), err
    assert err.startswith(f"fourm: {OUT}: the store cannot be used (EndpointConnectionError: Could not"), err
