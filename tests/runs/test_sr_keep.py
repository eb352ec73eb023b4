"""`fourm sr RUN --keep --data`: parts of the run's own pictures stay, as in one go with `generate`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fourm.checks.verify import verify_folder
from fourm.codecs.files import read_array
from fourm.data.shards import FORMATS
from fourm.output.markers import read_markers
from fourm.output.samples import load_run
from tests.folders import noise, tree

Run = Callable[..., tuple[int, str, str]]
CAPTION = "a small red circle left of a large blue square on a white background"
FREE = ("created", "identity", "sha256", "command")  # of a record: differs from run to run
QUICK = ("--steps", "2", "-q")
SR_QUICK = ("--sr-targets", "rgb", "--sr-steps", "2")


def save(path: Path, pixels: object, **more: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path, **more)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three pictures that are no squares, a mask and a caption for each."""
    root = tmp_path / "data"
    for number in range(3):
        name, side = f"{number:06d}", np.arange(200) < 60 + 40 * number
        save(root / "rgb/00000" / f"{name}.png", noise(number, 160, 200, 3))
        save(root / "mask_keep/00000" / f"{name}.png", np.tile(np.where(side, 255, 0), (160, 1)))
        text = root / "caption/00000" / f"{name}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(CAPTION)
    return root


def record(out: Path, file: str) -> dict[str, Any]:
    facts = json.loads((out / file).read_text())
    return {name: fact for name, fact in facts.items() if name not in FREE}


@pytest.mark.parametrize(
    ("base", "where"),
    [
        (("--cond", "caption", "--keep", "rgb:mask", "--targets", "rgb", "--num-variations", "2"), "mask"),
        (("--cond", "caption", "--targets", "rgb"), "box:0.3,0.0,1.0,0.7"),
        (("--cond", "caption", "--keep", "rgb:0.5", "--targets", "rgb", "--restore", "--fit", "pad"), "0.5"),
    ],
)
def test_kept_later_or_in_one_go_the_folder_is_the_same(
    run: Run, data: Path, tmp_path: Path, base: tuple[str, ...], where: str
) -> None:
    words = ("generate", "--data", data, *base, *QUICK)
    finer = (*SR_QUICK, "--sr-keep", f"rgb:{where}")
    code, _, err = run(*words, *finer, "--out", "once")
    assert (code, err) == (0, "")
    assert run(*words, "--out", "out")[0] == 0
    later = ("sr", "out", "--targets", "rgb", "--keep", f"rgb:{where}", "--data", data, *QUICK)
    code, _, err = run(*later)
    assert (code, err) == (0, "")
    once, out = tmp_path / "once", tmp_path / "out"
    whole = tree(once)
    assert tree(out) == whole
    assert all(record(out, file) == record(once, file) for file in ("run.json", "run.sr.json"))
    assert verify_folder(out).ok
    assert record(out, "run.sr.json")["schedule"]["kept"] == [
        {"target": "tok_rgb@128", "where": where, "tokenised": True}
    ]
    for path in out.glob("rgb@128*/00000/000001*"):
        path.unlink()
    code, _, err = run(*later)
    assert (code, "holds super-resolution already" in err) == (2, True)
    assert run(*later, "--resume")[0] == 0
    assert tree(out) == whole
    assert run(*words, *finer, "--out", "out", "--resume")[0] == 0
    code, _, err = run("generate", "--replay", "out/run.sr.json", "--out", "again", "-q")
    assert (code, err) == (0, "")
    again = tree(tmp_path / "again")
    assert all(again[name] == content for name, content in whole.items() if name.startswith("tok_rgb@128"))


