"""Converts the pickled SAM instances of the reference (.npy) to JSON. Pickles are parsed here only.

A pickle is a program. Here it is never run: its steps are read one by one, and those that make lists,
numbers, texts and NumPy arrays are simulated with classes of this file; `inputs/weights` has those that make
tensors. All else is refused, so that a file can neither call a function nor fill the memory.
"""

import json
import math
import os
import pickletools
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from fourm.checks.formats import find_flaw
from fourm.data.dataset import list_dataset
from fourm.data.layout import Crop, path_of
from fourm.errors import SampleError, UsageError
from fourm.files.opening import no_folder, read_bytes, real
from fourm.files.writing import check_root, make_all, refuse_inside, remove_leftovers, write_text
from fourm.modalities.figures import PICTURE_SIDE, instances_from_json

FOLDER = "sam_instance"
MAX_BYTES = 1 << 24  # of a file, and of the JSON that it becomes
MAX_ENTRIES = 1 << 24  # of all lists of a file together: a small file can refer to one array many times
MAX_STEPS = 1 << 21  # of a pickle
_SHOWN = 60  # characters of a file that a message shows
# The header of a .npy file of Python objects: magic bytes, length, and a dict with the dtype '|O'.
_HEADER = re.compile(rb"\x93NUMPY[\x01-\x03]\x00(?s:.{2,4})\{[^}]{0,99}'descr': '\|O'[^}]{0,99}\} {0,99}\n")
# Functions and classes that pickles of NumPy arrays name, in versions before 2.0 and since then.
_ALLOWED = frozenset({
    "numpy ndarray", "numpy dtype",
    "numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct",
    "numpy.core.multiarray scalar", "numpy._core.multiarray scalar",
    "numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer",
})  # fmt: skip
# Steps that push their argument on the stack.
_CONSTANTS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "SHORT_BINSTRING", "BINSTRING",
}  # fmt: skip
# How many items a step takes off the stack; None: those since the last mark.
_TAKEN = {"TUPLE": None, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "APPENDS": None, "SETITEM": 2,
          "SETITEMS": None, "STACK_GLOBAL": 2, "REDUCE": 2, "NEWOBJ": 2, "BUILD": 1,
          "BINPERSID": 1}  # fmt: skip
