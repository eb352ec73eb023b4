"""Whole pictures through the command line: `--fit`, `--restore`, and folders of such results as input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import fourm
from fourm.checks.verify import verify_folder
from fourm.codecs.files import read_frame, write_crops
from fourm.codecs.maps import FORMS, read_distance, restore_map
from fourm.data.layout import Crop, Frame, centre_crop, pad_crop
from tests.folders import tree
from tests.pictures import PHOTOS, make_photos

Run = Callable[..., tuple[int, str, str]]
SIZES = {"wide": (60, 96), "tall": (90, 40), "square": (64, 64)}  # height, width
MIRRORED = Crop(SIZES["wide"], 4, 30, 50, 40, mirrored=True)
# Conditions and targets of all kinds; few steps, as what is decoded does not matter here.
MAPS = (
    "--cond",
    "rgb,depth",
    "--targets",
    "det,tok_semseg,tok_normal,tok_canny_edge,tok_clip",
    "--device",
    "cpu",
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and depth of several shapes."""
    root, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, size in SIZES.items():
        for folder, levels in (("rgb", (draw.integers(0, 256, (*size, 3), dtype=np.uint8))),
                               ("depth", draw.integers(0, 65536, size, dtype=np.uint16))):  # fmt: skip
            (root / folder / "a").mkdir(parents=True, exist_ok=True)
            Image.fromarray(levels).save(root / folder / "a" / f"{name}.png")
    return root


def crop_of(fit: str, name: str) -> Crop:
    return (pad_crop if fit == "pad" else centre_crop)(*SIZES[name])


def pixels(path: Path) -> NDArray[Any]:
    return np.load(path) if path.suffix == ".npy" else np.asarray(Image.open(path))


def ids(root: Path) -> dict[str, bytes]:
    """All token files, by path."""
    return {name: data for name, data in tree(root).items() if name.startswith("tok_")}


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_restored_results_are_those_of_the_square_in_the_frame_of_the_picture(
    run: Run, photos: Path, fit: str
) -> None:
    for out, more in (("square", ()), ("whole", ("--restore",))):
        code, _, err = run("generate", "--data", photos, *MAPS, "--fit", fit, *more, "--out", out)
        assert code == 0, err
    assert ids(Path("square")) == ids(Path("whole"))
    for name, size in SIZES.items():
        crop, file = crop_of(fit, name), f"a/{name}"
        left, top, right, bottom = crop.shown
        known = np.zeros(size, dtype=np.bool_)
        known[top:bottom, left:right] = True
        for folder in ("semseg", "normal", "canny_edge"):
            found = pixels(Path("whole", folder, f"{file}.png"))
            square = pixels(Path("square", folder, f"{file}.png"))
            assert found.shape[:2] == size
            assert square.shape[:2] == (64, 64)
            assert np.array_equal(found, restore_map(square, crop, FORMS[f"tok_{folder}"]))
            if folder != "semseg" and not known.all():
                assert np.array_equal(found[..., -1] == 255, known)
        assert (pixels(Path("whole/semseg", f"{file}.png"))[~known] == 255).all()
        assert np.array_equal(
            pixels(Path("whole/clip", f"{file}.npy")), pixels(Path("square/clip", f"{file}.npy"))
        )
        # Conditions are what they were read from, the parts that nobody looked at included.
        assert np.array_equal(
            pixels(Path("whole/rgb", f"{file}.png")), pixels(photos / "rgb" / f"{file}.png")
        )
        assert np.array_equal(
            pixels(Path("whole/depth", f"{file}.npy")), read_distance(photos / "depth" / f"{file}.png")
        )
        for out, restored in (("square", False), ("whole", True)):
            assert read_frame(Path(out, "frame", f"{file}.json")) == Frame(crop, fit, restored)
            assert verify_folder(Path(out)).ok


