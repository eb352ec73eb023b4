"""Facts about a picture in words: boxes around things (`det`), metadata, and the palette of its main colours.

docs/values.md describes their files. Their texts:
boxes    := box*            box    := v0=<xmin> v1=<ymin> v2=<xmax> v3=<ymax> name      (bins of a side)
metadata := fact*           fact   := v1=<number of a field> v0=<index>
palette  := v1=<count> colour{1,7}    colour := v0=<red> v0=<green> v0=<blue>                 (0..255)
An index of metadata stands for a bin of values. It is read as the value that `Field.value_of` gives, which
becomes the same index again.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, takewhile
from typing import Annotated, NamedTuple

from fourm.data.layout import Crop
from fourm.errors import near_match, shown
from fourm.modalities.text import MAX_NUMBER, Grammar, grouped, number_of, parse_groups, quoted, words_of
from fourm.modalities.typed import Limits, to_type

_MARK = re.compile(r"\[\w+\]")  # [EOS], [S_1]: no part of a name
_FARTHEST = 10.0  # pictures away: no detector finds a box there, so such numbers are pixels
MAX_COLOURS = 7

Corners = tuple[float, float, float, float]  # xmin, ymin, xmax, ymax


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in fractions of the picture, 0 at its left and upper edge, and the name of its content."""

    xmin: float  # [0, 1]; a model may write an xmin above xmax
    ymin: float
    xmax: float
    ymax: float
    name: str
    score: float = 1.0  # of a detector; 1 for boxes that a model wrote

    @property
    def corners(self) -> Corners:
        """All four numbers."""
        return self.xmin, self.ymin, self.xmax, self.ymax


Boxes = tuple[Box, ...]

ORDERS: dict[str, Callable[[Box], float]] = {  # the number that boxes are sorted by, lowest first
    "nearest": lambda box: box.xmin**2 + box.ymin**2,  # to the picture's upper left corner
    "area": lambda box: -(box.xmax - box.xmin) * (box.ymax - box.ymin),
    "score": lambda box: -box.score,
    "written": lambda box: 0.0,  # as in the file
}


@dataclass(frozen=True, slots=True)
class BoxRules:
    """Which boxes of a file the model is shown, and how; the defaults are those of 4M's training."""

    bins: int = 1000  # numbers per side
    min_score: float = 0.6
    max_boxes: int | None = None  # those with the highest scores; None: all
    order: str = "nearest"  # one of ORDERS
    min_visibility: float = 0.0  # least share of a box that the crop shows


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
        """A value with this index: of whole numbers the lowest, the score, else the centre of the bin."""
        if self.lowest is not None:
            return self.lowest + index
        return index * self.high if self.is_whole else self.high * min((index + 0.5) / self.steps, 1.0)


@dataclass(frozen=True, slots=True)
class Fact:
    """The value of one field."""

    field: Field
    value: int | float


Metadata = tuple[Fact, ...]
_range = partial(Field, steps=49, top=49, is_whole=False)  # 49 equal bins, and one for the highest value
FIELDS = (  # each at the place of its number
    Field(0, "original_width", 32), Field(1, "original_height", 32),
    Field(2, "caption_n_chars"), Field(3, "caption_n_words"), Field(4, "caption_n_sentences"),
    Field(5, "n_humans"), Field(6, "n_sam_instances"), Field(7, "n_coco_instances"),
    Field(8, "coco_instance_diversity"), _range(9, "colorfulness", 150), _range(10, "brightness", 255),
    _range(11, "contrast", 127), _range(12, "saturation", 255), _range(13, "entropy", 10),
    _range(14, "walkability", 1), _range(15, "objectness", 1), Field(16, "semantic_diversity"),
    _range(17, "geometric_complexity", 0.75), _range(18, "occlusion_score", 0.25),
    Field(19, "watermark_score", top=1, is_whole=False, lowest=0),
    Field(20, "aesthetic_score", top=2, is_whole=False, lowest=4),
)  # fmt: skip
_BY_NAME = {field.name: field for field in FIELDS}
_RULES = BoxRules()


class Colour(NamedTuple):
    """Red, green and blue, each 0..255."""

    red: int
    green: int
    blue: int


Palette = tuple[Colour, ...]
_Level = Annotated[float, Limits(0, 255)]


@dataclass(frozen=True, slots=True)
class _Detection:
    """What a detector found, as a file has it; corners are fractions of the whole picture or beyond it."""

    boxes: Corners
    class_name: str
    score: float = 1.0


@dataclass(frozen=True, slots=True)
class _Detections:
    instances: tuple[_Detection, ...]


