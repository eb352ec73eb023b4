"""`fourm generate` from end to end: the same folder from any batch size, shard, interruption or order."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fourm.checks.verify import verify_folder
from fourm.hub.files import find_model
from fourm.output.processes import read_checksums, read_launches
from fourm.output.samples import load_run
from tests.folders import tree

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]
COLOURS, SHAPES = ("red", "green", "blue"), ("circle", "square", "triangle")
PROMPTS = [f"a {size} {c} {s}" for size in ("small", "large") for c in COLOURS for s in SHAPES]


def start(*words: object, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "fourm_cli", "generate", *map(str, words)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )  # fmt: skip


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return path


def test_prompts_become_folders_of_aligned_names(run: Run, tiny: Path, tmp_path: Path) -> None:
    code, out, err = run("generate", "a red circle", "a blue square", "--model", tiny, "--out", "out")
    assert (code, out) == (0, "out\n")
    assert "2 samples generated" in err
    names = ["00000/000000", "00000/000001"]
    for folder, suffix in {"caption": ".txt", "tok_clip@64": ".npy", "tok_rgb@64": ".npy", "clip": ".npy",
                           "rgb": ".png"}.items():  # fmt: skip
        found = sorted(
            p.relative_to(tmp_path / "out" / folder).as_posix()
            for p in (tmp_path / "out" / folder).rglob("*.*")
        )
        assert found == [name + suffix for name in names]
    assert (tmp_path / "out/caption/00000/000001.txt").read_text().strip() == "a blue square"
    ids = np.load(tmp_path / "out/tok_rgb@64/00000/000000.npy", allow_pickle=False)
    assert (ids.dtype, ids.size) == (np.int16, 64)
    picture = Image.open(tmp_path / "out/rgb/00000/000000.png")
    assert picture.size == (64, 64)
    assert picture.text["prompt"] == "a red circle"
    assert "--target tok_rgb@64" in picture.text["schedule"]
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["samples"] == 2
    assert record["command"][:2] == ["fourm", "generate"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "samples",
        "caption",
        "tok_clip@64",
        "tok_rgb@64",
        "clip",
        "rgb",
        "run.json",
        "processes",
    }


def test_standard_input_json_and_logs(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").write_text("a red circle\n\na blue square\n")
    with open(tmp_path / "in") as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        code, out, err = run(
            "generate",
            "--model",
            tiny,
            "--data",
            "-",
            "--json",
            "--quiet",
            "--log-json",
            "log",
            "--cond",
            "caption",
            "--targets",
            "tok_clip-tok_rgb",
            "--temps",
            "3.0-0.5",
        )
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["out"], result["saved"], result["failed"]) == ("out/001", 2, 0)
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [e["event"] for e in events if e["event"] != "step"] == [
        "started",
        "loading",
        "saved",
        "saved",
        "finished",
    ]
    steps = [e for e in events if e["event"] == "step"]
    assert [e["step"] for e in steps] == list(range(steps[0]["steps"]))
    assert steps[0]["temperature"] == 3.0
    assert run("generate", "a red circle", "--model", tiny, "--quiet")[1] == "out/002\n"


def test_the_models_own_prompts_are_used_when_nothing_is_given(run: Run, tiny: Path, tmp_path: Path) -> None:
    assert run("generate", "--model", tiny, "--num-samples", "2", "--no-decode", "--out", "out")[0] == 0
    expected = find_model(tiny).prompts.read_text().splitlines()[:2]
    found = [p.read_text().strip() for p in sorted((tmp_path / "out/caption").rglob("*.txt"))]
    assert found == expected
    assert not (tmp_path / "out/rgb").exists()


def test_batch_size_and_order_and_neighbours_change_nothing(
    run: Run, tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    base = ["generate", "--model", tiny, "--data", prompts, "--quiet", "--num-variations", "2"]
    for size in ("1", "7", "auto"):
        assert run(*base, "--batch-size", size, "--out", size)[0] == 0
    assert tree(tmp_path / "1") == tree(tmp_path / "7") == tree(tmp_path / "auto")
    assert len(list((tmp_path / "1/rgb").rglob("*-v1.png"))) == len(PROMPTS)
    assert run(*base, "--num-samples", "3", "--out", "few")[0] == 0
    few, listed = tree(tmp_path / "few"), read_checksums(tmp_path / "few")
    assert few.pop("samples/00000.jsonl").decode().count("\n") == 3
    del listed["samples/00000.jsonl"]
    assert listed.items() <= read_checksums(tmp_path / "1").items()
    assert few.items() <= tree(tmp_path / "1").items()
    assert run(*base, "--seed", "1", "--num-samples", "3", "--out", "seed")[0] == 0
    assert tree(tmp_path / "seed") != few


def test_killed_at_random_moments_and_resumed_the_folder_is_the_same(
    tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    """SIGKILL, five times; after each, every file that can be seen is whole."""
    words = ["--model", tiny, "--data", prompts, "--num-variations", "6", "--batch-size", "2"]
    whole = start(*words, "--out", tmp_path / "whole")
    assert whole.wait() == 0, whole.communicate()[1]
    expected, chance, out = tree(tmp_path / "whole"), random.Random(0), tmp_path / "cut"
    seen = []
    for attempt in range(5):
        log = tmp_path / f"log{attempt}"
        process = start(*words, "--out", out, "--resume", "--log-json", log)
        first = chance.choice(["started", "loading", "step", "saved", "saved"])
        while not log.exists() or f'"{first}"' not in log.read_text():
            if process.poll() is not None:
                break  # nothing was left to do
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        visible = {k: v for k, v in tree(out).items() if not k.startswith(".partial/")}
        assert visible.items() <= expected.items()
        seen.append(len(visible))
    assert seen == sorted(seen)
    assert any(0 < count < len(expected) for count in seen)
    last = start(*words, "--out", out, "--resume")
    assert last.wait() == 0, last.communicate()[1]
    assert tree(out) == expected
    assert read_checksums(out) == read_checksums(tmp_path / "whole")
    assert verify_folder(out).ok


@pytest.mark.parametrize("kind", ["torchrun", "shard"])
def test_processes_that_share_a_folder_make_the_folder_of_one(
    tiny: Path, prompts: Path, tmp_path: Path, kind: str
) -> None:
    words = ["--model", tiny, "--data", prompts, "--quiet", "--device", "cpu"]
    alone = start(*words, "--out", tmp_path / "alone")
    if kind == "torchrun":
        ranks = [{"RANK": str(r), "WORLD_SIZE": "3", "LOCAL_RANK": str(r)} for r in range(3)]
        together = [start(*words, "--out", tmp_path / "out", env=env) for env in ranks]
    else:
        together = [start(*words, "--out", tmp_path / "out", "--shard", f"{i}/3") for i in range(3)]
    said = []
    for process in (alone, *together):
        out, err = process.communicate()
        assert process.returncode == 0, err
        said.append(out)
    assert [bool(out) for out in said] == [True, True, kind == "shard", kind == "shard"]
    assert tree(tmp_path / "out") == tree(tmp_path / "alone")
    lists = (path.read_text().splitlines() for path in (tmp_path / "out/processes").glob("*.sha256"))
    listed = [line.split("  ")[1] for lines in lists for line in lines if not line.startswith("#")]
    assert sorted(listed) == sorted(tree(tmp_path / "out"))  # none is lost, none is listed twice
    assert read_checksums(tmp_path / "out") == read_checksums(tmp_path / "alone")
    launches = read_launches(tmp_path / "out", load_run(tmp_path / "out").identity)
    assert sorted(launch.saved for launch in launches) == [6, 6, 6]


def test_under_torchrun_a_failed_sample_does_not_end_the_other_processes(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun ends a job in which one process fails. Shards are on their own, and end with exit code 3."""
    for name in ("0", "1"):
        path = tmp_path / f"data/rgb/f/{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no picture")
    words = ("generate", "--model", tiny, "--data", "data", "--cond", "rgb", "--targets", "tok_depth")
    log = ("--device", "cpu", "--log-json", "log")
    code, out, err = run(*words, *log, "--out", "shards", "--shard", "1/2")
    assert (code, out) == (3, "shards\n"), err
    assert not (tmp_path / "log.1").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in (("1", ""), ("0", "ranks\n")):
        monkeypatch.setenv("RANK", rank)
        code, out, err = run(*words, *log, "--out", "ranks")
        assert (code, out) == (0, said), err
        assert (err == "process 1 of 2: 1 of 2 samples\n") is (rank == "1")  # of the rest 0 speaks alone
    assert (tmp_path / "log.1").exists()
    assert len((tmp_path / "ranks/failures.jsonl").read_text().splitlines()) == 2