@pytest.mark.parametrize("fit", ["crop", "pad", "recorded"])
def test_a_restored_folder_is_read_as_its_pictures_were(
    run: Run, photos: Path, tmp_path: Path, fit: str
) -> None:
    """By generate, tokenize and super-resolution, also where a crop was mirrored."""
    data = tmp_path / "data"
    for name in ("rgb", "depth"):
        (data / name / "a").mkdir(parents=True)
        for file in (photos / name / "a").iterdir():
            (data / name / "a" / file.name).symlink_to(file)
    if fit == "recorded":
        (data / "crop_settings/a").mkdir(parents=True)
        write_crops([MIRRORED], data / "crop_settings/a/wide.npy")
    fits = ("--fit", fit) if fit != "recorded" else ()
    code, _, err = run("generate", "--data", data, *MAPS, *fits, "--restore", "--out", "first")
    assert code == 0, err
    chain = ("--cond", "rgb,depth,det", "--targets", "tok_semseg", "--device", "cpu")
    for folder, more in (("first", ("--restore",)), ("second", ())):
        code, _, err = run(
            "generate", "--data", folder, *chain, *more, "--out", {"first": "second"}.get(folder, "third")
        )
        assert code == 0, err
    assert ids(Path("second")) == ids(Path("third"))  # once more from what was restored
    assert Path("third/frame/a/wide.json").read_text() == Path("first/frame/a/wide.json").read_text().replace(
        '"restored": true', '"restored": false'
    )
    code, _, err = run("tokenize", data, "--modalities", "rgb-depth", *fits, "--out", "tokens")
    assert code == 0, err
    if fit == "pad":
        code, _, err = run("tokenize", data, "--modalities", "rgb-depth", "--out", "tokens")
        assert code == 2
        assert "fit is pad there and crop here" in err
    code, _, err = run("tokenize", "first", "--modalities", "rgb-depth", "--out", "again")
    assert code == 0, err
    found, wanted = ids(Path("again")), ids(Path("tokens"))
    assert {n: d for n, d in found.items() if "depth" in n and n.endswith("npy")} == {
        name: data for name, data in wanted.items() if "depth" in name and name.endswith("npy")
    }
    assert found.keys() == wanted.keys()
    for name in SIZES:
        assert found[f"tok_rgb@64/a/{name}.npy"] == wanted[f"tok_rgb@64/a/{name}.npy"]
    assert (
        np.load("first/tok_depth@64/a/wide.npy").tolist() == np.load("again/tok_depth@64/a/wide.npy").tolist()
    )


def test_batches_shards_and_an_interruption_change_nothing_of_restored_results(
    run: Run, photos: Path, tmp_path: Path
) -> None:
    words = ("generate", "--data", photos, *MAPS, "--fit", "pad", "--restore", "--num-variations", "2")
    assert run(*words, "--batch-size", "1", "--out", "one")[0] == 0
    for shard in ("1/2", "0/2"):
        assert run(*words, "--shard", shard, "--batch-size", "3", "--out", "shards")[0] == 0
    assert tree(tmp_path / "shards") == tree(tmp_path / "one")
    (tmp_path / "one/semseg/a/tall-v1.png").unlink()
    (tmp_path / "one/frame/a/tall.json").unlink()
    assert not verify_folder(tmp_path / "one").ok
    assert run(*words, "--out", "one", "--resume")[0] == 0
    assert tree(tmp_path / "shards") == tree(tmp_path / "one")
    assert verify_folder(tmp_path / "one").ok
    for left_out, sentence in (
        (["--fit", "pad"], 'fit is "pad" there and "crop" here'),
        (["--restore"], "restore is true there and false here"),
    ):
        others = [word for word in words if word not in left_out]
        code, _, err = run(*others, "--out", "one", "--resume")
        assert code == 2
        assert sentence in err
    assert run(*words, "--out", "one", "--overwrite")[0] == 0
    assert tree(tmp_path / "shards") == tree(tmp_path / "one")


