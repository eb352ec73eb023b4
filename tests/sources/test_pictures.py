"""`fourm generate` of pictures: arguments, words beside them, single files, upright, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fourm.checks.verify import verify_folder
from fourm.data.layout import Key
from fourm.errors import UsageError
from fourm.hub.files import find_model
from fourm.output.samples import open_runs
from fourm.sources.reading import choose_keys, implied_conditions, read_samples
from fourm.sources.source import Source, classify_source
from tests.folders import noise, tree
from tests.pictures import CORNERS, PHOTOS, UNREAD, corners_of, exif_of, make_photos, save, stored

Run = Callable[..., tuple[int, str, str]]
DEMO = find_model("demo")
DEPTH = ("--targets", "depth", "--no-decode", "-q")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number, name in enumerate(("a.jpg", "summer/b.png", "c.png"), start=5):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save(folder / name, height=40 + number, width=60)
    return folder


def read(conditions: list[str], *paths: object, **more: Any) -> list[tuple[str, str | None, list[str]]]:
    """Key, caption and file names of each sample."""
    source = Source(paths=tuple(map(str, paths)), **more)
    samples = read_samples(source, conditions, DEMO, None, ["tok_depth@64"]).samples  # type: ignore[arg-type]
    return [(s.key.text, s.caption, sorted(path.name for path in s.files.values())) for s in samples]


def test_words_beside_pictures_are_pairs_or_serve_all(pictures: Path) -> None:
    words, both = ("a red circle", "a blue square", "a circle"), ["caption", "rgb@64"]
    names = [("a", "a.jpg"), ("c", "c.png"), ("summer/b", "b.png")]
    assert read(both, pictures, prompts=words) == [
        (key, text, [name]) for (key, name), text in zip(names, words, strict=True)
    ]
    assert read(both, pictures, prompts=words[:1]) == [(key, words[0], [name]) for key, name in names]
    with pytest.raises(UsageError, match="3 pictures for 2 prompts; give as many of both, or one prompt"):
        read(both, pictures, prompts=words[:2])
    with pytest.raises(UsageError, match=r"1 picture for 2 prompts; `cond=rgb=.*a\.jpg` gives it to each"):
        read(both, pictures / "a.jpg", prompts=words[:2])
    lines = pictures.parent / "words.txt"
    lines.write_text("a circle\n./a square.jpg\na red circle\n")  # lines are words, whatever they look like
    assert [text for _, text, _ in read(both, pictures, data=str(lines))][1] == "./a square.jpg"
    assert [one[0] for one in read(["rgb@64"], pictures, num_samples=2)] == ["a", "c"]


def test_a_single_file_serves_all_and_alone_gives_its_name(pictures: Path) -> None:
    depth = pictures / "far-away: 1.npy"
    np.save(depth, np.zeros((8, 8), np.float32))
    given = {"tok_depth@64": str(depth)}
    assert read(["tok_depth@64"], files=given) == [("far-away: 1", None, [depth.name])]
    assert [one[2] for one in read(["rgb@64", "tok_depth@64"], pictures, files=given)] == [
        ["a.jpg", depth.name], ["c.png", depth.name], ["b.png", depth.name]
    ]  # fmt: skip
    words = ("a circle", "a square")
    found = read(["caption", "tok_depth@64"], prompts=words, files=given)
    assert found == [(f"00000/00000{n}", text, [depth.name]) for n, text in enumerate(words)]


@pytest.mark.parametrize(
    ("conditions", "source", "problem"),
    [
        (["caption"], {"paths": ["a.jpg"]}, "a.jpg: pictures are given, but no condition reads them"),
        (["rgb@64"], {"paths": ["a.jpg"], "prompts": ["x"]}, "prompts are given, but no condition reads"),
        (["caption", "rgb@64"], {"paths": ["a.jpg"]}, "`cond=caption`: there are no words"),
        (["det", "rgb@64"], {"paths": ["a.jpg"]}, "`cond=det`: no file is given for it; `cond=det=FILE`"),
        (["rgb@64", "tok_depth@64"], {"paths": ["a.jpg"]}, "`cond=depth=FILE` gives one"),
        (["rgb@64"], {"paths": ["a.jpg"], "files": {"rgb@64": "c.png"}}, "rgb@64=c.png takes their place"),
        (["rgb@64"], {"files": {"rgb@64": "d.png"}}, "d.png: there is no such file"),
        (["rgb@64"], {"files": {"rgb@64": "."}}, "is a folder; a condition takes one file"),
        (["rgb@64"], {"paths": ["a.jpg"], "data": "summer"}, "given both as a.jpg and as `data=summer`"),
        (["rgb@64"], {"paths": ["a.jpg"], "data": "empty"}, "is not read together with a.jpg"),
        (["rgb@64"], {"paths": ["set", "a.jpg"]}, "set: is a dataset, which is not read together with a"),
        (["rgb@64"], {"paths": ["a.jpg"], "data": "set"}, "set: is a dataset, which is not read together"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, conditions: list[str], source: Any, problem: str
) -> None:
    monkeypatch.chdir(pictures)
    (pictures / "set/rgb").mkdir(parents=True)
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in source.items()}
    with pytest.raises(UsageError, match=problem):
        read_samples(Source(**lists), conditions, DEMO, None, ["tok_depth@64"])  # type: ignore[arg-type]


def test_a_picture_beside_a_file_that_takes_its_place_is_refused(run: Run, pictures: Path) -> None:
    code, _, err = run("generate", "--cond", f"rgb={pictures / 'a.jpg'}", pictures / "c.png")
    assert code == 2
    assert "c.png: pictures are given, but rgb@64=" in err
    assert "twice" not in err


def test_a_folder_is_a_data_set_if_it_has_a_modality_or_a_record(pictures: Path) -> None:
    for source in (Source(paths=(str(pictures),)), Source(data=str(pictures))):
        assert classify_source(source, DEMO).paths == (str(pictures),)
        assert implied_conditions(classify_source(source, DEMO)) == ("rgb",)
    for name in ("depth/x", "semseg_coco/x", "tok_rgb@64/x"):
        (pictures / name).mkdir(parents=True)
        for source in (Source(paths=(str(pictures),)), Source(data=str(pictures))):
            found = classify_source(source, DEMO)
            assert (found.paths, found.data, implied_conditions(found)) == ((), str(pictures), ())
        shutil.rmtree(pictures / name.partition("/")[0])
    (pictures / "run.json").touch()
    assert classify_source(Source(paths=(str(pictures),)), DEMO).data == str(pictures)
    both = classify_source(Source(("a circle",), paths=(str(pictures / "a.jpg"),)), DEMO)
    assert implied_conditions(both) == ("caption", "rgb")


def test_results_may_lie_among_the_pictures(
    run: Run, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    for more in ((), ("--resume",)):
        assert run("generate", "./", "--model", tiny, *DEPTH, "--out", "labels", *more)[0] == 0
    assert [s.key.text for s in open_runs(Path("labels"))[0].samples()] == ["a", "c", "summer/b"]


def test_keys_are_chosen_by_name(pictures: Path) -> None:
    samples = read_samples(Source(paths=(str(pictures),)), ["rgb@64"], DEMO, None).samples  # type: ignore[arg-type]
    assert choose_keys(samples, None) == ()
    assert choose_keys(samples, "summer/b, a,a") == ("summer/b", "a")
    for text, problem in (("sumer/b", "did you mean 'summer/b'"), (" ,", "names no sample")):
        with pytest.raises(UsageError, match=problem):
            choose_keys(samples, text)


def test_every_picture_of_the_world_is_read_or_told(run: Run, tmp_path: Path) -> None:
    make_photos(tmp_path / "world")
    for name in UNREAD:
        (tmp_path / "world" / name).touch()
    code, _, err = run("generate", "world/", "--targets", "depth-semseg", "--out", "out")
    problems = {Path(photo.name).stem: photo.problem for photo in PHOTOS if photo.problem}
    assert code == 3
    assert "passed over: 1 .dng, 1 .heic, 1 .svg; of .dng, .heic, .svg no format is read" in err
    told = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    assert {one["key"] for one in told} == problems.keys()
    assert all(problems[one["key"]] in one["reason"] for one in told)
    for photo in PHOTOS:
        if not photo.problem:
            stem = Path(photo.name).stem
            pixels = np.asarray(Image.open(tmp_path / "out/rgb" / f"{stem}.png").convert("RGB"))
            assert pixels.shape == (64, 64, 3)
            if photo.is_coloured:
                assert np.abs(corners_of(pixels).astype(int) - CORNERS).max() < 60, photo.name
            assert (tmp_path / "out/depth" / f"{stem}.npy").is_file()
            assert (tmp_path / "out/semseg" / f"{stem}.png").is_file()
    assert verify_folder(tmp_path / "out").ok


def test_a_damaged_picture_alone_is_one_sentence(run: Run, tiny: Path, tmp_path: Path) -> None:
    paths = make_photos(tmp_path)
    code, _, err = run("generate", paths["truncated.jpg"], "--model", tiny, *DEPTH[:3], "--out", "out")
    assert code == 3
    assert "not a picture that can be read" in err
    assert "Traceback" not in err


def test_what_a_run_wrote_of_pictures_is_read_again(
    run: Run, tiny: Path, tmp_path: Path, pictures: Path
) -> None:
    words = ("--model", tiny, "-q")
    assert run("generate", pictures, "a red circle", *words, "--targets", "depth", "--out", "one")[0] == 0
    (first, *_) = open_runs(tmp_path / "one")[0].samples()
    assert (first.key, first.prompt, first.sources) == (
        Key("", "a"), "a red circle", {"rgb@64": ("photos/a.jpg",)}
    )  # fmt: skip
    assert (
        run("generate", "one/", *words, "--cond", "rgb,depth", "--targets", "tok_clip", "--out", "two")[0]
        == 0
    )
    assert [s.key.text for s in open_runs(tmp_path / "two")[0].samples()] == ["a", "c", "summer/b"]
    assert run("generate", "--replay", "one/run.json", "--out", "again", "-q")[0] == 0
    of_depth = {name: data for name, data in tree(tmp_path / "one").items() if "depth" in name}
    assert of_depth == {n: data for n, data in tree(tmp_path / "again").items() if "depth" in n}


def test_pictures_stand_upright_unless_asked_not_to(run: Run, tiny: Path, tmp_path: Path) -> None:
    save(tmp_path / "x.png", height=64, width=64, orientation=6)
    words = ("generate", "x.png", "--model", tiny, *DEPTH)
    assert run(*words, "--out", "turned")[0] == 0
    assert run(*words, "--no-upright", "--out", "stored")[0] == 0
    made = [np.asarray(Image.open(tmp_path / out / "rgb/x.png")) for out in ("turned", "stored")]
    assert np.array_equal(corners_of(made[0]), CORNERS)
    assert np.array_equal(made[1], np.asarray(Image.open(tmp_path / "x.png")))
    code, _, err = run(*words[:-1], "--no-upright", "--out", "turned", "--resume")
    assert (code, "input.upright is true there and false here" in err) == (2, True)


def test_maps_of_a_data_set_are_turned_together_if_asked(run: Run, tiny: Path, tmp_path: Path) -> None:
    for folder in ("rgb", "depth", "caption"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    scene = Image.fromarray(np.repeat(np.arange(64, dtype=np.uint8)[None], 64, axis=0) * 4)
    stored(scene.convert("RGB"), 6).save(tmp_path / "data/rgb/x.png", exif=exif_of(6))
    np.save(tmp_path / "data/depth/x.npy", np.asarray(stored(scene, 6), dtype=np.float32) / 255)
    words = (
        "generate",
        "--data",
        "data",
        "--cond",
        "rgb-depth",
        "--targets",
        "tok_clip",
        "--model",
        tiny,
        "-q",
    )
    assert run(*words, "--out", "stored")[0] == 0
    assert run(*words, "--upright", "--out", "turned")[0] == 0
    columns = np.asarray(scene, dtype=np.float32) / 255
    for out, wanted in (("stored", columns.T), ("turned", columns)):
        depth = np.load(tmp_path / out / "depth/x.npy")
        rgb = np.asarray(Image.open(tmp_path / out / "rgb/x.png"))[..., 0]
        # Turned by 90 degrees, a ramp from left to right goes up or down.
        assert np.allclose(depth, rgb / 255, atol=1e-6)
        assert (np.abs(depth - wanted).max() < 0.01) == (out == "turned")
    np.save(tmp_path / "data/depth/x.npy", np.zeros((64, 60), np.float32))
    code, _, err = run(*words[:-1], "--upright", "--out", "unequal")
    assert code == 3
    assert "60 x 64 pixels" in err or "64 x 60 pixels" in err


@pytest.mark.parametrize(
    ("condition", "folder", "said"),
    [
        ("normal", "normal", "normal/x.png: its normals point another way in the turned picture"),
        (
            "tok_depth",
            "tok_depth@64",
            "rgb/x.png: is to be turned by its EXIF tag (6), and tok_depth@64 cannot",
        ),
        ("det", "det", "rgb/x.png: is to be turned by its EXIF tag (6), and det cannot be turned with it"),
    ],
)
def test_what_cannot_be_turned_with_its_picture_fails_alone_and_says_what_to_do(
    run: Run, tmp_path: Path, condition: str, folder: str, said: str
) -> None:
    scene = Image.fromarray(noise(0, 64, 64, 3))
    for name, turn in (("x", 6), ("y", 1)):
        for each in ("rgb", folder):
            (tmp_path / "data" / each).mkdir(parents=True, exist_ok=True)
        scene.save(tmp_path / "data/rgb" / f"{name}.png", exif=exif_of(turn))
        path = tmp_path / "data" / folder / name
        if condition == "normal":
            scene.save(f"{path}.png")
        elif condition == "det":
            Path(f"{path}.json").write_text('{"instances": []}')
        else:
            np.save(f"{path}.npy", np.zeros((1, 64), dtype=np.int16))
    words = ("--data", "data", "--cond", f"rgb-{condition}", "--targets", "tok_semseg", "--steps", "1")
    code, _, err = run("generate", *words, "--upright", "--out", "out")
    assert code == 3
    assert said in err
    assert "store the sample upright, without an EXIF tag, or read all as it is stored (--no-upright)" in err
    assert [path.name for path in (tmp_path / "out/semseg").iterdir()] == ["y.png"]
    assert run("generate", *words, "--no-upright", "-q", "--out", "stored")[0] == 0


def test_only_a_few_samples_are_made_and_resume_makes_the_others(
    run: Run, tiny: Path, tmp_path: Path, pictures: Path
) -> None:
    words = ("generate", pictures, "--model", tiny, *DEPTH)
    assert run(*words, "--out", "whole")[0] == 0
    assert run(*words, "--only", "summer/b", "--out", "out")[0] == 0
    assert [p.name for p in (tmp_path / "out/tok_depth@64").rglob("*.npy")] == ["b.npy"]
    found = verify_folder(tmp_path / "out")
    assert (found.ok, found.samples) == (True, 1)
    assert "2 of 3 results were not made" in found.notes[0].detail
    assert run(*words, "--only", "a", "--out", "out", "--resume")[0] == 0
    assert run(*words, "--out", "out", "--resume")[0] == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert verify_folder(tmp_path / "out").notes == ()
    code, _, err = run(*words, "--only", "sumer/b", "--out", "other")
    assert (code, "did you mean 'summer/b'" in err) == (2, True)


def test_the_default_targets_of_a_picture_are_all_that_is_quick(
    run: Run, tmp_path: Path, pictures: Path
) -> None:
    code, out, _ = run("generate", pictures, "--dry-run", "--json")
    assert code == 0
    folders = set(json.loads(out)["folders"])
    assert {"depth", "normal", "semseg", "canny_edge", "clip", "caption", "det"} < folders
    assert "tok_rgb@64" not in folders
    code, _, err = run("generate", pictures / "a.jpg", "--dry-run")
    assert "note: model 'demo' knows a synthetic world only" in err
