"""What every grammar has: a value that was read from text, and the form that a table of grammars wants."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fourm.data.layout import Crop

T = TypeVar("T")
_SHOWN = 40  # characters of somebody's text that a sentence repeats


@dataclass(frozen=True, slots=True)
class Structured(Generic[T]):
    """A value that was read from text: what could be understood of it, and what could not.

    Models write malformed text now and then. It is kept, and it is said what was passed over.
    """

    value: T
    text: str = ""  # as the model wrote it; "" for a value that comes from a file
    problems: tuple[str, ...] = ()  # a short sentence for each thing passed over; none: well-formed


@dataclass(frozen=True, slots=True)
class Grammar(Generic[T]):
    """One sort of structured value, as text and as the plain data of a JSON file.

    parse never raises: whatever is malformed is passed over and told. from_json raises a ValueError whose
    message says what is wrong with the data.
    """

    parse: Callable[[str], tuple[T, tuple[str, ...]]]  # text -> value, problems
    to_text: Callable[[T], str]  # value -> what the model reads
    from_json: Callable[[object, Crop | None], T]  # data of a file -> value as the crop shows it
    to_json: Callable[[T], object]  # value -> data of a file, readable by from_json without a crop
    # The text in pieces that mean something alone, so that a long one can end between two of them.
    # None: only the whole text means something.
    to_pieces: Callable[[T], list[str]] | None = None


def words_of(text: str) -> list[str]:
    """The words of a model's text, without padding, end marks and sentinels."""
    return [word for word in text.split() if not (word.startswith("[") and word.endswith("]"))]


def groups_of(words: Sequence[str], begins: Callable[[str], bool]) -> tuple[list[str], list[list[str]]]:
    """The words before the first one that begins a group, and the groups."""
    before, groups = list[str](), list[list[str]]()
    for word in words:
        if begins(word):
            groups.append([word])
        else:
            (groups[-1] if groups else before).append(word)
    return before, groups


def number_of(word: str) -> int | None:
    """The whole number behind the first `=` of a word such as `v0=12`; None where there is none.

    What has more than nine digits is a billion: beyond every limit of a grammar, and quick to read.
    """
    digits = word.partition("=")[2]
    sign, digits = (-1, digits[1:]) if digits.startswith("-") else (1, digits)
    if not (digits.isascii() and digits.isdigit()):
        return None
    digits = digits.lstrip("0")
    return sign * (int(digits or "0") if len(digits) <= 9 else 10**9)


def finite(data: object, what: str) -> float:
    """A number of a JSON file as float; `what` names it in the ValueError that anything else is."""
    if isinstance(data, bool) or not isinstance(data, int | float):
        raise ValueError(f"{what} must be a number, not {shown(data)}")
    try:
        number = float(data)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{what} must be a finite number")
    return number


def shown(data: object) -> str:
    """Some data as a sentence repeats it: on one line, and never long."""
    if isinstance(data, dict | list):
        return f"{'an object' if isinstance(data, dict) else 'a list'} of {len(data)}"
    text = reprlib.repr(data)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def quoted(words: list[str]) -> str:
    """Some words of a text as a sentence repeats them."""
    text = " ".join(words[:_SHOWN])
    return f"'{text}'" if len(text) <= _SHOWN else f"'{text[: _SHOWN - 3]}...'"