def test_resume_overwrite_and_refusal(run: Run, tiny: Path, tmp_path: Path) -> None:
    base = ["generate", "a red circle", "--model", tiny, "--out", "out", "--quiet"]
    assert run(*base)[0] == 0
    before = tree(tmp_path / "out")
    code, out, err = run(*base)
    assert (code, out) == (2, "")
    assert "--resume goes on" in err
    code, _, err = run(*base, "--resume", "--temps", "2.0", "--seed", "5")
    assert code == 2
    assert "temperature is 1.0 there and 2.0 here" in err or "seed is 0 there and 5 here" in err
    (tmp_path / "out/rgb/00000/000000.png").unlink()
    assert run(*base, "--resume")[0] == 0
    assert tree(tmp_path / "out") == before
    assert run(*base, "--overwrite", "--seed", "5")[0] == 0
    assert tree(tmp_path / "out").keys() == before.keys()
    assert tree(tmp_path / "out") != before


def test_overwriting_never_deletes_what_is_read(run: Run, tiny: Path, tmp_path: Path) -> None:
    assert run("generate", "a red circle", "--model", tiny, "--out", "out", "--quiet")[0] == 0
    before = tree(tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for data in ("out", "link"):
        source = ("--data", data, "--cond", "caption", "--targets", "tok_rgb")
        code, _, err = run("generate", "--model", tiny, *source, "--out", "out", "--overwrite")
        assert code == 2
        assert "--overwrite would delete" in err
    (prompts,) = (tmp_path / "out/caption").rglob("*.txt")
    code, _, err = run("generate", "--model", tiny, "--data", prompts, "--out", "out", "--overwrite")
    assert (code, f"would delete {prompts}, which this run reads" in err.replace("\n", " ")) == (2, True)
    assert tree(tmp_path / "out") == before


def test_a_dataset_keeps_its_names_and_a_bad_sample_fails_alone(run: Run, tiny: Path, tmp_path: Path) -> None:
    for name, colour in {"a b/Zürich": "red", "a b/-v0": "blue", "c/d/x.y": "green"}.items():
        path = tmp_path / "data/rgb" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 70), colour).save(path)
    bad = tmp_path / "data/rgb/a b/bad.jpg"
    bad.write_bytes(b"no picture")
    base = ["generate", "--model", tiny, "--data", "data", "--cond", "rgb", "--targets", "tok_depth-caption",
            "--out", "out"]  # fmt: skip
    code, out, err = run(*base)
    assert (code, out) == (3, "out\n")
    assert "failed: a b/bad" in err
    assert [
        json.loads(line)["key"] for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()
    ] == ["a b/bad"]
    made = sorted(
        p.relative_to(tmp_path / "out/depth").as_posix() for p in (tmp_path / "out/depth").rglob("*.npy")
    )
    assert made == ["a b/-v0.npy", "a b/Zürich.npy", "c/d/x.y.npy"]
    assert len(list((tmp_path / "out/caption").rglob("*.txt"))) == 3
    bad.unlink()
    Image.new("RGB", (64, 64), "white").save(bad)
    assert run(*base, "--resume")[0] == 0
    assert not (tmp_path / "out/failures.jsonl").exists()
    assert (tmp_path / "out/depth/a b/bad.npy").exists()


