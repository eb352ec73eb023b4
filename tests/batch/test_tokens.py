"""`fourm tokenize` in shards: the bytes of single files, inputs of all kinds, and what reads the folder."""

import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

import fourm
from fourm.batch.batches import Batch, plan
from fourm.codecs.files import pack_png, write_array
from fourm.data.shards import FORMATS
from fourm.errors import UsageError
from fourm.hub.files import ModelFiles, find_model
from fourm.inputs.request import TokenizeRequest
from fourm.output.record import RUN
from fourm.output.samples import load_run
from fourm.runs.tokenizing import tokenize_dataset
from fourm.sources.raw import find_raw
from tests.batch.test_batch import make, written

Run = Callable[..., tuple[int, str, str]]
OWN = ("tokenizer.json", "failures.jsonl")  # of single files


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five pictures with depth in two folders, of which one has no depth and one cannot be read."""
    rng = np.random.default_rng(0)
    for number in range(5):
        name = f"split{number % 2}/x{number}.png"
        for folder in ("rgb", "depth"):
            (tmp_path / "data" / folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40 + 9 * number, 70, 3), dtype=np.uint8)
        (tmp_path / "data/rgb" / name).write_bytes(pack_png(pixels))
        levels = rng.integers(0, 65536, (40 + 9 * number, 70), dtype=np.uint16)
        Image.fromarray(levels).save(tmp_path / "data/depth" / name)
    (tmp_path / "data/depth/split1/x3.png").unlink()
    (tmp_path / "data/depth/split0/x4.png").write_bytes(b"\x89PNG")
    return tmp_path / "data"


@pytest.fixture
def model(tiny: Path) -> ModelFiles:
    return find_model(tiny)


def batch_of(
    data: Path | str, model: ModelFiles, out: Path, size: int = 2, form: str = "shards", **settings: Any
) -> Batch:
    raw = find_raw(str(data), {}, model, settings.pop("names", None))
    request = TokenizeRequest(model, tuple(raw.places), (), out, device="cpu", **settings)
    return plan([request], raw.shards(size), form, size)


def as_files(data: Path, model: ModelFiles, out: Path, **settings: Any) -> dict[str, bytes]:
    raw = find_raw(str(data), {}, model, settings.pop("names", None))
    samples = raw.samples(out).samples
    list(tokenize_dataset(TokenizeRequest(model, tuple(raw.places), samples, out, device="cpu", **settings)))
    return {name: data for name, data in written(out).items() if Path(name).name not in OWN}


def test_shards_in_any_order_have_the_bytes_of_single_files(
    data: Path, model: ModelFiles, tmp_path: Path
) -> None:
    settings = {"num_crops": 3, "min_scale": 0.3, "seed": 7}
    files = as_files(data, model, tmp_path / "files", **settings)
    whole = {
        name: made for name, made in files.items() if name.rpartition("/")[2] not in ("x3.npy", "x4.npy")
    }
    assert len(whole) == 3 * 3
    reports = make(batch_of(data, model, tmp_path / "one", 2, **settings), [1, 2, 0])
    assert written(tmp_path / "one") == whole
    assert [(r.counts.saved, r.counts.failed, r.counts.incomplete) for r in reports] == [
        (0, 1, 0), (1, 0, 1), (2, 0, 0),
    ]  # fmt: skip
    (failure,) = reports[0].failures
    assert (failure.key, "x4.png" in failure.reason) == ("split0/x4", True)
    assert reports[1].incomplete == ("split1/x3 lacks a file in depth",)
    run = load_run(tmp_path / "one")
    assert (run.record.stage, run.record.num_crops, run.record.min_scale) == ("tokens", 3, 0.3)
    make(batch_of(data, model, tmp_path / "large", 1000, **settings))
    assert written(tmp_path / "large") == whole
    with pytest.raises(UsageError, match="num_crops is 3 there and 2 here"):
        batch_of(data, model, tmp_path / "one", **{**settings, "num_crops": 2}, resume=True).open_folder()


def test_features_have_no_crops_and_recorded_crops_are_used(
    data: Path, model: ModelFiles, tmp_path: Path
) -> None:
    (data / "clip/split0").mkdir(parents=True)
    for number in (0, 2):
        write_array(np.random.default_rng(number).normal(size=(14, 8, 8)).astype(np.float32),
                    data / f"clip/split0/x{number}.npy")  # fmt: skip
    features = batch_of(data, model, tmp_path / "clip", names=["clip"])
    make(features)
    assert written(tmp_path / "clip") == as_files(data, model, tmp_path / "files", names=["clip"])
    assert sorted(path.name for path in (tmp_path / "clip").iterdir()) == ["done", RUN, "tok_clip@64"]
    as_files(data, model, data, names=["rgb"], num_crops=2, seed=5)  # writes crop_settings beside the data
    make(batch_of(data, model, tmp_path / "rgb", names=["rgb"]))
    made = {name: made for name, made in written(data).items() if name.startswith(("tok_rgb", "crop_"))}
    assert written(tmp_path / "rgb") == {
        n: made for n, made in made.items() if not n.endswith("tokenizer.json")
    }
    with pytest.raises(UsageError, match="features of a picture cannot be cropped"):
        batch_of(data, model, tmp_path / "no", names=["clip"], num_crops=2).open_folder()


@pytest.mark.parametrize("form", FORMATS[1:])
def test_a_folder_of_tokens_is_checked_read_and_gone_on_from(
    form: str, run: Run, data: Path, tiny: Path
) -> None:
    (data / "depth/split0/x4.png").unlink()
    words = ["tokenize", data, "--model", tiny, "--device", "cpu", "--format", form, "--shard-size", "2"]
    code, out, err = run(*words, "--out", "out")
    assert (code, out) == (0, "out\n"), err
    assert "rgb -> tok_rgb@64\n" in err
    assert "3 samples tokenized, 2 samples left out (see done/)" in err
    code, out, _ = run("verify", "out")
    assert (code, "ok: " in out, "3 samples" in out) == (0, True, True), out
    code, out, _ = run("status", "out")
    assert (code, "3 of 3 shards; 3 results" in out) == (0, True), out
    results = fourm.read("out")
    assert [result.key for result in results] == ["split0/x0", "split0/x2", "split1/x1"]
    assert results[1].tokens["tok_depth"].shape == (64,)
    given = ["generate", "--data", "out", "--cond", "tok_rgb", "--targets", "tok_depth", "--model", tiny]
    code, _, err = run(*given, "--steps", "1", "--device", "cpu", "--out", "made")
    assert code == 0, err
    assert len(list(Path("made/tok_depth@64").rglob("*.npy"))) == 3
    assert run("plot", "out", "--html")[0] == 0
    code, _, err = run("generate", "--replay", "out/run.json", "--model", tiny)
    assert (code, "is the record of `fourm tokenize`" in err) == (2, True)
    code, _, err = run(*words, "--out", "out", "--resume")
    assert (code, "0 samples tokenized, 3 already complete" in err) == (0, True), err


def packed(path: Path, data: Path) -> Path:
    """The pictures and maps of a dataset as one tar of WebDataset, or as a table."""
    names = ["x0", "x1", "x2"]
    files = {
        (name, modality): next((data / modality).rglob(f"{name}.png")).read_bytes()
        for name in names for modality in ("rgb", "depth")
    }  # fmt: skip
    if path.suffix == ".parquet":
        columns = {modality: [files[name, modality] for name in names] for modality in ("rgb", "depth")}
        parquet.write_table(pa.table({"image": columns["rgb"], "depth": columns["depth"]}), path)
        return path
    with tarfile.open(path, "w") as tar:
        for (name, modality), content in files.items():
            info = tarfile.TarInfo(f"{name}.{'png' if modality == 'rgb' else 'depth.png'}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_tars_and_tables_become_the_tokens_of_their_pictures(
    name: str, run: Run, data: Path, tiny: Path, tmp_path: Path
) -> None:
    packed(tmp_path / name, data)
    words = ["--model", tiny, "--device", "cpu"]
    assert run("tokenize", data, *words, "--out", "folder", "--quiet")[0] == 3
    expected = {path.stem: path.read_bytes() for path in Path("folder/tok_depth@64").rglob("x?.npy")}
    code, out, err = run("tokenize", name, *words)
    assert (code, out) == (0, "out/001\n"), err
    assert re.search(r"rgb from (png|image)(, depth from [a-z.]+)?\n", err), err
    assert sorted(
        path.read_bytes() for path in Path(out.strip(), "tok_depth@64").rglob("*[0-9].npy")
    ) == sorted(expected[key] for key in ("x0", "x1", "x2"))
    code, out, err = run("tokenize", name, *words, "--format", "shards", "--out", "shards")
    assert code == 0, err
    inside = [made for path, made in written(Path("shards")).items() if path.startswith("tok_depth")]
    assert sorted(inside) == sorted(expected[key] for key in ("x0", "x1", "x2"))
    code, _, err = run("tokenize", name, *words, "--modalities", "clip")
    assert (code, "has nothing for clip" in err) == (2, True), err


def test_what_is_read_and_written_may_be_in_a_store(run: Run, data: Path, tiny: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    try:
        store.pipe_file("/in/a.tar", packed(tmp_path / "a.tar", data).read_bytes())
        words = ["--model", tiny, "--device", "cpu", "--format", "shards"]
        code, _, err = run("tokenize", "a.tar", *words, "--out", "here")
        assert code == 0, err
        code, out, err = run("tokenize", "memory://in/a.tar", *words, "--out", "memory://out")
        assert (code, out) == (0, "memory://out\n"), err
        found = {name.removeprefix("/out/"): store.cat_file(name) for name in store.find("/out")}
        tars = {name: made for name, made in found.items() if name.endswith(".tar")}
        assert tars == {name: (tmp_path / "here" / name).read_bytes() for name in tars}
        assert len(tars) == 3
        code, out, err = run("tokenize", "memory://in/a.tar", *words, "--out", "memory://out", "--resume")
        assert (code, "3 already complete" in err) == (0, True), err
    finally:
        store.store.clear()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "2"], "--workers: hands out shards"),
        (["--shard-size", "2"], "--shard-size: is for shards"),
        (["--out", "memory://out"], "or --format shards"),
        (["--format", "shards", "--shard", "0/2"], "--out is missing"),
        (["--format", "shards", "--map", "png=rgb"], "--map png=rgb: only tars and Parquet files"),
        (["--format", "shards", "--out", "out", "--crops", "0"], "--crops 0"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: list[str], said: str, run: Run, data: Path, tiny: Path, tmp_path: Path
) -> None:
    code, out, err = run("tokenize", data, "--model", tiny, *words)
    assert (code, out, said in err) == (2, "", True), err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_read_is_not_overwritten(data: Path, model: ModelFiles) -> None:
    with pytest.raises(UsageError, match=r"would delete .*data/rgb, which this run reads"):
        batch_of(data, model, data, names=["rgb"], num_crops=1, overwrite=True)