# By the code of a NumPy dtype: its letter for `struct`.
_FORMATS = {"b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I",
            "u8": "Q", "f2": "e", "f4": "f", "f8": "d"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Converted:
    """The result for one file."""

    target: Path
    was_there: bool = False  # it was left as it is
    problem: str = ""  # why it was not converted; "" if it was


def convert_dataset(root: Path, out: Path, overwrite: bool = False) -> Iterator[Converted]:
    """`root/sam_instance/<folder>/<name>.npy` -> `out/sam_instance/<folder>/<name>.json`, one by one.

    A file that cannot be converted has a `problem`. UsageError: root is no dataset, or out lies inside it.
    """
    if not root.is_dir():
        raise no_folder(root)
    if real(out) == real(root):
        raise UsageError(f"`out={out}`: is the dataset itself, where every sample has one file; name another")
    refuse_inside(out, root / FOLDER)
    check_root(out, FOLDER)
    try:
        for sample in list_dataset(root, {FOLDER: FOLDER}).samples:
            target = path_of(out, FOLDER, sample.key, ".json")
            try:
                if sample.problem:
                    raise SampleError(sample.problem)
                was_there = os.path.lexists(target) and not overwrite and _is_complete(target)
                if not was_there:
                    source = sample.files[FOLDER]
                    text = json.dumps(read_instances(source), allow_nan=False, separators=(",", ":")) + "\n"
                    if len(text) > MAX_BYTES:
                        raise SampleError(f"{source}: comes to more than {MAX_BYTES >> 20} MiB of JSON")
                    make_all(out)
                    write_text(out, target, text)
            except SampleError as error:
                yield Converted(target, problem=str(error))
            else:
                yield Converted(target, was_there)
    finally:  # also where the disk is full
        remove_leftovers(out)


def read_instances(path: Path) -> list[object]:
    """The crops of a pickled file as the data of a JSON file. SampleError: it holds anything else."""
    try:
        crops = _ListMaker(MAX_ENTRIES).crops(parse_pickled(read_bytes(path, MAX_BYTES)))
        whole = Crop((PICTURE_SIDE, PICTURE_SIDE), 0, 0, PICTURE_SIDE, PICTURE_SIDE)
        for number in range(max(len(crops), 1)):  # at least once: a file without crops is refused, too
            instances_from_json(crops, replace(whole, number=number))
    except OSError as error:
        raise SampleError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise SampleError(f"{path}: {error}") from error
    return crops


def _is_complete(path: Path) -> bool:
    """False for a truncated file. A complete one is kept, also if somebody has edited it."""
    try:
        flaw = find_flaw(path)
    except OSError:
        return False
    return flaw is None or not flaw.is_cut


@dataclass(slots=True, eq=False)
class _Dtype:
    """Simulates a NumPy dtype."""

    code: str  # "i4"
    order: str = "<"


@dataclass(slots=True, eq=False)
class PickledArray:
    """Simulates a NumPy array. Its numbers stay bytes until they are needed, because most never are."""

    shape: tuple[int, ...] = (0,)
    format: str = ""  # of its numbers, for `struct`; "" = the items are there
    by_columns: bool = False  # Fortran order
    items: Sequence[Any] = ()  # or bytes

    def fill(self, shape: object, dtype: object, by_columns: object, data: object) -> None:
        """Set shape and entries to what a pickle holds. ValueError: they contradict each other."""
        is_shape = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
        if not isinstance(shape, tuple) or not is_shape or len(shape) > 4 or not isinstance(dtype, _Dtype):
            raise ValueError("an array has a shape or dtype that means nothing")
        if not isinstance(data, list | bytes | bytearray):
            raise ValueError("an array holds nothing that could be understood")
        letter = "" if isinstance(data, list) else _FORMATS.get(dtype.code)
        if letter is None:
            raise ValueError(f"an array holds {dtype.code[:_SHOWN]}, not numbers")
        count = math.prod(shape)
        if len(data) != count * (struct.calcsize(letter) if letter else 1):
            raise ValueError("an array has not as many entries as its shape says")
        self.shape, self.by_columns, self.items = shape, bool(by_columns), data
        self.format = f"{dtype.order}{count}{letter}" if letter else ""

    def rows(self) -> list[object]:
        """The entries of the first axis; an array without axes holds one."""
        items = struct.unpack(self.format, self.items) if self.format else self.items  # type: ignore[arg-type]
        if len(self.shape) < 2 or not items:
            return list(items)
        count, size = self.shape[0], len(items) // self.shape[0]
        cuts = [slice(k * size, (k + 1) * size) for k in range(count)]
        if self.by_columns:
            cuts = [slice(k, None, count) for k in range(count)]
        return [PickledArray(self.shape[1:], "", self.by_columns, items[cut]) for cut in cuts]


def parse_pickled(data: bytes) -> object:
    """What a .npy file of pickled objects describes, arrays as `PickledArray`; a ValueError for all else."""
    header = _HEADER.match(data)
    if header is None:
        what = "an array of numbers" if data.startswith(b"\x93NUMPY") else "not a .npy file"
        raise ValueError(f"{what}, where one of pickled objects belongs")
    return simulate(data[header.end() :], Rules(_ALLOWED, _call, _set_state))


@dataclass(frozen=True, slots=True)
class Rules:
    """What the pickles of one kind of file may do, and what it amounts to; ValueError for all else."""

    allowed: frozenset[str]  # functions and classes that may be named
    call: Callable[[object, object], object]  # from the name and arguments of a call to its result
    set_state: Callable[[object, object], None]  # of an object that was made
    refer: Callable[[object], object] | None = None  # to what lies outside of the pickle
    names: tuple[type, ...] = (str,)  # types of the keys of dicts


def simulate(pickle: bytes | BinaryIO, rules: Rules) -> object:
    """What a pickle describes; of an open file, the next one. ValueError: it breaks the rules."""
    stack = _Stack(rules)
    try:
        for number, (name, argument) in enumerate(_steps(pickle)):
            if number == MAX_STEPS:
                raise ValueError(f"its pickle has more than {MAX_STEPS:,} steps")
            stack.step(name, argument)
    except (IndexError, KeyError) as error:
        raise ValueError("its pickle is damaged") from error
    if len(stack.items) != 1:
        raise ValueError("its pickle is damaged")
    return stack.items[0]


def _steps(pickle: bytes | BinaryIO) -> Iterator[tuple[str, object]]:
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            yield opcode.name, argument
    except ValueError as error:
        raise ValueError(f"its pickle is damaged ({str(error)[:_SHOWN]})") from error


@dataclass(slots=True)
class _Stack:
    """The stack machine that runs pickles, but without calls: functions are pushed as their names."""

    rules: Rules
    items: list[object] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[object, object] = field(default_factory=dict)

    def take(self, count: int | None) -> list[object]:
        """Remove and return the last `count` items, or (None) those since the last mark."""
        start = self.marks.pop() if count is None else len(self.items) - count
        if not 0 <= start <= len(self.items):
            raise IndexError(start)
        taken = self.items[start:]
        del self.items[start:]
        return taken

    def step(self, name: str, argument: object) -> None:
        """Carry out one step of the pickle. ValueError: plain data has no such step."""
        items = self.items
        taken = self.take(_TAKEN[name]) if name in _TAKEN else []
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self.marks.append(len(items))
            case "EMPTY_TUPLE" | "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                items.append(tuple(taken))
            case "APPEND" | "APPENDS":
                if not isinstance(changed := items[-1], list):
                    raise ValueError("its pickle appends to something that is no list")
                changed.extend(taken)
            case "SETITEM" | "SETITEMS":
                names, changed = taken[::2], items[-1]
                are_names = len(taken) % 2 == 0 and all(isinstance(one, self.rules.names) for one in names)
                if not isinstance(changed, dict) or not are_names:
                    raise ValueError("its pickle holds an object without names")
                changed.update(zip(names, taken[1::2], strict=True))
            case "GLOBAL" | "STACK_GLOBAL":
                named = " ".join(part for part in taken or [argument] if isinstance(part, str))
                if named not in self.rules.allowed:
                    what = f"its pickle names {named[:_SHOWN].replace(' ', '.')!r}"
                    raise ValueError(f"{what}, which plain data has no use for; it was not run")
                items.append(named.replace("._core.", ".core."))
            case "REDUCE":
                items.append(self.rules.call(*taken))
            case "NEWOBJ" if self.rules.refer is not None:
                items.append(self.rules.call(*taken))
            case "BINPERSID" if self.rules.refer is not None:
                items.append(self.rules.refer(*taken))
            case "BUILD":
                self.rules.set_state(items[-1], *taken)
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if argument is None else argument] = items[-1]
            case "BINGET" | "LONG_BINGET":
                items.append(self.memo[argument])
            case "EMPTY_LIST" | "EMPTY_DICT":
                items.append([] if name == "EMPTY_LIST" else {})
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                items.append(None if name == "NONE" else name == "NEWTRUE")
            case _ if name in _CONSTANTS:
                items.append(argument)
            case _:
                raise ValueError(f"its pickle takes a step '{name}', which plain data has no use for")


