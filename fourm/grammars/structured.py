"""What every grammar has: a value that was read from text, and the form that a table of grammars wants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from fourm.crops import Crop

T = TypeVar("T")


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


def words_of(text: str) -> list[str]:
    """The words of a model's text, without padding, end marks and sentinels."""
    return [word for word in text.split() if not (word.startswith("[") and word.endswith("]"))]
