"""YAML and JSON: what stands in a file is plain or typed data, or a sentence that names the place."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fourm.errors import FourMError, UsageError
from fourm.modalities.registry import Kind, load_registry
from fourm.modalities.typed import Limits, to_type
from fourm.modalities.yaml_files import read_mapping, read_rows
from fourm.schedule.settings import read_settings

Run = Callable[..., tuple[int, str, str]]
FEW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)

# Values that are no plain data, or that YAML's own reader stumbles over.
VALUES = {
    "a timestamp that is none": "!!timestamp xx",
    "a timestamp": "!!timestamp 2024-01-01",
    "a truth value that is none": "!!bool foo",
    "an integer that is none": "!!int foo",
    "an empty integer": "!!int ''",
    "a sign as an integer": "!!int '-'",
    "a number that is none": "!!float foo",
    "bytes": "!!binary aGFsbG8=",
    "bytes that are none": "!!binary äö",
    "a set": "!!set {a, b}",
    "pairs": "!!pairs [a: 1]",
    "an ordered mapping": "!!omap [a: 1]",
    "an object": "!!python/object/apply:os.getcwd []",
    "somebody's tag": "!mine 3",
    "half a character": r'"\ud800"',
    "a list with half a character": r'[a, "\udfff"]',
    "no character": r'"\Uffffffff"',
    "an integer of many digits": "1" * 100_000,
    "an integer of many digits in base 16": "0x" + "f" * 100_000,
    "an integer of many digits in base 60": "1" + ":59" * 30_000,
    "a list within itself": "&a [*a]",
    "a mapping as its own key": "&a {*a : 1}",
    "a list as a key": "{[a]: 1}",
    "deep lists": "[" * 200 + "]" * 200,
    "a merge of nothing": "{<<: 3}",
    "the value sign": "=",
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_that_is_no_plain_data_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"# first\ntemps: {VALUES[name]}\n")
    with pytest.raises(UsageError, match=rf"^{re.escape(str(path))}, line [12]:") as caught:
        read_mapping(path)
    assert len(str(caught.value)) < 300
    path.write_text(f"- name: tok_depth@64\n  title: {VALUES[name]}\n")
    with pytest.raises(UsageError, match=rf"^{re.escape(str(path))}, line [12]:"):
        read_rows(path)


@pytest.mark.parametrize("name", VALUES)
def test_a_wrong_value_ends_with_2_in_settings_and_in_modalities(run: Run, tiny: Path, name: str) -> None:
    Path("x.yaml").write_text(f"cfg_scales: {VALUES[name]}\n")
    code, out, err = run("schedule", "validate", "--model", tiny, "-gc", "x.yaml")
    assert (code, out) == (2, "")
    assert err.startswith("fourm: x.yaml, line 1: ")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01 10:00:00", "2024-01-01 10:00:00"),
        ("[1, 2.5, true, ~, x]", [1, 2.5, True, None, "x"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("!!str 5", "5"),
        (".inf", float("inf")),
        ("-3", -3),
        ('"\\u00e4"', "ä"),
    ],
)
def test_plain_data_is_read_and_a_date_is_text(tmp_path: Path, text: str, value: object) -> None:
    (tmp_path / "x.yaml").write_text(f"\ufeffkey: {text}\n", encoding="utf-8")
    assert read_mapping(tmp_path / "x.yaml") == {"key": (value, f"{tmp_path}/x.yaml, line 1")}


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: 1\nb: \x07\n", 2), ('a: 1\n\nb: "\\Uffffffff"\n', 3), (f"%YAML {'1' * 5000}.1\n---\na: 1\n", 1),
     ("a: 1\nb: [\n", 3), ("a: 1\nb: *c\n", 2), ("a: 1\n" + "[" * 5000, 2), ("a: 1\n---\nb: 2\n", 2),
     ("x" * 5000 + ": 1", 1), ('"\\ud800": 1', 1)],
)  # fmt: skip
def test_text_that_is_no_yaml_is_named_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UsageError, match=rf"x\.yaml, line {line}: ") as caught:
        read_mapping(tmp_path / "x.yaml")
    assert len(str(caught.value)) < 300


def test_a_large_value_is_shown_in_short(run: Run, tiny: Path) -> None:
    for key in ("temps", "seed", "dtype", "target_domains"):
        for value in (["x" * 1000] * 10, {"a" * 10_000: 1}, "x" * 10_000):
            Path("x.yaml").write_text(f"{key}: {json.dumps(value)}\n")
            _, _, err = run("schedule", "validate", "--model", tiny, "-gc", "x.yaml")
            assert len(err) < 2100


SCALARS = st.one_of(
    st.text(max_size=8), st.integers(), st.floats(), st.booleans(), st.none(),
    st.sampled_from([value for value in VALUES.values() if len(value) < 1000]),
    st.sampled_from("2024-01-01 .nan -.inf 1:30 0b1 *a &a !!map demo tok_rgb tok_rgb@64 [8,8] '\\0'".split()),
).map(str)  # fmt: skip
KEYS = st.sampled_from(
    """name like kind max_tokens vocab_size grid patch_size image_size max_positions embedding_width positions
    codec tokenizer folder suffix title labels rgb_defaults defaults temps seed dtype cfg_scales target model
    target_domains output_dir num_samples decoding_steps token_decoding_schedules top_k data_path rgb_tok_id
    1 ~""".split()
)
LINES = st.lists(st.tuples(KEYS, SCALARS), max_size=5)


@FEW
@given(lines=LINES, junk=st.text(max_size=20))
@example(lines=[("name", "tok_rgb@64"), ("defaults", "{scheme: roar, temperature: .nan}")], junk="")
def test_whatever_stands_in_a_file_is_read_or_refused_with_a_sentence(
    tmp_path: Path, lines: list[tuple[str, str]], junk: str
) -> None:
    path = tmp_path / "x.yaml"
    rows = [f"{key}: {value}" for key, value in lines]
    for text in ("\n".join([*rows, junk]), "- " + "\n  ".join(rows) + "\n" + junk, junk):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        for read in (lambda: read_settings([path], {}), lambda: load_registry(path)):
            try:
                found = str(read())
            except FourMError as error:
                found = str(error)
            found.encode()


@FEW
@given(data=st.binary(max_size=40))
def test_whatever_bytes_a_file_has_it_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.yaml").write_bytes(data)
    for read in (lambda path: read_settings([path], {}), load_registry):
        try:
            str(read(tmp_path / "x.yaml")).encode()
        except FourMError as error:
            str(error).encode()


def test_lists_that_are_too_deep_are_refused_where_they_are(tmp_path: Path) -> None:
    """The reader's time grows with the square of the depth: ten thousand lists took minutes."""
    path = tmp_path / "deep.yaml"
    path.write_text("a:\n" + " [\n" * 10_000 + " ]\n" * 10_000)
    with pytest.raises(UsageError, match=r"line (3[0-9]|40): not valid YAML .*more than 32 lists"):
        read_mapping(path)


