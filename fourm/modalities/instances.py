"""SAM instances as text: query points, and at each the instances there, as boxes and codes of their masks.

text := group*        group := point v0=<y> v1=<x> ( none | polygon+ )
polygon := polygon v0=<xmin> v1=<ymin> v2=<xmax> v3=<ymax> code x 16

All numbers are pixels of the 224 x 224 crop. The format of files is described in docs/formats.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from reprlib import repr as shortened

from fourm.data.layout import Crop
from fourm.modalities.numbers import (
    MAX_NUMBER,
    code_of,
    code_word,
    cut,
    number_of,
    read_codes,
    read_numbers,
    read_rows,
)
from fourm.modalities.structured import Grammar, Structured, words_of

SIDE = 224  # pixels per side of the crop
NUM_CODES_OF_MASK = 16  # a grid of 4 x 4, row by row
MAX_WORDS = 289  # that a model reads, with [EOS] 290
_MAX_PAIRS = 10_000_000  # of queries and points, about three seconds; real files have some 100,000
_WORDS_OF_POLYGON = 4 + NUM_CODES_OF_MASK
# (x, y) where instances are looked up unless a file says where: the centre, and six points around it. Models
# were trained on seven random points; with the same ones for every sample, a file always means the same.
QUERY_POINTS = ((112, 112), (182, 112), (147, 173), (77, 173), (42, 112), (77, 51), (147, 51))

Contour = Sequence[tuple[float, float]]  # (x, y)


@dataclass(frozen=True, slots=True)
class Instance:
    """One thing: where it is, and the codes of its mask within the box."""

    box: tuple[int, int, int, int]  # xmin, ymin, xmax, ymax; it may reach beyond the crop
    codes: tuple[int, ...]  # (16,) of 0..1023


@dataclass(frozen=True, slots=True)
class Group:
    """The instances at a query point."""

    point: tuple[int, int] | None  # x, y; None where a text does not say it
    instances: tuple[Instance, ...] = ()  # none: nothing there


Groups = tuple[Group, ...]


def parse(text: str) -> tuple[Groups, tuple[str, ...]]:
    """The groups of a text; malformed polygons are passed over, and groups of which nothing is left."""
    head, *rest = cut(words_of(text), "point")
    groups, problems = list[Group](), list[str]()
    parsed = [_parse_group(head, "before the first point", has_point=False)] if head else []
    parsed += [_parse_group(words, f"point {n}", has_point=True) for n, words in enumerate(rest, start=1)]
    for group, said in parsed:
        groups += [group] if group else []
        problems += said
    return tuple(groups), tuple(problems)


def to_text(groups: Groups) -> str:
    """The text of the first groups and instances, as many as a model reads."""
    words = list[str]()
    for group in groups:
        start = _point_words(group, is_first=not words)
        room = MAX_WORDS - len(words) - len(start)
        fitting = group.instances[: max(room, 0) // (1 + _WORDS_OF_POLYGON)]
        if room < 0 or (group.instances and not fitting):
            break
        words += [*start, *(word for instance in fitting for word in _polygon_words(instance))]
        if len(fitting) < len(group.instances):
            break
    return " ".join(words)


def from_json(data: object, crop: Crop | None = None) -> Groups:
    """The instances of the file's crop with the crop's number (0 without a crop), at its query points.

    Every crop of a file has its own instances, mirrored where the crop is, so the rectangle is not looked at.
    """
    if not isinstance(data, list) or not data:
        raise ValueError(f"{shortened(data)}, where a list of crops belongs, each an object")
    number = crop.number if crop else 0
    if number >= len(data):
        raise ValueError(f"holds {len(data)} crops; there is no crop {number}, counted from 0")
    entry = data[number]
    if not isinstance(entry, dict):
        raise ValueError(f"crop {number}: {shortened(entry)} is not an object")
    try:
        return _read_groups(entry)
    except ValueError as error:
        raise ValueError(f"crop {number}: {error}") from None


def to_json(groups: Groups) -> object:
    """The data of a file of one crop: every instance once, and which of them are at which query point."""
    instances = list(dict.fromkeys(instance for group in groups for instance in group.instances))
    numbers = {instance: number for number, instance in enumerate(instances)}
    return [
        {
            "token_ids": [list(instance.codes) for instance in instances],
            "bbox": [[y0, x0, y1, x1] for x0, y0, x1, y1 in (instance.box for instance in instances)],
            "queries": [
                {
                    "point": list(group.point) if group.point else None,
                    "instances": [numbers[instance] for instance in group.instances],
                }
                for group in groups
            ],
        }
    ]


SAM_INSTANCES: Grammar[Groups] = Grammar(parse, to_text, from_json, to_json)


def join_passes(passes: Sequence[Structured[Groups]]) -> Structured[Groups]:
    """Several predictions for one picture as one: dense instances. Those found twice merge when painted."""
    problems = [
        f"pass {number}: {problem}" for number, one in enumerate(passes, start=1) for problem in one.problems
    ]
    groups = tuple(group for one in passes for group in one.value)
    return Structured(groups, " ".join(one.text for one in passes), tuple(problems))


# Values of which several predictions make one, by the codec name of a row: they are lists of findings, and
# what is found twice does no harm.
JOINED = {"sam_instance": join_passes}


def contains(contour: Contour, point: tuple[float, float]) -> bool:
    """True for a point inside a closed contour (even-odd rule) or on its border."""
    x, y = point
    inside = False
    for index, (x1, y1) in enumerate(contour):
        x0, y0 = contour[index - 1]
        side = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)
        if side == 0 and min(x0, x1) <= x <= max(x0, x1) and min(y0, y1) <= y <= max(y0, y1):
            return True
        if (y0 > y) != (y1 > y) and (side > 0) == (y1 > y0):
            inside = not inside  # the edge crosses the line from the point to the right
    return inside


def _parse_group(words: list[str], where: str, has_point: bool) -> tuple[Group | None, list[str]]:
    """What stands between two `point`; None where nothing can be made of it."""
    head, *polygons = cut(words, "polygon")
    point, problems = None, list[str]()
    if has_point:
        y, x = (_coordinate(word) for word in (*head, "", "")[:2])
        if x is None or y is None:
            problems.append(f"{where}: no coordinates")
        else:
            point, head = (x, y), head[2:]
    is_none = point is not None and head == ["none"] and not polygons
    if head and not is_none and not problems:
        problems.append(f"{where}: {shortened(' '.join(head))} means nothing here")
    instances = list[Instance]()
    for number, polygon in enumerate(polygons, start=1):
        instance, problem = _parse_polygon(polygon)
        instances += [instance] if instance else []
        problems += [f"{where}, polygon {number}: {problem}"] if problem else []
    if not polygons and not is_none and not problems:
        problems.append(f"{where}: neither a polygon nor 'none'")
    return (Group(point, tuple(instances)) if instances or is_none else None), problems


def _parse_polygon(words: list[str]) -> tuple[Instance | None, str]:
    if len(words) != _WORDS_OF_POLYGON:
        return None, f"{len(words)} words instead of {_WORDS_OF_POLYGON}"
    corners = [c for word in words[:4] if (c := _coordinate(word)) is not None]
    codes = [code for word in words[4:] if (code := code_of(word)) is not None]
    if len(corners) < 4 or len(codes) < NUM_CODES_OF_MASK:
        return None, "not 4 numbers and 16 codes"
    instance = _instance(corners, tuple(codes))
    return instance, "" if instance else "its box is empty or outside the picture"


def _instance(corners: Sequence[int], codes: tuple[int, ...]) -> Instance | None:
    """An instance that can be seen; None for an empty box, or one beside the picture."""
    x0, y0, x1, y1 = (min(max(corner, 0), MAX_NUMBER) for corner in corners)
    return Instance((x0, y0, x1, y1), codes) if x0 < min(x1, SIDE) and y0 < min(y1, SIDE) else None


def _read_groups(entry: dict[str, object]) -> Groups:
    """The groups of one crop of a file."""
    instances = _read_instances(entry)
    contours = _read_contours(entry, len(instances))
    groups, queries = list[Group](), _read_queries(entry, contours)
    _check_size(queries, contours or [])
    for query in queries:
        point, numbers = _read_query(query, contours, len(instances))
        seen = tuple(one for number in numbers if (one := instances[number]) is not None)
        groups += [Group(point, seen)] if point or seen else []
    return tuple(groups)


def _check_size(queries: Sequence[object], contours: Sequence[Contour]) -> None:
    """Each query is compared with each point of the contours, which takes minutes for a file of megabytes."""
    asked = sum(not isinstance(query, dict) or query.get("instances") is None for query in queries)
    points = sum(map(len, contours))
    if asked * points > _MAX_PAIRS:
        raise ValueError(
            f"{asked:,} queries without 'instances' and {points:,} points of contours are too many to compare"
        )


def _read_instances(entry: dict[str, object]) -> list[Instance | None]:
    """The instances of one crop of a file; None for those that cannot be seen."""
    boxes = read_rows(entry, "bbox")
    codes = read_rows(entry, "token_ids", len(boxes))
    instances = list[Instance | None]()
    for index, (box, ids) in enumerate(zip(boxes, codes, strict=True)):
        y0, x0, y1, x1 = (int(corner) for corner in read_numbers(box, (4,), f"bbox {index}"))
        if y1 < y0 or x1 < x0:
            raise ValueError(f"bbox {index}: [ymin, xmin, ymax, xmax] must be in order, not {shortened(box)}")
        of_mask = read_codes(ids, NUM_CODES_OF_MASK, f"token_ids {index}")
        instances.append(_instance((x0, y0, x1, y1), of_mask))
    return instances


def _read_contours(entry: dict[str, object], count: int) -> list[Contour] | None:
    if entry.get("points") is None:
        return None
    return [_read_contour(points, index) for index, points in enumerate(read_rows(entry, "points", count))]


def _read_queries(entry: dict[str, object], contours: list[Contour] | None) -> list[object]:
    if entry.get("queries") is not None:
        return read_rows(entry, "queries")
    if contours is None:
        raise ValueError("neither 'points' (a contour for each instance) nor 'queries'")
    return [{"point": list(point)} for point in QUERY_POINTS]


def _read_query(
    query: object, contours: list[Contour] | None, count: int
) -> tuple[tuple[int, int] | None, list[int]]:
    """A query point and the numbers of the instances there, as a file says it or as contours show it."""
    if not isinstance(query, dict):
        raise ValueError(f"query {shortened(query)} is not an object")
    point = None
    if query.get("point") is not None:
        x, y = read_numbers(query["point"], (2,), "point of a query")
        point = (min(max(int(x), 0), MAX_NUMBER), min(max(int(y), 0), MAX_NUMBER))
    numbers = query.get("instances")
    if numbers is None:
        if point is None or contours is None:
            raise ValueError("a query needs its 'point' and the 'points' of instances, or 'instances'")
        return point, [n for n, contour in enumerate(contours) if contains(contour, point)]
    if not isinstance(numbers, list) or any(type(n) is not int or not 0 <= n < count for n in numbers):
        raise ValueError(f"'instances' of a query: {shortened(numbers)}, where numbers 0..{count - 1} belong")
    return point, numbers


def _read_contour(data: object, index: int) -> Contour:
    if not isinstance(data, list):
        raise ValueError(f"points {index}: {shortened(data)}, where a list of [x, y] belongs")
    found = [read_numbers(point, (2,), f"points {index}") for point in data]
    return [(x, y) for x, y in found]


def _point_words(group: Group, is_first: bool) -> list[str]:
    if group.point is None:
        return [] if is_first else ["point"]
    x, y = group.point
    return ["point", f"v0={y}", f"v1={x}", *([] if group.instances else ["none"])]


def _polygon_words(instance: Instance) -> list[str]:
    corners = [f"v{axis}={corner}" for axis, corner in enumerate(instance.box)]
    return ["polygon", *corners, *map(code_word, instance.codes)]


def _coordinate(word: str) -> int | None:
    """A number that a word can say."""
    number = number_of(word)
    return number if number is not None and 0 <= number <= MAX_NUMBER else None
