"""`fourm tokenize` from the outside: streams, codes, interruption; `generate` reads what it wrote."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fourm.codecs.files import pack_png

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four pictures with depth."""
    rng = np.random.default_rng(0)
    for number in range(4):
        for folder in ("rgb", "depth"):
            (tmp_path / "data" / folder / "f").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40 + 9 * number, 70, 3), dtype=np.uint8)
        (tmp_path / f"data/rgb/f/s{number}.png").write_bytes(pack_png(pixels))
        levels = rng.integers(0, 65536, pixels.shape[:2], dtype=np.uint16)
        Image.fromarray(levels).save(tmp_path / f"data/depth/f/s{number}.png")
    return tmp_path / "data"


def tokens(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*.npy"))}


def test_a_dataset_becomes_tokens_that_generate_reads(run: Run, tiny: Path, data: Path) -> None:
    code, out, err = run("tokenize", data, "--model", tiny)
    assert (code, out) == (0, f"{data}\n")
    assert "rgb -> tok_rgb@64: 4 files" in err
    assert "depth -> tok_depth@64: 4 files" in err
    assert "4 samples; model" in err
    assert "4 samples tokenized" in err
    assert len(tokens(data)) == 12
    words = ["--data", data, "--cond", "tok_rgb", "--targets", "tok_depth", "--out", "made"]
    code, out, err = run("generate", "--model", tiny, *words)
    assert (code, out) == (0, "made\n"), err
    assert len(list(Path("made/depth/f").iterdir())) == 4
    assert (Path("made/tok_rgb@64/f/s0.npy")).read_bytes() == (data / "tok_rgb@64/f/s0.npy").read_bytes()


def test_a_second_tokenize_makes_only_missing_tokens(run: Run, tiny: Path, data: Path) -> None:
    run("tokenize", data, "--model", tiny, "--quiet")
    before = tokens(data)
    (data / "tok_rgb@64/f/s2.npy").unlink()
    code, out, err = run("tokenize", data, "--model", tiny, "--json")
    assert code == 0
    result = json.loads(out)
    assert round(seconds := result.pop("seconds"), 3) == seconds >= 0
    assert result == {"out": str(data), "saved": 1, "skipped": 3, "failed": 0}
    assert "4 samples, 3 already complete" in err
    assert tokens(data) == before


def test_overwrite_replaces_no_results_of_a_run(run: Run, tiny: Path, data: Path) -> None:
    words = ("generate", "--model", tiny, "--data", data, "--cond", "depth", "--targets", "tok_rgb")
    assert run(*words, "--out", "made")[0] == 0
    before = tokens(Path("made"))
    again = ("tokenize", "made", "--model", tiny, "--modalities", "rgb", "--overwrite")
    code, out, err = run(*again)
    assert (code, out) == (2, "")
    assert "made/tok_rgb@64: --overwrite would replace results of the run in made/run.json" in err
    assert tokens(Path("made")) == before
    assert run("verify", "made")[0] == 0
    assert run(*again, "--out", "apart")[0] == 0
    Path("made/run.json").write_text("{}")  # of another program
    assert run(*again)[0] == 0


@pytest.mark.parametrize("name", ["data/rgb", "data/rgb/new", "data/rgb/f/new", "link/new"])
def test_results_do_not_go_among_the_samples_that_are_read(
    run: Run, tiny: Path, data: Path, name: str
) -> None:
    Path("link").symlink_to(data / "rgb" / "f")
    before = sorted(data.rglob("*"))
    generate = ("generate", "--data", data, "--cond", "rgb", "--targets", "tok_depth", "--overwrite")
    for words in (generate, ("tokenize", data, "--modalities", "rgb")):
        code, out, err = run(*words, "--model", tiny, "--out", name)
        assert (code, out) == (2, "")
        assert f"--out {name}: " in err
        assert "which this command reads" in err or "is not empty" in err
    assert sorted(data.rglob("*")) == before


def test_results_may_go_beside_the_samples_that_are_read(run: Run, tiny: Path, data: Path) -> None:
    words = ("generate", "--data", data, "--cond", "rgb", "--targets", "tok_depth", "--model", tiny)
    for name in ("data/new", "data/rgb2", "data/rgb/.new"):  # what begins with a dot is no sample
        assert run(*words, "--out", name)[0] == 0
        assert run(*words, "--out", name, "--resume")[0] == 0


def test_quiet_prints_only_the_result(run: Run, tiny: Path, data: Path) -> None:
    code, out, err = run(
        "tokenize", data, "--model", tiny, "--out", "made", "--quiet", "--log-json", "log.jsonl"
    )
    assert (code, out, err) == (0, "made\n", "")
    events = [json.loads(line)["event"] for line in Path("log.jsonl").read_text().splitlines()]
    assert events == ["started", "loading", "saved", "saved", "saved", "saved", "finished"]


def test_failures_are_named_and_have_code_3(run: Run, tiny: Path, data: Path) -> None:
    (data / "rgb/f/s1.png").write_bytes(b"no picture")
    code, out, err = run("tokenize", data, "--model", tiny)
    assert (code, out) == (3, f"{data}\n")
    assert "failed: f/s1: " in err
    assert "s1.png: not a picture in a format that is read" in err
    (line,) = (data / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "f/s1"
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--modalities", "dept"], 2, "--modalities: 'dept' is nothing that model"),
        (["--modalities", "rgb--depth"], 2, "--modalities: '"),
        (["--crops", "0"], 2, "--crops"),
        (["--min-scale", "0"], 2, "--min-scale 0: a share"),
        (["--batch-size", "none"], 2, "--batch-size: 'none' is neither auto"),
        (["--device", "gpu"], 2, "--device: 'gpu' is not one of"),
        (["--dtype", "float8"], 2, "--dtype: 'float8' is not one of"),
        (["--tokenizer", "rbg=x"], 2, "did you mean 'rgb'?"),
        (["--tokenizer", "rgb=nowhere/at/all"], 2, "nowhere/at/all"),
        (["--shard", "4/4"], 2, "--shard: 4/4 is out of range"),
        (["--model", "4m-22-b"], 2, "did you mean"),
    ],
)
def test_mistakes_are_one_sentence_and_change_nothing(
    run: Run, tiny: Path, data: Path, words: list[str], code: int, sentence: str
) -> None:
    got, out, err = run("tokenize", data, *([] if "--model" in words else ["--model", tiny]), *words)
    assert (got, out) == (code, "")
    assert sentence in err
    assert not tokens(data)
    assert sorted(p.name for p in data.iterdir()) == ["depth", "rgb"]


