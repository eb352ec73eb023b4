"""`verify` of sharded runs: what is damaged, missing or foreign is found, and what is whole is let be."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fourm.checks.verify import verify_folder
from fourm.checks.verify_shards import as_ranges, missing_shards
from fourm.data.shards import FORMATS, PARQUET, SHARDS, WEBDATASET
from fourm.output.markers import marker_path, read_marker
from tests.sharded_folder import make_folder, make_shard

FILES = {SHARDS: "rgb/00001.tar", WEBDATASET: "00001.tar", PARQUET: "00001.parquet"}
Found = list[tuple[str, str]]


def found(out: Path) -> tuple[Found, Found]:
    """Kinds and files of findings and of notes."""
    verdict = verify_folder(out)
    return [(f.kind, f.file) for f in verdict.findings], [(f.kind, f.file) for f in verdict.notes]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("form", FORMATS[1:])
def test_what_a_run_has_made_is_ok(form: str, tmp_path: Path) -> None:
    make_folder(tmp_path / "out", form)  # type: ignore[arg-type]
    (tmp_path / "out" / "plots").mkdir()
    verdict = verify_folder(tmp_path / "out")
    assert (verdict.findings, verdict.notes) == ((), ())
    assert (verdict.samples, verdict.failed, verdict.files) == (8, 1, 9 if form == SHARDS else 3)


@pytest.mark.parametrize("form", FORMATS[1:])
@pytest.mark.parametrize(
    ("damage", "kind"), [(cut, "truncated"), (alter, "altered"), (Path.unlink, "missing")]
)
def test_each_file_is_compared_with_its_marker(
    form: str, damage: Callable[[Path], object], kind: str, tmp_path: Path
) -> None:
    make_folder(tmp_path / "out", form)  # type: ignore[arg-type]
    damage(tmp_path / "out" / FILES[form])
    assert found(tmp_path / "out") == ([(kind, FILES[form])], [])


@pytest.mark.parametrize("form", FORMATS[1:])
def test_without_its_marker_a_shard_is_missing_and_its_files_are_noted(form: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_folder(out, form)  # type: ignore[arg-type]
    files = list(read_marker(marker_path(out, "00001")).files)
    marker_path(out, "00001").unlink()
    assert found(out) == ([("missing", "run.json")], [("unlisted", name) for name in sorted(files)])
    assert "1 of 3 shards were not made (00001)" in verify_folder(out).findings[0].detail


def test_a_damaged_marker_is_one_finding(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_folder(out, WEBDATASET)
    path = marker_path(out, "00001")
    path.write_text(path.read_text().replace('"saved": 2', '"saved": 3'))
    assert found(out) == ([("altered", "done/00001.json")], [("unlisted", "00001.tar")])


@pytest.mark.parametrize("form", FORMATS[1:])
def test_members_are_counted(form: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_folder(out, form)  # type: ignore[arg-type]
    marker = read_marker(marker_path(out, "00001"))
    fewer = replace(marker.counts, samples=2, saved=1)
    replace(marker, counts=fewer).write(out)
    assert set(found(out)[0]) == {("altered", "done/00001.json")}
    assert "says 1 results, but there are 2 of" in verify_folder(out).findings[0].detail


def test_markers_of_other_settings_and_of_other_shards_are_found(tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = make_folder(out, WEBDATASET, 2, made=[0])
    make_shard(out, replace(record, seed=1), 1)
    marker_path(out, "00000").rename(marker_path(out, "00007"))
    assert found(out)[0] == [("altered", "done/00001.json"), ("altered", "done/00007.json")]


def test_foreign_files_and_leftovers_are_told_apart(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_folder(out, SHARDS)
    (out / ".partial").mkdir()
    for name in ("note.txt", "rgb/00009.tar", "rgb/x.png", "done/x.txt", "00001.tar"):
        (out / name).touch()
    (out / "rgb" / "more").symlink_to(tmp_path, target_is_directory=True)
    (out / "rgb" / "00002.tar").rename(tmp_path / "00002.tar")
    (out / "rgb" / "00002.tar").symlink_to(tmp_path / "00002.tar")
    findings, notes = found(out)
    names = ["00001.tar", "done/x.txt", "note.txt", "rgb/00002.tar", "rgb/00009.tar", "rgb/more", "rgb/x.png"]
    assert sorted(findings) == [("foreign", name) for name in names]
    assert notes == [("unfinished", ".partial")]


def test_a_record_that_is_gone_or_changed_is_found_and_shards_are_checked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_folder(out, SHARDS)
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, "command": ["other"]}))
    assert found(out) == ([("altered", "run.json")], [])
    (out / "run.json").unlink()
    cut(out / "rgb/00001.tar")
    assert found(out)[0] == [("missing", "run.json"), ("truncated", "rgb/00001.tar")]


def test_the_command_ends_with_5_and_says_what_resume_makes(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    make_folder(tmp_path / "out", SHARDS, made=[1])
    code, out, _ = run("verify", "out")
    assert code == 5
    assert "2 of 3 shards were not made (00000, 00002); --resume makes them" in out
    last = "not ok: 3 files of 2 samples checked, 1 result failed (see done): 1 missing"
    assert out.splitlines()[-1] == last


def test_missing_shards_are_ranges() -> None:
    assert missing_shards({0, 3, 4, 9, 12}, 10) == [(1, 2), (5, 8)]
    assert missing_shards(set(), 2) == [(0, 1)]
    assert missing_shards({0, 1}, 2) == []
    assert as_ranges([(1, 2), (5, 5)]) == "00001-00002, 00005"
    assert as_ranges([(n, n) for n in range(0, 30, 2)]).endswith("00018 and 5 more ranges")