def test_super_resolution_and_a_replay_keep_the_frame(run: Run, photos: Path, tmp_path: Path) -> None:
    words = ("generate", "--data", photos, "--cond", "rgb", "--targets", "caption,tok_clip,tok_rgb",
             "--steps", "31,4,4", "--device", "cpu", "--fit", "pad", "--restore")  # fmt: skip
    code, _, err = run(*words, "--out", "out", "--sr-targets", "tok_rgb", "--sr-steps", "2")
    assert code == 0, err
    (tmp_path / "square").mkdir()
    assert run(*(word for word in words if word != "--restore"), "--out", "plain")[0] == 0
    assert run("sr", "out", "--targets", "tok_rgb", "--steps", "2", "--out", "finer")[0] == 0
    for name, size in SIZES.items():
        fine = tmp_path / f"out/rgb@128/a/{name}.png"
        assert pixels(fine).shape == (*size, 3)
        assert pixels(tmp_path / f"out/rgb_decoded/a/{name}.png").shape == (*size, 3)
        assert np.array_equal(pixels(tmp_path / f"finer/rgb@128/a/{name}.png"), pixels(fine))
        assert (tmp_path / f"finer/frame/a/{name}.json").read_bytes() == (
            tmp_path / f"out/frame/a/{name}.json"
        ).read_bytes()
    assert verify_folder(tmp_path / "out").ok
    assert verify_folder(tmp_path / "finer").ok
    code, _, err = run("generate", "--replay", "out/run.sr.json", "--out", "again")
    assert code == 0, err
    assert run("generate", "--replay", "out/rgb@128/a/tall.png", "--out", "one")[0] == 0
    for folder in ("rgb@128", "frame", "caption"):
        wanted = {name: data for name, data in tree(tmp_path / "out").items() if name.startswith(folder)}
        found = {name: data for name, data in tree(tmp_path / "again").items() if name.startswith(folder)}
        assert wanted.keys() == found.keys()
        alike = {
            n
            for n in wanted
            if wanted[n] == found[n] or np.array_equal(*map(pixels, (Path("out", n), Path("again", n))))
        }
        assert alike == wanted.keys()
        assert [n for n in tree(tmp_path / "one") if n.startswith(folder)] == [
            n for n in wanted if "tall" in n
        ]
    code, _, err = run("sr", "plain", "--targets", "tok_rgb", "--steps", "2", "--restore")
    assert code == 2
    assert "--out puts restored ones elsewhere" in err
    assert run("sr", "plain", "--targets", "tok_rgb", "--steps", "2", "--restore", "--out", "late")[0] == 0
    assert pixels(tmp_path / "late/rgb@128/a/wide.png").shape == (*SIZES["wide"], 3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("a red circle", "--restore"), "--restore: no condition is a picture or map"),
        (("a red circle", "--fit", "pad"), "--fit pad: no condition is a picture or map"),
        (("--data", "PHOTOS", "--cond", "rgb", "--restore", "--no-decode"), "leave out --no-decode"),
        (
            ("--data", "PHOTOS", "--cond", "rgb", "--fit", "pat"),
            "'pat' is not one of crop, pad; did you mean 'pad'",
        ),
    ],
)
def test_what_cannot_be_restored_is_refused_before_anything_is_made(
    run: Run, photos: Path, tmp_path: Path, words: tuple[str, ...], sentence: str
) -> None:
    code, _, err = run(
        "generate", *(str(photos) if word == "PHOTOS" else word for word in words), "--out", "out"
    )
    assert code == 2
    assert sentence in err
    assert not (tmp_path / "out").exists()


def test_a_record_of_a_frame_that_is_damaged_fails_its_sample(run: Run, photos: Path, tmp_path: Path) -> None:
    words = ("--data", photos, "--cond", "rgb", "--targets", "tok_semseg", "--restore", "--device", "cpu")
    assert run("generate", *words, "--out", "out")[0] == 0
    good = json.loads((tmp_path / "out/frame/a/wide.json").read_text())
    crop = {"whole": [10**6, 10**6], "top": 0, "left": 0, "height": 5, "width": 5}
    bad = [
        *({"crop": good["crop"] | wrong} for wrong in ({"height": 0}, {"left": 96}, {"top": "0"})),
        {"crop": crop}, {"fit": "pat"}, {"restored": 1},
    ]  # fmt: skip
    words = ("generate", "--data", "out", "--cond", "tok_semseg", "--targets", "tok_depth", "--device", "cpu")
    for number, text in enumerate(["[]", "{}", "?", *(json.dumps(good | wrong) for wrong in bad)]):
        (tmp_path / "out/frame/a/wide.json").write_text(text)
        code, _, err = run(*words, "--out", f"next{number}")
        assert code == 3, text
        assert "out/frame/a/wide.json" in err
        assert (tmp_path / f"next{number}/frame/a/tall.json").is_file()