def test_tokens_of_one_run_are_conditions_of_the_next(run: Run, tiny: Path, tmp_path: Path) -> None:
    assert run("generate", "a red circle", "--model", tiny, "--out", "one", "--quiet")[0] == 0
    code, _, err = run(
        "generate",
        "--model",
        tiny,
        "--data",
        "one",
        "--cond",
        "caption-tok_rgb",
        "--targets",
        "tok_depth",
        "--out",
        "two",
        "--quiet",
    )
    assert code == 0, err
    name = "00000/000000.npy"
    assert (tmp_path / "two/tok_rgb@64" / name).read_bytes() == (
        tmp_path / "one/tok_rgb@64" / name
    ).read_bytes()


def test_without_conditions_samples_differ(run: Run, tiny: Path, tmp_path: Path) -> None:
    code, _, err = run(
        "generate",
        "--model",
        tiny,
        "--cond",
        "none",
        "--data",
        "empty",
        "--num-samples",
        "3",
        "--targets",
        "tok_rgb",
        "--out",
        "out",
        "--quiet",
    )
    assert code == 0, err
    assert len({p.read_bytes() for p in (tmp_path / "out/tok_rgb@64").rglob("*.npy")}) == 3


def test_previews_show_the_picture_growing_and_go_with_the_run(run: Run, tiny: Path, tmp_path: Path) -> None:
    base = ["generate", "a red circle", "--model", tiny, "--targets", "tok_rgb", "--out", "out", "--quiet"]
    assert run(*base, "--preview", "2")[0] == 0
    found = sorted((tmp_path / "out/preview/tok_rgb@64/00000").iterdir())
    assert [p.name for p in found] == ["000000-order.npy", "000000-step002.png", "000000-step004.png"]
    order = np.load(found.pop(0), allow_pickle=False)
    assert (order.shape, order.dtype) == ((1, 64), np.int16)
    assert sorted(set(order[0].tolist())) == list(range(1, order.max() + 1))  # every step decided something
    cut = [np.asarray(Image.open(p)).reshape(8, 8, 8, 8, 3).transpose(0, 2, 1, 3, 4) for p in found]
    assert [int((patches == 128).all(axis=(2, 3, 4)).sum()) for patches in cut] == [32, 0]
    final = np.asarray(Image.open(tmp_path / "out/rgb/00000/000000.png"))
    assert (np.asarray(Image.open(found[-1])) == final).all()
    assert run(*base, "--overwrite")[0] == 0
    assert not (tmp_path / "out/preview").exists()
    assert "--preview needs pictures" in run(*base, "--preview", "2", "--no-decode", "--overwrite")[2]


