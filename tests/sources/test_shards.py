"""Shards of an input hold the samples that are read of the whole, under the same names."""

import errno
import io
import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fourm.data import lines
from fourm.data.layout import Sample
from fourm.errors import FourMError, UsageError
from fourm.files.opening import read_bytes
from fourm.hub.files import ModelFiles, find_model
from fourm.sources.reading import read_samples
from fourm.sources.shards import Shards, list_shards
from fourm.sources.source import Source

NOTHING = io.BytesIO()
TEXTS = {
    "plain.txt": "a red circle\n\n \x1f\n  a blue square  \r\na\rb\ngreen triangle",
    "mark.txt": "\ufeffa red circle\na blue square\n",
    "table.tsv": 'n\tcaption\n1\ta red "circle"\n\t\n2\ta blue\rsquare\r\n',
    "table.csv": 'caption,n\n"a red\ncircle",1\n,\n"a ""blue"" square",2\r\nlast,3',
    "lines.jsonl": '{"text": "a red circle"}\n\n{"text": "a blue\\nsquare"}\n{"text": "x", "y": 2}\n',
    "bare.jsonl": '"a red circle"\n"a blue square"\n',
}


@pytest.fixture(scope="module")
def model() -> ModelFiles:
    return find_model("demo")


def read(shards: Shards) -> list[Sample]:
    """The samples of all shards, read by another process, the last shard first."""
    again: Shards = pickle.loads(pickle.dumps(shards))
    found = {shard.number: shards.samples(shard).samples for shard in reversed(again.shards)}
    assert [len(found[shard.number]) for shard in shards.shards] == [one.count for one in shards.shards]
    return [sample for number in sorted(found) for sample in found[number]]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("size", [1, 2, 1000])