def test_depth_that_is_not_known_where_it_is_read_fails_its_sample(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data/depth/a").mkdir(parents=True)
    depth = np.full((60, 80), np.nan, dtype=np.float32)
    depth[:, 10:70] = 0.25
    np.save(tmp_path / "data/depth/a/known.npy", depth)
    depth[30, 40] = np.nan
    np.save(tmp_path / "data/depth/a/hole.npy", depth)
    words = ("--data", "data", "--cond", "depth", "--targets", "tok_semseg", "--device", "cpu")
    code, _, err = run("generate", *words, "--out", "out")
    assert code == 3
    assert "depth/a/hole.npy: tok_depth@64: what is read of it holds NaN" in err
    assert (tmp_path / "out/semseg/a/known.png").is_file()
    code, _, err = run("generate", *words, "--fit", "pad", "--out", "padded")
    assert code == 3
    assert "known.npy" in err


def test_photos_of_all_kinds_come_back_in_the_size_that_people_see(run: Run, tmp_path: Path) -> None:
    """By EXIF tags, portrait, panorama, one pixel, CMYK, 16 bits, palettes, alpha, animated, progressive."""
    made = make_photos(tmp_path / "photos")
    words = ("--targets", "depth-semseg", "--fit", "pad", "--restore", "--device", "cpu", "--out", "labels")
    assert run("generate", "photos/", *words)[0] == 3  # some cannot be read
    readable = [photo for photo in PHOTOS if photo.size != (0, 0)]
    assert len(readable) >= 40
    for photo in readable:
        name = made[photo.name].name.rpartition(".")[0]
        (depth,) = (tmp_path / "labels/depth").rglob(f"{name}.npy")
        (semseg,) = (tmp_path / "labels/semseg").rglob(f"{name}.png")
        (rgb,) = (tmp_path / "labels/rgb").rglob(f"{name}.png")
        assert pixels(depth).shape == pixels(semseg).shape == photo.size, photo.name
        assert pixels(rgb).shape == (*photo.size, 3), photo.name
        assert np.isfinite(pixels(depth)).all()
    assert len(list((tmp_path / "labels/depth").rglob("*.npy"))) == len(readable)


def test_in_memory_everything_is_as_on_the_command_line(run: Run, photos: Path, tmp_path: Path) -> None:
    model = fourm.load("demo", device="cpu")
    for fit in ("crop", "pad"):
        words = ["--cond", f"rgb={photos / 'rgb/a/wide.png'}", "--targets", "tok_rgb-det", "--fit", fit]
        words += ["--sr-targets", "tok_rgb", "--sr-steps", "2", "--restore", "--device", "cpu", "--out", fit]
        code, _, err = run("generate", *words)
        assert code == 0, err
        with Image.open(photos / "rgb/a/wide.png") as picture:
            picture.load()
        options = {"targets": "tok_rgb-det", "fit": fit, "restore": True, "sr": True, "sr_steps": 2}
        for given in (picture, np.asarray(picture), str(photos / "rgb/a/wide.png")):
            result = model(rgb=given, **options, keys=["wide"], progress=False)
            (path,) = (tmp_path / fit / "rgb@128").rglob("*.png")
            assert np.array_equal(np.asarray(result.rgb), pixels(path)), fit
        result.save(f"{fit}-saved")
        for folder in ("rgb@128", "frame", "det"):
            (mine,) = (path for path in (tmp_path / f"{fit}-saved" / folder).rglob("*") if path.is_file())
            (theirs,) = (path for path in (tmp_path / fit / folder).rglob("*") if path.is_file())
            assert mine.read_bytes() == theirs.read_bytes()
    with pytest.raises(fourm.FourMError, match="no condition is a picture"):
        model("a red circle", restore=True)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_what_is_kept_comes_back_in_the_pixels_of_the_picture(
    run: Run, photos: Path, tmp_path: Path, fit: str
) -> None:
    """Outside of a seam, and where the model saw the picture; a replay keeps the same."""
    mask = np.zeros(SIZES["wide"], dtype=np.uint8)
    mask[:, :60] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words = ["generate", photos / "rgb/a/wide.png", "a red circle", "--keep", "rgb:mask.png", "--fit", fit]
    words += ["--targets", "rgb", "--steps", "4", "--device", "cpu", "--restore", "--out", "out"]
    code, _, err = run(*words)
    assert code == 0, err
    picture, found = pixels(photos / "rgb/a/wide.png"), pixels(tmp_path / "out/rgb/wide.png")
    left = crop_of(fit, "wide").shown[0]
    assert (found[:, left:50, :3] == picture[:, left:50]).all()
    assert (found[:, 60:76, :3] != picture[:, 60:76]).any(axis=-1).mean() > 0.9
    if fit == "crop":
        assert (found[:, :left, 3] == 0).all()
    assert np.array_equal(pixels(tmp_path / "out/rgb_kept_mask/wide.png"), mask)
    assert (pixels(tmp_path / "out/rgb_kept/wide.png")[:, :60] == picture[:, :60]).all()
    assert verify_folder(tmp_path / "out").ok
    code, _, err = run("generate", "--replay", "out/run.json", "--out", "again")
    assert code == 0, err
    before, again = tree(tmp_path / "out"), tree(tmp_path / "again")
    for name in ("frame/wide.json", "tok_rgb@64/wide.npy", "rgb_kept/wide.png", "rgb_kept_mask/wide.png"):
        assert before[name] == again[name]
    assert np.array_equal(pixels(tmp_path / "again/rgb/wide.png"), found)
