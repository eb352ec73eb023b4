"""Facts about a picture (`metadata`): its size, counts of things, statistics of its pixels, scores.

Text: `v1=<field> v0=<index>`, repeated. JSON: one object of names and numbers. An index stands for all values
of a bin; it is read as the one that `Field.value_of` says, which is written as the same index again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from fourm.data.layout import Crop
from fourm.errors import near_match
from fourm.modalities.structured import Grammar, finite, groups_of, number_of, quoted, shown, words_of

_TOP = 999  # the largest number that the text has a word for
_SIDE = 32  # pixels per bin of a picture's side
_BINS = 50


@dataclass(frozen=True, slots=True)
class Field:
    """One thing that metadata can state."""

    number: int  # in the text
    name: str  # in files
    top: int  # largest index
    index_of: Callable[[float], int]  # any value -> index 0..top
    value_of: Callable[[int], int | float]  # index 0..top -> a value of that bin
    is_whole: bool = True  # values are whole numbers


@dataclass(frozen=True, slots=True)
class Fact:
    """The value of one field."""

    field: Field
    value: int | float

    @property
    def words(self) -> str:
        """The fact as the model reads it."""
        return f"v1={self.field.number} v0={self.field.index_of(self.value)}"


Metadata = tuple[Fact, ...]


def _side(number: int, name: str) -> Field:
    """A picture's side in pixels, rounded down to a multiple of 32."""
    return Field(number, name, _TOP, lambda v: _limited(v // _SIDE, _TOP), lambda k: k * _SIDE)


def _count(number: int, name: str) -> Field:
    return Field(number, name, _TOP, lambda v: _limited(v, _TOP), lambda k: k)


def _range(number: int, name: str, high: float) -> Field:
    """A value in [0, high]: 49 bins of equal width and one for `high` itself, each read as its centre."""
    steps = _BINS - 1

    def index_of(value: float) -> int:
        return math.floor(min(max(value, 0.0), high) / high * steps)

    def value_of(index: int) -> float:
        return high * min((index + 0.5) / steps, 1.0)

    return Field(number, name, steps, index_of, value_of, is_whole=False)


def _score(number: int, name: str, bounds: tuple[float, ...], values: tuple[int, ...]) -> Field:
    """A score of which only the bounds that it reaches count; `values` has one for each number of bounds."""
    return Field(
        number, name, len(bounds),
        lambda v: sum(bound <= v for bound in bounds), lambda k: values[k], is_whole=False,
    )  # fmt: skip


def _limited(value: float, top: int) -> int:
    return int(min(max(value, 0), top))


# Every field, by its number in the text.
FIELDS = (
    _side(0, "original_width"),
    _side(1, "original_height"),
    _count(2, "caption_n_chars"),
    _count(3, "caption_n_words"),
    _count(4, "caption_n_sentences"),
    _count(5, "n_humans"),
    _count(6, "n_sam_instances"),
    _count(7, "n_coco_instances"),
    _count(8, "coco_instance_diversity"),
    _range(9, "colorfulness", 150),
    _range(10, "brightness", 255),
    _range(11, "contrast", 127),
    _range(12, "saturation", 255),
    _range(13, "entropy", 10),
    _range(14, "walkability", 1),
    _range(15, "objectness", 1),
    _count(16, "semantic_diversity"),
    _range(17, "geometric_complexity", 0.75),
    _range(18, "occlusion_score", 0.25),
    _score(19, "watermark_score", (0.5,), (0, 1)),
    _score(20, "aesthetic_score", (4.5, 5.5), (4, 5, 6)),
)
_BY_NAME = MappingProxyType({field.name: field for field in FIELDS})


def parse_metadata(text: str) -> tuple[Metadata, tuple[str, ...]]:
    """The facts of a text, in the order of FIELDS, and what was passed over.

    A pair begins at each word with `v1`; of two for one field the later counts.
    """
    before, pairs = groups_of(words_of(text), lambda word: "v1" in word)
    problems: dict[str, None] = {}  # in order, each once
    if before:
        problems[f"{quoted(before)} stands before the first field"] = None
    facts: dict[int, Fact] = {}
    for words in pairs:
        fact = _parse_pair(words)
        if fact is None:
            problems[f"{quoted(words)} states nothing that is known"] = None
            continue
        if fact.field.number in facts:
            problems[f"{fact.field.name} is stated twice"] = None
        facts[fact.field.number] = fact
    return tuple(facts[number] for number in sorted(facts)), tuple(problems)


def metadata_to_text(facts: Sequence[Fact]) -> str:
    """Facts as the model reads them, in their order; "" for none."""
    return " ".join(fact.words for fact in facts)


def metadata_from_json(data: object, crop: Crop | None = None) -> Metadata:
    """The facts of a file, in its order. They are of the whole picture, whatever the crop shows."""
    if not isinstance(data, dict):
        raise ValueError(f"an object of names and numbers was expected, not {shown(data)}")
    return tuple(_read_fact(name, value) for name, value in data.items())


def metadata_to_json(facts: Sequence[Fact]) -> object:
    """The data of a file with these facts, in their order."""
    return {fact.field.name: fact.value for fact in facts}


METADATA: Grammar[Metadata] = Grammar(
    parse=parse_metadata,
    to_text=metadata_to_text,
    from_json=metadata_from_json,
    to_json=metadata_to_json,
    to_pieces=lambda facts: [fact.words for fact in facts],
)


def _parse_pair(words: list[str]) -> Fact | None:
    if len(words) != 2 or not (words[0].startswith("v1=") and words[1].startswith("v0=")):
        return None
    number, index = number_of(words[0]), number_of(words[1])
    if number is None or index is None or not 0 <= number < len(FIELDS):
        return None
    field = FIELDS[number]
    return Fact(field, field.value_of(index)) if 0 <= index <= field.top else None


def _read_fact(name: object, value: object) -> Fact:
    field = _BY_NAME.get(str(name))
    if field is None:
        raise ValueError(f"unknown name {shown(name)}{near_match(str(name), _BY_NAME)}")
    number = finite(value, f"'{field.name}'")
    return Fact(field, int(number) if field.is_whole or isinstance(value, int) else number)