def parse_boxes(text: str, bins: int = 1000) -> tuple[Boxes, tuple[str, ...]]:
    """The boxes of a text, in its order, and a sentence for each part that is ignored.

    A box begins at each word `v0=` and has four numbers, in the order xmin, ymin, xmax, ymax whatever axis
    their words name; numbers beyond the bins are limited to them. Its name is the words up to the next
    number.
    """
    parse, begins = partial(_parse_box, bins=bins), lambda word: word.startswith("v0=")
    before, boxes, problems = parse_groups(words_of(text), begins, "", parse)
    ignored = [f"{quoted(before)} stands before the first box"] if before else []
    return tuple(boxes), tuple(dict.fromkeys([*ignored, *problems]))


def box_words(box: Box, bins: int = 1000) -> str:
    """One box as the model reads it: corners rounded to the nearest of the bins 0..bins - 1."""
    numbers = [f"v{axis}={round(value * (bins - 1))}" for axis, value in enumerate(box.corners)]
    return " ".join([*numbers, box.name])


def boxes_from_json(data: object, crop: Crop | None = None, rules: BoxRules = _RULES) -> Boxes:
    """The boxes of a file that the crop shows, as fractions of the crop, in the order of the rules.

    Left out are boxes with a low score (1 if there is none), and those of which the crop shows no area, or
    less than `min_visibility`. ValueError: other data, corners in pixels or in the wrong order, or a name
    that cannot stand in the model's text.
    """
    boxes = list[Box]()
    for index, found in enumerate(to_type(_Detections, data, "the file", strict=False).instances):
        where, (x0, y0, x1, y1) = f"instance {index}", found.boxes
        if max(map(abs, found.boxes)) > _FARTHEST:
            raise ValueError(f"{where}: 'boxes' must be fractions of the picture's sides, not pixels")
        for axis, place, low, high in (("x", "right of", x0, x1), ("y", "below", y0, y1)):
            if low > high:
                problem = f"{axis}max {high:g} is not {place} {axis}min {low:g}"
                raise ValueError(f"{where}: {problem}; boxes are corners, not centre and size")
        name = " ".join(found.class_name.split())
        if not name or "=" in name or _MARK.search(name) or not name.isprintable():
            raise ValueError(f"{where}: the name {shown(ascii(name), 40)} cannot stand in the model's text")
        if crop is not None:
            height, width = crop.whole
            x0, x1 = ((x * width - crop.left) / crop.width for x in (x0, x1))
            y0, y1 = ((y * height - crop.top) / crop.height for y in (y0, y1))
        whole = (x1 - x0) * (y1 - y0)
        x0, y0, x1, y1 = (min(max(value, 0.0), 1.0) for value in (x0, y0, x1, y1))
        area = (x1 - x0) * (y1 - y0)
        is_seen = x0 < x1 and y0 < y1 and area > 0.0 and area >= rules.min_visibility * whole
        if crop is not None and crop.mirrored:
            x0, x1 = 1.0 - x1, 1.0 - x0
        if is_seen and found.score >= rules.min_score:
            boxes.append(Box(x0, y0, x1, y1, name, found.score))
    if rules.max_boxes is not None:
        boxes = sorted(boxes, key=ORDERS["score"])[: rules.max_boxes]
    return tuple(sorted(boxes, key=ORDERS[rules.order]))


def boxes_to_json(boxes: Sequence[Box], bins: int = 1000) -> object:
    """The data of a file with these boxes, in their order; read again, they have the same bins.

    Corners are put in order, and a box without an area, as a model may write it, gets one.
    """
    instances = list[dict[str, object]]()
    for box in boxes:
        instances.append({"boxes": [*_with_area(box, bins)], "class_name": box.name, "score": box.score})
    return {"instances": instances}


def restore_boxes(boxes: Boxes, crop: Crop, bins: int = 1000) -> Boxes:
    """Boxes of a crop as fractions of the whole picture, without those that lie in a border alone.

    Each has ordered corners and an area; `boxes_from_json` with the same crop finds the same bins.
    """
    restored, (height, width) = list[Box](), crop.whole
    for box in boxes:
        x0, y0, x1, y1 = crop.restore_box(_with_area(box, bins)) or (0.0,) * 4
        if x0 < x1 and y0 < y1:
            restored.append(Box(x0 / width, y0 / height, x1 / width, y1 / height, box.name, box.score))
    return tuple(restored)


def _with_area(box: Box, bins: int) -> Corners:
    """The corners of a box in order; where it has no area, it gets half a bin."""
    (x0, x1), (y0, y1) = sorted((box.xmin, box.xmax)), sorted((box.ymin, box.ymax))
    quarter = 0.25 / (bins - 1)
    dx, dy = quarter * (x0 == x1), quarter * (y0 == y1)
    return max(x0 - dx, 0.0), max(y0 - dy, 0.0), min(x1 + dx, 1.0), min(y1 + dy, 1.0)


