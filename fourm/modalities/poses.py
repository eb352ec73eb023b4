"""Human poses as text: `human v0= .. v3=`, then `global`, `pose`, `shape`, `camera`; or `none`.

Numbers are those of 4D-Humans (HMR 2.0), as the datasets of 4M hold them: a box, the orientation of the body
as a rotation matrix, a pose as eight codes of the pose tokenizer, ten coefficients of the SMPL body's shape,
and a weak-perspective camera (scale, x, y) for the box.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from reprlib import repr as shortened

from fourm.data.layout import Crop
from fourm.modalities.numbers import (
    MAX_NUMBER,
    code_of,
    code_word,
    cut,
    limited,
    number_of,
    read_codes,
    read_numbers,
    read_rows,
)
from fourm.modalities.structured import Grammar, words_of

SIDE = 224  # pixels per side of the picture that numbers are for, whatever the size of the file
MAX_PEOPLE = 7  # that fit into 275 tokens with [EOS]; a text has no more
NUM_CODES_OF_POSE = 8
_HALF = 499.5  # words -> -1..1
_BETA = 166.5  # words per unit: -3..3 in 0..999
_CAMERA = 49.95  # words per unit: -1..19 in 0..999
_BLOCKS = {"global": 9, "pose": NUM_CODES_OF_POSE, "shape": 10, "camera": 3}  # words, in our order
_WHOLE = Crop((SIDE, SIDE), 0, 0, SIDE, SIDE)

Row = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody in a picture."""

    box: tuple[float, float, float, float]  # xmin, ymin, xmax, ymax in pixels of a 224 x 224 picture
    orientation: tuple[Row, Row, Row]  # rotation of the whole body
    pose_codes: tuple[int, ...]  # (8,) of 0..1023
    betas: tuple[float, ...]  # (10,) shape of the body, about -3..3
    camera: Row  # scale, x, y


People = tuple[Person, ...]


def parse(text: str) -> tuple[People, tuple[str, ...]]:
    """The people of a text; whoever is incomplete is passed over."""
    words = words_of(text)
    if words == ["none"]:
        return (), ()
    head, *rest = cut(words, "human")
    people, problems = list[Person](), list[str]()
    if head or not rest:
        problems.append(
            f"{len(head)} words before the first 'human'" if head else "neither 'none' nor 'human'"
        )
    for number, those in enumerate(rest, start=1):
        person, problem = _parse_person(those)
        people += [person] if person else []
        problems += [f"person {number}: {problem}"] if problem else []
    return tuple(people), tuple(problems)


def to_text(people: People) -> str:
    """The text of the first people, as many as the model reads; `none` for nobody."""
    return " ".join(word for person in people[:MAX_PEOPLE] for word in _words(person)) or "none"


def from_json(data: object, crop: Crop | None = None) -> People:
    """The people whom a crop shows. Boxes of a file are in pixels of the whole picture, or without a crop
    in those of a 224 x 224 one.

    With a mirrored crop, box and camera are mirrored: where somebody is, is right. Orientation and pose stay
    as they are; codes of a pose cannot be mirrored without the pose tokenizer's encoder.
    """
    if data in ({}, []):
        return ()
    if not isinstance(data, dict):
        raise ValueError(f"{shortened(data)}, where an object of people or {{}} for nobody belongs")
    boxes = read_rows(data, "bbox_xyxy")
    body = data.get("pred_smpl_params")
    if not isinstance(body, dict):
        raise ValueError("'pred_smpl_params' is missing, or no object")
    columns = (
        read_rows(body, "global_orient", len(boxes)),
        read_rows(data, "pose_tokenized", len(boxes)),
        read_rows(body, "betas", len(boxes)),
        read_rows(data, "pred_cam", len(boxes)),
    )
    people = [_read_person(index, *row) for index, row in enumerate(zip(boxes, *columns, strict=True))]
    return tuple(seen for person in people if (seen := _seen(person, crop or _WHOLE)))


def to_json(people: People) -> object:
    """The data of a file of a 224 x 224 picture; `{}` for nobody."""
    if not people:
        return {}
    return {
        "bbox_xyxy": [list(person.box) for person in people],
        "pred_cam": [list(person.camera) for person in people],
        "pose_tokenized": [list(person.pose_codes) for person in people],
        "pred_smpl_params": {
            "global_orient": [[[list(row) for row in person.orientation]] for person in people],
            "betas": [list(person.betas) for person in people],
        },
    }


