"""A sharded run whose folder is in an object store: the bytes of one on this machine, made and resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fourm.data.storage import RemoteFolder

Run = Callable[..., tuple[int, str, str]]
GIVEN = ["--targets", "tok_clip", "--steps", "1", "--no-decode", "--device", "cpu"]


def in_store(store: Any, folder: str) -> dict[str, bytes]:
    """The files of results in a folder of a store."""
    found = {name.removeprefix(f"/{folder}/"): store.cat_file(name) for name in store.find(f"/{folder}")}
    return {name: data for name, data in found.items() if name.endswith(".tar")}


def test_a_run_in_a_store_has_the_bytes_of_one_here_and_goes_on(
    run: Run, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.txt").write_text("a red circle\na blue square\na dog\n")
    store.pipe_file("/b/p.txt", (tmp_path / "p.txt").read_bytes())
    shards = [*GIVEN, "--format", "shards", "--shard-size", "1"]
    code, _, err = run("generate", "--data", tmp_path / "p.txt", *shards, "--out", tmp_path / "here")
    assert code == 0, err
    here = {
        path.relative_to(tmp_path / "here").as_posix(): path for path in (tmp_path / "here").rglob("*.tar")
    }
    expected = {name: path.read_bytes() for name, path in here.items()}
    there, upload, uploaded = (
        ["--data", "memory://b/p.txt", *shards, "--out", "memory://b/out"],
        RemoteFolder.upload,
        [],
    )

    def killed(self: RemoteFolder, name: str) -> None:
        if name == "done/00001.json":
            raise KeyboardInterrupt
        upload(self, name)
        uploaded.append(name)

    monkeypatch.setattr(RemoteFolder, "upload", killed)
    code, _, err = run("generate", *there)
    assert code == 130, err
    assert sorted(name for name in in_store(store, "b/out") if "00002" in name) == []
    assert [name for name in uploaded if name.startswith("done/")] == ["done/00000.json"]
    assert any("00001" in name for name in in_store(store, "b/out"))
    monkeypatch.setattr(RemoteFolder, "upload", upload)
    code, _, err = run("generate", *there)
    assert (code, "memory://b/out" in err, "--resume" in err, "/tmp" in err) == (2, True, True, False), err
    code, _, err = run("generate", *there[:-2], "--seed", "1", "--out", "memory://b/out", "--resume")
    assert (code, "other settings: seed is 0 there and 1 here" in err) == (2, True), err
    code, out, err = run("generate", *there, "--resume")
    assert (code, out) == (0, "memory://b/out\n"), err
    assert in_store(store, "b/out") == expected
    assert sorted(name for name in store.find("/b/out") if name.endswith(".json")) == [
        "/b/out/done/00000.json", "/b/out/done/00001.json", "/b/out/done/00002.json", "/b/out/run.json",
    ]  # fmt: skip
    assert b"fourm-remote" not in store.cat_file("/b/out/done/00000.json") + store.cat_file("/b/out/run.json")
    name = next(one for one in expected if "00002" in one)
    store.pipe_file(f"/b/out/{name}", b"cut")
    code, _, err = run("generate", *there, "--resume")
    assert (code, f"its file {name} has 3 bytes" in err, "memory://b/out/done/00002.json" in err) == (
        0,
        True,
        True,
    )
    assert in_store(store, "b/out") == expected
    assert [path for path in RemoteFolder("memory://b/out").local().rglob("*") if path.is_file()] == [
        RemoteFolder("memory://b/out").local() / "run.json"
    ]


def test_super_resolution_of_a_shard_in_a_store_goes_on(
    run: Run, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["a dog", "--targets", "tok_rgb", "--steps", "1", "--sr-targets", "tok_rgb", "--sr-steps", "1"]
    given += ["--no-decode", "--device", "cpu", "--format", "shards"]
    code, _, err = run("generate", *given, "--out", tmp_path / "here")
    assert code == 0, err
    upload = RemoteFolder.upload

    def killed(self: RemoteFolder, name: str) -> None:
        if name.startswith("done.sr/"):
            raise KeyboardInterrupt
        upload(self, name)

    monkeypatch.setattr(RemoteFolder, "upload", killed)
    code, _, err = run("generate", *given, "--out", "memory://b/out")
    assert (code, store.exists("/b/out/done/00000.json")) == (130, True), err
    monkeypatch.setattr(RemoteFolder, "upload", upload)
    code, _, err = run("generate", *given, "--out", "memory://b/out", "--resume")
    assert (code, store.exists("/b/out/done.sr/00000.json")) == (0, True), err
    here = {
        path.relative_to(tmp_path / "here").as_posix(): path for path in (tmp_path / "here").rglob("*.tar")
    }
    assert in_store(store, "b/out") == {name: path.read_bytes() for name, path in here.items()}


def test_what_a_store_cannot_be_is_refused(run: Run, store: Any, tmp_path: Path) -> None:
    shards = ["--format", "shards", *GIVEN]
    for given, why in (
        (
            [*GIVEN, "--out", "memory://b/out"],
            "memory:// is not supported; give a path on this machine, or --format",
        ),
        ([*shards, "--out", "memory://b/out", "--overwrite"], "nothing is deleted"),
        ([*shards, "--out", "s3://me:secret@b/out"], "holds no credentials"),
        ([*shards, "--out", "memory://full"], "memory://full: is not empty"),
    ):
        store.pipe_file("/full/x", b"")
        code, _, err = run("generate", "a dog", *given)
        assert (code, why in err, "secret" in err) == (2, True, False), err
    assert store.find("/b") == []
