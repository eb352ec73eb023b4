"""`fourm generate --format shards`: options, sentences and exit codes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

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
