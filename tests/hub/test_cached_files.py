"""What a download may delete or write: files of the repository itself, never what a link leads to."""

import os
import shutil
from pathlib import Path

import pytest

from fourm.errors import FourMError, VerificationError
from fourm.hub.cache import (
    cache_folder,
    find_pin,
    find_snapshot,
    fourm_home,
    pins_path,
    place_file,
    remove_file,
    repository_folder,
    text_tokenizer_path,
)
from fourm.hub.download import verify_cached
from tests.fetching import FETCHED, FILE, FILES, ID, NAME, WEIGHTS, Watch, partial, whole_files
from tests.hub_server import Hub

DAMAGED = bytes(len(WEIGHTS))


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A file of the user's own, outside of the cache, as large as the weights."""
    path = tmp_path / "mine" / FILE
    path.parent.mkdir()
    path.write_bytes(DAMAGED)
    return path


@pytest.fixture
def folder(hub: Hub, watch: Watch) -> Path:
    """The snapshot of a download."""
    return watch.get(NAME)[0]


@pytest.mark.parametrize("absolute", [True, False])
def test_verify_deletes_a_link_out_of_the_cache_and_not_its_target(
    folder: Path, watch: Watch, mine: Path, absolute: bool
) -> None:
    (folder / FILE).unlink()
    (folder / FILE).symlink_to(mine if absolute else os.path.relpath(mine, folder))
    problems = {one.file: one.problem for one in verify_cached([ID], watch.client)}
    assert problems[FILE] == "damaged"
    assert mine.read_bytes() == DAMAGED
    assert not os.path.lexists(folder / FILE)
    assert watch.get(NAME) == [folder]
    assert (folder / FILE).read_bytes() == WEIGHTS
    assert mine.read_bytes() == DAMAGED


def test_a_download_replaces_a_link_out_of_the_cache_and_not_its_target(
    folder: Path, watch: Watch, mine: Path
) -> None:
    (folder / FILE).unlink()
    (folder / FILE).symlink_to(mine)
    pins_path().unlink()
    assert watch.get(NAME) == [folder]
    assert (folder / FILE).read_bytes() == WEIGHTS
    assert mine.read_bytes() == DAMAGED


def test_content_that_is_a_link_out_of_the_cache_is_replaced_and_not_its_target(
    folder: Path, watch: Watch, mine: Path
) -> None:
    blob = (folder / FILE).resolve()
    blob.unlink()
    blob.symlink_to(mine)
    assert {one.problem for one in verify_cached([ID], watch.client)} == {"", "damaged"}
    assert mine.read_bytes() == DAMAGED
    blob.symlink_to(mine)
    watch.get(NAME)
    assert mine.read_bytes() == DAMAGED
    assert not blob.is_symlink()
    assert whole_files() == FETCHED


def test_a_link_to_the_content_of_another_repository_leaves_that_alone(
    hub: Hub, folder: Path, watch: Watch
) -> None:
    hub.put("some/thing", {FILE: b"x" * len(WEIGHTS)})
    other = (watch.get("some/thing")[0] / FILE).resolve()
    (folder / FILE).unlink()
    (folder / FILE).symlink_to(other)
    verify_cached([ID], watch.client)
    assert other.read_bytes() == b"x" * len(WEIGHTS)


@pytest.mark.parametrize("level", ["snapshot", "snapshots", "repository"])
def test_a_folder_that_is_a_link_out_of_the_cache_keeps_its_files(
    folder: Path, watch: Watch, tmp_path: Path, level: str
) -> None:
    linked = {"snapshot": folder, "snapshots": folder.parent, "repository": folder.parent.parent}[level]
    within = folder.relative_to(linked)
    away = tmp_path / "away"
    shutil.copytree(linked, away, symlinks=level == "repository")
    shutil.rmtree(linked)
    linked.symlink_to(away)
    theirs = away / within / FILE
    theirs.write_bytes(DAMAGED)
    before = sorted(p.relative_to(away) for p in away.rglob("*"))
    problems = {one.file: one for one in verify_cached([ID], watch.client)}
    assert problems[FILE].problem == "damaged"
    assert not problems[FILE].removed
    pins_path().unlink()
    with pytest.raises(VerificationError, match=r"is damaged.*a link.*not deleted"):
        watch.get(NAME)
    assert theirs.read_bytes() == DAMAGED
    assert sorted(p.relative_to(away) for p in away.rglob("*")) == before


def test_a_linked_folder_is_not_written_into_either(folder: Path, watch: Watch, tmp_path: Path) -> None:
    shutil.rmtree(folder)
    away = tmp_path / "away"
    away.mkdir()
    folder.symlink_to(away)
    with pytest.raises(FourMError, match=r"is a link out of .*models--.*; nothing is written there"):
        watch.get(NAME)
    assert not list(away.iterdir())


