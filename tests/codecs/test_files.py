"""Files of ids, arrays, JSON, text and pictures: what is written and read, and what is refused."""

import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fourm.codecs.files import (
    pack_ids,
    read_array,
    read_ids,
    read_json,
    read_picture,
    read_text,
)
from fourm.errors import SampleError

Array = NDArray[Any]
FEW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


def refusal(reader: Callable[[Path], Any], path: Path) -> None:
    """Reading gives a value, or a SampleError that names the file; nothing else."""
    try:
        reader(path)
    except SampleError as error:
        message = str(error)
    else:
        return
    assert str(path) in message


def test_ids_are_one_int16_row_and_read_back(tmp_path: Path) -> None:
    ids = np.array([3, 0, 16383, 7])
    (tmp_path / "x.npy").write_bytes(pack_ids(ids))
    stored = np.load(tmp_path / "x.npy", allow_pickle=False)
    assert (stored.dtype, stored.shape) == (np.int16, (1, 4))
    assert read_ids(tmp_path / "x.npy", 4, 16384).tolist() == ids.tolist()


def test_ids_beyond_int16_are_not_wrapped(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(pack_ids(np.array([40000, 1])))
    assert read_ids(tmp_path / "x.npy", 2, 50000).tolist() == [40000, 1]


def test_the_first_of_several_crops_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(12, dtype=np.int16).reshape(3, 4))
    assert read_ids(tmp_path / "x.npy", 4, 20).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([1, 2, 3]), "3 tokens"),
        (np.array([1, 2, 3, 20]), "token 20 is outside"),
        (np.array([1, 2, 3, -1]), "token -1 is outside"),
        (np.array([1.0, 2.0, 3.0, 4.0]), "not a row"),
        (np.zeros((1, 1, 4), dtype=np.int16), "not a row"),
        (np.zeros((0, 4), dtype=np.int16), "not a row"),
        (np.array([None, {}, 1, 2], dtype=object), "never loaded"),
        (np.array(["a", "b", "c", "d"]), "not numbers"),
    ],
)
def test_arrays_that_are_no_ids_are_refused(tmp_path: Path, array: Array, message: str) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(SampleError, match=rf"x\.npy: .*{message}"):
        read_ids(tmp_path / "x.npy", 4, 20)


def test_a_huge_shape_in_a_small_file_reserves_no_memory(tmp_path: Path) -> None:
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000, 1000000), }\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"0")
    with pytest.raises(SampleError, match="truncated or damaged"):
        read_array(tmp_path / "x.npy")


@FEW
@given(
    data=st.binary(max_size=300),
    magic=st.sampled_from([b"", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00", b"PK"]),
)
def test_random_bytes_are_never_more_than_a_sample_error(tmp_path: Path, data: bytes, magic: bytes) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(magic + data)
    for reader in (read_array, read_json, read_text, read_picture):
        refusal(reader, path)


@FEW
@given(data=st.data())
def test_spoilt_files_are_never_more_than_a_sample_error(tmp_path: Path, data: st.DataObject) -> None:
    stream = io.BytesIO()
    np.save(stream, np.arange(16, dtype=np.int16).reshape(1, 16))
    picture = io.BytesIO()
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"]))
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(picture, kind)
    for content, reader in ((stream.getvalue(), read_array), (picture.getvalue(), read_picture)):
        spoilt = bytearray(content[: data.draw(st.integers(0, len(content)))])
        for _ in range(data.draw(st.integers(0, 4)) if spoilt else 0):
            spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
        (tmp_path / "x").write_bytes(spoilt)
        refusal(reader, tmp_path / "x")


def test_missing_files_and_folders_are_sample_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.npy", tmp_path):
        with pytest.raises(SampleError, match=r"cannot be read|not a file, but a folder"):
            read_array(path)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "zero.npy").symlink_to("/dev/zero")
    for name in ("pipe.npy", "zero.npy"):
        with pytest.raises(SampleError, match="not a file"):
            read_array(tmp_path / name)


def test_a_picture_with_too_many_pixels_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    with pytest.raises(SampleError, match="9000 x 9000 pixels are too many"):
        read_picture(tmp_path / "bomb.png")
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    with pytest.raises(SampleError, match=r"bomb\.png"):
        read_picture(tmp_path / "bomb.png")


def test_json_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(b'"' + b"a" * (1 << 25) + b'"'))
    with pytest.raises(SampleError, match="when unpacked"):
        read_json(tmp_path / "x.json.gz")