@dataclass(frozen=True)
class Inner:
    """What stands in a list of the record below."""

    name: Annotated[str, Limits(1)]
    weights: tuple[float, float] | None = None


@dataclass(frozen=True)
class Record:
    """A record with every kind of type."""

    count: Annotated[int, Limits(1, 9)]
    kind: Kind
    stage: Literal["base", "sr"] = "base"
    rows: tuple[Inner, ...] = ()
    files: Mapping[str, bool] = field(default_factory=dict)
    rest: Any = None


def test_data_becomes_a_typed_record_with_its_defaults() -> None:
    rows = [{"name": "a", "weights": [1, 2.5]}, {"name": "b", "weights": None}]
    data = {"count": 9, "kind": "grid", "rows": rows, "files": {"x": True}, "rest": [1]}
    wanted = Record(9, Kind.GRID, "base", (Inner("a", (1.0, 2.5)), Inner("b")), {"x": True}, [1])
    assert to_type(Record, data, "run") == wanted
    assert to_type(Record, {"count": 1, "kind": "grid"}, "run") == Record(1, Kind.GRID)
    assert to_type(Record, data | {"more": 1}, "run", strict=False) == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "run.count is 0, expected a whole number, 1 to 9"),
        ({"count": True}, "run.count is True, expected a whole number"),
        ({"kind": "x"}, "run.kind is 'x', expected one of pixels, grid, sequence, embedding"),
        ({"kind": ["grid"]}, r"run.kind is \['grid'\]"),
        ({"stage": "other"}, "run.stage is 'other', expected one of base, sr"),
        ({"rows": {}}, "run.rows is {}, expected a list"),
        ({"rows": [{"name": ""}]}, r"run.rows\[0\].name is '', expected text of length 1 or more"),
        ({"rows": [{}]}, r"run.rows\[0\] has no 'name'"),
        ({"rows": [5]}, r"run.rows\[0\] is 5, expected a mapping"),
        ({"rows": [{"name": "a", "weights": [1]}]}, r"weights is \[1\], expected a list of 2"),
        (
            {"rows": [{"name": "a", "weights": [1, float("nan")]}]},
            r"weights\[1\] is nan, expected a finite number",
        ),
        (
            {"rows": [{"name": "a", "weights": [1, 10**400]}]},
            r"weights\[1\] is 10+\.\.\., expected a finite number",
        ),
        ({"rows": [{"name": "a\0"}]}, "expected text"),
        ({"files": {"x": 1}}, "run.files.x is 1, expected true or false"),
        ({"files": {3: True}}, "run.files: a key is 3, expected text"),
        ({"stages": 1}, "run has an unknown key 'stages'; did you mean 'stage'"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}"):
        to_type(Record, {"count": 1, "kind": "grid"} | change, "run")


def test_all_problems_are_named_together_and_many_are_counted() -> None:
    with pytest.raises(ValueError, match=r"run.count is 'x', .*; run.kind is 3, .*; run.stage is None"):
        to_type(Record, {"count": "x", "kind": 3, "stage": None}, "run")
    with pytest.raises(ValueError, match=r"^n\[0\] is 1, .*; n\[2\] is 1, expected text; and 97 more$"):
        to_type(tuple[str, ...], [1] * 100, "n")
