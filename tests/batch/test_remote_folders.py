"""Commands on the folder of a run in an object store: they say and make what they do with one here."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import fourm
from fourm.data import mirrors
from fourm.data.mirrors import local_folder
from fourm.data.shards import FORMATS, SHARDS
from fourm.data.storage import RemoteFolder
from fourm.errors import MissingError, UsageError
from fourm.files.copies import is_placeholder
from fourm_cli.app import InterruptedRun
from tests.sharded_folder import make_folder

Run = Callable[..., tuple[int, str, str]]
OUT = "memory://b/out"
MADE = ["--targets", "tok_clip-tok_rgb", "--steps", "1", "--device", "cpu", "--format", "shards"]
FINER = ["--targets", "tok_rgb", "--steps", "1", "--no-decode", "--device", "cpu"]


def put(store: Any, folder: Path, name: str = "b/out") -> None:
    """Copy a folder into a store."""
    for path in folder.rglob("*"):
        if path.is_file():
            store.pipe_file(f"/{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def in_store(store: Any, ending: str, name: str = "b/out") -> dict[str, bytes]:
    """Files of a folder of a store whose names end like this."""
    found = {path.removeprefix(f"/{name}/"): path for path in store.find(f"/{name}")}
    return {below: store.cat_file(path) for below, path in found.items() if below.endswith(ending)}


def in_folder(folder: Path, ending: str) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob(f"*{ending}")}


def no_temporary(*texts: str) -> None:
    """Nothing names a temporary copy."""
    assert not any("fourm-remote" in text for text in texts), texts


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs: `out` in 3 shards, `finer` with super-resolution beside, `files` without shards."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "p.txt").write_text("a red circle\na blue square\na dog\n")

    def fourm_(*words: object) -> None:
        subprocess.run([sys.executable, "-m", "fourm_cli", *map(str, words), "--quiet"], check=True)

    fourm_("generate", "--data", folder / "p.txt", *MADE, "--shard-size", "1", "--out", folder / "out")
    shutil.copytree(folder / "out", folder / "finer")
    fourm_("sr", folder / "finer", *FINER)
    fourm_("generate", "a dog", *FINER, "--out", folder / "files")
    return folder


def cut(store: Any, here: Path, name: str) -> None:
    data = (here / name).read_bytes()[:-1]
    (here / name).write_bytes(data)
    store.pipe_file(f"/b/out/{name}", data)


def alter(store: Any, here: Path, name: str) -> None:
    data = bytearray((here / name).read_bytes())
    data[600] ^= 1
    (here / name).write_bytes(data)
    store.pipe_file(f"/b/out/{name}", bytes(data))


def remove(store: Any, here: Path, name: str) -> None:
    (here / name).unlink()
    store.rm(f"/b/out/{name}")


def leave(store: Any, here: Path, name: str) -> None:
    pass


FILES = {"shards": "rgb/00001.tar", "webdataset": "00001.tar", "parquet": "00001.parquet"}
MARKER = "done/00001.json"


@pytest.mark.parametrize(
    ("form", "damage", "is_marker"),
    [
        *((form, damage, False) for form in FORMATS[1:] for damage in (leave, cut)),
        ("shards", alter, False),
        ("shards", remove, False),
        ("shards", alter, True),
        ("shards", remove, True),
    ],
)
def test_status_and_verify_say_what_they_say_of_the_same_folder_here(
    form: Any, damage: Callable[[Any, Path, str], None], is_marker: bool, run: Run, store: Any, tmp_path: Path
) -> None:
    here = tmp_path / "out"
    make_folder(here, form)
    put(store, here)
    damage(store, here, MARKER if is_marker else FILES[form])
    for command in ("status", "verify"):
        code, said, _ = run(command, here, "--json")
        there = run(command, OUT, "--json")
        times = re.compile(r'"(rate|left)": .*')  # files are copied at another time than they are made
        assert (there[0], times.sub("", there[1])) == (code, times.sub("", said).replace(str(here), OUT))
        no_temporary(*there[1:])
    assert (code == 0) is (damage is leave)


def test_a_tar_without_a_marker_and_a_file_of_no_run_are_told(run: Run, store: Any, tmp_path: Path) -> None:
    make_folder(tmp_path / "out", SHARDS, 3, made=[0, 1, 2])
    put(store, tmp_path / "out")
    store.rm("/b/out/done/00002.json")
    store.pipe_file("/b/out/mine.txt", b"mine")
    code, said, _ = run("verify", OUT, "--json")
    found = [(one["kind"], one["file"]) for one in json.loads(said)["findings"]]
    assert (code, found) == (5, [("foreign", "mine.txt"), ("missing", "run.json")])
    assert "rgb/00002.tar" in [one["file"] for one in json.loads(said)["notes"]]
    code, said, _ = run("status", OUT)
    assert (code, "2 of 3 shards" in said, "missing: 00002" in said) == (1, True, True)


def test_each_file_is_fetched_once_when_it_is_read_and_few_stay(
    run: Run, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = mirrors._KEPT + 3
    make_folder(tmp_path / "out", SHARDS, shards, made=range(shards))
    put(store, tmp_path / "out")
    fetched, together = list[str](), list[int]()
    fetch, fetch_small = RemoteFolder.fetch, RemoteFolder.fetch_small

    def count(self: RemoteFolder, name: str, size: int | None = None) -> None:
        fetched.append(name)
        fetch(self, name, size)

    def count_small(self: RemoteFolder, names: Sequence[str]) -> None:
        together.append(len(names))
        fetch_small(self, names)

    monkeypatch.setattr(RemoteFolder, "fetch", count)
    monkeypatch.setattr(RemoteFolder, "fetch_small", count_small)
    assert run("status", OUT)[0] == 3
    assert (fetched, together) == ([], [1, shards])  # the record, then all markers
    assert run("verify", OUT)[0] == 0
    assert sorted(fetched) == sorted(in_store(store, ".tar"))
    root = local_folder(OUT, again=False)
    here = [path for path in root.rglob("*.tar") if not is_placeholder(path)]
    assert {path.stem for path in here} == {f"{number:05d}" for number in range(3, shards)}
    tar = root / "rgb" / "00000.tar"
    told, there = tar.stat(), store.modified("/b/out/rgb/00000.tar").timestamp()
    assert (told.st_size, told.st_blocks) == (store.size("/b/out/rgb/00000.tar"), 0)
    assert told.st_mtime == pytest.approx(there, abs=1e-3)


def test_super_resolution_of_a_remote_run_is_written_beside_it(
    run: Run, store: Any, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, made / "out")
    upload = RemoteFolder.upload

    def killed(self: RemoteFolder, name: str) -> None:
        if name == "done.sr/00001.json":
            raise InterruptedRun(signal.SIGTERM)
        upload(self, name)

    monkeypatch.setattr(RemoteFolder, "upload", killed)
    code, _, err = run("sr", OUT, *FINER)
    assert code == 128 + signal.SIGTERM, err
    assert f"to go on: fourm sr --resume {OUT} --targets" in err
    monkeypatch.setattr(RemoteFolder, "upload", upload)
    code, _, err = run("sr", OUT, *FINER)
    assert (code, f"--out {OUT}: holds super-resolution already" in err) == (2, True), err
    code, out, err = run("sr", OUT, *FINER, "--resume")
    assert (code, out) == (0, f"{OUT}\n"), err
    no_temporary(err)
    assert "2 samples generated, 1 already complete" in err
    assert in_store(store, ".tar") == in_folder(made / "finer", ".tar")
    assert {*in_store(store, ".json")} == {*in_folder(made / "finer", ".json")}
    assert not any(b"fourm-remote" in data for data in in_store(store, ".json").values())
    assert run("verify", OUT)[0] == 0
    assert json.loads(run("status", OUT, "--json")[1])[1]["complete"]


def test_super_resolution_goes_from_a_store_to_a_folder_and_back(
    run: Run, store: Any, made: Path, tmp_path: Path
) -> None:
    put(store, made / "out")
    code, out, err = run("sr", OUT, *FINER, "--out", tmp_path / "finer")
    assert (code, out) == (0, f"{tmp_path / 'finer'}\n"), err
    code, out, err = run("sr", made / "out", *FINER, "--out", "memory://b/finer")
    assert (code, out) == (0, "memory://b/finer\n"), err
    here = in_folder(tmp_path / "finer", ".tar")
    assert in_store(store, ".tar", "b/finer") == here
    beside = in_folder(made / "finer" / "tok_rgb@128", ".tar")
    assert len(beside) == 3
    assert {f"tok_rgb@128/{name}": data for name, data in beside.items()}.items() <= here.items()


def test_plots_of_a_remote_run_are_those_of_one_here(
    run: Run, store: Any, made: Path, tmp_path: Path
) -> None:
    put(store, made / "out")
    shutil.copytree(made / "out", tmp_path / "out")
    before = set(store.find("/b/out"))
    code, out, err = run("plot", OUT, "--html", "--count", "2")
    assert (code, out) == (0, f"{OUT}\n"), err
    assert f"2 samples drawn in {OUT}/plots/index.html" in err
    no_temporary(err, in_store(store, "index.html")["plots/index.html"].decode())
    assert run("plot", "out", "--html", "--count", "2")[0] == 0
    sheets = in_folder(tmp_path / "out" / "plots", ".png")
    assert {f"plots/{name}": data for name, data in sheets.items()} == in_store(store, ".png")
    assert {*store.find("/b/out")} - before == {f"/b/out/plots/{name}" for name in (*sheets, "index.html")}
    assert run("verify", OUT)[0] == 0


def test_neighbours_of_remote_runs_are_those_of_runs_here(
    run: Run, store: Any, made: Path, tmp_path: Path
) -> None:
    put(store, made / "out")
    here = run("retrieve", made / "out", "--among", made / "out", "--json")
    assert here[0] == 0, here[2]
    for queries, among in ((OUT, OUT), (made / "out", OUT), (OUT, made / "out")):
        is_same = queries == among
        code, said, err = run("retrieve", queries, "--among", among, "--json", "--sheet", "found.png")
        assert code == 0, err
        assert [len(one["neighbours"]) for one in json.loads(said)] == [2 if is_same else 3] * 3
        assert not is_same or said == here[1]
        assert (tmp_path / "found.png").is_file()
    code, _, err = run("retrieve", OUT, "--among", "memory://b/none")
    assert (code, err) == (2, "fourm: memory://b/none: no such folder\n")


def test_a_remote_run_is_read_like_one_here(store: Any, made: Path) -> None:
    put(store, made / "out")
    there, here = fourm.read(OUT), fourm.read(made / "out")
    assert repr(there) == f"Results({OUT!r}): 3 of 3 samples"
    for one, other in zip(there, here, strict=True):
        assert (one.key, one.rgb.tobytes()) == (other.key, other.rgb.tobytes())
    with pytest.raises(UsageError, match=r"^memory://b/out: no sample 'x'"):
        there["x"]
    again = fourm.read(OUT)
    store.rm("/b/out/rgb/00000.tar")
    with pytest.raises(MissingError, match=r"^memory://b/out/rgb/00000\.tar: there is no such file"):
        _ = again[0].rgb


def test_what_failed_is_made_again_when_that_is_asked_for(
    run: Run, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.txt").write_text("a dog\n" + "word " * 3000 + "\n")
    given = ["--data", tmp_path / "p.txt", "--targets", "tok_clip", "--steps", "1", "--no-decode"]
    words = ["generate", *given, "--device", "cpu", "--format", "shards", "--out", OUT]
    assert run(*words)[0] == 3
    upload, marker = RemoteFolder.upload, "/b/out/done/00000.json"

    def killed(self: RemoteFolder, name: str) -> None:
        if name.startswith("tok_clip"):
            raise KeyboardInterrupt
        upload(self, name)

    monkeypatch.setattr(RemoteFolder, "upload", killed)
    assert run(*words, "--resume")[0] == 3  # it is whole
    code, _, err = run(*words, "--resume", "--retry-failed")
    assert (code, store.cat_file(marker)) == (130, b""), err
    monkeypatch.setattr(RemoteFolder, "upload", upload)
    code, said, _ = run("status", OUT)
    assert (code, f"damaged: {OUT}/done/00000.json: is no marker of a shard" in said) == (5, True), said
    assert run("verify", OUT)[0] == 5
    code, _, err = run(*words, "--resume")
    assert (code, f"{OUT}/done/00000.json: is no marker of a shard" in err) == (3, True), err
    assert json.loads(store.cat_file(marker))["counts"]["failed"] == 1
    assert (run("status", OUT)[0], run("verify", OUT)[0]) == (3, 0)


def test_a_store_that_cannot_be_used_is_one_sentence(
    run: Run, store: Any, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, made / "out")
    names = {*store.find("/b/out")}

    def refuse(error: Exception) -> Callable[..., Any]:
        def fail(*args: object, **options: object) -> Any:
            raise error

        return fail

    for name, error, words, why in (
        ("find", PermissionError("Access Denied"), ("status",), "(PermissionError: Access Denied)"),
        ("cat_ranges", OSError("unreachable"), ("status",), "(OSError: unreachable)"),
        ("get_file", OSError("unreachable"), ("verify",), "(OSError: unreachable)"),
        ("get_file", OSError("unreachable"), ("sr", *FINER), "(OSError: unreachable)"),
        (
            "put_file",
            PermissionError("Access Denied"),
            ("plot", "--count", "1"),
            "(PermissionError: Access Denied)",
        ),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(type(store), name, refuse(error))
            code, out, err = run(words[0], OUT, *words[1:])
        assert (code, out) == (4, ""), err
        assert re.search(f"^fourm: {OUT}[^ ]*: the store cannot be used {re.escape(why)}$", err, re.M), err
        assert "Traceback" not in err
    assert {*store.find("/b/out")} == names
    monkeypatch.setattr("fsspec.core.url_to_fs", refuse(ImportError("Install s3fs")))
    code, _, err = run("status", "s3://bucket/out")
    assert (code, err) == (2, "fourm: s3:// needs a package that is missing; `pip install 'fourm[remote]'`\n")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("status", "memory://b/none"), "memory://b/none: no such folder"),
        (("status", "memory://b/out/run.json"), "memory://b/out/run.json: no such folder"),
        (("verify", "s3://me:secret@bucket/out"), "s3://...: an address holds no credentials"),
        (("verify", "hf://datasets/b/out"), "hf://datasets/b/out: hf:// is not supported; give a path"),
        (("plot", "memory://b/../out"), "memory://b/../out: is not memory://BUCKET/PATH"),
        (("sr", OUT, *FINER, "--overwrite"), "nothing is deleted"),
        (("sr", OUT, *FINER, "--format", "parquet"), f"--format parquet: {OUT} holds shards"),
        (("sr", "memory://b/files", *FINER), "memory://b/files: single files go into folders of this"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    words: Sequence[str], why: str, run: Run, store: Any, made: Path
) -> None:
    put(store, made / "out")
    put(store, made / "files", "b/files")
    names = {*store.find("/b")}
    code, out, err = run(*words)
    assert (code, out) == (2, ""), err
    assert why in err.splitlines()[-1]
    assert "Traceback" not in err
    assert "secret" not in err
    no_temporary(err)
    assert {*store.find("/b")} == names
