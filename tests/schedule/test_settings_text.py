"""The text of settings: every recorded list, lists that could not be written before, and any text at all."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourm.errors import UsageError
from fourm.schedule.settings import Item, SettingValue, load_layer, parse_target, parse_value

# What the reference misreads, and what the same text means here.
MENDED: dict[str, list[SettingValue]] = {
    "-1.0": [-1.0],
    "3.0--1.0": [3.0, -1.0],
    "1e-3": [1e-3],
    "0.5-1e-3-2": [0.5, 1e-3, 2.0],
    "onex:1e-3:0.5": ["onex:1e-3:0.5"],
    "linear-null": ["linear", None],
    "": [],
}


def test_every_recorded_list_has_its_recorded_meaning(golden: Path) -> None:
    cases = json.loads((golden / "fm" / "sampling" / "cli_lists.json").read_text())
    cases += [
        {"text": c["value"], "dtype": c["type"], "result": c["result"]}
        for c in json.loads((golden / "data" / "cli.json").read_text())["hyphen_lists"]
    ]
    assert len(cases) == 29
    for case in cases:
        text, wanted = case["text"], case["result"]
        item = {"str": Item.CURVE, "int": Item.COUNT, "float": Item.NUMBER}[case["dtype"]]
        if case["dtype"] == "str" and ("onex" not in str(text) and "linear" not in str(text)):
            item = Item.NAME
        if text == "7.5-8":
            with pytest.raises(UsageError, match=r"'7\.5' is not a whole number"):
                parse_value(text, item)
        else:
            assert list(parse_value(text, item)) == MENDED.get(text, wanted), text


@pytest.mark.parametrize(
    ("text", "item", "wanted"),
    [
        ("3.0,-1.0", Item.NUMBER, (3.0, -1.0)),
        (" 3.0 - 0.5 ", Item.NUMBER, (3.0, 0.5)),
        ("1e-3-0.5", Item.NUMBER, (1e-3, 0.5)),
        (".5,5.", Item.NUMBER, (0.5, 5.0)),
        ("None-25", Item.COUNT, (None, 25)),
        ("caption:2.0,tok_depth:-1", Item.NAME, ("caption:2.0", "tok_depth:-1")),
        ("a-b", Item.NAME, ("a", "b")),
        ("50", Item.COUNT_OR_SHARE, (50,)),
        ("0.05", Item.COUNT_OR_SHARE, (0.05,)),
        ("onex:0.5:1e-3-constant", Item.CURVE, ("onex:0.5:1e-3", "constant")),
        ([1, None, "3"], Item.COUNT, (1, None, 3)),
        ([0.5, -1, "1e-3"], Item.NUMBER, (0.5, -1.0, 1e-3)),
        (True, Item.FLAG, (True,)),
        ("false", Item.FLAG, (False,)),
    ],
)
def test_a_list_becomes_values_of_its_type(
    text: object, item: Item, wanted: tuple[SettingValue, ...]
) -> None:
    got = parse_value(text, item)
    assert got == wanted
    assert [type(v) for v in got] == [type(v) for v in wanted]


@pytest.mark.parametrize(
    ("text", "item", "said"),
    [
        ("3-x", Item.NUMBER, "'x' is not a number"),
        ("abc", Item.NUMBER, "'abc' is not a number"),
        ("3.0-", Item.NUMBER, "'3.0-' is not a number"),
        ("3abc", Item.NUMBER, "'3abc' is not a number"),
        ("1e999", Item.NUMBER, "too large"),
        ("nan", Item.NUMBER, "'nan' is not a number"),
        ("\u0661", Item.NUMBER, "'\u0661' is not a number"),
        ("\uff13", Item.COUNT, "'\uff13' is not a whole number"),
        ("1_000", Item.COUNT, "'1_000' is not a whole number"),
        ("2.5", Item.COUNT, "'2.5' is not a whole number"),
        ("9" * 5000, Item.COUNT, "too large"),
        (8.0, Item.COUNT, "'8.0' is not a whole number"),
        (True, Item.COUNT, "'True' is not a whole number"),
        ([[1]], Item.COUNT, "'[1]' is not a whole number"),
        ({"a": 1}, Item.NUMBER, "is not a number"),
        ("a,,b", Item.NAME, "is not a name"),
        (float("nan"), Item.NUMBER, "'nan' is not a number"),
    ],
)
def test_what_is_no_list_is_refused_by_its_piece(text: object, item: Item, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_value(text, item)
    assert said in str(caught.value)


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.sampled_from([",", "-", " - "])
)
def test_any_list_of_numbers_can_be_written(numbers: list[float], separator: str) -> None:
    assert list(parse_value(separator.join(map(repr, numbers)), Item.NUMBER)) == numbers


@given(st.text() | st.text("0123456789.,-+eE:= nNoa"), st.sampled_from(list(Item)))
def test_any_text_is_read_or_refused(text: str, item: Item) -> None:
    with suppress(UsageError):
        assert isinstance(parse_value(text, item), tuple)


@given(st.text() | st.text("abcsteptmp:=,-.0123 "))
def test_any_text_is_a_target_or_brings_a_problem(text: str) -> None:
    name, layer = parse_target(text, "`target`")
    assert isinstance(name, str)
    assert all(problem.startswith("`target`") for problem in layer.problems)


def test_a_whole_target_has_a_name_and_settings() -> None:
    name, layer = parse_target("tok_clip:steps=49, temp=-1e-3,temp-schedule=onex:0.5:0.5", "`target`")
    assert name == "tok_clip"
    values = {key: setting.values for key, setting in layer.settings.items()}
    assert values == {"decoding_steps": (49,), "temps": (-1e-3,), "temp_schedules": ("onex:0.5:0.5",)}
    assert layer.settings["temps"].where == "`target` tok_clip: temp"
    assert parse_target("caption", "`target`")[0] == "caption"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:stepps=4", "unknown key 'stepps'; did you mean 'steps'?"),
        ("a:steps", "steps: needs a value"),
        ("a:steps=", "steps: needs a value"),
        ("a:steps=4,steps=5", "steps: is given twice"),
        ("a:steps=x", "steps: 'x' is not a whole number"),
        ("a:steps=4-5", "steps: '4-5' is not a whole number"),
        ("a:,", "unknown key ''"),
    ],
)
def test_a_mistake_in_a_whole_target_is_named(text: str, said: str) -> None:
    assert said in " ".join(parse_target(text, "`target`")[1].problems)


def test_a_file_knows_the_line_of_every_setting(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("# a comment\ntemps: 3-0.5\n\nmodel: demo\ntmps: 1\ndecoding_steps: [1, x]\n")
    layer, run = load_layer(path)
    assert layer.settings["temps"].where == f"{path}, line 2: temps"
    assert run == {"model": "demo"}
    assert layer.problems == (
        f"{path}, line 5: unknown key 'tmps'; did you mean 'temps'?",
        f"{path}, line 6: decoding_steps: 'x' is not a whole number",
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"temps: [1\n", "not valid YAML"),
        (b"- temps\n", "'key: value' lines were expected"),
        (b"\xff\xfe\x00", "cannot be read as text"),
        (b"temps: 1\ntemps: 2\n", "line 2: 'temps' is given twice"),
        (b"[a, b]: 1\n", "a key must be a plain word"),
        (
            b"temps: !!python/object:os.system x\n",
            "line 1: not valid YAML ('python/object:os.system' is no plain data)",
        ),
        (b"temps: \x00\n", "not valid YAML"),
        (b"[" * 5000, "not valid YAML"),
        (
            "".join(
                f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10 if i else ['x'])}]\n" for i in range(9)
            ).encode(),
            "its aliases expand to more than 100,000 values",
        ),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_layer(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_missing_file_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_layer(tmp_path / "gone.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_layer(tmp_path / "empty.yaml")[0].settings == {}
