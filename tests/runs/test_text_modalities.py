"""`fourm generate` with boxes, metadata, palettes and T5 vectors: targets, files, and conditions again."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fourm.codecs.table import build_codec
from fourm.data.layout import samples_of_prompts
from fourm.hub.files import find_model
from fourm.inputs.request import Request
from fourm.modalities.registry import load_registry
from fourm.modalities.text import Structured, WordPiece
from fourm.networks.model import FourM, FourMConfig
from fourm.runs.pipeline import run as generate
from fourm.schedule.plan import parse_chain
from tests.tiny import CONFIG, save

Run = Callable[..., tuple[int, str, str]]
KEYS = ["00000/000000", "00000/000001", "00000/000002"]
PROMPTS = [
    "a large red circle at the center on a white background",
    "a small blue square left of a large yellow triangle on a black background",
    "a small green triangle at the top on a tan background",
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures of the embedded model in `rgb`."""
    model, out = find_model("demo"), tmp_path_factory.mktemp("pictures") / "out"
    chain = parse_chain("--targets tok_clip-tok_rgb --temps 3.0-0.5", model)
    list(generate(Request(model, chain, samples_of_prompts(PROMPTS), out, device="cpu")))
    return out


@pytest.fixture(scope="module")
def described(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the embedded model says of these pictures, by the command line in a process of its own."""
    out = tmp_path_factory.mktemp("described") / "out"
    subprocess.run(
        [sys.executable, "-m", "fourm_cli", "generate", "--data", str(pictures), "--cond", "rgb",
         "--targets", "det-metadata-color_palette", "--out", str(out), "--quiet"],
        cwd=Path(__file__).resolve().parents[2], check=True,
    )  # fmt: skip
    return out


@pytest.mark.parametrize("name", ["det", "metadata", "color_palette"])
def test_what_the_embedded_model_says_of_pictures_is_written_as_data_sets_have_it(
    described: Path, name: str
) -> None:
    files = sorted((described / name).rglob("*.json"))
    assert [path.relative_to(described / name).with_suffix("").as_posix() for path in files] == KEYS
    for path in files:
        data = json.loads(path.read_text())
        if name == "det":
            for instance in data["instances"]:
                assert instance["class_name"] in ("circle", "square", "triangle")
                assert all(0.0 <= corner <= 1.0 for corner in instance["boxes"])
        elif name == "metadata":
            assert 0 <= data["brightness"] <= 255
        else:
            ((count, colours),) = data[0].items()
            assert int(count) == len(colours)


def test_the_embedded_model_finds_what_is_in_its_pictures(described: Path) -> None:
    (circle,) = json.loads((described / "det/00000/000000.json").read_text())["instances"]
    assert circle["class_name"] == "circle"
    assert circle["boxes"] == pytest.approx([0.25, 0.25, 0.75, 0.75], abs=0.05)
    square, triangle = json.loads((described / "det/00000/000001.json").read_text())["instances"]
    assert (square["class_name"], triangle["class_name"]) == ("square", "triangle")
    assert json.loads((described / "metadata/00000/000001.json").read_text())["n_coco_instances"] == 2
    (palette,) = json.loads((described / "color_palette/00000/000001.json").read_text())[0].values()
    assert palette[0] == [25, 25, 25]


@pytest.mark.parametrize("name", ["det", "metadata", "color_palette"])
def test_what_was_written_is_a_condition_again(run: Run, described: Path, tmp_path: Path, name: str) -> None:
    code, _, _ = run("generate", "--data", described, "--cond", name, "--targets", "tok_rgb", "--steps", "2",
                     "--out", "again")  # fmt: skip
    assert code == 0
    model = find_model("demo")
    assert model.text_tokenizer is not None
    codec = build_codec(model.registry.get(name), wordpiece=WordPiece.load(model.text_tokenizer))
    for key in KEYS:
        assert (tmp_path / f"again/rgb/{key}.png").is_file()
        before, after = (codec.read(root / name / f"{key}.json") for root in (described, tmp_path / "again"))
        assert before == after
        assert isinstance(before, Structured)
        assert before.value


def test_files_of_ones_own_are_conditions_and_spoilt_ones_fail_alone(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "det" / "mine"
    folder.mkdir(parents=True)
    box = {"boxes": [0.1, 0.1, 0.5, 0.5], "class_name": "circle", "score": 0.9}
    (folder / "good.json").write_text(json.dumps({"instances": [box]}))
    (folder / "empty.json").write_text(json.dumps({"instances": []}))
    (folder / "pixels.json").write_text(json.dumps({"instances": [box | {"boxes": [10, 10, 50, 50]}]}))
    (folder / "strange.json").write_text(json.dumps({"instances": [box | {"class_name": "zebra"}]}))
    (folder / "cut.json").write_text('{"instances": [{"boxes"')
    (folder / "many.json").write_text(json.dumps({"instances": [box] * 30}))
    code, _, err = run("generate", "--data", "data", "--cond", "det", "--targets", "tok_rgb", "--steps", "2",
                       "--out", "out")  # fmt: skip
    assert code == 3
    assert "Traceback" not in err
    assert sorted(p.stem for p in (tmp_path / "out/rgb").rglob("*.png")) == ["empty", "good", "many"]
    assert "note: mine/many: det: the model reads the first 4 of 30, which fill its 24 tokens" in err
    failures = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    reasons = {failure["key"]: failure["reason"] for failure in failures}
    assert set(reasons) == {"mine/pixels", "mine/strange", "mine/cut"}
    assert "pixels.json: instance 0: 'boxes' must be fractions" in reasons["mine/pixels"]
    assert "strange.json: det: the model does not know 'zebra'" in reasons["mine/strange"]
    assert "cut.json: not valid JSON" in reasons["mine/cut"]
    assert all("\n" not in reason for reason in reasons.values())


@pytest.fixture(scope="module")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the words of the embedded one, and random weights."""
    demo, folder = find_model("demo"), tmp_path_factory.mktemp("babbler") / "model"
    folder.mkdir()
    assert demo.text_tokenizer is not None
    shutil.copy(demo.text_tokenizer, folder / "text_tokenizer.json")
    shutil.copy(demo.weights.parent / "modalities.yaml", folder / "modalities.yaml")
    texts = ["caption", "det", "metadata", "color_palette"]
    config = {**CONFIG, "domains_in": texts, "domains_out": texts}
    (folder / "config.json").write_text(json.dumps(config))
    network = FourM(FourMConfig.from_dict(config, load_registry(folder / "modalities.yaml")))
    save(network, folder, torch.Generator().manual_seed(1), ())
    return folder


def test_whatever_a_model_babbles_is_saved_and_read_again(run: Run, babbler: Path, tmp_path: Path) -> None:
    targets = "det-metadata-color_palette"
    code, _, _ = run("generate", "a circle", "a red square", "--model", babbler, "--targets", targets,
                     "--temps", "1.0", "--num-variations", "4", "--out", "out")  # fmt: skip
    assert code == 0
    codecs = {
        name: build_codec(
            find_model(babbler).registry.get(name), wordpiece=WordPiece.load(babbler / "text_tokenizer.json")
        )
        for name in targets.split("-")
    }
    for name, codec in codecs.items():
        files = sorted((tmp_path / "out" / name).rglob("*.json"))
        assert len(files) == 8
        assert not codec.read(files[0]).problems
    code, _, _ = run("generate", "--data", "out", "--cond", targets.replace("-", ","), "--model", babbler,
                     "--targets", "caption", "--out", "again")  # fmt: skip
    assert code == 0
    assert len(list((tmp_path / "again/caption").rglob("*.txt"))) == 8


@pytest.fixture(scope="module")
def listener(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with ears for T5 vectors of eight numbers."""
    folder = tmp_path_factory.mktemp("listener") / "model"
    shutil.copytree(tiny, folder)
    rows = yaml.safe_load((folder / "modalities.yaml").read_text())
    rows.append({"name": "t5_caption", "max_tokens": 7, "embedding_width": 8})
    (folder / "modalities.yaml").write_text(yaml.safe_dump(rows, sort_keys=False))
    config = {**CONFIG, "domains_in": [*CONFIG["domains_in"], "t5_caption"]}
    (folder / "config.json").write_text(json.dumps(config))
    network = FourM(FourMConfig.from_dict(config, load_registry(folder / "modalities.yaml")))
    save(network, folder, torch.Generator().manual_seed(1), ())
    return folder


def test_t5_vectors_of_a_folder_condition_a_model(run: Run, listener: Path, tmp_path: Path) -> None:
    folder, rng = tmp_path / "data" / "t5_caption" / "x", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        np.savez(folder / name, emb=rng.normal(size=(2, 9, 8)), mask_valid=np.ones((2, 9), dtype=np.int64))
    (folder / "c.npz").write_bytes(b"PK")
    code, _, _ = run("generate", "--model", listener, "--data", "data", "--cond", "t5_caption", "--targets",
                     "tok_rgb", "--out", "out")  # fmt: skip
    assert code == 3
    (failure,) = map(json.loads, (tmp_path / "out/failures.jsonl").read_text().splitlines())
    assert failure["key"] == "x/c"
    assert "c.npz: not a .npz file" in failure["reason"]
    a, b = (np.load(tmp_path / f"out/tok_rgb@64/x/{name}.npy") for name in ("a", "b"))
    assert not np.array_equal(a, b)
    written = np.load(tmp_path / "out/t5_caption/x/a.npz")
    assert written["emb"].shape == (1, 9, 8)
    # What was written as used conditions the same results.
    code, _, _ = run("generate", "--model", listener, "--data", "out", "--cond", "t5_caption", "--targets",
                     "tok_rgb", "--out", "again")  # fmt: skip
    assert code == 0
    for name in ("a", "b"):
        assert (tmp_path / f"again/tok_rgb@64/x/{name}.npy").read_bytes() == (
            tmp_path / f"out/tok_rgb@64/x/{name}.npy"
        ).read_bytes()


BOX = {"boxes": [16 / 63, 16 / 63, 47 / 63, 47 / 63], "class_name": "circle", "score": 1.0}


def test_words_and_data_typed_into_a_table_are_the_same_condition(run: Run, tmp_path: Path) -> None:
    caption, words = "a large red circle", "v0=16 v1=16 v2=47 v3=47 circle"
    rows = [
        {"caption": caption, "det": words},
        {"caption": caption, "det": {"instances": [BOX]}},
        {"caption": caption, "det": "v0=16 circle"},
        {"caption": caption, "det": f"{words} [S_1]"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "data/caption/a").mkdir(parents=True)
    (tmp_path / "data/det/a").mkdir(parents=True)
    (tmp_path / "data/caption/a/x.txt").write_text(caption)
    (tmp_path / "data/det/a/x.json").write_text(json.dumps({"instances": [BOX]}))
    options = ("--cond", "caption-det", "--targets", "tok_rgb", "--steps", "1", "--temps", "0", "--cfg", "1")
    code, _, err = run("generate", "--data", "rows.jsonl", *options, "--out", "typed")
    assert code == 3
    assert "00000/000002: det: 'v0=16 circle' has 1 number" in err
    assert run("generate", "--data", "data", *options, "--out", "read")[0] == 0
    tokens = [np.load(tmp_path / f"typed/tok_rgb@64/00000/00000{i}.npy", allow_pickle=False) for i in (0, 1)]
    wanted = np.load(tmp_path / "read/tok_rgb@64/a/x.npy", allow_pickle=False)
    assert all(np.array_equal(found, wanted) for found in tokens)
    boxes = [json.loads((tmp_path / f"typed/det/00000/00000{i}.json").read_text()) for i in (0, 1, 3)]
    assert boxes[:2] == [{"instances": [BOX]}] * 2
    assert boxes[2]["instances"][0] == BOX  # and those that the model puts in the place of the mark


def test_typed_conditions_need_a_table(run: Run, tmp_path: Path) -> None:
    for words in (("a red circle",), ("--data", "lines.txt"), ()):
        (tmp_path / "lines.txt").write_text("a red circle\n")
        code, _, err = run("generate", *words, "--cond", "caption-det", "--out", "out")
        assert code == 2
        assert "jsonl" in err
    assert not (tmp_path / "out").exists()


def test_malformed_text_of_a_model_is_kept_and_told(run: Run, pictures: Path, tmp_path: Path) -> None:
    """At a high temperature the embedded model writes boxes that are none."""
    code, _, err = run(
        "generate", "--data", pictures, "--cond", "rgb", "--target", "det:temp=30", "--top-p", "0",
        "--out", "out", "--log-json", "log.jsonl",
    )  # fmt: skip
    assert code == 0
    assert "malformed texts kept (see malformed/)" in err
    kept = sorted((tmp_path / "out/malformed/det").rglob("*.json"))
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    told = [event["key"] for event in events if event["event"] == "malformed"]
    assert [
        path.relative_to(tmp_path / "out/malformed/det").with_suffix("").as_posix() for path in kept
    ] == told
    for path in kept:
        data = json.loads(path.read_text())
        assert data["text"]
        assert data["problems"]
    assert len(list((tmp_path / "out/det").rglob("*.json"))) == 3
    assert run("generate", "--data", pictures, "--cond", "rgb", "--target", "det:temp=30", "--top-p", "0",
               "--out", "out", "--overwrite", "--seed", "1")[0] == 0  # fmt: skip


def test_what_is_too_long_for_the_model_is_read_as_far_as_it_goes_and_told(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "det" / "a"
    folder.mkdir(parents=True)
    (folder / "x.json").write_text(json.dumps({"instances": [BOX] * 9}))
    words = (
        "generate",
        "--data",
        "data",
        "--cond",
        "det",
        "--targets",
        "tok_rgb",
        "--steps",
        "1",
        "--out",
        "out",
    )
    code, _, err = run(*words, "--log-json", "log.jsonl")
    assert code == 0
    assert "note: a/x: det: the model reads the first 4 of 9" in err
    (event,) = [e for e in map(json.loads, (tmp_path / "log.jsonl").open()) if e["event"] == "noted"]
    assert (event["key"], event["condition"]) == ("a/x", "det")
