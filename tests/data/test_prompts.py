"""Prompt files of every format, and the refusal of malformed ones by line."""

import json
import re
from pathlib import Path

import pytest

from fourm.data.prompts import parse_columns, parse_prompts, read_stream
from fourm.errors import UsageError
from tests.texts import prompts_in


def test_lines_are_prompts_and_blank_ones_are_skipped() -> None:
    assert parse_prompts(b"\xef\xbb\xbfa red circle\r\n\n  a blue  square \n", "f") == [
        "a red circle",
        "a blue  square",
    ]


def test_a_line_separator_inside_a_prompt_is_text() -> None:
    assert parse_prompts("a\u2028b".encode(), "f") == ["a\u2028b"]


def test_tsv_keeps_quotation_marks() -> None:
    data = b'Prompt\tCategory\tNote\na sign that says "Hi\tSigns\t\n"x"\tSigns\tn\n'
    assert parse_prompts(data, "p.tsv", ".tsv") == ['a sign that says "Hi', '"x"']


def test_csv_reads_quotation_marks_and_takes_the_named_column() -> None:
    data = b'id,Caption,other\n1,"a red, round ""circle""",x\n2,b,y\n'
    assert parse_prompts(data, "p.csv", ".csv") == ['a red, round "circle"', "b"]
    assert parse_prompts(data, "p.csv", ".csv", column="other") == ["x", "y"]
    assert parse_prompts(data, "p.csv", ".csv", column="OTHER") == ["x", "y"]


def test_blank_cells_beyond_the_header_and_blank_rows_are_no_fault() -> None:
    assert parse_prompts(b"caption,id\na,1,,\n,,\n\nb,2, \n", "p.csv", ".csv") == ["a", "b"]
    assert parse_prompts(b"caption\tid\t\t\na\t1\nb\t2\t\n", "p.tsv", ".tsv") == ["a", "b"]


def test_json_lines_hold_objects_or_strings() -> None:
    data = b'{"id": 1, "text": "a"}\n\n{"text": "b", "id": 2}\n'
    assert parse_prompts(data, "p.jsonl", ".jsonl") == ["a", "b"]
    assert parse_prompts(b'"a"\n"b"\n', "p.jsonl", ".jsonl") == ["a", "b"]
    assert parse_prompts(data, "p.ndjson", ".ndjson") == ["a", "b"]


@pytest.mark.parametrize("line", ["{a, b}", '{"a": 1}', "{}", '["caption"]', "{" * 10_000])
def test_a_line_with_braces_is_a_prompt(line: str) -> None:
    assert parse_prompts(f"{line}\nb".encode(), "p.txt") == [line, "b"]