def test_a_picture_is_turned_as_its_run_has_turned_it_and_serves_all_samples(
    run: Run, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: upright it is 90 wide and 160 high
    save(tmp_path / "photos/cat.png", noise(7, 90, 160, 3), exif=exif)
    save(tmp_path / "mask.png", np.tile(np.where(np.arange(90) < 45, 255, 0), (160, 1)))
    for turn, mask in (("--upright", "mask.png"), ("--no-upright", "box:0,0,0.5,1")):
        words = ("--cond", "rgb=photos/cat.png", "--prompt", CAPTION, "--prompt", "a red circle", turn)
        words = ("generate", *words, "--keep", f"rgb:{mask}", "--targets", "rgb", *QUICK)
        code, _, err = run(*words, *SR_QUICK, "--sr-keep", f"rgb:{mask}", "--out", f"once{turn}")
        assert (code, err) == (0, "")
        assert run(*words, "--out", f"out{turn}")[0] == 0
        later = ("sr", f"out{turn}", "--targets", "rgb", "--keep", f"rgb:{mask}", *QUICK)
        code, _, err = run(*later, "--data", "photos/cat.png")
        assert (code, err) == (0, "")
        assert tree(tmp_path / f"out{turn}") == tree(tmp_path / f"once{turn}")
        code, _, err = run(*later, "--data", "photos", "--out", "elsewhere")
        assert code == 2
        assert "--data photos: 00000/000001 lacks a picture there, as all samples of out" in err


def test_results_in_a_folder_of_their_own_are_those_beside_the_run(
    run: Run, data: Path, tmp_path: Path
) -> None:
    """Restored ones, too, which the run's own are not."""
    words = ("--data", data, "--cond", "caption", "--keep", "rgb:mask", "--targets", "rgb", *QUICK)
    assert run("generate", *words, "--out", "out")[0] == 0
    later = ("sr", "out", "--targets", "rgb", "--keep", "rgb:mask", "--data", data, *QUICK)
    assert run(*later)[0] == 0
    assert run(*later, "--out", "fine", "--restore")[0] == 0
    beside, fine = tree(tmp_path / "out"), tree(tmp_path / "fine")
    for name in (f"tok_rgb@128/00000/00000{number}.npy" for number in range(3)):
        assert beside[name] == fine[name]
    made = np.asarray(Image.open(tmp_path / "fine/rgb@128/00000/000001.png"))
    assert made.shape == (160, 200, 4)
    assert np.array_equal(made[:, 20:90, :3], noise(1, 160, 200, 3)[:, 20:90])
    assert verify_folder(tmp_path / "fine").ok


def test_what_does_not_belong_to_the_run_is_one_sentence(run: Run, data: Path, tmp_path: Path) -> None:
    words = ("--data", data, "--cond", "caption", "--keep", "rgb:mask", "--targets", "rgb", *QUICK)
    assert run("generate", *words, "--out", "out")[0] == 0
    before = tree(tmp_path / "out")
    later = ("sr", "out", "--targets", "rgb", *QUICK)
    other = tmp_path / "other"
    save(other / "rgb/00000/000001.png", noise(1, 200, 160, 3))
    save(other / "rgb/00000/000002.png", noise(2, 160, 200, 3))
    for more, sentence in (
        (("--keep", "rgb:0.5"), "--data SOURCE names it: the dataset, folder or file that the run has read"),
        (("--data", data), "no part of them is kept; leave it out"),
        (("--keep", "rgb:0.5", "--data", "nowhere/"), "nowhere: there is no such file"),
        (("--keep", "rgb:mask", "--data", other), "no folder 'mask_keep'"),
    ):
        code, said, err = run(*later, *more)
        assert (code, said, err.count("\n")) == (2, "", 1), err
        assert sentence in err
    assert tree(tmp_path / "out") == before
    code, _, err = run("sr", data, "--keep", "rgb:0.5", "--data", other)
    assert (code, "holds the pictures, as no run made it; leave it out" in err) == (2, True), err
    code, _, err = run(*later[:-1], "--keep", "rgb:0.5", "--data", other)
    assert code == 3
    assert "00000/000000 lacks a picture there" in err
    assert "000001.png: is not the picture that the run has read, or another part of it" in err
    assert [path.name for path in (tmp_path / "out/rgb@128/00000").iterdir()] == ["000002.png"]


def test_conditions_of_a_run_are_not_cropped_as_its_pictures_are(
    run: Run, data: Path, tmp_path: Path
) -> None:
    """What a run has written is of the square already; what is kept is cut out of the whole."""
    for number in range(3):
        path = data / "depth/00000" / f"{number:06d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.tile(np.linspace(0.1, 0.9, 200, dtype=np.float32), (160, 1)))
    assert run("generate", "--data", data, "--cond", "rgb", "--targets", "det", "-q", "--out", "out")[0] == 0
    words = ("sr", "out", "--model", "demo", "--cond", "rgb-det", "--targets", "depth", *QUICK)
    code, _, err = run(*words, "--keep", "depth:box:0,0,0.5,1", "--data", data, "--out", "fine")
    assert (code, err) == (0, "")
    before, after = tree(tmp_path / "out"), tree(tmp_path / "fine")
    given = [name for name in before if name.startswith(("det/", "frame/"))]
    assert len(given) == 6
    assert all(after[name] == before[name] for name in given)
    for picture in (tmp_path / "out/rgb/00000").iterdir():
        used = np.asarray(Image.open(tmp_path / "fine/rgb/00000" / picture.name))
        assert np.array_equal(used, np.asarray(Image.open(picture)))


def in_shards(out: Path) -> dict[str, bytes]:
    """All files of results; markers say when they were made."""
    return {name: data for name, data in tree(out).items() if not name.startswith("done")}


@pytest.mark.parametrize("form", FORMATS[1:])
def test_of_a_run_in_shards_parts_are_kept_as_in_one_go(
    run: Run, data: Path, tmp_path: Path, form: str
) -> None:
    words = ("generate", "--data", data, "--cond", "caption", "--targets", "rgb", *QUICK)
    words = (*words, "--format", form, "--shard-size", "2")
    assert run(*words, *SR_QUICK, "--sr-keep", "rgb:mask", "--out", "once")[0] == 0
    assert run(*words, "--out", "out")[0] == 0
    later = ("sr", "out", "--targets", "rgb", "--keep", "rgb:mask", *QUICK)
    code, _, err = run(*later)
    assert (code, "--data SOURCE names it: the dataset, folder or file that the run has read" in err) == (
        2,
        True,
    )
    code, _, err = run(*later, "--data", data)
    assert (code, err) == (0, "")
    whole = in_shards(tmp_path / "once")
    assert in_shards(tmp_path / "out") == whole
    assert run("generate", "--replay", "out/run.sr.json", "--out", "again", "-q")[0] == 0
    made = load_run(tmp_path / "out", "run.sr.json")
    for sample in made.samples():
        again = read_array(tmp_path / f"again/tok_rgb@128/{sample.key.path}.npy")
        there = read_array(made.root / sample.files["tok_rgb@128"][0])
        assert np.array_equal(again.ravel(), there.ravel())
    for name in ("rgb/00000/000000.png", "mask_keep/00000/000000.png"):
        (data / name).unlink()  # the pictures are in other ranges then
    code, _, err = run(*later, "--data", data, "--out", "fine")
    assert (code, err) == (0, "")
    markers = list(read_markers(tmp_path / "fine"))
    assert [marker.incomplete for marker in markers] == [("00000/000000 lacks a picture there",), ()]
    assert [marker.counts.saved for marker in markers] == [1, 1]


def test_a_single_picture_serves_all_samples_of_a_run_in_shards(run: Run, data: Path, tmp_path: Path) -> None:
    picture = data / "rgb/00000/000001.png"
    words = ("generate", "--cond", f"rgb={picture}", "--prompt", CAPTION, "--prompt", "a red circle")
    words = (*words, "--keep", "rgb:box:0,0,0.5,1", "--targets", "rgb", *QUICK)
    words = (*words, "--format", "shards", "--shard-size", "1")
    later = ("sr", "out", "--targets", "rgb", "--keep", "rgb:box:0,0,0.5,1", "--data", picture, *QUICK)
    assert run(*words, *SR_QUICK, "--sr-keep", "rgb:box:0,0,0.5,1", "--out", "once")[0] == 0
    assert run(*words, "--out", "out")[0] == 0
    code, _, err = run(*later)
    assert (code, err) == (0, "")
    assert in_shards(tmp_path / "out") == in_shards(tmp_path / "once")
