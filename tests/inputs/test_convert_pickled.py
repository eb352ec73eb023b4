"""Pickled files read without being run: what NumPy writes is understood, all else is refused."""

import builtins
import os
import pickle
import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourm.inputs import convert
from fourm.inputs.convert import PickledArray, parse_pickled

HEADER = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }" + b" " * 60 + b"\n"
PROTOCOLS = range(3, pickle.HIGHEST_PROTOCOL + 1)


def plain(value: object) -> object:
    """What a pickle describes, with lists for arrays."""
    if isinstance(value, PickledArray):
        return [plain(row) for row in value.rows()]
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return {name: plain(one) for name, one in value.items()} if isinstance(value, dict) else value


def wanted(value: object) -> object:
    """The same of what was pickled."""
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype != object else [wanted(one) for one in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [wanted(one) for one in value]
    return {name: wanted(one) for name, one in value.items()} if isinstance(value, dict) else value


def file_of(value: object, protocol: int = 4) -> bytes:
    return HEADER + pickle.dumps(value, protocol=protocol)


ARRAYS: list[np.ndarray[Any, Any]] = [
    np.arange(24, dtype=np.int64).reshape(2, 3, 4),
    np.asfortranarray(np.arange(24, dtype=">i4").reshape(2, 3, 4)),
    np.arange(12, dtype=np.float32).reshape(3, 4).T,
    np.linspace(0, 1, 5),
    np.array([1, 0], dtype=bool),
    np.array([], dtype=np.int64).reshape(0, 16),
    np.array([0.5, -2.0], dtype=np.float16),
    np.array([255, 3], dtype=np.uint8),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
def test_arrays_are_understood_in_every_layout(array: np.ndarray[Any, Any], protocol: int) -> None:
    value = {"a": [array, array.copy()], "b": (1, -70000, 2**40, 1.5, True, None, "x"), "c": np.float32(0.5)}
    assert plain(parse_pickled(file_of(value, protocol))) == wanted(value)


def test_what_np_save_writes_is_understood(tmp_path: Path) -> None:
    crops = np.empty(2, dtype=object)
    crops[:] = [{"bbox": np.zeros((1, 4), dtype=np.float32)}, {"bbox": []}]
    np.save(tmp_path / "x.npy", crops, allow_pickle=True)
    assert plain(parse_pickled((tmp_path / "x.npy").read_bytes())) == wanted(crops)


def test_the_recorded_files_are_understood_as_numpy_does(golden: Path) -> None:
    for path in sorted((golden / "data" / "mini_dataset" / "sam_instance" / "x").iterdir()):
        assert plain(parse_pickled(path.read_bytes())) == wanted(np.load(path, allow_pickle=True))


class Runs:
    """An object whose pickle calls something."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Plain:
    """An object with a state."""


def harmful(marker: Path) -> list[tuple[bytes, str]]:
    command = f"touch {marker}"
    return [
        (file_of(Runs(os.system, command)), "names 'posix.system'"),
        (file_of([{"points": Runs(eval, f"open({str(marker)!r}, 'w')")}]), "names 'builtins.eval'"),
        (file_of(Runs(getattr, "a", "upper")), "names 'builtins.getattr'"),
        (file_of(Runs(np.load, str(marker))), "names 'numpy.load'"),
        (file_of(Plain()), "names '.*test_convert_pickled.Plain'"),
        (file_of(builtins.exec, 3), "names 'builtins.exec'"),
        (HEADER + b"cos\nsystem\n(S'" + command.encode() + b"'\ntR.", "names 'os.system'"),
        (HEADER + b"(S'" + command.encode() + b"'\nios\nsystem\n.", "a step 'STRING'"),
        (HEADER + b"(cos\nsystem\nX\x01\x00\x00\x00ao.", "names 'os.system'"),
        (HEADER + b"(ios\nsystem\n.", "a step 'INST'"),
        (HEADER + b"\x80\x04cnumpy\nndarray\n)\x81.", "a step 'NEWOBJ'"),
        (HEADER + b"Pname\n.", "a step 'PERSID'"),
        (HEADER + b"\x80\x02\x82\x01.", "a step 'EXT1'"),
        (HEADER + b"\x80\x05\x97.", "a step 'NEXT_BUFFER'"),
        # Arrays and types of arrays as tools: calls with other arguments, states for what has none.
        (HEADER + b"cnumpy\nndarray\n(K\x05tR.", "makes something that is no array"),
        (HEADER + b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\ntR.", "makes something"),
        (HEADER + b"cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb.", "changes something that is no array"),
        (HEADER + b"]}X\x01\x00\x00\x00aK\x01sb.", "changes something that is no array"),
        (HEADER + b"K\x01K\x02R.", "makes something that is no array"),
        (HEADER + b"]}K\x01K\x02s.", "an object without names"),
        (HEADER + b"K\x01K\x02a.", "appends to something that is no list"),
    ]


def test_no_pickle_runs_anything(tmp_path: Path) -> None:
    marker = tmp_path / "was-here"
    cases = harmful(marker)
    for data, message in cases:
        with pytest.raises(ValueError, match=message):
            parse_pickled(data)
    assert not marker.exists()
    assert len(cases) == 21


def test_the_first_of_these_would_run_if_it_were_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "was-here"
    pickle.loads(harmful(marker)[0][0][len(HEADER) :])
    assert marker.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a .npy file"),
        (b"\x93NUMPY\x01\x00", "where one of pickled objects belongs"),
        (b"\x80\x04N.", "not a .npy file"),
        (HEADER, "its pickle is damaged"),
        (HEADER + b".", "its pickle is damaged"),
        (HEADER + b"NN.", "its pickle is damaged"),
        (HEADER + b"\xff", "its pickle is damaged"),
        (HEADER + b"S" + b"x" * 100_000 + b"\n.", "its pickle is damaged .{1,80}$"),
        (HEADER + b"h\x05.", "its pickle is damaged"),
        (HEADER + b"t.", "its pickle is damaged"),
        (HEADER + b"\x87.", "its pickle is damaged"),
        (HEADER + b"a.", "its pickle is damaged"),
    ],
)
def test_what_is_no_such_file_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_pickled(data)


def test_numbers_without_pickle_are_told_apart(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(ValueError, match="an array of numbers, where one of pickled objects belongs"):
        parse_pickled((tmp_path / "x.npy").read_bytes())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ((1, (3,), np.dtype("i4"), False, b"\0" * 11), "not as many entries as its shape says"),
        ((1, (10**12, 10**12), np.dtype("i1"), False, b""), "not as many entries"),
        ((1, (-3,), np.dtype("i4"), False, b"\0" * 12), "a shape or dtype that means nothing"),
        ((1, (1,) * 5, np.dtype("i4"), False, b"\0" * 4), "a shape or dtype that means nothing"),
        ((1, (3,), "i4", False, b"\0" * 12), "a shape or dtype that means nothing"),
        ((1, (3,), np.dtype("c8"), False, b"\0" * 24), "an array holds c8, not numbers"),
        ((1, (3,), np.dtype("O"), False, b"\0" * 24), "an array holds O8, not numbers"),
        ((1, (3,), np.dtype("O"), False, [1]), "not as many entries"),
        ((1, (3,), np.dtype("i4"), False, "abc"), "holds nothing that could be understood"),
        ((1, (3,)), "changes something that is no array"),
    ],
)
def test_arrays_that_contradict_themselves_are_refused(state: object, message: str) -> None:
    class Forged:
        def __reduce__(self) -> Any:
            reconstruct = np.zeros(1).__reduce__()[0]
            return reconstruct, (np.ndarray, (0,), b"b"), state

    with pytest.raises(ValueError, match=message):
        parse_pickled(file_of(Forged()))


def test_a_huge_file_of_steps_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "MAX_STEPS", 1000)
    assert parse_pickled(HEADER + b"]" + b"Na" * 499 + b".") == [None] * 499
    with pytest.raises(ValueError, match="more than 1,000 steps"):
        parse_pickled(HEADER + b"]" + b"Na" * 501 + b".")


def test_promises_of_size_take_no_memory() -> None:
    """Lengths that no file has, places in the memo that a table would need terabytes for, nested sharing."""
    laughs = b"".join(b"(" + b"h%c" % k * 9 + b"tq%c" % (k + 1) for k in range(60))
    cases = [
        HEADER + b"\x8e" + struct.pack("<Q", 1 << 40) + b"abc.",
        HEADER + b"\x96" + struct.pack("<Q", 1 << 40) + b"abc.",
        HEADER + b"Nr" + struct.pack("<I", 0xFFFFFFFF) + b".",
        HEADER + b"(Nq\x00" + laughs + b"t.",
    ]
    tracemalloc.start()
    started = time.perf_counter()
    for data in cases[:2]:
        with pytest.raises(ValueError, match="its pickle is damaged"):
            parse_pickled(data)
    assert parse_pickled(cases[2]) is None
    assert isinstance(parse_pickled(cases[3]), tuple)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    assert time.perf_counter() - started < 5
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # of pickletools, in texts
def test_damaged_files_give_a_sentence_whatever_the_damage(golden: Path) -> None:
    data = (golden / "data" / "mini_dataset" / "sam_instance" / "x" / "s1.npy").read_bytes()
    rng = random.Random(0)
    refused = 0
    for trial in range(3000):
        spoilt = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
        if trial % 3 == 0:
            del spoilt[rng.randrange(len(spoilt)) :]
        try:
            plain(parse_pickled(bytes(spoilt)))
        except ValueError as error:
            assert str(error)  # noqa: PT017 - most of them raise, not all
            refused += 1
        except RecursionError:
            pass  # `plain` above, on a list that holds itself
    assert refused > 1000
