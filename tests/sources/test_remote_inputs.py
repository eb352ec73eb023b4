"""Files of an object store as inputs: listed without being read, fetched for their shard, then deleted."""

import functools
import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from fourm.data import storage
from fourm.data.containers import read_member, split_path
from fourm.data.storage import find_remote_containers
from fourm.errors import MissingError, UsageError, as_addresses
from fourm.files import copies
from fourm.files.copies import temporary_copies
from fourm.hub.files import ModelFiles, find_model
from fourm.sources import containers
from fourm.sources.reading import read_samples
from fourm.sources.shards import Shards, list_shards
from fourm.sources.source import Source
from tests.sources.test_containers import write_rows, write_tars

NOTHING = io.BytesIO()


@pytest.fixture(scope="module")
def model() -> ModelFiles:
    return find_model("demo")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    """An object store with tars, Parquet files and prompts."""
    store = fsspec.filesystem("memory")
    write_tars(tmp_path / "tars", 3, 2)
    for path in (tmp_path / "tars").glob("*.tar"):
        store.pipe_file(f"/some/tars/{path.name}", path.read_bytes())
    for number in range(2):
        store.pipe_file(f"/some/rows/{number}.parquet", write_rows(tmp_path / "x.parquet").read_bytes())
    store.pipe_file("/some/p.txt", b"a red circle\na blue square\na dog\n")
    yield store
    store.store.clear()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is fetched, in order; nothing is here before."""
    found, before = list[str](), storage._fetch

    def fetch(address: str, path: Path, size: int | None) -> None:
        found.append(address)
        before(address, path, size)

    for path in copies._files_below(copies._home(os.getpid())):
        path.unlink()
    monkeypatch.setattr(storage, "_fetch", fetch)
    return found


def test_each_tar_is_fetched_for_its_shard_and_then_deleted(
    store: Any, model: ModelFiles, fetched: list[str], tmp_path: Path
) -> None:
    shards: Shards = list_shards(Source(data="memory://some/tars/*.tar"), ["rgb@64"], model, NOTHING)
    assert [shard.name for shard in shards.shards] == ["00000", "00001", "00002"]
    assert fetched == ["memory://some/tars/00000.tar"]  # which says what the endings are
    elsewhere: Shards = pickle.loads(pickle.dumps(shards))
    with temporary_copies():
        samples = elsewhere.samples(elsewhere.shards[2]).samples
        assert fetched[1:] == ["memory://some/tars/00002.tar"]
        path = samples[0].files["rgb@64"].parent
        assert path.is_file()
        assert as_addresses(f"{path}: is bad") == "memory://some/tars/00002.tar: is bad"
    assert not path.exists()
    here = list_shards(Source(data=str(tmp_path / "tars/*.tar")), ["rgb@64"], model, NOTHING)
    assert [one.key for one in samples] == [one.key for one in here.samples(here.shards[2]).samples]


def test_a_process_that_fetches_nothing_makes_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "_home", functools.lru_cache(copies._home.__wrapped__))
    with temporary_copies():
        pass
    copies.delete_home()
    assert copies._home.cache_info().currsize == 0


def test_prompts_and_tables_are_read_like_those_here(store: Any, model: ModelFiles) -> None:
    source = Source(data="memory://some/p.txt")
    shards: Shards = list_shards(source, ["caption"], model, NOTHING, size=2)
    assert [shard.parts[1] for shard in shards.shards] == ["memory://some/p.txt"] * 2
    found = [one for shard in shards.shards for one in shards.samples(shard).samples]
    assert [one.caption for one in found] == ["a red circle", "a blue square", "a dog"]
    assert list(read_samples(source, ["caption"], model, NOTHING).samples) == found
    rows: Shards = list_shards(Source(data="memory://some/rows"), ["caption"], model, NOTHING)
    assert [len(rows.samples(shard).samples) for shard in rows.shards] == [3, 3]


@pytest.mark.parametrize("end", [1 << 16, 16])
def test_rows_of_a_parquet_file_are_several_shards_for_which_it_is_fetched_once(
    end: int,
    store: Any,
    model: ModelFiles,
    fetched: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(containers, "_END", end)  # of which less than the footer is asked for at first
    containers._columns_at.cache_clear()
    path, address = write_rows(tmp_path / "large.parquet", 5), "memory://some/large.parquet"
    store.pipe_file("/some/large.parquet", path.read_bytes())
    asked = ["caption", "rgb@64"], model, NOTHING
    shards: Shards = list_shards(Source(data=address), *asked, size=2)
    assert (fetched, shards.total) == ([], 5)
    here: Shards = list_shards(Source(data=str(path)), *asked, size=2)
    described = [(shard.name, shard.count) for shard in shards.shards]
    assert described == [(shard.name, shard.count) for shard in here.shards]
    elsewhere: Shards = pickle.loads(pickle.dumps(shards))
    for shard, other in zip(reversed(elsewhere.shards), reversed(here.shards), strict=True):
        with temporary_copies():
            for one, same in zip(elsewhere.samples(shard).samples, here.samples(other).samples, strict=True):
                assert one.key == same.key
                picture = one.files["rgb@64"]
                assert read_member(*split_path(picture), 1 << 20) == read_member(  # type: ignore[misc]
                    *split_path(same.files["rgb@64"]),
                    1 << 20,  # type: ignore[misc]
                )
    assert fetched == [address]
    assert list_shards(Source(data=address, num_samples=3), *asked, size=2).total == 3
    rows: Shards = list_shards(Source(data="memory://some/rows/*.parquet"), *asked)
    assert picture.parent.is_file()
    rows.samples(rows.shards[1])
    assert not picture.parent.exists()
    store.pipe_file("/some/bad.parquet", b"x" * 100)
    with pytest.raises(UsageError, match=r"^memory://some/bad\.parquet: is damaged, or no file of columns"):
        list_shards(Source(data="memory://some/bad.parquet"), *asked)


def test_addresses_mean_files_folders_braces_and_patterns(store: Any) -> None:
    for name, expected in {
        "tars": ["00000", "00001", "00002"],
        "tars/0000{0..1}.tar": ["00000", "00001"],
        "{tars,tars}/00002.tar": ["tars/00002"],
        "*/00001.tar": ["tars/00001"],
    }.items():
        assert [one.name for one in find_remote_containers(f"memory://some/{name}")] == expected
    for name, why in {
        "memory://some/tars/00009.tar": r"00009\.tar: no such file",
        "memory://some/tars/0000{1..4}.tar": r"2 of 4 files are not there: 00003\.tar, 00004\.tar",
        "memory://nothing": "there is no tar, Parquet or Arrow file",
        "memory://some/*.tar": "there is no tar, Parquet or Arrow file",
        "memory://some/../x.tar": "is not memory://BUCKET/PATH",
        "s3://me:secret@bucket/x.tar": r"^s3://\.\.\.: an address holds no credentials",
    }.items():
        with pytest.raises(UsageError, match=why):
            find_remote_containers(name)
    store.pipe_file("/some/tars/00001.tar", b"")
    (one,) = find_remote_containers("memory://some/tars/00001.tar")
    store.rm("/some/tars/00001.tar")
    one.path.unlink(missing_ok=True)
    with pytest.raises(MissingError, match=r"memory://some/tars/00001\.tar: there is no such file"):
        storage.fetch_remote(one)


def test_errors_of_a_store_are_one_sentence_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> object:
        raise OSError("cannot connect to\nhttps://me:secret@host/x")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", fail)
    with pytest.raises(MissingError) as error:
        find_remote_containers("memory://some")
    assert str(error.value).endswith("(OSError: cannot connect to https://host/x)")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*given: object, **more: object) -> object:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(
        UsageError, match=r"s3:// needs a package that is missing; `pip install 'fourm\[remote\]'"
    ):
        find_remote_containers("s3://bucket/x.tar")
