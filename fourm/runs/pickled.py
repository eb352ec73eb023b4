"""Pickled .npy files as plain data: the only place that touches pickles, and only for `fourm convert`.

A pickle is a program. Here it is never run: its steps are read one by one, and those that make lists,
numbers, texts and NumPy arrays are followed with stand-ins of our own. Whatever else it names is refused, so
that a file can neither call anything nor fill the memory.
"""

import math
import pickletools
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

MAX_STEPS = 1 << 21  # of a pickle
_SHOWN = 60  # characters that a message shows of a file's
_HEADER = re.compile(rb"\x93NUMPY[\x01-\x03]\x00(?s:.{2,4})\{[^}]{0,99}'descr': '\|O'[^}]{0,99}\} {0,99}\n")
# What np.save and NumPy's own pickling name, in versions before and from 2.0 on.
_ALLOWED = {
    "numpy ndarray", "numpy dtype",
    "numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct",
    "numpy.core.multiarray scalar", "numpy._core.multiarray scalar",
    "numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer",
}  # fmt: skip
_CONSTANTS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_LITERALS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_LIST": list,
    "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple,
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_FORMATS = {"b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I",
            "u8": "Q", "f2": "e", "f4": "f", "f8": "d"}  # fmt: skip


@dataclass(slots=True, eq=False)
class Dtype:
    """What stands for a NumPy dtype."""

    code: str  # "i4"
    order: str = "<"

    @property
    def format(self) -> str:
        """The letter of `struct` for one number."""
        if self.code not in _FORMATS:
            raise ValueError(f"an array holds {self.code[:_SHOWN]}, not numbers")
        return _FORMATS[self.code]


@dataclass(slots=True, eq=False)
class Array:
    """What stands for a NumPy array. One of numbers stays bytes until it is needed: it may never be."""

    shape: tuple[int, ...] = (0,)
    dtype: Dtype | None = None  # None: the items are there
    by_columns: bool = False
    data: bytes | bytearray = b""
    items: Sequence[object] = ()

    def fill(self, shape: object, dtype: object, by_columns: object, data: object) -> None:
        """Take the state that a pickle gives it."""
        is_shape = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
        if not isinstance(shape, tuple) or not is_shape or len(shape) > 4 or not isinstance(dtype, Dtype):
            raise ValueError("an array has a shape or dtype that means nothing")
        self.shape, self.by_columns = shape, bool(by_columns)
        if isinstance(data, list):
            self.dtype, self.items, size = None, data, 1
        elif isinstance(data, bytes | bytearray):
            self.dtype, self.data, size = dtype, data, struct.calcsize(dtype.format)
        else:
            raise ValueError("an array holds nothing that could be understood")
        if size * math.prod(shape) != len(data):
            raise ValueError("an array has not as many entries as its shape says")

    def rows(self) -> list[object]:
        """The entries of the first axis; an array without axes holds one."""
        items = self.items
        if self.dtype is not None:
            count = math.prod(self.shape)
            items = struct.unpack(f"{self.dtype.order}{count}{self.dtype.format}", self.data)
        if len(self.shape) < 2:
            return list(items)
        if not items:
            return []
        count, rest = self.shape[0], self.shape[1:]
        size = len(items) // count
        parts = [
            items[k::count] if self.by_columns else items[k * size : (k + 1) * size] for k in range(count)
        ]
        return [Array(rest, None, self.by_columns, items=part) for part in parts]


def parse_pickled(data: bytes) -> object:
    """What a .npy file of pickled objects describes, its arrays as `Array`; a ValueError for all else."""
    header = _HEADER.match(data)
    if header is None:
        what = "an array of numbers" if data.startswith(b"\x93NUMPY") else "not a .npy file"
        raise ValueError(f"{what}, where one of pickled objects belongs")
    stack, steps = _Stack(), _steps(data[header.end() :])
    try:
        for name, argument in islice(steps, MAX_STEPS):
            stack.step(name, argument)
        if next(steps, None) is not None:
            raise ValueError(f"its pickle has more than {MAX_STEPS:,} steps")
    except (IndexError, KeyError) as error:
        raise ValueError("its pickle is damaged") from error
    if len(stack.items) != 1:
        raise ValueError("its pickle is damaged")
    return stack.items[0]


