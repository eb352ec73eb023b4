"""`status`: what is done, missing, damaged and failed, and how long the rest takes, by markers alone."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fourm.checks import status
from fourm.checks.status import read_status
from fourm.data.shards import SHARDS
from fourm.output.markers import marker_path
from fourm.output.processes import seal
from tests.sharded_folder import make_folder, make_shard

Run = Callable[..., tuple[int, str, str]]


def test_status_counts_shards_results_and_reasons(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = make_folder(out, SHARDS, 5, made=[0, 1, 3])
    for number, ended in ((0, 1000), (1, 1001), (3, 5000)):  # 3 seconds together, and 2 after a pause
        os.utime(marker_path(out, f"{number:05d}"), (ended, ended))
    (status,) = read_status(out)
    assert (status.done, status.shards, status.missing) == (3, 5, ((2, 2), (4, 4)))
    assert (status.saved, status.failed, status.total) == (8, 1, 15)
    assert (status.rate, status.left) == (pytest.approx(8 / 5), pytest.approx(10 / 3))
    code, said, _ = run("status", "out")
    assert code == 1
    assert said.splitlines() == [
        "run.json: 3 of 5 shards; 8 of 15 results, 1 failed; 1.6 results/s, about 3.3 s left",
        "missing: 00002, 00004",
        "failed 1 time: is too long",
        "--resume --retry-failed makes failed results again",
    ]
    for number in (2, 4):
        make_shard(out, record, number)
    assert run("status", "out")[0] == 3


def test_a_cut_tar_and_a_damaged_marker_are_seen_at_a_glance(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_folder(out, SHARDS)
    (out / "rgb" / "00000.tar").write_bytes(b"cut")
    marker_path(out, "00002").write_text("{}")
    code, said, _ = run("status", "out", "--json")
    (status,) = json.loads(said)
    assert code == 5
    assert (status["done"], status["missing"]) == (1, [[0, 0], [2, 2]])
    assert "rgb/00000.tar has 3 bytes" in status["damaged"][0]
    assert "00002.json: is no marker" in status["damaged"][1]


def test_a_run_of_files_is_counted_by_its_lists(run: Run, tiny: Path) -> None:
    assert run("generate", "a red circle", "a blue square", "--model", tiny, "--out", "out")[0] == 0
    assert run("status", "out") == (0, "run.json: 2 of 2 results, 0 failed\n", "")


def test_a_thousand_markers_take_less_than_a_second(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_folder(out, SHARDS, 1000, made=[0])
    said = json.loads(marker_path(out, "00000").read_text())
    del said["sha256"]
    for number in range(1, 1000):
        said["shard"] |= {"number": number, "name": f"{number:05d}"}
        marker_path(out, f"{number:05d}").write_text(seal(said))
    started = time.process_time()
    assert read_status(out)[0].saved == 3000
    assert time.process_time() - started < 1


def test_rare_reasons_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = make_folder(tmp_path, "shards", 4, [])
    monkeypatch.setattr(status, "MAX_REASONS", 2)
    for number in range(4):
        marker = make_shard(tmp_path, record, number, [0, 1])
        first, second = marker.failures
        replace(marker, failures=(first, replace(second, reason=f"{number}.png is gone"))).write(tmp_path)
    (found,) = read_status(tmp_path)
    assert found.reasons[0] == ("is too long", 4)
    assert len(found.reasons) <= 3
    assert sum(count for _, count in found.reasons) == 8
