"""Human poses as text: `human v0= .. v3=`, then `global`, `pose`, `shape`, `camera`; or `none`.

Numbers are those of 4D-Humans (HMR 2.0), as the datasets of 4M hold them: a box, the orientation of the body
as a rotation matrix, eight codes of the pose tokenizer, ten coefficients of the SMPL body's shape, and a
weak-perspective camera (scale, x, y) for the box.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from fourm.data.layout import Crop
from fourm.modalities.text import (
    MAX_NUMBER,
    PICTURE_SIDE,
    Code,
    Grammar,
    code_of,
    code_word,
    number_of,
    parse_groups,
    words_of,
)
from fourm.modalities.typed import Limits, fit

MAX_PEOPLE = 7  # that fit into 275 tokens with [EOS]; a text has no more
_HALF = 499.5  # words -> -1..1
_BETA = 166.5  # words per unit: -3..3 in 0..999
_CAMERA = 49.95  # words per unit: -1..19 in 0..999
_BLOCKS = {"global": 9, "pose": 8, "shape": 10, "camera": 3}  # words, in our order

Corners = tuple[float, float, float, float]
Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]
PoseCodes = Annotated[tuple[Code, ...], Limits(8, 8)]
Betas = Annotated[tuple[float, ...], Limits(10, 10)]


@dataclass(frozen=True, slots=True)
class Person:
    """One person in a picture."""

    box: Corners  # xmin, ymin, xmax, ymax in pixels of a 224 x 224 picture
    orientation: Matrix  # rotation of the whole body
    pose_codes: PoseCodes
    betas: Betas  # shape of the body, about -3..3
    camera: Vector  # scale, x, y


People = tuple[Person, ...]


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
        corners = (_nearest(corner / PICTURE_SIDE * MAX_NUMBER) for corner in person.box)
        words += ["human", *(f"v{axis}={number}" for axis, number in enumerate(corners)), "global"]
        words += (f"v0={_nearest(_HALF * g + _HALF)}" for row in person.orientation for g in row)
        words += ["pose", *map(code_word, person.pose_codes), "shape"]
        words += (f"v0={_nearest(_BETA * beta + _HALF)}" for beta in person.betas)
        words += ["camera", *(f"v0={_nearest(_CAMERA * c + _CAMERA)}" for c in person.camera)]
    return words or ["none"]


def people_from_json(data: object, crop: Crop | None = None) -> People:
    """The people in a crop; boxes of a file are in pixels of the whole picture, by default of 224 x 224.

    A mirrored crop mirrors box and camera, so positions are right. Orientation and pose are not mirrored:
    codes of a pose cannot be mirrored without the pose tokenizer's encoder.
    """
    if data in ({}, []):
        return ()
    file: _PeopleOfFile = fit(_PeopleOfFile, data, "the file", strict=False)
    body = file.pred_smpl_params
    crop = crop or Crop((PICTURE_SIDE, PICTURE_SIDE), 0, 0, PICTURE_SIDE, PICTURE_SIDE)
    turns = [turn for (turn,) in body.global_orient]
    columns = (file.bbox_xyxy, turns, file.pose_tokenized, body.betas, file.pred_cam)
    if len(set(counts := [len(column) for column in columns])) > 1:
        raise ValueError(f"its lists are for different numbers of people: {', '.join(map(str, counts))}")
    return tuple(seen for person in map(Person, *columns) if (seen := _seen(person, crop)))


def people_to_json(people: People) -> object:
    """The data of a file of a 224 x 224 picture; `{}` for nobody."""
    if not people:
        return {}
    return {
        "bbox_xyxy": [person.box for person in people],
        "pred_cam": [person.camera for person in people],
        "pose_tokenized": [person.pose_codes for person in people],
        "pred_smpl_params": {
            "global_orient": [[person.orientation] for person in people],
            "betas": [person.betas for person in people],
        },
    }


HUMAN_POSES: Grammar[People] = Grammar(parse_people, people_words, people_from_json, people_to_json)


def _parse_person(words: list[str]) -> tuple[Person | None, str]:
    """The person whose words begin with `human`, and the problem: a person without all blocks is left out,
    words that belong to no block are ignored."""
    words = words[1:]
    corners = _numbers(words[:4])
    if len(corners) < 4:
        return None, "the box needs 4 numbers"
    found = dict[str, list[int]]()
    for name, count in _BLOCKS.items():
        if name not in words:
            return None, f"'{name}' is missing"
        block = words[words.index(name) + 1 :][:count]
        codes = [code for word in block if (code := code_of(word)) is not None]
        found[name] = codes if name == "pose" else _numbers(block)
        if len(found[name]) < count:
            return None, f"'{name}' needs {count} {'codes, 0..1023' if name == 'pose' else 'numbers'}"
    x0, y0, x1, y1 = (n / MAX_NUMBER * PICTURE_SIDE for n in corners)
    a, b, c, d, e, f, g, h, i = ((n - _HALF) / _HALF for n in found["global"])
    scale, x, y = ((n - _CAMERA) / _CAMERA for n in found["camera"])
    turn, betas = ((a, b, c), (d, e, f), (g, h, i)), tuple((n - _HALF) / _BETA for n in found["shape"])
    person = Person((x0, y0, x1, y1), turn, tuple(found["pose"]), betas, (scale, x, y))
    rest = len(words) - 4 - sum(_BLOCKS.values()) - len(_BLOCKS)
    return person, f"{rest} words too many" if rest else ""


def _nearest(value: float) -> int:
    """A number rounded (half to even) and limited to 0..999, the numbers that words have."""
    return round(min(max(value, 0), MAX_NUMBER))


def _numbers(words: list[str]) -> list[int]:
    """The numbers of those words that are numbers, limited to 0..999."""
    return [_nearest(number) for word in words if (number := number_of(word)) is not None]


def _seen(person: Person, crop: Crop) -> Person | None:
    """A person in pixels of a crop; None if the box is outside the crop."""
    side, (left, top, right, bottom) = float(PICTURE_SIDE), person.box
    left, right = ((x - crop.left) * (side / crop.width) for x in (left, right))
    top, bottom = ((y - crop.top) * (side / crop.height) for y in (top, bottom))
    if max(left, right) < 0 or min(left, right) > side or max(top, bottom) < 0 or min(top, bottom) > side:
        return None
    if crop.mirrored:
        left, right = side - right, side - left
        scale, x, y = person.camera
        person = replace(person, camera=(scale, -x, y))
    left, top, right, bottom = (min(max(c, 0.0), side) for c in (left, top, right, bottom))
    return replace(person, box=(left, top, right, bottom))
