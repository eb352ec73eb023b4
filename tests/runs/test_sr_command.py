"""`fourm sr`, later or in one go: beside the run it goes on from, or elsewhere, always the same tokens."""

import json
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

from fourm.output.samples import open_runs
from tests.folders import tree

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]
PROMPTS = (
    "a small red circle above a blue square",
    "a large green triangle at the center on a tan background",
)
QUICK = ("--targets", "tok_rgb", "--steps", "4")  # of the base
SR_QUICK = ("--targets", "tok_rgb", "--steps", "2")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the demo model: two prompts, two variations."""
    out = tmp_path_factory.mktemp("base") / "out"
    command = [sys.executable, "-m", "fourm_cli", "generate", *PROMPTS, "--num-variations", "2"]
    subprocess.run([*command, "--seed", "5", "--out", out, "--quiet"], cwd=ROOT, check=True)
    return out


@pytest.fixture
def out(base: Path, tmp_path: Path) -> Path:
    """A copy that a test may write into."""
    return Path(shutil.copytree(base, tmp_path / "out"))


def test_finer_pictures_lie_beside_what_they_were_made_from(run: Run, out: Path) -> None:
    before = tree(out)
    code, said, err = run("sr", out)
    assert (code, said) == (0, f"{out}\n"), err
    after = tree(out)
    assert before.items() <= after.items()
    for folder, suffix, size in (("tok_clip@128", ".npy", 256), ("tok_rgb@128", ".npy", 256)):
        names = sorted(p.name for p in (out / folder / "00000").iterdir())
        assert names == [f"00000{i}-v{v}{suffix}" for i in (0, 1) for v in (0, 1)]
        ids = np.load(out / folder / "00000" / names[0], allow_pickle=False)
        assert (ids.dtype, ids.shape) == (np.int16, (1, size))
    picture = Image.open(out / "rgb@128/00000/000001-v1.png")
    assert picture.size == (128, 128)
    assert picture.text["prompt"] == PROMPTS[1]
    assert (picture.text["model"], picture.text["base model"]) == ("demo-sr", "demo")
    record = json.loads((out / "run.sr.json").read_text())
    assert (record["stage"], record["seed"], record["num_variations"]) == ("sr", 5, 2)
    assert record["schedule"]["conditions"] == ["caption", "tok_clip@64", "tok_rgb@64"]
    assert record["origin"]["model"] == "demo"
    assert [r.file for r in open_runs(out)] == ["run.json", "run.sr.json"]


def test_generate_with_sr_options_makes_the_same_as_generate_then_sr(
    run: Run, out: Path, tmp_path: Path
) -> None:
    assert run("sr", out, "-q", *SR_QUICK)[0] == 0
    words = ("generate", *PROMPTS, "--num-variations", "2", "--seed", "5", "-q", "--out", tmp_path / "once")
    code, said, _ = run(*words, "--sr-targets", "tok_rgb", "--sr-steps", "2", "--json")
    assert code == 0
    result = json.loads(said)
    for end in (result, result["sr"]):
        assert (end["saved"], end["skipped"], end["failed"]) == (2 * len(PROMPTS), 0, 0)
    assert tree(out) == tree(tmp_path / "once")
    first, second = (json.loads((o / "run.sr.json").read_text()) for o in (out, tmp_path / "once"))
    for record in (first, second):
        for free in ("created", "identity", "sha256", "command"):
            record.pop(free)
    assert first == second


def test_variations_and_batches_are_kept_apart(run: Run, out: Path, tmp_path: Path) -> None:
    """Each variation goes on from its own tokens; who shares a batch with whom changes nothing."""
    other = Path(shutil.copytree(out, tmp_path / "other"))
    assert run("sr", out, "-q", *SR_QUICK, "--batch-size", "1")[0] == 0
    assert run("sr", other, "-q", *SR_QUICK, "--batch-size", "3")[0] == 0
    assert tree(out) == tree(other)
    alone = tmp_path / "alone"
    assert run("generate", PROMPTS[0], "--num-variations", "2", "--seed", "5", "-q", "--out", alone)[0] == 0
    assert run("sr", alone, "-q", *SR_QUICK)[0] == 0
    name = "tok_rgb@128/00000/000000-v1.npy"
    assert (alone / name).read_bytes() == (out / name).read_bytes()


def test_another_folder_gets_the_conditions_too(run: Run, out: Path, tmp_path: Path) -> None:
    before = tree(out)
    assert run("sr", out, "-q", *SR_QUICK, "--out", tmp_path / "fine")[0] == 0
    assert tree(out) == before
    fine = tree(tmp_path / "fine")
    for name in (
        "caption/00000/000000.txt",
        "tok_rgb@64/00000/000001-v1.npy",
        "tok_clip@64/00000/000000-v0.npy",
    ):
        assert fine[name] == before[name]
    assert run("sr", out, "-q", *SR_QUICK)[0] == 0
    assert (out / "rgb@128/00000/000000-v0.png").read_bytes() == fine["rgb@128/00000/000000-v0.png"]
    code, _, err = run("sr", tmp_path / "fine")
    assert (code, "name the folder that it went on from" in err) == (2, True)


def test_the_folder_may_come_through_a_pipe(out: Path) -> None:
    line = (
        f"{sys.executable} -m fourm_cli generate '{PROMPTS[0]}' {' '.join(QUICK)} -q "
        f"--out '{out.parent}/piped' | {sys.executable} -m fourm_cli sr - {' '.join(SR_QUICK)} --json"
    )
    said = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert json.loads(said)["saved"] == 1
    assert (out.parent / "piped/rgb@128/00000/000000.png").exists()


@pytest.mark.parametrize("text", ["", "one\ntwo\n", "nowhere\n", "\n"])
def test_what_comes_through_a_pipe_must_be_a_folder(text: str) -> None:
    command = [sys.executable, "-m", "fourm_cli", "sr", "-"]
    end = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT, check=False)
    assert end.returncode == 2
    assert end.stdout == ""
    assert end.stderr.startswith("fourm: standard input: ")


def test_super_resolution_beside_an_earlier_one_needs_resume_or_overwrite(run: Run, out: Path) -> None:
    assert run("sr", out, "-q", *SR_QUICK)[0] == 0
    done = tree(out)
    code, _, err = run("sr", out, *SR_QUICK)
    assert (code, "holds super-resolution already" in err) == (2, True)
    code, _, err = run("sr", out, "--targets", "tok_rgb", "--steps", "3", "--resume")
    assert (code, "settings" in err) == (2, True)
    (out / "rgb@128/00000/000001-v0.png").unlink()
    assert run("sr", out, "-q", *SR_QUICK, "--resume")[0] == 0
    assert tree(out) == done
    assert run("sr", out, "-q", "--targets", "tok_rgb", "--steps", "3", "--overwrite")[0] == 0
    assert tree(out).keys() == done.keys()
    assert tree(out) != done


def test_overwriting_the_base_takes_what_was_made_of_it_away(run: Run, out: Path) -> None:
    assert run("sr", out, "-q", *SR_QUICK)[0] == 0
    assert run("generate", PROMPTS[0], *QUICK, "-q", "--out", out, "--overwrite")[0] == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "caption", "processes", "rgb", "run.json", "samples", "tok_rgb@64",
    ]  # fmt: skip


def test_what_the_base_did_not_make_is_left_out_and_told(run: Run, out: Path) -> None:
    (out / "tok_rgb@64/00000/000000-v1.npy").unlink()
    code, _, err = run("sr", out, *SR_QUICK)
    assert code == 0
    assert "1 of 4 results are not there" in err
    assert len(list((out / "rgb@128/00000").iterdir())) == 3


def test_one_variation_that_was_repeated_is_all_that_its_run_made(
    run: Run, out: Path, tmp_path: Path
) -> None:
    assert run("generate", "--replay", out / "rgb/00000/000001-v1.png", "--out", "one", "-q")[0] == 0
    code, _, err = run("sr", "one", *SR_QUICK)
    assert (code, "not there" in err) == (0, False), err
    assert [path.name for path in (tmp_path / "one/rgb@128/00000").iterdir()] == ["000001-v1.png"]
    (tmp_path / "one/tok_rgb@64/00000/000001-v1.npy").unlink()
    code, said, err = run("sr", "one", *SR_QUICK, "--out", "none")
    assert (code, said, "none of the results that its run made are there" in err) == (2, "", True)
    assert not (tmp_path / "none").exists()


def test_a_run_whose_model_has_gone_is_a_sentence(run: Run, tiny: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    words = ("a red circle", "--targets", "tok_rgb", "--steps", "1", "--no-decode", "-q")
    assert run("generate", *words, "--model", model, "--out", "out")[0] == 0
    shutil.rmtree(model)
    code, said, err = run("sr", "out")
    assert (code, said, err.count("\n")) == (2, "", 1)
    assert err.startswith("fourm: ")
    assert str(model) in err


def test_a_sample_with_broken_tokens_fails_alone(run: Run, out: Path) -> None:
    (out / "tok_rgb@64/00000/000000-v1.npy").write_bytes(b"\x93NUMPY")
    code, _, err = run("sr", out, *SR_QUICK)
    assert code == 3
    (failure,) = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert (failure["key"], failure["variation"], failure["stage"]) == ("00000/000000", 1, "sr")
    assert "000000-v1.npy" in err
    assert len(list((out / "rgb@128/00000").iterdir())) == 3
    assert run("sr", out, *SR_QUICK, "--out", "fine")[0] == 3
    (elsewhere,) = [json.loads(line) for line in Path("fine/failures.jsonl").read_text().splitlines()]
    assert (elsewhere["variation"], "stage" in elsewhere) == (1, False)
    assert elsewhere["reason"] == failure["reason"]
    assert run("verify", "fine")[0] == 0


def test_a_dataset_that_no_run_made_can_be_made_finer(run: Run, out: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("00000/000000", "00000/000001"):
        target = data / "tok_rgb@64" / f"{name}.npy"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(out / "tok_rgb@64" / f"{name}-v0.npy", target)
    assert run("sr", data, "-q", *SR_QUICK)[0] == 0
    assert sorted(p.name for p in data.iterdir()) == [
        "processes", "rgb@128", "run.sr.json", "samples.sr", "tok_rgb@128", "tok_rgb@64",
    ]  # fmt: skip
    (data / "run.sr.json").unlink()
    code, _, err = run("sr", data, "-q", *SR_QUICK)
    assert (code, "holds files that no run of super-resolution wrote" in err) == (2, True)
    (tmp_path / "empty").mkdir()
    code, _, err = run("sr", tmp_path / "empty")
    assert (code, "holds nothing that model 'demo-sr' reads" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--cond", "tok_depth"), "tok_depth"),
        (("--targets", "tok_rgb@64"), "cannot produce 'tok_rgb@64'"),
        (("--num-variations", "3"), "the run made 2 variations"),
        (("--model", "demo"), ""),
        (("--temps", "-1"), "temperature -1"),
        (("--model", "no-such-model"), "no-such-model"),
        (("--log-json", "out/log.jsonl"), "lies in the output folder"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_loaded(
    run: Run, out: Path, words: tuple[str, ...], sentence: str
) -> None:
    before = tree(out)
    code, said, err = run("sr", out, *words)
    assert code in (2, 4)
    assert (said, sentence in err) == ("", True)
    assert "loading" not in err
    assert tree(out) == before


def test_killed_while_it_makes_things_finer_and_resumed_the_folder_is_the_same(
    run: Run, out: Path, tmp_path: Path
) -> None:
    whole = Path(shutil.copytree(out, tmp_path / "whole"))
    assert run("sr", whole, "-q", *SR_QUICK)[0] == 0
    command = [sys.executable, "-m", "fourm_cli", "sr", out, *SR_QUICK, "--batch-size", "1"]
    for attempt in range(3):
        log = tmp_path / f"log{attempt}"
        process = subprocess.Popen([*command, "--resume", "-q", "--log-json", log], cwd=ROOT)
        while process.poll() is None and not (log.exists() and '"saved"' in log.read_text()):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run(*map(str, command[3:]), "--resume", "-q")[0] == 0
    assert tree(out) == tree(whole)


def test_shards_of_one_go_meet_in_one_folder(run: Run, tmp_path: Path) -> None:
    words = (
        "generate",
        *PROMPTS,
        *QUICK,
        "--num-variations",
        "2",
        "--sr-targets",
        "tok_rgb",
        "--sr-steps",
        "2",
    )
    assert run(*words, "-q", "--out", tmp_path / "one")[0] == 0
    for shard in ("1/2", "0/2"):
        assert run(*words, "-q", "--out", tmp_path / "two", "--shard", shard)[0] == 0
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_variations": 10**9}, {"num_variations": 0}, {"samples": -1}, {"variation": 7}, {"seed": -1},
        {"places": [{"folder": "../x", "suffix": ".npy"}]}, {"places": [{"folder": "/x", "suffix": ".npy"}]},
        {"schedule": None}, {"model": 5}, {"format": 4}, {"num_variations": "2"}, {"files": []},
        {"files": {"weights": None}}, {"identity": 5}, {"versions": None}, {"model": "a\0b"}, {"seed": 2**64},
    ],
)  # fmt: skip
def test_a_record_that_was_changed_by_hand_is_a_sentence_everywhere(
    run: Run, out: Path, changes: dict[str, object]
) -> None:
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | changes))
    again = ("generate", "--replay", out / "run.json", "--out", "again")
    here = ("generate", *PROMPTS, "--out", out)
    for words in (("sr", out), ("plot", out), again, (*here, "--resume"), (*here, "--overwrite")):
        code, said, err = run(*words)
        assert (code, said, err.startswith("fourm: "), err.count("\n")) == (2, "", True, 1), err
    assert run("verify", out)[0] == 5
    assert not Path("again").exists()


def test_replaying_into_the_very_folder_never_deletes_what_is_read(run: Run, out: Path) -> None:
    before = tree(out)
    for file in ("run.json", "rgb/00000/000001-v1.png"):
        code, _, err = run("generate", "--replay", out / file, "--out", out, "--overwrite")
        assert (code, "--overwrite would delete" in err) == (2, True), err
    assert tree(out) == before
