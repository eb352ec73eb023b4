"""SAM instances as text: query points, and at each the instances there, as boxes and codes of their masks.

text := group*        group := point v0=<y> v1=<x> ( none | polygon+ )
polygon := polygon v0=<xmin> v1=<ymin> v2=<xmax> v3=<ymax> code x 16

All numbers are pixels of the 224 x 224 crop. The format of files is described in docs/formats.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from fourm.data.layout import Crop
from fourm.errors import shown
from fourm.modalities.text import (
    MAX_NUMBER,
    PICTURE_SIDE,
    Code,
    Grammar,
    Structured,
    code_of,
    code_word,
    groups_of,
    number_of,
    parse_groups,
    quoted,
    words_of,
)
from fourm.modalities.typed import Limits, fit

NUM_CODES_OF_MASK = 16  # a grid of 4 x 4, row by row
MAX_WORDS = 289  # that a model reads, with [EOS] 290
_MAX_PAIRS = 10_000_000  # of queries and points, about three seconds; real files have some 100,000
_WORDS_OF_POLYGON = 4 + NUM_CODES_OF_MASK
# (x, y) where instances are looked up unless a file says where: the centre, and six points around it. Models
# were trained on seven random points; with the same ones for every sample, a file always means the same.
QUERY_POINTS = ((112, 112), (182, 112), (147, 173), (77, 173), (42, 112), (77, 51), (147, 51))

Point = tuple[float, float]  # x, y
Contour = Sequence[Point]
MaskCodes = Annotated[tuple[Code, ...], Limits(NUM_CODES_OF_MASK, NUM_CODES_OF_MASK)]


@dataclass(frozen=True, slots=True)
class Instance:
    """One object: its box, and the codes of its mask within the box."""

    box: tuple[int, int, int, int]  # xmin, ymin, xmax, ymax; it may reach beyond the crop
    codes: MaskCodes


@dataclass(frozen=True, slots=True)
class Group:
    """The instances at a query point."""

    point: tuple[int, int] | None  # x, y; None where a text does not say it
    instances: tuple[Instance, ...] = ()  # empty: no object at this point


Groups = tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class _Query:
    point: Point | None = None
    instances: tuple[Annotated[int, Limits(0)], ...] | None = None  # the numbers of those there


@dataclass(frozen=True, slots=True)
class _CropOfFile:
    bbox: tuple[tuple[float, float, float, float], ...]  # ymin, xmin, ymax, xmax
    token_ids: tuple[MaskCodes, ...]
    points: tuple[tuple[Point, ...], ...] | None = None  # a contour of each instance
    queries: tuple[_Query, ...] | None = None


def parse_instances(text: str) -> tuple[Groups, tuple[str, ...]]:
    """The groups of a text, without malformed polygons and empty groups, and a sentence for each problem."""
    before, points = groups_of(words_of(text), "point".__eq__)
    parsed = [_parse_group(before, "before the first point", False)] if before else []
    parsed += [_parse_group(words[1:], f"point {n}", True) for n, words in enumerate(points, start=1)]
    groups = tuple(group for group, _ in parsed if group)
    return groups, tuple(problem for _, problems in parsed for problem in problems)


def instance_words(groups: Groups) -> list[str]:
    """The words of the first groups and instances, as many as a model reads."""
    words = list[str]()
    for group in groups:
        start = ["point"] if words or group.point else []
        if group.point:
            start += [f"v0={group.point[1]}", f"v1={group.point[0]}", *([] if group.instances else ["none"])]
        room = MAX_WORDS - len(words) - len(start)
        fitting = group.instances[: max(room, 0) // (1 + _WORDS_OF_POLYGON)]
        if room < 0 or (group.instances and not fitting):
            break
        words += start
        for instance in fitting:
            corners = (f"v{axis}={corner}" for axis, corner in enumerate(instance.box))
            words += ["polygon", *corners, *map(code_word, instance.codes)]
        if len(fitting) < len(group.instances):
            break
    return words


def instances_from_json(data: object, crop: Crop | None = None) -> Groups:
    """The instances of the file's crop with the crop's number (0 without a crop), at its query points.

    Every crop of a file has its own instances, mirrored where the crop is; only the crop's number is used.
    """
    if not isinstance(data, list) or not data:
        raise ValueError(f"{shown(ascii(data))}, where a list of crops belongs, each a mapping")
    number = crop.number if crop else 0
    if number >= len(data):
        raise ValueError(f"holds {len(data)} crops; there is no crop {number}, counted from 0")
    entry: _CropOfFile = fit(_CropOfFile, data[number], f"crop {number}", strict=False)
    try:
        return _groups_of_crop(entry)
    except ValueError as error:
        raise ValueError(f"crop {number}: {error}") from None


def instances_to_json(groups: Groups) -> object:
    """The data of a file of one crop: every instance once, and which of them are at which query point."""
    instances = list(dict.fromkeys(instance for group in groups for instance in group.instances))
    numbers = {instance: number for number, instance in enumerate(instances)}
    boxes = [[y0, x0, y1, x1] for x0, y0, x1, y1 in (instance.box for instance in instances)]
    queries = [{"point": one.point, "instances": [numbers[i] for i in one.instances]} for one in groups]
    return [{"token_ids": [one.codes for one in instances], "bbox": boxes, "queries": queries}]


SAM_INSTANCES = Grammar(parse_instances, instance_words, instances_from_json, instances_to_json)


def join_passes(passes: Sequence[Structured[Groups]]) -> Structured[Groups]:
    """Join several predictions for one picture; instances that were found twice are merged when drawn."""
    problems = (f"pass {n}: {problem}" for n, one in enumerate(passes, start=1) for problem in one.problems)
    groups = (group for one in passes for group in one.value)
    return Structured(tuple(groups), " ".join(one.text for one in passes), tuple(problems))


# How several predictions become one value, by the codec name of a row: for lists of findings, in which
# duplicates do no harm.
JOINED = {"sam_instance": join_passes}


def contains(contour: Contour, point: Point) -> bool:
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
    head, instances, of_polygons = parse_groups(words, "polygon".__eq__, f"{where}, polygon", _parse_polygon)
    has_polygons, point, problems = bool(instances or of_polygons), None, list[str]()
    if has_point:
        y, x = ([number_of(word) for word in head[:2]] + [None, None])[:2]
        if x is None or y is None or not (0 <= x <= MAX_NUMBER and 0 <= y <= MAX_NUMBER):
            problems.append(f"{where}: no coordinates")
        else:
            point, head = (x, y), head[2:]
    is_none = point is not None and head == ["none"] and not has_polygons
    if head and not is_none and not problems:
        problems.append(f"{where}: {quoted(head)} means nothing here")
    problems += of_polygons
    if not has_polygons and not is_none and not problems:
        problems.append(f"{where}: neither a polygon nor 'none'")
    return (Group(point, tuple(instances)) if instances or is_none else None), problems


def _parse_polygon(words: list[str]) -> tuple[Instance | None, str]:
    if len(words) != 1 + _WORDS_OF_POLYGON:
        return None, f"{len(words) - 1} words instead of {_WORDS_OF_POLYGON}"
    corners = [n for word in words[1:5] if (n := number_of(word)) is not None and 0 <= n <= MAX_NUMBER]
    codes = [code for word in words[5:] if (code := code_of(word)) is not None]
    if len(corners) < 4 or len(codes) < NUM_CODES_OF_MASK:
        return None, "not 4 numbers and 16 codes"
    instance = _visible_instance(corners, tuple(codes))
    return instance, "" if instance else "its box is empty or outside the picture"


def _visible_instance(corners: Iterable[float], codes: tuple[int, ...]) -> Instance | None:
    """An instance in whole pixels; None for a box that is empty or outside the picture."""
    x0, y0, x1, y1 = map(_pixel, corners)
    is_seen = x0 < min(x1, PICTURE_SIDE) and y0 < min(y1, PICTURE_SIDE)
    return Instance((x0, y0, x1, y1), codes) if is_seen else None


def _pixel(place: float) -> int:
    """Rounded towards 0 and limited to the numbers that words have."""
    return min(max(int(place), 0), MAX_NUMBER)


def _groups_of_crop(entry: _CropOfFile) -> Groups:
    instances, contours, queries = list[Instance | None](), entry.points, entry.queries
    for key, column in (("token_ids", entry.token_ids), ("points", contours)):
        if column is not None and len(column) != len(entry.bbox):
            raise ValueError(f"{key} has {len(column)} entries, and bbox has {len(entry.bbox)}")
    for index, ((y0, x0, y1, x1), codes) in enumerate(zip(entry.bbox, entry.token_ids, strict=True)):
        if int(y1) < int(y0) or int(x1) < int(x0):
            raise ValueError(f"bbox {index}: [ymin, xmin, ymax, xmax] is not in order: {[y0, x0, y1, x1]}")
        instances.append(_visible_instance((x0, y0, x1, y1), codes))
    if queries is None and contours is None:
        raise ValueError("neither 'points' (a contour for each instance) nor 'queries'")
    queries = queries if queries is not None else tuple(map(_Query, QUERY_POINTS))
    # Each query is compared with each point of the contours, which takes minutes for a file of megabytes.
    asked, num_points = sum(query.instances is None for query in queries), sum(map(len, contours or ()))
    if asked * num_points > _MAX_PAIRS:
        raise ValueError(f"{asked:,} queries without 'instances' and {num_points:,} points are too many")
    groups = list[Group]()
    for query in queries:
        numbers = query.instances
        point = (_pixel(query.point[0]), _pixel(query.point[1])) if query.point else None
        if numbers is None:
            if point is None or contours is None:
                raise ValueError("a query needs its 'point' and the 'points' of instances, or 'instances'")
            numbers = tuple(n for n, contour in enumerate(contours) if contains(contour, point))
        elif max(numbers, default=-1) >= len(instances):
            raise ValueError(f"a query has instance {max(numbers)}, where {len(instances)} instances are")
        seen = tuple(one for number in numbers if (one := instances[number]) is not None)
        groups += [Group(point, seen)] if point or seen else []
    return tuple(groups)
