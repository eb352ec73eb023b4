"""Boxes around things (`det`): the model's text, the JSON of detectors, and the values between.

Text: `v0=<xmin> v1=<ymin> v2=<xmax> v3=<ymax> <class name>`, repeated; numbers are bins of the picture's
sides. JSON: `{"instances": [{"boxes": [xmin, ymin, xmax, ymax], "class_name": "cat", "score": 0.9}, ...]}`,
corners as fractions of the whole picture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from fourm.data.layout import Crop
from fourm.modalities.structured import Grammar, finite, groups_of, number_of, quoted, shown, words_of

_MARK = re.compile(r"\[\w+\]")  # [EOS], [S_1]: no part of a name
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FARTHEST = 10.0  # pictures away: no detector finds a box there, so such numbers are pixels


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in fractions of the picture, 0 at its left and upper edge, and what is in it."""

    xmin: float  # [0, 1]; a model may write an xmin above xmax
    ymin: float
    xmax: float
    ymax: float
    name: str
    score: float = 1.0  # how sure a detector was; 1 for boxes that a model wrote

    def __post_init__(self) -> None:
        if not all(0.0 <= value <= 1.0 for value in self.corners):
            raise ValueError(f"a box beyond the picture: {self}")

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """xmin, ymin, xmax, ymax."""
        return self.xmin, self.ymin, self.xmax, self.ymax


Boxes = tuple[Box, ...]

# By which number boxes are sorted, lowest first; boxes of equal numbers keep their order.
ORDERS: dict[str, Callable[[Box], float]] = {
    "nearest": lambda box: box.xmin**2 + box.ymin**2,  # to the picture's upper left corner
    "area": lambda box: -(box.xmax - box.xmin) * (box.ymax - box.ymin),
    "score": lambda box: -box.score,
}


@dataclass(frozen=True, slots=True)
class BoxRules:
    """Which boxes of a file the model is shown, and how; the defaults are those of 4M's training."""

    bins: int = 1000  # numbers per side
    min_score: float = 0.6
    max_boxes: int | None = None  # the surest ones; None: all
    order: str = "nearest"  # one of ORDERS
    min_visibility: float = 0.0  # least share of a box that the crop shows

    def __post_init__(self) -> None:
        if self.bins < 2 or self.order not in ORDERS:
            raise ValueError(f"rules that fit no box: {self}")


def parse_boxes(text: str, bins: int = 1000) -> tuple[Boxes, tuple[str, ...]]:
    """The boxes of a text, in its order, and what was passed over.

    `v0=` begins a box, three more numbers follow whatever their axis is called, then the name. Numbers beyond
    the bins are limited to them.
    """
    before, groups = groups_of(words_of(text), lambda word: word.startswith("v0="))
    problems: dict[str, None] = {}  # in order, each once
    if before:
        problems[f"{quoted(before)} stands before the first box"] = None
    boxes = list[Box]()
    for words in groups:
        box, problem = _parse_box(words, bins)
        if box is not None:
            boxes.append(box)
        if problem:
            problems[problem] = None
    return tuple(boxes), tuple(problems)


def box_words(box: Box, bins: int = 1000) -> str:
    """One box as the model reads it, rounded to the nearest bin (half to even)."""
    numbers = [f"v{axis}={round(value * (bins - 1))}" for axis, value in enumerate(box.corners)]
    return " ".join([*numbers, box.name])


def boxes_to_text(boxes: Sequence[Box], bins: int = 1000) -> str:
    """Boxes as the model reads them, in their order; "" for none."""
    return " ".join(box_words(box, bins) for box in boxes)


def boxes_from_json(data: object, crop: Crop | None = None, rules: BoxRules | None = None) -> Boxes:
    """The boxes of a file that the crop shows, as fractions of the crop.

    Left out are boxes with a low score, outside the crop, or without area. A box without a score is sure.
    """
    rules = rules or BoxRules()
    instances = data.get("instances") if isinstance(data, dict) else None
    if not isinstance(instances, list):
        raise ValueError(f"an object with a list of 'instances' was expected, not {shown(data)}")
    found = [_read_instance(instance, f"instance {i}") for i, instance in enumerate(instances)]
    sure = [instance for instance in found if instance.score >= rules.min_score]
    boxes = [box for box in (_visible(one, crop, rules.min_visibility) for one in sure) if box is not None]
    if rules.max_boxes is not None:
        boxes = sorted(boxes, key=ORDERS["score"])[: rules.max_boxes]
    return tuple(sorted(boxes, key=ORDERS[rules.order]))