def _steps(pickle: bytes) -> Iterator[tuple[str, object]]:
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            yield opcode.name, argument
    except ValueError as error:
        raise ValueError(f"its pickle is damaged ({str(error)[:_SHOWN]})") from error


@dataclass(frozen=True, slots=True)
class _Name:
    """A function or class that a pickle names; nothing is ever looked up by it."""

    text: str


@dataclass(slots=True)
class _Stack:
    """The machine that a pickle is written for, without its calls."""

    items: list[object] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, object] = field(default_factory=dict)

    def take(self, count: int | None = None) -> list[object]:
        """The last items, or those since the last mark, off the stack."""
        start = self.marks.pop() if count is None else len(self.items) - count
        if not 0 <= start <= len(self.items):
            raise IndexError(start)
        taken = self.items[start:]
        del self.items[start:]
        return taken

    def step(self, name: str, argument: object) -> None:
        """One step of the pickle; what has no meaning here is refused."""
        items = self.items
        if name in _CONSTANTS:
            items.append(argument)
        elif name in _LITERALS:
            items.append(_LITERALS[name]())
        elif name == "MARK":
            self.marks.append(len(items))
        elif name == "TUPLE" or name in _TUPLES:
            items.append(tuple(self.take(_TUPLES.get(name))))
        elif name in ("APPEND", "APPENDS"):
            added = self.take(1 if name == "APPEND" else None)
            _append(items[-1], added)
        elif name in ("SETITEM", "SETITEMS"):
            added = self.take(2 if name == "SETITEM" else None)
            _set_items(items[-1], added)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            items.append(_allowed([argument] if name == "GLOBAL" else self.take(2)))
        elif name == "REDUCE":
            items.append(_make(*self.take(2)))
        elif name == "BUILD":
            (state,) = self.take(1)
            _set_state(items[-1], state)
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            place = argument if isinstance(argument, int) else len(self.memo)
            self.memo[place] = items[-1]
        elif name in ("BINGET", "LONG_BINGET") and isinstance(argument, int):
            items.append(self.memo[argument])
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"its pickle takes a step '{name}', which plain data has no use for")


def _allowed(parts: list[object]) -> _Name:
    name = " ".join(part for part in parts if isinstance(part, str))
    if name not in _ALLOWED:
        shown = name[:_SHOWN].replace(" ", ".")
        raise ValueError(f"its pickle names {shown!r}, which plain data has no use for; it was not run")
    return _Name(name.replace("._core.", ".core."))


def _make(name: object, arguments: object) -> object:
    """What stands for the result of a call; only those calls are known that make an array or a number."""
    array = Array()
    match name, arguments:
        case _Name("numpy.core.multiarray _reconstruct"), (_Name("numpy ndarray"), *_):
            return array
        case _Name("numpy dtype"), (str(code), *_):
            return Dtype(code)
        case _Name("numpy.core.multiarray scalar"), (dtype, data):
            array.fill((), dtype, False, data)
            return array.rows()[0]
        case _Name("numpy.core.numeric _frombuffer"), (data, dtype, shape, order):
            array.fill(shape, dtype, order == "F", data)
            return array
    raise ValueError("its pickle makes something that is no array")


def _set_state(made: object, state: object) -> None:
    match made, state:
        case Dtype(), (_, str(order), *_):
            made.order = ">" if order == ">" else "<"
        case Array(), (_, shape, dtype, by_columns, data):
            made.fill(shape, dtype, by_columns, data)
        case _:
            raise ValueError("its pickle changes something that is no array")


def _append(value: object, added: list[object]) -> None:
    if not isinstance(value, list):
        raise ValueError("its pickle appends to something that is no list")
    value.extend(added)


def _set_items(value: object, added: list[object]) -> None:
    names = added[::2]
    if not isinstance(value, dict) or len(added) % 2 or not all(isinstance(name, str) for name in names):
        raise ValueError("its pickle holds an object without names")
    value.update(zip(names, added[1::2], strict=True))
