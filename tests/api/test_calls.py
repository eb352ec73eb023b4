"""What a caller gets: the three lines and the five lines, byte-equal to the command line; errors; threads."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

import fourm
from fourm.api.model import Model, load
from fourm.api.model import run as run_request
from fourm.api.reading import read
from fourm.api.results import Result
from fourm.api.schedule import Schedule
from fourm.codecs.colours import UNKNOWN
from fourm.data.layout import number_keys
from fourm.errors import FourMError, SampleError
from fourm.modalities.facts import Box
from fourm.views.album import open_album

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a small red circle above a blue square"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def demo() -> Model:
    return load("demo", device="cpu")


def one(result: object) -> Result:
    assert isinstance(result, Result)
    return result


def several(results: object) -> list[Result]:
    assert isinstance(results, list)
    return results


def differences(a: Path, b: Path) -> list[str]:
    """Files of two output folders that differ or are in one only, records of runs and processes aside."""
    trees = [
        {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (a, b)
    ]
    names = {*trees[0], *trees[1]}
    found = sorted(name for name in names if trees[0].get(name) != trees[1].get(name))
    return [name for name in found if not name.startswith(("run.", "processes/"))]


def test_the_three_lines(demo: Model) -> None:
    assert fourm.load("demo") is demo
    assert "torch" not in loaded_by("import fourm")
    result = one(demo(PROMPT))
    assert isinstance(result.rgb, Image.Image)
    assert result.rgb.size == (64, 64)
    assert result.caption == PROMPT
    assert result.names == ("caption", "clip", "rgb")


def loaded_by(code: str) -> str:
    command = [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True).stdout


def test_the_five_lines(demo: Model, tmp_path: Path) -> None:
    picture = one(demo(PROMPT)).rgb
    seen = one(demo(rgb=picture, targets="caption depth normal semseg"))
    assert isinstance(seen.caption, str)
    assert "red circle" in seen.caption
    assert (seen.depth.shape, seen.depth.dtype) == ((64, 64), np.float32)
    assert seen.normal.shape == (64, 64, 3)
    assert seen.semseg.shape == (64, 64)
    assert (seen.tokens["tok_depth"].shape, seen.tokens["tok_depth"].dtype) == ((64,), np.int64)
    assert Image.open(path_of_png(seen, tmp_path)).size[0] > 400
    seen.save(tmp_path / "cat")
    assert (tmp_path / "cat" / "run.json").is_file()
    with pytest.raises(FourMError, match="not empty"):
        seen.save(tmp_path / "cat")


def path_of_png(result: Result, folder: Path) -> Path:
    data = result._repr_png_()
    assert data is not None
    (folder / "sheet.png").write_bytes(data)
    return folder / "sheet.png"


def results_in(folder: Path) -> dict[str, bytes]:
    """The files of results below a folder by name."""
    files = [path for path in folder.rglob("*.*") if "00000" in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_saved_results_are_the_files_of_the_command_line(demo: Model, run: Run, tmp_path: Path) -> None:
    prompts = (PROMPT, "a large green triangle")
    code, _, err = run(
        "generate", *prompts, "--targets", "all", "--seed", 3, "--num-variations", 2, "--out", "cli"
    )
    assert code == 0, err
    made = dict[str, bytes]()
    for number, result in enumerate(several(demo(*prompts, targets="all", variations=2, seed=3))):
        made |= results_in(result.save(tmp_path / f"api{number}"))
    assert made == results_in(tmp_path / "cli")


def test_super_resolution_is_that_of_the_command_line(demo: Model, run: Run, tmp_path: Path) -> None:
    code, _, err = run(
        "generate", PROMPT, "--temps", "3.0-0.5", "--steps", 6, "--sr-steps", 4, "--out", "cli"
    )
    assert code == 0, err
    result = one(demo(PROMPT, temps=[3.0, 0.5], steps=6, sr_steps=4))
    assert (result.rgb.size, result["rgb@64"].size) == ((128, 128), (64, 64))
    assert differences(result.save(tmp_path / "api"), tmp_path / "cli") == []


@pytest.mark.more
def test_fifty_samples_are_those_of_the_command_line(demo: Model, run: Run, tmp_path: Path) -> None:
    """All targets of words, then all targets of which a part is kept: of each grid, and of a text."""
    assert demo.files.prompts is not None
    prompts = (demo.files.prompts.read_text(encoding="utf-8").splitlines() * 9)[:25]
    results = several(demo(*prompts, targets="all", seed=11))
    assert run("generate", *prompts, "--targets", "all", "--seed", 11, "--out", "data")[0] == 0
    made = all_saved(results, tmp_path / "words")
    assert len(made) > 25 * 15
    assert made == results_in(tmp_path / "data")
    marked = ["a [S_1] " + prompt.split(" ", 2)[2] for prompt in prompts]
    masks = [np.tile(np.arange(64) >= 8 * (number % 7 + 1), (64, 1)) for number in range(25)]
    for result, text, mask in zip(results, marked, masks, strict=True):
        (tmp_path / f"data/caption/{result.key}.txt").write_text(text)
        (tmp_path / f"data/mask_keep/{result.key}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(tmp_path / f"data/mask_keep/{result.key}.png")
    Image.fromarray(masks[0].T).save(tmp_path / "mask.png")
    said = ("rgb:mask", "depth:box:0,0.25,1,0.75", "normal:mask.png", "tok_semseg:0.5", "canny_edge:0.25",
            "tok_clip:box:0.5,0,1,1", "caption")  # fmt: skip
    words = [word for part in said for word in ("--keep", part)]
    code, _, err = run("generate", "--data", "data", "--cond", "none", *words, "--targets", "all",
                       "--seed", 11, "--out", "kept")  # fmt: skip
    assert code == 0, err
    names = ("rgb", "depth", "normal", "tok_semseg", "canny_edge", "tok_clip")
    keep = {"rgb": masks, "depth": (0, 0.25, 1, 0.75), "normal": masks[0].T, "tok_semseg": 0.5,
            "canny_edge": 0.25, "tok_clip": (0.5, 0, 1, 1)}  # fmt: skip
    given = {name: [result[name] for result in results] for name in names}
    made = all_saved(several(demo(*marked, **given, keep=keep, targets="all", seed=11)), tmp_path / "parts")
    assert {f"{name.partition('_kept/')[0]}" for name in made if "_kept/" in name} == {
        "rgb", "depth", "normal", "tok_semseg@64", "canny_edge", "tok_clip@64", "caption"
    }  # fmt: skip
    assert made == results_in(tmp_path / "kept")


def all_saved(results: list[Result], folder: Path) -> dict[str, bytes]:
    """The files of saved results."""
    saved = [results_in(result.save(folder / result.key.replace("/", "-"))) for result in results]
    return {name: data for files in saved for name, data in files.items()}


def test_pictures_and_arrays_in_memory_are_as_files(demo: Model, run: Run, tmp_path: Path) -> None:
    made = one(demo(PROMPT, targets="depth rgb"))
    wide = Image.new("RGB", (90, 64), "white")
    wide.paste(made.rgb, (13, 0))
    depth = np.pad(made.depth, ((0, 0), (13, 13)), mode="edge")
    data = tmp_path / "data"
    for folder in ("rgb/a", "depth/a"):
        (data / folder).mkdir(parents=True)
    wide.save(data / "rgb/a/x.png")
    np.save(data / "depth/a/x.npy", depth)
    code, _, err = run("generate", "--data", data, "--cond", "rgb-depth", "--targets", "caption-tok_normal",
                       "--out", "cli")  # fmt: skip
    assert code == 0, err
    result = one(demo(rgb=wide, depth=depth, targets="caption, normal", keys=["a/x"]))
    same = one(demo(rgb=np.asarray(wide), depth=depth, targets=["caption", "tok_normal"], keys="a/x"))
    folder = result.save(tmp_path / "api")
    told = [name for name in differences(folder, tmp_path / "cli") if not name.startswith("samples")]
    assert told == []
    assert np.array_equal(same.normal, result.normal)
    import torch

    tensor = torch.from_numpy(np.asarray(wide).copy()).permute(2, 0, 1)
    paths = {"rgb": data / "rgb/a/x.png", "depth": str(data / "depth/a/x.npy")}
    for values in ({"rgb": tensor, "depth": torch.from_numpy(depth)}, paths):
        again = one(demo(**values, targets="caption normal", keys="a/x"))
        assert np.array_equal(again.normal, result.normal)


def test_a_stream_shows_each_step_and_can_be_closed(demo: Model) -> None:
    events = [*demo.stream(PROMPT, steps=4)]
    assert [event.target for event in events[:-1]] == ["tok_clip@64"] * 4 + ["tok_rgb@64"] * 4
    last = one(events[-1].results)
    whole = one(demo(PROMPT, steps=4))
    assert np.array_equal(last.tokens["tok_rgb"], whole.tokens["tok_rgb"])
    early, late = events[0].preview("tok_rgb"), events[-1].preview("rgb")
    assert early.getcolors() == [(64 * 64, (128, 128, 128))]
    assert np.array_equal(np.asarray(late), np.asarray(whole.rgb))
    assert events[0].preview("caption").size[0] > 0
    with pytest.raises(FourMError, match="no 'semseg' is given or made"):
        events[0].preview("semseg")
    begun = demo.stream(PROMPT, steps=4)
    next(begun)  # type: ignore[call-overload]
    other = list[object]()  # another thread is not held up by a stream that stands still
    thread = Thread(target=lambda: other.append(demo(PROMPT, steps=4)))
    thread.start()
    thread.join(60)
    assert np.array_equal(one(other[0]).tokens["tok_rgb"], whole.tokens["tok_rgb"])
    begun.close()  # type: ignore[attr-defined]


def test_threads_get_the_results_of_their_own_calls(demo: Model) -> None:
    alone = [one(demo(PROMPT, seed=seed, steps=3)) for seed in range(4)]
    found = dict[int, Result]()
    threads = [
        Thread(target=lambda n=n: found.update({n: one(demo(PROMPT, seed=n, steps=3))})) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for number, result in enumerate(alone):
        assert np.array_equal(found[number].tokens["tok_rgb"], result.tokens["tok_rgb"])


def test_an_interrupt_leaves_the_model_usable(demo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fourm.decoding.grids.draw", interrupt)
        with pytest.raises(KeyboardInterrupt):
            demo(PROMPT)
    assert one(demo(PROMPT, steps=2)).rgb.size == (64, 64)


def test_what_is_no_caption_is_given_by_name(
    demo: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    for wrong, said in (
        (Image.new("RGB", (8, 8)), r"a Image is given without a name; .* model\(rgb=\.\.\.\)"),
        ("a.png", r"a path is given without a name; .* model\(rgb='a\.png'\)"),
        ("./", "a path is given without a name"),
        ([PROMPT, PROMPT], r"model\(\*prompts\) takes each"),
    ):
        with pytest.raises(FourMError, match=said):
            demo(wrong)  # type: ignore[arg-type]
    assert one(demo("./none.png", steps=2)).caption == "./none.png"


def test_a_result_is_not_saved_under_the_name_of_a_picture(demo: Model, tmp_path: Path) -> None:
    result = one(demo(PROMPT, steps=2))
    with pytest.raises(
        FourMError, match=r"circle\.png`: ends like a picture, but is the folder of all results"
    ):
        result.save(tmp_path / "circle.png")
    (tmp_path / "circle.png").mkdir()
    assert (result.save(tmp_path / "circle.png") / "run.json").exists()


def test_a_picture_that_super_resolution_does_not_see_is_a_warning(demo: Model) -> None:
    picture = one(demo(PROMPT, steps=2)).rgb
    with pytest.warns(UserWarning, match="sees caption, tok_clip@64, and not the picture .* keep={'rgb': 1}"):
        assert "rgb@128" not in one(demo(rgb=picture, sr=True, sr_steps=1)).names
    whole = one(demo(rgb=picture, keep={"rgb": 1}, sr=True, sr_steps=1))
    assert whole.rgb.size == (128, 128)
    assert (whole.tokens["tok_rgb@64"] == demo.tokenize(rgb=picture)["tok_rgb"]).all()


def test_one_sample_that_fails_leaves_the_others(demo: Model) -> None:
    with pytest.warns(UserWarning, match="1 of 2 results failed; 00000/000001: rgb: uint8"):
        good, bad = several(demo(rgb=[Image.new("RGB", (64, 64)), np.zeros(3, np.uint8)], targets="depth"))
    assert good.depth.shape == (64, 64)
    assert "failed" in repr(bad)
    with pytest.raises(SampleError, match="rgb: uint8"):
        _ = bad.depth


def test_structured_values_come_in_many_forms(demo: Model) -> None:
    boxes = [(0.1, 0.1, 0.5, 0.5, "circle"), (0.5, 0.5, 0.9, 0.9, "square")]
    first = one(demo(det=boxes, targets="tok_semseg", steps=4))
    data = {"instances": [{"boxes": list(box[:4]), "class_name": box[4]} for box in boxes]}
    for form in (data, first.det, data["instances"]):
        assert np.array_equal(one(demo(det=form, targets="tok_semseg", steps=4)).semseg, first.semseg)
    as_written = one(demo(det=[Box(0.6, 0.1, 0.2, 0.5, "circle")], targets="caption"))  # by a model
    assert [box.corners for box in as_written.det] == [(0.2, 0.1, 0.6, 0.5)]
    colours = [(245, 245, 245), (225, 45, 45)]
    palette = one(demo(color_palette=colours, targets="caption"))
    assert [tuple(colour) for colour in palette.color_palette] == colours
    facts = one(demo(metadata={"brightness": np.float32(200)}, targets="caption"))
    assert facts.metadata[0].value == 200.0
    both = several(demo(det=[boxes, boxes[:1]], metadata={"brightness": 9.0}, targets="caption"))
    assert [len(result.det) for result in both] == [2, 1]


def test_weights_and_schedules_are_those_of_the_command_line(demo: Model, run: Run, tmp_path: Path) -> None:
    made = one(demo(PROMPT, targets="rgb"))
    depth = one(demo(rgb=made.rgb, targets="depth")).tokens["tok_depth"]
    np.save(tmp_path / "depth.npy", depth)
    for schedule in (
        Schedule("--temps 0.7 --top-p 0.9", steps=5),
        {"temps": 0.7, "top_p": 0.9, "decoding_steps": 5},
    ):
        result = one(demo(PROMPT, tok_depth=depth, weights={"caption": 2, "depth": 1.5}, targets="rgb",
                          schedule=schedule))  # fmt: skip
        options = result._parts[0].request.chain.to_text()
        assert "--cond caption:2.0,tok_depth@64:1.5" in options
        assert "temp=0.7" in options
        assert "steps=5" in options
        assert "--top-p 0.9" in options


@pytest.mark.parametrize("key", ["decoding_stepss", "sr_tempss"])
def test_every_form_of_a_schedule_refuses_unknown_settings(key: str, tmp_path: Path) -> None:
    file = tmp_path / "schedule.yaml"
    file.write_text(f"{key}: 4\ntemps: 1.0\n", encoding="utf-8")
    for source in (file, str(file), {key: 4, "temps": 1.0}):
        with pytest.raises(FourMError, match=key):
            Schedule(source)
    with pytest.raises(FourMError, match=key):
        Schedule(**{key: 4})


def test_equal_arguments_give_the_loaded_model_until_it_is_closed() -> None:
    first = load("demo", dtype="float32", sr=True)
    assert load("demo", dtype="float32", sr=True) is first
    assert load("demo", dtype="bfloat16") is not first
    with first:
        assert one(first(PROMPT, steps=2, sr_steps=2)).rgb.size == (128, 128)
        assert one(first(PROMPT, steps=2, sr=False)).rgb.size == (64, 64)
    with pytest.raises(FourMError, match="is closed"):
        first(PROMPT)
    assert load("demo", dtype="float32", sr=True) is not first


def test_results_without_values_say_so(demo: Model) -> None:
    result = one(demo(PROMPT, decode=False, steps=2))
    with pytest.raises(FourMError, match="as tokens only"):
        _ = result.rgb
    with pytest.raises(FourMError, match="has no value 'depth'; it has caption"):
        _ = result["depth"]
    assert not hasattr(result, "depth")
    assert "depth" not in result
    assert "rgb" in result
    assert "64 tokens" in repr(result)
    assert np.array_equal(result.tokens["tok_rgb@64"], result["tok_rgb"])


def test_torch_before_the_library_is_told_once() -> None:
    code = (
        "import os; os.environ.pop('MKL_CBWR', None); import torch, warnings, fourm\n"
        "with warnings.catch_warnings(record=True) as told:\n"
        "    warnings.simplefilter('always')\n"
        "    fourm.load('demo', device='cpu'); fourm.load('demo', device='cpu')\n"
        "print(*[one.message for one in told], torch.backends.mkl.is_available(), sep='|')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    *told, has_mkl = done.stdout.strip().split("|")
    assert len(told) == (has_mkl == "True")
    assert all('import os; os.environ["MKL_CBWR"] = "AUTO,STRICT"' in one for one in told)


def test_no_warning_is_left(demo: Model) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        demo(PROMPT, steps=2)


def test_what_is_kept_is_that_of_the_command_line(demo: Model, run: Run, tmp_path: Path) -> None:
    one(demo(PROMPT)).rgb.save(tmp_path / "cat.png")
    mask = np.zeros((64, 64), np.bool_)
    mask[32:] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    said = "a small green triangle above a blue square"
    code, _, err = run("generate", said, "cat.png", "--keep", "rgb:mask.png", "--out", "cli")
    assert code == 0, err
    result = one(demo(said, rgb="cat.png", keep={"rgb": "mask.png"}))
    assert result.key == "cat"
    folder = result.save(tmp_path / "api")
    assert differences(folder, tmp_path / "cli") == []
    with Image.open(tmp_path / "cat.png") as picture:
        held = one(demo(said, rgb=picture, keep={"rgb": mask}, keys="cat"))
        box = one(demo(said, rgb=picture, keep={"rgb": (0, 0.5, 1, 1)}, keys="cat"))
        share = one(demo(said, rgb=picture, keep={"rgb": 0.5}))
    assert np.array_equal(held.rgb, result.rgb)
    assert np.array_equal(box.rgb, result.rgb)
    assert not np.array_equal(share.rgb, result.rgb)
    filled = one(demo("a small [S_1] above a large blue square on a white background", targets="caption"))
    assert "[S_1]" not in filled.caption
    blank = one(demo("a small ___ above a large blue square on a white background", targets="caption"))
    assert blank.caption == filled.caption


def test_without_blending_the_picture_is_that_of_the_decoder(demo: Model, run: Run, tmp_path: Path) -> None:
    darker = np.asarray(one(demo(PROMPT)).rgb) // 2  # the decoder makes its usual colours of it
    Image.fromarray(darker).save(tmp_path / "cat.png")
    words = ("cat.png", "--keep", "rgb:box:0,0.5,1,1", "--steps", 3)
    code, _, err = run("generate", PROMPT, *words, "--no-blend", "--out", "cli")
    assert code == 0, err
    keep = {"rgb": (0, 0.5, 1, 1)}
    plain = one(demo(PROMPT, rgb="cat.png", keep=keep, steps=3, blend=False))
    assert differences(plain.save(tmp_path / "api"), tmp_path / "cli") == []
    blended = one(demo(PROMPT, rgb="cat.png", keep=keep, steps=3))
    assert np.array_equal(plain.tokens["tok_rgb"], blended.tokens["tok_rgb"])
    assert not np.array_equal(plain.rgb, blended.rgb)


def test_sheets_show_what_is_kept(demo: Model, run: Run, tmp_path: Path) -> None:
    made = one(demo(PROMPT, targets="rgb semseg", steps=3))
    result = one(demo("a small [S_1] above a blue square", rgb=made.rgb, tok_semseg=made.tokens["tok_semseg"],
                      keep={"rgb": (0, 0, 0.5, 1), "tok_semseg": 0.5}, targets="caption rgb semseg",
                      steps=3))  # fmt: skip
    there = read(result.save(tmp_path / "out"))[0]
    assert repr(there) == repr(result)
    assert "kept   tok_semseg@64  some of 64 tokens" in repr(result)
    assert there.names == result.names == ("caption", "rgb", "semseg")
    assert there.sheet().tobytes() == result.sheet().tobytes()
    assert run("plot", "out", "--no-contact")[0] == 0
    with Image.open(tmp_path / "out/plots/000000.png") as sheet:
        assert sheet.tobytes() == result.sheet().tobytes()
    rgb, ids, text, *_ = open_album(tmp_path / "out").view(number_keys(1)[0]).panels
    assert [one.title for one in (rgb, ids, text)] == [
        "RGB, kept", "Semantic segmentation, kept tokens", "Caption, kept"
    ]  # fmt: skip
    assert (np.asarray(rgb.picture)[:, 32:] == UNKNOWN).all()
    assert np.array_equal(np.asarray(rgb.picture)[:, :32], np.asarray(made.rgb)[:, :32])
    assert np.asarray(ids.picture).mean() == 127.5  # half of the mask is white


def test_numbers_of_numpy_are_numbers(demo: Model) -> None:
    picture = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
    plain = one(demo(rgb=picture, keep={"rgb": (0, 0, 0.5, 1)}, seed=3, steps=2, batch_size=2))
    box, seed, size = np.array([0, 0, 0.5, 1]), np.int64(3), np.int32(2)
    same = one(demo(rgb=picture, keep={"rgb": box}, seed=seed, steps=np.int16(2), batch_size=size))  # type: ignore[arg-type]
    assert np.array_equal(same.rgb, plain.rgb)
    share = one(demo(rgb=picture, keep={"rgb": np.float32(0.5)}, variations=np.int8(1), steps=2))  # type: ignore[arg-type]
    assert np.array_equal(share.rgb, one(demo(rgb=picture, keep={"rgb": 0.5}, steps=2)).rgb)


def test_tokens_of_values_and_values_of_tokens(demo: Model, tmp_path: Path) -> None:
    made = one(demo(PROMPT, targets="rgb depth"))
    made.rgb.save(tmp_path / "a.png")
    tokens = demo.tokenize(rgb=made.rgb, depth=made.depth, caption=PROMPT)
    assert list(tokens) == ["tok_rgb", "tok_depth", "caption"]
    assert np.array_equal(demo.tokenize(rgb=tmp_path / "a.png")["tok_rgb"], tokens["tok_rgb"])
    values = demo.decode(**tokens)
    assert values["caption"] == PROMPT
    assert isinstance(values["rgb"], Image.Image)
    again = demo.decode(tok_rgb=made.tokens["tok_rgb"], tok_depth=[made.tokens["tok_depth"]] * 2)
    assert np.array_equal(again["rgb"], made.rgb)
    assert [np.array_equal(one, made.depth) for one in again["depth"]] == [True, True]
    assert demo.decode(caption=tokens["caption"].tolist()) == {"caption": PROMPT}
    for ids, sentence in (
        ([99999], "token 99999 is outside the vocabulary"),
        ([1.5], "no.* row of token ids"),
    ):
        with pytest.raises(FourMError, match=f"caption: .*{sentence}"):
            demo.decode(caption=[ids])
    with pytest.raises(FourMError, match="`seed` is 'x', expected a whole number"):
        demo.decode(**tokens, seed="x")  # type: ignore[arg-type]
    with pytest.raises(
        FourMError, match="'tok_rgbs' is nothing that model 'demo' has tokens for; did you mean"
    ):
        demo.decode(tok_rgbs=[1])


def test_a_folder_is_a_sequence_of_results(demo: Model, tmp_path: Path) -> None:
    request = demo.request(PROMPT, "a large green triangle", out=tmp_path / "out", variations=2, steps=3)
    assert type([*run_request(request, demo)][-1]).__name__ == "Finished"
    with pytest.raises(FourMError, match="not empty"):
        [*run_request(request, demo)]
    results, made = (
        read(tmp_path / "out"),
        several(demo(PROMPT, "a large green triangle", variations=2, steps=3)),
    )
    assert len(results) == len(made) == 4
    for there, here in zip(results, made, strict=True):
        assert (there.key, there.variation, there.names) == (here.key, here.variation, here.names)
        assert np.array_equal(there.rgb, here.rgb)
        assert np.array_equal(there.clip, here.clip)
        assert np.array_equal(there.tokens["tok_clip"], here.tokens["tok_clip"])
        assert there.caption == here.caption
    assert [result.variation for result in several(results["00000/000001"])] == [0, 1]
    assert [result.key for result in results[1:3]] == ["00000/000000", "00000/000001"]
    assert results[-1].key == "00000/000001"
    assert "4 of 2 samples" in repr(results)
    assert results[0]._repr_png_() is not None
    with pytest.raises(FourMError, match="read from files"):
        results[0].save(tmp_path / "x")
    with pytest.raises(IndexError):
        results[4]
    with pytest.raises(FourMError, match="no sample"):
        results["x"]
    with pytest.raises(FourMError, match="no run"):
        read(tmp_path)
