"""Texts that hold codes of a tokenizer: people (`human_poses`) and SAM instances (`sam_instance`).

People: `human v0= .. v3=`, then `global`, `pose`, `shape`, `camera`, with their numbers; or `none`. Numbers
are those of 4D-Humans (HMR 2.0), as the datasets of 4M hold them. docs/formats.md describes the files.

Instances: query points, and at each the boxes and codes of masks there, in pixels of the 224 x 224 crop:
text := group*        group := point v0=<y> v1=<x> ( none | polygon+ )
polygon := polygon v0=<xmin> v1=<ymin> v2=<xmax> v3=<ymax> code x 16
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Annotated

from fourm.data.layout import Crop
from fourm.errors import shown
from fourm.modalities.text import MAX_NUMBER, Grammar, Structured, grouped, number_of, parse_groups, words_of
from fourm.modalities.typed import Limits, to_type

PICTURE_SIDE = 224  # pixels per side of the picture that coordinates are for
NUM_CODES = 1024
_CODES_PER_AXIS = 512  # in texts codes are `v0=0` to `v0=511`, then `v1=0` to `v1=511`

MAX_PEOPLE = 7  # that fit into 275 tokens with [EOS]; a text has no more
_HALF = 499.5  # words -> -1..1
_BETA = 166.5  # words per unit: -3..3 in 0..999
_CAMERA = 49.95  # words per unit: -1..19 in 0..999
_BLOCKS = {"human": 4, "global": 9, "pose": 8, "shape": 10, "camera": 3}  # words behind each, in our order

NUM_CODES_OF_MASK = 16  # a grid of 4 x 4, row by row
MAX_WORDS = 289  # of instances that a model reads, with [EOS] 290
_MAX_PAIRS = 10_000_000  # of queries and points, about three seconds; real files have some 100,000
_WORDS_OF_POLYGON = 4 + NUM_CODES_OF_MASK
# (x, y) where instances are looked up unless a file says where: the centre, and six points around it. Models
# were trained on seven random points; with the same ones for every sample, a file always means the same.
QUERY_POINTS = ((112, 112), (182, 112), (147, 173), (77, 173), (42, 112), (77, 51), (147, 51))

Code = Annotated[int, Limits(0, NUM_CODES - 1)]
PoseCodes = Annotated[tuple[Code, ...], Limits(8, 8)]
MaskCodes = Annotated[tuple[Code, ...], Limits(NUM_CODES_OF_MASK, NUM_CODES_OF_MASK)]
Corners = tuple[float, float, float, float]
Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]
Betas = Annotated[tuple[float, ...], Limits(10, 10)]
Point = tuple[float, float]  # x, y


@dataclass(frozen=True, slots=True)
class Person:
    """One person in a picture."""

    box: Corners  # xmin, ymin, xmax, ymax in pixels of a 224 x 224 picture
    orientation: Matrix  # rotation of the whole body
    pose_codes: PoseCodes
    betas: Betas  # coefficients of the SMPL body's shape, about -3..3
    camera: Vector  # scale, x, y of a weak-perspective camera for the box


People = tuple[Person, ...]


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
class _Body:
    global_orient: tuple[tuple[Matrix], ...]
    betas: tuple[Betas, ...]


@dataclass(frozen=True, slots=True)
class _PeopleOfFile:
    """The columns of a file, one entry for each person."""

    bbox_xyxy: tuple[Corners, ...]  # pixels of the whole picture
    pred_cam: tuple[Vector, ...]
    pose_tokenized: tuple[PoseCodes, ...]
    pred_smpl_params: _Body


@dataclass(frozen=True, slots=True)
class _Query:
    point: Point | None = None
    instances: tuple[Annotated[int, Limits(0)], ...] | None = None  # the numbers of those there


@dataclass(frozen=True, slots=True)
class _CropOfFile:
    bbox: tuple[Corners, ...]  # ymin, xmin, ymax, xmax
    token_ids: tuple[MaskCodes, ...]
    points: tuple[tuple[Point, ...], ...] | None = None  # a contour of each instance
    queries: tuple[_Query, ...] | None = None


def parse_people(text: str) -> tuple[People, tuple[str, ...]]:
    """The complete people of a text, and a sentence for each problem."""
    before, people, problems = parse_groups(words_of(text), "human".__eq__, "person", _parse_person)
    if before == ["none"] and not people and not problems:
        return (), ()
    if before:
        problems.insert(0, f"{len(before)} words before the first 'human'")
    elif not people and not problems:
        problems = ["neither 'none' nor 'human'"]
    return tuple(people), tuple(problems)


def people_words(people: People) -> list[str]:
    """The words of the first people, as many as the model reads; `none` for nobody."""
    words = list[str]()
    for person in people[:MAX_PEOPLE]:
        corners = (_limited(round(corner / PICTURE_SIDE * MAX_NUMBER)) for corner in person.box)
        words += ["human", *(f"v{axis}={number}" for axis, number in enumerate(corners)), "global"]
        words += (f"v0={_limited(round(_HALF * g + _HALF))}" for row in person.orientation for g in row)
        words += ["pose", *map(_code_word, person.pose_codes), "shape"]
        words += (f"v0={_limited(round(_BETA * beta + _HALF))}" for beta in person.betas)
        words += ["camera", *(f"v0={_limited(round(_CAMERA * c + _CAMERA))}" for c in person.camera)]
    return words or ["none"]


def people_from_json(data: object, crop: Crop | None = None) -> People:
    """The people in a crop; boxes of a file are in pixels of the whole picture, by default of 224 x 224."""
    crop = crop or Crop((PICTURE_SIDE, PICTURE_SIDE), 0, 0, PICTURE_SIDE, PICTURE_SIDE)
    return cut_people(all_people_from_json(data), crop)


def all_people_from_json(data: object) -> People:
    """All people of a file, with boxes in pixels of the whole picture, of whatever size."""
    if data in ({}, []):
        return ()
    file: _PeopleOfFile = to_type(_PeopleOfFile, data, "the file", strict=False)
    turns = [turn for (turn,) in file.pred_smpl_params.global_orient]
    columns = (file.bbox_xyxy, turns, file.pose_tokenized, file.pred_smpl_params.betas, file.pred_cam)
    if len(set(counts := [len(column) for column in columns])) > 1:
        raise ValueError(f"its lists are for different numbers of people: {', '.join(map(str, counts))}")
    return tuple(map(Person, *columns))


def cut_people(people: People, crop: Crop) -> People:
    """People of a whole picture as a crop shows them: boxes in pixels of its square, clipped to it."""
    shown, side = list[Person](), PICTURE_SIDE
    for person in people:
        left, top, right, bottom = person.box
        left, right = ((x - crop.left) * (side / crop.width) for x in (left, right))
        top, bottom = ((y - crop.top) * (side / crop.height) for y in (top, bottom))
        if max(left, right) < 0 or min(left, right) > side or max(top, bottom) < 0 or min(top, bottom) > side:
            continue
        if crop.mirrored:  # not orientation and pose: its codes cannot be, without the tokenizer's encoder
            left, right = side - right, side - left
            scale, x, y = person.camera
            person = replace(person, camera=(scale, -x, y))
        left, top, right, bottom = (min(max(c, 0.0), float(side)) for c in (left, top, right, bottom))
        shown.append(replace(person, box=(left, top, right, bottom)))
    return tuple(shown)


def people_to_json(people: People) -> object:
    """The data of a file; `{}` for nobody."""
    body = {"global_orient": [[one.orientation] for one in people], "betas": [one.betas for one in people]}
    columns = {
        "bbox_xyxy": [one.box for one in people],
        "pred_cam": [one.camera for one in people],
        "pose_tokenized": [one.pose_codes for one in people],
        "pred_smpl_params": body,
    }
    return columns if people else {}


def restore_people(people: People, crop: Crop) -> People:
    """People of a crop with boxes in pixels of the whole picture, clipped to it; nobody of a border alone.

    Cameras belong to boxes, so only a mirrored crop changes them; as in `people_from_json`, poses stay.
    """
    restored = list[Person]()
    for person in people:
        left, top, right, bottom = (corner / PICTURE_SIDE for corner in person.box)
        if box := crop.restore_box((left, top, right, bottom)):
            scale, x, y = person.camera
            camera = (scale, -x, y) if crop.mirrored else person.camera
            restored.append(replace(person, box=box, camera=camera))
    return tuple(restored)


HUMAN_POSES: Grammar[People] = Grammar(
    parse_people, people_words, people_from_json, people_to_json, restore=restore_people,
    whole=all_people_from_json, cut=cut_people,
)  # fmt: skip


def parse_instances(text: str) -> tuple[Groups, tuple[str, ...]]:
    """The groups of a text, without malformed polygons and empty groups, and a sentence for each problem."""
    before, points = grouped(words_of(text), "point".__eq__)
    parsed = [_parse_group(before, "before the first point")] if before else []
    parsed += [_parse_group(words, f"point {n}") for n, words in enumerate(points, start=1)]
    groups = tuple(group for group, _ in parsed if group)
    return groups, tuple(problem for _, problems in parsed for problem in problems)


def instance_words(groups: Groups) -> list[str]:
    """The words of the first groups and instances, as many as a model reads."""
    pieces = list[list[str]]()  # each an instance, the first of a group with the words that begin the group
    for group in groups:
        start = ["point"] if pieces or group.point else []
        if group.point:
            start += [f"v0={group.point[1]}", f"v1={group.point[0]}", *([] if group.instances else ["none"])]
        pieces += [start] if start and not group.instances else []
        for instance in group.instances:
            corners = (f"v{axis}={corner}" for axis, corner in enumerate(instance.box))
            pieces.append([*start, "polygon", *corners, *map(_code_word, instance.codes)])
            start = []
    ends = accumulate(map(len, pieces))
    return [word for piece, end in zip(pieces, ends, strict=True) if end <= MAX_WORDS for word in piece]


def instances_from_json(data: object, crop: Crop | None = None) -> Groups:
    """The groups of the file's crop with the crop's number (0 without one), mirrored where that crop is."""
    if not isinstance(data, list) or not data:
        raise ValueError(f"{shown(ascii(data))}, where a list of crops belongs, each a mapping")
    number = crop.number if crop else 0
    if number >= len(data):
        raise ValueError(f"holds {len(data)} crops; there is no crop {number}, counted from 0")
    entry: _CropOfFile = to_type(_CropOfFile, data[number], f"crop {number}", strict=False)
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
    text = " ".join(one.text for one in passes)
    return Structured(tuple(group for one in passes for group in one.value), text, tuple(problems))


JOINED = {"sam_instance": join_passes}  # by the codec of a row: how several predictions become one value


def contains(contour: Sequence[Point], point: Point) -> bool:
    """True for a point inside a closed contour (even-odd rule) or on its border."""
    (x, y), inside = point, False
    for index, (x1, y1) in enumerate(contour):
        x0, y0 = contour[index - 1]
        side = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)
        if side == 0 and min(x0, x1) <= x <= max(x0, x1) and min(y0, y1) <= y <= max(y0, y1):
            return True
        if (y0 > y) != (y1 > y) and (side > 0) == (y1 > y0):
            inside = not inside  # the edge crosses the line from the point to the right
    return inside


def _parse_person(words: list[str]) -> tuple[Person | None, str]:
    found = dict[str, list[int]]()
    for name, count in _BLOCKS.items():
        if name not in words:
            return None, f"'{name}' is missing"
        read, what = (_code_of, "codes, 0..1023") if name == "pose" else (number_of, "numbers")
        block = words[words.index(name) + 1 :][:count]
        numbers = [number for word in block if (number := read(word)) is not None]
        found[name] = numbers if name == "pose" else [*map(_limited, numbers)]
        if len(found[name]) < count:
            return None, f"'{name}' needs {count} {what}"
    x0, y0, x1, y1 = (n / MAX_NUMBER * PICTURE_SIDE for n in found["human"])
    a, b, c, d, e, f, g, h, i = ((n - _HALF) / _HALF for n in found["global"])
    scale, x, y = ((n - _CAMERA) / _CAMERA for n in found["camera"])
    turn, betas = ((a, b, c), (d, e, f), (g, h, i)), tuple((n - _HALF) / _BETA for n in found["shape"])
    person = Person((x0, y0, x1, y1), turn, tuple(found["pose"]), betas, (scale, x, y))
    rest = len(words) - sum(_BLOCKS.values()) - len(_BLOCKS)
    return person, f"{rest} words too many" if rest else ""


def _parse_group(words: list[str], where: str) -> tuple[Group | None, list[str]]:
    head, instances, of_polygons = parse_groups(words, "polygon".__eq__, f"{where}, polygon", _parse_polygon)
    has_polygons, point, problems = bool(instances or of_polygons), None, list[str]()
    if head[:1] == ["point"]:
        y, x, *_ = [*map(number_of, head[1:3]), None, None]
        if x is None or y is None or not (0 <= x <= MAX_NUMBER and 0 <= y <= MAX_NUMBER):
            problems.append(f"{where}: no coordinates")
        else:
            point, head = (x, y), head[3:]
    is_none = point is not None and head == ["none"] and not has_polygons
    if head and not is_none and not problems:
        problems.append(f"{where}: '{shown(' '.join(head), 40)}' means nothing here")
    problems += of_polygons
    if not has_polygons and not is_none and not problems:
        problems.append(f"{where}: neither a polygon nor 'none'")
    return (Group(point, tuple(instances)) if instances or is_none else None), problems


def _parse_polygon(words: list[str]) -> tuple[Instance | None, str]:
    if len(words) != 1 + _WORDS_OF_POLYGON:
        return None, f"{len(words) - 1} words instead of {_WORDS_OF_POLYGON}"
    corners = [n for word in words[1:5] if (n := number_of(word)) is not None and 0 <= n <= MAX_NUMBER]
    codes = tuple(code for word in words[5:] if (code := _code_of(word)) is not None)
    if len(corners) < 4 or len(codes) < NUM_CODES_OF_MASK:
        return None, "not 4 numbers and 16 codes"
    instance = _visible_instance(corners, codes)
    return instance, "" if instance else "its box is empty or outside the picture"


def _visible_instance(corners: Iterable[float], codes: tuple[int, ...]) -> Instance | None:
    """An instance in whole pixels, rounded towards 0; None for an empty box or one outside the picture."""
    x0, y0, x1, y1 = (_limited(int(corner)) for corner in corners)
    is_seen = x0 < min(x1, PICTURE_SIDE) and y0 < min(y1, PICTURE_SIDE)
    return Instance((x0, y0, x1, y1), codes) if is_seen else None


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
        point = (_limited(int(query.point[0])), _limited(int(query.point[1]))) if query.point else None
        if numbers is None:
            if point is None or contours is None:
                raise ValueError("a query needs its 'point' and the 'points' of instances, or 'instances'")
            numbers = tuple(n for n, contour in enumerate(contours) if contains(contour, point))
        elif max(numbers, default=-1) >= len(instances):
            raise ValueError(f"a query has instance {max(numbers)}, where {len(instances)} instances are")
        seen = tuple(one for number in numbers if (one := instances[number]) is not None)
        groups += [Group(point, seen)] if point or seen else []
    return tuple(groups)


def _code_of(word: str) -> int | None:
    """The code of a word: `v0=5` is 5, every other axis counts from 512; None for other words."""
    number = number_of(word)
    code = -1 if number is None else number + (0 if word.startswith("v0=") else _CODES_PER_AXIS)
    return code if 0 <= code < NUM_CODES else None


def _code_word(code: int) -> str:
    return f"v0={code}" if code < _CODES_PER_AXIS else f"v1={code - _CODES_PER_AXIS}"


def _limited(number: int) -> int:
    """The nearest of the numbers that words have, 0..999."""
    return min(max(number, 0), MAX_NUMBER)