def test_unknown_words_are_noted(run: Run, tiny: Path) -> None:
    _, _, err = run("generate", "a red dog", "a red circle", "--model", tiny, "--out", "out")
    assert "does not know 'dog' (1 of 2 prompts)" in err


def test_a_run_can_be_described_in_yaml(run: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text(f"model: {tiny}\nwandb_mode: online\n")
    (tmp_path / "data.yaml").write_text("data_path: p.txt\nnum_variations: 2\nnum_samples: 1\n")
    (tmp_path / "gen.yaml").write_text(
        "cond_domains: caption\ntarget_domains: tok_rgb\ntemps: 2.0\ndecoding_steps: 3\n"
    )
    (tmp_path / "p.txt").write_text("a red circle\na blue square\n")
    code, _, err = run(
        "generate",
        "-c",
        "model.yaml",
        "-dc",
        "data.yaml",
        "-gc",
        "gen.yaml",
        "--steps",
        "2",
        "--seed",
        "4",
        "--out",
        "out",
        "--quiet",
    )
    assert code == 0, err
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert (record["samples"], record["num_variations"], record["seed"]) == (1, 2, 4)
    assert [step["temperature"] for step in record["schedule"]["steps"]] == [2.0, 2.0]


def test_the_embedded_model_runs_as_the_readme_says(run: Run, tmp_path: Path) -> None:
    code, out, err = run(
        "generate", "--cond", "caption", "--targets", "tok_clip-tok_rgb", "--temps", "3.0-0.5"
    )
    assert (code, out) == (0, "out/001\n"), err
    prompts = find_model("demo").prompts.read_text().splitlines()
    assert len(list((tmp_path / "out/001/rgb").rglob("*.png"))) == len([p for p in prompts if p.strip()])