def test_a_cache_that_is_itself_a_link_is_a_cache(hub: Hub, watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    cache_folder().parent.mkdir(parents=True)
    cache_folder().symlink_to(tmp_path / "disk")
    (folder,) = watch.get(NAME)
    (folder / FILE).resolve().write_bytes(DAMAGED)
    assert {one.problem for one in verify_cached([ID], watch.client)} == {"", "damaged"}
    watch.get(NAME)
    assert whole_files() == FETCHED


def test_the_text_tokenizer_that_is_a_link_loses_the_link_alone(hub: Hub, watch: Watch, mine: Path) -> None:
    text_tokenizer_path().parent.mkdir(parents=True)
    text_tokenizer_path().symlink_to(mine)
    (one,) = verify_cached([""], watch.client)
    assert (one.problem, one.removed) == ("damaged", True)
    assert mine.read_bytes() == DAMAGED
    assert not os.path.lexists(text_tokenizer_path())


def test_bytes_are_never_collected_through_a_link(hub: Hub, watch: Watch, mine: Path) -> None:
    partial().parent.mkdir(parents=True)
    partial().symlink_to(mine)
    with pytest.raises(FourMError, match=r"\.fourm\.incomplete: is no plain file.*delete it"):
        watch.get(NAME)
    assert mine.read_bytes() == DAMAGED


@pytest.mark.parametrize("dangling", [True, False])
def test_a_branch_is_never_noted_through_a_link(hub: Hub, watch: Watch, mine: Path, dangling: bool) -> None:
    ref = repository_folder(ID) / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.symlink_to(mine.with_name("none") if dangling else mine)
    watch.get(NAME)
    assert mine.read_bytes() == DAMAGED
    assert not mine.with_name("none").exists()
    assert not ref.is_symlink()


def test_the_record_is_never_written_through_a_link(hub: Hub, watch: Watch, mine: Path) -> None:
    fourm_home().mkdir(parents=True)
    (mine.parent / "pins").write_text('{"format": 1, "pins": {}}')
    pins_path().symlink_to(mine.parent / "pins")
    pins_path().with_name(f"{pins_path().name}.{os.getpid()}.partial").symlink_to(mine)
    watch.get(NAME)
    assert find_pin(ID)
    assert mine.read_bytes() == DAMAGED
    assert (mine.parent / "pins").read_text() == '{"format": 1, "pins": {}}'
    pins_path().unlink()
    lock = fourm_home() / "pins.lock"
    lock.unlink()
    lock.symlink_to(mine.parent / "gone")
    with pytest.raises(FourMError, match=r"pins\.lock: cannot be written"):
        watch.get(NAME)
    assert not (mine.parent / "gone").exists()


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_in_the_place_of_one_is_a_sentence(hub: Hub, watch: Watch, kind: str) -> None:
    for path in (partial(), partial().with_name(partial().name.partition(".")[0])):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path) if kind == "pipe" else path.mkdir()
        with pytest.raises(FourMError, match="is no plain file") as told:
            watch.get(NAME)
        assert "\n" not in str(told.value)
        os.unlink(path) if kind == "pipe" else path.rmdir()
    watch.get(NAME)


def test_a_file_of_a_snapshot_takes_its_content_with_it(tmp_path: Path) -> None:
    home = tmp_path / "models--a--b"
    blob, pointer = home / "blobs" / "x", home / "snapshots" / "c" / "f"
    for path in (blob, pointer):
        path.parent.mkdir(parents=True)
    blob.write_bytes(b"x")
    place_file(blob, pointer, home)
    assert pointer.is_symlink()
    assert remove_file(pointer, home)
    assert not os.path.lexists(pointer)
    assert not blob.exists()
    assert remove_file(pointer, home)


def test_where_links_cannot_be_made_the_file_itself_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    blob = tmp_path / "blobs" / "x"
    blob.parent.mkdir()
    blob.write_bytes(b"x")
    place_file(blob, tmp_path / "snapshots" / "c" / "f", tmp_path)
    assert (tmp_path / "snapshots" / "c" / "f").read_bytes() == b"x"
    assert not (tmp_path / "snapshots" / "c" / "f").is_symlink()
    assert not blob.exists()


@pytest.mark.parametrize("revision", ["01234567", "0"])
def test_a_short_commit_or_a_branch_like_one_is_found_again(hub: Hub, watch: Watch, revision: str) -> None:
    hub.put(ID, FILES, ref=revision)
    (folder,) = watch.get(f"{ID}@{revision}")
    found = find_snapshot(ID, revision)
    assert found is not None
    assert found == folder