def test_ranges_of_lines_have_the_prompts_of_the_file(
    name: str, size: int, model: ModelFiles, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(TEXTS[name].encode())
    for count in (None, 1, 2):
        source = Source(data=str(tmp_path / name), num_samples=count)
        whole = read_samples(source, ["caption"], model, NOTHING).samples
        shards = list_shards(source, ["caption"], model, NOTHING, size=size)
        assert read(shards) == list(whole)
        assert all(shard.count == size for shard in shards.shards[:-1])
        assert shards.total == len(whole)


@pytest.mark.parametrize("block", [1, 30, 1 << 20])
def test_lines_are_found_in_blocks_of_any_size(
    block: int, model: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_BLOCK", block)
    texts = ["a", "\u3000", "赤い丸", "\u2003\x85\xa0\u1680", "é", "", "b c", "\x1f \t"] * 3
    for name, end in (("x.txt", "\n"), ("x.txt", "\r\n"), ("x.tsv", "\n")):
        path = tmp_path / name
        head = ["caption"] if name == "x.tsv" else []
        path.write_bytes(end.join([*head, *texts]).encode())
        whole = read_samples(Source(data=str(path)), ["caption"], model, NOTHING).samples
        assert len(whole) == 12
        for size in (1, 3, 5):
            found = list_shards(Source(data=str(path)), ["caption"], model, NOTHING, size=size)
            assert read(found) == list(whole)
        path.write_bytes(end.join([*head, *["a cat"] * 9, ""]).encode())
        assert len(read(list_shards(Source(data=str(path)), ["caption"], model, NOTHING, size=4))) == 9


def test_a_shard_of_lines_needs_three_numbers(model: ModelFiles, tmp_path: Path) -> None:
    """So that a process can hold those of a billion prompts, and send them to others."""
    path, sizes = tmp_path / "x.txt", list[int]()
    for count in (1000, 3000):
        path.write_text("a red circle\n" * count)
        sizes.append(
            len(pickle.dumps(list_shards(Source(data=str(path)), ["caption"], model, NOTHING, size=1)))
        )
    assert sizes[1] - sizes[0] <= 2000 * 3 * 8 + 100


def test_a_file_without_an_ending_is_lines_or_json_lines_as_the_conditions_need(
    model: ModelFiles, tmp_path: Path
) -> None:
    path = tmp_path / "p"
    path.write_text('{"caption": "a red circle", "det": []}\n{"caption": "a blue square", "det": []}\n')
    for conditions in (["caption", "det"], ["det"]):
        whole = read_samples(Source(data=str(path)), conditions, model, NOTHING).samples
        assert read(list_shards(Source(data=str(path)), conditions, model, NOTHING, size=1)) == [*whole]


def test_standard_input_and_typed_prompts_are_shards_too(model: ModelFiles) -> None:
    text = b"a red circle\na blue square\na green triangle\n"
    whole = read_samples(Source(data="-"), ["caption"], model, io.BytesIO(text)).samples
    assert read(list_shards(Source(data="-"), ["caption"], model, io.BytesIO(text), size=2)) == list(whole)
    prompts = tuple(text.decode().splitlines())
    assert read(list_shards(Source(prompts), ["caption"], model, NOTHING, size=2)) == list(whole)
    asked = Source(data=None, subset_seed=3, num_samples=5)
    whole = read_samples(asked, ["caption"], model, NOTHING).samples
    assert read(list_shards(asked, ["caption"], model, NOTHING, size=2)) == list(whole)


def test_nothing_as_input_is_ranges_of_numbers(model: ModelFiles) -> None:
    source = Source(data="empty", num_samples=2_500_001)
    shards = list_shards(source, [], model, NOTHING)
    assert len(shards.shards) == 2501
    assert [sample.key.path for sample in shards.samples(shards.shards[-1]).samples] == ["02500/2500000"]
    assert (shards.shards[42].name, shards.shards[-1].count) == ("00042", 1)
    assert len({shard.name for shard in shards.shards[7:9]}) == 2
    with pytest.raises(UsageError, match="num_samples"):
        list_shards(Source(data="empty"), [], model, NOTHING)
    for size, said in ((0, "one sample or more"), (1, "makes 2,500,001 shards")):
        with pytest.raises(UsageError, match=said):
            list_shards(source, [], model, NOTHING, size=size)


def test_a_prompt_that_cannot_be_read_is_the_failure_of_its_sample(model: ModelFiles, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red circle\n" + "word " * 3000 + "\na blue square\n")
    source = Source(data=str(tmp_path / "p.txt"))
    problems = [one.problem for one in read(list_shards(source, ["caption"], model, NOTHING, size=2))]
    assert [bool(problem) for problem in problems] == [False, True, False]
    with pytest.raises(UsageError) as whole:
        read_samples(source, ["caption"], model, NOTHING)
    assert str(whole.value) == problems[1]


@pytest.mark.parametrize(
    ("name", "row", "problem"),
    [
        ("p.jsonl", '{"other": 1}', "line 4 has no text under 'text'"),
        ("p.tsv", "a\tb\tc", "line 4 has 3 cells, where the header has 1"),
        ("p.csv", '"', "is not a .csv table from line 4"),
        ("p.txt", "\udcff", "line 4 is not UTF-8"),
    ],
)
def test_messages_name_the_line_of_the_file(
    name: str, row: str, problem: str, model: ModelFiles, tmp_path: Path
) -> None:
    first = {"p.jsonl": json.dumps({"text": "x"})}.get(name, "text")
    good = first if name == "p.jsonl" else "a red circle"
    data = "\n".join([first, good, good, row]).encode(errors="surrogateescape")
    (tmp_path / name).write_bytes(data)
    source = Source(data=str(tmp_path / name))
    try:  # a line fails alone
        problems = [one.problem for one in read(list_shards(source, ["caption"], model, NOTHING, size=2))]
    except UsageError as error:  # where quotation marks are odd, nobody knows what the rows are
        problems = [str(error)]
    assert problem in problems[-1]
    assert not any(problems[:-1])
    with pytest.raises(UsageError, match=problem):  # what is wrong in the first shard is said at once
        list_shards(source, ["caption"], model, NOTHING, size=4)


def test_a_line_beyond_any_memory_is_refused(
    model: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_BYTES", 1000)
    for name in ("p.txt", "p.csv", "p.jsonl"):
        (tmp_path / name).write_text("{" * 2000)
        with pytest.raises(UsageError, match=r"cannot be read \(a line of more than 0 MiB\)"):
            list_shards(Source(data=str(tmp_path / name)), ["caption"], model, NOTHING)


def test_prompts_with_marks_are_listed_whole(model: ModelFiles, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red circle\na [S_1] square\n")
    shards = list_shards(Source(data=str(tmp_path / "p.txt")), ["caption"], model, NOTHING, size=1)
    assert [sample.caption for sample in shards.listed] == ["a red circle", "a [S_1] square"]


def test_a_file_that_was_cut_since_is_told(model: ModelFiles, tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a red circle\n" * 4)
    shards = list_shards(Source(data=str(path)), ["caption"], model, NOTHING, size=2)
    path.write_bytes(read_bytes(path, 1 << 10)[:30])
    with pytest.raises(UsageError, match="has become shorter"):
        read(shards)


def test_a_shard_is_plain_data(model: ModelFiles, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red circle\na blue square\n")
    shards = list_shards(Source(data=str(tmp_path / "p.txt")), ["caption"], model, NOTHING, size=1)
    said: dict[str, Any] = json.loads(json.dumps(asdict(shards.shards[1])))
    assert said == {
        "number": 1, "name": "00001", "first": 1, "count": 1,
        "parts": ["lines", str(tmp_path / "p.txt"), 13, 27, 2],
    }  # fmt: skip


def test_a_stream_that_cannot_be_kept_is_told(model: ModelFiles) -> None:
    class Full(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FourMError, match=r"standard input cannot be kept in .* \(No space left"):
        list_shards(Source(data="-"), ["caption"], model, Full())
