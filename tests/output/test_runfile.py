"""What is read back from `run.json`: values of the right kind that a run can have, or a sentence."""

import json
from dataclasses import MISSING, replace
from pathlib import Path
from typing import Any

import pytest

from fourm.data.layout import Place
from fourm.errors import UsageError
from fourm.output.record import Joining, close_output, read_record
from fourm.output.runfile import RUN, RunRecord, format_run
from tests.folders import snapshot
from tests.output.test_record import ALONE, SETTINGS, begin

ODD = [
    None, 5, -1, 2.5, True, "x", "a\0b", "\ud800", [], {}, [1], ["\0"], [[]], [None], {"a": 1}, {"a": None},
    float("nan"), 10**400, ["x"], {"x": "y"}, {"conditions": [1], "steps": []},
    {"conditions": [], "steps": 5}, {"conditions": [], "steps": [5]}, [{"folder": "caption"}],
]  # fmt: skip


def is_a_record(out: Path) -> bool:
    """False where it is refused; what is read has the kinds that are declared."""
    try:
        read = read_record(out)
    except UsageError:
        return False
    for name in RunRecord.__dataclass_fields__:
        kind = type(getattr(SETTINGS, name))
        assert isinstance(getattr(read, name), int if name == "variation" else kind) or name == "variation"
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
    field = RunRecord.__dataclass_fields__.get(name)
    if field is not None and not field.default is field.default_factory is MISSING:
        assert read_record(out)  # a field that newer versions write may be missing
        return
    with pytest.raises(UsageError, match=f"has no '?{name}"):
        read_record(out)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": -1}, "-1 is no seed"), ({"seed": 2**64}, "is no seed"), ({"samples": 0}, "its counts are"),
        ({"num_variations": 10**9}, "its counts are"), ({"variation": 1}, "no variation 1"),
        ({"variation": -1}, "no variation -1"), ({"stage": "other"}, "its stage is 'other'"),
        ({"detokenizer_steps": 0}, "0 detokenizer steps"), ({"preview": -1}, "previews of -1"),
        ({"origin": {"model": "demo"}}, "origin.revision is None"),
        ({"origin": SETTINGS.as_origin() | {"seed": "1"}}, "origin.seed is '1'"),
    ],
)  # fmt: skip
def test_values_that_no_run_has_are_a_sentence(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    (tmp_path / RUN).write_text(format_run(replace(SETTINGS, **changes), "0123abcd"))
    with pytest.raises(UsageError, match=said):
        read_record(tmp_path)


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
        read_record(tmp_path)


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_every_seed_that_a_run_takes_is_read_back(tmp_path: Path, seed: int) -> None:
    begin(tmp_path, seed=seed)
    assert read_record(tmp_path).seed == seed