@pytest.mark.parametrize(
    ("name", "data", "column", "sentence"),
    [
        ("p.txt", b"", None, "holds no prompt"),
        ("p.txt", b"\n \n", None, "holds no prompt"),
        ("p.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", None, "is a binary file"),
        ("p.txt", "a\nb\nä".encode("latin-1"), None, "line 3 is not UTF-8"),
        ("p.txt", "a".encode("utf-16"), None, "UTF-16"),
        ("p.txt", b"a", "prompt", "`column` is for"),
        ("p.tsv", b"id\tname\n1\tx\n", None, "no column caption, prompt, text among id, name"),
        ("p.tsv", b"id\tname\n1\tx\n", "nam", "no column 'nam' among id, name; did you mean 'name'"),
        ("p.tsv", b"prompt\n", None, "holds no prompt"),
        ("p.csv", b"", None, "holds no prompt"),
        ("p.csv", b'id,prompt\n1,"a\n2,b\n', None, "is not a .csv table from line 2 on"),
        ("p.jsonl", b'"a"\n""\n', None, "line 2 has nothing under 'caption'"),
        ("p.txt", b'\n{"prompt": "a"}\n', None, r"line 2 is JSON, .* whose name ends in .jsonl"),
        ("p.json5", b'{"Caption": "a"}\n', None, "line 1 is JSON"),
        ("p.ndjson", b'{"caption": ""}\n', None, "line 1 has nothing under 'caption'"),
        ("p.txt", "a".encode("utf-32"), None, "UTF-32"),
        ("p.csv", b'prompt\n"a', None, "is not a .csv table"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt"\n', None, "line 2 is not JSON"),
        ("p.jsonl", b'{"prompt": "a"}\n{"x": "b"}\n', None, "line 2 has no text under 'prompt'"),
        ("p.jsonl", b'{"prompt": 3}\n', None, "line 1 has no text"),
        ("p.jsonl", b"[" * 100_000, None, "line 1 is not JSON"),
        ("p.jsonl", b'{"prompt": ' + b"1" * 5000 + b"}", None, "line 1 is not JSON"),
        ("p.jsonl", b'{"prompt": "\\ud800 red"}', None, "line 1 holds half a character"),
        ("p.json", b"[]", None, "not from .json"),
        ("p.csv", b"id,caption\n1,a\n2\n3,b\n", None, "line 3 has 1 cell, where the header has 2"),
        ("p.csv", b"caption,id\na\n", None, "line 2 has 1 cell, where the header has 2"),
        ("p.tsv", b"id\tcaption\n1\ta\n\n2\n", None, "line 4 has 1 cell, where the header has 2"),
        ("p.csv", b"id,caption\n1,a\n4,\n", None, "line 3 has nothing under 'caption'"),
        ("p.tsv", b"id\tprompt\n1\t \n", None, "line 2 has nothing under 'prompt'"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": ""}\n', None, "line 2 has nothing under 'prompt'"),
        ("p.csv", b"id,caption\n1,red, blue\n", None, "line 2 has 3 cells.*quotation marks around a cell"),
        ("p.csv", b"caption\nred, blue\n", None, "line 2 has 2 cells, where the header has 1"),
        ("p.csv", b"caption,id\nred, blue,1\n", None, "line 2 has 3 cells"),
        ("p.csv", b"id,caption\n1,red\\, blue\n", None, "line 2 has 3 cells"),
        ("p.csv", b"id,caption\n1,'red, blue'\n", None, "line 2 has 3 cells"),
        ("p.csv", b'id, caption\n1, "red, blue"\n', None, "line 2 has a blank before a quotation mark"),
        ("p.csv", b'id, caption\n1, "blue"\n', None, "line 2 has a blank before a quotation mark"),
        ("p.csv", b'id,caption\n1,"a\nb"\n2,c,d\n', None, "line 4 has 3 cells"),
        ("p.tsv", b"id\tcaption\n1\ta\tb\n", None, "line 2 has 3 cells, where the header has 2"),
        ("p.csv", b"caption,id,id,caption\na,1,1,b\n", None, "2 columns 'caption'"),
        ("p.jsonl", b'{"prompt": "a", "prompt": "b"}\n', None, "line 1 .*'prompt' .*twice"),
    ],
)
def test_every_malformed_prompt_file_is_refused_with_its_name_and_line(
    tmp_path: Path, name: str, data: bytes, column: str | None, sentence: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=sentence) as caught:
        prompts_in(tmp_path / name, column)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_a_missing_prompt_file_is_refused_with_a_near_name(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a")
    with pytest.raises(UsageError, match=r"did you mean 'prompts\.txt'"):
        prompts_in(tmp_path / "promts.txt")


def test_the_recorded_parti_table_is_read_whole(golden: Path) -> None:
    tables = list((golden / "parti").glob("*.tsv"))
    assert len(tables) == 1
    prompts = prompts_in(tables[0])
    assert len(prompts) == len(tables[0].read_text(encoding="utf-8").strip().split("\n")) - 1
    assert prompts[0] == "bond"


def test_a_stream_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourm.data.prompts.MAX_BYTES", 1 << 20)
    with Path("/dev/zero").open("rb") as endless, pytest.raises(UsageError, match="-: more than 1 MiB"):
        read_stream(endless, "-")


def columns(text: str, suffix: str, *names: str, column: str | None = None) -> list[dict[str, str]]:
    return parse_columns(text.encode(), "x", suffix, names, column)


def test_a_table_gives_several_modalities_a_column_each() -> None:
    wanted = [{"caption": "a cat", "det": "v0=1 v1=2 v2=3 v3=4 cat"}, {"caption": "[S_1]", "det": ""}]
    tsv = "det\tPrompt\nv0=1 v1=2 v2=3 v3=4 cat\ta cat\n\t[S_1]\n"
    csv = 'Prompt,other,det\na cat,1,"v0=1 v1=2 v2=3 v3=4 cat"\n[S_1],2,\n'
    lines = "\n".join(json.dumps(row) for row in wanted)
    assert columns(tsv, ".tsv", "caption", "det") == wanted
    assert columns(csv, ".csv", "caption", "det") == wanted
    assert columns(lines, ".jsonl", "caption", "det") == wanted
    assert columns(tsv, ".tsv", "det") == [{"det": row["det"]} for row in wanted]


def test_data_in_json_lines_stays_json() -> None:
    (row,) = columns('{"metadata": {"n_humans": 2}, "text": "x"}\n', ".jsonl", "caption", "metadata")
    assert json.loads(row["metadata"]) == {"n_humans": 2}


@pytest.mark.parametrize(
    ("text", "suffix", "said"),
    [
        ("caption\nx\n", ".tsv", "no column 'det' among caption"),
        ("a line\n", ".txt", "are columns of a .tsv, .csv or .jsonl file"),
        ('{"caption": "x", "det": ""}\n{"caption": "y"}\n', ".jsonl", "line 2 has nothing under 'det'"),
        ('{"caption": " ", "det": ""}\n', ".jsonl", "line 1 has nothing under 'caption'"),
        ('{"caption": null, "det": ""}\n', ".jsonl", "line 1 has no text under 'caption'"),
        ('{"caption": ["x"], "det": ""}\n', ".jsonl", "line 1 has no text under 'caption'"),
        ('{"caption": 3, "det": ""}\n', ".jsonl", "line 1 has no text under 'caption'"),
        ('{"caption": "\\ud800", "det": ""}\n', ".jsonl", "line 1 holds half a character"),
        ('{"caption": "x", "det": "\\udfff"}\n', ".jsonl", "line 1 holds half a character"),
        ("caption\tdet\n\tx\n", ".tsv", "line 2 has nothing under 'caption'"),
        ("caption,det\n\n\nx,y,z\n", ".csv", "line 4 has 3 cells, where the header has 2"),
        ("caption\tdet\nx\n", ".tsv", "line 2 has 1 cell, where the header has 2"),
        ("[1]\n", ".jsonl", "line 1 is no object"),
        ("\n", ".jsonl", "holds no row"),
        ("caption\tdet\n", ".tsv", "holds no row"),
    ],
)
def test_a_table_without_a_column_for_each_is_refused(text: str, suffix: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        columns(text, suffix, "caption", "det")
