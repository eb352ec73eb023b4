"""`fourm embed`: the same features in any batch, process, format and door; what reads its folder."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fourm
from fourm.codecs.files import pack_png, read_array
from fourm.data.shards import FORMATS
from fourm.errors import SampleError, UsageError
from fourm.output.samples import load_run
from tests.emulated_gpu import emulated
from tests.folders import tree

Run = Callable[..., tuple[int, str, str]]
CAPTIONS = ("a red circle", "the green triangle on a white background", "a square", "blue", "a small square")
BOTH = ("--cond", "rgb,caption")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five pictures with captions of different lengths."""
    rng = np.random.default_rng(0)
    for number, caption in enumerate(CAPTIONS):
        for folder in ("rgb", "caption"):
            (tmp_path / "data" / folder / "f").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (64 + number, 80, 3), dtype=np.uint8)
        (tmp_path / f"data/rgb/f/s{number}.png").write_bytes(pack_png(pixels))
        (tmp_path / f"data/caption/f/s{number}.txt").write_text(caption)
    return tmp_path / "data"


@pytest.fixture
def embed(run: Run, tiny: Path) -> Run:
    """`fourm embed` with the tiny model."""
    return lambda *words: run("embed", *words, "--model", tiny, "--device", "cpu")


def features(out: str) -> dict[str, np.ndarray]:
    """What a run wrote, by key, whatever it is in."""
    run = load_run(Path(out))
    (place,) = run.places
    return {one.key.text: read_array(Path(out) / one.file(place, None)) for one in run.samples()}


def made(out: str) -> dict[str, bytes]:
    return {name: data for name, data in tree(Path(out)).items() if name.startswith("features/")}


def test_features_do_not_depend_on_batches_and_processes(embed: Run, data: Path) -> None:
    code, out, err = embed(data, *BOTH, "--out", "alone", "--batch-size", 1)
    assert (code, out) == (0, "alone\n"), err
    assert "5 samples -> features of caption, rgb@64" in err
    assert "5 samples embedded" in err
    assert sorted(made("alone")) == [f"features/f/s{number}.npy" for number in range(5)]
    assert {(x.dtype.name, x.shape) for x in features("alone").values()} == {("float32", (1, 32))}
    assert len({x.tobytes() for x in features("alone").values()}) == 5
    for size in (3, 8):
        assert embed(data, *BOTH, "--out", f"by-{size}", "--batch-size", size)[0] == 0
    for rank in (1, 0):
        assert embed(data, *BOTH, "--out", "divided", "--shard", f"{rank}/2")[0] == 0
    assert made("alone") == made("by-3") == made("by-8") == made("divided")


def test_features_of_a_gpu_are_those_of_the_cpu(
    embed: Run, run: Run, tiny: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*BOTH, "--pool", "tokens", "--layers", "0,last")
    assert embed(data, *words, "--out", "cpu")[0] == 0
    wanted = features("cpu")
    with emulated(monkeypatch):
        for dtype, bound in (("float32", 1e-4), ("bfloat16", 0.1)):
            code, _, err = run("embed", data, *words, "--model", tiny, "--dtype", dtype, "--out", dtype)
            assert (code, f"on cuda:0 in {dtype}" in err) == (0, True), err
            for key, value in features(dtype).items():
                assert value.dtype == np.float32
                np.testing.assert_allclose(value, wanted[key], rtol=bound, atol=bound)


def test_every_token_and_chosen_layers(embed: Run, data: Path) -> None:
    words = (*BOTH, "--layers", "1,last,0")
    assert embed(data, *words, "--out", "mean")[0] == 0
    assert embed(data, *words, "--pool", "tokens", "--out", "tokens", "--batch-size", 3)[0] == 0
    means, tokens = features("mean"), features("tokens")
    lengths = {key: value.shape[1] for key, value in tokens.items()}
    assert min(lengths.values()) > 64  # of the picture
    assert lengths["f/s1"] - lengths["f/s3"] == len(CAPTIONS[1].split()) - len(CAPTIONS[3].split())
    for key, value in tokens.items():
        assert value.shape == (3, lengths[key], 32)
        np.testing.assert_allclose(value.mean(axis=1), means[key], rtol=1e-5, atol=1e-6)
    assert embed(data, *BOTH, "--layers", "0", "--out", "first")[0] == 0
    for key, value in features("first").items():
        assert (value == means[key][2:]).all()
    record = json.loads(Path("mean/run.json").read_text())
    assert record["features"] == {"pool": "mean", "layers": [1, -1, 0]}
    assert (record["stage"], record["schedule"]["conditions"]) == ("features", ["caption", "rgb@64"])


