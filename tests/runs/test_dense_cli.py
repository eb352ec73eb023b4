"""`--sam-passes` from the command line to files: one value per sample, whatever is decoded together."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fourm.data.layout import samples_of_prompts
from fourm.hub.files import find_model
from fourm.inputs.request import Request
from fourm.results.job import plan_places
from fourm.schedule.chain import TargetSpec, make_chain
from fourm.schedule.cost import estimate
from fourm.schedule.plan import parse_chain
from tests import tiny as tiny_model
from tests.results.test_saver import WORDS
from tests.runs.test_generate_cli import tree

Run = Callable[..., tuple[int, str, str]]
PROMPTS = ("a red circle", "a blue square", "a green triangle")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that reads and writes instances."""
    words = [*tiny_model.WORDS, *WORDS]
    size = len(tiny_model.SPECIAL) + len(words)
    rows = [{**row, "vocab_size": size} if row["name"] == "caption" else row for row in tiny_model._rows()]
    rows.append({"name": "sam_instance", "max_tokens": 96, "vocab_size": size})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_model, "WORDS", words)
        patch.setattr(tiny_model, "_rows", lambda: rows)
        for key in ("domains_in", "domains_out"):
            patch.setitem(tiny_model.CONFIG, key, [*tiny_model.CONFIG[key], "sam_instance"])  # type: ignore[misc]
        return tiny_model.build_tiny(tmp_path_factory.mktemp("model") / "sam")


def generate(run: Run, folder: Path, out: str, *words: object) -> tuple[int, str, str]:
    return run("generate", *PROMPTS, "--model", folder, "--out", out, "--temps", 1.0, "--top-p", 0, *words)


def texts(out: Path, name: str = "*") -> dict[str, str]:
    """What the model wrote, by the name of the sample: random words keep to no grammar."""
    files = sorted(out.glob(f"malformed/sam_instance/00000/{name}.json"))
    return {file.stem: json.loads(file.read_text())["text"] for file in files}