@pytest.mark.parametrize("name", ["tok_depth@64", "crop_settings", "processes", ".partial", "failures.jsonl"])
@pytest.mark.parametrize("kind", ["folder", "nothing", "file"])
def test_nothing_is_written_where_a_link_or_file_has_a_name_of_ours(
    run: Run, tiny: Path, data: Path, tmp_path: Path, name: str, kind: str
) -> None:
    (data / "depth" / "f" / "s1.npy").write_bytes(b"broken")  # so that a failure is to be noted
    (tmp_path / "elsewhere").mkdir()
    made = tmp_path / "made"
    made.mkdir()
    if kind == "file" and name != "failures.jsonl":
        (made / name).touch()
    else:
        (made / name).symlink_to(tmp_path / ("elsewhere" if kind == "folder" else "nowhere"))
    code, out, err = run("tokenize", data, "--model", tiny, "--crops", 2, "--out", made)
    assert (code, out) == (2, "")
    assert name in err
    assert "loading" not in err
    assert [path.name for path in made.iterdir()] == [name]
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not (tmp_path / "nowhere").exists()


def test_a_file_for_an_output_folder_is_refused_before_anything_is_loaded(
    run: Run, tiny: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link"):
        code, _, err = run("tokenize", data, "--model", tiny, "--out", tmp_path / name)
        assert code == 2
        assert "not a folder" in err
        assert "loading" not in err


def test_a_folder_that_is_no_dataset_is_one_sentence(run: Run, tiny: Path, tmp_path: Path) -> None:
    code, out, err = run("tokenize", "nowhere", "--model", tiny)
    assert (code, out, err) == (2, "", "fourm: nowhere: no such folder\n")
    (tmp_path / "empty").mkdir()
    code, _, err = run("tokenize", "empty", "--model", tiny)
    assert code == 2
    assert "empty: no folder that a tokenizer" in err
    (tmp_path / "empty" / "a.jpg").touch()
    _, _, err = run("tokenize", "empty", "--model", tiny, "--modalities", "rgb")
    assert "; pictures that lie in it belong in empty/rgb/a.jpg and so on" in err


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fourm_cli", "tokenize", *map(str, words)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_killed_at_any_moment_the_same_command_goes_on(
    run: Run, tiny: Path, tmp_path: Path, number: signal.Signals
) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "many/rgb/f").mkdir(parents=True)
    for index in range(300):
        picture = rng.integers(0, 256, (80, 70, 3), dtype=np.uint8)
        (tmp_path / f"many/rgb/f/{index:03d}.png").write_bytes(pack_png(picture))
    words = [tmp_path / "many", "--model", tiny, "--crops", 3, "--out", tmp_path / "out"]
    process = start(*words)
    made = tmp_path / "out/tok_rgb@64/f"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (made.is_dir() and len(list(made.iterdir())) > 5):
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number is signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on" in err
    assert 0 < len(list(made.iterdir())) < 300
    assert all(np.load(path).shape == (3, 64) for path in made.iterdir())  # whole, or not there
    code, _, err = run("tokenize", *words)
    assert code == 0, err
    assert "already complete" in err
    run("tokenize", *words[:-1], tmp_path / "whole", "--quiet")
    assert tokens(tmp_path / "out") == tokens(tmp_path / "whole")
    assert not (tmp_path / "out/.partial").exists()


def test_two_processes_may_work_on_one_folder_at_once(
    run: Run, tiny: Path, data: Path, tmp_path: Path
) -> None:
    words = [data, "--model", tiny, "--crops", 3, "--out", tmp_path / "out", "--quiet"]
    both = [
        start(*words, "--modalities", "rgb", "--seed", 1),
        start(*words, "--modalities", "depth", "--seed", 2),
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    made = tokens(tmp_path / "out")
    assert len(made) == 12
    # Whoever came first drew the crops, and both sets of tokens show them.
    shutil.copytree(tmp_path / "out/crop_settings", tmp_path / "later/crop_settings")
    assert run("tokenize", data, "--model", tiny, "--out", tmp_path / "later", "--quiet")[0] == 0
    assert tokens(tmp_path / "later") == made
