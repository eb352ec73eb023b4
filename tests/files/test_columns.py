"""Cells of Parquet and Arrow files as files: pictures, texts, ids, data; whatever is in them."""

import io
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from fourm.codecs.files import file_ending, read_array, read_json, read_picture, read_size, read_text
from fourm.data.containers import is_there
from fourm.errors import MissingError, SampleError, UsageError
from fourm.files import columns
from fourm.files.columns import read_cell, read_columns

PICTURES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(colour: tuple[int, int, int], form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(stream, form)
    return stream.getvalue()


def table(rows: int = 5) -> pa.Table:
    """Columns of every kind that is read; row i is about the number i."""
    pictures = [{"bytes": picture((i, 0, 0)), "path": f"{i}.png"} for i in range(rows)]
    return pa.table({
        "image": pa.array(pictures, PICTURES),
        "jpg": pa.array([picture((0, 0, 0), "WEBP")] * rows, pa.binary()),
        "a dotted.name": [f"text {i}" for i in range(rows)],
        "kind": pa.array(["x"] * rows).dictionary_encode(),
        "tok_rgb": [[i, i + 1] for i in range(rows)],
        "det": [[{"class_name": "circle", "box": [0.0, 0.5]}]] * rows,
        "when": pa.array(list(range(rows)), pa.timestamp("s")),
    })  # fmt: skip


def write(path: Path, given: pa.Table, **options: Any) -> Path:
    """Write a table as the ending says; `datasets` writes streams, `.file.arrow` is the other form."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(given, path, **options)
    else:
        new = pa.ipc.new_file if path.name.endswith(".file.arrow") else pa.ipc.new_stream
        with new(str(path), given.schema) as writer:
            writer.write_table(given, max_chunksize=2)
    return path


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "x.file.arrow"])
def test_a_cell_is_read_like_a_file(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, table(), **({"row_group_size": 2} if name == "x.parquet" else {}))
    found = read_columns(path)
    assert found.num_rows == 5
    assert found.kinds == {
        "image": "pictures", "jpg": "bytes", "a dotted.name": "texts", "kind": "texts",
        "tok_rgb": "whole numbers", "det": "data", "when": "",
    }  # fmt: skip
    for row in (3, 0, 4, 1, 1):  # in any order
        assert read_picture(path / f"{row}.image").getpixel((0, 0)) == (row, 0, 0)
        assert read_size(path / f"{row}.image") == (4, 6)
        assert read_text(path / f"{row}.a dotted.name") == f"text {row}"
        assert read_array(path / f"{row}.tok_rgb").tolist() == [row, row + 1]
        assert read_json(path / f"{row}.det") == [{"class_name": "circle", "box": [0.0, 0.5]}]
    endings = {"image": ".png", "jpg": ".webp", "kind": ".txt", "tok_rgb": ".npy", "det": ".json"}
    assert {column: file_ending(path / f"2.{column}") for column in endings} == endings
    for member, why in {
        "5.image": "has no row 5; it has 5", "x.image": "has no row x", "0.when": "no column 'when'",
        "0": "no column ''",
    }.items():  # fmt: skip
        with pytest.raises(SampleError, match=why):
            read_cell(path, member, 100)


def test_what_lacks_is_said_by_cell(tmp_path: Path) -> None:
    pictures = pa.array(
        [None, {"bytes": None, "path": "/etc/hostname"}, {"bytes": b"no", "path": "a.JPG"}], PICTURES
    )
    path = write(tmp_path / "x.parquet", pa.table({"image": pictures, "text": [None, "", "b"]}))
    for member in ("0.image", "1.image", "0.text"):  # a file that a row names is never opened
        with pytest.raises(SampleError, match=f"'{member[2:]}' of row {member[0]} is empty"):
            read_cell(path, member, 100)
    assert read_cell(path, "2.image", 100) == (".jpg", b"no")
    assert read_text(path / "1.text") == ""


def test_a_cell_above_the_limit_is_cut(tmp_path: Path) -> None:
    given = pa.table({"text": ["a" * 3000], "ids": [list(range(3000))]})
    path = write(tmp_path / "x.parquet", given)
    assert len(read_cell(path, "0.text", 1000)[1]) == 1001
    with pytest.raises(SampleError, match="'ids' of row 0 has more than"):
        read_cell(path, "0.ids", 1000)


def test_audio_and_names_that_lead_nowhere_are_not_read(tmp_path: Path) -> None:
    names = ["sound", "a//b", "twice", "twice"]
    given = pa.Table.from_arrays(
        [pa.array([{"bytes": b"", "path": ""}], PICTURES), *[pa.array(["x"])] * 3], names
    )
    features = {"info": {"features": {"sound": {"_type": "Audio"}}}}
    given = given.replace_schema_metadata({"huggingface": json.dumps(features)})
    assert set(read_columns(write(tmp_path / "x.arrow", given)).kinds.values()) == {""}


def test_nested_nonsense_is_no_column(tmp_path: Path) -> None:
    kind: pa.DataType = pa.string()
    for _ in range(12):
        kind = pa.list_(pa.struct([("x", kind)]))
    given = pa.table(
        {"deep": pa.array([None], kind), "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8()))}
    )
    assert read_columns(write(tmp_path / "x.parquet", given)).kinds == {"deep": "", "map": ""}


def read_all(path: Path) -> str:
    """Read every cell of a file; what is wrong with it, or "" if all of it can be read."""
    try:
        found = read_columns(path)
        for column in (name for name, kind in found.kinds.items() if kind):
            for row in range(min(found.num_rows, 100)):
                read_cell(path, f"{row}.{column}", 1 << 20)
    except (UsageError, SampleError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "x.file.arrow"])
def test_damaged_files_are_one_sentence(tmp_path: Path, name: str) -> None:
    whole = write(tmp_path / name, table(40)).read_bytes()
    assert read_all(tmp_path / name) == ""
    draw, path = random.Random(0), tmp_path / f"damaged-{name}"
    for data in (b"", b"no such file", whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(data)
        said = read_all(path)
        assert str(path) in said
        assert "\n" not in said
    for number in range(60):
        damaged, path = bytearray(whole), tmp_path / f"{number}-{name}"
        for _ in range(draw.randrange(1, 30)):
            damaged[draw.randrange(len(whole))] = draw.randrange(256)
        path.write_bytes(damaged)
        assert "\n" not in read_all(path)


def test_a_small_file_of_large_cells_does_not_fill_the_memory(tmp_path: Path) -> None:
    """A thousand rows that repeat one value of 200 MiB: 200 GiB of cells in a file of 7 KB."""
    big = pa.DictionaryArray.from_arrays(
        pa.array([0] * 1000, pa.int32()), pa.array([b"\0" * (200 << 20)], pa.binary())
    )
    path = tmp_path / "x.parquet"
    write(path, pa.table({"image": big}), compression="zstd", dictionary_pagesize_limit=1 << 30)
    code = (
        "import sys, pathlib; from fourm.files.columns import read_cell;"
        "print(len(read_cell(pathlib.Path(sys.argv[1]), '11.image', 1000)[1]))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "1001\n", done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < max(before, 4 << 20)  # KiB


def test_rows_in_order_are_decoded_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.parquet", pa.table({"n": np.arange(100_000).astype(str)}), row_group_size=50_000
    )
    assert [int(read_cell(path, f"{row}.n", 100)[1]) for row in range(49_000, 53_000)] == [
        *range(49_000, 53_000)
    ]


def test_without_pyarrow_one_sentence_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x.parquet", table())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for read in (lambda: read_columns(path), lambda: read_cell(path, "0.image", 100)):
        with pytest.raises(
            MissingError, match=r"x\.parquet: reading it needs pyarrow; `pip install 'fourm\[parquet\]'`"
        ):
            read()


def memory_of(code: str, *arguments: object) -> int:
    """The most memory, in MiB, of a process that runs `code`; `ru_maxrss` would count the parent's, too."""
    told = f"{code}; print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    given = [sys.executable, "-c", told, *map(str, arguments)]
    done = subprocess.run(given, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[1]) >> 10


@pytest.mark.parametrize("name", ["x.arrow", "x.file.arrow"])
def test_one_batch_of_a_compressed_file_is_in_memory(tmp_path: Path, name: str) -> None:
    """Eight batches of 48 MiB in a file of a few KB, read in order and once backwards."""
    batch = pa.record_batch({"image": pa.array([b"\0" * (1 << 20)] * 48, pa.binary())})
    new = pa.ipc.new_file if name == "x.file.arrow" else pa.ipc.new_stream
    compressed = pa.ipc.IpcWriteOptions(compression="zstd")
    with new(str(tmp_path / name), batch.schema, options=compressed) as writer:
        for _ in range(8):
            writer.write_batch(batch)
    code = (
        "import sys, pathlib; from fourm.files.columns import read_cell; path = pathlib.Path(sys.argv[1]);"
        "[read_cell(path, f'{row}.image', 9) for row in [*range(0, 384, 24), 100]]"
    )
    assert memory_of(code, tmp_path / name) < 300


def test_numbers_are_counted_as_they_are_written(tmp_path: Path) -> None:
    """A list of a billion zeros is a few KB; as int64 it would be 8 GB."""
    numbers = pa.array([np.zeros(1 << 20, dtype=np.int8)], pa.list_(pa.int8()))
    path = write(tmp_path / "x.parquet", pa.table({"tok_rgb": numbers, "none": [[1, None]]}))
    assert len(read_cell(path, "0.tok_rgb", 8 << 20)[1]) > 8 << 20
    with pytest.raises(SampleError, match="'tok_rgb' of row 0 has more than 4 MiB"):
        read_cell(path, "0.tok_rgb", 4 << 20)
    with pytest.raises(SampleError, match="is damaged"):
        read_cell(path, "0.none", 100)


def test_a_file_of_nonsense_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = pa.table({f"{i}": pa.array([0], pa.int8()) for i in range(20_000)})
    path = write(tmp_path / "x.arrow", wide)
    began = time.process_time()
    assert len(read_columns(path).kinds) == 20_000
    assert time.process_time() - began < 5
    monkeypatch.setattr(columns, "_MAX_ROWS", 100)
    path = write(tmp_path / "y.arrow", pa.table({"n": [0] * 101}))
    with pytest.raises(UsageError, match="it says that it has 101 rows"):
        read_columns(path)


def test_an_empty_cell_is_not_there(tmp_path: Path) -> None:
    given = pa.table({"text": ["a", None], "when": pa.array([1, 2], pa.timestamp("s"))})
    path = write(tmp_path / "x.parquet", given)
    there = ["0.text", "1.text", "2.text", "0.when", "0.other", "\u00b2.text", "9" * 5000 + ".text", "text"]
    assert [name for name in there if is_there(path / name)] == ["0.text"]
