"""`fourm generate --format shards`: options, sentences and exit codes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fourm.output.markers import read_markers

Run = Callable[..., tuple[int, str, str]]
OPTIONS = ("--targets", "tok_clip", "--steps", "1", "--no-decode")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "p.txt"
    path.write_text("a red circle\n" + "word " * 3000 + "\na blue square\n")
    return path


def test_ranks_make_their_shards_and_say_how_many(
    run: Run, tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    words = ("generate", "--data", prompts, "--model", tiny, *OPTIONS, "--out", "out", "--format", "shards")
    code, out, err = run(*words, "--shard-size", 1, "--shard", "0/2")
    assert (code, out) == (3, "out\n") or (code, out) == (0, "out\n")
    assert "process 0 of 2: 2 of 3 shards" in err
    code, out, err = run(*words, "--shard-size", 1, "--shard", "1/2", "--json")
    assert (code, json.loads(out)["failed"]) == (3, 1)
    assert "1 failed (see done/)" in err
    assert [marker.counts.saved for marker in read_markers(tmp_path / "out")] == [1, 0, 1]
    code, _, err = run(*words, "--shard-size", 1)
    assert (code, "is not empty" in err) == (2, True)
    code, _, err = run(*words, "--shard-size", 1, "--resume")
    assert (code, "0 samples generated, 2 already complete, 1 failed" in err) == (3, True)
    code, _, err = run(*words, "--shard-size", 1, "--resume", "--retry-failed", "--dry-run")
    assert code == 0
    code, script, err = run(
        "sr", "out", "--model", "demo-sr", "--out", "fine", "--executor", "slurm", "--workers", 2, "--dry-run"
    )
    assert (code, script.endswith("--out fine --shard array\n"), Path("fine").exists()) == (0, True, False), (
        err
    )
    code, _, err = run(*words, "--shard-size", 2, "--resume")
    assert (code, "shard_size is 1 there and 2 here" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--format", "shard"), "--format: 'shard' is not one of files, shards, webdataset, parquet"),
        (("--shard-size", "5"), "--shard-size: is for shards; --format shards makes some"),
        (("--format", "shards", "--only", "00000/000000"), "--only 00000/000000: chooses samples"),
        (("--format", "shards", "--overwrite", "--shard", "0/2"), "--overwrite"),
    ],
)
def test_what_does_not_go_with_shards_is_refused(
    words: tuple[str, ...], said: str, run: Run, tiny: Path, prompts: Path
) -> None:
    code, _, err = run("generate", "--data", prompts, "--model", tiny, *OPTIONS, "--out", "out", *words)
    assert (code, said in err) == (2, True)


def test_super_resolution_takes_the_layout_of_its_run_and_goes_on_when_that_has_grown(
    run: Run, prompts: Path, tmp_path: Path
) -> None:
    run("generate", "--data", prompts, "--out", "out", "--targets", "tok_rgb", "--format", "shards",
        "--shard-size", 1)  # fmt: skip
    marker = tmp_path / "out" / "done" / "00000.json"
    later = marker.rename(tmp_path / "later.json")
    finer = "sr", "out", "--targets", "tok_rgb", "--steps", 1
    code, _, err = run(*finer)
    assert (code, "1 of 3 shards are not there yet" in err) == (0, True)
    assert run("status", "out")[1].count("2 of 3 shards") == 2
    before = [one.read_bytes() for one in sorted(tmp_path.glob("out/done.sr/*"))]
    later.rename(marker)
    code, _, err = run(*finer, "--resume", "--retry-failed")
    assert (code, "1 sample generated, 1 already complete" in err) == (0, True)
    after = [one.read_bytes() for one in sorted(tmp_path.glob("out/done.sr/*"))]
    assert after[1:] == before
    assert run("status", "out")[1].count("3 of 3 shards") == 2
    assert run("verify", "out")[0] == 0


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
def test_a_run_of_which_each_sample_lacks_a_file_says_what_they_lack(
    workers: tuple[str, ...], run: Run, tiny: Path, tmp_path: Path
) -> None:
    for number in range(3):
        for name in (f"rgb/a/{number}.png", f"depth/b{number % 2}/x{number}.png"):
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB" if name.startswith("rgb") else "I;16", (32, 32)).save(tmp_path / "data" / name)
    words = "generate", "--data", "data", "--cond", "rgb-depth", "--model", tiny, *OPTIONS, "--out", "out"
    assert run(*words)[0] == 2  # of files, before anything is loaded
    code, out, err = run(*words, "--format", "shards", "--shard-size", 2, *workers)
    said = "none of the 3 samples in the shards has all files that are read: "
    assert (code, out, f"{said}3 lack a file in depth" in err) == (3, "out\n", True)
    code, _, err = run(*words, "--format", "shards", "--shard-size", 2, "--resume")
    assert (code, said in err) == (3, True)
