"""`--best K/N`: of N variations those are kept under which the model finds the conditions most likely."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fourm.codecs.files import read_array
from fourm.output.samples import load_run
from tests.folders import tree

Run = Callable[..., tuple[int, str, str]]
PROMPTS = ("a red circle", "a blue square on a white background", "the green triangle")
TARGETS = ("--cond", "caption", "--targets", "tok_clip-tok_rgb", "--steps", "2-2", "--temps", "3.0-3.0")


@pytest.fixture
def make(run: Run, tiny: Path) -> Run:
    """`fourm generate` of the prompts with the tiny model."""
    Path("p.txt").write_text("\n".join(PROMPTS))
    words = ("generate", "--data", "p.txt", "--model", tiny, "--device", "cpu", *TARGETS)
    return lambda *more: run(*words, *more)


def scores(out: str, number: int) -> dict[str, list]:
    return json.loads(Path(f"{out}/scores/00000/{number:06d}.json").read_text())


def ids(out: str, name: str) -> bytes:
    return Path(f"{out}/tok_rgb@64/00000/{name}.npy").read_bytes()


def test_the_best_variations_are_kept_and_all_scores(make: Run, run: Run) -> None:
    assert make("--num-variations", 5, "--out", "all")[0] == 0
    code, _, err = make("--best", "2/5", "--by", "caption", "--out", "best")
    assert code == 0, err
    for number in range(3):
        said = scores("best", number)
        totals = [sum(row) for row in said["scores"]]
        order = sorted(range(5), key=lambda one: (-totals[one], one))
        assert (said["by"], said["kept"], len(totals)) == (["caption"], order[:2], 5)
        assert len(set(totals)) == 5
        for rank, chosen in enumerate(order[:2]):
            key = f"{number:06d}"
            assert ids("best", f"{key}-v{rank}") == ids("all", f"{key}-v{chosen}")
    assert len([*Path("best/rgb/00000").iterdir()]) == 6
    assert run("verify", "best")[0] == 0
    record = json.loads(Path("best/run.json").read_text())
    assert (record["num_variations"], record["best"]) == (2, {"of": 5, "by": ["caption"]})


def test_batches_resuming_and_replays_choose_alike(make: Run, run: Run, tiny: Path) -> None:
    words = ("--best", "1/4", "--by", "caption")
    assert make(*words, "--out", "a", "--batch-size", 1)[0] == 0
    assert make(*words, "--out", "b", "--batch-size", 7)[0] == 0
    whole = tree(Path("a"))
    assert whole == tree(Path("b"))
    Path("b/rgb/00000/000001.png").unlink()
    assert make(*words, "--out", "b", "--resume")[0] == 0
    assert whole == tree(Path("b"))
    picture = "rgb/00000/000002.png"
    words = ("generate", "--replay", f"a/{picture}", "--model", tiny, "--device", "cpu")
    code, _, err = run(*words, "--out", "again")
    assert code == 0, err
    assert tree(Path("again"))[picture] == whole[picture]


@pytest.mark.parametrize("form", ["shards", "parquet"])
def test_shards_keep_the_best_of_files(make: Run, run: Run, form: str) -> None:
    words = ("--best", "2/3", "--by", "caption")
    assert make(*words, "--out", "files")[0] == 0
    code, _, err = make(*words, "--out", "out", "--format", form, "--shard-size", 2)
    assert code == 0, err
    there = load_run(Path("out"))
    (place,) = [place for place in there.places if place.folder == "tok_rgb@64"]
    for one in there.samples():
        for number in (0, 1):
            wanted = read_array(Path(f"files/tok_rgb@64/{one.key.text}-v{number}.npy"))
            assert (np.ravel(read_array(Path("out") / one.file(place, number))) == wanted.ravel()).all()
    assert run("verify", "out")[0] == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--best", "1/8"), "--best K/N and --by NAME belong together"),
        (("--best", "8/8", "--by", "caption"), "'8/8' is not K/N"),
        (("--best", "1/8", "--by", "rgb"), "--by: 'rgb' is none of the conditions"),
        (("--best", "1/8", "--by", "caption", "--num-variations", 3), "says how many are made and kept"),
        (("--best", "1/8", "--by", "caption", "--preview", 1), "--preview: "),
    ],
)
def test_mistakes_are_told_before_anything_is_made(make: Run, words: tuple[object, ...], why: str) -> None:
    code, _, err = make(*words, "--out", "out")
    assert (code, Path("out").exists()) == (2, False)
    assert why in err
