"""Data sets on the Hub as inputs: listed without a file, fetched one by one, read again without a network."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from fourm.errors import MissingError, UsageError, VerificationError
from fourm.hub.datasets import find_hub_containers, hub_container
from fourm.hub.files import ModelFiles, find_model
from fourm.hub.remote import Client
from fourm.sources import containers
from fourm.sources.reading import read_samples
from fourm.sources.shards import Shards, list_shards
from fourm.sources.source import Source, classify_source
from tests.hub_server import HEAD_OF_MAIN, Hub
from tests.sources.test_containers import write_rows, write_tars

Run = Callable[..., tuple[int, str, str]]
NOTHING = io.BytesIO()
SET = "hf://datasets/some/set"
FAST = Client(sleep=lambda seconds: None)


@pytest.fixture
def data(hub: Hub, tmp_path: Path) -> Hub:
    """A Hub with a data set of tars and one of Parquet files."""
    write_tars(tmp_path / "tars", 3, 2)
    tars = {f"data/{path.name}": path.read_bytes() for path in sorted((tmp_path / "tars").glob("*.tar"))}
    hub.put("datasets/some/set", {**tars, "README.md": b"about", "data/0 ü.txt": b""})
    names = [f"data/{split}-{i:05d}-of-00002.parquet" for split in ("train", "test") for i in range(2)]
    rows = {name: write_rows(tmp_path / "rows" / name).read_bytes() for name in names}
    hub.put("datasets/some/rows", rows)
    return hub


@pytest.fixture(scope="module")
def model() -> ModelFiles:
    return find_model("demo")


def fetched(hub: Hub) -> set[str]:
    return {name for name in hub.sent if name.endswith((".tar", ".parquet"))}


def test_a_process_fetches_only_the_files_of_its_shards(data: Hub, model: ModelFiles) -> None:
    shards: Shards = list_shards(Source(data=SET), ["rgb@64"], model, NOTHING)
    assert [shard.name for shard in shards.shards] == ["data/00000", "data/00001", "data/00002"]
    assert fetched(data) == {"data/00000.tar"}  # which says what the endings are
    assert "rgb from jpg" in shards.notes[0]
    elsewhere: Shards = pickle.loads(pickle.dumps(shards))
    samples = elsewhere.samples(elsewhere.shards[2]).samples
    assert [sample.key.text for sample in samples] == ["data/00002/000020000", "data/00002/000020001"]
    assert fetched(data) == {"data/00000.tar", "data/00002.tar"}
    assert all(path.is_file() for path in (samples[0].files["rgb@64"].parent,))
    rows: Shards = list_shards(
        Source(data="hf://datasets/some/rows/data/train-*"), ["caption"], model, NOTHING
    )
    assert [len(rows.samples(shard).samples) for shard in rows.shards] == [3, 3]
    whole = read_samples(Source(data="hf://datasets/some/rows/data/train-*"), ["caption"], model, NOTHING)
    assert [one.key.text for shard in rows.shards for one in rows.samples(shard).samples] == [
        one.key.text for one in whole.samples
    ]
    assert not any("test" in name for name in fetched(data))


def test_rows_of_the_hub_are_counted_by_the_ends_of_files(
    data: Hub, model: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "_END", 16)
    containers._columns_at.cache_clear()
    size = len(data.repos["datasets/some/rows"].commits[HEAD_OF_MAIN]["data/train-00000-of-00002.parquet"])
    source = Source(data="hf://datasets/some/rows/data/train-*")
    shards: Shards = list_shards(source, ["caption"], model, NOTHING, size=2)
    assert [(shard.name, shard.count) for shard in shards.shards] == [
        (f"train-{number:05d}-of-00002/{part:05d}", count)
        for number in range(2) for part, count in enumerate((2, 1))
    ]  # fmt: skip
    assert f"bytes={size - 16}-" in data.ranges
    assert max(data.sent[name] for name in fetched(data)) < size
    samples = [one.key.text for shard in shards.shards for one in shards.samples(shard).samples]
    assert samples == [one.key.text for one in read_samples(source, ["caption"], model, NOTHING).samples]


def test_names_mean_files_folders_braces_and_patterns(data: Hub) -> None:
    for name, expected in {
        "/data/00001.tar": ["00001"],
        "/data": ["00000", "00001", "00002"],
        "/data/{00001..00002}.tar": ["00001", "00002"],
        "/data/*2.tar": ["00002"],
        "@main/data/00000.tar": ["00000"],
        "/": ["data/00000", "data/00001", "data/00002"],
    }.items():
        assert [one.name for one in find_hub_containers(f"{SET}{name}", FAST)] == expected
    for name, why in {
        f"{SET}/data/00009.tar": r"there is no file 'data/00009\.tar'; did you mean",
        "hf://datasets/some": r"is not hf://datasets/OWNER/NAME\[@REVISION\]",
        "hf://datasets/some/../set": "is not hf://|there is no file",
        "hf://datasets/a%2Fb/x": "is not hf://",
    }.items():
        with pytest.raises(UsageError, match=why):
            find_hub_containers(name, FAST)
    with pytest.raises(MissingError, match="has no branch, tag or commit 'v9'"):
        find_hub_containers(f"{SET}@v9", FAST)
    with pytest.raises(MissingError, match="there is no dataset 'some/sett'"):
        find_hub_containers("hf://datasets/some/sett", FAST)
    with pytest.raises(UsageError, match="is no file of a data set on the Hub"):
        hub_container(f"{SET}@{'0' * 40}/../../x.tar#1-{'0' * 40}", "x")


def test_what_was_fetched_is_read_without_a_network(
    data: Hub, model: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(data=f"{SET}/data/0000{{0,1}}.tar")
    before = read_samples(source, ["rgb@64"], model, NOTHING).samples
    asked = len(data.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert read_samples(source, ["rgb@64"], model, NOTHING).samples == before
    assert [one.name for one in find_hub_containers(SET, FAST)] == ["data/00000", "data/00001"]
    with pytest.raises(MissingError):
        find_hub_containers("hf://datasets/some/rows", FAST)
    assert len(data.asked) == asked


def test_what_arrives_damaged_is_not_read(data: Hub, model: ModelFiles) -> None:
    data.fail("data/00000.tar", "corrupt", times=9)
    with pytest.raises((MissingError, VerificationError), match=r"some/set/data/00000\.tar|00000\.tar"):
        read_samples(Source(data=SET), ["rgb@64"], model, NOTHING)


def test_the_command_line_reads_a_data_set_of_the_hub(run: Run, data: Hub, tmp_path: Path) -> None:
    given = ["--data", f"{SET}/data/00001.tar", "--targets", "depth", "--device", "cpu", "--num-samples", "1"]
    code, _, err = run("generate", *given, "--out", tmp_path / "out")
    assert code == 0, err
    assert (tmp_path / "out/depth/00001/000010000.npy").is_file()
    code, _, err = run("generate", "--data", "ftp://bucket/x.tar", "--out", tmp_path / "x")
    assert (code, "ftp:// is not supported" in err) == (2, True)
    found = classify_source(Source(data=SET), find_model("demo"))
    assert len(found.containers) == 3
