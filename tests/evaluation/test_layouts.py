"""Samples have the same numbers in whatever layout their files are, here or in an object store."""

import errno
import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import fourm
from fourm.data.layout import Key, number_keys
from fourm.data.shards import FILES, FORMATS, Format
from fourm.evaluation.folder import Asked, measure_folder
from fourm.evaluation.pairs import list_pairs
from fourm.inputs.world import World
from tests.folders import RGB, noise, put, write_record
from tests.sharded_folder import IDS, make_folder

KEYS = [key for number, key in enumerate(number_keys(9)) if number != 5]  # 5 failed in runs in shards


def drawn(seed: int, key: Key) -> bytes:
    """The picture of a sample of a run, or of the dataset with which it is compared (seed 0)."""
    number, file = int(key.name), io.BytesIO()
    pixels = noise(number, 16, 16, 3) // 2 + noise(seed + number, 16, 16, 3) // 2
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def run_of(root: Path, form: Format) -> Path:
    """A run in any format."""
    if form == FILES:
        write_record(root, [RGB])
        for key in KEYS:
            put(root, RGB, key, drawn(50, key))
    else:
        make_folder(root, form, draw=lambda key: drawn(50, key))
    return root


def dataset_of(root: Path, layout: str) -> str:
    """The pictures of a dataset in a layout; what names them."""
    root.mkdir()
    if layout in ("folder", "pictures"):
        for key in KEYS:
            path = root / "rgb" / f"{key.path}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(drawn(0, key))
        return str(root) if layout == "folder" else f"{root}/rgb"
    if layout == "parquet":
        pictures = [drawn(0, key) for key in number_keys(9)]
        pq.write_table(pa.table({"png": pictures}), root / "00000.parquet")
        return str(root / "00000.parquet")
    (folder := root / "rgb" if layout == "tars of a folder" else root).mkdir(exist_ok=True)
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for key in KEYS:
            member = tarfile.TarInfo(f"{key.name}.png")
            member.size = len(data := drawn(0, key))
            tar.addfile(member, io.BytesIO(data))
    return str(root)


def rows_of(root: Any, against: Any, out: Path) -> dict[str, float]:
    found = fourm.evaluate(root, against, measures="psnr", out=out)
    assert found is not None
    return {key: row["rgb/psnr"] for (key, _), row in found.rows.items()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    found = dict[str, float]()
    for key in KEYS:
        one, other = (np.asarray(Image.open(io.BytesIO(drawn(seed, key))), float) / 255 for seed in (50, 0))
        found[key.text] = float(-10 * np.log10(np.square(one - other).mean()))
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_runs_of_all_formats_have_the_same_numbers(
    tmp_path: Path, expected: dict[str, float], form: Format
) -> None:
    root, data = run_of(tmp_path / "run", form), dataset_of(tmp_path / "data", "folder")
    assert rows_of(root, data, tmp_path / "one") == pytest.approx(expected, rel=1e-12)
    assert rows_of(data, root, tmp_path / "two") == pytest.approx(expected, rel=1e-12)
    alone = measure_folder(Asked(root, data, ("psnr",)))
    merged = [measure_folder(Asked(root, data, ("psnr",), world=World(rank, 3))) for rank in range(3)]
    assert alone is not None
    assert merged[2] is not None
    assert merged[2].value("psnr") == pytest.approx(alone.value("psnr"), abs=1e-9)
    assert merged[2].rows == alone.rows
    assert merged[2].counts == alone.counts


@pytest.mark.parametrize("layout", ["tars of a folder", "tars", "parquet", "pictures"])
def test_datasets_of_all_layouts_have_the_same_numbers(
    tmp_path: Path, expected: dict[str, float], layout: str
) -> None:
    data, root = dataset_of(tmp_path / "data", layout), tmp_path / "run"
    if layout == "parquet":  # whose samples are called by file and row
        write_record(root, [RGB])
        for key in KEYS:
            put(root, RGB, Key("00000/00000", key.name), drawn(50, key))
        expected = {f"00000/{key}": number for key, number in expected.items()}
    else:
        run_of(root, FILES)
    assert rows_of(root, data, tmp_path / "one") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("form", [FILES, "shards"])
def test_folders_of_an_object_store_have_the_same_numbers(
    tmp_path: Path, expected: dict[str, float], form: Format, store: Any
) -> None:
    root, data = run_of(tmp_path / "run", form), Path(dataset_of(tmp_path / "data", "folder"))
    for name, folder in (("run", root), ("data", data)):
        for path in folder.rglob("*"):
            if path.is_file():
                store.pipe_file(f"/b/{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    assert rows_of("memory://b/run", "memory://b/data", tmp_path / "one") == pytest.approx(expected)
    assert rows_of(root, "memory://b/data", tmp_path / "two") == pytest.approx(expected)


@pytest.mark.parametrize("form", [form for form in FORMATS if form != FILES])
def test_a_shard_that_is_cut_off_or_gone_is_named_and_left_out(tmp_path: Path, form: Format) -> None:
    root, data = run_of(tmp_path / "run", form), dataset_of(tmp_path / "data", "folder")
    [path] = (root / "rgb" if form == "shards" else root).glob("00000.[tp]a*")
    path.write_bytes(path.read_bytes()[:-2000])
    for one, other in ((root, data), (data, root)):
        found = fourm.evaluate(one, other, measures="psnr", out=tmp_path / "out")
        assert found is not None
        assert [key for key, _ in found.rows] == [key.text for key in KEYS if int(key.name) > 2]
        problem = found.problems[0]
        assert (problem.key, problem.modality) == ("00000/*", "rgb")
        assert f"{path}: has " in problem.reason
    path.unlink()
    found = fourm.evaluate(root, data, measures="psnr", out=tmp_path / "out")
    assert found is not None
    assert [(one.key, "has 0 bytes" in one.reason) for one in found.problems] == [("00000/*", True)]


def test_results_of_an_unknown_modality_are_named(tmp_path: Path) -> None:
    write_record(tmp_path / "run", [RGB, replace(RGB, modality="tok_new@64", folder="new")])
    assert list_pairs(tmp_path / "run", None)[0].here.unknown == ["new"]


def test_a_shard_whose_names_of_samples_are_gone_is_left_out(tmp_path: Path) -> None:
    root = run_of(tmp_path / "run", "shards")
    (root / IDS.folder / "00000.tar").unlink()
    found = fourm.evaluate(root, root, measures="psnr", out=tmp_path / "out")
    assert found is not None
    assert {(one.key, one.modality) for one in found.problems} == {("00000/*", "rgb")}
    assert found.rows


@pytest.mark.parametrize("form", ["files", "shards"])
def test_files_that_may_not_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Format
) -> None:
    root, data = run_of(tmp_path / "run", form), dataset_of(tmp_path / "data", "folder")

    def refuse(*_: object) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("fourm.evaluation.pairs.is_there" if form == "files" else "os.access", refuse)
    found = fourm.evaluate(root, data, measures="psnr", out=tmp_path / "out")
    assert found is not None
    assert not found.rows
    assert "cannot be read (Permission denied)" in found.problems[0].reason
