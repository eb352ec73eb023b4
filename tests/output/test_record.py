"""What is read back from `run.json`: values of the right kind that a run can have, or a sentence."""

import json
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import pytest

from fourm.data.dataset import Input
from fourm.data.layout import Place
from fourm.errors import UsageError
from fourm.output.joining import Joining
from fourm.output.processes import close_output
from fourm.output.record import RUN, RunRecord, format_run
from fourm.output.samples import load_run
from fourm.schedule.best import Best
from fourm.schedule.features import Features
from tests.folders import snapshot
from tests.output.test_joining import ALONE, SETTINGS, begin

OPTIONAL = {f.name for f in fields(RunRecord) if f.default is not MISSING or f.default_factory is not MISSING}
DEFAULTS = RunRecord(
    **{f.name: getattr(SETTINGS, f.name) for f in fields(RunRecord) if f.name not in OPTIONAL}
)
ODD = [
    None, 5, -1, 2.5, True, "x", "a\0b", "\ud800", [], {}, [1], ["\0"], [[]], [None], {"a": 1}, {"a": None},
    float("nan"), 10**400, ["x"], {"x": "y"}, {"conditions": [1], "steps": []},
    {"conditions": [], "steps": 5}, {"conditions": [], "steps": [5]}, [{"folder": "caption"}],
    {"conditions": [], "steps": [], "kept": [{"target": 5}]},
]  # fmt: skip


KINDS = {
    "variation": int | None, "batch_size": int | None, "input": Input | None, "shard_size": int | None,
    "shards": int | None, "min_scale": float | None, "features": Features | None, "best": Best | None,
}  # fmt: skip


def is_a_record(out: Path) -> bool:
    """False where it is refused; what is read has the kinds that are declared."""
    try:
        read = load_run(out).record
    except UsageError:
        return False
    for name in RunRecord.__dataclass_fields__:
        kind = KINDS.get(name, type(getattr(SETTINGS, name)))
        assert isinstance(getattr(read, name), kind)
    return True


@pytest.mark.parametrize("name", [*RunRecord.__dataclass_fields__, "identity", "format"])
def test_a_value_of_any_other_kind_in_a_record_is_a_sentence_for_all_readers(
    tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    close_output(begin(out), ALONE)
    record = json.loads((out / RUN).read_text())
    (out / "caption").mkdir()
    (out / "caption" / "a.txt").write_text("x")
    for value in ODD:
        (out / RUN).write_text(json.dumps(record | {name: value}))
        before = snapshot(out)
        if is_a_record(out):
            continue
        said = set[str]()
        for resume in (True, False):
            with pytest.raises(UsageError, match=r"run\.json: is not a record of this program") as caught:
                Joining(out, SETTINGS, ALONE, resume, not resume).enter()
            said.add(str(caught.value))
        assert len(said) == 1
        assert snapshot(out) == before
    del record[name]
    (out / RUN).write_text(json.dumps(record))
    if name in OPTIONAL:
        assert getattr(load_run(out).record, name) == getattr(DEFAULTS, name)
        return
    with pytest.raises(UsageError, match=f"has no '?{name}"):
        load_run(out)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": -1}, "run.seed is -1"), ({"seed": 2**64}, "run.seed is"), ({"samples": 0}, "counts are 0"),
        ({"num_variations": 10**9}, "num_variations is 10+,"), ({"variation": 1}, "no variation 1"),
        ({"variation": -1}, "variation is -1"), ({"stage": "other"}, "stage is 'other'"),
        ({"detokenizer_steps": 0}, "detokenizer_steps is 0"), ({"preview": -1}, "preview is -1"),
        ({"samples": 10**4, "num_variations": 10**4}, "its counts are"),
        ({"origin": {"model": "demo"}}, "origin has no 'revision'"),
        ({"origin": SETTINGS.as_origin() | {"seed": "1"}}, "origin.seed is '1'"),
    ],
)  # fmt: skip
def test_impossible_values_in_a_record_are_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    (tmp_path / RUN).write_text(format_run(replace(SETTINGS, **changes), "0123abcd"))
    with pytest.raises(UsageError, match=said):
        load_run(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"suffix": ""},
        {"suffix": "."},
        {"suffix": "/../x"},
        {"suffix": "\n"},
        {"form": "other"},
        {"folder": "a\0"},
        {"folder": "a" * 256},
        {"folder": "/".join("a" * 130)},
        {"suffix": "." + "a" * 24},
    ],
)
def test_a_place_where_no_run_puts_files_is_a_sentence(tmp_path: Path, changes: dict[str, Any]) -> None:
    place = replace(Place("rgb", ".png"), **changes)
    (tmp_path / RUN).write_text(format_run(replace(SETTINGS, places=(place,)), "0123abcd"))
    with pytest.raises(UsageError, match="is not a record of this program"):
        load_run(tmp_path)


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_every_seed_that_a_run_takes_is_read_back(tmp_path: Path, seed: int) -> None:
    begin(tmp_path, seed=seed)
    assert load_run(tmp_path).record.seed == seed