def boxes_to_json(boxes: Sequence[Box], bins: int = 1000) -> object:
    """The data of a file with these boxes, in their order.

    A model may write corners in the wrong order, or a box that is smaller than a bin; in a file every box has
    ordered corners and an area, and becomes the same bins again.
    """
    instances = list[dict[str, object]]()
    for box in boxes:
        xmin, xmax = _side(box.xmin, box.xmax, bins)
        ymin, ymax = _side(box.ymin, box.ymax, bins)
        instances.append({"boxes": [xmin, ymin, xmax, ymax], "class_name": box.name, "score": box.score})
    return {"instances": instances}


def _side(one: float, other: float, bins: int) -> tuple[float, float]:
    """The ends of a box's side, the lower one first; half a bin apart where they are in one place."""
    if one != other:
        return min(one, other), max(one, other)
    quarter = 0.25 / (bins - 1)
    return max(one - quarter, 0.0), min(one + quarter, 1.0)


def box_grammar(rules: BoxRules | None = None) -> Grammar[Boxes]:
    """The grammar of boxes under these rules."""
    rules = rules or BoxRules()
    return Grammar(
        parse=partial(parse_boxes, bins=rules.bins),
        to_text=partial(boxes_to_text, bins=rules.bins),
        from_json=partial(boxes_from_json, rules=rules),
        to_json=partial(boxes_to_json, bins=rules.bins),
        to_pieces=lambda boxes: [box_words(box, rules.bins) for box in boxes],
    )


def _parse_box(words: list[str], bins: int) -> tuple[Box | None, str]:
    """The box of some words, the first of which begins it, and what was passed over."""
    numbers, names, ignored, closed = list[int](), list[str](), list[str](), False
    for word in words:
        number = number_of(word)
        if "=" not in word:
            (ignored if closed else names).append(word)
        elif number is not None and not names:
            numbers.append(number)
        else:
            closed = bool(names)  # a number behind the name: nothing of this box any more
            ignored.append(word)
    if len(numbers) != 4:
        return None, f"{quoted(words)} has {len(numbers)} numbers where a box has four"
    if not names:
        return None, f"{quoted(words)} names nothing"
    xmin, ymin, xmax, ymax = (min(max(number, 0), bins - 1) / (bins - 1) for number in numbers)
    problem = f"{quoted(ignored)} is no part of a box" if ignored else ""
    return Box(xmin, ymin, xmax, ymax, " ".join(names)), problem


@dataclass(frozen=True, slots=True)
class _Instance:
    """What a detector found: corners in fractions of the whole picture, which they may exceed."""

    corners: tuple[float, ...]
    name: str
    score: float


def _read_instance(data: object, where: str) -> _Instance:
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be an object, not {shown(data)}")
    corners = data.get("boxes")
    if not isinstance(corners, list) or len(corners) != 4:
        raise ValueError(f"{where}: 'boxes' must be [xmin, ymin, xmax, ymax], not {shown(corners)}")
    numbers = tuple(finite(corner, f"{where}: every corner of 'boxes'") for corner in corners)
    if max(map(abs, numbers)) > _FARTHEST:
        raise ValueError(f"{where}: 'boxes' must be fractions of the picture's sides, not pixels")
    for low, high, where_high in (("xmin", "xmax", "right of"), ("ymin", "ymax", "below")):
        first, second = (numbers[_CORNERS.index(name)] for name in (low, high))
        if first > second:
            raise ValueError(
                f"{where}: {high} {second:g} is not {where_high} {low} {first:g}; boxes are corners, not "
                "centre and size"
            )
    score = finite(data.get("score", 1.0), f"{where}: 'score'")
    return _Instance(numbers, _read_name(data.get("class_name"), where), score)


def _read_name(data: object, where: str) -> str:
    name = " ".join(data.split()) if isinstance(data, str) else ""
    if not name:
        raise ValueError(f"{where}: 'class_name' must be a name, not {shown(data)}")
    if "=" in name or _MARK.search(name) or not name.isprintable():
        raise ValueError(f"{where}: the name {shown(name)} cannot stand in the model's text")
    return name


def _visible(found: _Instance, crop: Crop | None, min_visibility: float) -> Box | None:
    """What the crop shows of a box, if that is anything."""
    x0, y0, x1, y1 = found.corners
    if crop is not None:
        height, width = crop.whole
        x0, x1 = ((x * width - crop.left) / crop.width for x in (x0, x1))
        y0, y1 = ((y * height - crop.top) / crop.height for y in (y0, y1))
    whole = (x1 - x0) * (y1 - y0)
    x0, y0, x1, y1 = (min(max(value, 0.0), 1.0) for value in (x0, y0, x1, y1))
    seen = (x1 - x0) * (y1 - y0)
    if x0 >= x1 or y0 >= y1 or seen <= 0.0 or seen < min_visibility * whole:
        return None
    box = Box(x0, y0, x1, y1, found.name, found.score)
    return replace(box, xmin=1.0 - x1, xmax=1.0 - x0) if crop is not None and crop.mirrored else box
