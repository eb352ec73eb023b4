"""`fourm convert sam-instances`: a dataset of pickled files becomes one of JSON."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourm.errors import SampleError
from fourm.inputs import convert
from fourm.inputs.convert import read_instances
from fourm.modalities.figures import SAM_INSTANCES, instances_from_json
from tests.inputs.test_convert_pickled import HEADER, Runs
from tests.modalities.test_instances import crop

Run = Callable[..., tuple[int, str, str]]
CONTOUR = np.array([[[10, 10]], [[100, 10]], [[100, 90]]], dtype=np.int32)
GOOD = {
    "points": [[CONTOUR]],
    "token_ids": np.arange(16).reshape(1, 16),
    "bbox": np.array([[10.0, 10, 90, 100]]),
}


def save(path: Path, *crops: Any) -> Path:
    array = np.empty(len(crops), dtype=object)
    array[:] = crops
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array, allow_pickle=True)
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for name in ("a", "b"):
        save(root / "sam_instance" / "x" / f"{name}.npy", GOOD, GOOD)
    return root


def test_every_file_becomes_json_that_says_the_same(dataset: Path, run: Run, tmp_path: Path) -> None:
    code, out, err = run("convert", "sam-instances", dataset, "--out", "made")
    assert (code, out) == (0, "made\n")
    assert "2 converted, 0 were there, 0 failed" in err
    made = tmp_path / "made" / "sam_instance" / "x"
    assert sorted(p.name for p in made.iterdir()) == ["a.json", "b.json"]
    data = json.loads((made / "a.json").read_text())
    wanted = {
        "points": [[[10, 10], [100, 10], [100, 90]]],
        "token_ids": [list(range(16))],
        "bbox": [[10, 10, 90, 100]],
    }
    assert data == [wanted, wanted]
    assert not (tmp_path / "made" / ".partial").exists()


def test_the_recorded_data_set_is_converted(golden: Path, run: Run) -> None:
    code, out, _ = run("convert", "sam-instances", golden / "data" / "mini_dataset", "--out", "made")
    assert (code, out) == (0, "made\n")
    data = json.loads(Path("made/sam_instance/x/s2.json").read_text())
    assert len(data) == 3
    assert [SAM_INSTANCES.to_text(instances_from_json(data, crop(n)))[:60] for n in range(3)] == [
        "point v0=112 v1=112 none point v0=112 v1=182 none point v0=173"[:60]
    ] * 3  # fmt: skip
    assert data[2]["points"][0][0] == [12, 10]


def test_one_bad_file_does_not_stop_the_others(dataset: Path, run: Run) -> None:
    folder, marker = dataset / "sam_instance" / "x", Path("was-here").resolve()
    (folder / "c.npy").write_bytes((folder / "a.npy").read_bytes()[:-200])
    save(folder / "d.npy", Runs(os.system, f"touch {marker}"))
    np.save(folder / "e.npy", np.zeros(3))
    (folder / "f.json").write_text("[]")
    (folder / "g.npy").write_bytes(b"")
    code, out, err = run("convert", "sam-instances", dataset, "--out", "made")
    assert (code, out) == (3, "made\n")
    for name in "cdefg":
        (line,) = [line for line in err.splitlines() if f"{name}.npy: " in line or f"{name}.json: " in line]
        assert "Traceback" not in line
    assert "names 'posix.system'" in err
    assert "it was not run" in err
    assert "2 converted, 0 were there, 5 failed" in err
    assert not marker.exists()
    assert sorted(p.name for p in Path("made/sam_instance/x").iterdir()) == ["a.json", "b.json"]


def test_converting_again_goes_on_where_it_stopped(dataset: Path, run: Run) -> None:
    run("convert", "sam-instances", dataset, "--out", "made")
    first, second = Path("made/sam_instance/x/a.json"), Path("made/sam_instance/x/b.json")
    first.write_text("mine")
    second.unlink()
    _, _, err = run("convert", "sam-instances", dataset, "--out", "made")
    assert "1 converted, 1 were there" in err
    assert first.read_text() == "mine"
    code, _, err = run("convert", "sam-instances", dataset, "--out", "made", "--overwrite", "-q")
    assert (code, err) == (0, "")
    assert first.read_text() == second.read_text()


@pytest.mark.parametrize("size", [0, 5])
def test_a_result_without_an_end_is_converted_again(dataset: Path, run: Run, size: int) -> None:
    run("convert", "sam-instances", dataset, "--out", "made")
    path = Path("made/sam_instance/x/a.json")
    before = path.read_bytes()
    path.write_bytes(before[:size])
    _, _, err = run("convert", "sam-instances", dataset, "--out", "made")
    assert "1 converted, 1 were there" in err
    assert path.read_bytes() == before


@pytest.mark.parametrize("make", ["nothing", "file", "empty"])
def test_what_is_no_dataset_is_refused(tmp_path: Path, run: Run, make: str) -> None:
    source = tmp_path / "data"
    if make == "file":
        source.write_text("x")
    if make == "empty":
        (source / "sam_instance").mkdir(parents=True)
    code, out, err = run("convert", "sam-instances", source, "--out", "made")
    assert (code, out) == (2, "")
    assert str(source) in err
    assert not Path("made").exists()


def test_the_dataset_itself_is_no_place_for_results(dataset: Path, run: Run) -> None:
    code, _, err = run("convert", "sam-instances", dataset, "--out", dataset / "sam_instance" / "..")
    assert code == 2
    assert "is the dataset itself" in err

    code, out, err = run("convert", "sam-instances", str(dataset), "--out", str(dataset / "sam_instance/new"))
    assert (code, out) == (2, "")
    assert "which this command reads, so results would be taken for samples" in err
    assert not (dataset / "sam_instance/new").exists()


def test_torch_and_numpy_are_not_needed(dataset: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from fourm.inputs.convert import convert_dataset; "
        f"made = list(convert_dataset(Path({str(dataset)!r}), Path({str(tmp_path / 'made')!r}))); "
        "sys.exit(len(made) != 2 or bool({'torch', 'numpy'} & sys.modules.keys()))"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0


BAD: list[tuple[Any, str]] = [
    ([1], "crop 0 is no object with 'points', 'token_ids' and 'bbox'"),
    ([{}], "crop 0 is no object"),
    ([GOOD, GOOD | {"bbox": np.zeros((2, 4))}], "crop 1: token_ids has 1 entries, and bbox has 2"),
    ([GOOD | {"token_ids": np.full((1, 16), 1024)}], "is 1024, expected a whole number, 0 to 1023"),
    ([GOOD | {"token_ids": np.zeros((1, 16))}], "is 0.0, expected a whole number"),
    ([GOOD | {"bbox": np.array([[1, 2, 3, np.nan]])}], "is nan, expected a finite number"),
    ([GOOD | {"points": 5}], "something else stands where a list or an array belongs"),
    ([GOOD | {"points": [[5]]}], "a contour is no list of points"),
    ([GOOD | {"points": [["abc"]]}], "something else stands where"),
    ([GOOD | {"points": [[[[[[[1]]]]]]]}], "nested too deeply"),
    ([GOOD | {"points": [[np.zeros((3, 3))]]}], "expected a list of 2"),
    ([], "where a list of crops belongs"),
]


@pytest.mark.parametrize(("crops", "message"), BAD)
def test_files_that_hold_something_else_are_named(tmp_path: Path, crops: list[Any], message: str) -> None:
    with pytest.raises(SampleError, match=rf"x\.npy: .*{message}"):
        read_instances(save(tmp_path / "x.npy", *crops))


def test_instances_come_in_every_form_that_the_reference_knows(tmp_path: Path) -> None:
    flat = GOOD | {"points": [(CONTOUR[:, 0], CONTOUR)], "bbox": [np.array([10, 10, 90, 100])]}
    nobody = {"points": [], "token_ids": np.zeros((0, 16)), "bbox": np.zeros((0, 4))}
    crops: list[Any] = read_instances(save(tmp_path / "x.npy", GOOD, flat, nobody, GOOD | {"points": [[]]}))
    assert crops[0] == crops[1]
    assert crops[2] == {"points": [], "token_ids": [], "bbox": []}
    assert crops[3]["points"] == [[]]


def test_a_list_that_holds_itself_is_refused(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(SampleError, match="nested too deeply"):
        read_instances(save(tmp_path / "x.npy", GOOD | {"points": [[loop]]}))


def test_one_array_in_many_places_cannot_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "MAX_ENTRIES", 10_000)
    contour = np.zeros((1000, 2), dtype=np.int32)
    with pytest.raises(SampleError, match="comes to more than 10,000 entries"):
        read_instances(save(tmp_path / "x.npy", GOOD | {"points": [[contour]] * 20}))


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        file.write(HEADER + pickle.dumps([GOOD]))
        file.truncate(1 << 40)
    with pytest.raises(SampleError, match=r"x\.npy: .*more than 16 MiB"):
        read_instances(path)


def test_a_result_too_large_to_be_read_again_is_refused(
    dataset: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(dataset / "sam_instance" / "x" / "b.npy", *[GOOD] * 60)
    monkeypatch.setattr(convert, "MAX_BYTES", 5000)
    shutil.copy(dataset / "sam_instance" / "x" / "a.npy", dataset / "sam_instance" / "x" / "c.npy")
    code, _, err = run("convert", "sam-instances", dataset, "--out", "made")
    assert code == 3
    assert "b.npy: comes to more than 0 MiB of JSON" in err
    assert "2 converted" in err


def test_a_file_where_a_folder_is_due_is_refused(dataset: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "sam_instance").symlink_to(tmp_path)
    for name in ("file", "made"):
        code, out, err = run("convert", "sam-instances", dataset, "--out", name)
        assert (code, out) == (2, "")
        assert "not a folder" in err


def test_what_cannot_be_written_leaves_no_unfinished_file(dataset: Path, run: Run, tmp_path: Path) -> None:
    taken = tmp_path / "made/sam_instance/x/a.json"
    taken.mkdir(parents=True)
    code, _, err = run("convert", "sam-instances", dataset, "--out", "made")
    assert code == 1
    assert "cannot write made/sam_instance/x/a.json" in err
    assert not (tmp_path / "made/.partial").exists()
