"""Facts about a whole picture: metadata (`metadata`) and the palette of its main colours (`color_palette`).

Metadata are a picture's size, counts of things, statistics of its pixels, scores. Text: `v1=<field>
v0=<index>`, repeated. JSON: one object of names and numbers. An index stands for all values of a bin; it is
read as the one that `Field.value_of` says, which is written as the same index again.

A palette has one to seven colours. Text: `v1=<count>`, then `v0=<red> v0=<green> v0=<blue>` for each colour.
JSON: a list with one object, which has a palette of n colours `[red, green, blue]` under each key "n".
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Annotated, NamedTuple

from fourm.data.layout import Crop
from fourm.errors import near_match, shown
from fourm.modalities.text import MAX_NUMBER, Grammar, grouped, number_of, quoted, words_of
from fourm.modalities.typed import Limits, fit

MAX_COLOURS = 7


@dataclass(frozen=True, slots=True)
class Field:
    """One thing that metadata can state; its values become indices by bins of equal width, or by rounding."""

    number: int  # in the text
    name: str  # in files
    high: float = 1  # `steps` bins of equal width go from 0 to here, and on up to index `top`
    steps: int = 1
    top: int = MAX_NUMBER  # largest index
    is_whole: bool = True  # values are whole numbers
    lowest: int | None = None  # of a score, which is rounded (half up): the score of index 0

    def index_of(self, value: float) -> int:
        """The index 0..top of any value."""
        if self.lowest is not None:
            value = value + 0.5 - self.lowest
        return math.floor(min(max(value, 0) / self.high * self.steps, self.top))

    def value_of(self, index: int) -> int | float:
        """A value of the bin of an index: its lower end for whole numbers, the score, else its centre."""
        if self.lowest is not None:
            return self.lowest + index
        return index * self.high if self.is_whole else self.high * min((index + 0.5) / self.steps, 1.0)


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


def _range(number: int, name: str, high: float) -> Field:
    """49 bins of equal width, and one more for the highest value itself."""
    return Field(number, name, high, steps=49, top=49, is_whole=False)


# Every field, by its number in the text.
FIELDS = (
    Field(0, "original_width", 32),
    Field(1, "original_height", 32),
    Field(2, "caption_n_chars"),
    Field(3, "caption_n_words"),
    Field(4, "caption_n_sentences"),
    Field(5, "n_humans"),
    Field(6, "n_sam_instances"),
    Field(7, "n_coco_instances"),
    Field(8, "coco_instance_diversity"),
    _range(9, "colorfulness", 150),
    _range(10, "brightness", 255),
    _range(11, "contrast", 127),
    _range(12, "saturation", 255),
    _range(13, "entropy", 10),
    _range(14, "walkability", 1),
    _range(15, "objectness", 1),
    Field(16, "semantic_diversity"),
    _range(17, "geometric_complexity", 0.75),
    _range(18, "occlusion_score", 0.25),
    Field(19, "watermark_score", top=1, is_whole=False, lowest=0),
    Field(20, "aesthetic_score", top=2, is_whole=False, lowest=4),
)
_BY_NAME = {field.name: field for field in FIELDS}


def parse_metadata(text: str) -> tuple[Metadata, tuple[str, ...]]:
    """The facts of a text, in the order of FIELDS, and a sentence for each part that is ignored.

    A pair begins at each word with `v1`; of two pairs for one field the later counts.
    """
    before, pairs = grouped(words_of(text), lambda word: "v1" in word)
    problems, facts = [f"{quoted(before)} stands before the first field"] if before else [], dict[int, Fact]()
    for words in pairs:
        is_pair = len(words) == 2 and words[0].startswith("v1=") and words[1].startswith("v0=")
        number, index = map(number_of, words) if is_pair else (None, None)
        field = FIELDS[number] if number is not None and 0 <= number < len(FIELDS) else None
        if field is None or index is None or not 0 <= index <= field.top:
            problems.append(f"{quoted(words)} states nothing that is known")
            continue
        if field.number in facts:
            problems.append(f"{field.name} is stated twice")
        facts[field.number] = Fact(field, field.value_of(index))
    return tuple(facts[number] for number in sorted(facts)), tuple(dict.fromkeys(problems))


def metadata_from_json(data: object, crop: Crop | None = None) -> Metadata:
    """The facts of a file, in its order. They are of the whole picture, not of the crop."""
    if not isinstance(data, dict):
        raise ValueError(f"an object of names and numbers was expected, not {shown(ascii(data), 40)}")
    facts = list[Fact]()
    for name, value in data.items():
        field = _BY_NAME.get(name)
        if field is None:
            raise ValueError(f"unknown name {shown(ascii(name), 40)}{near_match(name, _BY_NAME)}")
        number = fit(float, value, name)
        facts.append(Fact(field, int(number) if field.is_whole or isinstance(value, int) else number))
    return tuple(facts)


METADATA: Grammar[Metadata] = Grammar(
    parse=parse_metadata,
    to_pieces=lambda facts: [fact.words for fact in facts],
    from_json=metadata_from_json,
    to_json=lambda facts: {fact.field.name: fact.value for fact in facts},
    is_divisible=True,
)


class Colour(NamedTuple):
    """Red, green and blue, each 0..255."""

    red: int
    green: int
    blue: int


Palette = tuple[Colour, ...]
_Level = Annotated[float, Limits(0, 255)]


def parse_palette(text: str) -> tuple[Palette, tuple[str, ...]]:
    """The complete colours of a text, at most seven, and a sentence for each part that is ignored.

    Only `v0=` words behind the first `v1=` are read, however many colours that word announces.
    """
    words = words_of(text)
    start = next((i for i, word in enumerate(words) if word.startswith("v1=")), len(words))
    levels, ignored = list[int](), words[:start]
    for word in words[start + 1 :]:
        if word.startswith("v0=") and (level := number_of(word)) is not None:
            levels.append(min(max(level, 0), 255))
        else:
            ignored.append(word)
    count = min(len(levels) // 3, MAX_COLOURS)
    ignored += [f"v0={level}" for level in levels[3 * count :]]
    problems = [f"{quoted(ignored)} is no part of a palette"] if ignored else []
    if start == len(words):
        problems.append("no word v1= begins a palette")
    elif number_of(words[start]) != count:
        problems.append(f"{quoted(words[start : start + 1])} announces a palette, but {count} colours follow")
    return tuple(Colour(*levels[3 * i : 3 * i + 3]) for i in range(count)), tuple(problems)


def palette_from_json(data: object, crop: Crop | None = None, size: int | None = None) -> Palette:
    """The palette of `size` colours of a file; by default the largest palette.

    Colours are of the whole picture, not of the crop. A file without any palette gives no colours.
    """
    if isinstance(data, list) and len(data) == 1:
        data = data[0]
    if not isinstance(data, dict):
        raise ValueError(f"a list with one object of palettes was expected, not {shown(ascii(data), 40)}")
    sizes = [str(count) for count in range(1, MAX_COLOURS + 1)]
    if wrong := [shown(ascii(key), 40) for key in data if key not in sizes]:
        raise ValueError(f'palettes stand under "1" to "{MAX_COLOURS}", not under {wrong[0]}')
    if size is not None and str(size) not in data:
        raise ValueError(f"holds no palette of {size} colours")
    count = max(map(int, data), default=0) if size is None else size
    of_count = Annotated[tuple[tuple[_Level, _Level, _Level], ...], Limits(count, count)]
    levels = fit(of_count, data.get(str(count), []), f'palette "{count}"')
    if any(level != round(level) for colour in levels for level in colour):
        raise ValueError(f"colours have whole parts in 0..255, not {shown(levels)}")
    return tuple(Colour(*map(round, colour)) for colour in levels)


def palette_to_json(colours: Palette) -> object:
    """The data of a file with only this palette."""
    return [{str(len(colours)): [list(colour) for colour in colours]} if colours else {}]


def palette_grammar(size: int | None = None) -> Grammar[Palette]:
    """The grammar of palettes; of a file the one of `size` colours is read, by default the largest."""
    return Grammar(
        parse_palette,
        lambda colours: [f"v1={len(colours)}", *(f"v0={n}" for n in chain(*colours))] if colours else [],
        partial(palette_from_json, size=size),
        palette_to_json,
    )