def test_passes_are_one_value_and_one_file_whatever_is_decoded_together(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    words = ("--targets", "sam_instance", "--tokens", 30)
    for name, size in (("one", 1), ("three", 3), ("auto", "auto")):
        code, _, err = generate(run, folder, name, *words, "--sam-passes", 5, "--batch-size", size)
        assert code == 0, err
    assert tree(tmp_path / "one") == tree(tmp_path / "three") == tree(tmp_path / "auto")
    assert sorted(p.name for p in (tmp_path / "one/sam_instance/00000").iterdir()) == [
        f"00000{n}.json" for n in range(3)
    ]
    assert generate(run, folder, "single", *words)[0] == 0
    dense, single = texts(tmp_path / "one"), texts(tmp_path / "single")
    assert len(dense) == 3
    for name, text in dense.items():
        assert text.startswith(single[name])
        assert len(text.split()) > 2 * len(single[name].split())
    record = json.loads((tmp_path / "one" / "run.json").read_text())
    assert record["schedule"]["steps"][0]["passes"] == 5


def test_a_run_with_passes_is_resumed_and_repeated(run: Run, folder: Path, tmp_path: Path) -> None:
    words = ("--target", "sam_instance:passes=3,tokens=20")
    assert generate(run, folder, "whole", *words)[0] == 0
    whole = tree(tmp_path / "whole")
    (tmp_path / "whole/sam_instance/00000/000001.json").unlink()
    assert generate(run, folder, "whole", *words, "--resume")[0] == 0
    assert tree(tmp_path / "whole") == whole
    code, _, err = generate(run, folder, "whole", "--target", "sam_instance:tokens=20", "--resume")
    assert code == 2
    assert "passes" in err


def test_more_than_can_be_read_fails_unless_it_comes_last(run: Run, folder: Path, tmp_path: Path) -> None:
    # 40 texts of at most 29 words: too many for a table of 512, unless nothing follows.
    passes = ("--sam-passes", 40, "--tokens")
    code, _, err = generate(run, folder, "last", "--targets", "tok_clip-sam_instance", *passes, "64-30")
    assert code == 0, err
    code, _, err = generate(run, folder, "first", "--targets", "sam_instance-tok_clip", *passes, "30-64")
    assert code == 3, err
    failures = (tmp_path / "first" / "failures.jsonl").read_text().splitlines()
    assert len(failures) == 3
    for line in failures:
        reason = json.loads(line)["reason"]
        assert reason.startswith("sam_instance: its 40 passes have ")
        assert reason.endswith(
            "but the model can read 512 for tok_clip@64; make sam_instance the last target, "
            "or ask for fewer passes"
        )
    assert not list((tmp_path / "first").rglob("tok_clip@64/**/*.npy"))
    few = ("--sam-passes", 3, "--tokens", "30-64")
    assert generate(run, folder, "few", "--targets", "sam_instance-tok_clip", *few)[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--targets", "sam_instance", "--sam-passes", 0), "--sam-passes: 0 passes; give 1 to 1000"),
        (("--targets", "sam_instance", "--sam-passes", -3), "--sam-passes: -3 passes; give 1 to 1000"),
        (("--targets", "sam_instance", "--sam-passes", 10**12), "--sam-passes: 1000000000000 passes; give 1"),
        (("--targets", "sam_instance", "--sam-passes", "many"), "--sam-passes: 'many' is not a whole number"),
        (("--targets", "sam_instance", "--sam-passes", "2-3"), "--sam-passes: 2 values for 1 target"),
        (
            ("--targets", "tok_rgb", "--sam-passes", 2),
            "--sam-passes: predictions of tok_rgb@64 cannot be joined, only those of sam_instance",
        ),
        (
            ("--target", "tok_rgb:passes=2"),
            "--target tok_rgb: passes: predictions of tok_rgb@64 cannot be joined, only those of ",
        ),
        (
            ("--target", "caption:passes=2", "--cond", "none"),
            "--target caption: passes: predictions of caption cannot be joined, only those of sam_instance",
        ),
    ],
)
def test_passes_that_cannot_be_are_refused_in_a_sentence(
    run: Run, folder: Path, words: tuple[object, ...], said: str
) -> None:
    code, out, err = run("schedule", "validate", "--model", folder, *words)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())


def test_a_list_gives_passes_to_the_targets_that_can_have_them(run: Run, folder: Path) -> None:
    code, out, _ = run(
        "schedule", "show", "--json", "--model", folder, "--targets", "tok_clip-sam_instance-tok_rgb",
        "--sam-passes", 32,
    )  # fmt: skip
    assert code == 0
    steps: list[Mapping[str, Any]] = json.loads(out)["steps"]
    assert {step["target"]: step.get("passes") for step in steps} == {
        "tok_clip@64": None, "sam_instance": 32, "tok_rgb@64": None,
    }  # fmt: skip
    code, out, _ = run("schedule", "show", "--model", folder, "--targets", "sam_instance", "--sam-passes", 32)
    assert "32 x 96" in out


def test_a_program_is_refused_as_well(folder: Path, tmp_path: Path) -> None:
    from fourm.errors import UsageError

    chain = make_chain([TargetSpec("tok_clip@64", 64, "roar", 2, passes=2)], ["caption"])
    asked = Request(find_model(folder), chain, samples_of_prompts(["a"]), tmp_path / "out", device="cpu")
    with pytest.raises(UsageError, match="cannot be joined"):
        plan_places(asked)


def test_passes_are_counted_and_bounded(folder: Path) -> None:
    model = find_model(folder)
    one, many = (
        parse_chain(f"--cond caption --target sam_instance:passes={n},tokens=30", model) for n in (1, 32)
    )
    first, dense = (estimate(chain, model) for chain in (one, many))
    assert (dense.passes, dense.tokens) == (32 * first.passes, 32 * first.tokens)
    assert first.activations < dense.activations < estimate(many, model, batch_size=8).activations
    assert estimate(many, model, max_rows=4).activations < dense.activations
    assert parse_chain(many.to_text(), model) == many
    assert "passes" not in one.to_text()
