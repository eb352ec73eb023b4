"""Boxes around things (`det`): the model's text, the JSON of detectors, and the values between.

Text: `v0=<xmin> v1=<ymin> v2=<xmax> v3=<ymax> <class name>`, repeated; numbers are bins of the picture's
sides. JSON: `{"instances": [{"boxes": [xmin, ymin, xmax, ymax], "class_name": "cat", "score": 0.9}, ...]}`,
corners as fractions of the whole picture.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from fourm.data.layout import Crop
from fourm.errors import shown
from fourm.modalities.text import Grammar, number_of, parse_groups, quoted, words_of
from fourm.modalities.typed import fit

_MARK = re.compile(r"\[\w+\]")  # [EOS], [S_1]: no part of a name
_FARTHEST = 10.0  # pictures away: no detector finds a box there, so such numbers are pixels

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
    max_boxes: int | None = None  # those with the highest scores; None: all
    order: str = "nearest"  # one of ORDERS
    min_visibility: float = 0.0  # least share of a box that the crop shows


_RULES = BoxRules()


def parse_boxes(text: str, bins: int = 1000) -> tuple[Boxes, tuple[str, ...]]:
    """The boxes of a text, in its order, and a sentence for each part that is ignored.

    `v0=` begins a box, three more numbers follow whatever their axis is called, then the name. Numbers beyond
    the bins are limited to them.
    """
    parse, begins = partial(_parse_box, bins=bins), lambda word: word.startswith("v0=")
    before, boxes, problems = parse_groups(words_of(text), begins, "", parse)
    if before:
        problems.insert(0, f"{quoted(before)} stands before the first box")
    return tuple(boxes), tuple(dict.fromkeys(problems))


def box_words(box: Box, bins: int = 1000) -> str:
    """One box as the model reads it, rounded to the nearest bin (half to even)."""
    numbers = [f"v{axis}={round(value * (bins - 1))}" for axis, value in enumerate(box.corners)]
    return " ".join([*numbers, box.name])


@dataclass(frozen=True, slots=True)
class _Detection:
    """What a detector found, as a file has it; corners are fractions of the whole picture or beyond it."""

    boxes: Corners
    class_name: str
    score: float = 1.0


@dataclass(frozen=True, slots=True)
class _Detections:
    instances: tuple[_Detection, ...]


def boxes_from_json(data: object, crop: Crop | None = None, rules: BoxRules = _RULES) -> Boxes:
    """The boxes of a file that the crop shows, as fractions of the crop.

    Boxes with a low score, outside the crop, or without area are left out. The score is 1 if there is none.
    """
    found = fit(_Detections, data, "the file", strict=False).instances
    shown_boxes = (_shown_box(one, f"instance {i}", crop, rules) for i, one in enumerate(found))
    boxes = [box for box in shown_boxes if box]
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


def box_grammar(rules: BoxRules = _RULES) -> Grammar[Boxes]:
    """The grammar of boxes under these rules."""
    return Grammar(
        parse=partial(parse_boxes, bins=rules.bins),
        to_pieces=lambda boxes: [box_words(box, rules.bins) for box in boxes],
        from_json=partial(boxes_from_json, rules=rules),
        to_json=partial(boxes_to_json, bins=rules.bins),
        is_divisible=True,
    )


def _parse_box(words: list[str], bins: int) -> tuple[Box | None, str]:
    numbers, names, ignored, is_closed = list[int](), list[str](), list[str](), False
    for word in words:
        number = number_of(word)
        if "=" not in word:
            (ignored if is_closed else names).append(word)
        elif number is not None and not names:
            numbers.append(number)
        else:
            is_closed = bool(names)  # a number behind the name: nothing of this box any more
            ignored.append(word)
    if len(numbers) != 4:
        return None, f"{quoted(words)} has {len(numbers)} numbers where a box has four"
    if not names:
        return None, f"{quoted(words)} names nothing"
    xmin, ymin, xmax, ymax = (min(max(number, 0), bins - 1) / (bins - 1) for number in numbers)
    problem = f"{quoted(ignored)} is no part of a box" if ignored else ""
    return Box(xmin, ymin, xmax, ymax, " ".join(names)), problem


def _shown_box(found: _Detection, where: str, crop: Crop | None, rules: BoxRules) -> Box | None:
    """What a crop shows of a box, its name without spare blanks; None where that is too little.

    ValueError for corners and names that no box can have.
    """
    x0, y0, x1, y1 = found.boxes
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
    return Box(x0, y0, x1, y1, name, found.score) if is_seen and found.score >= rules.min_score else None


def _side(one: float, other: float, bins: int) -> tuple[float, float]:
    """The ends of a box's side, the lower one first; half a bin apart where they are in one place."""
    quarter = 0.25 / (bins - 1) if one == other else 0.0
    return max(min(one, other) - quarter, 0.0), min(max(one, other) + quarter, 1.0)
