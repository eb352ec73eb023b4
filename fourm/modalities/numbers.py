"""Words of a text (`v0=12`) as numbers and as codes of a tokenizer, and numbers of JSON files, checked."""

import re
from reprlib import repr as shortened

MAX_NUMBER = 999  # words go from v0=0 to v3=999
NUM_CODES = 1024  # of the tokenizers whose codes stand in texts
_UPPER = 512  # codes from here on are counted anew, on another axis
_LARGEST = 1e300  # JSON allows NaN, infinities, and whole numbers that no float can hold
_WORD = re.compile(r"v([0-3])=(-?[0-9]{1,9})")


def cut(words: list[str], mark: str) -> list[list[str]]:
    """The stretches of words before, between and after the marks."""
    stretches = [list[str]()]
    for word in words:
        if word == mark:
            stretches.append([])
        else:
            stretches[-1].append(word)
    return stretches


def number_of(word: str) -> int | None:
    """The number of a word on whatever axis; None for other words."""
    match = _WORD.fullmatch(word)
    return int(match[2]) if match else None


def limited(value: float) -> int:
    """The nearest number that a word can say; halves go to the even one."""
    return min(max(round(value), 0), MAX_NUMBER)


def code_of(word: str) -> int | None:
    """The code of a word: `v0=5` is 5, every other axis counts from 512; None for what is no code."""
    match = _WORD.fullmatch(word)
    code = int(match[2]) + (0 if match[1] == "0" else _UPPER) if match else -1
    return code if 0 <= code < NUM_CODES else None


def code_word(code: int) -> str:
    """The word of a code."""
    return f"v0={code}" if code < _UPPER else f"v1={code - _UPPER}"


def read_numbers(data: object, shape: tuple[int, ...], what: str) -> tuple[float, ...]:
    """The finite numbers of nested lists of exactly this shape, row by row; else a ValueError."""
    items = [data]
    for count in shape:
        rows = [row for row in items if isinstance(row, list) and len(row) == count]
        if len(rows) < len(items):
            raise ValueError(f"{what}: {shortened(data)}, where {' x '.join(map(str, shape))} numbers belong")
        items = [item for row in rows for item in row]
    return tuple(_finite(item, what) for item in items)


def read_codes(data: object, count: int, what: str) -> tuple[int, ...]:
    """A list of so many codes; else a ValueError."""
    if not isinstance(data, list) or len(data) != count:
        raise ValueError(f"{what}: {shortened(data)}, where {count} codes belong")
    for code in data:
        if type(code) is not int or not 0 <= code < NUM_CODES:
            raise ValueError(f"{what}: {shortened(code)} is not a code, 0..{NUM_CODES - 1}")
    return tuple(data)


def read_rows(data: dict[str, object], key: str, count: int | None = None) -> list[object]:
    """The list under a key, one entry for each item of which there are `count`; a ValueError without it."""
    rows = data.get(key)
    if not isinstance(rows, list):
        raise ValueError(f"'{key}' is missing" if rows is None else f"'{key}' is not a list")
    if count is not None and len(rows) != count:
        raise ValueError(f"'{key}' has {len(rows)} entries, where there are {count} of the others")
    return rows


def _finite(data: object, what: str) -> float:
    if isinstance(data, int | float) and not isinstance(data, bool) and -_LARGEST < data < _LARGEST:
        return float(data)
    raise ValueError(f"{what}: {shortened(data)} is not a finite number")
