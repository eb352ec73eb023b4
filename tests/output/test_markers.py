"""Shards are written as equal bytes, whole, and what is damaged is found by its marker."""

import io
import itertools
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fourm.data.containers import is_there
from fourm.data.dataset import list_folder
from fourm.data.layout import Key, Place, number_keys
from fourm.data.shards import FORMATS, PARQUET, SHARDS, WEBDATASET, Shard
from fourm.errors import UsageError
from fourm.files.opening import read_bytes
from fourm.output.markers import Counts, Marker, find_done, read_marker, read_markers, remove_shards
from fourm.output.members import Member, ShardMembers
from fourm.output.shard_files import ShardFiles

SHARD = Shard(42, "00042", 42000, 3, ("numbers",))
LIMIT = 1 << 20


def ids(*numbers: int) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([numbers], np.int16))
    return stream.getvalue()


def members(keys: list[Key], variations: int = 1) -> dict[Member, bytes]:
    """Files of some results: a text that variations share, tokens and a picture of each."""
    found = {Member(key, None, "caption", ".txt"): f"text of {key.name}".encode() for key in keys}
    for key, v in itertools.product(keys, range(variations)):
        number = None if variations == 1 else v
        found[Member(key, number, "tok_rgb@64", ".npy")] = ids(1, 2, v)
        found[Member(key, number, "rgb", ".png")] = f"picture {key.name} {v}".encode() * 100
    return found


def write(root: Path, form: str, files: dict[Member, bytes], shard: Shard = SHARD) -> Marker:
    spool = ShardFiles(root, shard, form)
    for member, data in files.items():
        spool.add(member, data)
    return spool.finish(Marker(shard, form, "name", Counts(3, 3), "settings", {}))


def snapshot(root: Path) -> dict[str, bytes]:
    paths = (path for path in root.rglob("*") if path.is_file() and ".partial" not in path.parts)
    return {path.relative_to(root).as_posix(): read_bytes(path, LIMIT) for path in paths}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("form", FORMATS[1:])
@pytest.mark.parametrize("variations", [1, 2])
def test_a_shard_has_the_same_bytes_whatever_the_order(form: str, variations: int, tmp_path: Path) -> None:
    files = members(number_keys(3, 42000), variations)
    made = []
    for name, order in (("a", list(files)), ("b", list(files)[::-1])):
        (tmp_path / name).mkdir()
        write(tmp_path / name, form, {member: files[member] for member in order})
        made.append(snapshot(tmp_path / name))
    assert made[0] == made[1]
    assert not list((tmp_path / "a" / ".partial").glob("*.spool"))


def test_a_tar_for_each_folder_is_a_dataset_with_the_same_keys(out: Path) -> None:
    keys = number_keys(3, 42000)
    marker = write(out, SHARDS, members(keys))
    assert sorted(marker.files) == ["caption/00042.tar", "rgb/00042.tar", "tok_rgb@64/00042.tar"]
    assert marker.keys == "name"
    assert sorted(list_folder(out, "rgb").files) == keys
    with tarfile.open(out / "rgb" / "00042.tar") as tar:
        facts = {(one.mtime, one.uid, one.gid, one.mode, one.uname) for one in tar.getmembers()}
        assert tar.getnames() == ["042000.png", "042001.png", "042002.png"]
    assert facts == {(0, 0, 0, 0o644, "")}


def test_keys_of_other_folders_are_written_whole(out: Path) -> None:
    assert write(out, SHARDS, members([Key("a", "x"), Key("", "y")])).keys == "path"
    with tarfile.open(out / "rgb" / "00042.tar") as tar:
        assert tar.getnames() == ["a/x.png", "y.png"]


def test_keys_in_folders_below_that_of_the_tar_are_named_from_there(out: Path) -> None:
    keys = [Key("00042", "x"), Key("00042/a/b", "y")]
    assert write(out, SHARDS, members(keys)).keys == "name"
    with tarfile.open(out / "rgb" / "00042.tar") as tar:
        assert (tar.getnames(), tar.pax_headers) == (["a/b/y.png", "x.png"], {})
    assert sorted(list_folder(out, "rgb").files) == keys


@pytest.mark.parametrize("form", FORMATS[1:])
def test_what_variations_share_is_found_whichever_was_made(form: str, out: Path) -> None:
    key, caption = Key("00042", "x"), Place("caption", ".txt", shared=True)
    files = {one: data for one, data in members([key], 3).items() if one.variation != 0}
    shard = ShardMembers(out, write(out, form, files), (0, 1, 2))
    assert list(shard.keys(Place("rgb", ".png"))) == [key]
    (path,) = shard.paths(key, caption)
    assert is_there(out / path)
    assert [is_there(out / one) for one in shard.paths(key, Place("rgb", ".png"))] == [False, True, True]