def test_an_interrupted_run_is_gone_on_with_as_it_began(embed: Run, run: Run, data: Path) -> None:
    assert embed(data, *BOTH, "--out", "out")[0] == 0
    whole = made("out")
    Path("out/features/f/s2.npy").unlink()
    Path("out/features/f/s4.npy").write_bytes(whole["features/f/s4.npy"][:-4])
    assert run("verify", "out")[0] == 5
    for words in (("--pool", "tokens"), ("--layers", "0")):
        code, _, err = embed(data, *BOTH, *words, "--out", "out", "--resume")
        assert (code, "features." in err) == (2, True), err
    code, _, err = embed(data, *BOTH, "--out", "out", "--resume")
    assert code == 0, err
    assert "2 samples embedded, 3 already complete" in err
    assert made("out") == whole
    assert run("verify", "out")[0] == 0
    assert run("status", "out")[0] == 0


@pytest.mark.parametrize("form", FORMATS[1:])
def test_shards_hold_the_features_of_files(embed: Run, run: Run, data: Path, form: str) -> None:
    words = (data, *BOTH, "--pool", "tokens", "--layers", "0,last")
    assert embed(*words, "--out", "files")[0] == 0
    shards = (*words, "--out", "out", "--format", form, "--shard-size", 2)
    code, _, err = embed(*shards)
    assert code == 0, err
    assert "5 samples embedded" in err
    wanted = features("files")
    assert features("out").keys() == wanted.keys()
    assert all((value == wanted[key]).all() for key, value in features("out").items())
    (marker, *_) = sorted(Path("out/done").rglob("*.json"))
    marker.unlink()
    code, _, err = embed(*shards, "--resume")
    assert (code, "2 samples embedded, 3 already complete" in err) == (0, True), err
    assert run("verify", "out")[0] == 0
    assert run("status", "out")[0] == 0
    words = ("--among", "files", "--by", "embed", "--json")
    near = [run("retrieve", folder, *words)[1] for folder in ("files", "out")]
    assert [json.loads(text)[0]["query"] for text in near] == ["f/s0", "f/s0"]
    assert [one["neighbours"][0]["key"] for one in json.loads(near[1])] == sorted(wanted)  # themselves


def test_a_sample_that_cannot_be_read_fails_alone(embed: Run, data: Path) -> None:
    (data / "rgb/f/s1.png").write_bytes(b"\x89PNG")
    code, _, err = embed(data, *BOTH, "--out", "out")
    assert (code, "4 samples embedded, 1 failed" in err) == (3, True), err
    assert sorted(made("out")) == [f"features/f/s{number}.npy" for number in (0, 2, 3, 4)]
    assert json.loads(Path("out/failures.jsonl").read_text())["key"] == "f/s1"


def test_samples_that_lack_a_condition_are_left_out_by_name(embed: Run, data: Path) -> None:
    (data / "caption/f/s1.txt").unlink()
    code, _, err = embed(data, *BOTH, "--out", "out")
    assert (code, "f/s1 lacks a file in caption" in err) == (0, True), err
    assert sorted(features("out")) == ["f/s0", "f/s2", "f/s3", "f/s4"]
    Path("empty").mkdir()
    code, _, err = embed("empty", "--cond", "rgb", "--out", "none")
    assert (code, "empty: holds no picture" in err, Path("none").exists()) == (2, True, False), err


def test_what_a_run_wrote_has_features(embed: Run, run: Run, tiny: Path) -> None:
    words = ("--model", tiny, "--targets", "tok_rgb", "--steps", 1)
    for form in ("files", "webdataset"):
        assert run("generate", "a red circle", "a square", *words, "--format", form, "--out", form)[0] == 0
        code, _, err = embed(form, "--cond", "caption,tok_rgb", "--out", f"of-{form}")
        assert code == 0, err
    wanted = features("of-files")
    assert len(wanted) == 2
    for key, value in features("of-webdataset").items():
        assert (value == wanted[key]).all()


def test_pictures_alone_and_words_alone(embed: Run, data: Path) -> None:
    assert embed(data / "rgb", "--out", "pictures")[0] == 0
    Path("p.txt").write_text("\n".join(CAPTIONS))
    assert embed("p.txt", "--out", "words")[0] == 0
    assert (len(features("pictures")), len(features("words"))) == (5, 5)
    code, _, err = embed(data, *BOTH, "--out", "no", "--dry-run")
    assert (code, Path("no").exists()) == (0, False), err