def box_grammar(rules: BoxRules = _RULES) -> Grammar[Boxes]:
    """The grammar of boxes under these rules."""
    return Grammar(
        parse=partial(parse_boxes, bins=rules.bins),
        to_pieces=lambda boxes: [box_words(box, rules.bins) for box in boxes],
        from_json=partial(boxes_from_json, rules=rules),
        to_json=partial(boxes_to_json, bins=rules.bins),
        is_divisible=True,
        restore=partial(restore_boxes, bins=rules.bins),
    )


def parse_metadata(text: str) -> tuple[Metadata, tuple[str, ...]]:
    """The facts of a text, in the order of FIELDS, and a sentence for each part that is ignored.

    A fact begins at each word with `v1`; of two facts of one field, the later one counts.
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
    """The facts of a file, in its order; they are of the whole picture, not of the crop.

    ValueError: other data, an unknown name, or a value that is no number.
    """
    if not isinstance(data, dict):
        raise ValueError(f"an object of names and numbers was expected, not {shown(ascii(data), 40)}")
    facts = list[Fact]()
    for name, value in data.items():
        field = _BY_NAME.get(name)
        if field is None:
            raise ValueError(f"unknown name {shown(ascii(name), 40)}{near_match(name, _BY_NAME)}")
        number = to_type(float, value, name)
        facts.append(Fact(field, int(number) if field.is_whole or isinstance(value, int) else number))
    return tuple(facts)


METADATA: Grammar[Metadata] = Grammar(
    parse=parse_metadata,
    to_pieces=lambda facts: [f"v1={one.field.number} v0={one.field.index_of(one.value)}" for one in facts],
    from_json=metadata_from_json,
    to_json=lambda facts: {fact.field.name: fact.value for fact in facts},
    is_divisible=True,
)


def parse_palette(text: str) -> tuple[Palette, tuple[str, ...]]:
    """The complete colours of a text, at most seven, and a sentence for each part that is ignored.

    Only `v0=` words behind the first `v1=` are read, however many colours that word announces; numbers beyond
    0..255 are limited to them.
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
    """The palette of `size` colours of a file, by default its largest; () if the file has no palette.

    Colours are of the whole picture, not of the crop. ValueError: other data, no palette of this size, or
    levels that are no whole numbers in 0..255.
    """
    data = data[0] if isinstance(data, list) and len(data) == 1 else data
    if not isinstance(data, dict):
        raise ValueError(f"a list with one object of palettes was expected, not {shown(ascii(data), 40)}")
    sizes = [str(count) for count in range(1, MAX_COLOURS + 1)]
    if wrong := [shown(ascii(key), 40) for key in data if key not in sizes]:
        raise ValueError(f'palettes stand under "1" to "{MAX_COLOURS}", not under {wrong[0]}')
    if size is not None and str(size) not in data:
        raise ValueError(f"holds no palette of {size} colours")
    count = max(map(int, data), default=0) if size is None else size
    of_count = Annotated[tuple[tuple[_Level, _Level, _Level], ...], Limits(count, count)]
    levels = to_type(of_count, data.get(str(count), []), f'palette "{count}"')
    if any(level != round(level) for colour in levels for level in colour):
        raise ValueError(f"colours have whole parts in 0..255, not {shown(levels)}")
    return tuple(Colour(*map(round, colour)) for colour in levels)


def palette_grammar(size: int | None = None) -> Grammar[Palette]:
    """The grammar of palettes; of a file the one of `size` colours is read, by default the largest."""
    return Grammar(
        parse_palette,
        lambda colours: [f"v1={len(colours)}", *(f"v0={n}" for n in chain(*colours))] if colours else [],
        partial(palette_from_json, size=size),
        lambda colours: [{str(len(colours)): [list(colour) for colour in colours]} if colours else {}],
    )


def _parse_box(words: list[str], bins: int) -> tuple[Box | None, str]:
    """The box of words that begin with `v0=`, and what is wrong with them (see `parse_boxes`)."""
    head = list(takewhile(lambda word: "=" in word, words))
    names = list(takewhile(lambda word: "=" not in word, words[len(head) :]))
    numbers = [number for word in head if (number := number_of(word)) is not None]
    ignored = [word for word in head if number_of(word) is None]
    ignored += words[len(head) + len(names) :]  # a number behind the name ends the box
    if len(numbers) != 4:
        return None, f"{quoted(words)} has {len(numbers)} numbers where a box has four"
    if not names:
        return None, f"{quoted(words)} names nothing"
    xmin, ymin, xmax, ymax = (min(max(number, 0), bins - 1) / (bins - 1) for number in numbers)
    problem = f"{quoted(ignored)} is no part of a box" if ignored else ""
    return Box(xmin, ymin, xmax, ymax, " ".join(names)), problem