def test_one_tar_has_all_files_of_a_result_side_by_side(out: Path) -> None:
    write(out, WEBDATASET, members([Key("00042", "a.b"), Key("00042", "c")], 2))
    with tarfile.open(out / "00042.tar") as tar:
        names = tar.getnames()
    assert names[:4] == [
        "a%2Eb-v0.caption.txt", "a%2Eb-v0.rgb.png", "a%2Eb-v0.tok_rgb@64.npy", "a%2Eb-v1.caption.txt",
    ]  # fmt: skip
    stems = [name.partition(".")[0] for name in names]
    assert [key for key, _ in itertools.groupby(stems)] == sorted(set(stems))


def test_a_table_has_a_row_for_each_result(out: Path) -> None:
    from pyarrow import parquet

    write(out, PARQUET, members(number_keys(2), 2))
    rows = parquet.read_table(out / "00042.parquet").to_pylist()
    assert [(row["key"], row["variation"]) for row in rows] == [
        ("00000/000000", 0), ("00000/000000", 1), ("00000/000001", 0), ("00000/000001", 1),
    ]  # fmt: skip
    assert rows[1]["tok_rgb@64"] == [1, 2, 1]
    assert rows[1]["caption"] == "text of 000000"
    assert rows[1]["rgb"] == b"picture 000000 1" * 100


def test_what_is_damaged_is_made_again(out: Path) -> None:
    shards = [Shard(number, f"{number:05d}", number * 2, 2) for number in range(6)]
    for shard in shards[:5]:
        write(out, SHARDS, members([Key(shard.name, "a")]), shard)
    (out / "rgb" / "00001.tar").unlink()  # a marker without its tar
    with (out / "rgb" / "00002.tar").open("r+b") as file:
        file.truncate(100)
    (out / "done" / "00003.json").unlink()  # a tar without its marker
    text = read_bytes(out / "done" / "00004.json", LIMIT).replace(b'"saved": 3', b'"saved": 2')
    (out / "done" / "00004.json").write_bytes(text)
    done, faults = find_done(out, shards, "settings")
    assert done == {0: Counts(3, 3)}
    assert [fault.partition(": ")[2] for fault in faults] == [
        "its file rgb/00001.tar is not there; shard 00001 is made again",
        "its file rgb/00002.tar has 100 bytes, not 10,240; shard 00002 is made again",
        "is no marker of a shard, or was damaged (it was changed after it was written); shard 00004 is made "
        "again",
    ]  # fmt: skip
    assert find_done(out, shards[:1], "others")[0] == {}
    moved = replace(shards[0], number=7, parts=("lines", "elsewhere.txt"))
    assert find_done(out, [moved], "settings")[0] == {7: Counts(3, 3)}
    grown = replace(shards[0], count=3)
    assert "is of other samples than the input has there now" in find_done(out, [grown], "settings")[1][0]
    assert not Shard(0, "a", parts=("rows", "x", 5)).has_range_of(Shard(0, "a", parts=("rows", "y", 6)))
    assert Shard(0, "a", parts=("rows", "x", 5)).has_range_of(Shard(1, "a", parts=("results", 6)))


def test_a_shard_whose_files_are_being_replaced_is_not_whole(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    write(out, SHARDS, members(number_keys(2, 42000)))
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            write(out, SHARDS, members(number_keys(3, 42000)))
    assert find_done(out, [SHARD], "settings") == ({}, [])
    extra = Member(Key("00042", "042000"), None, "malformed/caption", ".json")
    write(out, SHARDS, members(number_keys(2, 42000)) | {extra: b"{}"})
    assert "malformed/caption/00042.tar" in snapshot(out)
    write(out, SHARDS, members(number_keys(3, 42000)))
    assert not any(name.startswith("malformed") for name in snapshot(out))


def test_only_what_markers_name_is_deleted(out: Path, tmp_path: Path) -> None:
    write(out, SHARDS, members(number_keys(2)))
    (out / "rgb" / "mine.tar").write_text("mine")
    (out / "done" / "note.txt").write_text("mine")
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (out / "caption" / "00042.tar").rename(elsewhere / "00042.tar")
    (out / "caption").rmdir()
    (out / "caption").symlink_to(elsewhere)
    assert next(read_markers(out)).shard == SHARD
    remove_shards(out)
    assert sorted(snapshot(out)) == ["done/note.txt", "rgb/mine.tar"]
    assert [path.name for path in elsewhere.iterdir()] == ["00042.tar"]  # a link led there
    with pytest.raises(UsageError, match="is no marker"):
        read_marker(out / "done" / "note.txt")


def test_a_marker_that_was_copied_or_edited_costs_no_other_file(out: Path) -> None:
    shards = [Shard(number, f"{number:05d}", number * 2, 2) for number in range(2)]
    for shard in shards:
        write(out, SHARDS, members([Key(shard.name, "a")]), shard)
    shutil.copy(out / "done" / "00000.json", out / "done" / "00001.json")
    write(out, SHARDS, members([Key("00001", "a")]), shards[1])
    assert len(find_done(out, shards, "settings")[0]) == 2
    (out / "mine.txt").write_text("mine")
    marker = read_marker(out / "done" / "00001.json")
    replace(marker, files={**marker.files, "mine.txt": ("0" * 64, 4)}).write(out)
    remove_shards(out)
    assert sorted(snapshot(out)) == ["mine.txt"]