def test_nearest_neighbours_are_those_of_the_features(embed: Run, run: Run, data: Path) -> None:
    assert embed(data, "--cond", "rgb", "--out", "library")[0] == 0
    vectors = {key: value.reshape(-1).astype(float) for key, value in features("library").items()}
    code, out, err = run("retrieve", "library", "--among", "library", "--by", "embed", "-k", 1, "--json")
    assert code == 0, err
    for row in json.loads(out):
        own = vectors.pop(row["query"])
        others = {key: np.linalg.norm(x - own) for key, x in vectors.items()}
        vectors[row["query"]] = own
        assert row["neighbours"][0]["key"] == min(others, key=others.__getitem__)
    (data / "features/f").mkdir(parents=True)
    for wrong, why in (
        (np.zeros(3, np.float32), "float32 of shape (3,) is not layers x width"),
        (np.full((1, 3), np.nan, np.float32), "features that are no finite numbers"),
    ):
        np.save(data / "features/f/x.npy", wrong)
        code, _, err = run("retrieve", data, "--among", "library", "--by", "embed")
        assert (code, why in err) == (2, True), err


def test_a_folder_of_features_is_not_drawn_repeated_or_read_as_conditions(
    embed: Run, run: Run, data: Path
) -> None:
    assert embed(data, "--cond", "rgb", "--out", "out")[0] == 0
    for words, why in (
        (("plot", "out"), "holds features of the encoder"),
        (("generate", "--replay", "out/run.json"), "is the record of `fourm embed`"),
        (("generate", "--data", "out", "--cond", "rgb", "--targets", "tok_clip"), "no folder 'rgb'"),
    ):
        code, _, err = run(*words)
        assert (code, why in err) == (2, True), err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--layers", "2"), "--layers: "),
        (("--layers", "0,0"), "--layers: 0 is given twice"),
        (("--pool", "max"), "--pool: 'max' is not one of mean, tokens"),
        (("--cond", "rgb:2.0"), "--cond: weights of conditions are for guidance"),
        (("--cond", "none"), "--cond: names nothing that the encoder could read"),
        (("--cond", "depht"), "--cond: "),
    ],
)
def test_mistakes_are_told_before_anything_is_made(
    embed: Run, data: Path, words: tuple[str, ...], why: str
) -> None:
    code, out, err = embed(data, *words, "--out", "out")
    assert (code, out, Path("out").exists()) == (2, "", False)
    assert why in err


def test_a_program_gets_the_features_of_files(embed: Run, tiny: Path, data: Path) -> None:
    assert embed(data, *BOTH, "--out", "out", "--layers", "0,last")[0] == 0
    wanted = features("out")
    with fourm.load(tiny, device="cpu") as model:
        pictures = [data / f"rgb/f/s{number}.png" for number in range(5)]
        found = model.embed(rgb=pictures, caption=[*CAPTIONS], layers=[0, "last"])
        assert isinstance(found, list)
        assert all((value == wanted[f"f/s{number}"]).all() for number, value in enumerate(found))
        for alone in (
            model.embed(CAPTIONS[2], rgb=pictures[2], layers="0,last"),
            model.embed(rgb=pictures[2], caption=CAPTIONS[2], layers=(np.int64(0), "last")),
        ):
            assert (np.asarray(alone) == wanted["f/s2"]).all()
        assert np.shape(model.embed("a circle", pool="tokens", layers=1)) == (1, 3, 32)
        for arguments, why in (
            ({}, "nothing is given"),
            ({"layers": 7}, "`layers`: .* has no encoder block 7; give 0 to 1, or last"),
            ({"layers": -1}, "no encoder block -1"),
            ({"layers": 1.0}, "no encoder block 1.0"),
            ({"layers": True}, "no encoder block True"),
            ({"layers": ()}, "names no encoder block"),
            ({"layers": [0, "0"]}, "0 is given twice"),
            ({"pool": "max"}, "`pool`: 'max' is not one of mean, tokens"),
            ({"capton": "a"}, "did you mean 'caption'"),
            ({"targets": "rgb"}, "'targets' is neither a modality nor a setting$"),
        ):
            given = {"caption": "a"} if arguments else {}
            with pytest.raises(UsageError, match=why):
                model.embed(**given, **arguments)
        pictures[1].write_bytes(b"")
        with pytest.raises(SampleError, match=r"s1: .*is empty"):
            model.embed(rgb=pictures)