def _call(name: object, arguments: object) -> object:
    """The simulated result of a call. ValueError: it makes no array, dtype or number."""
    array = PickledArray()
    match name, arguments:
        case "numpy.core.multiarray _reconstruct", ("numpy ndarray", *_):
            return array
        case "numpy dtype", (str(code), *_):
            return _Dtype(code)
        case "numpy.core.multiarray scalar", (dtype, data):
            array.fill((), dtype, False, data)
            return array.rows()[0]
        case "numpy.core.numeric _frombuffer", (data, dtype, shape, order):
            array.fill(shape, dtype, order == "F", data)
            return array
    raise ValueError("its pickle makes something that is no array")


def _set_state(made: object, state: object) -> None:
    """What `__setstate__` does to a dtype or an array."""
    match made, state:
        case _Dtype(), (_, str(order), *_):
            made.order = ">" if order == ">" else "<"
        case PickledArray(), (_, shape, dtype, by_columns, data):
            made.fill(shape, dtype, by_columns, data)
        case _:
            raise ValueError("its pickle changes something that is no array")


@dataclass(slots=True)
class _ListMaker:
    """Turns arrays and tuples into lists. ValueError: too many entries, counted as often as they are used."""

    left: int  # entries that are still allowed

    def crops(self, value: object) -> list[object]:
        """The crops of a file. Of each instance only its first contour, P x 1 x 2 or P x 2, as P x 2."""
        crops = list[object]()
        for number, crop in enumerate(self.entries(value)):
            if not isinstance(crop, dict) or not {"points", "token_ids", "bbox"} <= crop.keys():
                raise ValueError(f"crop {number} is no object with 'points', 'token_ids' and 'bbox'")
            points = list[object]()
            for contours in map(self.entries, self.entries(crop["points"])):
                contour = self.nested(contours[0], 3) if contours else []
                if not isinstance(contour, list):
                    raise ValueError("a contour is no list of points")
                points.append([p[0] if isinstance(p, list) and len(p) == 1 else p for p in contour])
            others = {key: self.nested(crop[key], 2) for key in ("token_ids", "bbox")}
            crops.append({"points": points, **others})
        return crops

    def nested(self, value: object, depth: int) -> object:
        """A number, or lists of numbers that are nested at most `depth` deep."""
        if isinstance(value, int | float):
            return value
        if depth == 0:
            raise ValueError("lists are nested too deeply")
        return [self.nested(one, depth - 1) for one in self.entries(value)]

    def entries(self, value: object) -> list[object]:
        """The entries of a list, a tuple or the first axis of an array."""
        if not isinstance(value, PickledArray | list | tuple):
            raise ValueError("something else stands where a list or an array belongs")
        self.left -= math.prod(value.shape) if isinstance(value, PickledArray) else len(value)
        if self.left < 0:
            raise ValueError(f"it comes to more than {MAX_ENTRIES:,} entries")
        return value.rows() if isinstance(value, PickledArray) else list(value)
