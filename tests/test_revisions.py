"""Two trees measured in one run: the other's files and modules, turns, ratios; and tables as JSON."""

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks import listing
from benchmarks.revisions import ROOT, checked_out, environment_of
from benchmarks.tables import Table

ENVIRONMENT = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The same files as a tree at another place."""
    tree = tmp_path / "other"
    tree.mkdir()
    for name in ("benchmarks", "fourm", "fourm_cli"):
        (tree / name).symlink_to(ROOT / name)
    return tree


def rows_of(file: Path) -> list[dict[str, Any]]:
    """What a table left in its file."""
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return found


def test_two_trees_are_measured_in_turns(other: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.against", str(other), "--quick", "--threads", "1"]
    command += ["--alternations", "2", "--parts", "captions,divae", "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    rows = rows_of(tmp_path / "rows.json")
    names = [str(other), "working tree"]
    assert [row["tree"] for row in rows] == names * 2
    turns = [line.split(": ")[1] for line in done.stderr.splitlines() if line.startswith("divae")]
    assert turns == names * 2
    for old, new in (rows[:2], rows[2:]):
        assert old["ratio"] is None
        assert new["of smallest"] == min(new["times"]) / min(old["times"])
        assert new["limit"] == old["limit"] > 0
        assert new["share of limit"] == new["limit"] / min(new["times"])


def test_a_worker_refuses_to_measure_another_tree(other: Path) -> None:
    worker = str(ROOT / "benchmarks/against/worker.py")
    command, environment = [sys.executable, worker, "captions", "none", "5"], environment_of(ROOT)
    done = subprocess.run(command, cwd=other, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "should be measured" in done.stderr


def test_two_trees_are_measured_on_one_device(other: Path, tmp_path: Path) -> None:
    command = ["bash", str(ROOT / "benchmarks/gpu.sh"), "--compare", other.name, "out", "--quick"]
    command += ["--device", "cpu", "--parts", "facts,detokenize", "--minutes", "20"]
    done = subprocess.run(command, cwd=other.parent, env=ENVIRONMENT, capture_output=True, text=True)
    rows = rows_of(tmp_path / "out/compare.json")
    assert len(rows) == 3, done.stderr
    for row in rows:
        assert row["ratio"] == row["new"] / row["old"] > 0
    assert done.returncode == any(row["note"] == "worse" for row in rows)
    assert f"== old: {other}" in done.stdout


def fail_in(root: Path) -> None:
    with checked_out("HEAD", root) as tree:
        raise KeyError(tree, (tree / "file").read_text())


def test_files_of_a_revision_are_there_until_the_end(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no folder, and no revision either"):
        fail_in(tmp_path)
    if shutil.which("git") is None and not os.environ.get("FOURM_NEEDS_TOOLS"):
        pytest.skip("git is not installed")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "file").write_text("old")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / "file").write_text("new")
    with pytest.raises(KeyError) as failed:
        fail_in(tmp_path)
    tree, text = failed.value.args
    assert (text, tree.exists()) == ("old", False)
    with checked_out(str(tmp_path)) as tree:
        assert (tree / "file").read_text() == "new"
    assert tmp_path.exists()


def test_a_table_is_printed_and_kept_unrounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table({"what": "", "s": ".2f", "share": ".0%"}, tmp_path / "rows.json", peak=2.0)
    table.add("a", 1 / 3, None, times=[1.0])
    assert capsys.readouterr().out == "| what | s | share |\n| --- | ---: | ---: |\n| a | 0.33 |  |\n"
    data = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert data["rows"] == [{"what": "a", "s": 1 / 3, "share": None, "times": [1.0]}]
    assert data["measured"] == {"peak": 2.0}
    assert {"torch", "processor", "threads"} <= set(data["machine"])


@pytest.mark.parametrize(
    "name", ["generate", "detokenize", "loading", "listing", "released", "against.__main__", "gpu.compare"]
)
def test_every_benchmark_writes_json(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit):
        import_module(f"benchmarks.{name}").main()
    assert "--json FILE" in capsys.readouterr().out


def test_listings_are_held_against_a_plain_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.json"
    monkeypatch.setattr(
        sys, "argv", ["listing", "--samples", "3", "--work", str(tmp_path), "--json", str(file)]
    )
    listing.main()
    rows = rows_of(file)
    assert [(row["dataset"], row["samples"]) for row in rows] == [("folders", 3), ("tar shards", 3)]
    assert all(row["times a plain walk"] > 0 for row in rows)
