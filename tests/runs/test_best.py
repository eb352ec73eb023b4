"""`--best K/N`: of N variations those are kept under which the model finds the conditions most likely."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fourm
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


def scores(out: str, number: int) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(Path(f"{out}/scores/00000/{number:06d}.json").read_text())
    return said


def test_kept_are_the_variations_of_the_best_scores_and_no_other_leaves_a_file(make: Run, run: Run) -> None:
    assert make("--num-variations", 5, "--out", "all")[0] == 0
    code, _, err = make("--best", "2/5", "--by", "caption", "--out", "best")
    assert code == 0, err
    for number in range(len(PROMPTS)):
        said = scores("best", number)
        totals = [sum(row) for row in said["scores"]]
        order = sorted(range(5), key=lambda one: -totals[one])
        assert (said["by"], said["kept"], len({*totals})) == (["caption"], order[:2], 5)
        for rank, chosen in enumerate(order[:2]):
            for place in ("tok_clip@64", "tok_rgb@64"):
                ids = [f"{place}/00000/{number:06d}-v{number_}.npy" for number_ in (rank, chosen)]
                assert Path("best", ids[0]).read_bytes() == Path("all", ids[1]).read_bytes()
    assert len([*Path("best/rgb/00000").iterdir()]) == 2 * len(PROMPTS)
    assert run("verify", "best")[0] == 0
    record = json.loads(Path("best/run.json").read_text())
    assert (record["num_variations"], record["best"]) == (2, {"of": 5, "by": ["caption"]})
    line = json.loads(Path("best/samples/00000.jsonl").read_text().splitlines()[1])
    assert line["files"]["scores"] == ["scores/00000/000001.json"]
    Path("best/scores/00000/000001.json").unlink()
    assert run("verify", "best")[0] == 5


def test_batches_resuming_processes_and_replays_choose_alike(make: Run, run: Run, tiny: Path) -> None:
    words = ("--best", "2/3", "--by", "caption")
    assert make(*words, "--out", "a", "--batch-size", 1)[0] == 0
    whole = tree(Path("a"))
    assert make(*words, "--out", "b", "--batch-size", 7)[0] == 0
    assert whole == tree(Path("b"))
    for lost in ("rgb/00000/000001-v1.png", "scores/00000/000002.json"):
        Path("b", lost).unlink()
    assert make("--best", "2/4", "--by", "caption", "--out", "b", "--resume")[0] == 2
    assert make(*words, "--out", "b", "--resume")[0] == 0
    assert whole == tree(Path("b"))
    for part in ("0/2", "1/2"):
        assert make(*words, "--out", "c", "--shard", part)[0] == 0
    assert whole == tree(Path("c"))
    for name in ("rgb/00000/000002-v1.png", "run.json"):
        words = ("generate", "--replay", f"a/{name}", "--model", tiny, "--device", "cpu")
        code, _, err = run(*words, "--out", f"again-{Path(name).stem}")
        assert code == 0, err
    assert {**tree(Path("again-run")), "samples/00000.jsonl": b""} == {**whole, "samples/00000.jsonl": b""}
    one = tree(Path("again-000002-v1"))
    assert {"rgb/00000/000002-v1.png", "scores/00000/000002.json"} < one.keys()
    assert all(data == whole[name] for name, data in one.items() if not name.startswith("samples"))


@pytest.mark.parametrize(("form", "workers"), [("shards", 1), ("webdataset", 1), ("parquet", 2)])
def test_shards_hold_the_best_of_files(make: Run, run: Run, form: str, workers: int) -> None:
    words = ("--best", "2/3", "--by", "caption")
    assert make(*words, "--out", "files")[0] == 0
    shards = ("--format", form, "--shard-size", 2, "--workers", workers)
    code, _, err = make(*words, "--out", "out", *shards)
    assert code == 0, err
    there = load_run(Path("out"))
    (place,) = [place for place in there.places if place.folder == "tok_rgb@64"]
    for one in there.samples():
        for number in (0, 1):
            wanted = read_array(Path(f"files/tok_rgb@64/{one.key.text}-v{number}.npy"))
            assert (np.ravel(read_array(Path("out") / one.file(place, number))) == wanted.ravel()).all()
    assert run("verify", "out")[0] == 0
    for made, filed in zip(fourm.read("out"), fourm.read("files"), strict=True):
        assert made.scores is not None
        assert made.scores == filed.scores


def test_calls_give_what_runs_write(make: Run, tiny: Path) -> None:
    assert make("--best", "2/3", "--by", "caption", "--out", "out")[0] == 0
    settings = {"targets": "tok_clip-tok_rgb", "steps": [2, 2], "temps": [3.0, 3.0], "keys": ["00000/000001"]}
    model = fourm.load(tiny, device="cpu")
    found = model(PROMPTS[1], best="2/3", by="caption", progress=False, **settings)
    written = fourm.read("out")["00000/000001"]
    for one, other in zip(found, written, strict=True):
        assert one.scores == other.scores
        assert (one.tokens["tok_rgb"] == other.tokens["tok_rgb"]).all()
        assert (np.asarray(one.rgb) == np.asarray(other.rgb)).all()
    assert model(PROMPTS[1], variations=1, progress=False, **settings).scores is None
    found[0].save("saved")
    assert (
        tree(Path("saved"))["scores/00000/000001.json"] == Path("out/scores/00000/000001.json").read_bytes()
    )


def test_a_dry_run_counts_all_variations_and_writes_those_that_are_kept(make: Run) -> None:
    plans = [
        json.loads(make(*words, "--dry-run", "--json", "--out", "out")[1])
        for words in ((), ("--best", "2/6", "--by", "caption"))
    ]
    (plain,), (best,) = ([one] if isinstance(one, dict) else one for one in plans)
    assert best["passes"] == 6 * len(PROMPTS) * (plain["passes_per_result"] + 1)
    assert (best["results"], best["folders"]["scores"]["files"]) == (2 * len(PROMPTS), len(PROMPTS))
    assert best["folders"]["rgb"]["files"] == 2 * plain["folders"]["rgb"]["files"]
    shards = make("--best", "2/6", "--by", "caption", "--dry-run", "--format", "shards", "--out", "out")[1]
    assert re.search(r"variations of each +the best 2 of 6", shards)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--best", "1/8"), "--best K/N and --by NAME belong together"),
        (("--by", "caption"), "--best K/N and --by NAME belong together"),
        (("--best", "9/8", "--by", "caption"), "--best: '9/8' is not K/N"),
        (("--best", "1/0", "--by", "caption"), "--best: '1/0' is not K/N"),
        (("--best", "0/4", "--by", "caption"), "--best: '0/4' is not K/N"),
        (("--best", "8", "--by", "caption"), "--best: '8' is not K/N"),
        (("--best", "1/8", "--by", "rgb"), "--by: 'rgb' is none of the conditions"),
        (("--best", "1/8", "--by", ""), "--by: names the conditions"),
        (("--best", "1/8", "--by", "caption", "--num-variations", 3), "says how many are made and kept"),
        (("--best", "1/8", "--by", "caption", "--preview", 1), "--preview: "),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_made(make: Run, words: tuple[object, ...], why: str) -> None:
    code, _, err = make("--out", "out", *words)
    assert (code, Path("out").exists()) == (2, False)
    assert why in err


def test_without_conditions_nothing_can_choose(run: Run, tiny: Path) -> None:
    words = ("generate", "--data", "empty", "--num-samples", 1, "--model", tiny, "--targets", "tok_rgb")
    code, _, err = run(*words, "--best", "1/8", "--by", "caption")
    assert (code, "--by: no condition is given whole" in err) == (2, True)


def test_what_cannot_be_scored_is_left_out_and_what_cannot_be_read_fails(
    run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = Path("data/caption")
    captions.mkdir(parents=True)
    (captions / "a.txt").write_text(PROMPTS[0])
    (captions / "b.txt").write_text("")
    found = iter([math.nan, -3.0, -2.0, math.nan, math.nan, -1.0])
    monkeypatch.setattr("fourm.runs.best.log_likelihood", lambda *given: [next(found)])
    words = ("generate", "--data", "data", "--model", tiny, "--device", "cpu", *TARGETS, "--out", "out",
             "--best", "2/3", "--by", "caption")  # fmt: skip
    code, _, err = run(*words)
    assert (code, err.count("holds no word")) == (3, 2), err
    assert json.loads(Path("out/scores/a.json").read_text()) == {
        "by": ["caption"], "kept": [2, 1], "scores": [None, [-3.0], [-2.0]],
    }  # fmt: skip
    code, _, err = run(*words, "--overwrite")
    assert (code, err.count("likelihood of its conditions is not a finite number")) == (3, 1), err
    assert sorted(path.name for path in Path("out/rgb").iterdir()) == ["a-v0.png"]
    assert run("verify", "out")[0] == 0


def test_what_kept_other_parts_in_other_variations_is_not_repeated(run: Run) -> None:
    Image.new("RGB", (64, 64), "red").save("a.png")
    words = ("generate", "a red circle", "a.png", "--targets", "rgb", "--steps", 2,
             "--best", "1/2", "--by", "caption")  # fmt: skip
    for where, code, why in (("0.5", 2, "each variation kept another part"), ("box:0,0,0.5,1", 0, "")):
        assert run(*words, "--keep", f"rgb:{where}", "--out", where)[0] == 0
        for source in ("run.json", "rgb/a.png"):
            found, _, err = run("generate", "--replay", f"{where}/{source}", "--out", "again", "--overwrite")
            assert (found, why in err) == (code, True), err
    assert Path("again/scores/a.json").read_text() == Path(where, "scores/a.json").read_text()