HUMAN_POSES: Grammar[People] = Grammar(parse, to_text, from_json, to_json)


def _parse_person(words: list[str]) -> tuple[Person | None, str]:
    """Somebody between two `human`, and what is wrong with them: people without all of their blocks are not
    kept, words that belong to none are passed over."""
    corners = _numbers(words[:4])
    if len(corners) < 4:
        return None, "the box needs 4 numbers"
    found = dict[str, list[int]]()
    for name, count in _BLOCKS.items():
        if name not in words:
            return None, f"'{name}' is missing"
        start = words.index(name) + 1
        read = _codes if name == "pose" else _numbers
        found[name] = read(words[start : start + count])
        if len(found[name]) < count:
            return None, f"'{name}' needs {count} {'codes, 0..1023' if name == 'pose' else 'numbers'}"
    turn = [(n - _HALF) / _HALF for n in found["global"]]
    person = Person(
        box=_four([n / MAX_NUMBER * SIDE for n in corners]),
        orientation=(_three(turn[:3]), _three(turn[3:6]), _three(turn[6:])),
        pose_codes=tuple(found["pose"]),
        betas=tuple((n - _HALF) / _BETA for n in found["shape"]),
        camera=_three([(n - _CAMERA) / _CAMERA for n in found["camera"]]),
    )
    rest = len(words) - 4 - sum(_BLOCKS.values()) - len(_BLOCKS)
    return person, f"{rest} words too many" if rest else ""


def _words(person: Person) -> Iterator[str]:
    yield "human"
    for axis, corner in enumerate(person.box):
        yield f"v{axis}={limited(corner / SIDE * MAX_NUMBER)}"
    yield "global"
    yield from (f"v0={limited(_HALF * g + _HALF)}" for row in person.orientation for g in row)
    yield "pose"
    yield from (code_word(code) for code in person.pose_codes)
    yield "shape"
    yield from (f"v0={limited(_BETA * beta + _HALF)}" for beta in person.betas)
    yield "camera"
    yield from (f"v0={limited(_CAMERA * c + _CAMERA)}" for c in person.camera)


def _read_person(
    index: int, box: object, orientation: object, codes: object, betas: object, camera: object
) -> Person:
    """One person of a file, in pixels of the whole picture."""
    where = f"person {index + 1}: "
    turn = read_numbers(orientation, (1, 3, 3), f"{where}global_orient")
    return Person(
        box=_four(read_numbers(box, (4,), f"{where}bbox_xyxy")),
        orientation=(_three(turn[:3]), _three(turn[3:6]), _three(turn[6:])),
        pose_codes=read_codes(codes, NUM_CODES_OF_POSE, f"{where}pose_tokenized"),
        betas=read_numbers(betas, (_BLOCKS["shape"],), f"{where}betas"),
        camera=_three(read_numbers(camera, (3,), f"{where}pred_cam")),
    )


def _seen(person: Person, crop: Crop) -> Person | None:
    """Somebody as a crop shows them; None for whoever is wholly outside."""
    across, down = SIDE / crop.width, SIDE / crop.height
    left, top, right, bottom = person.box
    left, right = (left - crop.left) * across, (right - crop.left) * across
    top, bottom = (top - crop.top) * down, (bottom - crop.top) * down
    if max(left, right) < 0 or min(left, right) > SIDE or max(top, bottom) < 0 or min(top, bottom) > SIDE:
        return None
    if crop.mirrored:
        left, right = SIDE - right, SIDE - left
        scale, x, y = person.camera
        person = replace(person, camera=(scale, -x, y))
    return replace(person, box=_four([min(max(c, 0.0), float(SIDE)) for c in (left, top, right, bottom)]))


def _numbers(words: list[str]) -> list[int]:
    """The numbers of words; fewer than words where one is none. None goes beyond what a word can say."""
    return [limited(number) for word in words if (number := number_of(word)) is not None]


def _codes(words: list[str]) -> list[int]:
    return [code for word in words if (code := code_of(word)) is not None]


def _three(values: tuple[float, ...] | list[float]) -> Row:
    a, b, c = values
    return a, b, c


def _four(values: tuple[float, ...] | list[float]) -> tuple[float, float, float, float]:
    a, b, c, d = values
    return a, b, c, d
