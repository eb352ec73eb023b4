"""Options go before YAML files, and super-resolution takes what is not said from its run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
PROMPTS = ("a red circle", "a blue square", "a green triangle")
FACTS = ("seed", "samples", "num_variations", "dtype", "detokenizer_steps")
RUN = """
seed: 5
num_samples: 2
num_variations: 3
dtype: bf16
detokenizer_steps: 20
cond_domains: caption
target_domains: tok_clip
decoding_steps: 1
"""
SAID = ("--seed", "0", "--num-samples", "1", "--num-variations", "1", "--dtype", "float32",
        "--detokenizer-steps", "10")  # fmt: skip


def facts(record: Path) -> list[object]:
    run = json.loads(record.read_text())
    return [run[name] for name in FACTS]


@pytest.fixture
def words(tiny: Path, tmp_path: Path) -> list[str]:
    """A run that files describe."""
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "data.yaml").write_text(f"model: {tiny}\ndata_path: prompts.txt\noutput_dir: there\n")
    return ["generate", "-gc", "run.yaml", "-dc", "data.yaml", "--no-decode", "-q"]


def test_files_say_what_options_leave_open(run: Run, words: list[str], tmp_path: Path) -> None:
    code, out, err = run(*words)
    assert (code, out) == (0, "there\n"), err
    assert facts(tmp_path / "there/run.json") == [5, 2, 3, "bfloat16", 20]


def test_options_win_over_files_where_they_say_zero_or_one_too(
    run: Run, words: list[str], tmp_path: Path
) -> None:
    code, out, err = run(*words, *SAID, "--out", "here")
    assert (code, out) == (0, "here\n"), err
    assert facts(tmp_path / "here/run.json") == [0, 1, 1, "float32", 10]
    assert not (tmp_path / "there").exists()
    captions = [path.read_text().strip() for path in (tmp_path / "here/caption").rglob("*.txt")]
    assert captions == [PROMPTS[0]]  # the first, not one that is drawn as for a file


def test_options_win_over_files_that_cannot_be_followed(run: Run, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN + "device: cuda:99\n")
    code, _, err = run(*words, "--out", "a")
    assert (code, "cuda" in err) == (2, True)
    for device in ("cpu", "auto"):
        assert run(*words, *SAID, "--device", device, "--out", device)[0] == 0
    (tmp_path / "data.yaml").write_text("model: no-model\ndata_path: no-file.txt\n")
    (tmp_path / "super.yaml").write_text("sr_model: demo-sr\n")
    code, _, err = run(*words, "-src", "super.yaml", "--model", "demo", PROMPTS[0], "--sr-model", "no-name")
    assert (code, "'no-name'" in err, "no-file" in err) == (2, True, False), err


def test_super_resolution_takes_seed_and_dtype_from_its_run(run: Run, tmp_path: Path) -> None:
    quick = ("--targets", "tok_rgb", "--steps", "1", "--no-decode", "-q")
    code, _, err = run("generate", PROMPTS[0], *quick, "--seed", "5", "--dtype", "bf16", "--out", "out")
    assert code == 0, err
    assert run("sr", "out", *quick)[0] == 0
    assert facts(tmp_path / "out/run.sr.json")[::3] == [5, "bfloat16"]
    (tmp_path / "super.yaml").write_text("sr_model: demo-sr\n")
    said = ("--seed", "0", "--dtype", "float32", "-src", "super.yaml")
    assert run("sr", "out", *quick, *said, "--out", "fine")[0] == 0
    assert facts(tmp_path / "fine/run.json")[::3] == [0, "float32"]
    code, _, err = run("sr", "out", *quick, *said, "--model", "no-name", "--out", "other")
    assert (code, "'no-name'" in err) == (2, True), err


@pytest.mark.parametrize("other", [("--resume",), ("--shard", "1/2")])
def test_overwriting_excludes_what_would_lose_another_processes_work(
    run: Run, tmp_path: Path, other: tuple[str, ...]
) -> None:
    quick = ("--targets", "tok_rgb", "--steps", "1", "--no-decode", "-q", "--out", "out")
    assert run("generate", *PROMPTS[:2], *quick)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.npy")}
    for command in (("generate", *PROMPTS[:2]), ("sr", "out")):
        code, _, err = run(*command, *quick, "--overwrite", *other)
        assert (code, f"--overwrite and {other[0]} exclude each other" in err) == (2, True), err
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.npy")} == before
